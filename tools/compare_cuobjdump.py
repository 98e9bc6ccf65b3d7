#!/usr/bin/env python3
"""Compares what `doctor scan --list` finds in libraries with cuobjdump --list-elf and --list-ptx, and with readelf.

compare_cuobjdump.py [--edgewise PROGRAM] [--seconds N] PATH...   prints every difference; exit status 1 where there is one
"""
import argparse
import collections
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import time


def inventory(program, paths):
    lines = subprocess.run([program, "doctor", "scan", "--list", *paths], capture_output=True, text=True, check=False).stdout
    return [json.loads(line) for line in lines.splitlines()]


def ours(entry):
    """Counts of (kind, SM) in containers; PTX text and cubins outside them are nothing that cuobjdump lists."""
    counts = collections.Counter()
    for image in entry["images"]:
        if image["kind"] != "lto" and not image["bare"]:
            counts[image["kind"], image["sm"]] += image["count"]
    return counts


def theirs(cuobjdump, path):
    counts = collections.Counter()
    for option, kind, suffix in (("--list-elf", "cubin", "cubin"), ("--list-ptx", "ptx", "ptx")):
        told = subprocess.run([cuobjdump, option, path], capture_output=True, text=True, check=False).stdout
        counts.update((kind, sm) for sm in re.findall(r"\.sm_(\d+[af]?)\." + suffix, told))
    return counts


def needs(path):
    told = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=False).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", told)


def compare(entry, cuobjdump, end):
    if time.monotonic() > end:
        return None
    path, differences = entry["path"], []
    if shutil.which("readelf") and entry["needed"] != needs(path):
        differences.append(f"{path}: needs {entry['needed']}, readelf says {needs(path)}")
    if cuobjdump:
        mine, told = ours(entry), theirs(cuobjdump, path)
        for key in sorted(mine.keys() | told.keys()):
            if mine[key] != told[key]:
                differences.append(f"{path}: {key[0]} sm_{key[1]}: {mine[key]}, cuobjdump says {told[key]}")
    return differences


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edgewise", default="build/edgewise")
    parser.add_argument("--seconds", type=float, default=600, help="begin no comparison after this time")
    parser.add_argument("--cuobjdump", default=shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump")
    parser.add_argument("paths", nargs="+")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    cuobjdump = options.cuobjdump if os.path.exists(options.cuobjdump) else None
    entries = sorted(inventory(options.edgewise, options.paths), key=lambda e: os.path.getsize(e["path"]))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda e: compare(e, cuobjdump, end), entries))
    done = [r for r in results if r is not None]
    with_code = sum(1 for e, r in zip(entries, results) if r is not None and e["images"])
    for line in sum(done, []):
        print(line)
    print(f"{len(done)} of {len(entries)} libraries compared, {with_code} with GPU code"
          f"{'' if cuobjdump else ' (cuobjdump is absent: only what they need)'}; {sum(map(bool, done))} differ")
    return 1 if any(done) else 0


if __name__ == "__main__":
    sys.exit(main())
