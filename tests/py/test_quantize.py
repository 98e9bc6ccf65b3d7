"""quantize from the outside: the models it writes compute what the originals do, and it refuses what it should."""
import signal
import subprocess
import time

import models_table
import pytest
import support

# GGUF has no words for these.
UNSAYABLE = {"llama_rope_dynamic": "dynamic rope", "ministral_swa_mix": "which layers", "falcon_rw_alibi": "alibi",
             "phimoe": "rotary", "qwen3_moe": "or experts"}


def fixture_models():
    folder = support.find("fixtures/models")
    return sorted(path.name for path in folder.iterdir() if (path / "ref.safetensors").exists()) if folder else []


def architecture(path):
    """The first value of a GGUF file that quantize wrote: general.architecture."""
    head = path.read_bytes()[:200]
    key = 24 + 8 + int.from_bytes(head[24:32], "little") + 4
    return head[key + 8:key + 8 + int.from_bytes(head[key:key + 8], "little")].decode()


@pytest.mark.parametrize("name", fixture_models())
def test_converted_models_compute_the_same(name, tmp_path):
    source, out = support.need(f"fixtures/models/{name}"), tmp_path / "model.gguf"
    result = support.run("quantize", source, out, "--to", "f32")
    if name in UNSAYABLE or name.startswith("quant_"):
        assert result.returncode == 1 and UNSAYABLE.get(name, "quantise") in result.stderr.decode()
        assert not list(tmp_path.iterdir())
        models_table.note(name, "GGUF", models_table.refusal(result.stderr) if name in UNSAYABLE else "no: quantize wants the original")
        return
    assert result.returncode == 0, result.stderr.decode()
    logits = support.run_json("eval", "logits", "-m", out, "--ref", source / "ref.safetensors", "--kernels", "reference", "--json")
    assert logits["pass"], logits
    models_table.note(name, "GGUF", architecture(out))


def test_the_bundled_model_is_what_quantize_writes(tmp_path):
    out = tmp_path / "demo.gguf"
    support.run_ok("quantize", support.need("models/demo/config.json").parent, out, "--to", "q8_0")
    assert out.read_bytes() == support.need("models/demo.gguf").read_bytes()


def test_quantising_again_changes_nothing(tmp_path):
    demo, out = support.need("models/demo.gguf"), tmp_path / "again.gguf"
    support.run_ok("quantize", demo, out, "--to", "q8_0")
    assert out.read_bytes() == demo.read_bytes()


def test_the_vocabulary_survives(tmp_path):
    checkpoint = support.need("models/demo/config.json").parent
    text = support.need("fixtures/demo/eval.txt").read_bytes()[:50000] + "naïve\u3000日本語 \U0001f600\r\n\t don't 12345".encode()
    ids = [support.run_ok("tokenize", "-m", model, stdin=text) for model in (checkpoint, support.need("models/demo.gguf"))]
    assert ids[0] == ids[1] and len(ids[0].split()) > 1000


def test_json_report(tmp_path):
    report = support.run_json("quantize", support.need("models/demo.gguf"), tmp_path / "a.gguf", "--to", "q4_k_m", "--json")
    assert report["type"] == "q4_k_m" and report["bytes_out"] < report["bytes_in"]
    tensors = {tensor["name"]: tensor for tensor in report["tensors"]}
    head = tensors["token_embd.weight"]
    assert (head["shape"], head["from"], head["to"], head["fallback"]) == ([8192, 384], "q8_0", "q8_0", True)  # q6_k, were it wider
    down = tensors["blk.4.ffn_down.weight"]
    assert (down["to"], down["fallback"]) == ("q4_k", False) and 0.05 < down["rms_error"] < 0.09
    assert tensors["output_norm.weight"]["to"] == "f32"
    assert report["fallbacks"] == sum(tensor["fallback"] for tensor in report["tensors"])


@pytest.mark.parametrize("arguments, words", [
    (["{demo}", "{out}"], "--to"),
    (["{demo}", "{out}", "--to", "q9_0"], "q8_0"),
    (["{demo}", "{demo}", "--to", "q8_0"], "--force"),
    (["{demo}", "--to", "q8_0"], "2 arguments"),
])
def test_wrong_usage(arguments, words, tmp_path):
    demo = support.need("models/demo.gguf")
    result = support.run("quantize", *[word.format(demo=demo, out=tmp_path / "out.gguf") for word in arguments])
    assert result.returncode == 2 and words in result.stderr.decode()
    assert not list(tmp_path.iterdir())


def test_interrupted(tmp_path):
    demo, out = support.need("models/demo.gguf"), tmp_path / "stopped.gguf"
    process = subprocess.Popen([support.EDGEWISE, "quantize", demo, out, "--to", "q6_k", "--threads", "1"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.001)  # until it has begun to write
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted" in stderr.decode()
    assert not list(tmp_path.iterdir())
