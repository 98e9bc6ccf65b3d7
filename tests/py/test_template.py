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
