#!/usr/bin/env python3
"""Compiles the GPU kernels of src/kernel/cuda/ptx to PTX: ptx.py [--check].

The PTX stays in the tree, so that a machine without clang-19 builds the program, too. --check writes nothing: it demands that the
same clang gives the same PTX, that version and target are those of the tier, and, where there is a ptxas, that every kernel
assembles for every architecture without a stack frame or spills beyond a few words. It prints "pass: ...", "fail: ..." and "skip: ..." lines.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import source

FOLDER = source.ROOT / "src/kernel/cuda/ptx"
COMPILER = "clang-19"
# Of a tier: the version of PTX, and the architectures that it is assembled for. sm_80 with PTX 7.4 is the oldest GPU and driver that
# we serve; its files have no suffix, those of the others ".sm_90.ptx" and so on (cuda_device.c chooses). Sources see EW_SM.
TIERS = {
    "sm_80": ("7.4", ["sm_80", "sm_87", "sm_89", "sm_90", "sm_110", "sm_120"]),
    "sm_89": ("8.4", ["sm_89", "sm_90", "sm_100", "sm_110", "sm_120"]),
    "sm_90": ("8.1", ["sm_90", "sm_100", "sm_110", "sm_120"]),
    "sm_90a": ("8.0", ["sm_90a"]),
}
SPILL_MAX = 48  # bytes a thread: a few words outside of the loops, on some architecture, and of some modules more
SPILL_MAX_OF = {"chosen": 136}  # on sm_120, 48 without the hint of copy_once_async; 44 on sm_110, none on sm_90
NO_SPILLS = {("vector.sm_90.ptx", "sm_90")}  # where one cost 4 % of a step and more: docs/benchmarks.md
# Modules that exist in more tiers than the first, or in others.
CHAINED = [
    "attention",
    "chosen",
    "decode",
    "experts",
    "few",
    "latent",
    "linear",
    "rows",
    "state",
    "vector",
]
MODULE_TIERS = {name: ["sm_80", "sm_90"] for name in CHAINED} | {name: ["sm_90a"] for name in ("wgmma", "wgmma_coded", "wgmma_f8")} | {"gemm_f8": ["sm_89"]}
# Threads of a block, of the modules whose kernels all have the same: ptxas may use more registers where it knows.
THREADS = {
    "chosen": 512,
    "flash_f16": 128,
    "flash_f8": 128,
    "flash_i8": 128,
    "decode": 128,
    "few": 256,
    "gemm": 128,
    "gemm_f8": 256,
    "latent": 256,
    "linear": 256,
    "some": 256,
    "state": 256,
    "vector": 512,
    "wgmma": 288,
    "wgmma_coded": 384,
    "wgmma_f8": 384,
}
# Modules of whose kernels a multiprocessor holds one block: ptxas need not save registers for a second one.
ALONE = {"few", "gemm_f8", "wgmma_coded", "wgmma_f8"}
# Kernels, by the ends of their names, of which a multiprocessor is to hold so many blocks.
TOGETHER = {"chosen": (2, ("",)), "decode": (3, ("_64", "_96", "_128")), "some": (2, ("f16_16", "f16_24", "f8_16", "i8_16", "i8_24", "u4_16", "u4_24")), "vector": (2, ("",))}


def path_of(module, tier):
    return module.with_suffix(".ptx" if tier == "sm_80" else f".{tier}.ptx")


def compile_module(module, tier):
    feature = "+ptx" + TIERS[tier][0].replace(".", "")
    command = [COMPILER, "--target=nvptx64-nvidia-cuda", f"-march={tier}", f"--cuda-feature={feature}", f"-DEW_SM={re.sub('[^0-9]', '', tier)}",
               "-ffreestanding", "-O3", "-ffp-contract=fast", f"-I{source.ROOT / 'src'}", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
               "-S", "-o", "-", module.name]
    text = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout
    text = re.sub(r"^//.*\n", "", text, flags=re.M)  # the compiler's own name and version
    threads = THREADS.get(module.stem)

    def bounds(entry):
        count, ends = TOGETHER.get(module.stem, (1, ("",) if module.stem in ALONE else ()))
        together = f".minnctapersm {count}\n" if entry[2].endswith(ends) else ""
        return f"{entry[1]}.maxntid {threads}, 1, 1\n{together}"

    return re.sub(r"(\.visible \.entry (\w+)\([^)]*\)[^\n]*\n)", bounds, text) if threads else text


def ptxas():
    return shutil.which("ptxas") or shutil.which("/usr/local/cuda/bin/ptxas")


def assemble(program, path, architecture):
    """What is wrong with the module on one architecture, or None."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as out:
        result = subprocess.run([program, "-v", "-arch", architecture, "-o", out.name, path], capture_output=True, text=True)
    text = result.stdout + result.stderr
    if result.returncode:
        return text.strip()[-600:]
    for kernel, frame, stores, loads in re.findall(
            r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text):
        most = 0 if (path.name, architecture) in NO_SPILLS else SPILL_MAX_OF.get(path.name.split(".")[0], SPILL_MAX)
        if max(int(frame), int(stores), int(loads)) > most:
            return f"{kernel} has {frame} bytes of stack, {stores} bytes of spills"
    return None


def check_source(module, tier):
    path = path_of(module, tier)
    text = path.read_text() if path.exists() else ""
    right = f".version {TIERS[tier][0]}\n" in text and f".target {tier}\n" in text
    lines = [f"{'pass' if right else 'fail'}: {path.name} is PTX {TIERS[tier][0]} for {tier}"]
    if not shutil.which(COMPILER):
        return [*lines, f"skip: {path.name} from its source: there is no {COMPILER}"]
    if compile_module(module, tier) == text:
        return [*lines, f"pass: {path.name} is what {COMPILER} makes of {module.name}"]
    return [*lines, f"fail: {path.name} is not what {COMPILER} makes of {module.name} (python3 tools/ptx.py writes it anew)"]


def check_architecture(module, tier, architecture):
    path = path_of(module, tier)
    if not ptxas():
        return [f"skip: {path.name} for {architecture}: there is no ptxas"]
    fault = assemble(ptxas(), path, architecture)
    return [f"fail: {path.name} for {architecture}: {fault}" if fault else f"pass: {path.name} assembles for {architecture}"]


def check(jobs):
    """The largest first, so that no core is left with them at the end."""
    tasks = [(check_source, *job) for job in jobs]
    tasks += [(check_architecture, *job, architecture) for job in jobs for architecture in TIERS[job[1]][1]]
    tasks.sort(key=lambda task: -path_of(*task[1:3]).stat().st_size if path_of(*task[1:3]).exists() else 0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for lines in pool.map(lambda task: task[0](*task[1:]), tasks):
            print(*lines, sep="\n", flush=True)


def main():
    jobs = [(module, tier) for module in sorted(FOLDER.glob("*.c")) for tier in MODULE_TIERS.get(module.stem, ["sm_80"])]
    if sys.argv[1:] == ["--check"]:
        check(jobs)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (module, tier), text in zip(jobs, pool.map(lambda job: compile_module(*job), jobs)):
            path_of(module, tier).write_text(text)


if __name__ == "__main__":
    main()
