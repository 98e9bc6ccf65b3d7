"""What the black-box tests share: the program, its fixtures, and how to run it.

Test modules need packages that may be absent: `safetensors = pytest.importorskip("safetensors.numpy")` skips and says so.
"""
import functools
import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EDGEWISE = os.environ.get("EDGEWISE", str(ROOT / "build/edgewise"))
SHARED = Path(os.environ.get("EW_SHARED", ROOT.parent / "shared"))


def run(*arguments, stdin=b"", timeout=120, env=None, cwd=None):
    """Runs the program; stdin and the outputs are bytes. A death by signal fails the test at once."""
    result = subprocess.run([EDGEWISE, *map(str, arguments)], input=stdin, capture_output=True, timeout=timeout, check=False, cwd=cwd,
                            env=dict(os.environ, **(env or {})))
    assert result.returncode >= 0, f"died of signal {-result.returncode}: {result.stderr.decode(errors='replace')}"
    return result


def run_ok(*arguments, **options):
    result = run(*arguments, **options)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    return result.stdout


def run_json(*arguments, **options):
    return json.loads(run_ok(*arguments, **options))


def find(path):
    """A fixture or model by its path ("fixtures/gguf/README.md"), or None: the repository's own copy, else the shared one."""
    for place in (ROOT / "tests" / path, ROOT / path, SHARED / path):
        if place.exists():
            return place
    return None


def need(path):
    found = find(path)
    if found is None:
        pytest.skip(f"{path} is absent")
    return found


@functools.cache
def levels():
    """What --cpu-max distinguishes on this machine, lowest first; nothing above the last one is there."""
    names = ["reference", "avx2", "avx512", "avx512-vnni", "avx512-vbmi", "amx"], ["reference", "neon", "dotprod", "i8mm"]
    best = run_json("bench", "kernels", "--filter", "^$", "--json")["isa"]
    order = next((order for order in names if best in order), ["reference"])
    return order[:order.index(best) + 1] if best in order else order


def fake_library(folder, name, source):
    """A library in the place of a driver's, of which `source` is the C."""
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", folder / name], input=source.encode(), check=True)
