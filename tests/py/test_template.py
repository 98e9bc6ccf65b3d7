"""Chat templates: every case of the collected real templates, byte for byte."""
import json

import pytest
import support

CASES_AT = support.find("fixtures/templates")
FILES = sorted(CASES_AT.glob("*.json")) if CASES_AT else []


def render(tmp_path, data, inputs):
    source = tmp_path / "in.json"
    source.write_text(json.dumps(inputs, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    arguments = ["template", "--template", CASES_AT / "src" / data["template"], "--now", data["strftime_now"]]
    for option, key in (("--bos", "bos_token"), ("--eos", "eos_token")):
        if data.get(key) is not None:
            arguments += [option, data[key]]
    return support.run(*arguments, source)


def check(tmp_path, data, case):
    result = render(tmp_path, data, case["inputs"])
    if "expected" in case:
        assert result.returncode == 0, (case["name"], result.stderr.decode())
        assert result.stdout == case["expected"].encode(), case["name"]
    elif case["error_kind"] == "raise_exception":
        message = case["expected_error"].split(": ", 1)[1]
        assert result.returncode == 1 and message in result.stderr.decode(), case["name"]
        assert result.stdout == b""
    else:  # the reference fails inside: failing with a sentence will do, and so will rendering
        assert result.returncode == 0 or (result.returncode == 1 and result.stderr), case["name"]


@pytest.mark.skipif(not FILES, reason="fixtures/templates is absent")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_real_templates(tmp_path, file):
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["cases"]
    for case in data["cases"]:
        check(tmp_path, data, case)


def test_template_of_a_model(tmp_path):
    inputs = tmp_path / "in.json"
    inputs.write_text('{"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": true}')
    out = support.run_ok("template", "-m", support.need("models/demo.gguf"), inputs)
    assert out == b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("vocabulary, expected", [
    ("llama-bpe", None), ("qwen2", b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), ("gpt-2", None)])
def test_models_without_a_template(tmp_path, vocabulary, expected):
    path = support.need(f"fixtures/tokenizers/ggml-vocab-{vocabulary}.gguf")
    inputs = tmp_path / "in.json"
    inputs.write_text('{"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": true}')
    result = support.run("template", "-m", path, inputs)
    if expected is not None:
        assert result.stdout == expected
    elif result.returncode:
        assert b"no chat template" in result.stderr and b"--raw" in result.stderr


HOSTILE = {
    "endless output": "{% for i in range(100000) %}{% for j in range(100000) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "endless work": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubling string": "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling list": "{% set ns = namespace(s=[1]) %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "long repetition": "{{ 'x' * 100000000000 }}",
    "list in itself": "{% set l = [] %}{% set x = l.append(l) %}{{ l }}{{ l | tojson }}{{ l == [l] }}",
    "deep parentheses": "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}",
    "deep lists": "{{ " + "[" * 100000,
    "deep blocks": "{% if 1 %}" * 100000,
    "long sum": "{{ 1" + " + 1" * 100000 + " }}",
    "long chain": "{{ x" + ".y" * 100000 + " }}",
    "long filter chain": "{{ 'x'" + " | upper" * 100000 + " }}",
    "many nots": "{{ " + "not " * 100000 + "1 }}",
    "wide format": "{{ '%1000000000d' % 1 }}",
    "wide indent": "{{ 'a' | indent(1000000000000) }}",
    "wide center": "{{ 'a' | center(1000000000000) }}",
    "large power": "{{ 10 ** 1000000 }}",
    "slow replace": "{{ ('a' * 10000000).replace('a', 'b' * 10000000) }}",
    "slow search": "{{ ('a' * 10000000).rfind('a' * 5000000 + 'b') }}",
    "slow strip": "{{ ('a' * 10000000).strip('b' * 1000000 + 'a') }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon_with_one_sentence(tmp_path, name):
    template, inputs = tmp_path / "t.jinja", tmp_path / "in.json"
    template.write_text(HOSTILE[name])
    inputs.write_text("{}")
    result = support.run("template", "--template", template, inputs, timeout=30)
    assert result.returncode == 1
    assert result.stderr.startswith(b"edgewise: ") and result.stderr.count(b"\n") == 1


def test_long_conversations_render_in_linear_time(tmp_path):
    """A template that appends to a string in a loop must not take quadratic time."""
    template, inputs = tmp_path / "t.jinja", tmp_path / "in.json"
    template.write_text("{% set ns = namespace(s='') %}{% for m in messages %}"
                        "{% set ns.s = ns.s + '<' + m.role + '>' + m.content + '\n' %}{% endfor %}{{ ns.s }}")
    inputs.write_text(json.dumps({"messages": [{"role": "user", "content": "word " * 40}] * 50000}))
    assert len(support.run_ok("template", "--template", template, inputs, timeout=10)) == 50000 * 207
