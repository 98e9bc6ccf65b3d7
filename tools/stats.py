#!/usr/bin/env python3
"""Size of the sources: lengths of functions, and lines of code a folder. stats.py [N] also lists the N longest functions."""
import sys

import source


def at_share(values, share):
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0


def main():
    longest = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    folders = sorted({p.parent for p in source.c_files("src", "tests")})
    print(f"{'folder':<24}{'files':>7}{'code':>8}{'functions':>11}{'median':>8}{'p90':>6}{'p99':>6}{'max':>6}")
    rows = [(source.relative(folder), [p for p in source.c_files("src", "tests") if p.parent == folder]) for folder in folders]
    rows.append(("all of src", source.c_files("src")))
    for name, paths in rows:
        lengths = sorted(f.lines for p in paths for f in source.functions(p))
        code = sum(source.count_code_lines(p.read_text(encoding="utf-8")) for p in paths)
        shares = [at_share(lengths, 0.5), at_share(lengths, 0.9), at_share(lengths, 0.99), at_share(lengths, 1)]
        print(f"{name:<24}{len(paths):>7}{code:>8}{len(lengths):>11}{shares[0]:>8}{shares[1]:>6}{shares[2]:>6}{shares[3]:>6}")
    functions = sorted((f for p in source.c_files("src") for f in source.functions(p)), key=lambda f: -f.lines)
    for function in functions[:longest]:
        print(f"{function.lines:>5}  {function.name}  {source.relative(function.path)}:{function.line}")


if __name__ == "__main__":
    main()
