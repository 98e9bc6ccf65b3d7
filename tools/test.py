#!/usr/bin/env python3
"""Runs the tests: test.py [STAGE...], by default all stages that need no GPU. The last line is "N passed, N failed, N skipped".

Each stage builds what it needs in its own build folder. Tests are counted one by one: the cases of the unit tests (cmocka) and
of the Python tests, the corpora of the fuzz entries, the rules of tidy and of the ABI check.
"""
import glob
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import source

SANITIZED = ["-Dbuildtype=debug", "-Doptimization=1", "-Db_lundef=false"]
SLOW = {"EW_SLOW": "1"}  # each instruction takes several: what is only long may be shorter
ASAN_ENV = {"ASAN_OPTIONS": "allocator_may_return_null=1:strict_string_checks=1:abort_on_error=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1", **SLOW}
# Folder and options of each build.
BUILDS = {
    "release": ("build", []),
    "asan": ("build-asan", SANITIZED + ["-Db_sanitize=address,undefined", "-Dc_args=-fno-sanitize-recover=undefined"]),
    "ubsan": ("build-ubsan", SANITIZED + ["-Db_sanitize=undefined", "-Dc_args=-fno-sanitize-recover=undefined"]),
    "tsan": ("build-tsan", SANITIZED + ["-Db_sanitize=thread"]),
    "arm64": ("build-arm64", ["--cross-file", "build-arm64-root/cross.ini"]),
}


class Counts:
    def __init__(self):
        self.passed, self.failed, self.skipped, self.notes = 0, 0, 0, []

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.notes += other.notes

    def fail(self, note):
        self.failed += 1
        self.notes.append("FAILED " + note)

    def skip(self, note, count=1):
        self.skipped += count
        self.notes.append("skipped " + note)

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def run(command, **options):
    return subprocess.run([str(word) for word in command], cwd=source.ROOT, **options)


def programs_of(folder, suites):
    told = run(["meson", "introspect", folder, "--tests"], capture_output=True, text=True, check=True).stdout
    top = source.ROOT / folder
    return [str(Path(test["cmd"][0]).relative_to(top)) for test in json.loads(told) if {suite.split(":")[-1] for suite in test["suite"]} & set(suites)]


def build(name, counts, suites=(), targets=()):
    """All of it, or of the tests' programs those of some suites, and the targets."""
    folder, options = BUILDS[name]
    if not (source.ROOT / folder / "build.ninja").exists():
        result = run(["meson", "setup", folder, *options], capture_output=True, text=True)
        if result.returncode:
            print(result.stdout[-4000:] + result.stderr[-2000:])
            counts.fail(f"{folder}: meson setup")
            return None
    programs = programs_of(folder, suites) + list(targets) if suites else []
    result = run(["ninja", "-C", folder, *programs], capture_output=True, text=True)
    if result.returncode:
        print(result.stdout[-8000:] + result.stderr[-2000:])
        counts.fail(f"{folder}: build")
        return None
    return folder


def named(text, word):
    """The names that cmocka lists at its end, as "[  FAILED  ] name"."""
    names = re.findall(rf"^\[\s+{word}\s*\] ([A-Za-z_]\w*)\s*$", text, re.M)
    return list(dict.fromkeys(names))


def count_program(test, counts):
    """One entry of Meson's log: a cmocka program counts by its cases, any other as one test."""
    text = test.get("stdout", "") + "\n" + test.get("stderr", "")
    name, ok = test["name"].split(" / ")[-1], test["result"] in ("OK", "EXPECTEDFAIL")
    passed = re.search(r"^\[  PASSED  \] (\d+) test\(s\)", text, re.M)
    failed, skipped = named(text, "FAILED"), named(text, "SKIPPED")
    if test["result"] == "SKIP":
        counts.skip(name)
    elif not passed:
        counts.passed += ok
        if not ok:
            counts.fail(f"{name}: {test['result']} (status {test.get('returncode')})")
    else:
        counts.passed += int(passed.group(1))
        for case in skipped:
            counts.skip(f"{name}: {case}")
        for case in failed:
            counts.fail(f"{name}: {case}")
        if not ok and not failed:
            counts.fail(f"{name}: {test['result']} (status {test.get('returncode')})")
    if not ok:
        print(f"--- {name}\n{text[-6000:]}")


