"""doctor scan on built libraries, wheels, lists, recipes: the failures that cost people days, with the whole chain behind them."""
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import gpu_fixtures as gpu
import pytest
import support
from support import ROOT, run

TREES = ROOT / "tests/fixtures/trees"

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is absent: no libraries to judge")


def scan(tree, *paths, **options):
    result = run("doctor", "scan", "--root", TREES / tree, "--json", *paths, **options)
    report = json.loads(result.stdout)
    assert result.returncode == (1 if report["fail"] else 0)
    return report


def findings(tree, *paths, about=None):
    """Id to finding, of what was scanned only."""
    return {f["id"]: f for f in scan(tree, *paths)["findings"] if f["about"] and (about is None or f["about"].endswith(about))}


# ---- the three classic failures ----

def test_cuda_12_library_on_thor(tmp_path):
    """libcudart.so.12 is missing on a CUDA 13 box, and once it is supplied there is no sm_110 code."""
    library = gpu.library(tmp_path / "_C.abi3.so", ["libcudart.so.12"], gpu.container(gpu.cubin(80), gpu.cubin(90), gpu.cubin(100), gpu.cubin(120)))
    found = findings("thor", library)
    assert set(found) == {"SO-01", "GPU-01"}
    assert "needs libcudart.so.12" in found["SO-01"]["message"] and "CUDA 13.0" in found["SO-01"]["message"]
    assert "cu130" in found["SO-01"]["remedy"]
    assert "no GPU code for sm_110 (has 80, 90, 100, 120)" in found["GPU-01"]["message"]
    assert "11.0" in found["GPU-01"]["remedy"]


def test_library_without_sm_87_on_orin(tmp_path):
    found = findings("agx-orin-64", gpu.library(tmp_path / "libfmha.so", ["libcudart.so.12"], gpu.container(gpu.cubin(90), gpu.cubin(100))))
    assert set(found) == {"GPU-01"} and "sm_87" in found["GPU-01"]["message"]
    found = findings("agx-orin-64", gpu.library(tmp_path / "libdesktop.so", ["libcudart.so.12"], gpu.container(gpu.cubin(80), gpu.cubin(86))))
    assert set(found) == {"GPU-04"}
    found = findings("agx-orin-64", gpu.library(tmp_path / "libptx.so", [], gpu.container(gpu.cubin(75), gpu.ptx(80, (8, 7)))))
    assert set(found) == {"GPU-01", "GPU-03"} and "needs CUDA 12.8, the driver has 12.6" in found["GPU-03"]["message"]
    assert findings("agx-orin-64", gpu.library(tmp_path / "libjit.so", [], gpu.container(gpu.ptx(80, (7, 4))))).keys() == {"GPU-02"}
    assert findings("agx-orin-64", gpu.library(tmp_path / "libgood.so", ["libcudart.so.12"], gpu.container(gpu.cubin(87)))) == {}


def test_project_for_an_orin_nano(tmp_path):
    """A requirement list with x86-only wheels, a too new CUDA base image, settings for more than 8 GB."""
    (tmp_path / "requirements.txt").write_text("""# engine
vllm==0.10.2
flashinfer-jit-cache @ https://example.org/flashinfer_jit_cache-0.5.2+cu128-cp39-abi3-manylinux_2_28_x86_64.whl
decord>=0.6
onnxruntime==1.20
nvidia-cublas-cu12==12.8.4.1
numpy
""")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nrequires-python = ">=3.12"\ndependencies = [\n  "torch>=2.8",\n]\n')
    (tmp_path / "Dockerfile").write_text("""ARG CUDA=12.8.1
FROM --platform=linux/arm64 nvcr.io/nvidia/cuda:${CUDA}-runtime-ubuntu22.04 AS base
FROM base
CMD ["python3", "-m", "vllm.entrypoints.openai.api_server", "--gpu-memory-utilization", "0.85", "--max-num-seqs", "4"]
""")
    found = findings("orin-nano-super", tmp_path)
    assert found["ARCH-02"]["about"].endswith("requirements.txt: flashinfer_jit_cache") and "x86_64" in found["ARCH-02"]["message"]
    assert found["ARCH-05"]["about"].endswith(": decord")
    assert found["PY-09"] and found["PY-17"] and found["PY-18"]
    assert "Python 3.12 is required" in found["PY-02"]["message"]
    assert "CUDA 12.8 image on JetPack 6 (CUDA 12.6)" in found["JP-07"]["message"]
    assert found["CTR-07"]["about"].endswith("Dockerfile: nvcr.io/nvidia/cuda:12.8.1-runtime-ubuntu22.04")
    assert found["MEM-01"] and found["MEM-07"]
    assert "ARCH-04" not in found  # linux/arm64 is this machine's


