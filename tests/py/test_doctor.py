"""doctor on captured trees of six machines: facts and findings as golden files.

EW_UPDATE_GOLDEN=1 writes the golden files anew; read the difference before committing it.
"""
import json
import os
import re
import shutil
import tarfile
import time

import pytest
from support import ROOT, fake_library, run, run_json, run_ok

TREES = ROOT / "tests/fixtures/trees"
GOLDEN = ROOT / "tests/fixtures/doctor"
NAMES = ["agx-orin-64", "dgx-spark", "h200", "orin-nano-super", "rtx-pro-4000", "thor"]


def timeit(call):
    started = time.monotonic()
    call()
    return time.monotonic() - started


def doctor(name, *arguments):
    return json.loads(run("doctor", "--root", TREES / name, "--json", *arguments).stdout)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    report = run("doctor", "--root", TREES / name, "--json").stdout
    golden = GOLDEN / f"{name}.json"
    if os.environ.get("EW_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_bytes(report)
    assert json.loads(report) == json.loads(golden.read_bytes())
    assert report == golden.read_bytes()  # the order is part of it


def test_exit_status_tells_failures():
    assert run("doctor", "--root", TREES / "thor").returncode == 0
    assert run("doctor", "--root", TREES / "agx-orin-64").returncode == 1  # the device plugin's strategy


def test_unknown_is_not_no(tmp_path):
    """An empty tree knows nothing: no finding, and rules that need facts are not checked."""
    report = run_json("doctor", "--root", tmp_path, "--json")
    assert report["findings"] == []
    assert {"id": "GPU-12", "missing": "gpu_cc", "count": 1} in report["unchecked"]
    assert "drv_cuda_major" not in report["facts"]


def test_old_gpu_runs_on_the_cpu_only(tmp_path):
    (tmp_path / ".edgewise").mkdir()
    (tmp_path / ".edgewise/gpu").write_text("drv_cuda=n:1240\ngpu_count=n:1\ngpu_name=s:Tesla P40\ngpu_cc=n:61\n")
    [finding] = [f for f in run_json("doctor", "--root", tmp_path, "--json")["findings"] if f["id"] == "GPU-14"]
    assert finding["message"].startswith("CPU only, because Tesla P40 has compute capability 6.1")


def test_a_user_rule_replaces_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("""
- id: PERF-02
  subject: machine
  on: jetson
  when: "pow_name != '120W'"
  severity: warn
  message: "this fleet runs in 120W, not {pow_name}"
  remedy: "sudo nvpmodel -m 1"
  source: "fleet handbook"
""")
    assert all(f["id"] != "PERF-02" for f in doctor("thor", "--rules", tmp_path)["findings"])
    [finding] = [f for f in doctor("agx-orin-64", "--rules", tmp_path)["findings"] if f["id"] == "PERF-02"]
    assert finding["message"] == "this fleet runs in 120W, not MODE_30W"
    broken = tmp_path / "broken.yaml"
    broken.write_text("- id: X-1\n  subject: machine\n  when: \"a ==\"\n  severity: warn\n  message: m\n  remedy: r\n  source: s\n")
    result = run("doctor", "--rules", tmp_path)
    assert result.returncode != 0 and b"broken.yaml:1" in result.stderr and not result.stdout


# ---- captures ----

def capture(path, *arguments):
    """Captures, unpacks, and returns the tree."""
    archive = path / "captured.tar"
    run_ok("doctor", "--capture", archive, *arguments)
    tree = path / "captured"
    with tarfile.open(archive) as tar:
        assert all(m.isreg() or m.isdir() for m in tar)
        tar.extractall(tree, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(tree)
    return tree


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_tree_gives_the_same_report(tmp_path, name):
    tree = capture(tmp_path, "--root", TREES / name)
    assert json.loads(run("doctor", "--root", tree, "--json").stdout) == json.loads((GOLDEN / f"{name}.json").read_bytes())


# These change from moment to moment, or are not captured: paths of home directories, the environment.
VOLATILE = {"pythons", "env_cuda", "env_known", "kernel_cache_kept", "kernel_cache_error", "host_avail_mib", "page_cache_mib",
            "cma_free_mib", "swap_used_mib", "temp_c", "gpu_clock_mhz"}


def test_this_machine_captured(tmp_path):
    here = json.loads(run("doctor", "--json").stdout)
    there = json.loads(run("doctor", "--root", capture(tmp_path), "--json").stdout)
    for key, fact in here["facts"].items():
        if key not in VOLATILE and not key.startswith(("temp_", "rail_", "gpu_power", "gpu_mem_")):
            assert there["facts"][key]["value"] == fact["value"], key
    assert {f["id"] for f in here["findings"]} == {f["id"] for f in there["findings"]}


def test_a_capture_overwrites_nothing_and_holds_no_secret(tmp_path):
    tree = tmp_path / "tree"
    (tree / "etc/docker").mkdir(parents=True)
    (tree / "etc/containerd").mkdir()
    (tree / "etc/docker/daemon.json").write_text('{"runtimes": {"nvidia": {}},\n"auths": "hunter2"}\n')
    (tree / "etc/containerd/config.toml").write_text('[plugins.nvidia]\n  password = "hunter2"\n')
    (tree / "etc/hostname").write_text("hunter2\n")
    taken = capture(tmp_path, "--root", tree)
    assert b"hunter2" not in (tmp_path / "captured.tar").read_bytes()
    assert (taken / "etc/containerd/config.toml").read_text().splitlines()[1:] == ["[plugins.nvidia]"]
    before = (tmp_path / "captured.tar").read_bytes()
    assert run("doctor", "--capture", tmp_path / "captured.tar").returncode == 1
    assert (tmp_path / "captured.tar").read_bytes() == before


def test_a_memory_limit_is_captured_without_its_name(tmp_path):
    """Limits of control groups count in a captured tree as they did on the machine; of a tree they are taken as they are."""
    tree = tmp_path / "tree"
    group = tree / "sys/fs/cgroup/captured"
    group.mkdir(parents=True)
    (tree / "proc/self").mkdir(parents=True)
    (tree / "proc/meminfo").write_text("MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 7000000 kB\n")
    (tree / "proc/self/cgroup").write_text("0::/captured\n")
    (group / "memory.max").write_text(f"{1 << 30}\n")
    (group / "memory.current").write_text(f"{256 << 20}\n")
    facts = run_json("doctor", "--root", capture(tmp_path, "--root", tree), "--json")["facts"]
    assert facts["cgroup_limit_mib"]["value"] == 1024 and facts["host_avail_mib"]["value"] == 768


# ---- profiles ----

def test_a_profile_stands_for_a_machine():
    facts = run_json("doctor", "--profile", "jetson-orin-nano-super", "--json")["facts"]
    assert facts["gpu_cc"]["value"] == 87 and facts["host_arch"]["value"] == "aarch64" and facts["host_mem_mib"]["value"] == 7607
    assert "orin" in facts["platform_tags"]["value"] and "host_avail_mib" not in facts
    assert b"jetson-agx-thor" in run("doctor", "--profile", "nope").stderr
    assert run("doctor", "--profile", "h200", "--root", TREES / "h200").returncode == 2


@pytest.mark.parametrize("profile, tree", [("jetson-agx-thor", "thor"), ("jetson-agx-orin-64", "agx-orin-64"), ("jetson-orin-nano-super", "orin-nano-super"),
                                           ("rtx-pro-4000", "rtx-pro-4000"), ("dgx-spark", "dgx-spark"), ("h200", "h200")])
def test_profiles_agree_with_the_trees(profile, tree):
    """What a profile says of a device's hardware and delivered software, the tree of such a device says too; versions may be newer."""
    given = run_json("doctor", "--profile", profile, "--json")["facts"]
    found = doctor(tree)["facts"]
    assert found["profile"]["value"] == profile
    for key in ("host_arch", "gpu_cc", "integrated", "soc", "plat", "gpu_stack", "gpu_sm_count"):
        assert given.get(key, {}).get("value") == found.get(key, {}).get("value"), key


# ---- a machine that misbehaves, or is measured ----

@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is absent: no driver to imitate")
def test_a_hanging_driver_is_a_finding(tmp_path):
    names = ("cuGetErrorName cuDeviceGetCount cuDeviceGet cuDeviceGetName cuDeviceGetAttribute cuDeviceTotalMem_v2 cuDevicePrimaryCtxRetain cuCtxSetCurrent "
             "cuCtxSynchronize cuMemAlloc_v2 cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuModuleLoadData cuModuleGetFunction cuLaunchKernel").split()
    fake_library(tmp_path, "libcuda.so.1", "#include <unistd.h>\nint cuDriverGetVersion(int *v) { *v = 13000; return 0; }\n"
                 "int cuInit(unsigned f) { for (;;) pause(); }\n" + "".join(f"int {n}(void) {{ return 999; }}\n" for n in names))
    started = time.monotonic()
    result = run("doctor", "--json", env={"LD_LIBRARY_PATH": str(tmp_path)})
    report = json.loads(result.stdout)
    assert time.monotonic() - started < 60 and result.returncode == 1
    assert report["facts"]["drv_hangs"]["value"] and report["facts"]["drv_cuda"]["value"] == 1300  # said before it hung
    assert "DRV-12" in {f["id"] for f in report["findings"]}


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is absent: no driver to imitate")
def test_several_gpus_and_their_readings(tmp_path):
    fake_library(tmp_path, "libnvidia-ml.so.1", """
#include <stdio.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = (long)d * 100000; return 0; }
struct violation { unsigned long long reference, time; };
int nvmlDeviceGetViolationStatus(void *d, int policy, struct violation *v) { v->time = policy == 1 ? 2500000000ull : 0; return 0; }
""")
    fake_library(tmp_path, "libcuda.so.1", """
int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 + d : a == 76 ? 0 : 1; return 0; }
int cuDeviceTotalMem_v2(unsigned long *b, int d) { *b = (d + 1ul) << 30; return 0; }
int cuDeviceGetName(char *s, int n, int d) { s[0] = 'A' + d; s[1] = 0; return 0; }
""" + "".join(f"int {n}(void) {{ return 999; }}\n" for n in (
        "cuGetErrorName cuDevicePrimaryCtxRetain cuCtxSetCurrent cuCtxSynchronize cuMemAlloc_v2 cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuModuleLoadData "
        "cuModuleGetFunction cuLaunchKernel").split()))
    env = {"LD_LIBRARY_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1"}
    report = json.loads(run("doctor", "--json", env=env).stdout)
    facts = {key: fact["value"] for key, fact in report["facts"].items()}
    assert (facts["gpu_name"], facts["gpu1_name"], facts["gpu1_cc"], facts["gpu1_mem_mib"]) == ("A", "B", 90, 2048)
    assert (facts["gpu_power_w"], facts["gpu1_power_w"], facts["throttled_heat_s"]) == (100, 200, 2.5)
    assert {"DRV-14", "DRV-15"} <= {f["id"] for f in report["findings"]}
    assert "2.5 s held down by heat" in run("doctor", "power", env=env).stdout.decode()
    tested = json.loads(run("doctor", "--selftest", "--json", env=env, timeout=300).stdout)
    [finding] = [f for f in tested["findings"] if f["id"] == "TEST-04"]
    assert "999" in finding["message"]


def test_selftest_measures_and_says_what_it_could_not(tmp_path):
    result = run("doctor", "--selftest", "--disk", "/nowhere", timeout=300)
    text = result.stdout.decode()
    assert re.search(r"CPU reads +[\d.]+ GB/s", text) and re.search(r"kernels +\d\d+ checked", text)
    assert "no disk speed  cannot read /nowhere" in text and "not checked  TEST-03  needs disk_gbs" in text
    assert run("doctor", "--selftest", "--root", TREES / "thor").returncode == 2


def test_a_healthy_answer_is_quick(tmp_path):
    """Without scan and driver under 300 ms; the limit here leaves room for a busy machine. And nothing is written."""
    before = sorted(tmp_path.iterdir())
    best = min(timeit(lambda: run("doctor", cwd=tmp_path)) for _ in range(5))
    assert best < 0.3 and sorted(tmp_path.iterdir()) == before


# ---- power ----

def test_power_report():
    text = run_ok("doctor", "power", "--root", TREES / "thor").decode()
    for part in ("120W (id 1) of MAXN, 120W, 90W, 70W", "VDD_GPU 2.0 W", "VIN 19.8 W", "tj_thermal 38.9 C", "trip point 114.5 C",
                 "throttling     no", "sudo nvpmodel -m 0"):
        assert part in text, part
    text = run_ok("doctor", "power", "--root", TREES / "agx-orin-64").decode()
    assert "throttling     gpu-throttle-alert, devfreq-17000000.gpu" in text
    assert "VDDQ_VDD2_1V8AO 1.2 W" in text and "NC" not in text
    text = run_ok("doctor", "power", "--root", TREES / "rtx-pro-4000").decode()
    assert "GPU draws      11.2 W" in text and "GPU limit      140 W" in text


def test_power_watch():
    lines = run_ok("doctor", "power", "--root", TREES / "agx-orin-64", "--watch", "-n", 2).decode().splitlines()
    assert len(lines) == 2 and "22.3 W" in lines[0] and "THROTTLING for 1 s: gpu-throttle-alert" in lines[1]
    [line] = run_ok("doctor", "power", "--root", TREES / "h200", "--watch", "-n", 1, "--json").splitlines()
    assert json.loads(line)["gpu_power_w"] == 118.3


# ---- documentation ----

def test_every_fact_is_documented():
    documented = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs/facts.md").read_text()))
    used = set()
    for line in run_ok("doctor", "rules").decode().splitlines():
        condition = re.sub(r"'[^']*'", "", line.split("\t")[4])
        used |= set(re.findall(r"\b[a-z][a-z0-9_]*\b(?!\()", condition)) - {"and", "or", "not", "in"}
    for golden in GOLDEN.glob("*.json"):
        used |= {k for k in json.loads(golden.read_bytes())["facts"] if not re.fullmatch(r"(rail|temp)_.+_(mw|c)", k)}
    assert used - documented == set()
