"""`run`: sampling, streaming, interruption, limits."""
import ctypes
import json
import signal
import subprocess

import pytest
import support

PROMPT = "How do I list files by size?"


def answer(*options, **kwargs):
    return support.run_json("run", "-m", "demo", "--json", "-p", PROMPT, *options, **kwargs)


def test_json_says_what_happened():
    got = answer("-n", 5, "--logprobs", 3)
    assert got["gen_tokens"] == 5 and len(got["ids"]) == 5 and got["finish"] == "length"
    assert [len(place) for place in got["logprobs"]] == [3] * 5
    for place, token in zip(got["logprobs"], got["ids"]):
        assert place[0]["id"] == token
        assert all(entry["logprob"] <= 0 for entry in place)
    assert answer()["finish"] == "stop"


def test_seed_makes_it_repeatable():
    hot = ["--temp", 1.5, "-n", 30, "--ignore-eos"]
    first = answer(*hot, "--seed", 7)
    assert first["ids"] == answer(*hot, "--seed", 7)["ids"]
    assert first["seed"] == 7
    assert first["ids"] != answer(*hot, "--seed", 8)["ids"]


def test_chunks_and_threads_do_not_change_greedy_answers():
    whole = answer("--kernels", "reference")["ids"]
    assert whole == answer("--kernels", "reference", "--chunk", 5, "--threads", 1, "--kv-block", 4)["ids"]


def test_bias_forbids_and_forces():
    free = answer("-n", 1)["ids"][0]
    assert answer("-n", 1, "--logit-bias", f"{free}=-1000")["ids"][0] != free
    assert answer("-n", 1, "--logit-bias", "300=1000")["ids"] == [300]


def test_repetition_penalty_breaks_a_loop():
    loop = ["--raw", "-n", 60, "--ignore-eos"]
    plain, penalised = answer(*loop)["ids"], answer(*loop, "--repetition-penalty", 1.5)["ids"]
    assert len(set(penalised)) > len(set(plain))


def test_prompt_comes_from_standard_input():
    out = support.run_ok("run", "-m", "demo", stdin=PROMPT.encode())
    assert out == support.run_ok("run", "-m", "demo", "-p", PROMPT)


def test_messages_file(tmp_path):
    conversation = {"messages": [{"role": "user", "content": "My name is Ana."}, {"role": "assistant", "content": "Nice to meet you, Ana!"},
                                 {"role": "user", "content": "What is my name?"}], "add_generation_prompt": True}
    (tmp_path / "conversation.json").write_text(json.dumps(conversation))
    assert b"Ana" in support.run_ok("run", "-m", "demo", "--messages", tmp_path / "conversation.json")


def test_prompt_that_does_not_fit_is_refused_with_the_numbers():
    result = support.run("run", "-m", "demo", "--ctx", 16, "-p", PROMPT * 4)
    assert result.returncode == 1
    assert b"context" in result.stderr and b"16" in result.stderr


def test_full_context_ends_the_answer():
    got = answer("--ctx", 32, "--ignore-eos")
    assert got["finish"] == "context" and got["prompt_tokens"] + got["gen_tokens"] in (32, 33)


def start(*options):
    return subprocess.Popen([support.EDGEWISE, "run", "-m", "demo", "--ignore-eos", *options], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_interrupt_stops_the_answer():
    with start("-p", PROMPT) as process:
        process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1 and b"interrupted" in err


def test_closed_pipe_ends_the_program():
    with start("-p", PROMPT) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(timeout=60) >= 0
        process.stderr.close()


def peak_bytes(*options):
    """Peak memory of a process of its own, so that earlier ones do not count."""
    code = ("import resource,subprocess,sys;"
            "subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL,check=True);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss*1024)")
    out = subprocess.run(["python3", "-c", code, support.EDGEWISE, "run", *map(str, options)], capture_output=True, check=True)
    return int(out.stdout)


def test_peak_memory_is_weights_and_caches():
    """At most weights + caches + 5 % + 64 MB, for a model whose weights are repacked."""
    speed = support.run_json("bench", "speed", "-m", "synthetic:0.6b:q4_0", "-p", 16, "-n", 2, "-r", 1, "--no-warmup", "--json",
                             timeout=600)
    context = 512
    cache = 24 * 2 * 2 * 64 * 2 * context  # layers, K and V, KV heads, head size, f16
    peak = peak_bytes("-m", "synthetic:0.6b:q4_0", "--ids", "1 2 3", "-n", 2, "--ctx", context)
    assert peak <= (speed["weight_bytes"] + cache) * 1.05 + 64e6


def test_without_a_gpu_cuda_fails_and_auto_takes_the_cpu():
    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("there is an NVIDIA driver here")
    except OSError:
        pass
    result = support.run("run", "-m", "demo", "--backend", "cuda", "-p", PROMPT, "-n", 1)
    assert result.returncode == 1 and b"no NVIDIA driver" in result.stderr
    assert "cpu" in answer("-n", 1, "--backend", "auto")["backend"]