# ---- libraries ----

def test_a_renamed_library_is_told(tmp_path):
    """libcudart.so.12 that is libcudart.so.13 in truth: symbol versions will refuse it."""
    gpu.compile_library(tmp_path / "libcudart.so.12", "int x;\n", "-Wl,-soname,libcudart.so.13")
    data = bytearray((tmp_path / "libcudart.so.12").read_bytes())
    data[18] = 0xB7
    (tmp_path / "libcudart.so.12").write_bytes(data)
    assert "SO-04" in findings("thor", tmp_path)


def test_runpath_and_only_in_packages(tmp_path):
    """A library of the tree counts as found where RUNPATH leads to it; elsewhere only after its package was imported."""
    (tmp_path / "torch/lib").mkdir(parents=True)
    (tmp_path / "ext").mkdir()
    gpu.library(tmp_path / "torch/lib/libtorch.so", [])
    gpu.library(tmp_path / "ext/a.so", ["libtorch.so"], runpath="$ORIGIN/../torch/lib")
    gpu.library(tmp_path / "ext/b.so", ["libtorch.so"])
    gpu.library(tmp_path / "ext/c.so", ["libnowhere.so.3"])
    assert findings("thor", tmp_path, about="a.so") == {}
    [only] = findings("thor", tmp_path, about="b.so").values()
    assert only["id"] == "SO-12" and only["severity"] == "ok"
    [missing] = findings("thor", tmp_path, about="c.so").values()
    assert missing["id"] == "SO-14" and "libnowhere.so.3" in missing["message"]


def test_the_linkers_cache_counts(tmp_path):
    """Folders that ldconfig knew, whose configuration is not in the tree; a damaged cache adds nothing."""
    gpu.library(tmp_path / "app.so", ["libfar.so.3"])
    tree = tmp_path / "tree"
    shutil.copytree(TREES / "thor", tree)
    assert "SO-14" in findings(tree, tmp_path / "app.so")
    entry = struct.pack("<iIIIQ", 3, 72, 84, 0, 0)
    cache = b"glibc-ld.so.cache1.1" + struct.pack("<II", 1, 30) + bytes(20) + entry + b"libfar.so.3\0/far/libfar.so.3\0"
    (tree / "etc/ld.so.cache").write_bytes(cache)
    assert findings(tree, tmp_path / "app.so") == {}
    (tree / "etc/ld.so.cache").write_bytes(b"ld.so-1.7.0\0" + struct.pack("<I", 1) + bytes(12) + bytes(4) + cache)
    assert findings(tree, tmp_path / "app.so") == {}  # behind the older table
    for damaged in (cache[:60], cache[:20] + b"\xff" * 4 + cache[24:], cache[:52] + b"\xff" * 4 + cache[56:]):
        (tree / "etc/ld.so.cache").write_bytes(damaged)
        assert "SO-14" in findings(tree, tmp_path / "app.so")


def test_wrong_processor(tmp_path):
    assert "ARCH-01" in findings("thor", gpu.library(tmp_path / "x.so", [], machine="x86_64"))


