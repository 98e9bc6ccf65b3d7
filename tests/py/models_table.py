"""docs/models.md: what became of each model fixture in the tests. Tests note what they saw; test_models_table.py, which runs last,
compares it with the committed table. Cells that this run did not see stay as they are."""
import json
import re

import support

PATH = support.ROOT / "docs/models.md"
COLUMNS = ("CPU", "CUDA", "GGUF")
HEAD = """# Models that the tests run

Every checkpoint of `tests/fixtures/models` against the logits or vectors of its reference implementation. The tests write this table
(`EW_WRITE_MODELS=1 python3 tools/test.py python`) and fail where it is not what they see.

- CPU: whole, in chunks of 5, token by token and batched, with the reference kernels (1e-3) and with those of the machine, from both
  forms of config.json.
- CUDA: on the emulated GPU of `tests/mock`, or on a real one (`EW_TEST_GPU=1`): batched (two with delta nets, which make rounding large,
  token by token; near-ties between experts as ARCHITECTURE.md, "Numerics", says), and in chunks with the reference kernels.
- GGUF: the architecture under which `quantize` writes the model; the file that it wrote computes the same.

| fixture | `model_type` | stored as | CPU | CUDA | GGUF |
| --- | --- | --- | --- | --- | --- |
"""
noted = {}


def note(fixture, column, text):
    """What a test that passed has seen: "yes", or why not."""
    noted[fixture, column] = text


def refusal(stderr):
    """The cause out of a sentence on standard error."""
    text = stderr.decode(errors="replace").strip().splitlines()[-1]
    return "no: " + re.sub(r"^edgewise: (/\S*: )*", "", text.split(". ")[0]).rstrip(".")


def describe(fixture):
    """model_type, and how matrices are stored."""
    config = json.loads((support.ROOT / "tests/fixtures/models" / fixture / "config.json").read_text(encoding="utf-8"))
    quant = config.get("quantization_config")
    if quant:
        stored = " ".join(str(part) for part in (quant["quant_method"], quant.get("format") or quant.get("quant_algo") or quant.get("bits")) if part)
    else:
        stored = config.get("torch_dtype") or config.get("dtype") or "float32"
    return config["model_type"], stored


def committed():
    """{(fixture, column): text} of the table as it stands."""
    cells = {}
    for line in PATH.read_text(encoding="utf-8").splitlines() if PATH.exists() else []:
        parts = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| `") and len(parts) == 3 + len(COLUMNS):
            cells |= {(parts[0].strip("`"), column): text for column, text in zip(COLUMNS, parts[3:])}
    return cells


def render(cells):
    folder = support.ROOT / "tests/fixtures/models"
    lines = []
    for fixture in sorted(path.name for path in folder.iterdir() if (path / "ref.safetensors").exists()):
        results = " | ".join(cells.get((fixture, column), "not run") for column in COLUMNS)
        lines.append(f"| `{fixture}` | {' | '.join(describe(fixture))} | {results} |\n")
    return HEAD + "".join(lines)
