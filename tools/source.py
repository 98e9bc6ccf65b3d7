"""The C sources of the tree, as tidy.py and stats.py look at them."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Function:
    def __init__(self, path, line, name, lines, excused):
        self.path, self.line, self.name, self.lines, self.excused = path, line, name, lines, excused


def c_files(*folders):
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.[ch]"))


def relative(path):
    return path.relative_to(ROOT).as_posix()


def without_comments(text, strings=False):
    """Comments (and, if asked, the contents of strings) blanked out, with every line kept in its place."""
    def blank(match):
        found = match.group(0)
        if found[0] in "\"'":
            return found[0] * 2 if strings else found
        return "\n" * found.count("\n") or " "

    return re.sub(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?\*/', blank, text, flags=re.S)


def count_code_lines(text):
    return sum(1 for line in without_comments(text).splitlines() if line.strip())


def functions(path):
    """The style puts a function's braces alone in column 0, which is all that is needed to find them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found, start = [], None
    for number, line in enumerate(lines):
        if line == "{" and number and not lines[number - 1].endswith(("=", ";")):
            start = number
        elif line == "}" and start is not None:
            head = start - 1
            while head > 0 and lines[head - 1].strip() and not lines[head - 1].startswith(("}", "#", "//", "/*")) and \
                    not lines[head - 1].endswith((";", "*/")):
                head -= 1
            name = re.search(r"(\w+)\s*\(", " ".join(lines[head:start]))
            excused = any("tidy: long, because" in text for text in lines[max(0, head - 3):start])
            found.append(Function(path, head + 1, name.group(1) if name else "?", number - head + 1, excused))
            start = None
    return found