def test_code_outside_its_section_and_compression(tmp_path):
    """libcufft hides its containers in .ldata; old drivers cannot read ZSTD."""
    library = gpu.library(tmp_path / "libhidden.so", [], gpu.container(gpu.cubin(90, gpu.ZSTD)), "x86_64", ".ldata")
    assert findings("h200", library) == {}
    tree = tmp_path / "tree"
    shutil.copytree(TREES / "h200", tree)
    report = tree / ".edgewise/gpu"
    report.write_text(report.read_text().replace("drv_cuda=n:1280", "drv_cuda=n:1220"))
    assert {"GPU-01", "GPU-08"} <= findings(tree, library).keys()


@pytest.mark.parametrize("tree,images,rules", [
    ("thor", [(100, gpu.FAMILY)], {"GPU-01", "GPU-06", "GPU-11"}),
    ("thor", [(101, 0)], {"GPU-01", "GPU-07"}),
    ("thor", [(110, gpu.ARCH_SPECIFIC)], set()),
    ("dgx-spark", [(120, 0)], {"GPU-10"}),
    ("dgx-spark", [(120, gpu.ARCH_SPECIFIC)], {"GPU-01", "GPU-05", "GPU-10"}),
    ("dgx-spark", [(120, gpu.FAMILY)], {"GPU-10"}),
    ("rtx-pro-4000", [(121, 0)], {"GPU-01"}),
    ("h200", [(90, gpu.ARCH_SPECIFIC)], set()),
])
def test_families_of_code(tmp_path, tree, images, rules):
    machine = "x86_64" if tree in ("rtx-pro-4000", "h200") else "aarch64"
    library = gpu.library(tmp_path / "k.so", [], gpu.container(*(gpu.cubin(sm, flags) for sm, flags in images)), machine)
    assert findings(tree, library).keys() == rules


def test_an_empty_module_is_no_gpu_code(tmp_path):
    """libcufftw carries one cubin of sm_75 without a kernel: that is nothing to miss on another GPU."""
    library = gpu.library(tmp_path / "x.so", [], gpu.container(gpu.image(gpu.CUBIN, 75, payload=b"\0" * 64)))
    assert findings("thor", library) == {}


# ---- packages ----

def test_wheels(tmp_path):
    library = gpu.library(tmp_path / "_C.so", ["libcudart.so.12"], gpu.container(gpu.cubin(90))).read_bytes()
    gpu.wheel(tmp_path, "vllm", "0.11.0", "cp38-abi3-manylinux1_x86_64", requires=["torch==2.8.0", "nvidia-cuda-runtime-cu12==12.8.90"])
    gpu.wheel(tmp_path, "flash_attn", "2.8.3+cu12", "cp310-cp310-linux_aarch64", [("flash_attn/_C.so", library)])
    gpu.wheel(tmp_path, "einops", "0.8.1", "py3-none-any")
    gpu.wheel(tmp_path, "stable", "1.0", "cp38-abi3-manylinux_2_28_aarch64")
    assert findings("thor", tmp_path, about="x86_64.whl").keys() == {"ARCH-02", "PY-03", "PY-04"}
    assert "PY-01" in findings("thor", tmp_path, about="linux_aarch64.whl")  # cp310 on Python 3.12
    assert findings("thor", tmp_path, about="whl!/flash_attn/_C.so").keys() == {"SO-01", "GPU-01"}
    assert findings("thor", tmp_path, about="none-any.whl").keys() == {"PY-22"}
    assert findings("thor", tmp_path, about="manylinux_2_28_aarch64.whl") == {}


