"""bench speed: the JSON object of the command line's contract."""
import json
import os
import subprocess

import pytest
import support


def test_bench_speed_prints_the_contract():
    result = support.run_json("bench", "speed", "-m", support.need("fixtures/gguf/llama-q8_0.gguf"), "-p", "40", "-n", "8",
                              "-d", "20", "-b", "2", "-r", "2", "--json")
    assert set(result) == {
        "model", "backend", "device", "threads", "weight_bytes", "kv_dtype", "prompt_tokens", "gen_tokens", "depth", "batch",
        "prefill_tok_s", "decode_tok_s", "ttft_ms", "itl_ms", "weight_gb_s", "limit_gb_s", "limit_pct", "peak_memory_bytes",
        "load_s", "joules_per_token", "power_held_share", "warmup_tokens", "prefill_tok_s_runs", "decode_tok_s_runs"}
    assert set(result["itl_ms"]) == {"p50", "p95", "p99"}
    assert result["prefill_tok_s"] > 0 and result["decode_tok_s"] > 0 and result["limit_gb_s"] > 0
    assert len(result["decode_tok_s_runs"]) == 2 and result["joules_per_token"] is None and result["power_held_share"] is None
    assert result["warmup_tokens"] == 8


def test_the_warm_up_can_be_left_out_and_is_told():
    command = ["bench", "speed", "-m", support.need("fixtures/gguf/llama-q8_0.gguf"), "-p", "8", "-n", "2", "-r", "1", "--backend", "cpu"]
    assert b"1 runs after a warm-up\n" in support.run_ok(*command)
    assert b"1 runs without a warm-up\n" in support.run_ok(*command, "--no-warmup")
    assert support.run_json(*command, "--no-warmup", "--json")["warmup_tokens"] == 0


def run_together(n):
    """The speeds of n programs at once, all on the same CPUs."""
    command = [support.EDGEWISE, "bench", "speed", "-m", "demo", "--backend", "cpu", "-p", "256", "-n", "256", "-r", "3", "--json"]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(n)]
    outputs = [program.communicate(timeout=300)[0] for program in programs]
    assert all(program.returncode == 0 for program in programs)
    return [json.loads(output) for output in outputs]


@pytest.mark.skipif(not os.environ.get("EW_LONG"), reason="compares speeds, for which the machine must be idle: EW_LONG=1 runs it")
def test_two_programs_share_a_machine():
    """Each keeps about half of the speed that one has alone: threads that wait for each other give way. What else the machine
    does meanwhile disturbs the comparison, so that one of three attempts must show it."""
    support.need("models/demo.gguf")
    kept = []
    for _ in range(3):
        alone, together = run_together(1)[0], run_together(2)
        kept.append(min(run[key] / alone[key] for run in together for key in ("prefill_tok_s", "decode_tok_s")))
        if kept[-1] > 0.35:
            break
    assert max(kept) > 0.35, kept
