"""chat: through pipes, and on a pseudo-terminal as a person would use it."""
import os
import pty
import re
import select
import signal
import stat
import subprocess
import termios
import time

import pytest
import support

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def model():
    return support.find("models/demo.gguf") or support.need("models/demo")


def chat(lines, *arguments):
    text = "".join(line + "\n" for line in lines).encode()
    return support.run("chat", "-m", model(), "--temp", "0", *arguments, stdin=text)


class Terminal:
    """The program on a pseudo-terminal; expect() reads until the pattern is shown, escape codes taken out."""

    def __init__(self, state, *arguments):
        try:
            self.master, slave = pty.openpty()
        except OSError as error:  # a container without /dev/pts
            pytest.skip(f"no terminal can be made here: {error}")
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        environment = dict(os.environ, XDG_STATE_HOME=str(state), TERM="xterm")
        self.process = subprocess.Popen([support.EDGEWISE, "chat", "-m", str(model()), "--temp", "0", *arguments],
                                        stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
                                        preexec_fn=lambda: __import__("fcntl").ioctl(slave, termios.TIOCSCTTY, 0))
        self.shown = b""
        self.expect(r"> $")

    def read(self, wait):
        if select.select([self.master], [], [], wait)[0]:
            try:
                self.shown += os.read(self.master, 65536)
            except OSError:  # the other end is closed
                return False
        return True

    def text(self):
        return ESCAPES.sub(b"", self.shown).replace(b"\r", b"").decode(errors="replace")

    def expect(self, pattern, seconds=60):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text()):
            assert time.monotonic() < end, f"{pattern!r} is not shown: {self.text()!r}"
            if not self.read(0.2):
                break
        found = re.search(pattern, self.text())
        assert found, f"{pattern!r} is not shown: {self.text()!r}"
        return found

    def type(self, keys):
        os.write(self.master, keys if isinstance(keys, bytes) else keys.encode())

    def ask(self, keys, pattern):
        """Types, and returns what is shown from then on until the pattern."""
        self.shown = b""
        self.type(keys)
        return self.expect(pattern)

    def leave(self):
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            self.read(0.1)
        assert self.process.poll() is not None, "it does not leave"
        after = termios.tcgetattr(self.slave)
        assert after[:4] == self.before[:4], "the terminal is not as it was"
        os.close(self.master)
        os.close(self.slave)
        return self.process.returncode


@pytest.fixture(name="terminal")
def open_terminal(tmp_path):
    opened = Terminal(tmp_path)
    yield opened
    if opened.process.poll() is None:
        opened.process.kill()
        opened.process.wait()


PROMPT = r"(^|\n)> $"


def test_pipes_show_answers_only():
    result = chat(["How do I list files?"])
    assert result.returncode == 0
    assert b"ls" in result.stdout and b"\x1b" not in result.stdout and b"> " not in result.stdout


def test_second_turn_reuses_the_first():
    out = chat(["How do I list files?", "/stats", "And hidden ones?", "/stats"]).stdout.decode()
    reused = [tuple(map(int, found)) for found in re.findall(r"(\d+) tokens, (\d+) of them reused", out)]
    assert reused[0][1] == 0
    assert reused[1][1] >= reused[0][0] and reused[1][0] - reused[1][1] < reused[1][0] // 2


def test_commands():
    result = chat(["/help", "/nope", "/system Be brief.", "/reset", "/stats", "/exit", "not reached"])
    assert result.returncode == 0
    assert b"/reset" in result.stdout and b"4 messages" not in result.stdout
    assert b"there is no command /nope" in result.stderr and b"system message is set" in result.stderr


def test_lines_are_joined():
    out = chat(["How do I\\", "list files?", "/stats"]).stdout.decode()
    block = chat(['"""How do I', 'list files?"""', "/stats"]).stdout.decode()
    plain = re.search(r"prompt +(\d+)", out)
    assert plain and plain.group(0) == re.search(r"prompt +(\d+)", block).group(0)
    assert out.split("model")[0] == block.split("model")[0]


def test_full_context_drops_the_oldest_turns():
    result = chat(["How do I list files?"] * 8 + ["/stats"], "--ctx", "96")
    assert result.returncode == 0, result.stderr
    assert re.search(rb"context of 96 tokens is full: the oldest \d+ messages are dropped", result.stderr)
    assert result.stdout.count(b"ls") >= 8


def test_message_that_never_fits_is_refused_and_the_conversation_goes_on():
    result = chat(["word " * 400, "How do I list files?"], "--ctx", "96")
    assert result.returncode == 0
    assert b"edgewise: " in result.stderr and b"ls" in result.stdout


def test_terminal_conversation(terminal):
    terminal.ask("How do I list files?\r", PROMPT)
    assert "ls" in terminal.text()
    terminal.ask("And hidden ones?\r", PROMPT)
    terminal.ask("/stats\r", PROMPT)
    assert int(re.search(r"(\d+) of them reused", terminal.text()).group(1)) > 0
    terminal.type(b"\x04")
    assert terminal.leave() == 0


def test_terminal_editing(terminal):
    # inserted in the middle, over wide characters, with words and ends erased
    terminal.ask("/stax東ts é\x7f\x7f\x1b[D\x1b[D\x1b[D\x1b[3~\x7f\x1b[C\x1b[C\x01\x1b[C\x05 \x7f\r", r"context +0 of[^>]*" + PROMPT)
    terminal.ask("some words here\x17\x17\x15\x1b[200~/st\x1b[201~ats tail\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x0b\r", r"context +0 of[^>]*" + PROMPT)
    terminal.ask("\x1b[A\x0c\r", r"context +0 of[^>]*" + PROMPT)  # from the history, on a cleared screen
    terminal.ask("/nope\r", r"no command /nope")
    terminal.type("/exit\r")
    assert terminal.leave() == 0


def test_history_is_kept_in_a_private_file(tmp_path):
    first = Terminal(tmp_path)
    first.ask('/help\r', PROMPT)
    first.type("/exit\r")
    assert first.leave() == 0
    path = tmp_path / "edgewise/chat_history"
    assert path.read_text() == "/help\n/exit\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = Terminal(tmp_path)
    second.ask("\x1b[A\x1b[A\r", r"/reset")
    second.type("\x1b[A\x1b[A\x1b[A\x1b[B\r")
    assert second.leave() == 0


def test_ctrl_c_stops_the_answer_and_twice_leaves(tmp_path):
    terminal = Terminal(tmp_path, "--ignore-eos")
    terminal.ask("How do I list files?\r", r"ls")
    terminal.shown = b""
    terminal.type(b"\x03")
    terminal.expect(r"\(stopped\)")
    terminal.expect(PROMPT)
    terminal.type(b"\x03")
    assert terminal.leave() == 0


def test_ctrl_c_clears_the_line_first(terminal):
    terminal.ask("some text\x03", PROMPT)
    terminal.ask("\x03", r"Ctrl-C again")
    terminal.expect(PROMPT)
    terminal.type(b"\x03")
    assert terminal.leave() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGABRT, signal.SIGSEGV])
def test_signals_leave_the_terminal_as_it_was(terminal, number):
    terminal.process.send_signal(number)
    assert terminal.leave() != 0


def test_sigterm_ends_an_answer_too(tmp_path):
    terminal = Terminal(tmp_path, "--ignore-eos")
    terminal.ask("How do I list files?\r", r"ls")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.leave() == 1
