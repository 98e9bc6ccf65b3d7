"""The CUDA backend, on a GPU that is emulated (tests/mock: the same kernels compiled for the CPU behind a libcuda.so.1 of our
own) or, with EW_TEST_GPU=1, on the real one: every fixture, and what becomes of errors at every call of the driver."""
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess

import models_table
import pytest
import served
import support
import test_models

IS_REAL = bool(os.environ.get("EW_TEST_GPU"))
MOCK = support.ROOT / "build/tests/mock/libcuda.so.1"
GREEDY_OFF = test_models.LOGITS_ONLY
# Prompts round activations to bf16. Of a token whose experts are nearly a tie, as is common where weights are random, that may
# choose another one: these have such a token.
ROUTES_TIED = ["deepseek_v3", "gpt_oss_bf16", "llama4_text", "mixtral", "phimoe"]
# What delta nets of random weights read from a young state is close to nothing, and the norm behind it makes that large, with
# whatever was rounded: these models amplify by 19 (eval self) the 0.0017 that bf16 activations cost each product. With those of
# the product before the convolution alone in f32 they are within the limit (0.012 and 0.011), which is how one token at a time has them.
STATES_AMPLIFY = {"qwen3_5_text": ["--tol", "0.06"], "qwen3_next": ["--tol", "0.06"]}


@pytest.fixture(scope="session")
def cuda():
    """The environment in which --backend cuda finds its driver."""
    if IS_REAL:
        return {}
    ninja = shutil.which("ninja")
    made = ninja and subprocess.run([ninja, "-C", support.ROOT / "build", "mock_cuda"], capture_output=True).returncode == 0
    if not made:
        pytest.skip("there is no emulated GPU: clang or libffi is missing (tools/setup test installs them)")
    return {"LD_LIBRARY_PATH": str(MOCK.parent), "CUDA_CACHE_DISABLE": "1"}  # nothing is left behind


def evaluate(cuda, model, ref, *options):
    return support.run("eval", "logits", "-m", model, "--ref", ref, "--backend", "cuda", *options, env=cuda, timeout=300)


def check(cuda, model, ref, *options):
    result = evaluate(cuda, model, ref, *options)
    assert result.returncode == 0, (result.stderr + result.stdout[-600:]).decode()


@pytest.mark.parametrize("name", test_models.fixtures("models", test_models.FAMILIES))
def test_checkpoint(cuda, name):
    model = support.need(f"fixtures/models/{name}")
    ref = model / "ref.safetensors"
    if name in STATES_AMPLIFY:
        check(cuda, model, ref, "--mode", "token")
    check(cuda, model, ref, "--mode", "batch", *STATES_AMPLIFY.get(name, []), *(["--logits-only"] if name in GREEDY_OFF else []))
    check(cuda, model, ref, "--mode", "chunk5", "--logits-only", "--kernels", "reference", "--kv", "f32")
    models_table.note(name, "CUDA", "yes")


@pytest.mark.parametrize("name", ROUTES_TIED)
def test_other_experts_are_excused_by_ties_alone(cuda, name):
    """What is left of the difference, once a choice or two are the reference's, is rounding; no tolerance, no tie."""
    model = support.need(f"fixtures/models/{name}")
    options = ["--mode", "batch", "--logits-only"]
    result = evaluate(cuda, model, model / "ref.safetensors", *options)
    tied = [case for case in json.loads(result.stdout)["cases"] if "route_ties" in case]
    assert result.returncode == 0 and len(tied) == 1 and 1 <= tied[0]["route_ties"] <= 2
    assert tied[0]["rel"] > 0.02 > 0.01 > tied[0]["rel_aligned"]
    assert evaluate(cuda, model, model / "ref.safetensors", *options, "--tol", "0.001").returncode == 1


@pytest.mark.parametrize("name", test_models.fixtures("models", test_models.VECTORS))
def test_vectors(cuda, name):
    model = support.need(f"fixtures/models/{name}")
    check(cuda, model, model / "ref.safetensors")
    check(cuda, model, model / "ref.safetensors", "--kernels", "reference", "--kv", "f32")
    models_table.note(name, "CUDA", "yes")


