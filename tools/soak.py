#!/usr/bin/env python3
"""A crowd on one server: soak.py [SECONDS] [IDLE] [BUSY] (default 600 5000 20)

Starts `build/edgewise serve` with the bundled model and measures BUSY clients twice with `bench load`: for two minutes at most
without a crowd, then for SECONDS with IDLE open connections that ask for nothing. Fails where memory grows, a request fails, or
the crowd doubles the 99th percentile of the time between tokens. Not part of `make test`: it takes its time.
"""
import json
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build/edgewise"
GROWTH_MAX = 0.05  # of resident memory, from a tenth of the time to its end


def start():
    server = subprocess.Popen([PROGRAM, "serve", "-m", ROOT / "models/demo.gguf", "--port", "0", "--ctx", "512",
                               "--idle-timeout", "1000000"],
                              stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r"http://[^\s:]+:(\d+)", line):
            return server, int(found.group(1))
    sys.exit("the server did not start")


def resident_bytes(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024


def load(port, clients, seconds, pid):
    """bench load's report, and the server's memory along the way."""
    process = subprocess.Popen([PROGRAM, "bench", "load", "--url", f"http://127.0.0.1:{port}", "-c", str(clients),
                                "--duration", str(seconds), "-p", "120", "-g", "64", "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    memory = []
    while process.poll() is None:
        memory.append(resident_bytes(pid))
        time.sleep(max(0.5, seconds / 200))
    return json.loads(process.stdout.read()), memory


def describe(name, report, memory):
    print(f"{name}: {report['output_tok_s']:.0f} tok/s, ITL p99 {report['itl_ms']['p99']:.1f} ms, "
          f"TTFT p95 {report['ttft_ms']['p95']:.0f} ms, {report['requests']} requests, {report['failed']} failed, "
          f"memory {memory[0] / 2**20:.0f} to {memory[-1] / 2**20:.0f} MiB", flush=True)


def main():
    seconds, idle, busy = [int(text) for text in sys.argv[1:]] + [600, 5000, 20][len(sys.argv) - 1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server, port = start()
    try:
        alone, memory = load(port, busy, min(seconds, 120), server.pid)
        describe("without the crowd", alone, memory)
        before = resident_bytes(server.pid)
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(idle)]
        time.sleep(1)
        per_connection = (resident_bytes(server.pid) - before) / idle
        print(f"{idle} idle connections: {per_connection:.0f} bytes each", flush=True)
        crowded, memory = load(port, busy, seconds, server.pid)
        describe("with the crowd", crowded, memory)
    finally:
        server.terminate()
        server.wait(60)
    warm = memory[len(memory) // 10]
    problems = [text for wrong, text in (
        (memory[-1] > warm * (1 + GROWTH_MAX), f"memory grew from {warm} to {memory[-1]} bytes"),
        (alone["failed"] or crowded["failed"], "requests failed"),
        (crowded["itl_ms"]["p99"] > 2 * alone["itl_ms"]["p99"], "the crowd more than doubled the 99th percentile of ITL"),
        (per_connection > 4096, "an idle connection takes more than 4 kB"),
    ) if wrong]
    print("\n".join(problems) or "passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
