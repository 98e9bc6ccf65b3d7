"""The bundled model against the figures of its training: accuracy on the evaluation sets, perplexity of the held-out text."""
import json
import os
import subprocess
from pathlib import Path

import pytest

import support

ANSWERS = Path(support.EDGEWISE).parent / "tests/py/answers"
PROMPTS = 100  # of each set, as the report counts them
KINDS = ["recall", "command", "json", "tool"]
POINTS = 2     # by which an accuracy may be below the report's


# make test-gpu has enough to do with what a GPU decides.
on_cpu = pytest.mark.skipif(bool(os.environ.get("EW_TEST_GPU")), reason="the CPU's part, which make test has")


@pytest.fixture(scope="module")
def report():
    return json.loads(support.need("fixtures/demo/report.json").read_text())


def conversations(kind):
    lines = support.need(f"fixtures/demo/{kind}_eval.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS]
    return [json.loads(line) for line in lines]


def levels():
    """Of the instruction sets below the one that users get, the plain ones take minutes."""
    return [cap for cap in support.levels()[:-1] if cap != "reference" or os.environ.get("EW_LONG")]


def answer(model, cases, folder, *cap):
    """The greedy answers of the whole set, from one process."""
    if not ANSWERS.exists():
        pytest.skip(f"{ANSWERS} is not built")
    prompts = folder / "prompts.jsonl"
    inputs = [{"messages": case["messages"], "add_generation_prompt": True} | ({"tools": case["tools"]} if "tools" in case else {})
              for case in cases]
    prompts.write_text("".join(json.dumps(item) + "\n" for item in inputs), encoding="utf-8")
    result = subprocess.run([ANSWERS, model, prompts, *cap], capture_output=True, timeout=3600, check=False)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    return [json.loads(line) for line in result.stdout.decode().splitlines()]


def count_correct(kind, model, folder, *cap):
    cases = conversations(kind)
    answers = answer(model, cases, folder, *cap)
    assert len(answers) == len(cases)
    return sum(case["expect"] in text for case, text in zip(cases, answers))


def check_accuracy(kind, report, folder, *cap):
    correct = count_correct(kind, support.need("models/demo.gguf"), folder, *cap)
    expected = report["accuracy"]["target"][kind]
    assert expected["of"] == PROMPTS
    assert correct >= expected["correct"] - POINTS


@on_cpu
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy(kind, report, tmp_path):
    check_accuracy(kind, report, tmp_path)


@on_cpu
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_at_every_level(kind, report, tmp_path):
    for cap in levels():
        check_accuracy(kind, report, tmp_path, cap)


def perplexity(model, *options):
    text = support.need("fixtures/demo/eval.txt")
    return support.run_json("eval", "perplexity", "-m", model, text, "--window", 1024, "--stride", 512, "--json", *options, timeout=1800)


def check_perplexity(result, report, tolerance):
    expected = report["perplexity"]["target"]["eval"]
    assert (result["tokens"], result["scored_tokens"]) == (expected["tokens"], expected["scored_tokens"])
    assert abs(result["ppl"] / expected["ppl"] - 1) < tolerance


@on_cpu
def test_perplexity_q8_0(report):
    check_perplexity(perplexity(support.need("models/demo.gguf")), report, 0.005)


@pytest.mark.skipif(not os.environ.get("EW_LONG"), reason="takes minutes: EW_LONG=1 runs it")
def test_perplexity_at_every_level(report):
    for cap in support.levels()[1:-1]:
        check_perplexity(perplexity(support.need("models/demo.gguf"), "--cpu-max", cap), report, 0.005)


@on_cpu
def test_perplexity_q4_0(report, tmp_path):
    source = support.find("models/demo") or support.need("models/demo.gguf")  # the checkpoint, or what the repository has
    support.run_ok("quantize", source, tmp_path / "q4_0.gguf", "--to", "q4_0")
    check_perplexity(perplexity(tmp_path / "q4_0.gguf"), report, 0.06)


# ---- on a real GPU ----------------------------------------------------------------------------------

on_gpu = pytest.mark.skipif(not os.environ.get("EW_TEST_GPU"), reason="needs a real GPU: EW_TEST_GPU=1 runs it")


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The bundled model in other types of weights."""
    folder, q8_0 = tmp_path_factory.mktemp("forms"), support.need("models/demo.gguf")
    for dtype in ("f16", "q4_0"):
        support.run_ok("quantize", q8_0, folder / f"{dtype}.gguf", "--to", dtype)
    return {"q8_0": q8_0, "f16": folder / "f16.gguf", "q4_0": folder / "q4_0.gguf"}


@on_gpu
@pytest.mark.parametrize("form", ["q8_0", "f16", "q4_0"])
def test_accuracy_on_the_gpu(form, forms, tmp_path, record_property):
    """Of all sets together within one point of the CPU's; of a set of 100, a near-tie or two may fall the other way."""
    of_cpu, of_gpu = ([count_correct(kind, forms[form], tmp_path, *cap) for kind in KINDS] for cap in ((), ("cuda",)))
    record_property("correct", f"{form}, {KINDS}: CPU {of_cpu}, GPU {of_gpu}")
    assert abs(sum(of_gpu) - sum(of_cpu)) <= 0.01 * PROMPTS * len(KINDS)
    assert max(abs(gpu - cpu) for gpu, cpu in zip(of_gpu, of_cpu)) <= 3


@on_gpu
@pytest.mark.parametrize("form", ["q8_0", "f16", "q4_0"])
def test_perplexity_on_the_gpu(form, forms, record_property):
    found = {kv: perplexity(forms[form], "--backend", "cuda", "--kv", kv)["ppl"] for kv in ("f16", "fp8", "int8")}
    of_cpu = perplexity(forms[form], "--backend", "cpu")["ppl"]
    record_property("perplexity", f"{form}: CPU {of_cpu}, GPU by type of caches {found}")
    assert abs(found["fp8"] / found["f16"] - 1) < 0.01 and abs(found["int8"] / found["f16"] - 1) < 0.005
    assert abs(found["f16"] / of_cpu - 1) < 0.005
