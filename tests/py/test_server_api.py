"""The API of `edgewise serve` as the OpenAI client sees it, byte for byte where it matters, and through metrics."""
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import time

import pytest

import served
import support

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOLS = [
    {"type": "function", "function": {"name": "get_memory", "description": "Get the free memory.",
                                      "parameters": {"type": "object", "properties": {}, "required": []}}},
    {"type": "function", "function": {"name": "get_temperature", "description": "Read a temperature sensor.",
                                      "parameters": {"type": "object", "required": ["sensor"], "properties": {
                                          "sensor": {"type": "string", "description": "Name of the sensor"}}}}},
]
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def server():
    # The arithmetic of a GPU depends on how many rows a step has, and its chunks are longer.
    server = served.Server(*(["--deterministic", "--chunk", "512"] if os.environ.get("EW_TEST_GPU") else []))
    yield server
    assert server.stop() == 0, server.log


@pytest.fixture(scope="module")
def openai():
    return pytest.importorskip("openai", reason="there is no Python package openai")


@pytest.fixture(scope="module")
def client(server, openai):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


# ---- the OpenAI client ------------------------------------------------------------------------------------------------


def test_chat(client):
    reply = client.chat.completions.create(model="demo", messages=user("How do I list files?"), temperature=0)
    assert reply.object == "chat.completion" and reply.model == "demo" and reply.id.startswith("chatcmpl-")
    assert abs(reply.created - time.time()) < 60
    choice = reply.choices[0]
    assert choice.message.role == "assistant" and choice.message.content == "To list files, run `ls -la`."
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None and choice.logprobs is None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.system_fingerprint.startswith("fp_")


def test_streaming_says_the_same(client):
    ask = {"model": "demo", "messages": user("What can you do?"), "temperature": 0}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].object == "chat.completion.chunk"
    *talk, last = chunks
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in talk)
    assert talk[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in talk[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in talk) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in talk] == [None] * (len(talk) - 1) + ["stop"]
    assert len(talk) > 5  # it came in pieces


def test_tools_and_their_results(client):
    messages = [SYSTEM, *user("Please measure the memory temperature.")]
    reply = client.chat.completions.create(model="demo", messages=messages, tools=TOOLS, temperature=0)
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "get_temperature" and call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"sensor": "memory"}
    # The message goes back as the client has it, nulls and all.
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 41}'}]
    answer = client.chat.completions.create(model="demo", messages=messages, tools=TOOLS, temperature=0)
    assert answer.choices[0].finish_reason == "stop" and "41" in answer.choices[0].message.content


def test_streamed_tool_call(client):
    messages = [SYSTEM, *user("Please measure the memory temperature.")]
    with client.chat.completions.stream(model="demo", messages=messages, tools=TOOLS, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds and "content.delta" not in kinds
    [call] = final.choices[0].message.tool_calls
    assert call.function.name == "get_temperature" and json.loads(call.function.arguments) == {"sensor": "memory"}
    assert final.choices[0].finish_reason == "tool_calls"


def test_tools_that_must_not_be_called(client):
    messages = [SYSTEM, *user("free memory?")]
    reply = client.chat.completions.create(model="demo", messages=messages, tools=TOOLS, tool_choice="none", temperature=0)
    assert reply.choices[0].message.tool_calls is None and reply.choices[0].message.content


def test_logprobs(client):
    ask = {"model": "demo", "messages": user("Who are you?"), "temperature": 0, "logprobs": True, "top_logprobs": 3}
    reply = client.chat.completions.create(**ask)
    content = reply.choices[0].logprobs.content
    assert "".join(token.token for token in content) == reply.choices[0].message.content
    for token in content:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token  # greedy
        assert [top.logprob for top in token.top_logprobs] == sorted((top.logprob for top in token.top_logprobs), reverse=True)
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    streamed = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**ask, stream=True)]
    assert [token for logprobs in streamed if logprobs for token in logprobs.content] == content


def test_errors_have_their_types(client, openai):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="other", messages=user("x"))
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="demo", messages=user("x"), response_format={"type": "json_object"})
    assert error.value.code == "unsupported_parameter" and error.value.param == "response_format"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="demo", messages=user("word " * 4000), max_tokens=1)
    assert error.value.code == "context_length_exceeded" and "2048" in error.value.message
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="demo", messages=user("x"), tools=TOOLS, tool_choice="required")
    assert error.value.param == "tool_choice"