def test_installed_packages(tmp_path):
    def install(name, version, tag, requires=""):
        info = tmp_path / f"site-packages/{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n{requires}\nlong text\n")
        (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: {tag}\n")
    install("torch", "2.5.0", "cp312-cp312-manylinux_2_28_aarch64")
    install("outlines", "1.0", "py3-none-any", "Requires-Dist: torch (>=2.8.0)\nRequires-Dist: torch>=9 ; extra == 'x'\n")
    found = findings("thor", tmp_path)
    assert "outlines requires PyTorch >= 2.8.0, there is 2.5.0" == found["PY-20"]["message"]
    assert found["PY-06"]["severity"] == "warn"
    ptxas = tmp_path / "site-packages/triton/backends/nvidia/bin/ptxas"
    ptxas.parent.mkdir(parents=True)
    gpu.compile_library(ptxas, 'const char release[] = "Cuda compilation tools, release 12.8, V12.8.93 .............";\n')
    ptxas.chmod(0o755)
    install("triton", "3.4.0", "cp312-cp312-manylinux_2_28_aarch64")
    found = findings("thor", tmp_path)
    assert "PY-06" not in found and "TRITON_PTXAS_PATH" in found["PY-07"]["remedy"]


def test_damaged_wheels_do_not_stop_a_scan(tmp_path):
    whole = gpu.wheel(tmp_path, "x", "1.0", "py3-none-any").read_bytes()
    for n in range(0, len(whole), 7):
        (tmp_path / f"cut{n}-1.0-py3-none-any.whl").write_bytes(whole[:n])
    scan("thor", tmp_path)


def test_packages_have_verdicts_and_say_the_same_once(tmp_path):
    site = tmp_path / "lib/python3.12/site-packages"
    (site / "torch/lib").mkdir(parents=True)
    for i in range(3):
        gpu.library(site / f"torch/lib/lib{i}.so", [], machine="x86_64")
    gpu.library(site / "_solo.cpython-312-x86_64-linux-gnu.so", [], machine="x86_64")
    report = scan("thor", site)
    assert report["packages"] == [{"name": "_solo", "verdict": "fail", "fail": 1, "warn": 0}, {"name": "torch", "verdict": "fail", "fail": 3, "warn": 0}]
    text = run("doctor", "scan", "--root", TREES / "thor", site).stdout.decode()
    assert text.count("ARCH-01") == 2 and "the same in 2 more files of torch (-v lists them)" in text and "fail  torch" in text
    assert run("doctor", "scan", "--root", TREES / "thor", "-v", site).stdout.count(b"ARCH-01") == 4
    table = run("doctor", "scan", "--root", TREES / "thor", "--markdown", site).stdout.decode().splitlines()
    assert table[0].startswith("| component | status | finding | action | build time | risk") and len({row.count(" | ") for row in table[2:]}) == 1
    assert any(row.startswith("| torch | fail | 3 files, such as: ") for row in table)


def test_a_package_is_for_the_python_of_its_folder(tmp_path):
    """Virtual environments bring a Python of their own: the machine's does not count."""
    info = tmp_path / "env/lib/python3.10/site-packages/x-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: x\nVersion: 1.0\nRequires-Python: >=3.12\n\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp310-cp310-manylinux_2_28_aarch64\n")
    found = findings("thor", tmp_path)  # of Thor's own 3.12 the requirement would hold, and the tag not
    assert "PY-01" in found
    (info / "METADATA").write_text("Name: x\nVersion: 1.0\nRequires-Python: >=3.9\n\n")
    assert "PY-01" not in findings("thor", tmp_path)


def test_for_a_profile(tmp_path):
    """No tree of the device is needed."""
    gpu.library(tmp_path / "_C.so", ["libcudart.so.12"], gpu.container(gpu.cubin(87)))
    def judged(profile):
        report = json.loads(run("doctor", "scan", "--profile", profile, "--json", tmp_path).stdout)
        return {f["id"] for f in report["findings"] if f["about"]}
    assert judged("jetson-orin-nano-super") == set()
    assert judged("jetson-agx-thor") == {"SO-01", "GPU-01"}
    assert "ARCH-01" in judged("h200")


# ---- plans, images ----

