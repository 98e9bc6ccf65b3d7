"""bench load against a scripted server: what it counts, what it sends, how it names what goes wrong. No timing is asserted."""
import json
import signal
import socket
import socketserver
import subprocess
import threading
import time

import pytest

import support

TEMPLATE_TOKENS = 5  # what the fake server's chat template adds


class Request:
    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers = method, path, headers
        self.json = json.loads(body) if body else None

    def text(self):
        """All words that a model would see."""
        if "prompt" in self.json:
            return self.json["prompt"]
        return " ".join(message["content"] for message in self.json["messages"])


def reply(status, payload, headers="", close=False):
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return (f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}"
            f"{'Connection: close' if close else 'Connection: keep-alive'}\r\n\r\n").encode() + body


def event(payload):
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def chunked(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def read_request(self):
        line = self.rfile.readline()
        if not line:
            return None
        method, path, version = line.decode().split()
        assert version == "HTTP/1.1"
        headers = {}
        while (line := self.rfile.readline().decode()) != "\r\n":
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        return Request(method, path, headers, self.rfile.read(int(headers.get("content-length", 0))))

    def handle(self):
        try:
            with self.server.fake.lock:
                self.server.fake.connections += 1
            while request := self.read_request():
                for part in self.server.fake.answer(request):
                    if part is None:
                        return
                    self.wfile.write(part)
        except (ConnectionError, BrokenPipeError):
            pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads, request_queue_size = True, True, 256


class Fake:
    """A server of one model. A test overrides `complete`, and finds in `requests` what was asked (not the calibration)."""
    model, usage, has_tokenize, tokens_per_word = "fake", True, True, 1

    def __init__(self):
        self.lock, self.requests, self.connections = threading.Lock(), [], 0
        self.server = Server(("127.0.0.1", 0), Connection)
        self.server.fake = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def count(self, text):
        return len(text.split()) * self.tokens_per_word

    def answer(self, request):
        if request.path == "/v1/models":
            return [reply(200, {"object": "list", "data": [{"id": self.model}]})]
        if request.path == "/tokenize":
            tokens = list(range(self.count(request.json.get("content", ""))))
            return [reply(200, {"tokens": tokens}) if self.has_tokenize else reply(404, {"error": "no such route"})]
        assert request.path in ("/v1/chat/completions", "/v1/completions")
        assert request.json["model"] == self.model
        if request.json["max_tokens"] == 1:
            return [reply(200, self.whole(request, ["x"]))]
        with self.lock:
            index = len(self.requests)
            self.requests.append(request)
        return self.complete(request, index)

    def usage_of(self, request, n):
        prompt = self.count(request.text()) + (TEMPLATE_TOKENS if "messages" in request.json else 0)
        return {"usage": {"prompt_tokens": prompt, "completion_tokens": n}} if self.usage else {}

    def whole(self, request, pieces):
        text = "".join(pieces)
        choice = {"message": {"content": text}} if "messages" in request.json else {"text": text}
        return {"choices": [{**choice, "finish_reason": "length"}], **self.usage_of(request, len(pieces))}

    def stream(self, request, pieces, n):
        """The pieces as a stream of n tokens."""
        yield STREAM_HEAD
        chat = "messages" in request.json
        if chat:
            yield chunked(event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}))
        for piece in pieces:
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            yield chunked(event({"choices": [{**choice, "finish_reason": None}]}))
        yield chunked(event({"choices": [{"delta": {}, "text": "", "finish_reason": "length"}]}))
        if self.usage:
            yield chunked(event({"choices": [], **self.usage_of(request, n)}))
        yield chunked(event(b"[DONE]")) + b"0\r\n\r\n"

    def complete(self, request, index):
        if not request.json.get("stream"):
            return [reply(200, self.whole(request, ["a ", "b ", "c "]))]
        return self.stream(request, ["a ", "b ", "c "], request.json["max_tokens"])


