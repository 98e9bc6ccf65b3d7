"""`plan` and `profiles`: what people have written down as targets, against the physical limits; planned against real sizes."""
import json
import os
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
        held = support.run_json("bench", "speed", "-m", model, "-p", 8, "-n", 1, "-r", 1, "--no-warmup", "--json", timeout=600)["weight_bytes"]
        assert planned == pytest.approx(held, rel=0.05)


def test_profiles_are_listed_and_printed():
    names = [line.split()[0] for line in support.run_ok("profiles").decode().splitlines()]
    assert "jetson-agx-thor" in names and "generic" in names
    for name in names:
        assert b"serve:" in support.run_ok("profiles", name)
    assert b"jetson-agx-thor" in support.run("profiles", "nope").stderr


# ---- against measured reality ----

def measured(model, context):
    """Peak memory and decode speed with every block and the whole workspace in use, and what plan says of the same."""
    got = support.run_json("bench", "speed", "-m", model, "-p", context, "-d", context, "-n", 4, "-r", 1, "--no-warmup", "--chunk", 2048, "--json",
                           timeout=900)
    planned, _ = plan("-m", model, "--ctx", context + 10, "--kv", "f16", "--bandwidth", got["limit_gb_s"])
    return got, planned


# make test has one of them; EW_LONG=1 takes the others too (10 GiB, some minutes).
LARGE = ["0.6b:q8_0", "0.6b:f16", "1.1b:q4_0", "1.1b:q8_0", "4b:q4_k_m"]


@pytest.mark.parametrize("shape", LARGE)
def test_planned_and_real_peak_memory_differ_by_under_5_percent(shape):
    if shape != LARGE[0] and not os.environ.get("EW_LONG"):
        pytest.skip("takes minutes: EW_LONG=1 runs it")
    available = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
    if available < 8 << 20:
        pytest.skip("under 8 GiB of memory are free")
    got, planned = measured(f"synthetic:{shape}", 2048)
    assert got["weight_bytes"] > 500e6
    assert planned["total_mib"] == pytest.approx(got["peak_memory_bytes"] / (1 << 20), rel=0.05)
    # The bandwidth comes from the same run, but not from the same second: a neighbour may have taken its part of it.
    assert got["decode_tok_s"] <= planned["decode_tok_s_max"] * 1.05


def test_measured_bandwidth_makes_a_roofline():
    got, _ = plan("-m", "synthetic:0.6b:q8_0", "--measure")
    assert got["bandwidth_gb_s"] > 1 and got["decode_tok_s_max"] == pytest.approx(got["bandwidth_gb_s"] * 1e9 / got["read_bytes_per_token"], rel=1e-6)


# ---- the rest of what teams write down ----

def test_an_embedding_cannot_be_wider_than_the_model():
    got, status = plan("-m", "synthetic:4b:q8_0", *THOR, "--target-width", 4096)
    assert status == 1 and got["targets"] == [{"what": "embedding width", "asked": 4096, "bound": 2560, "possible": False}]
    assert plan("--params", "4B", "--width", 2560, *THOR, "--target-width", 2560)[1] == 0


def test_loading_64_gb_in_5_seconds():
    result = support.run("plan", "--params", "32B", "--quant", "bf16", *THOR, "--target-load", 5)
    assert result.returncode == 1 and b"would need 12.8 GB/s" in result.stdout


def test_usual_contexts_are_told():
    got, _ = plan("--params", "8B", "--layers", 32, "--kv-heads", 8, "--head-dim", 128, *THOR)
    assert [c["context"] for c in got["contexts"]] == [4096, 32768, 131072]
    short, middle, long = got["contexts"]
    assert long["session_mib"] == pytest.approx(32 * short["session_mib"]) and middle["sessions_max"] > long["sessions_max"] > 0
    assert short["decode_tok_s_max"] > long["decode_tok_s_max"]


def test_table_of_sizes():
    """The classes follow from the figures beside them."""
    def table(profile, *arguments):
        result = support.run_json("plan", "--table", "--profile", profile, "--json", *arguments)
        return {(row["model"], row["type"]): row for row in result["models"]}
    thor, nano = table("jetson-agx-thor"), table("jetson-orin-nano-super")
    assert {row["class"] for row in thor.values()} == {"excellent", "good", "tight", "impossible"}
    assert thor["70B", "q4_k_m"]["class"] == "tight" and thor["70B", "q4_k_m"]["decode_tok_s"] < 7.8
    assert thor["405B", "q4_k_m"]["class"] == nano["8B", "bf16"]["class"] == "impossible"
    assert nano["1B", "q4_k_m"]["class"] == "excellent"
    assert table("jetson-orin-nano-super", "--reserve", "3G")["1B", "bf16"]["class"] == "impossible"


def test_a_plan_becomes_a_profile_that_serves(tmp_path):
    written = tmp_path / "mine.yaml"
    planned, _ = plan("-m", "demo", "--sessions", 3, "--ctx", 1024, "--kv", "int8", "--target-tps", 5, "--write-profile", written)
    for line in ("kv_cache_dtype: int8", "max_concurrent_sessions: 3", "max_batch_size: 3", "context: 1024", "decode_tok_s: 5"):
        assert line in written.read_text(), line
    again, _ = plan("-m", "demo", "--profile", written, "--sessions", 3)
    assert (again["context"], again["kv_bytes_per_token"]) == (planned["context"], planned["kv_bytes_per_token"])
    before = written.read_bytes()
    assert support.run("plan", "-m", "demo", "--write-profile", written).returncode == 1 and written.read_bytes() == before
    refused = tmp_path / "no.yaml"
    assert support.run("plan", "--params", "400B", *THOR, "--write-profile", refused).returncode == 1 and not refused.exists()
    written.write_text("serve:\n  context: many\n")
    assert b"mine.yaml" in support.run("plan", "-m", "demo", "--profile", written).stderr


def test_caches_keep_their_share_as_the_engine_does():
    model = ("--params", "8B", "--layers", "32", "--kv-heads", "8", "--head-dim", "128", "--quant", "fp8",
             "--profile", "rtx-pro-4000")  # which gives caches 0.80 of what is left
    got = plan(*model)[0]
    share = 0.80 * (got["budget_mib"] - got["weight_bytes"] / 2 ** 20 - got["workspace_mib"])
    assert got["sessions_max"] == int(share / got["session_mib"])
    assert plan(*model, "--sessions", got["sessions_max"])[0]["fits"]
    more = plan(*model, "--sessions", got["sessions_max"] + 1)[0]
    assert not more["fits"] and more["total_mib"] < more["budget_mib"]
