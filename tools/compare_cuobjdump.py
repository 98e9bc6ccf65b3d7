#!/usr/bin/env python3
"""Compares what `doctor scan --list` finds in libraries with cuobjdump --list-elf and --list-ptx, and with readelf.

cuobjdump lists the containers of one section, .nv_fatbin, and calls family code (120f) by its plain number. Libraries have more: cuFFT,
cuSPARSE, CUPTI and cuBLASLt keep containers in sections of their own. So a reader of headers stands between the two: in that section it must count what
cuobjdump does, in the whole file what edgewise does.

compare_cuobjdump.py [--edgewise PROGRAM] [--seconds N] PATH...   prints every difference; exit status 1 where there is one
"""
import argparse
import collections
import concurrent.futures
import json
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import time


MAGIC = b"\x50\xed\x55\xba"
KINDS = {1: "ptx", 2: "cubin"}


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


def section(path):
    """Offsets where .nv_fatbin begins and ends."""
    told = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\] \.nv_fatbin\s+\S+\s+[0-9a-f]+ ([0-9a-f]+) ([0-9a-f]+)", told)
    return (int(found[1], 16), int(found[1], 16) + int(found[2], 16)) if found else (0, 0)


def headers(path, begin, end):
    """Counts of images by reading the headers of containers one after the other."""
    counts = collections.Counter()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(MAGIC, begin, end)
        while at >= 0:
            version, header, size = struct.unpack_from("<HHQ", data, at + 4)
            last = at + 16 + size
            if version == 1 and header == 16 and last <= len(data) and struct.unpack_from("<HH", data, at + 16)[1] == 0x101:
                at += 16
                while at < last:
                    kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
                    suffix = {0x100000: "a", 0x200000: "f"}.get(struct.unpack_from("<Q", data, at + 40)[0] & 0x300000, "")
                    if kind in KINDS:
                        counts[KINDS[kind], f"{struct.unpack_from('<I', data, at + 28)[0]}{suffix}"] += 1
                    at += header + size
                at -= 4
            at = data.find(MAGIC, at + 4, end)
    return counts


def plain(counts):
    """As cuobjdump names them: family code without its letter."""
    named = collections.Counter()
    for (kind, sm), count in counts.items():
        named[kind, sm.rstrip("f")] += count
    return named


def theirs(cuobjdump, path):
    counts = collections.Counter()
    for option, kind, suffix in (("--list-elf", "cubin", "cubin"), ("--list-ptx", "ptx", "ptx")):
        told = subprocess.run([cuobjdump, option, path], capture_output=True, text=True, check=False).stdout
        counts.update((kind, sm) for sm in re.findall(r"\.sm_(\d+[af]?)\." + suffix, told))
    return counts


def needs(path):
    told = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=False).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", told)


def differ(path, mine, told, who):
    return [f"{path}: {kind} sm_{sm}: {mine[kind, sm]}, {who} {told[kind, sm]}"
            for kind, sm in sorted(mine.keys() | told.keys()) if mine[kind, sm] != told[kind, sm]]


def compare(entry, cuobjdump, end):
    if time.monotonic() > end:
        return None
    path, differences = entry["path"], []
    if shutil.which("readelf") and entry["needed"] != needs(path):
        differences.append(f"{path}: needs {entry['needed']}, readelf says {needs(path)}")
    if entry["images"]:
        differences += differ(path, ours(entry), headers(path, 0, os.path.getsize(path)), "headers say")
    if entry["images"] and cuobjdump:
        differences += differ(path, plain(headers(path, *section(path))), theirs(cuobjdump, path), "cuobjdump says")
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
          f"{'' if cuobjdump else ' (cuobjdump is absent)'}; {sum(map(bool, done))} differ")
    return 1 if any(done) else 0


if __name__ == "__main__":
    sys.exit(main())