def load(fake, *arguments, status=0):
    result = support.run("bench", "load", "--url", fake.url, "--warmup", 0, "--json", *arguments, timeout=60)
    assert result.returncode == status, result.stderr.decode() + result.stdout.decode()
    return json.loads(result.stdout)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_counts(endpoint):
    with Fake() as fake:
        got = load(fake, "-c", 4, "-n", 20, "-p", 40, "-g", 8, "--endpoint", endpoint)
    assert len(fake.requests) == got["requests"] == got["ok"] == 20 and got["failed"] == 0
    assert got["model"] == "fake" and got["loop"] == "closed" and got["concurrency"] == 4
    assert got["prompts_exact"] and got["prompt_tokens_min"] == got["prompt_tokens_max"] == 40
    assert got["output_tokens"] == 160 and got["counted_by"] == "usage" and got["short_answers"] == 0
    assert got["ttft_ms"]["count"] == got["e2e_ms"]["count"] == got["tpot_ms"]["count"] == 20
    assert got["itl_ms"]["count"] == 20 * 7 and got["itl_ms"]["p50"] == 0  # three pieces: five of seven did not wait
    assert abs(got["itl_ms"]["mean"] * 7 - got["tpot_ms"]["mean"] * 7) < 1e-3 * (1 + got["itl_ms"]["max"])
    assert got["connections"] == 4 and fake.connections == 5 and got["in_flight_max"] <= 4
    assert len({request.text() for request in fake.requests}) == 20
    for request in fake.requests:
        assert request.json["ignore_eos"] is True and request.json["temperature"] == 0
        assert request.json["stream_options"] == {"include_usage": True}


def test_warmup_is_not_counted():
    with Fake() as fake:
        got = load(fake, "-c", 2, "-n", 6, "-g", 3, "--warmup", 5)
    assert got["ok"] == 6 and len(fake.requests) == 11 and got["itl_ms"]["count"] == 12


def test_pieces_are_counted_without_usage():
    class Silent(Fake):
        usage = has_tokenize = False

    with Silent() as fake:
        got = load(fake, "-n", 4, "-p", 30, "-g", 3)
    assert got["counted_by"] == "pieces" and got["output_tokens"] == 12 and got["itl_ms"]["count"] == 8
    assert got["prompt_tokens_min"] == -1 and not got["prompts_exact"]
    assert all(len(request.text().split()) == 30 for request in fake.requests)


def test_prompt_length_without_tokenize():
    class Double(Fake):
        has_tokenize, tokens_per_word = False, 2

    with Double() as fake:
        got = load(fake, "-n", 3, "-p", 105)
    assert got["tokens_per_word"] == 2 and not got["prompts_exact"]
    assert got["prompt_tokens_min"] == got["prompt_tokens_max"] == 105


def test_whole_answers():
    with Fake() as fake:
        got = load(fake, "-n", 4, "-g", 3, "--no-stream", "--stop-at-eos")
    assert got["output_tokens"] == 12 and got["itl_ms"] is None and got["ttft_ms"]["count"] == 4
    assert not any("ignore_eos" in request.json or "stream" in request.json for request in fake.requests)


def test_replies_that_end_with_the_connection():
    class Old(Fake):
        def complete(self, request, index):
            yield b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
            for piece in ("a", "b"):
                yield event({"choices": [{"delta": {"content": piece}}]}).replace(b"\n", b"\r\n")
            yield event({"choices": [{"delta": {}, "finish_reason": "stop"}], **self.usage_of(request, 2)})
            yield None

    with Old() as fake:
        got = load(fake, "-n", 5, "-g", 2)
    assert got["ok"] == 5 and got["connections"] == 5 and got["output_tokens"] == 10


def test_a_kept_connection_that_the_server_closed_is_replaced():
    class Closing(Fake):
        def complete(self, request, index):
            yield from self.stream(request, ["a", "b"], 2)
            yield None

    with Closing() as fake:
        got = load(fake, "-n", 5, "-g", 2)
    assert got["ok"] == 5 and got["failed"] == 0


