"""The transport of `edgewise serve`, from the outside: which requests are accepted and which refused, byte by byte too;
who leaves, who is slow, who sends ahead; keys, limits, drain."""
import contextlib
import http.client
import json
import re
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import served
import support

HOST = b"Host: x\r\n"
BODY = json.dumps({"prompt": "hello"}).encode()


@pytest.fixture(scope="module")
def server():
    running = served.Server("--ctx", "512")
    yield running
    assert running.stop() == 0, running.log


def connect(server):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_reply(stream):
    """Status, headers and body of the next reply; None where the connection ended before one."""
    line = stream.readline()
    if not line:
        return None
    assert line.startswith(b"HTTP/1.1 "), line
    headers = {}
    while (header := stream.readline()) not in (b"\r\n", b""):
        name, value = header.decode().split(":", 1)
        headers[name.lower()] = value.strip()
    status = int(line.split()[1])
    if status == 100:
        return status, headers, b""
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while (size := int(stream.readline(), 16)):
            body += stream.read(size)
            assert stream.readline() == b"\r\n"
        assert stream.readline() == b"\r\n"
        return status, headers, body
    return status, headers, stream.read(int(headers.get("content-length", 0)))


def ask(server, data, pieces=False):
    """Every reply to these bytes until the server closes, or until one that keeps the connection open has come."""
    with connect(server) as connection, connection.makefile("rb") as stream:
        for i in range(0, len(data), 1 if pieces else len(data)):
            try:
                connection.sendall(data[i:i + (1 if pieces else len(data))])
            except OSError:
                break  # it has answered and closed
        replies = []
        while (reply := read_reply(stream)) is not None:
            replies.append(reply)
            if reply[1].get("connection") != "close" and reply[0] != 100:
                connection.settimeout(0.2)
                try:
                    if not stream.peek(1):
                        break
                except OSError:
                    break
                connection.settimeout(20)
        return replies


def get(path=b"/health", version=b"1.1", headers=HOST):
    return b"GET " + path + b" HTTP/" + version + b"\r\n" + headers + b"\r\n"


def post(headers, body=b"", path=b"/tokenize"):
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body


