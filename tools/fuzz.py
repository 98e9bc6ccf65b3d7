#!/usr/bin/env python3
"""Builds the fuzz entries with libFuzzer and runs each: fuzz.py [SECONDS [NAME...]]; fuzz.py --merge [NAME...]

New inputs go to build-fuzz/corpus/NAME, findings to build-fuzz/finds. --merge adds to tests/fuzz/corpus/NAME the smallest set
of new inputs that reaches code which the committed ones do not.
"""
import os
import shutil
import subprocess
import sys

import source

BUILD = source.ROOT / "build-fuzz"
LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1"]


def find_clang():
    """The newest clang that can link a fuzzer: the runtime library is a package of its own."""
    source_text = b"int LLVMFuzzerTestOneInput(const char *bytes, unsigned long size) { return bytes && size; }"
    for name in [f"clang-{version}" for version in range(25, 13, -1)] + ["clang"]:
        link = [name, "-fsanitize=fuzzer,address,undefined", "-x", "c", "-", "-o", "/dev/null"]
        if shutil.which(name) and subprocess.run(link, input=source_text, capture_output=True).returncode == 0:
            return name
    sys.exit("fuzz: no clang 14 or newer with libFuzzer: run tools/setup fuzz")


def build(names):
    if not (BUILD / "build.ninja").exists():
        env = dict(os.environ, CC=find_clang())
        options = ["-Dfuzz=true", "-Dbuildtype=debugoptimized", "-Db_sanitize=address,undefined", "-Db_lundef=false",
                   "-Dc_args=-fsanitize=fuzzer-no-link -fno-sanitize-recover=undefined"]
        subprocess.run(["meson", "setup", BUILD, *options], cwd=source.ROOT, env=env, check=True)
    subprocess.run(["ninja", "-C", BUILD, *(f"tests/fuzz/fuzz_{name}" for name in names)], check=True)


def folders(name):
    new, kept, finds = BUILD / "corpus" / name, source.ROOT / "tests/fuzz/corpus" / name, BUILD / "finds"
    for folder in (new, finds, kept):
        folder.mkdir(parents=True, exist_ok=True)
    return new, kept, finds


def fuzz(name, seconds):
    new, kept, finds = folders(name)
    print(f"== {name}: {seconds} s", flush=True)
    command = [BUILD / "tests/fuzz" / f"fuzz_{name}", *LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={finds}/{name}-", new, kept]
    with open(BUILD / f"{name}.log", "wb") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    tail = (BUILD / f"{name}.log").read_text(errors="replace").splitlines()
    print("\n".join(tail[-40:] if status else [line for line in tail if line.startswith("stat::number_of_exec") or line.startswith("Done")]))
    return status == 0


def merge(name):
    new, kept, _ = folders(name)
    subprocess.run([BUILD / "tests/fuzz" / f"fuzz_{name}", *LIMITS, "-merge=1", kept, new], check=True, stderr=subprocess.DEVNULL)
    print(f"{name}: {len(list(kept.iterdir()))} inputs, {sum(p.stat().st_size for p in kept.iterdir())} bytes")


def main():
    arguments = sys.argv[1:]
    if arguments == ["--clang"]:  # tools/setup asks
        print(find_clang())
        return
    merging = bool(arguments) and arguments[0] == "--merge"
    seconds = 60 if merging or not arguments else int(arguments[0])
    entries = sorted(p.stem.removeprefix("fuzz_") for p in (source.ROOT / "tests/fuzz").glob("fuzz_*.c"))
    names = arguments[1:] or entries
    build(names)
    if merging:
        for name in names:
            merge(name)
        return
    failed = [name for name in names if not fuzz(name, seconds)]
    if failed:
        sys.exit(f"fuzz: findings in {', '.join(failed)}; the inputs are in {BUILD}/finds")
    print(f"fuzz: {len(names)} entries, {seconds} s each, no findings")


if __name__ == "__main__":
    main()
