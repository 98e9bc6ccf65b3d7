"""The template interpreter against Jinja2 itself, set up as transformers sets it up: committed snippets, and random ones.

Where Jinja2 renders, the same bytes are expected. Where it fails, failing or (rarely, see MAY_RENDER) rendering is accepted,
but never a crash.
"""
import copy
import functools
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import support

jinja2 = pytest.importorskip("jinja2")
sandbox = pytest.importorskip("jinja2.sandbox")
ext = pytest.importorskip("jinja2.ext")

SNIPPETS = Path(__file__).with_name("jinja_snippets.txt")
N_RANDOM = int(os.environ.get("EW_JINJA_RANDOM", "1500"))
SEED = int(os.environ.get("EW_SEED", "1"))  # fixed: a failure is the change's, not the day's
NOW = "2025-07-14 09:30:00"

DATA = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b> & 'you'"},
                 {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "y": [True, None, 2.5]}}}]},
                 {"role": "tool", "content": "42"}],
    "n": 7, "z": 0, "neg": -3, "f": 2.5, "big": 1e22, "small": 1.5e-7, "whole": 3.0, "t": True, "no": None, "e": "",
    "s": "Hello, World", "u": "Zürich 東京 😀", "w": "  padded\tand\nbroken  ", "q": "it's \"q\" \\ \u0001 é",
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "le": [], "ll": [[1, 2], [3, 4]], "d": {"a": 1, "b": "two", "c": [1.0, None]}, "de": {},
    "lo": [{"k": "x", "v": 2}, {"k": "Y", "v": 1}, {"k": "x", "v": 3}],
}


