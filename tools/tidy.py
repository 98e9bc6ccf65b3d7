#!/usr/bin/env python3
"""Checks the rules of CONTRIBUTING.md that a machine can check: tidy.py [BUILD_DIR]

Prints one line a rule, "pass: ..." or "fail: ...", with the places below a failure. The symbol rule needs a finished build.
"""
import re
import subprocess
import sys
from pathlib import Path

import source

# A folder may include what stands before it. Those of one row may not include each other.
LAYERS = [["base"], ["platform"], ["format"], ["text"], ["kernel"], ["model"], ["engine"], ["server", "bench", "doctor", "plan"], ["cli"]]
RANK = {folder: rank for rank, row in enumerate(LAYERS) for folder in row}

FUNCTION_LINES_MAX = 100
FILE_CODE_LINES_MAX = 1000
LINE_LENGTH_MAX = 120
EXCUSE_FILE = "tidy: large, because"  # in the first lines of a file

# What may not be called, and the files that may.
BANNED = [
    (r"strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atof|strtok", "has no bound or no error", ()),
    (r"malloc|calloc|realloc|reallocarray|free|strdup|strndup|asprintf", "bypasses base/alloc", ("src/base/alloc.c",)),
    (r"exit|quick_exit|abort", "only main and failed asserts end the process", ("src/cli/main.c", "src/base/assert.c")),
]

TEXT_FOLDERS = ("src", "tests", "tools", "data")
TEXT_SUFFIXES = (".c", ".h", ".py", ".build", ".yaml", ".md", ".txt")
NOT_TEXT = ("tests/fixtures/", "tests/fuzz/corpus/", "tools/__pycache__/")  # bytes that must stay as they are

SYMBOL_ALLOWED = re.compile(r"^(ew_|main$|LLVMFuzzerTestOneInput$)")


def check_layers():
    for path in source.c_files("src"):
        folder = path.relative_to(source.ROOT / "src").parts[0]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            include = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not include or folder not in RANK:
                continue
            other = include.group(1).split("/")[0]
            if "/" not in include.group(1):
                yield f"{source.relative(path)}:{number}: include by the path below src/"
            elif other != folder and RANK.get(other, len(LAYERS)) >= RANK[folder]:
                yield f"{source.relative(path)}:{number}: {folder} may not include {other}"


def check_folders():
    for path in sorted((source.ROOT / "src").iterdir()):
        if path.is_dir() and path.name not in RANK:
            yield f"src/{path.name} is no layer"


def check_basenames():
    seen = {}
    for path in source.c_files("src"):
        if path.name in seen:
            yield f"{source.relative(path)} and {source.relative(seen[path.name])}"
        seen[path.name] = path


def check_function_lengths():
    for path in source.c_files("src", "tests"):
        for function in source.functions(path):
            if function.lines > FUNCTION_LINES_MAX and not function.excused:
                yield f"{source.relative(path)}:{function.line}: {function.name} has {function.lines} lines"


def check_file_lengths():
    for path in source.c_files("src", "tests"):
        text = path.read_text(encoding="utf-8")
        code_lines = source.count_code_lines(text)
        if code_lines > FILE_CODE_LINES_MAX and EXCUSE_FILE not in text[:2000]:
            yield f"{source.relative(path)} has {code_lines} lines of code"


def check_banned_calls():
    for path in source.c_files("src"):
        name = source.relative(path)
        lines = source.without_comments(path.read_text(encoding="utf-8"), strings=True).splitlines()
        for words, why, excepted in BANNED:
            if name in excepted:
                continue
            call = re.compile(rf"(?<![\w.>])({words})\s*\(")
            for number, line in enumerate(lines, 1):
                hit = call.search(line)
                if hit:
                    yield f"{name}:{number}: {hit.group(1)}: {why}"


def text_files():
    paths = [path for folder in TEXT_FOLDERS for path in (source.ROOT / folder).rglob("*")] + list(source.ROOT.glob("*"))
    for path in sorted(paths):
        name = source.relative(path)
        if path.is_file() and not name.startswith(NOT_TEXT) and (path.suffix in TEXT_SUFFIXES or name.startswith("tools/")):
            yield name, path.read_text(encoding="utf-8").split("\n")


def check_white_space():
    for name, lines in text_files():
        for number, line in enumerate(lines, 1):
            if line != line.rstrip():
                yield f"{name}:{number}: space at the end of the line"
            if "\t" in line:
                yield f"{name}:{number}: tab"
        if lines[-1]:
            yield f"{name}: no newline at the end"


def check_line_lengths():
    for name, lines in text_files():
        if name.endswith((".c", ".h")):
            for number, line in enumerate(lines, 1):
                if len(line) > LINE_LENGTH_MAX:
                    yield f"{name}:{number}: {len(line)} characters"


def check_symbols(build):
    libraries = sorted((build / "src").rglob("lib*.a"))
    if not libraries:
        yield f"no libraries below {build}: build first"
    for library in libraries:
        listed = subprocess.run(["nm", "-g", "--defined-only", "--format=posix", str(library)], capture_output=True, text=True)
        for line in listed.stdout.splitlines():
            words = line.split()
            if len(words) >= 2 and len(words[1]) == 1 and not SYMBOL_ALLOWED.match(words[0]):
                yield f"{library.name}: {words[0]}"


def main():
    build = Path(sys.argv[1] if len(sys.argv) > 1 else source.ROOT / "build")
    rules = [
        ("layers include only what is below them", check_layers()),
        ("every folder of src is a layer", check_folders()),
        ("file names are unique", check_basenames()),
        (f"functions have at most {FUNCTION_LINES_MAX} lines", check_function_lengths()),
        (f"files have at most {FILE_CODE_LINES_MAX} lines of code", check_file_lengths()),
        ("no banned calls", check_banned_calls()),
        ("no stray white space", check_white_space()),
        (f"lines have at most {LINE_LENGTH_MAX} characters", check_line_lengths()),
        ("external symbols begin with ew_", check_symbols(build)),
    ]
    failed = 0
    for title, findings in rules:
        findings = list(findings)
        failed += bool(findings)
        print(("fail: " if findings else "pass: ") + title)
        for finding in findings[:40]:
            print("    " + finding)
        if len(findings) > 40:
            print(f"    and {len(findings) - 40} more")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