def meson_tests(build_name, suites, env=None, targets=()):
    counts = Counts()
    folder = build(build_name, counts, suites, targets)
    if not folder:
        return counts
    log = source.ROOT / folder / "meson-logs/testlog.json"
    log.unlink(missing_ok=True)
    suite_options = [word for suite in suites for word in ("--suite", suite)]
    result = run(["meson", "test", "-C", folder, "--no-rebuild", "--timeout-multiplier", "4", *suite_options], capture_output=True,
                 text=True, env=dict(os.environ, **(env or {})))
    if not log.exists():
        print(result.stdout[-4000:] + result.stderr[-2000:])
        counts.fail(f"{folder}: meson test")
        return counts
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        count_program(json.loads(line), counts)
    return counts


def stage_unit():
    return meson_tests("release", ["unit"])


def python_for_tests():
    for python in (shutil.which(source.ROOT / "build-py/bin/python"), shutil.which("python3")):
        if python and subprocess.run([str(python), "-c", "import pytest"], capture_output=True).returncode == 0:
            return python
    return None


def count_junit(report, counts):
    for case in xml.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts.fail(name)
        elif skipped is not None:
            counts.skip(f"{name}: {skipped.get('message')}")
        else:
            counts.passed += 1


# The emulated GPU takes more time than all else, in parts that are short beside the rest: no core is left with a long one at the end.
CUDA_TESTS = ["tests/py/test_cuda.py", "tests/py/test_cuda_lost.py", "tests/py/test_exact.py"]
CUDA_SHARDS = 6


def shards():
    """(name, arguments, environment) of programs that run side by side."""
    yield "pytest", ["tests/py", *(f"--ignore={path}" for path in CUDA_TESTS)], {}
    for i in range(CUDA_SHARDS):
        yield f"pytest-cuda-{i}", [*CUDA_TESTS, "tests/py/test_models_table.py"], {"EW_SHARD": f"{i}/{CUDA_SHARDS}"}


def run_pytest(python, folder, env, name, arguments, front=()):
    counts, report = Counts(), source.ROOT / folder / f"{name}.xml"
    report.unlink(missing_ok=True)
    result = run([*front, python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}", *arguments], env=env,
                 capture_output=True, text=True)
    if result.returncode:
        print(result.stdout[-12000:] + result.stderr[-2000:])
    if report.exists():
        count_junit(report, counts)
    if result.returncode and not counts.failed:
        counts.fail(f"pytest ended with status {result.returncode}")
    return counts


def stage_python():
    counts = Counts()
    folder, python = build("release", counts), python_for_tests()
    if not folder:
        return counts
    if not python:
        counts.skip("the Python tests: there is no pytest (tools/setup test could not install it)")
        return counts
    if not list((source.ROOT / "tests/py").glob("test_*.py")):
        return counts
    run(["ninja", "-C", folder, "mock_cuda"], capture_output=True)  # where it cannot be built, its tests say so
    env = dict(os.environ, EDGEWISE=str(source.ROOT / folder / "edgewise"), PYTHONDONTWRITEBYTECODE="1")
    together = 1 if "EW_WRITE_MODELS" in os.environ else max(2, os.cpu_count())  # each writes what it saw into one file
    with ThreadPoolExecutor(together) as pool:
        for shard in pool.map(lambda shard: run_pytest(python, folder, env | shard[2], *shard[:2]), shards()):
            counts.add(shard)
    return counts


def stage_asan():
    return meson_tests("asan", ["unit", "fuzz"], ASAN_ENV)


def stage_ubsan():
    return meson_tests("ubsan", ["unit", "fuzz"], ASAN_ENV)


def stage_tsan():
    return meson_tests("tsan", ["threads"], {"TSAN_OPTIONS": "halt_on_error=1"})