class Generation(ext.Extension):
    """As transformers' AssistantTracker: the body stands in a call block."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @staticmethod
    def _body(caller):
        return caller()


class Generator:
    """What lazy filters give, computed at once, as ours is: errors come when it is made, and it prints without an address."""

    def __init__(self, items):
        self.items = iter(list(items))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.items)

    def __repr__(self):
        return "<generator>"


def eager(lazy):
    @functools.wraps(lazy)  # keeps the marks by which Jinja2 passes the context
    def wrapper(*args, **kwargs):
        return Generator(lazy(*args, **kwargs))

    return wrapper


def reverse(value):
    return value[::-1] if isinstance(value, str) else jinja2.filters.do_reverse(value) if isinstance(value, Generator) else \
        Generator(reversed(value))


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form):
        return time.strftime(form, time.strptime(NOW, "%Y-%m-%d %H:%M:%S"))

    env = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    for name in ("map", "select", "reject", "selectattr", "rejectattr", "unique", "batch", "slice", "items"):
        env.filters[name] = eager(env.filters[name])
    env.filters["reverse"] = reverse
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


ENV = environment()


def reference(source):
    try:
        return ENV.from_string(source).render(**copy.deepcopy(DATA))  # Jinja2's indent changes lists that it is given
    except Exception as error:  # whatever Python raises in a template
        return error


class Runner:
    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data.json"
        self.data.write_text(json.dumps(DATA))

    def render(self, index, source):
        path = self.folder / f"{index}.jinja"
        path.write_bytes(source.encode("utf-8", "surrogatepass"))
        return support.run("template", "--template", path, "--now", NOW, self.data)

    def all(self, sources):
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.render, range(len(sources)), sources))


def difference(source, expected, result):
    """None, or what is wrong."""
    if isinstance(expected, Exception):
        return None if result.returncode == 0 or result.stderr.startswith(b"edgewise: ") else result.stderr
    if result.returncode != 0:
        # integers past 64 bits are refused, not computed
        return None if b"past 64 bits" in result.stderr else f"expected {expected!r}, got {result.stderr.decode()}"
    expected = expected.encode("utf-8", "surrogatepass")
    return None if result.stdout == expected else f"expected {expected!r}\n     got {result.stdout!r}"


def check(tmp_path, sources):
    results = Runner(tmp_path).all(sources)
    wrong = [f"{source!r}\n{what}" for source, result in zip(sources, results)
             if (what := difference(source, reference(source), result))]
    assert not wrong, f"{len(wrong)} of {len(sources)} differ (seed {SEED}):\n" + "\n".join(wrong[:int(os.environ.get("EW_SHOW", "12"))])


def test_snippets(tmp_path):
    sources = [part.strip("\n") for part in SNIPPETS.read_text(encoding="utf-8").split("\n----\n")]
    failing = [source for source in sources if isinstance(reference(source), Exception) and not source.startswith("{# fails #}")]
    assert not failing, f"snippets that Jinja2 refuses are to be marked: {failing}"
    check(tmp_path, sources)


def test_snippets_that_fail_do_fail(tmp_path):
    """What Jinja2 refuses in the marked snippets is refused here too."""
    sources = [part.strip("\n") for part in SNIPPETS.read_text(encoding="utf-8").split("\n----\n")]
    sources = [source for source in sources if source.startswith("{# fails #}")]
    results = Runner(tmp_path).all(sources)
    assert [source for source, result in zip(sources, results) if result.returncode == 0] == []


ATOMS = ["n", "z", "neg", "f", "big", "small", "whole", "t", "no", "e", "s", "u", "w", "q", "l", "ls", "le", "ll", "d", "de", "lo", "missing",
         "messages", "1", "0", "-2", "3.5", "'ab'", "\"x'y\"", "'%s-%d'", "true", "none", "[1, 'a', 2.0]", "(1, 2)", "{'k': 'v', 1: 2}", "''",
         "d.a", "d.b", "d['c']", "d.nope", "lo[0].k", "l[0]", "ls[-1]", "s[0]", "u[1:4]", "ll[1]", "messages[1].content", "range(3)", "[]"]
BINARY = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
FILTERS = ["trim", "length", "join(', ')", "join", "upper", "lower", "capitalize", "title", "list", "first", "last", "tojson", "tojson(indent=2)",
           "tojson(sort_keys=true)", "tojson(ensure_ascii=true)", "tojson(separators=(',', ':'))", "string", "int", "float", "int(5)", "abs", "round",
           "round(1)", "round(2, 'floor')", "sort", "sort(reverse=true)", "sort(attribute='k')", "unique", "reverse", "sum", "min", "max", "default('D')",
           "d('D', true)", "items", "dictsort", "dictsort(by='value')", "replace('l', 'LL')", "indent", "indent(2, true)", "batch(2)", "slice(2)",
           "map('upper')", "map(attribute='k')", "map(attribute='v', default=9)", "select", "reject", "select('string')", "selectattr('k')",
           "selectattr('v', 'gt', 1)", "rejectattr('v', 'equalto', 1)", "groupby('k')", "e", "safe", "wordcount", "urlencode", "center(15)", "truncate(6, true)",
           "truncate(8)", "count", "format(1)", "list", "list", "string", "tojson"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable", "true", "false", "odd",
         "even", "divisibleby 2", "eq 1", "in [1, 2, 3]", "lower", "upper", "callable", "gt(1)", "sameas none", "escaped", "ne 'x'"]
METHODS = ["strip()", "split()", "split(',')", "split('l', 1)", "rsplit(' ', 1)", "upper()", "title()", "startswith('H')", "endswith(('d', 'x'))", "find('o')",
           "replace('o', '0')", "get('a')", "get('zz', 5)", "keys()|list", "values()|list", "items()|list", "count('l')", "index(2)", "splitlines()",
           "lstrip()", "rstrip('d')", "isdigit()", "isalpha()", "zfill(9)", "center(9, '*')", "partition(',')", "join(['a', 'b'])", "swapcase()", "rfind('o', 2)",
           "format(1, 2)", "removeprefix('He')", "ljust(8)", "isupper()", "expandtabs(3)", "casefold()", "capitalize()", "istitle()"]


def random_expression(rng, depth):
    pick = rng.random()
    if depth == 0 or pick < 0.12:
        return rng.choice(ATOMS)
    inner = lambda: random_expression(rng, depth - 1)
    if pick < 0.35:
        return f"({inner()} {rng.choice(BINARY)} {inner()})"
    if pick < 0.60:
        return f"({inner()})|{rng.choice(FILTERS)}"
    if pick < 0.70:
        return f"({inner()}) is {rng.choice(['', 'not '])}{rng.choice(TESTS)}"
    if pick < 0.82:
        return f"({inner()}).{rng.choice(METHODS)}"
    if pick < 0.87:
        return f"({inner()} if {inner()} else {inner()})"
    if pick < 0.93:
        return f"({inner()})[{rng.choice(['0', '-1', '1:', ':2', '::-1', '::2', '-3:-1', '5', chr(39) + 'a' + chr(39), '2:0:-1'])}]"
    if pick < 0.96:
        return f"(not {inner()})"
    return f"[{inner()}, {inner()}]"


def random_template(rng):
    expression = random_expression(rng, rng.randint(1, 3))
    return rng.choice([
        "{{{{ {0} }}}}", "{{{{ {0} }}}}", "{{{{ ({0})|tojson }}}}", "{{% if {0} %}}yes{{% else %}}no{{% endif %}}",
        "{{% for x in {0} %}}{{{{ loop.index }}}}{{{{ x }}}}{{% if not loop.last %}},{{% endif %}}{{% else %}}none{{% endfor %}}",
        "{{% set v = {0} %}}{{{{ v }}}}|{{{{ v }}}}", "{{% macro m(a, b=2) %}}{{{{ a }}}}-{{{{ b }}}}{{% endmacro %}}{{{{ m({0}) }}}}",
    ]).format(expression)


def is_unspecified(expected):
    """What prints an address or the name of a Python function."""
    return not isinstance(expected, Exception) and (" object at 0x" in expected or "<built-in" in expected or "<bound" in expected
                                                    or "<function" in expected or "Macro" in expected)


def test_random_templates(tmp_path):
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    sources = []
    while len(sources) < N_RANDOM:
        source = random_template(rng)
        expected = reference(source)
        if not is_unspecified(expected) and (isinstance(expected, str) and len(expected) < 100000 or rng.random() < 0.1):
            sources.append(source)
    check(tmp_path, sources)


SPACE = ["{{ n }}", "{{- n }}", "{{ n -}}", "{% if t %}", "{%- if t %}", "{% if t -%}", "{%+ if t %}", "{% if t +%}", "{% endif %}", "{%- endif -%}",
         "{% endif +%}", "{# c #}", "{#- c #}", "{# c -#}", "{#+ c +#}", "{% set y = 1 %}", "{% raw %}{{ x }}{% endraw %}", "{%- raw -%} {% r {%- endraw -%}",
         "\n", "\n", "  ", "\t", "a", "b ", " c", "\r\n", "\u00a0", "\n\n", "{", "}", "%}", "#}", "{{ '}}' }}", "{{ {'a': {'b': 1}}['a'] }}"]


def test_white_space(tmp_path):
    rng = random.Random(SEED + 1)
    print(f"seed {SEED}")
    sources = []
    while len(sources) < N_RANDOM // 3:
        source = "".join(rng.choice(SPACE) for _ in range(rng.randint(2, 12)))
        opened = source.count("if t") - source.count("endif")
        source += "{% endif %}" * max(0, opened)
        if isinstance(reference(source), str):
            sources.append(source)
    check(tmp_path, sources)
