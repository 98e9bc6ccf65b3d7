"""bench speed: the JSON object of the command line's contract."""
import support


def test_bench_speed_prints_the_contract():
    result = support.run_json("bench", "speed", "-m", support.need("fixtures/gguf/llama-q8_0.gguf"), "-p", "40", "-n", "8",
                              "-d", "20", "-b", "2", "-r", "2", "--json")
    assert set(result) == {
        "model", "backend", "device", "threads", "weight_bytes", "kv_dtype", "prompt_tokens", "gen_tokens", "depth", "batch",
        "prefill_tok_s", "decode_tok_s", "ttft_ms", "itl_ms", "weight_gb_s", "limit_gb_s", "limit_pct", "peak_memory_bytes",
        "load_s", "joules_per_token", "prefill_tok_s_runs", "decode_tok_s_runs"}
    assert set(result["itl_ms"]) == {"p50", "p95", "p99"}
    assert result["prefill_tok_s"] > 0 and result["decode_tok_s"] > 0 and result["limit_gb_s"] > 0
    assert len(result["decode_tok_s_runs"]) == 2 and result["joules_per_token"] is None