def test_tensorrt_plans(tmp_path):
    gpu.plan(tmp_path / "good.plan", (10, 13, 3), [110])
    gpu.plan(tmp_path / "old.plan", (10, 3, 0), [87])
    gpu.plan(tmp_path / "silent.engine", (10, 13, 3))
    assert findings("thor", tmp_path, about="good.plan") == {}
    assert findings("thor", tmp_path, about="old.plan").keys() == {"PLAN-01", "PLAN-02"}
    assert findings("thor", tmp_path, about="silent.engine").keys() == {"PLAN-03"}


@pytest.mark.parametrize("tree,image,rules", [
    ("thor", "nvcr.io/nvidia/l4t-pytorch:r36.2.0-pth2.1-py3", {"JP-04"}),
    ("thor", "nvcr.io/nvidia/tritonserver:24.01-py3-igpu", {"JP-05", "JP-12"}),
    ("thor", "nvcr.io/nvidia/pytorch:25.04-py3", {"JP-13"}),
    ("thor", "nvcr.io/nvidia/pytorch:25.08-py3", set()),
    ("thor", "nvcr.io/nvidia/cuda:13.2.0-base-ubuntu24.04", {"CTR-07"}),
    ("orin-nano-super", "dustynv/vllm:0.7.4-r36.2.0-cu122-22.04", {"JP-06"}),
    ("orin-nano-super", "nvidia/cuda:13.0.1-devel-ubuntu22.04", {"JP-08", "CTR-07"}),
    ("h200", "dustynv/mlc:r36.4.0", {"ARCH-04"}),
    ("rtx-pro-4000", "nvcr.io/nvidia/tensorrt:24.10-py3", {"JP-12"}),
    ("thor", "ubuntu:24.04", set()),
])
def test_images(tmp_path, tree, image, rules):
    (tmp_path / "compose.yaml").write_text(f"services:\n  engine:\n    image: {image}\n")
    assert findings(tree, tmp_path).keys() == rules


def test_root_file_system(tmp_path):
    """Libraries of an image are found in the image; its Python and libc count; its environment is in the bundle's config.json."""
    root = tmp_path / "bundle/rootfs"
    for folder in ("etc", "usr/lib/aarch64-linux-gnu", "usr/local/cuda", "opt"):
        (root / folder).mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=ubuntu\n")
    (root / "usr/lib/ld-linux-aarch64.so.1").write_bytes(b"")
    (root / "usr/local/cuda/version.json").write_text('{"cuda": {"name": "CUDA SDK", "version": "12.8.1"}}')
    (tmp_path / "bundle/config.json").write_text('{"process": {"env": ["PATH=/bin", "NVIDIA_REQUIRE_CUDA=cuda>=12.8 brand=tesla"]}}')
    gpu.library(root / "usr/lib/aarch64-linux-gnu/libcudart.so.12", [])
    gpu.library(root / "opt/app.so", ["libcudart.so.12", "libcuda.so.1", "libcudnn.so.9"], gpu.container(gpu.cubin(87)))
    found = findings("orin-nano-super", root, about="app.so")
    assert found.keys() == {"SO-14"} and found["SO-14"]["message"] == "missing libraries: libcudnn.so.9"
    assert findings("orin-nano-super", root, about="rootfs").keys() == {"JP-07", "CTR-07"}


def test_results_do_not_depend_on_threads(tmp_path):
    for i in range(20):
        gpu.library(tmp_path / f"lib{i}.so", ["libcudart.so.12"], gpu.container(gpu.cubin(80 + i)))
    assert scan("thor", tmp_path, "-t", 1) == scan("thor", tmp_path, "-t", 4)


# ---- against other tools ----