@pytest.mark.parametrize("name", ["nemotron_h", "qwen3_5_text"])
def test_states_are_taken_up_again(cuda, name):
    """Prompts that go on where others ended, or parted from them, against a server that keeps nothing."""
    model, shared = support.need(f"fixtures/models/{name}"), [(7 * i) % 311 + 3 for i in range(42)]
    prompts = [shared[:36], shared, [*shared[:34], 5, 9, 4]]
    options = "--backend", "cuda", "--kernels", "reference", "--kv", "f32", "--kv-block", "8", "--no-self-test"
    answers = []
    for extra in ((), ("--no-reuse",)):
        server = served.Server(*options, *extra, model=model, env=cuda)
        try:
            replies = [server.post("/v1/completions", {"prompt": prompt, "max_tokens": 2, "temperature": 0, "logprobs": 1}) for prompt in prompts]
            answers.append([reply["choices"][0]["logprobs"]["token_logprobs"] for reply in replies])
            reused = sum(reply["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0) for reply in replies)
        finally:
            assert server.stop() == 0
        assert (reused > 0) == (not extra)
    for kept, fresh in zip(*answers):
        assert max(abs(a - b) for a, b in zip(kept, fresh)) < 1e-3


@pytest.mark.parametrize("kv", ["f32", "f16", "fp8", "int8"])
def test_attention_over_latents(cuda, kv, tmp_path):
    """DeepSeek's first layer, which has no experts."""
    model = support.need("fixtures/models/deepseek_v3_yarn")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    (tmp_path / "model.safetensors").symlink_to(model / "model.safetensors")
    ids = " ".join(map(str, range(5, 155)))  # three tiles of keys
    answers = [support.run_ok("run", "-m", tmp_path, "--backend", backend, "--kernels", "reference", "--kv", kv, "--temp", "0", "-n", "12",
                              "--ids", ids, env=cuda) for backend in ("cpu", "cuda")]
    assert answers[0] == answers[1]
    support.run_ok("eval", "self", "-m", tmp_path, "--backend", "cuda", "--kv", kv, env=cuda)


def test_latents_of_the_size_that_models_have(cuda, tmp_path):
    """512 elements and 64 that rotate, and heads that no block's sixteen divide; the fixtures' are smaller."""
    np = pytest.importorskip("numpy")
    config = json.loads((support.need("fixtures/models/deepseek_v3") / "config.json").read_text())
    heads, latent, rotated, plain, values, width = 20, 512, 64, 128, 128, 64
    config |= {"num_hidden_layers": 1, "num_attention_heads": heads, "kv_lora_rank": latent, "qk_rope_head_dim": rotated, "q_lora_rank": None,
               "qk_nope_head_dim": plain, "v_head_dim": values}
    rng, layer = np.random.default_rng(1), "model.layers.0."
    sizes = {"model.embed_tokens": (320, width), "lm_head": (320, width), layer + "self_attn.q_proj": (heads * (plain + rotated), width),
             layer + "self_attn.kv_a_proj_with_mqa": (latent + rotated, width), layer + "self_attn.kv_b_proj": (heads * (plain + values), latent),
             layer + "self_attn.o_proj": (width, heads * values), layer + "mlp.gate_proj": (96, width), layer + "mlp.up_proj": (96, width),
             layer + "mlp.down_proj": (width, 96)}
    norms = {"model.norm": width, layer + "input_layernorm": width, layer + "post_attention_layernorm": width, layer + "self_attn.kv_a_layernorm": latent}
    tensors = {f"{name}.weight": (rng.standard_normal(size) / size[1] ** 0.5).astype(np.float32) for name, size in sizes.items()}
    tensors |= {f"{name}.weight": np.ones(size, np.float32) for name, size in norms.items()}
    test_models.write_checkpoint(tmp_path / "model", config, tensors)
    ids, n = " ".join(map(str, range(5, 80))), 6 if IS_REAL else 2
    answers = [support.run_ok("run", "-m", tmp_path / "model", "--backend", backend, "--temp", "0", "-n", n, "--ids", ids, "--no-self-test", env=cuda)
               for backend in ("cpu", "cuda")]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", test_models.fixtures("gguf", test_models.GGUF))
def test_gguf(cuda, name):
    model = support.need(f"fixtures/gguf/{name}")
    check(cuda, model, model.with_suffix(".ref.safetensors"), "--mode", "all" if name == "llama-q4_k_m.gguf" else "batch")


def test_answers_as_the_cpu_does(cuda):
    options = ["run", "-m", "demo", "-p", "What is the capital of France?", "-n", "8", "--temp", "0"]
    assert support.run_ok(*options, "--backend", "cuda", env=cuda) == support.run_ok(*options, "--backend", "cpu")


# Whose products round nothing but activations, to f16.
FLOATS = ["fp8", "fp8_channel"]
# Of each layout one; with EW_LONG=1, each form of scales too.
INTEGERS = ["q3_k", "q5_k", "q6_k", "mxfp4", "gptq_act"]
INTEGERS += ["awq", "q5_0", "iq4_xs", "nvfp4"] if os.environ.get("EW_LONG") else []


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_weights_at_their_own_width(cuda, dtype):
    """Each op of a small model with rows that the kernels' runs of columns do not divide, prompts and steps of two sequences."""
    model = f"synthetic:tiny:{dtype}"
    assert support.run_json("eval", "self", "-m", model, "--backend", "cuda", "--json", env=cuda)["pass"]
    said = support.run("run", "-m", model, "--ids", "5 6 7", "-n", "1", "--backend", "cuda", "-v", "--no-self-test", env=cuda).stderr
    assert b"expanded" not in said


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_sequence_at_its_own_width(cuda, dtype):
    options = ["run", "-m", f"synthetic:tiny:{dtype}", "--ids", " ".join(map(str, range(5, 25))), "-n", 30 if IS_REAL else 10, "--temp", "0",
               "--no-self-test"]
    answers = [support.run_ok(*options, *how, env=cuda) for how in (["--backend", "cuda"], ["--backend", "cpu", "--kernels", "reference"])]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype", ["q6_k"])
def test_one_sequence_of_quantised_files(cuda, dtype, tmp_path):
    """Rounding decides the distance from the reference, which is of the unrounded model, and is the CPU's."""
    model = support.need("fixtures/gguf/llama-f16.gguf")
    support.run_ok("quantize", model, tmp_path / "model.gguf", "--to", dtype)
    ref = model.with_suffix(".ref.safetensors")
    rels = [json.loads(support.run("eval", "logits", "-m", tmp_path / "model.gguf", "--ref", ref, "--backend", backend, "--mode", "token",
                                   "--logits-only", "--json", env=cuda).stdout)["rel"] for backend in ("cpu", "cuda")]
    assert rels[0] == pytest.approx(rels[1], rel=0.05)


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_experts_of_a_quantised_file(cuda, dtype, tmp_path):
    support.run_ok("quantize", support.need("fixtures/models/mixtral"), tmp_path / "model.gguf", "--to", dtype)
    assert support.run_json("eval", "self", "-m", tmp_path / "model.gguf", "--backend", "cuda", "--json", env=cuda)["pass"]


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_chosen_experts_of_one_token(cuda, dtype, tmp_path):
    """Decode of one sequence computes a layer's experts in a kernel of its own, where their rows are long enough for it."""
    support.run_ok("quantize", support.need("fixtures/models/gpt_oss_bf16"), tmp_path / "model.gguf", "--to", dtype)
    ref = support.need("fixtures/models/gpt_oss_bf16/ref.safetensors") # of other weights: both differ from it alike
    # On AMX another expert is chosen at one place: a tie.
    rels = [json.loads(support.run("eval", "logits", "-m", tmp_path / "model.gguf", "--ref", ref, "--backend", *how, "--mode", "token",
                                   "--logits-only", "--json", env=cuda).stdout)["rel"] for how in (["cpu", "--cpu-max", "avx2"], ["cuda"])]
    assert rels[0] == pytest.approx(rels[1], rel=0.05) # attention of few tokens rounds on the GPU


# One kernel for gates and sums in one layout, two where they differ (q4_k_m).
CHOSEN = {"q8_0": ["i8"], "q4_k_m": ["u4_min", "u6"], "mxfp4": ["table"]}
if os.environ.get("EW_LONG"):
    CHOSEN |= {"bf16": ["bf16"], "f16": ["f16"], "q4_0": ["u4"], "fp8": ["f8"], "nvfp4": ["nv4"], "q5_0": ["u5"], "q5_k": ["u5_min"], "q3_k": ["table_16"]}


@pytest.mark.parametrize("dtype,layouts", CHOSEN.items())
def test_chosen_experts_in_their_layout(cuda, dtype, layouts):
    rows = support.run_json("bench", "kernels", "--backend", "cuda", "--check", "-m", f"synthetic:30b-a3b:{dtype}", "--filter", "chosen_|experts_",
                            "--json", env=cuda, timeout=300)["kernels"]
    names = {name for row in rows for name in row["kernels"].split()}
    assert all(row["pass"] for row in rows) and {f"chosen_{layout}" for layout in layouts} <= names and any(n.startswith("experts_") for n in names)


@pytest.mark.parametrize("model", ["fixtures/gguf/llama-q4_k_m.gguf", "fixtures/models/gemma3_text", "fixtures/models/qwen2_moe"])
def test_every_op_against_the_cpu(cuda, model):
    """Each op on the inputs that plain C on the CPU computed, then whole steps."""
    assert support.run_json("eval", "self", "-m", support.need(model), "--backend", "cuda", "--json", env=cuda)["pass"]


@pytest.mark.parametrize("settings", [
    "--temp 1.3 --top-p 0.97", "--temp 2 --top-p 1 --min-p 0.001", "--temp 1.5 --top-k 60", "--temp 1 --top-p 1",
    "--temp 1.3 --top-p 0.9 --top-k 60 --min-p 0.01 --repetition-penalty 1.2 --frequency-penalty 0.3 --presence-penalty 0.1",
])
def test_draws_as_the_cpu_does(cuda, settings):
    """The same random numbers lead to the same tokens, though the CPU's sampler never sees the GPU's logits."""
    for seed in (31, 32) if IS_REAL or os.environ.get("EW_LONG") else (31,):
        options = ["run", "-m", "demo", "-p", "How do I list files?", "-n", "5", "--seed", seed, "--kernels", "reference", "--kv", "f32",
                   "--no-self-test", *settings.split()]
        assert support.run_ok(*options, "--backend", "cuda", env=cuda) == support.run_ok(*options, "--backend", "cpu")


# ---- faults: emulated only ------------------------------------------------------------------------

emulated = pytest.mark.skipif(IS_REAL, reason="a real driver fails when it wants to")
SMALL = ["eval", "logits", "--backend", "cuda", "--mode", "token", "--logits-only"]


@emulated
def test_a_wrong_kernel_is_not_excused_by_other_experts(cuda):
    """What runs with the reference's choices are other kernels."""
    model = support.need("fixtures/models/qwen3_moe")
    result = evaluate({**cuda, "EW_MOCK_CUDA_BREAK": "chosen_bf16"}, model, model / "ref.safetensors", "--mode", "token", "--no-self-test")
    assert result.returncode == 1 and not json.loads(result.stdout)["pass"]


def first_case(ref, to):
    """Of a file of references the first case's ids and logits: seven tokens, and every kind of step that the others have."""
    data = ref.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header, kept, body = json.loads(data[8:start]), {}, b""
    for name in ("input_ids_0", "logits_0"):
        first, last = header[name]["data_offsets"]
        kept[name] = header[name] | {"data_offsets": [len(body), len(body) + last - first]}
        body += data[start + first:start + last]
    text = json.dumps(kept).encode()
    to.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return to


@pytest.fixture(scope="session")
def small_run(cuda, tmp_path_factory):
    """Runs a small model on a few tokens: hundreds of times, to see one call fail."""
    model = support.need("fixtures/gguf/llama-q8_0.gguf")
    ref = first_case(model.with_suffix(".ref.safetensors"), tmp_path_factory.mktemp("ref") / "ref.safetensors")
    return lambda **env: support.run(*SMALL, "-m", model, "--ref", ref, env={**cuda, **env})


@pytest.fixture(scope="session")
def calls(small_run, tmp_path_factory):
    """How often a small run calls each function of the driver."""
    path = tmp_path_factory.mktemp("mock") / "calls"
    assert small_run(EW_MOCK_CUDA_CALLS=str(path)).returncode == 0
    return {name: int(n) for name, n in (line.split() for line in path.read_text().splitlines())}


# Where one of these fails, cuMemAlloc is asked instead.
MAPPING = "cuMemGetAllocationGranularity|cuMemAddressReserve|cuMemCreate|cuMemMap|cuMemSetAccess"


@emulated
@pytest.mark.parametrize("error", [2, 700])
def test_every_call_may_fail(small_run, calls, error):
    """The first and last call of each function, one at a time: a sentence that names the driver's error, never a death."""
    assert len(calls) >= 20
    for name, n in calls.items():
        for at in sorted({1, n}):
            result = small_run(EW_MOCK_CUDA_FAIL=f"{name}:{at}:{error}")
            text = result.stderr.decode()
            spared = re.search("Free|Destroy|Unload|Release|SetCurrent|CtxSynchronize|GetErrorName|Unmap", name) and result.returncode == 0
            spared = spared or (error == 2 and re.search(MAPPING, name) and result.returncode == 0)
            assert spared or (result.returncode == 1 and "edgewise: " in text and f"({error})" in text), f"{name}, call {at}: {text}"


@emulated
@pytest.mark.parametrize("env,expected", [
    ({"EW_MOCK_CUDA_DEVICES": "0"}, "sees no GPU"),
    ({"EW_MOCK_CUDA_DRIVER": "11020"}, "11.4 is the oldest"),
    ({"EW_MOCK_CUDA_CC": "75"}, "compute capability 7.5"),
    ({"EW_MOCK_CUDA_MEMORY": "1000000"}, "memory"),
    ({"EW_MOCK_CUDA_FAIL": "cuInit:1:100"}, "CUDA_ERROR_NO_DEVICE (100)"),
])
def test_boxes_that_will_not_do(small_run, env, expected):
    result = small_run(**env)
    assert result.returncode == 1 and expected in result.stderr.decode()


@emulated
@pytest.mark.parametrize("env,maps,plain", [
    ({}, True, False),
    ({"EW_MOCK_CUDA_VMM": "0"}, False, True),                         # an older GPU or driver
    ({"EW_MOCK_CUDA_RESERVE": "0"}, False, True),                     # reserves no addresses
    ({"EW_MOCK_CUDA_FAIL": "cuMemCreate:2:801"}, True, True),         # maps one part and no more
    ({"EW_MOCK_CUDA_FAIL": "cuMemSetAccess:0:801"}, True, True),
])
def test_memory_is_mapped_or_taken_in_one_piece(small_run, tmp_path, env, maps, plain):
    """What is mapped is given back, and a driver that maps none or stops doing so is asked for whole pieces."""
    path = tmp_path / "calls"
    result = small_run(EW_MOCK_CUDA_CALLS=str(path), **env)
    assert result.returncode == 0, result.stderr.decode()
    n = {name: int(n) for name, n in (line.split() for line in path.read_text().splitlines())}
    assert (n.get("cuMemMap", 0) > 0) == maps and (n.get("cuMemAlloc_v2", 0) > 0) == plain
    assert n.get("cuMemAddressFree", 0) == (0 if not maps else n["cuMemAddressReserve"])
    assert n.get("cuMemFree_v2", 0) == n.get("cuMemAlloc_v2", 0)
    assert n.get("cuMemRelease", 0) == n.get("cuMemMap", 0)


@emulated
@pytest.mark.parametrize("at", [1, 4, 8])
@pytest.mark.parametrize("driver,call", [("11080", "cuModuleLoadDataEx"), ("12080", "cuLibraryLoadData")])
def test_a_tier_that_the_driver_refuses_is_left_out(cuda, driver, call, at):
    result = support.run("run", "-v", "-m", "demo", "--ids", "1 2 3", "-n", "1", "--temp", "0", "--backend", "cuda", "--no-self-test",
                         env={**cuda, "EW_MOCK_CUDA_CC": "100", "EW_MOCK_CUDA_DRIVER": driver, "EW_MOCK_CUDA_FAIL": f"{call}:{at}:218"})
    text = result.stderr.decode()
    refused = re.search(r"kernels of (\w+)\.sm_90\.ptx are not used", text)
    assert result.returncode == (0 if refused else 1) and "CUDA_ERROR_INVALID_PTX (218)" in text
    assert not refused or f"kernels of {refused[1]}.ptx, " in text


@emulated
def test_where_compiled_kernels_are_kept(cuda, tmp_path):
    clean = {"LD_LIBRARY_PATH": cuda["LD_LIBRARY_PATH"], "HOME": str(tmp_path), "XDG_CACHE_HOME": ""}

    def start(*options, **env):
        result = support.run("run", "-v", "-m", "demo", "--ids", "1", "-n", "1", "--backend", "cuda", "--no-self-test", *options, env=clean | env)
        return result.returncode, result.stderr.decode()

    code, text = start()
    assert code == 0 and f"compiled kernels are kept in {tmp_path}/.cache/edgewise" in text
    assert (tmp_path / ".cache/edgewise").stat().st_mode & 0o777 == 0o700
    assert "CUDA_CACHE_DISABLE=1 tells the driver" in start(CUDA_CACHE_DISABLE="1")[1]
    open_to_all = tmp_path / "all"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for code, text in (start("--cache", str(open_to_all)), start(EDGEWISE_CACHE=str(open_to_all))):
        assert code == 1 and "everybody may write into" in text


@emulated
def test_steps_are_done_in_the_way_that_proves_fastest(cuda):
    def answer(**env):
        result = support.run("run", "--debug", "-m", "synthetic:tiny:q8_0", "--ids", "5 6 7", "-n", "96", "--temp", "0", "--ignore-eos",
                             "--backend", "cuda", "--no-self-test", env={**cuda, **env})
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout, [line for line in result.stderr.decode().splitlines() if "steps of 1 tokens" in line]

    tokens, told = answer()
    assert told == []  # there is one way without programmatic launches
    for us, way in (("3", "every kernel in its turn;"), ("-3", "every kernel early")):
        same, told = answer(EW_MOCK_CUDA_CC="100", EW_MOCK_CUDA_DRIVER="12080", EW_MOCK_CUDA_EARLY_US=us)
        assert same == tokens and len(told) == 1 and way in told[0]


@emulated
def test_the_warm_up_lasts_until_a_way_is_chosen(cuda):
    """What bench speed measures are steps that all go the same way: 66 decide on it where there are 14."""
    def warm_up(**env):
        env = {**cuda, "EW_MOCK_CUDA_MEMORY": "60000000", **env}  # too little to measure its speed with, which takes minutes here
        result = support.run_json("bench", "speed", "-m", "synthetic:tiny:q8_0", "-p", "8", "-n", "6", "-r", "1", "--backend", "cuda",
                                  "--no-self-test", "--json", env=env)
        assert result["limit_gb_s"] is None
        return result["warmup_tokens"]

    assert warm_up() == 6
    assert warm_up(EW_MOCK_CUDA_CC="100", EW_MOCK_CUDA_DRIVER="12080") in (66, 72)


@emulated
@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is absent: no NVML to imitate")
def test_bench_speed_says_when_the_power_limit_holds_clocks_down(cuda, tmp_path):
    def speed(held, *options):
        support.fake_library(tmp_path, "libnvidia-ml.so.1", """
#include <time.h>
static unsigned long long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)1; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *mj) { *mj = now() / 10000; return 0; }
struct violation { unsigned long long reference, time; };
int nvmlDeviceGetViolationStatus(void *d, int policy, struct violation *v) { v->time = policy == 0 ? HELD : now(); return 0; }
""".replace("HELD", held))
        env = {**cuda, "EW_MOCK_CUDA_MEMORY": "60000000", "LD_LIBRARY_PATH": f"{cuda['LD_LIBRARY_PATH']}:{tmp_path}"}
        return support.run_ok("bench", "speed", "-m", "synthetic:tiny:q8_0", "-p", "1", "-n", "4", "-r", "1", "--backend", "cuda",
                              "--no-self-test", "--no-warmup", *options, env=env)

    told = speed("5000000000 + now() / 2").decode()
    assert 40 < int(re.search(r"clocks +(\d+) %       of the time of decoding held down by the GPU's power limit", told)[1]) < 60
    assert json.loads(speed("7", "--json"))["power_held_share"] == 0


@emulated
def test_a_gpu_without_memory_of_its_own(cuda):
    """Its driver calls little free; the budget is what the machine has."""
    env = {"EW_MOCK_CUDA_MEMORY": "10485760", "EW_MOCK_CUDA_VMM": "0"}
    options = ["run", "-m", "demo", "-p", "ls", "-n", "1", "--backend", "cuda"]
    refused = support.run(*options, env={**cuda, **env})
    assert refused.returncode == 1 and "memory budget is 10 MiB" in refused.stderr.decode()
    message = support.run(*options, env={**cuda, **env, "EW_MOCK_CUDA_INTEGRATED": "1"}).stderr.decode()
    assert "budget is" not in message and "the GPU has too little memory left" in message  # nor has the pretended one more


@emulated
def test_the_context_counts_against_the_budget(cuda):
    options = ["run", "-m", "demo", "-p", "hi", "-n", "1", "--backend", "cuda", "--memory-budget", "60M"]
    assert support.run(*options, env=cuda).returncode == 0
    result = support.run(*options, env={**cuda, "EW_MOCK_CUDA_HELD": "40000000"})
    assert result.returncode == 1 and "workspace and driver" in result.stderr.decode()


@emulated
def test_a_server_outlives_its_gpu(cuda):
    """The GPU is lost in the middle of an answer: this one and all later ones fail with the reason, and /health says it."""
    server = served.Server("--backend", "cuda", "--ctx", "256", "--no-self-test", env={**cuda, "EW_MOCK_CUDA_FAIL": "cuGraphLaunch:4:719"})
    body = {"model": "demo", "prompt": "ls", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    try:
        assert server.get("/health") == {"status": "ok"}
        for _ in range(2):
            message = server.post("/v1/completions", body, 500)["error"]["message"]
            assert "CUDA_ERROR_LAUNCH_FAILED (719)" in message and "Restart edgewise" in message
            assert "719" in server.get("/health", 503)["error"]["message"]
        assert server.get("/v1/models")["data"][0]["id"] == "demo"
    finally:
        assert server.stop() == 0


@emulated
def test_running_streams_end_with_the_reason(cuda):
    """The GPU is lost while several answers are on their way: each stream has text, then one error, and ends."""
    server = served.Server("--backend", "cuda", "--ctx", "256", "--no-self-test", env={**cuda, "EW_MOCK_CUDA_FAIL": "cuGraphLaunch:6:719"})
    body = {"model": "demo", "prompt": "ls", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True}
    try:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            replies = list(pool.map(lambda _: server.request("POST", "/v1/completions", body, timeout=120), range(3)))
        for status, _, reply in replies:
            events = reply.decode().rstrip().split("\n\n")
            assert status in (200, 500) and sum('"error"' in event for event in events) == 1, reply
            assert "CUDA_ERROR_LAUNCH_FAILED (719)" in events[-1] + events[-2 if len(events) > 1 else -1]
        assert any(status == 200 and b'"text"' in reply for status, _, reply in replies)
        assert "719" in server.get("/health", 503)["error"]["message"]
    finally:
        assert server.stop() == 0


def test_departures_and_the_drain(cuda):
    """Who leaves in the middle frees its place at once; SIGTERM lets the others have their whole answers."""
    server = served.Server("--backend", "cuda", "--ctx", "256", "--batch", "2", "--drain-timeout", "300", "--no-self-test", env=cuda)
    n = 200 if IS_REAL else 8  # long enough to be seen running
    body = {"model": "demo", "prompt": "ls", "max_tokens": n, "temperature": 0, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as leaving:
            leaving.request("POST", "/v1/completions", json.dumps(dict(body, max_tokens=200, stream=True)), {})
            assert leaving.getresponse().readline().startswith(b"data: ")
        server.wait_for(lambda metrics: metrics['edgewise_answers_total{finish="cancelled"}'] == 1, 60)
        answers = [pool.submit(server.request, "POST", "/v1/completions", body, None, 120) for _ in range(2)]
        server.wait_for(lambda metrics: metrics["edgewise_running_prefill"] + metrics["edgewise_running_decode"] == 2, 60)
        server.process.terminate()
        replies = [json.loads(answer.result()[2]) for answer in answers]
    assert server.process.wait(60) == 0
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [n, n]


# ---- the self-test: emulated only, for a real GPU is right ------------------------------------------

@emulated
@pytest.mark.parametrize("kernel", ["append", "attention_4", "decode_f16_64", "embed", "flash_f16_64", "gemm_f16", "linear_i8_8", "norm", "pick_draw",
                                    "quantise", "rope", "some_i8_32", "vector_i8"])
def test_a_wrong_kernel_is_not_served_with(cuda, kernel):
    """The first block of one kernel does nothing: the server does not start and says which kernel it is and what to do."""
    result = support.run("serve", "-m", "demo", "--port", "0", "--backend", "cuda", "--batch", "1", env={**cuda, "EW_MOCK_CUDA_BREAK": kernel})
    text = result.stderr.decode()
    assert result.returncode == 1 and re.search(rf"the GPU's kernels [a-z0-9_ ]*\b{kernel}\b[a-z0-9_ ]* wrong", text), text
    assert "--backend cpu" in text and "--no-self-test" in text


# A GPU whose mma.sync has e4m3.
WITH_E4M3 = {"EW_MOCK_CUDA_CC": "89", "EW_MOCK_CUDA_DRIVER": "12040"}


@emulated
@pytest.mark.parametrize("dtype", ["fp8", "fp8_channel"])
def test_prompts_in_e4m3(cuda, dtype):
    """The self-test has steps of more than 64 tokens, whose products take activations in e4m3: within what that costs, and wrong where it is."""
    command = ["run", "-m", f"synthetic:tiny:{dtype}", "--backend", "cuda", "--ids", "5 6 7", "-n", "1", "--temp", "0", "--debug"]
    text = support.run(*command, env={**cuda, **WITH_E4M3}).stderr.decode()
    errors = [float(error) for error in re.findall(r"self-test: (?:narrow_f8 )?gemm_f8 \(.*\) ([0-9.e-]+) of 0.05", text)]
    assert len(errors) == 7 and all(0.01 < error < 0.03 for error in errors), text
    assert "gemm_f8" not in support.run(*command, env={**cuda, **WITH_E4M3, "EW_CUDA_TIER": "sm_80"}).stderr.decode()
    result = support.run(*command, env={**cuda, **WITH_E4M3, "EW_MOCK_CUDA_BREAK": "gemm_f8"})
    assert result.returncode == 1 and b"gemm_f8" in result.stderr


@emulated
def test_a_block_that_others_wait_for_is_missed(cuda):
    """The blocks of chosen_bf16 wait for each other, here in vain: the emulator ends them, and the self-test sees what is missing."""
    result = support.run("run", "-m", support.need("fixtures/models/qwen3_moe"), "--backend", "cuda", "--ids", "5 6 7", "-n", "1",
                         env={**cuda, "EW_MOCK_CUDA_BREAK": "chosen_bf16"})
    assert result.returncode == 1 and b"chosen_bf16 wrong" in result.stderr


@emulated
def test_chosen_experts_do_not_wait_for_each_other_under_mps(cuda, tmp_path):
    """Another process may hold the multiprocessors that a block waits for: gates and sums are two kernels there."""
    (tmp_path / "control").touch()
    rows = support.run_json("bench", "kernels", "--backend", "cuda", "--check", "-m", "synthetic:30b-a3b:q8_0", "--filter", "chosen_", "--json",
                            env={**cuda, "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}, timeout=300)["kernels"]
    assert rows and all(row["pass"] and row["kernels"] == "chosen_i8 chosen_i8" for row in rows)


@emulated
def test_the_self_test_can_be_left_out(cuda):
    command = ["run", "-m", "demo", "--backend", "cuda", "--ids", "5 6 7", "-n", "1", "-v"]
    assert b"self-test" in support.run(*command, env=cuda).stderr
    result = support.run(*command, "--no-self-test", env={**cuda, "EW_MOCK_CUDA_BREAK": "rope"})
    assert result.returncode == 0 and b"self-test" not in result.stderr


# A GPU whose blocks come in clusters, with a driver that can start them, and room for more blocks than there are keys.
WITH_CLUSTERS = {"EW_MOCK_CUDA_CC": "100", "EW_MOCK_CUDA_DRIVER": "12080", "EW_MOCK_CUDA_MULTIPROCESSORS": "16"}


@emulated
@pytest.mark.parametrize("kv", ["f16", "fp8", "int8"])
def test_clusters_of_blocks_attend(cuda, kv):
    """Blocks of a cluster, and clusters with each other, join what they found as single blocks do."""
    command = ["run", "-m", support.need("fixtures/models/gpt_oss_bf16"), "--backend", "cuda", "--ids", "5 6 7", "-n", "20", "--temp", "0",
               "--ignore-eos", "--kv", kv, "--debug"]
    alone, clusters = support.run(*command, "--no-self-test", env=cuda), support.run(*command, env={**cuda, **WITH_CLUSTERS})
    assert alone.returncode == clusters.returncode == 0, clusters.stderr.decode()
    assert alone.stdout == clusters.stdout
    assert re.search(rb"self-test: decode_[fi]\d+_64 \(attention, [0-9]+ cases\)", clusters.stderr), clusters.stderr.decode()


@emulated
def test_clusters_of_blocks_multiply(cuda):
    """Products of several rows, whose columns the check gives to one, two and four blocks of a cluster by turns."""
    result = support.run("bench", "kernels", "--backend", "cuda", "--check", "--filter", "few", "-m", "synthetic:tiny:q8_0", env={**cuda, **WITH_CLUSTERS})
    assert result.returncode == 0 and re.search(rb"ok .* few_i8_3", result.stdout), result.stdout.decode()


@emulated
@pytest.mark.parametrize("kernel", ["decode_f16_64", "few_i8_1"])
def test_a_block_of_a_cluster_is_missed(cuda, kernel):
    result = support.run("run", "-m", "demo", "--backend", "cuda", "--ids", "5 6 7", "-n", "1", env={**cuda, **WITH_CLUSTERS, "EW_MOCK_CUDA_BREAK": kernel})
    assert result.returncode == 1 and f"{kernel} wrong" in result.stderr.decode()


@emulated
@pytest.mark.parametrize("model", ["gemma3_text", "deepseek_v3", "gpt_oss_bf16", "qwen2_5_vl", "falcon_rw_alibi", "quant_fp8_ct_channel"])
def test_right_kernels_pass(cuda, model):
    result = support.run("run", "-m", support.need(f"fixtures/models/{model}"), "--backend", "cuda", "--ids", "5 6 7", "-n", "1", "-v", env=cuda)
    assert result.returncode == 0 and re.search(rb"self-test: \d+ sequences of kernels are right", result.stderr), result.stderr.decode()


@emulated
@pytest.mark.parametrize("cc,driver,expected", [("80", "11040", "sm_80: the GPU is sm_80"), ("89", "12020", "sm_80: the driver serves CUDA 12.2"),
                                                ("89", "12040", "sm_89: the GPU is sm_89"), ("90", "11080", "sm_80: the driver serves CUDA 11.8"),
                                                ("90", "12000", "sm_90a: the newest"), ("120", "13000", "sm_90: the GPU is sm_120")])
def test_doctor_says_which_kernels_run(cuda, cc, driver, expected):
    result = support.run("doctor", env={**cuda, "EW_MOCK_CUDA_CC": cc, "EW_MOCK_CUDA_DRIVER": driver})
    assert expected in result.stdout.decode()


def test_bench_kernels_of_a_kind(cuda):
    """--filter leaves what it finds, and every row names its kernels."""
    command = ["bench", "kernels", "--backend", "cuda", "--check", "-m", "synthetic:tiny:q8_0"]
    rows = support.run_json(*command, "--filter", "^rope |pick_draw", "--json", env=cuda)["kernels"]
    assert {row["op"] for row in rows} == {"rope", "sampling"} and all(row["pass"] and row["cases"] for row in rows)


@pytest.mark.skipif(not IS_REAL, reason="an emulated GPU has no limits worth measuring")
def test_bench_kernels(cuda):
    result = support.run_json("bench", "kernels", "--backend", "cuda", "-m", "synthetic:1.1b:q8_0", "--json", timeout=300)
    assert result["failed"] == 0 and result["checks"] > 20 and result["modules"]
    rows = result["speeds"][0]["ops"]
    assert {row["step"] for row in rows} == {"decode", "prompt"}
    assert not [row for row in rows if row["us"] <= 0 or row["gb_s"] <= 0]
    # What a row writes for the next one stays in the second cache; weights and old keys do not.
    assert max(row["limit_pct"] for row in rows if row["step"] == "decode") < 110
