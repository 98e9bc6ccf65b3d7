"""A running `edgewise serve` for tests: started once a set of options, asked with nothing but the standard library."""
import contextlib
import http.client
import json
import os
import re
import subprocess
import threading
import time

import support

START_S = 60


class Server:
    """The program serving on a port of its own choice; what it writes to standard error is in `log`."""

    def __init__(self, *options, model=None, env=None):
        self.log = ""
        self.process = subprocess.Popen(
            [support.EDGEWISE, "serve", "-m", str(model or demo()) + "=demo", "--port", "0", *map(str, options)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(os.environ, **(env or {})))
        self.has_port = threading.Event()
        self.port = None
        threading.Thread(target=self._read, daemon=True).start()
        if not self.has_port.wait(START_S) or self.port is None:
            self.stop()
            raise AssertionError(f"the server did not start: {self.log}")
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self):
        for line in self.process.stderr:
            self.log += line
            found = re.search(r"http://[^\s:]+:(\d+)", line)
            if found and self.port is None:
                self.port = int(found.group(1))
                self.has_port.set()
        self.has_port.set()

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Status, headers and bytes of a reply; a body that is no bytes is sent as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as connection:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()

    def post(self, path, body, status=200, **options):
        got, _, reply = self.request("POST", path, body, **options)
        assert got == status, reply
        return json.loads(reply)

    def get(self, path, status=200):
        got, _, reply = self.request("GET", path)
        assert got == status, reply
        return json.loads(reply)

    def stream(self, path, body):
        """The chunks of a streamed reply; checks its framing."""
        _, headers, reply = self.request("POST", path, dict(body, stream=True))
        assert headers["Content-Type"].startswith("text/event-stream"), reply
        events = reply.decode("utf-8").split("\n\n")
        assert events.pop() == "" and events.pop() == "data: [DONE]"
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        return [json.loads(event[6:]) for event in events]

    def metrics(self):
        text = self.request("GET", "/metrics")[2].decode()
        return {name: float(value) for name, value in re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", text, re.M)}

    def wait_for(self, what, seconds=20):
        """Until what(metrics) holds; returns the metrics."""
        end = time.monotonic() + seconds
        while True:
            metrics = self.metrics()
            if what(metrics):
                return metrics
            assert time.monotonic() < end, metrics
            time.sleep(0.01)


def demo():
    return support.find("models/demo.gguf") or support.need("models/demo")
