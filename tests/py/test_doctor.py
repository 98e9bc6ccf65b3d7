"""doctor on captured trees of six machines: facts and findings as golden files.

EW_UPDATE_GOLDEN=1 writes the golden files anew; read the difference before committing it.
"""
import json
import os
import re
import tarfile

import pytest
from support import ROOT, run, run_json, run_ok

TREES = ROOT / "tests/fixtures/trees"
GOLDEN = ROOT / "tests/fixtures/doctor"
NAMES = ["agx-orin-64", "dgx-spark", "h200", "orin-nano-super", "rtx-pro-4000", "thor"]


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


# These change from moment to moment, or come from control groups, which are not captured.
VOLATILE = {"host_avail_mib", "page_cache_mib", "cgroup_limit_mib", "cma_free_mib", "swap_used_mib", "temp_c", "gpu_clock_mhz"}


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