TE, CHUNKED = b"Transfer-Encoding: ", b"Transfer-Encoding: chunked\r\n"
SIZED = b"Content-Length: %d\r\n" % len(BODY)
CHUNKS = b"%x;name=value\r\n" % len(BODY) + BODY + b"\r\n0\r\nTrailer: yes\r\n\r\n"
TABLE = {
    # name: (bytes, statuses that it may have)
    "length and encoding": (post(SIZED + CHUNKED, CHUNKS), {400}),
    "encoding and length": (post(CHUNKED + SIZED, CHUNKS), {400}),
    "two equal lengths": (post(SIZED + SIZED, BODY), {400}),
    "two lengths": (post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"), {400}),
    **{f"length {value}": (post(b"Content-Length: " + value + b"\r\n", b"hello"), {400})
       for value in (b"5, 6", b"+5", b"5abc", b"0x5", b"-5", b"", b"18446744073709551621", b"5 5")},
    "encoding not last": (post(TE + b"chunked, gzip\r\n"), {400}),
    "encoding twice": (post(CHUNKED + CHUNKED, CHUNKS), {400}),
    "chunked twice": (post(TE + b"chunked, chunked\r\n", CHUNKS), {400}),
    "encoding with a comma at the end": (post(TE + b"chunked,\r\n", CHUNKS), {400}),
    "encoding unknown": (post(TE + b"gzip\r\n"), {501}),
    "encoding unknown first": (post(TE + b"gzip, chunked\r\n"), {501}),
    "encoding like chunked": (post(TE + b"xchunked\r\n"), {501}),
    "chunks": (post(CHUNKED, CHUNKS), {200}),
    "chunk without size": (post(CHUNKED, b"\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk size not hexadecimal": (post(CHUNKED, b"5x\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk size negative": (post(CHUNKED, b"-5\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk size overflows": (post(CHUNKED, b"fffffffffffffffff\r\nhello"), {400, 413}),
    "chunk longer than its size": (post(CHUNKED, b"3\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk line with a bare end": (post(CHUNKED, b"5\nhello\r\n0\r\n\r\n"), {400}),
    "trailer that is no header": (post(CHUNKED, b"0\r\n bad: x\r\n\r\n"), {400}),
    "bare line feeds": (b"GET /health HTTP/1.1\nHost: x\n\n", {400}),
    "bare line feed": (get(headers=HOST + b"A: b\nC: d\r\n"), {400}),
    "bare carriage return": (get(headers=HOST + b"A: b\rC: d\r\n"), {400}),
    "zero byte": (get(headers=HOST + b"A: b\0c\r\n"), {400}),
    "control byte": (get(headers=HOST + b"A: b\x01c\r\n"), {400}),
    "folded header": (get(headers=HOST + b"A: b\r\n c\r\n"), {400}),
    "space before the colon": (get(headers=HOST + b"A : b\r\n"), {400}),
    "space before the first header": (get(headers=b" " + HOST), {400}),
    "header without a colon": (get(headers=HOST + b"A\r\n"), {400}),
    "header without a name": (get(headers=HOST + b": b\r\n"), {400}),
    "no host": (get(headers=b""), {400}),
    "two hosts": (get(headers=HOST + HOST), {400}),
    "no host in 1.0": (get(version=b"1.0", headers=b""), {200}),
    "version 1.2": (get(version=b"1.2"), {400, 505}),
    "version 2.0": (get(version=b"2.0"), {400, 505}),
    "version of letters": (get(version=b"x.y"), {400, 505}),
    "no version": (b"GET /health\r\n" + HOST + b"\r\n", {400}),
    "two spaces": (b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "unknown method": (b"BREW /health HTTP/1.1\r\n" + HOST + b"\r\n", {405, 501}),
    "wrong method": (b"DELETE /health HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    "connect": (b"CONNECT a.b:443 HTTP/1.1\r\n" + HOST + b"\r\n", {405, 501}),
    "upgrade": (get(headers=HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"), {200}),
    "websocket": (get(headers=HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), {200}),
    "target with a space": (get(b"/hea lth"), {400}),
    "target with high bytes": (get(b"/h\xc3\xa4"), {400}),
    "target as for a proxy": (get(b"http://a.b/health"), {200}),
    "long header": (get(headers=HOST + b"A: " + b"b" * 20000 + b"\r\n"), {431}),
    "many headers": (get(headers=HOST + b"A: b\r\n" * 200), {431}),
    "long url": (get(b"/" + b"a" * 12000), {414}),
    "large body": (post(b"Content-Length: 100000000\r\n"), {413}),
    "large chunk": (post(CHUNKED, b"6000000\r\n"), {413}),
    "no length": (post(b""), {400}),
    "unknown expectation": (post(SIZED + b"Expect: 200-maybe\r\n", BODY), {417}),
    "empty line before": (b"\r\n" + get(), {200}),
    "handshake of another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
}


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "bytes"])
@pytest.mark.parametrize("name", TABLE)
def test_request(server, name, pieces):
    data, statuses = TABLE[name]
    status, headers, body = ask(server, data, pieces)[0]
    assert status in statuses, body
    if status != 200:
        assert json.loads(body)["error"]["message"]
    if status in (400, 413, 414, 431, 501, 505) and name != "no length":
        assert headers["connection"] == "close"


def test_garbage_after_the_body_comes_too_late_for_the_first(server):
    replies = ask(server, post(SIZED, BODY) + b"garbage\r\n\r\n")
    assert [reply[0] for reply in replies] == [200, 400]
    assert replies[1][1]["connection"] == "close"


def test_requests_sent_ahead_are_answered_in_order(server):
    paths = [b"/health", b"/nowhere", b"/v1/models", b"/health"]
    replies = ask(server, b"".join(get(path) for path in paths))
    assert [reply[0] for reply in replies] == [200, 404, 200, 200]


def test_continue_comes_at_once(server):
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(SIZED + b"Expect: 100-continue\r\n"))
        assert read_reply(stream)[0] == 100
        connection.sendall(BODY)
        assert read_reply(stream)[0] == 200


def test_connections_are_kept(server):
    with connect(server) as connection, connection.makefile("rb") as stream:
        for _ in range(3):
            connection.sendall(get())
            status, headers, _ = read_reply(stream)
            assert status == 200 and "connection" not in headers
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall(get(version=b"1.0"))
        assert read_reply(stream)[1]["connection"] == "close" and stream.read() == b""


def test_head_has_no_body(server):
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"HEAD /health HTTP/1.1\r\n" + HOST + b"\r\n" + get())
        assert stream.readline().startswith(b"HTTP/1.1 200")
        while stream.readline() != b"\r\n":
            pass
        assert read_reply(stream)[0] == 200


LONG = {"model": "demo", "prompt": "once upon", "max_tokens": 400, "ignore_eos": True, "stream": True}


def long_request(**options):
    body = json.dumps(dict(LONG, **options)).encode()
    return post(b"Content-Length: %d\r\n" % len(body), body, b"/v1/completions")


@contextlib.contextmanager
def serving(*options, **kwargs):
    running = served.Server(*options, **kwargs)
    try:
        yield running
    finally:
        status = running.stop()
    assert status == 0, running.log


def resident_bytes(server):
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "access"
    with serving("--access-log", path, "--log-format", "json") as running:
        running.access_log = path
        yield running


@pytest.mark.parametrize("ahead", [b"", get(), get() + b"GET /health HT"], ids=["alone", "request behind", "more behind"])
@pytest.mark.parametrize("stream", [False, True], ids=["silent", "streaming"])
def test_a_client_that_leaves_is_noticed(logged, ahead, stream):
    """Within 100 ms: the best of five, since the machine may be busy with something else."""
    cancelled = sum(value for key, value in logged.metrics().items() if "cancel" in key)
    waits = []
    while not waits or min(waits) > 0.1 and len(waits) < 5:
        known = logged.access_log.stat().st_size
        with connect(logged) as connection:
            # Without a stream nothing is written before the answer is whole, which takes seconds.
            connection.sendall(long_request(stream=stream, max_tokens=2000) + ahead)
            if stream:
                assert connection.recv(100)
            else:
                time.sleep(0.1)
        left = time.monotonic()
        while b'"status": 499' not in logged.access_log.read_bytes()[known:]:
            assert time.monotonic() < left + 10
            time.sleep(0.002)
        waits.append(time.monotonic() - left)
    assert min(waits) < 0.1
    logged.wait_for(lambda metrics: sum(value for key, value in metrics.items() if "cancel" in key) > cancelled, 5)


def test_the_log_holds_long_paths_and_no_control_bytes(logged):
    known = logged.access_log.stat().st_size
    ask(logged, get(b"/" + b"q" * 6000))
    ask(logged, b"\x1b]0;title\x07 /health HTTP/1.1\r\n" + HOST + b"\r\n")
    lines = [json.loads(line) for line in logged.access_log.read_bytes()[known:].splitlines()]
    assert [(len(line["path"]), line["status"]) for line in lines] == [(6001, 404), (1, 400)]
    assert lines[1]["method"] == "-"


def test_one_that_does_not_read_holds_up_nobody(server):
    with connect(server) as slow:
        slow.sendall(long_request(max_tokens=480) * 3)
        started = time.monotonic()
        assert server.post("/v1/completions", {"model": "demo", "prompt": "hello", "max_tokens": 4})["choices"]
        assert time.monotonic() - started < 10
    assert server.get("/health")["status"] == "ok"


def test_replies_that_are_not_read_are_bounded(server):
    """Requests sent ahead without end, whose replies are many times as long as they are."""
    server.metrics()
    before = resident_bytes(server)
    with connect(server) as slow:
        for _ in range(8):
            slow.sendall(get(b"/metrics") * 30000)  # a MiB, for 200 MiB of replies
        assert server.get("/health")["status"] == "ok"
        assert resident_bytes(server) - before < 16 << 20
    assert server.get("/health")["status"] == "ok"


def test_requests_sent_ahead_wait_for_the_reader(server):
    """More replies than the queue holds: those that did not fit come when the client reads, in order."""
    n = 400
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall((get(b"/metrics") + get(b"/nowhere")) * n)
        time.sleep(0.5)
        for _ in range(n):
            assert read_reply(stream)[0] == 200
            assert read_reply(stream)[0] == 404


def test_idle_connections_take_little(server):
    n = 2000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = resident_bytes(server)
    crowd = [connect(server) for _ in range(n)]
    for connection in crowd:
        connection.sendall(get())
    for connection in crowd:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert server.get("/health")["status"] == "ok"
    assert (resident_bytes(server) - before) / n < 4096
    for connection in crowd:
        connection.close()


def test_patience_ends():
    with serving("--head-timeout", "0.5", "--body-timeout", "0.5", "--idle-timeout", "0.5") as server:
        for data, status in {b"": None, b"GET /hea": 408, post(SIZED): 408, post(SIZED, BODY[:4]): 408}.items():
            with connect(server) as connection, connection.makefile("rb") as stream:
                started = time.monotonic()
                connection.sendall(data)
                reply = read_reply(stream)
                assert (reply and reply[0]) == status
                assert stream.read() == b"" and 0.4 < time.monotonic() - started < 5
        with connect(server) as connection, connection.makefile("rb") as stream:  # single bytes buy no time
            connection.sendall(post(b"Content-Length: 1000\r\n"))
            connection.settimeout(0.1)
            for _ in range(100):
                try:
                    connection.sendall(b"x")
                    connection.recv(1, socket.MSG_PEEK)
                    break
                except TimeoutError:
                    pass
            connection.settimeout(5)
            assert read_reply(stream)[0] == 408


def test_beyond_the_last_connection():
    with serving("--max-connections", "2") as server:
        with connect(server) as first, connect(server) as second:
            for connection in (first, second):
                connection.sendall(get())
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            with connect(server) as third, third.makefile("rb") as stream:
                status, headers, body = read_reply(stream)
                assert status == 429 and headers["retry-after"] and headers["connection"] == "close"
                assert json.loads(body)["error"]["code"] == "too_many_connections" and stream.read() == b""
        end = time.monotonic() + 5
        while ask(server, get())[0][0] != 200:  # their places are free again
            assert time.monotonic() < end


def test_what_is_refused_by_its_head_need_not_send_its_body(tmp_path):
    (tmp_path / "keys").write_text("key\n")
    with serving("--api-key-file", tmp_path / "keys") as server:
        for headers in (b"", b"Expect: 100-continue\r\n", b"Authorization: Bearer no\r\n"):
            with connect(server) as connection, connection.makefile("rb") as stream:
                connection.sendall(post(b"Content-Length: 1000000\r\n" + headers))
                status, headers, _ = read_reply(stream)
                assert status == 401 and headers["connection"] == "close"
                connection.sendall(b"x" * 1000000)  # is read over
                assert stream.read() == b""


def test_internet_protocol_6():
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")
    process = subprocess.Popen([support.EDGEWISE, "serve", "-m", served.demo(), "--host", "::1", "--port", "0"],
                               stderr=subprocess.PIPE, text=True)
    try:
        url = next(found.group(0) for line in process.stderr if (found := re.search(r"http://\[::1\]:\d+", line)))
        assert b"ok" in subprocess.run(["curl", "-sg", url + "/health"], capture_output=True).stdout
    finally:
        process.terminate()
        process.wait(20)


def test_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfirst\n\n  second  \n")
    running = served.Server("--api-key-file", keys)
    try:
        assert running.request("GET", "/health")[0] == 200
        assert running.request("GET", "/v1/models")[0] == 401
        assert running.request("GET", "/nowhere")[0] == 401
        for key, status in {"first": 200, "second": 200, "firs": 401, "firstt": 401, "": 401, "# ours": 401}.items():
            assert running.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})[0] == status, key
        keys.write_text("third\n")
        running.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 5
        while running.request("GET", "/v1/models", headers={"Authorization": "Bearer third"})[0] != 200:
            assert time.monotonic() < end
        assert running.request("GET", "/v1/models", headers={"Authorization": "Bearer first"})[0] == 401
        keys.write_text("# none\n")  # a broken file changes nothing
        running.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert running.request("GET", "/v1/models", headers={"Authorization": "Bearer third"})[0] == 200
    finally:
        running.stop()


def test_pages_of_other_origins():
    running = served.Server("--cors", "https://here.example")
    try:
        status, headers, _ = running.request("OPTIONS", "/v1/chat/completions")
        assert status == 204 and headers["Access-Control-Allow-Origin"] == "https://here.example"
        assert running.request("GET", "/health")[1]["Access-Control-Allow-Origin"] == "https://here.example"
    finally:
        running.stop()


def test_without_cors_there_are_no_such_headers(server):
    status, headers, _ = server.request("OPTIONS", "/v1/chat/completions")
    assert status == 405 and not any(name.startswith("Access-Control") for name in headers)


def test_a_signal_right_after_the_start_ends_it():
    """Nobody knows which moment it meets: before the event loop listens to signals, or after."""
    for _ in range(12):
        assert served.Server("--ctx", 256).stop() == 0


def test_drain_lets_answers_end(tmp_path):
    running = served.Server("--access-log", tmp_path / "log", "--log-format", "json")
    with connect(running) as idle, connect(running) as connection, connection.makefile("rb") as stream:
        connection.sendall(long_request())
        assert stream.readline().startswith(b"HTTP/1.1 200")
        running.process.terminate()
        assert idle.recv(1) == b""
        rest = stream.read()
        assert b"data: [DONE]" in rest
    assert running.process.wait(20) == 0
    with pytest.raises(OSError):
        connect(running)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["path"], line["status"], line["completion_tokens"]) for line in lines] == [("/v1/completions", 200, 400)]
    assert lines[0]["prompt_tokens"] > 1 and 0 < lines[0]["first_ms"] <= lines[0]["ms"]


def test_second_signal_ends_at_once():
    running = served.Server()
    with connect(running) as connection:
        connection.sendall(long_request(max_tokens=2000))
        assert connection.recv(10)
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(5) == 0


def test_systemd_is_told(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(10)
        running = served.Server(env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"})
        assert notify.recv(100) == b"READY=1"
        assert notify.recv(100) == b"WATCHDOG=1"
        running.process.terminate()
        while (state := notify.recv(100)) != b"STOPPING=1":
            assert state == b"WATCHDOG=1"
        running.process.wait(10)


@contextlib.contextmanager
def serving_at(path):
    process = subprocess.Popen([support.EDGEWISE, "serve", "-m", served.demo(), "--unix", path], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 20
        while b"ok" not in subprocess.run(["curl", "-s", "--unix-socket", path, "http://x/health"],
                                          capture_output=True).stdout:
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def test_a_socket_in_the_file_system(tmp_path):
    path = tmp_path / "edgewise.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:  # as a server that was killed leaves it
        left_behind.bind(str(path))
    with serving_at(path):
        second = support.run("serve", "-m", served.demo(), "--unix", path)
        assert second.returncode == 1 and b"listens there" in second.stderr and path.exists()
    assert not path.exists()
    path.write_text("a file")
    assert b"is no socket" in support.run("serve", "-m", served.demo(), "--unix", path).stderr


def ask_all(running, requests, n):
    statuses = []
    for request in requests:
        try:
            statuses.append(running.request(*request)[0])
        except (OSError, http.client.HTTPException) as problem:
            assert not isinstance(problem, TimeoutError), (n, request)
            statuses.append(None)
    return statuses


def test_an_allocation_that_fails_costs_one_request():
    """The n-th allocation fails, wherever that is: in starting (which then ends in one sentence), or in a request."""
    body = {"model": "demo", "prompt": "hello", "max_tokens": 2}
    requests = [("GET", "/health", None), ("POST", "/tokenize", {"prompt": "hello"}), ("POST", "/v1/completions", body),
                ("POST", "/v1/completions", dict(body, stream=True)), ("GET", "/metrics", None)]
    n, failures, last = 200, 0, 200
    while n < 2 * last:
        n += n // 12
        try:
            running = served.Server("--ctx", "256", env={"EW_ALLOC_FAIL_AT": str(n)})
        except AssertionError as problem:
            assert "edgewise: " in str(problem)
            last = n
            continue
        statuses = ask_all(running, requests, n)
        assert set(statuses) <= {200, 500, 503, None} and statuses.count(200) >= len(requests) - 1, (n, statuses)
        if statuses.count(200) < len(requests):
            failures, last = failures + 1, n
        assert running.get("/health")["status"] == "ok"
        assert running.stop() == 0, n
    assert failures


def test_what_cannot_start_says_why(server, tmp_path):
    for options, text in {
        ("--port", str(server.port)): "in use",
        ("--host", "no.such.host.invalid"): "no address",
        ("--api-key-file", tmp_path / "none"): "none",
    }.items():
        result = support.run("serve", "-m", served.demo(), *options)
        assert result.returncode in (1, 2) and text in result.stderr.decode(), result.stderr