def stage_arm64():
    counts = Counts()
    if os.uname().machine != "x86_64":
        counts.skip("the arm64 cross build: this host is not x86-64")
        return counts
    for program in ("aarch64-linux-gnu-gcc", "qemu-aarch64"):
        if not shutil.which(program):
            counts.skip(f"the arm64 cross build: there is no {program} (tools/setup test installs it)")
            return counts
    result = run(["tools/arm64_sysroot", "build-arm64-root"], capture_output=True, text=True)
    if result.returncode:
        counts.skip("the arm64 cross build: cannot fetch the arm64 libraries: " + (result.stderr.strip().splitlines() or ["?"])[-1])
        return counts
    counts = meson_tests("arm64", ["unit"], SLOW, targets=["edgewise"])
    counts.add(checks(["tools/abi_check.sh", "build-arm64/edgewise"]))
    return counts


def checks(command):
    """Counts a tool that prints "pass: ...", "fail: ..." and "skip: ..." lines."""
    counts = Counts()
    result = run(command, capture_output=True, text=True)
    print(result.stdout.rstrip() + result.stderr.rstrip())
    for kind, text in re.findall(r"^(pass|fail|skip): (.*)$", result.stdout, re.M):
        counts.passed += kind == "pass"
        if kind == "fail":
            counts.fail(text)
        elif kind == "skip":
            counts.skip(text)
    if result.returncode and not counts.failed:
        counts.fail(f"{command[0]} ended with status {result.returncode}")
    return counts


def stage_tidy():
    counts = Counts()
    if build("release", counts):
        counts.add(checks([sys.executable, "tools/tidy.py", "build"]))
    return counts


def stage_abi():
    counts = Counts()
    if build("release", counts):
        counts.add(checks(["tools/abi_check.sh", "build/edgewise"]))
    return counts


def stage_ptx():
    return checks([sys.executable, "tools/ptx.py", "--check"])


# ---- on a machine with an NVIDIA driver -----------------------------------------------------------

GPU_TESTS = ["tests/py/test_cuda.py", "tests/py/test_exact.py", "tests/py/test_demo_eval.py", "tests/py/test_server_api.py",
             "tests/py/test_serve_load.py"]
# Every shape; those that take longest begin first.
GPU_SHAPES = ["30b-a3b:q4_0", "8b:q4_k", "4b:q4_0", "16b-a2.4b:q8_0", "2b-delta:bf16", "2b-ssd:q8_0", "2b-latent:bf16", "1.1b:fp8", "1.1b:q8_0",
              "0.6b:bf16", "0.6b:q6_k", "tiny:q4_k_m"]
GPU_SLOT_CORES = 2
GPU_SLOTS = 8  # programs at once: most of a test is its beginning, in which the GPU does nothing


def gpu_kernels(program, front):
    """Its rows begin with what became of them; times beside other programs would tell nothing."""
    counts = Counts()
    result = run([*front, program, "bench", "kernels", "--backend", "cuda", "--check"], capture_output=True, text=True)
    rows = re.findall(r"^(ok  |FAIL) +(.*)$", result.stdout, re.M)
    counts.passed = sum(kind == "ok  " for kind, _ in rows)
    for kind, text in rows:
        if kind == "FAIL":
            counts.fail("bench kernels: " + text)
    if result.returncode and not counts.failed:
        counts.fail("bench kernels: " + result.stderr.strip())
    return counts


def gpu_shape(program, shape, front):
    counts = Counts()
    result = run([*front, program, "eval", "self", "-m", f"synthetic:{shape}", "--backend", "cuda"], capture_output=True, text=True)
    counts.passed += result.returncode == 0
    if result.returncode:
        print(result.stdout[-4000:])
        counts.fail(f"eval self of synthetic:{shape}: {result.stderr.strip()}")
    return counts


def gpu_shard(program, python, i, n, front):
    env = dict(os.environ, EDGEWISE=str(program), EW_TEST_GPU="1", PYTHONDONTWRITEBYTECODE="1", EW_SHARD=f"{i}/{n}")
    return run_pytest(python, source.ROOT / "build", env, f"pytest-gpu-{i}", GPU_TESTS, front)


def gpu_tasks(program, n_slots, counts):
    """(what it is, what does it), the long ones first."""
    python = python_for_tests()
    shapes = [(f"eval self of {shape}", partial(gpu_shape, program, shape)) for shape in GPU_SHAPES]
    n = 2 * n_slots  # short ones, so that no slot is idle at the end
    shards = [(f"Python tests, {i + 1} of {n}", partial(gpu_shard, program, python, i, n)) for i in range(n)]
    if not python:
        counts.skip("the Python tests: there is no pytest")
    return [*shapes[:4], ("bench kernels", partial(gpu_kernels, program)), *(shards if python else []), *shapes[4:]]