def test_errors_by_kind():
    class Failing(Fake):
        def complete(self, request, index):
            script = [
                lambda: [reply(429, {"error": {"message": "come back later"}}, "Retry-After: 0\r\n")],
                lambda: [reply(500, b"<html>oops")],
                lambda: [reply(429, {"error": {"message": "again"}}, close=True), None],
                lambda: [STREAM_HEAD, chunked(event({"choices": [{"delta": {"content": "a"}}]})), None],
                lambda: [STREAM_HEAD, chunked(event({"choices": [{"delta": {"content": "a"}}]})), b"0\r\n\r\n"],
                lambda: [STREAM_HEAD, chunked(event(b"{nonsense")), b"0\r\n\r\n"],
                lambda: [STREAM_HEAD, chunked(event({"error": {"message": "out of blocks"}})), b"0\r\n\r\n"],
                lambda: [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"],
                lambda: (time.sleep(s) or b"" for s in [1.5]),
                lambda: [reply(400, {"error": {"message": "bad"}})],
            ]
            return script[index]() if index < len(script) else self.stream(request, ["a", "b"], 2)

    with Failing() as fake:
        got = load(fake, "-n", 14, "-g", 2, "--timeout", 0.5, status=1)
    assert got["ok"] == 4 and got["failed"] == 10 and got["requests"] == 14
    assert {kind: error["count"] for kind, error in got["errors"].items()} == \
        {"status": 4, "timeout": 1, "broken": 2, "malformed": 2, "stream_error": 1}
    assert got["statuses"] == {"429": 2, "500": 1, "400": 1}
    assert got["errors"]["status"]["first"] == "come back later"
    assert got["errors"]["stream_error"]["first"] == "out of blocks"


def test_refused_under_load():
    class Vanishing(Fake):
        def complete(self, request, index):
            if index == 3:
                self.server.socket.close()
                yield None
            yield from self.stream(request, ["a", "b"], 2)
            yield None

    with Vanishing() as fake:
        got = load(fake, "-n", 6, "-g", 2, status=1)
        fake.server.socket = socket.socket()
    assert got["ok"] == 3 and got["errors"]["refused"]["count"] == 2 and got["errors"]["broken"]["count"] == 1


def test_open_loop():
    class Slow(Fake):
        def complete(self, request, index):
            yield STREAM_HEAD
            time.sleep(0.3)
            yield from list(self.stream(request, ["a", "b"], 2))[1:]

    with Slow() as fake:
        got = load(fake, "--rate", 50, "--arrival", "constant", "-n", 20, "-g", 2)
    assert got["loop"] == "open" and got["ok"] == 20 and 2 <= got["in_flight_max"] <= 20
    with Slow() as fake:
        got = load(fake, "--rate", 40, "--duration", 1, "-g", 2)
    assert 15 <= got["ok"] <= 80 and got["arrival"] == "poisson"  # 40 are expected; 4 deviations each way


def test_shared_prefix():
    with Fake() as fake:
        load(fake, "-n", 5, "-p", 65, "--shared-prefix", 50)
    words = [request.text().split() for request in fake.requests]
    assert all(len(w) == 60 and w[:50] == words[0][:50] for w in words)
    assert len({tuple(w[50:]) for w in words}) == 5


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_conversations(endpoint):
    with Fake() as fake:
        got = load(fake, "-n", 6, "--turns", 3, "-p", 25, "--turn-tokens", 4, "--endpoint", endpoint)
    assert got["ok"] == 6 and got["ttft_first_turn_ms"]["count"] == 2 and got["ttft_later_turns_ms"]["count"] == 4
    for first, second, third in (fake.requests[:3], fake.requests[3:]):
        assert second.text().startswith(first.text()) and third.text().startswith(second.text())
        assert len(third.text().split()) - len(second.text().split()) == 4 + 3 - (endpoint == "completions")  # joined
        if endpoint == "chat":
            assert [m["role"] for m in third.json["messages"]] == ["user", "assistant", "user", "assistant", "user"]
            assert third.json["messages"][1]["content"] == "a b c "


def test_verify():
    with Fake() as fake:
        got = load(fake, "-c", 3, "-n", 9, "--verify")
    assert got["verified"] == got["verified_same"] == 9 and len(fake.requests) == 18
    bodies = [json.dumps(request.json, sort_keys=True) for request in fake.requests]
    assert sorted(bodies[:9]) == sorted(bodies[9:])

    class Moody(Fake):
        def complete(self, request, index):
            return self.stream(request, ["a ", "B " if index == 2 else "b "], 2)

    with Moody() as fake:
        result = support.run("bench", "load", "--url", fake.url, "-n", 5, "--warmup", 0, "-g", 2, "--verify")
    assert result.returncode == 1 and b"1 answers differ" in result.stderr
    assert b"4 of 5 answers are the same alone" in result.stdout and b'"a B " under load, "a b " alone' in result.stdout


def test_limits_and_targets():
    with Fake() as fake:
        got = load(fake, "-n", 10, "--slo-ttft", 60000, "--slo-itl", 60000, "--slo-e2e", 60000)
        assert got["good"] == 10 and got["good_pct"] == 100
        got = load(fake, "-n", 10, "--slo-ttft", 0.001, status=1)
        assert got["good"] == 0
        load(fake, "-n", 10, "--slo-ttft", 0.001, "--slo-share", 0)
        got = load(fake, "-n", 10, "--profile", "jetson-agx-thor")
        assert [target["met"] for target in got["targets"]] == [True, True, True]

    class Slow(Fake):
        def complete(self, request, index):
            time.sleep(0.6)
            return super().complete(request, index)

    with Slow() as fake:
        got = load(fake, "-n", 1, "--profile", "jetson-agx-thor", status=1)
        assert [target["met"] for target in got["targets"]] == [False, True, True]


def test_interrupt_prints_what_there_is():
    class Hanging(Fake):
        def complete(self, request, index):
            if index >= 4:
                fake.hanging.set()
                time.sleep(30)
            return super().complete(request, index)

    with Hanging() as fake:
        fake.hanging = threading.Event()
        process = subprocess.Popen([support.EDGEWISE, "bench", "load", "--url", fake.url, "--json", "--warmup", "0", "-n", "10"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert fake.hanging.wait(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    got = json.loads(out)
    assert process.returncode == 1 and b"interrupted" in err
    assert got["interrupted"] and got["ok"] == 4 and got["failed"] == 0 and got["stopped"] == 1


def test_key(tmp_path):
    class Locked(Fake):
        def answer(self, request):
            if request.headers.get("authorization") != "Bearer s3cret":
                return [reply(401, {"error": {"message": "no key"}})]
            return super().answer(request)

    key = tmp_path / "key"
    key.write_text("s3cret\nanother\n")
    with Locked() as fake:
        assert load(fake, "-n", 2, "--api-key-file", key)["ok"] == 2
        result = support.run("bench", "load", "--url", fake.url, "-n", 2)
        assert result.returncode == 1 and b"no key" in result.stderr and b"--api-key-file" in result.stderr
    key.write_text("two words\n")
    result = support.run("bench", "load", "--url", "127.0.0.1:1", "--api-key-file", key)
    assert result.returncode == 1 and b"has no key" in result.stderr


def test_a_server_that_does_not_know_ignore_eos():
    class Strict(Fake):
        def answer(self, request):
            if request.json and "ignore_eos" in request.json:
                return [reply(400, {"error": {"message": "unknown field ignore_eos"}})]
            return super().answer(request)

    with Strict() as fake:
        result = support.run("bench", "load", "--url", fake.url)
        assert result.returncode == 1 and b"--stop-at-eos" in result.stderr


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = support.run("bench", "load", "--url", f"http://127.0.0.1:{port}")
    assert result.returncode == 1 and b"Start the server" in result.stderr


def test_table():
    with Fake() as fake:
        text = support.run_ok("bench", "load", "--url", fake.url, "-c", 2, "-n", 4, "-p", 20, "-g", 3, "--seed", 1).decode()
    lines = text.splitlines()
    assert lines[0] == f"fake at {fake.url}, chat, 2 clients (seed 1)"
    assert lines[1].split() == "prompts 20 to 20 tokens; answers 3.0 tokens".split()
    assert lines[2].split()[:4] == ["requests", "4", "answered,", "0"]
    assert [line.split()[0] for line in lines[4:]] == ["ms", "TTFT", "ITL", "ITL", "whole"]
