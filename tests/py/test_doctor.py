"""doctor on captured trees of six machines: facts and findings as golden files.

EW_UPDATE_GOLDEN=1 writes the golden files anew; read the difference before committing it.
"""
import json
import os

import pytest
from support import ROOT, run, run_json

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
