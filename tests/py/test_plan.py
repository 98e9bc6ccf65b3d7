"""`plan` and `profiles`: what people have written down as targets, against the physical limits; planned against real sizes."""
import json
import shutil

import pytest

import support

THOR = ("--profile", "jetson-agx-thor")


def plan(*arguments):
    result = support.run("plan", "--json", *arguments)
    assert result.returncode in (0, 1), result.stderr.decode()
    return json.loads(result.stdout), result.returncode


@pytest.mark.parametrize("claim, arguments, bound", [
    (30, ("--params", "32.5B", "--quant", "bf16"), 4.2),   # Olmo 3 32 B
    (80, ("--params", "14B", "--quant", "bf16"), 9.75),    # Ministral 14 B
    (15, ("--params", "72B", "--quant", "q4_k"), 6.74),    # Molmo 72 B in 4.5 bits
    (100, ("--params", "70B", "--quant", "int4"), 7.8),
])
def test_impossible_speeds_are_called_so(claim, arguments, bound):
    got, status = plan(*THOR, *arguments, "--target-tps", claim)
    assert got["decode_tok_s_max"] == pytest.approx(bound, rel=0.01)
    assert status == 1 and got["fits"] and not got["targets"][0]["possible"]
    assert plan(*THOR, *arguments, "--target-tps", bound * 0.9)[1] == 0


def test_what_does_not_fit_and_what_cannot_load():
    assert not plan(*THOR, "--params", "400B", "--active", "17B", "--quant", "bf16")[0]["fits"]
    got, status = plan(*THOR, "--params", "32B", "--quant", "bf16", "--target-load", 5)
    assert status == 1 and got["load_s_min"] > 5


def test_reserve_and_context_count():
    figures = ("--params", "70B", "--quant", "q8_0", "--layers", 80, "--kv-heads", 8, "--head-dim", 128, *THOR)
    alone, _ = plan(*figures, "--ctx", 32768)
    assert alone["fits"]
    assert alone["kv_bytes_per_token"] == 80 * 8 * 2 * (128 + 2)  # fp8, one f16 scale a head
    assert not plan(*figures, "--ctx", 32768, "--reserve", "60G")[0]["fits"]
    assert not plan(*figures, "--ctx", 131072, "--sessions", 20)[0]["fits"]
    longer, _ = plan(*figures, "--ctx", 131072)
    assert longer["cache_mib"] == pytest.approx(4 * alone["cache_mib"], rel=1e-6)
    assert longer["decode_full_context_tok_s_max"] < alone["decode_full_context_tok_s_max"]


def test_a_config_alone_will_do(tmp_path):
    source = support.need("fixtures/models/qwen3")
    shutil.copy(source / "config.json", tmp_path)
    outline, whole = plan("-m", tmp_path, *THOR)[0], plan("-m", source, *THOR)[0]
    assert outline["params"] == whole["params"]
    assert outline["kv_bytes_per_token"] == whole["kv_bytes_per_token"]


def test_weights_are_those_that_the_engine_holds():
    for model in ("demo", "synthetic:0.6b:q8_0"):
        planned = plan("-m", model)[0]["weight_bytes"]
        held = support.run_json("bench", "speed", "-m", model, "-p", 8, "-n", 1, "-r", 1, "--json", timeout=600)["weight_bytes"]
        assert planned == pytest.approx(held, rel=0.05)


def test_profiles_are_listed_and_printed():
    names = [line.split()[0] for line in support.run_ok("profiles").decode().splitlines()]
    assert "jetson-agx-thor" in names and "generic" in names
    for name in names:
        assert b"serve:" in support.run_ok("profiles", name)
    assert b"jetson-agx-thor" in support.run("profiles", "nope").stderr
