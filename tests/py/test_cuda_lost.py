"""A server whose GPU fails in the middle of requests, at every call of the driver that requests make: those that run end with the reason
and a remedy, and the server goes on answering, with text where the GPU is well again, with the same reason where it is lost. The emulated
GPU (tests/mock) alone: a real one fails when it wants to."""
import concurrent.futures
import json
import os
import re

import pytest
import served
import support
from test_cuda import IS_REAL, cuda  # noqa: F401 (a fixture)

pytestmark = pytest.mark.skipif(IS_REAL, reason="a real driver fails when it wants to")

PROMPT = [(11 * i) % 250 + 3 for i in range(12)]
KINDS = [{}, {"logprobs": 2}, {"temperature": 0.9, "top_p": 0.8, "seed": 5}, {"repetition_penalty": 1.2}]
# Statuses that programs like ours can meet (CUresult of the driver API reference), graphics, profilers and peers aside.
STATUSES = [1, 2, 3, 4, 34, 36, 46, 100, 101, 102, 200, 201, 205, 209, 214, 218, 220, 221, 222, 223, 224, 226, 302, 303, 304, 400, 401, 500, 700, 701, 702,
            709, 710, 712, 713, 714, 715, 716, 717, 718, 719, 720, 721, 800, 801, 802, 803, 804, 805, 806, 807, 808, 809, 810, 900, 901, 912, 916, 999]
PASSING, LOST = 1, 719  # CUDA_ERROR_INVALID_VALUE, after which a context goes on; CUDA_ERROR_LAUNCH_FAILED


class Calls:
    """What a healthy server answers, and the calls that it makes before the first request and for these."""

    def __init__(self, cuda, folder):
        self.before, _ = self.count(cuda, folder / "before", 0)
        self.all, self.answers = self.count(cuda, folder / "all", 1)

    @staticmethod
    def count(cuda, path, n_rounds):
        server = start(cuda, EW_MOCK_CUDA_CALLS=str(path))
        try:
            replies = [ask(server, kind) for _ in range(n_rounds) for kind in KINDS]
        finally:
            assert server.stop() == 0
        assert all(status == 200 for status, _ in replies)
        return {name: int(n) for name, n in (line.split() for line in path.read_text().splitlines())}, [text for _, text in replies]

    def of_requests(self):
        return {name: self.before.get(name, 0) for name, n in self.all.items() if n > self.before.get(name, 0) + 1}


def start(cuda, **env):
    model = support.need("fixtures/gguf/llama-q8_0.gguf")
    return served.Server("--backend", "cuda", "--ctx", "128", "--batch", "4", "--no-self-test", "--no-reuse", model=model, env={**cuda, **env})


def ask(server, kind):
    """Status, and the answer's text or the error's message."""
    status, _, reply = server.request("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True} | kind,
                                      timeout=120)
    reply = json.loads(reply)
    return status, reply["choices"][0]["text"] if status == 200 else reply["error"]["message"]


@pytest.fixture(scope="module")
def calls(cuda, tmp_path_factory):
    return Calls(cuda, tmp_path_factory.mktemp("calls"))


@pytest.mark.parametrize("status,known", [*((status, True) for status in STATUSES), (555, False)])
def test_every_error_has_a_cause_and_a_remedy(cuda, status, known):
    result = support.run("run", "-m", "demo", "-p", "hi", "-n", "1", "--backend", "cuda", env={**cuda, "EW_MOCK_CUDA_FAIL": f"cuInit:1:{status}"})
    told = re.search(rf"the NVIDIA driver answers (?:\w+ \({status}\)|CUDA error {status}): (.+?)\. ([A-Z].+)", result.stderr.decode())
    assert result.returncode == 1 and told, result.stderr.decode()
    assert (told[1] != "it gives no further reason") == known


def test_what_requests_call(calls):
    assert {"cuMemcpyHtoDAsync_v2", "cuLaunchKernel", "cuGraphLaunch", "cuEventRecord", "cuEventSynchronize", "cuCtxSetCurrent"} <= set(calls.of_requests())


def together(server):
    with concurrent.futures.ThreadPoolExecutor(len(KINDS)) as pool:
        return list(pool.map(lambda kind: ask(server, kind), KINDS))


@pytest.mark.parametrize("error", [PASSING, LOST])
def test_a_call_fails_in_the_middle(cuda, calls, error):
    for name, n in calls.of_requests().items():
        for at in [n + 2] if not os.environ.get("EW_LONG") else range(n + 1, n + 12, 3):
            server = start(cuda, EW_MOCK_CUDA_FAIL=f"{name}:{at}:{error}")
            try:
                check(server, calls, f"{name}, call {at}", error)
            finally:
                assert server.stop() == 0


def check(server, calls, where, error):
    replies = together(server)
    failed = [message for status, message in replies if status != 200]
    assert {status for status, _ in replies} <= {200, 500, 503}, f"{where}: {replies}"
    assert all(f"({error})" in message and ". " in message for message in failed), f"{where}: {failed}"
    later = [ask(server, kind) for kind in KINDS[1:3]]
    if error == PASSING:
        assert later == [(200, text) for text in calls.answers[1:3]], f"{where}: {later}"
        assert server.get("/health") == {"status": "ok"}, where
    else:
        assert failed and all(status in (500, 503) and f"({error})" in message for status, message in later), f"{where}: {later}"
        assert f"({error})" in server.get("/health", 503)["error"]["message"], where
