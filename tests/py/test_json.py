"""The JSON reader against Python's json module: what it accepts, refuses and makes of a document, and where errors are."""
import json
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import support

DUMP = Path(support.EDGEWISE).parent / "tests/py/json_dump"
DEPTH_MAX = 512


def dump(documents):
    if not DUMP.exists():
        pytest.skip(f"{DUMP} is not built")
    stdin = b"".join(struct.pack("<I", len(d)) + d for d in documents)
    result = subprocess.run([DUMP], input=stdin, capture_output=True, timeout=120, check=True)
    return result.stdout.decode().splitlines()


def flat(value, out):
    if value is None or value is True or value is False:
        out.append({None: "null", True: "true", False: "false"}[value])
    elif isinstance(value, int):
        out.append(f"i{value}")
    elif isinstance(value, float):
        out.append("nan" if value != value else f"d{struct.unpack('<Q', struct.pack('<d', value))[0]:016x}")
    elif isinstance(value, str):
        out.append("s" + value.encode("utf-8", "surrogatepass").hex())
    elif isinstance(value, list):
        out.append("[")
        for item in value:
            flat(item, out)
        out.append("]")
    else:
        out.append("{")
        for key, item in value.items():
            out.append("k" + key.encode("utf-8", "surrogatepass").hex())
            flat(item, out)
        out.append("}")


def expected(document):
    """What json_dump should print, or None where the document is to be refused."""
    try:
        value = json.loads(document.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    out = []
    flat(value, out)
    return " ".join(out)


def normal(line):
    """Python has one integer 0 and no leading sign on it."""
    return re.sub(r"\bi-0\b", "i0", line.rstrip())


def compare(documents):
    for document, line in zip(documents, dump(documents), strict=True):
        want = expected(document)
        if line.startswith("error: "):
            assert want is None, f"{document!r} is refused: {line}"
            assert re.match(r"error: line \d+ column \d+: ", line)
        else:
            assert normal(line) == want, f"{document!r}"


@pytest.fixture(autouse=True)
def long_integers():
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(limit)


ALPHABET = ["a", "é", "世", "😀", "\u0120", '"', "\\", "/", "\n", "\t", "\x7f", "\x00", "\ud800", "\udfff", " ", "plain text of some length"]
NUMBERS = [0, -1, 7, 2**31, 2**63 - 1, -2**63, 2**63, 10**25, -10**400, 0.0, -0.0, 1.5, 1e22, 1e23, 1e308, 5e-324, -2.5e-3, 123456789012345.6,
           0.1, 1 / 3, float("inf"), float("-inf"), float("nan")]
WHITE = ["", "", " ", "\n", "\t \r\n"]


def random_value(rng, depth):
    kind = rng.randrange(8 if depth else 5)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice([rng.randint(-10**rng.randrange(1, 30), 10**20), rng.uniform(-1, 1) * 10.0**rng.randint(-320, 308), round(rng.uniform(-99, 99), 4)])
    if kind < 5:
        return "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(6)))
    if kind == 5:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {"".join(rng.choice("ab\n") for _ in range(rng.randrange(3))): random_value(rng, depth - 1) for _ in range(rng.randrange(14))}


def write(rng, value):
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate can only stand there escaped
        return json.dumps(value).encode()


def repeat_members(rng, document):
    """Doubles some members, so that keys are repeated."""
    return re.sub(rb'("[ab]*": [^][{},"]*)([,}])', lambda m: m[1] + b", " + m[1] + m[2] if rng.random() < 0.3 else m[0], document)


def mutate(rng, document):
    text = bytearray(document)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del text[at:at + rng.randrange(1, 3)]
        elif kind == 1:
            text[at:at] = rng.choice([b",", b"]", b"}", b"[", b"{", b":", b'"', b"\\", b"\\u", b"\\ud800", b"0", b"-", b".", b"e", b"E+", b"\n", b"\x00",
                                      b"\xff", b"\xc3", b"\xed\xa0\x80", b"NaN", b"-Infinity", b"true", b" ", b"\xef\xbb\xbf", b"\xc2\xa0", b"/**/", b"1"])
        elif kind == 2 and at < len(text):
            text[at] = rng.randrange(256)
        else:
            text = text[:at]
            break
    return bytes(text)


def test_random_documents():
    rng = random.Random(1)
    compare([write(rng, random_value(rng, 5)) for _ in range(3000)])


def test_repeated_keys():
    rng = random.Random(2)
    compare([repeat_members(rng, write(rng, random_value(rng, 4))) for _ in range(2000)])


def test_mutated_documents():
    rng = random.Random(3)
    compare([mutate(rng, write(rng, random_value(rng, 3))) for _ in range(12000)])


def test_numbers_as_written():
    rng = random.Random(4)

    def digits(low, high):
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(low, high)))

    documents = [f"{rng.choice(['', '-', '+'])}{digits(0, 25)}{rng.choice(['', '', '.' + digits(0, 20)])}"
                 f"{rng.choice(['', '', rng.choice('eE') + rng.choice(['', '-', '+']) + digits(0, 3)])}".encode() for _ in range(20000)]
    compare([d for d in documents if d])


def test_odd_documents():
    compare([b"", b" ", b"\xef\xbb\xbf[]", b"\xef\xbb\xbf\xef\xbb\xbf[]", b"\xef\xbb\xbf", b"[]\xef\xbb\xbf", b'"\xef\xbb\xbf"', b"[1]\x00", b"\xff\xfe[\x00]\x00",
             b"NaN", b"-NaN", b"+1", b"Infinity", b"-Infinity", b"- Infinity", b"nan", b"'a'", b"{'a':1}", b"{a:1}", b"[,]", b"{,}", b"[1,,2]", b"{}{}",
             b'"\\u00e"', b'"\\uD83D\\uDE00"', b'"\\ud83d"', b'"\\ud83d\\u0041"', b'"\\ud83d\\ud83d\\ude00"', b'"\\U0041"', b'"\\u+041"', b'"\\u 041"',
             b'"\x1f"', b'"\x7f"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xc0\x80"', b"\x0b1", b"\x0c1", b"\xc2\xa01", b"1//", b"\xe2\x80\xa8[]",
             b'{"a":1,"a":2}', b'{"":0}', b"[" * 100 + b"]" * 100, b"[" * 5, b"]", b"}", b'"', b'"\\', b'"\\"', b"tru", b"nul", b"falsee"])


def test_depth_is_bounded():
    lines = dump([b"[" * n + b"]" * n for n in (DEPTH_MAX, DEPTH_MAX + 1, 1000000)])
    assert not lines[0].startswith("error")
    assert all("nested too deep" in line for line in lines[1:])


@pytest.mark.parametrize("document", [b'[1,\n 2,\n  x]', b'{"a": 1,\n "b" 2}', '["é", é]'.encode(), b'{"a":1} x', b"[1 2]"])
def test_positions_are_those_of_python(document):
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(document)
    assert dump([document])[0].startswith(f"error: line {caught.value.lineno} column {caught.value.colno}: ")


def test_large_vocabulary_is_not_quadratic():
    vocabulary = {f"token{i}": i for i in range(200000)}
    document = json.dumps(vocabulary).encode()
    compare([document, document[:-1] + b', "token0": 5}'])