def core_sets():
    """For each program cores of its own: all of them wait by spinning."""
    cores = sorted(os.sched_getaffinity(0))
    n = min(GPU_SLOTS, max(1, len(cores) // GPU_SLOT_CORES))
    return [",".join(map(str, cores[i * len(cores) // n:(i + 1) * len(cores) // n])) for i in range(n)]


def on_slots(tasks, sets):
    counts, slots = Counts(), queue.SimpleQueue()
    for cores in sets:
        slots.put(cores)

    def on_a_slot(named_task):
        name, task = named_task
        cores, started = slots.get(), time.monotonic()
        try:
            found = task(["taskset", "-c", cores])
        finally:
            slots.put(cores)
        print(f"   {name}: {found} ({time.monotonic() - started:.0f} s)", flush=True)
        return found

    with ThreadPoolExecutor(len(sets)) as pool:
        for found in pool.map(on_a_slot, tasks):
            counts.add(found)
    return counts


def gpu_program(counts):
    """EDGEWISE names a program that was brought along; else it is built."""
    program = os.environ.get("EDGEWISE")
    if not program:
        folder = build("release", counts)
        program = folder and source.ROOT / folder / "edgewise"
    return program


def stage_gpu():
    counts, sets = Counts(), core_sets()
    program = gpu_program(counts)
    if program:
        (source.ROOT / "build").mkdir(exist_ok=True)
        counts.add(on_slots(gpu_tasks(program, len(sets), counts), sets))
    return counts


# Of each layout of weights and each kind of layer one model, in small. racecheck takes minutes for all kernels of one where several run
# at once, and seconds for some.
CHECK = ["bench", "kernels", "--backend", "cuda", "--check", "-m"]
EXACT = ["run", "--deterministic", "--no-self-test", "--backend", "cuda", "--ids", "5 6 7", "-n", "3", "-m"]
PROMPTS = ["bench", "embed", "--backend", "cuda", "--no-self-test", "-p", "100", "-n", "3", "-b", "2", "-m"]  # no decoding
STEPS = ["run", "--no-self-test", "--backend", "cuda", "--ids", "5 6 7", "-n", "80", "--ignore-eos", "-m"]  # in all ways that are tried
FAR = ["bench", "speed", "--backend", "cuda", "--no-self-test", "--no-warmup", "-p", "16", "-n", "3", "-r", "1", "-d", "6000", "--kv", "fp8", "-m"]
# racecheck 2025.3 ends in an error of its own when a kernel stores to the shared memory of a cluster, so its runs leave these out: by the
# tier, whose kernels are of the same text, and by prompts alone for the products that newer tiers have.
SANITIZER_RUNS = [  # tool, tier, arguments, part of the kernels' names, shapes
    ("racecheck", "sm_80", CHECK, "scan", "2b-ssd:q8_0"), ("racecheck", "sm_80", EXACT, "", "tiny:q8_0"), ("racecheck", "sm_80", CHECK, "", "tiny:q8_0"),
    ("racecheck", "sm_80", CHECK, "chosen", "30b-a3b:q8_0 30b-a3b:bf16 30b-a3b:q4_k_m 30b-a3b:mxfp4 30b-a3b:nvfp4 30b-a3b:fp8"),
    ("racecheck", "sm_80", CHECK, "experts", "30b-a3b:q8_0"), ("racecheck", "sm_80", CHECK, "route", "30b-a3b:bf16"),
    ("racecheck", "sm_80", CHECK, "conv", "2b-delta:bf16"), ("racecheck", "sm_80", CHECK, "few", "30b-a3b:q8_0 tiny:fp8 tiny:q4_k_m tiny:bf16"),
    ("racecheck", "sm_80", CHECK, "decode", "tiny:q4_0 4b:q4_0"), ("racecheck", "sm_80", CHECK, "vector", "tiny:q4_k_m tiny:bf16 tiny:mxfp4 tiny:fp8"),
    ("racecheck", "sm_90a", PROMPTS, "w", "tiny-embed:q8_0 tiny-embed:q4_k_m tiny-embed:mxfp4 tiny-embed:bf16 tiny-embed:fp8"),
    ("memcheck", "sm_90a", CHECK, "", "30b-a3b:q8_0 30b-a3b:q4_k_m 30b-a3b:bf16 2b-delta:bf16 2b-ssd:q8_0 2b-latent:bf16 tiny:f16 tiny:bf16 tiny:q8_0 "
     "tiny:q4_0 tiny:q4_k_m tiny:q5_0 tiny:q6_k tiny:q3_k tiny:fp8 tiny:mxfp4 tiny:nvfp4 tiny:awq"),
    ("memcheck", "sm_90a", EXACT, "", "tiny:q8_0 tiny:q4_k_m"), ("memcheck", "sm_90a", STEPS, "", "tiny:q8_0 tiny:q4_0 tiny:bf16"),
    ("memcheck", "sm_90a", FAR, "decode", "tiny:q4_0"), ("synccheck", "sm_90a", CHECK, "", "tiny:q8_0 30b-a3b:q8_0"),
]


def compute_sanitizer():
    return shutil.which("compute-sanitizer") or next(iter(glob.glob("/usr/local/cuda*/bin/compute-sanitizer")), None)


def gpu_sanitize(sanitizer, tool, tier, program, arguments, kernels, shape, front):
    counts = Counts()
    only = ["--kernel-name", f"kns={kernels}"] if kernels else []
    command = [*front, sanitizer, "--tool", tool, "--print-limit", "5", *only, program, *arguments, f"synthetic:{shape}"]
    result = run(command, capture_output=True, text=True, errors="replace", env=dict(os.environ, EW_CUDA_TIER=tier))
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", result.stdout + result.stderr)
    if result.returncode == 0 and summary and re.match(r"0 (errors|hazards)", summary[1]):
        counts.passed += 1
    else:
        told = summary[1] if summary else (result.stderr + result.stdout)[-500:]
        for line in re.findall(r"^=========\s+((?:Error|Warning|Invalid|and) .*|.* at \w+\+0x\w+.*)$", result.stdout, re.M)[:12]:
            print(f"      {line}")
        counts.fail(f"{tool} of {kernels or 'all kernels'}, {arguments[0]} synthetic:{shape}: {told}")
    return counts


def stage_sanitize():
    """The kernels under NVIDIA's compute-sanitizer, on a machine that has it and a GPU."""
    counts, sanitizer = Counts(), compute_sanitizer()
    if not sanitizer:
        counts.skip("the GPU's sanitizer: there is no compute-sanitizer (the CUDA toolkit has it)")
        return counts
    program = gpu_program(counts)
    tasks = [(f"{tool} of {kernels or 'all kernels'}, {arguments[0]} {shape}, {tier}",
              partial(gpu_sanitize, sanitizer, tool, tier, program, arguments, kernels, shape))
             for tool, tier, arguments, kernels, shapes in SANITIZER_RUNS for shape in shapes.split()]
    if program:
        counts.add(on_slots(tasks, core_sets()))
    return counts


STAGES = {
    "tidy": stage_tidy, "abi": stage_abi, "unit": stage_unit, "python": stage_python, "asan": stage_asan, "ubsan": stage_ubsan,
    "tsan": stage_tsan, "arm64": stage_arm64, "ptx": stage_ptx, "gpu": stage_gpu,
    "sanitize": stage_sanitize,
}
DEFAULT_STAGES = ["tidy", "abi", "ptx", "unit", "python", "asan", "tsan", "arm64"]  # asan has UBSan in it too


def main():
    names = sys.argv[1:] or DEFAULT_STAGES
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        sys.exit(f"test: no stage {unknown[0]}; there are {', '.join(STAGES)}")
    total = Counts()
    for name in names:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        counts = STAGES[name]()
        total.add(counts)
        print(f"   {name}: {counts} ({time.monotonic() - started:.0f} s)", flush=True)
    if total.notes:
        print("== what failed or was skipped")
        for note, times in {note: total.notes.count(note) for note in total.notes}.items():
            print(f"  {note}" + (f" (x{times})" if times > 1 else ""))
    print(total)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