def inventory(tree, *paths):
    lines = run("doctor", "scan", "--root", TREES / tree, "--list", *paths).stdout.splitlines()
    return {Path(entry["path"]).name: entry for entry in map(json.loads, lines)}


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is absent")
def test_needed_and_versions_agree_with_readelf():
    libraries = [p for p in sorted(Path("/usr/lib").glob("*-linux-gnu/*.so.*")) if p.is_file() and not p.is_symlink()][:150]
    mine = inventory("h200", *libraries[:60]) | inventory("h200", *libraries[60:120])
    assert len(mine) > 20
    for library in libraries[:120]:
        told = subprocess.run(["readelf", "-dVW", library], capture_output=True, text=True, check=True).stdout
        needs = told.split("Version needs section")[-1] if "Version needs section" in told else ""
        glibc = {tuple(map(int, v.split("."))) for v in re.findall(r"Name: GLIBC_(2[\d.]+)  Flags: none", needs)}
        entry = mine[library.name]
        assert entry["needed"] == re.findall(r"\(NEEDED\).*\[(.*)\]", told), library
        assert entry["glibc"] == ("GLIBC_" + ".".join(map(str, max(glibc))) if glibc else ""), library


TOOLKIT = next((p for p in map(Path, ("/usr/local/cuda/lib64", "/usr/local/cuda-13.0/lib")) if p.is_dir()), Path("/usr/local/cuda/lib64"))


def toolkit_library(name):
    library = TOOLKIT / name
    if not library.exists():
        pytest.skip(f"{library} is absent")
    return library


def count(library):
    """Containers, and SMs of native code in them, by reading the headers one after the other."""
    data, containers, sms = library.read_bytes(), 0, set()
    at = data.find(b"\x50\xed\x55\xba")
    while at >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, at + 4)
        end = at + 16 + size
        if version == 1 and header == 16 and end <= len(data) and struct.unpack_from("<HH", data, at + 16) in [(k, 0x101) for k in (1, 2, 8)]:
            containers, at = containers + 1, at + 16
            while at < end:
                kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
                sms |= {struct.unpack_from("<I", data, at + 28)[0]} if kind == 2 else set()
                at += header + size
            at -= 4
        at = data.find(b"\x50\xed\x55\xba", at + 4)
    return containers, sms


@pytest.mark.parametrize("name", ["libcublas.so.13", "libcusparse.so.12", "libnccl.so.2", "libcurand.so.10", "libcufft.so.12"])
def test_the_cuda_toolkit_counted_independently(name):
    library = toolkit_library(name)
    entry = inventory("h200", library)[name]
    assert (entry["containers"], set(entry["sms"])) == count(library)


def test_what_the_x86_cublas_has_for_each_gpu():
    """192 or 191 of 193 containers for every GPU but Thor: no x86-64 machine has one."""
    library = toolkit_library("libcublas.so.13")
    for tree, native in {"thor": 0, "agx-orin-64": 191, "h200": 191, "rtx-pro-4000": 192, "dgx-spark": 192}.items():
        entry = inventory(tree, library)["libcublas.so.13"]
        assert (entry["containers"], entry["native"]) == (193, native), tree
    assert {"ARCH-01", "GPU-01"} <= findings("thor", library).keys()


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is absent")
def test_gpu_code_agrees_with_a_reader_of_headers_and_with_cuobjdump():
    """Where cuobjdump is absent, only with the reader, which agreed with it on the 94 libraries of CUDA 13.0."""
    libraries = [p for p in sorted(TOOLKIT.glob("*.so*")) if p.is_file() and not p.is_symlink() and p.stat().st_size < 60e6]
    if not libraries:
        pytest.skip(f"{TOOLKIT} is absent")
    result = subprocess.run([ROOT / "tools/compare_cuobjdump.py", "--edgewise", support.EDGEWISE, *libraries], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "; 0 differ" in result.stdout


def test_libcufft_hides_its_code_outside_the_section():
    library = toolkit_library("libcufft.so.12")
    entry = inventory("thor", library)["libcufft.so.12"]
    assert entry["containers"] == 23984 and {75, 80, 86, 87, 89, 90, 100, 110, 120} == set(entry["sms"])
