"""eval perplexity: the protocol's counts, and that the size of steps does not matter."""
import support

WINDOW, STRIDE = 128, 64


def perplexity(path, *options):
    return support.run_json("eval", "perplexity", "-m", support.need("models/demo-draft"), path, "--window", WINDOW, "--json",
                            *options)


def test_protocol(tmp_path):
    text = support.need("models/demo/eval/eval.txt").read_bytes()[:3000]
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    half = perplexity(path, "--stride", STRIDE)
    n = half["tokens"]
    assert half["bytes"] == len(text) and half["scored_tokens"] == n - 1
    assert half["windows"] == 1 + -(-(n - WINDOW) // STRIDE)
    chunked = perplexity(path, "--stride", STRIDE, "--chunk", 7)
    assert abs(chunked["ppl"] / half["ppl"] - 1) < 1e-3
    apart = perplexity(path, "--stride", WINDOW)
    assert apart["scored_tokens"] == n - apart["windows"]  # the first token of each window has nothing before it
    assert apart["ppl"] > half["ppl"]  # less context


def test_short_texts_are_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"")
    result = support.run("eval", "perplexity", "-m", support.need("models/demo-draft"), path)
    assert result.returncode == 2 and b"perplexity needs two" in result.stderr


def test_eight_bit_caches_cost_less_than_a_percent(tmp_path):
    """The text goes through the cache in steps of 64 tokens, as prompts do beside decoding sequences."""
    path = tmp_path / "text.txt"
    path.write_bytes(support.need("models/demo/eval/eval.txt").read_bytes()[:16000])
    model = support.need("models/demo")
    ppl = {kv: support.run_json("eval", "perplexity", "-m", model, path, "--json", "--chunk", 64, "--kv", kv)["ppl"]
           for kv in ("f16", "fp8", "int8")}
    assert abs(ppl["fp8"] / ppl["f16"] - 1) < 0.01, ppl
    assert abs(ppl["int8"] / ppl["f16"] - 1) < 0.01, ppl
    assert ppl["fp8"] != ppl["f16"] != ppl["int8"]  # the options arrived
