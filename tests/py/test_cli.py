"""The command line as users meet it: transcripts in tests/cli/*.txt.

A transcript is a list of commands with what they print: "$ edgewise ..." begins one, "1| " and "2| " are lines of standard output
and error, "= N" is the exit status (0 where it is not given), "[..]" stands for any text of a line. Blank lines and lines that begin
with # are comments. With EW_WRITE_TRANSCRIPTS=1 the expectations are rewritten from what the program prints: read the difference.
"""
import os
import re
import shlex

import pytest

import support

TRANSCRIPTS = sorted((support.ROOT / "tests/cli").glob("*.txt"))


def parse(path):
    """[(line number, arguments, expected status, stdout lines, stderr lines)]"""
    cases = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("$ edgewise"):
            cases.append([number, shlex.split(line)[2:], 0, [], []])
        elif line.startswith("= "):
            cases[-1][2] = int(line[2:])
        elif line[:2] in ("1|", "2|"):
            cases[-1][2 + int(line[0])].append(line[3:])
        else:
            assert not line or line.startswith("#"), f"{path}:{number}: {line}"
    return cases


def matches(want, got):
    pattern = ".*".join(re.escape(part) for part in want.split("[..]"))
    return re.fullmatch(pattern, got) is not None


def observe(arguments):
    result = support.run(*arguments)
    return result.returncode, result.stdout.decode().splitlines(), result.stderr.decode().splitlines()


def same(want, got):
    return len(want) == len(got) and all(map(matches, want, got))


def rewrite(path):
    lines = []
    for line in path.read_text().splitlines():
        if line.startswith("$ edgewise"):
            status, out, err = observe(shlex.split(line)[2:])
            lines += [line, *(f"1| {text}".rstrip() for text in out), *(f"2| {text}" for text in err), *([f"= {status}"] if status else [])]
        elif not line or line.startswith("#"):
            lines.append(line)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path, monkeypatch):
    monkeypatch.chdir(support.ROOT)
    if os.environ.get("EW_WRITE_TRANSCRIPTS"):
        rewrite(path)
    for number, arguments, status, out, err in parse(path):
        got = observe(arguments)
        where = f"{path.name}:{number}: edgewise {shlex.join(arguments)}\n" + "\n".join(got[1] + got[2])
        assert got[0] == status, where
        assert same([line.rstrip() for line in out], [line.rstrip() for line in got[1]]), where
        assert same(err, got[2]), where