def test_a_stream_that_is_closed_is_cancelled(client, server):
    before = server.metrics()
    stream = client.chat.completions.create(model="demo", messages=user("Tell me more."), stream=True, max_tokens=1500,
                                            extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    after = server.wait_for(lambda metrics: metrics["edgewise_requests_open"] == 0)
    assert after["edgewise_clients_gone_total"] == before["edgewise_clients_gone_total"] + 1
    assert after['edgewise_answers_total{finish="cancelled"}'] == before['edgewise_answers_total{finish="cancelled"}'] + 1
    assert after["edgewise_decode_tokens_total"] - before["edgewise_decode_tokens_total"] < 1000


def test_several_choices_and_seeds(client):
    ask = {"model": "demo", "messages": user("Tell me about disks."), "temperature": 1.5, "max_tokens": 12, "n": 3}
    one, again = (client.chat.completions.create(**ask, seed=7) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert [choice.index for choice in one.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert [choice.message.content for choice in again.choices] == texts
    assert [choice.message.content for choice in client.chat.completions.create(**ask, seed=8).choices] != texts
    alone = client.chat.completions.create(**dict(ask, n=1), seed=7)
    assert alone.choices[0].message.content == texts[0]
    assert one.usage.prompt_tokens == alone.usage.prompt_tokens  # counted once


def test_stop(client):
    whole = client.chat.completions.create(model="demo", messages=user("How do I list files?"), temperature=0)
    text = whole.choices[0].message.content
    for stop in (" run", ["never", " `ls"]):
        for stream in (False, True):
            reply = client.chat.completions.create(model="demo", messages=user("How do I list files?"), temperature=0, stop=stop,
                                                   stream=stream)
            got = ("".join(chunk.choices[0].delta.content or "" for chunk in reply) if stream
                   else reply.choices[0].message.content)
            assert got == text[:text.index(stop if isinstance(stop, str) else stop[1])]


def test_completions(client):
    reply = client.completions.create(model="demo", prompt=["To list files", "The disk"], temperature=0, max_tokens=5, logprobs=2)
    assert reply.object == "text_completion" and [choice.index for choice in reply.choices] == [0, 1]
    for choice in reply.choices:
        assert choice.finish_reason == "length" and "".join(choice.logprobs.tokens) == choice.text
        assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.top_logprobs) == 5
        assert choice.logprobs.text_offset[0] == 0 and choice.logprobs.text_offset[1] == len(choice.logprobs.tokens[0])
    alone = client.completions.create(model="demo", prompt="The disk", temperature=0, max_tokens=5)
    assert alone.choices[0].text == reply.choices[1].text
    streamed = client.completions.create(model="demo", prompt="The disk", temperature=0, max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == alone.choices[0].text
    echoed = client.completions.create(model="demo", prompt="The disk", temperature=0, max_tokens=5, echo=True)
    assert echoed.choices[0].text == "The disk" + alone.choices[0].text


def test_models(client):
    [model] = client.models.list().data
    assert model.id == "demo" and client.models.retrieve("demo").id == "demo" and model.max_model_len == 2048


# ---- bytes ------------------------------------------------------------------------------------------------------------


def steady(reply):
    """What a reply has besides names and times that differ from run to run."""
    text = json.dumps(reply)
    text = re.sub(r'"(chatcmpl|cmpl)-[0-9a-f]{24}"', r'"\1-ID"', text)
    text = re.sub(r'"call_[A-Za-z0-9]{24}"', '"call_ID"', text)
    text = re.sub(r'"fp_[0-9a-f]{12}"', '"fp_ID"', text)
    reply = json.loads(re.sub(r'"created": \d+', '"created": 1', text))
    for member in ("energy_joules", "prompt_tokens_details"):  # depend on the machine, and on what came before
        (reply.get("usage") or {}).pop(member, None)
    return reply


HEAD = {"id": "chatcmpl-ID", "created": 1, "model": "demo", "system_fingerprint": "fp_ID"}


def test_golden_chat(server):
    reply = server.post(CHAT, {"model": "demo", "messages": user("How do I list files?"), "temperature": 0})
    assert steady(reply) == {
        **HEAD, "object": "chat.completion",
        "choices": [{"index": 0, "logprobs": None, "finish_reason": "stop", "message": {
            "role": "assistant", "content": "To list files, run `ls -la`.", "refusal": None}}],
        "usage": {"prompt_tokens": 14, "completion_tokens": 11, "total_tokens": 25}}


def test_golden_tool_call(server):
    ask = {"messages": [SYSTEM, *user("free memory?")], "tools": TOOLS, "temperature": 0}
    function = {"name": "get_memory", "arguments": "{}"}
    reply = steady(server.post(CHAT, ask))
    assert reply["choices"] == [{"index": 0, "logprobs": None, "finish_reason": "tool_calls", "message": {
        "role": "assistant", "content": None, "refusal": None,
        "tool_calls": [{"id": "call_ID", "type": "function", "function": function}]}}]
    chunks = [steady(chunk) for chunk in server.stream(CHAT, ask)]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "tool_calls": [
        {"index": 0, "id": "call_ID", "type": "function", "function": {"name": "get_memory", "arguments": deltas[0][
            "tool_calls"][0]["function"]["arguments"]}}]}
    assert "".join(call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", [])) == "{}"
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}]


def test_golden_stream(server):
    chunks = [steady(chunk) for chunk in server.stream(CHAT, {"messages": user("Hello!"), "temperature": 0, "max_tokens": 1})]
    assert chunks == [
        {**HEAD, "object": "chat.completion.chunk",
         "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        for delta, finish in (({"role": "assistant", "content": "Hello"}, None), ({}, "length"))]
    [talk, last] = [steady(chunk) for chunk in server.stream(TEXT, {"prompt": "Hello!", "temperature": 0, "max_tokens": 1})]
    assert talk["object"] == "text_completion" and talk["choices"][0] == {
        "index": 0, "text": talk["choices"][0]["text"], "logprobs": None, "finish_reason": None}
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]


def test_tokens(server):
    ids = server.post("/tokenize", {"prompt": "<|im_start|>user\nHello!<|im_end|>"})
    assert ids == {"count": 6, "max_model_len": 2048, "tokens": [1, 411, 204, 3502, 6, 2]}
    assert server.post("/detokenize", {"tokens": ids["tokens"]}) == {"prompt": "<|im_start|>user\nHello!<|im_end|>"}
    plain = server.post("/tokenize", {"prompt": "<|im_end|>", "parse_special_tokens": False})
    assert plain["tokens"] != [2] and server.post("/detokenize", {"tokens": plain["tokens"]})["prompt"] == "<|im_end|>"
    from_ids = server.post(TEXT, {"prompt": ids["tokens"], "temperature": 0, "max_tokens": 3})
    assert from_ids["usage"]["prompt_tokens"] == 6


def test_a_prompt_of_ids_is_the_prompt_of_its_text(server):
    ids = server.post("/tokenize", {"prompt": "The disk is"})["tokens"]
    ask = {"temperature": 0, "max_tokens": 8}
    by_text, by_ids = (server.post(TEXT, dict(ask, prompt=prompt)) for prompt in ("The disk is", ids))
    assert by_ids["choices"][0]["text"] == by_text["choices"][0]["text"]


@pytest.mark.parametrize("path, body, status, param, code", [
    (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "invalid_value"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
     "messages[0].content", "unsupported_parameter"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "mood": "good"}]}, 400, "messages[0].mood", "unsupported_parameter"),
    (CHAT, {"messages": user("x"), "tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "tools[0].function.name",
     "invalid_value"),
    (CHAT, {"messages": user("x"), "tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, 400,
     "tools[0].function.strict", "unsupported_parameter"),
    (CHAT, {"messages": user("x"), "temperature": 3}, 400, "temperature", "invalid_value"),
    (CHAT, {"messages": user("x"), "best_of": 2}, 400, "best_of", "unknown_parameter"),
    (CHAT, {"messages": user("x"), "logit_bias": {"8192": 1}}, 400, "logit_bias", "invalid_value"),
    (CHAT, {"messages": user("x"), "n": 33}, 400, "n", "invalid_value"),
    (CHAT, b"{", 400, None, "invalid_json"),
    (CHAT, b"", 400, None, "invalid_json"),
    (TEXT, {"prompt": "x", "best_of": 2}, 400, "best_of", "unsupported_parameter"),
    (TEXT, {"prompt": ""}, 400, None, "invalid_value"),
    (TEXT, {"prompt": [1, 9000]}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": ["x"] * 33}, 400, "prompt", "invalid_value"),
    ("/tokenize", {"text": "x"}, 400, "text", "unknown_parameter"),
    ("/detokenize", {"tokens": [-1]}, 400, "tokens", "invalid_value"),
    ("/v1/unknown", {}, 404, None, "unknown_route"),
    ("/health", {}, 405, None, "method_not_allowed"),
])
def test_refusals(server, path, body, status, param, code):
    error = server.post(path, body, status=status)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"]


def test_null_is_absent(server):
    fields = ("stream", "n", "stop", "seed", "temperature", "logit_bias", "logprobs", "max_tokens", "tools", "tool_choice",
              "response_format", "user", "stream_options", "audio", "functions", "reasoning_effort")
    server.post(CHAT, {"messages": user("Hello!"), **dict.fromkeys(fields)})


def test_parts_of_text_are_one_text(server):
    parts = [{"type": "text", "text": "How do I "}, {"type": "text", "text": "list files?"}]
    reply = server.post(CHAT, {"messages": [{"role": "user", "content": parts}], "temperature": 0})
    assert reply["choices"][0]["message"]["content"] == "To list files, run `ls -la`."


def test_only_one_call_where_only_one_is_wanted(server):
    reply = server.post(CHAT, {"messages": [SYSTEM, *user("free memory?")], "tools": TOOLS, "temperature": 0,
                               "parallel_tool_calls": False, "ignore_eos": True, "max_tokens": 400})
    assert len(reply["choices"][0]["message"]["tool_calls"]) == 1 and reply["choices"][0]["finish_reason"] == "tool_calls"
    assert reply["usage"]["completion_tokens"] < 100  # it stopped there


def test_min_tokens(server):
    ask = {"messages": user("Hello!"), "temperature": 0}
    assert server.post(CHAT, ask)["usage"]["completion_tokens"] < 20
    assert server.post(CHAT, dict(ask, min_tokens=20, max_tokens=40))["usage"]["completion_tokens"] >= 20


def test_logit_bias(server):
    ask = {"messages": user("How do I list files?"), "temperature": 0, "max_tokens": 1}
    first = server.post(CHAT, ask)["choices"][0]["message"]["content"]
    [token] = server.post("/tokenize", {"prompt": first})["tokens"]
    assert server.post(CHAT, dict(ask, logit_bias={str(token): -100}))["choices"][0]["message"]["content"] != first


def test_prefixes_are_reused(server):
    ask = {"messages": [{"role": "system", "content": "You are terse. " * 30}, *user("Hello!")], "temperature": 0}
    server.post(CHAT, ask)
    usage = server.post(CHAT, ask)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2


def test_choices_share_their_prompt(server):
    ask = {"prompt": [9 + i * 37 % 5000 for i in range(1000)], "n": 4, "temperature": 1, "seed": 3, "max_tokens": 8, "ignore_eos": True}
    before = server.metrics()
    texts = [choice["text"] for choice in server.post(TEXT, ask)["choices"]]
    after = server.metrics()
    assert after["edgewise_prefill_tokens_total"] - before["edgewise_prefill_tokens_total"] < 1100
    assert len(set(texts)) == 4
    chunks = server.stream(TEXT, ask)
    assert texts == ["".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"][0]["index"] == i) for i in range(4)]


def test_utf8_is_whole(server):
    for seed in range(6):  # hot enough to choose bytes of characters
        ask = {"prompt": "é", "temperature": 2, "seed": seed, "max_tokens": 40, "ignore_eos": True}
        pieces = [chunk["choices"][0]["text"] for chunk in server.stream(TEXT, ask)]
        assert "".join(pieces) == server.post(TEXT, ask)["choices"][0]["text"]


def test_answers_in_a_busy_batch_are_those_alone(server):
    questions = ["How do I list files?", "Who are you?", "What can you do?", "How do I show disk usage?", "Hello!",
                 "How do I see running processes?", "What is my name?", "Thanks."]

    def ask(question):
        return server.post(CHAT, {"messages": user(question), "temperature": 0, "max_tokens": 40})["choices"][0]["message"]["content"]

    alone = [ask(question) for question in questions]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, questions * 4))
    assert together == alone * 4


def test_a_client_that_leaves_during_a_prompt_stops_it(server):
    body = json.dumps({"prompt": [7 + i % 5000 for i in range(2000)], "max_tokens": 40, "ignore_eos": True}).encode()
    before = server.metrics()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        server.wait_for(lambda metrics: metrics["edgewise_running_prefill"] + metrics["edgewise_queue_length"] > 0
                        or metrics["edgewise_submitted_total"] > before["edgewise_submitted_total"])
    after = server.wait_for(lambda metrics: metrics["edgewise_requests_open"] == 0)
    assert after["edgewise_clients_gone_total"] == before["edgewise_clients_gone_total"] + 1
    # One step was under way when it left, and at most one more had been begun when that became known.
    computed = after["edgewise_prefill_tokens_total"] - before["edgewise_prefill_tokens_total"]
    assert computed <= 2 * 512, f"{computed} of 2000 tokens were computed"
    assert after["edgewise_decode_tokens_total"] == before["edgewise_decode_tokens_total"]
    assert after["edgewise_kv_blocks_used"] == 0


def test_metrics_are_well_formed(server):
    server.post(CHAT, {"messages": user("Hello!"), "max_tokens": 4})
    status, headers, body = server.request("GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    typed, last = {}, ""
    for line in body.decode().splitlines():
        kind, name, rest = line.split(" ", 2) if line.startswith("#") else ("", *line.split(" "))
        if line.startswith("# TYPE "):
            name, what = rest.split(" ")
            assert name not in typed
            typed[name] = what
        elif not line.startswith("#"):
            base = re.sub(r"\{.*", "", name)
            family = re.sub(r"_(bucket|sum|count)$", "", base) if base not in typed else base
            assert family in typed and (family == last or typed[family] != "counter" or base.endswith("_total"))
            float(rest)
            last = family
    assert {"edgewise_ttft_seconds", "edgewise_itl_seconds", "edgewise_e2e_seconds", "edgewise_batch_size",
            "edgewise_kv_blocks_free", "edgewise_preemptions_total", "edgewise_queue_length",
            "edgewise_process_resident_bytes"} <= set(typed)
    metrics = server.metrics()
    assert metrics["edgewise_kv_blocks"] == (metrics["edgewise_kv_blocks_used"] + metrics["edgewise_kv_blocks_reusable"] +
                                             metrics["edgewise_kv_blocks_free"])
    assert metrics["edgewise_ttft_seconds_count"] >= 1 and metrics["edgewise_batch_size_sum"] > 0


def test_health_and_readiness(server):
    assert server.get("/health") == {"status": "ok"}
    assert server.get("/ready") == {"status": "ready"}


def test_curl(server):
    try:
        curl = ["curl", "-sS", "--fail-with-body", "-H", "Content-Type: application/json"]
        reply = subprocess.run([*curl, server.url + CHAT, "-d", json.dumps({"messages": user("Hello!"), "temperature": 0})],
                               capture_output=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("there is no curl")
    assert reply.returncode == 0, reply.stderr
    assert json.loads(reply.stdout)["choices"][0]["message"]["content"] == "Hello!"
    stream = subprocess.run([*curl, "-N", server.url + TEXT, "-d", json.dumps({"prompt": "The", "stream": True, "max_tokens": 1})],
                            capture_output=True, timeout=60, check=False)
    assert stream.stdout.endswith(b"data: [DONE]\n\n") and stream.stdout.count(b"\n\n") == 3


# ---- limits -----------------------------------------------------------------------------------------------------------


def slow(**more):
    return {"prompt": "The", "max_tokens": 2000, "ignore_eos": True, **more}


def test_an_answer_that_takes_too_long_says_so():
    server = served.Server("--request-timeout", "1", "--kernels", "reference")  # slow, so that it cannot be done in time
    error = server.post(TEXT, slow(), status=504)["error"]
    assert error["code"] == "deadline_exceeded" and error["type"] == "server_error"
    *talk, last = server.stream(TEXT, slow())  # the stream has begun, so the error is an event of it
    assert len(talk) > 3 and last["error"]["code"] == "deadline_exceeded"
    assert server.stop() == 0


def test_a_full_queue_is_told_and_nothing_is_lost():
    server = served.Server("--batch", "1", "--queue", "1")
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: server.request("POST", TEXT, slow(max_tokens=200)), range(12)))
    assert {status for status, _, _ in replies} == {200, 429}
    for status, headers, body in replies:
        if status == 429:
            assert json.loads(body)["error"]["code"] == "queue_full" and int(headers["Retry-After"]) >= 1
        else:
            assert json.loads(body)["usage"]["completion_tokens"] == 200
    metrics = server.metrics()
    assert metrics["edgewise_refused_total"] == sum(status == 429 for status, _, _ in replies)
    assert server.stop() == 0


@pytest.mark.parametrize("n", range(300, 620, 32))
def test_a_failed_allocation_costs_one_request_at_most(n):
    try:
        server = served.Server("--threads", "1", "--batch", "2", "--ctx", "512", env={"EW_ALLOC_FAIL_AT": str(n)})
    except AssertionError as error:
        assert "did not start" in str(error) and "memory" in str(error)
        return
    bodies = [(CHAT, {"messages": [SYSTEM, *user("free memory?")], "tools": TOOLS, "temperature": 0, "stream": True,
                      "logprobs": True, "top_logprobs": 2}),
              (TEXT, {"prompt": [5] * 70, "n": 3, "max_tokens": 3, "stop": "zz", "logprobs": 1}),
              ("/tokenize", {"prompt": "x"}), (TEXT, {"prompt": "a", "max_tokens": 2})]
    statuses = []
    for path, body in bodies:
        try:
            statuses.append(server.request("POST", path, body)[0])
        except (http.client.HTTPException, ConnectionError):
            statuses.append(None)
    assert sum(status != 200 for status in statuses) <= 1 and set(statuses) <= {200, 413, 503, None}, server.log
    after = None
    for _ in range(2):  # it strikes once, maybe the metrics themselves
        with contextlib.suppress(http.client.HTTPException, ConnectionError):
            after = after or server.wait_for(lambda metrics: metrics.get("edgewise_requests_open") == 0)
    assert after["edgewise_kv_blocks_used"] == 0
    assert server.stop() == 0


def test_priorities_and_users_are_taken(server):
    server.post(TEXT, {"prompt": "x", "max_tokens": 1, "priority": -5, "user": "somebody"})


# ---- the start --------------------------------------------------------------------------------------------------------


def test_a_profile_sets_what_options_do_not():
    server = served.Server("--profile", "rtx-pro-4000", "--batch", "4", "--memory-budget", "2G")
    assert "profile rtx-pro-4000" in server.log and "fp8" in server.log and "in steps of 4" in server.log
    assert server.metrics()["edgewise_running_max"] == 8
    assert server.stop() == 0


@pytest.mark.parametrize("arguments, why", [
    ([], "no model is given"),
    (["-m", "DEMO", "-m", "DEMO"], "one process serves one"),
    (["-m", "DEMO", "--profile", "abacus"], "abacus"),
    (["-m", "DEMO", "--sessions", "2", "--batch", "4"], "--sessions is 2"),
    (["-m", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
    (["-m", "DEMO", "--tokenizer", "/nowhere/vocabulary.gguf"], "/nowhere/vocabulary.gguf"),
])
def test_what_cannot_be_served_says_why(arguments, why):
    demo = str(served.demo())
    result = support.run("serve", "--port", "0", *[demo if word == "DEMO" else word for word in arguments])
    assert result.returncode != 0 and why in result.stderr.decode()


def test_a_model_without_a_tokenizer_takes_token_ids():
    server = served.Server("--memory-budget", "1G", "--ctx", "256", model=support.need("fixtures/models/qwen3"))
    reply = server.post(TEXT, {"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0})
    assert reply["usage"]["completion_tokens"] == 4
    assert server.post(TEXT, {"prompt": "x"}, status=400)["error"]["param"] == "prompt"
    assert server.post(CHAT, {"messages": user("x")}, status=400)["error"]["code"] in ("no_tokenizer", "no_chat_template")
    assert server.post("/tokenize", {"prompt": "x"}, status=400)["error"]["code"] == "no_tokenizer"
    assert server.stop() == 0


def test_the_vocabulary_of_another_model():
    server = served.Server("--tokenizer", served.demo(), "--ctx", "64", model="synthetic:0.6b:q4_0")
    ids = server.post("/tokenize", {"prompt": "Hello there"})["tokens"]
    assert server.post(TEXT, {"prompt": "Hello there", "max_tokens": 2})["usage"]["prompt_tokens"] == len(ids)
    assert server.post(CHAT, {"messages": user("Hello"), "max_tokens": 2, "ignore_eos": True})["usage"]["completion_tokens"] == 2
    assert server.stop() == 0
    small = support.need("fixtures/models/qwen3")
    result = support.run("serve", "-m", small, "--tokenizer", served.demo())
    assert result.returncode != 0 and "8192 tokens" in result.stderr.decode()
