"""GGUF files of every architecture that edgewise claims: the checkpoints of the fixtures, renamed and permuted as
converters for the format do it, must give the same logits as the checkpoints themselves."""
import json
import math
import re
import struct

import pytest
import support

np = pytest.importorskip("numpy")

STRING, ARRAY, U32, F32, BOOL = 8, 9, 4, 6, 7


def encode(value):
    """A metadata value with its type, in the smallest set of types that converters use."""
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, list):
        return struct.pack(f"<IIQ{len(value)}I", ARRAY, U32, len(value), *value)
    return struct.pack("<IQ", STRING, len(value)) + value.encode()


def write_gguf(path, metadata, tensors):
    """Everything in f32: what is tested is names, keys and layouts."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += struct.pack("<Q", len(key)) + key.encode() + encode(value)
    offset, data = 0, b""
    for name, array in tensors.items():
        array = np.ascontiguousarray(array, np.float32)
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", array.ndim)
        head += struct.pack(f"<{array.ndim}Q", *reversed(array.shape)) + struct.pack("<IQ", 0, offset)
        data += array.tobytes() + bytes(-array.nbytes % 32)
        offset = len(data)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down", "pre_feedforward_layernorm": "ffn_norm", "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
}


def gguf_name(name, arch):
    stem, suffix = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.{suffix}"
    layer, stem = stem.removeprefix("model.layers.").split(".", 1)
    own = NAMES[stem]
    if stem == "post_attention_layernorm" and arch in ("olmo2", "gemma2"):
        own = "post_attention_norm"
    return f"blk.{layer}.{own}.{suffix}"


def permute(array, n_heads):
    """From halves to neighbouring pairs within each head."""
    rows = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)


def merge_heads(tensors):
    """StableLM 2 12b: one norm a head becomes one tensor [heads, head_dim]."""
    stems = {name.split(".norms.")[0] for name in tensors if ".norms." in name}
    for stem in stems:
        parts = [name for name in tensors if name.startswith(stem + ".norms.")]
        parts.sort(key=lambda name: int(name.split(".norms.")[1].split(".")[0]))
        tensors[stem + ".weight"] = np.stack([tensors.pop(name) for name in parts])


def llama3_divisors(rope, theta, head_dim):
    divisors = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * theta ** (i / head_dim)
        low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
        smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"])
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        divisors.append(1 if wave < high else rope["factor"] if wave > low else between)
    return np.array(divisors)


def common_metadata(arch, config, head_dim):
    eps = next(config[key] for key in ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps") if key in config)
    keys = {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"], "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon" if "rms_norm_eps" in config else "attention.layer_norm_epsilon": eps,
        "rope.dimension_count": int(head_dim * config.get("partial_rotary_factor", 1)),
        "rope.freq_base": float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"]),
    }
    if "head_dim" in config:
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        keys["attention.sliding_window"] = config["sliding_window"]
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}}


def scaling(arch, config, head_dim, tensors):
    """How converters write what stands in rope_scaling or rope_parameters."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind, key = rope.get("rope_type", rope.get("type")), f"{arch}.rope.scaling."
    if kind == "llama3":
        tensors["rope_freqs.weight"] = llama3_divisors(rope, config["rope_theta"], head_dim)
    elif kind == "linear":
        return {key + "type": "linear", key + "factor": rope["factor"]}
    elif kind == "yarn":
        found = {key + "type": "yarn", key + "factor": rope["factor"],
                 key + "original_context_length": rope["original_max_position_embeddings"]}
        if rope.get("mscale_all_dim"):
            found[key + "yarn_log_multiplier"] = rope["mscale_all_dim"]
        return found
    elif kind == "longrope":
        original = config["original_max_position_embeddings"]
        tensors["rope_factors_long.weight"] = np.array(rope["long_factor"])
        tensors["rope_factors_short.weight"] = np.array(rope["short_factor"])
        factor = config["max_position_embeddings"] / original
        return {key + "original_context_length": original,
                key + "attn_factor": math.sqrt(1 + math.log(factor) / math.log(original))}
    return {}


def load_safetensors(path):
    """All tensors as f32; numpy has no bfloat16, so that the bits are moved by hand."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, info in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        raw = data[start + info["data_offsets"][0]:start + info["data_offsets"][1]]
        if info["dtype"] == "BF16":
            array = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[info["dtype"]]).astype(np.float32)
        tensors[name] = array.reshape(info["shape"])
    return tensors


WHOLE_NORMS = ("gemma", "gemma2", "nemotron")  # checkpoints have them less one


def convert(model, path, arch, permuted=False, extra=None):
    config = json.loads((model / "config.json").read_text())
    source = load_safetensors(model / "model.safetensors")
    merge_heads(source)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors = {}
    for name, array in source.items():
        projection = name.split(".")[-2]
        if arch in WHOLE_NORMS and name.endswith("norm.weight"):
            array = array + 1
        if permuted and projection in heads:
            array = permute(array, heads[projection])
        tensors[gguf_name(name, arch)] = array
    metadata = common_metadata(arch, config, head_dim) | scaling(arch, config, head_dim, tensors)
    metadata |= {f"{arch}.{key}": value(config) for key, value in (extra or {}).items()}
    write_gguf(path, metadata, tensors)


GRANITE = {
    "attention.scale": lambda c: c["attention_multiplier"], "embedding_scale": lambda c: c["embedding_multiplier"],
    "residual_scale": lambda c: c["residual_multiplier"], "logit_scale": lambda c: c["logits_scaling"],
}
GEMMA2 = {
    "attention.scale": lambda c: c["query_pre_attn_scalar"] ** -0.5,
    "attn_logit_softcapping": lambda c: c["attn_logit_softcapping"],
    "final_logit_softcapping": lambda c: c["final_logit_softcapping"],
}
COHERE = {"logit_scale": lambda c: c["logit_scale"]}
MINISTRAL3 = {"attention.temperature_scale": lambda c: c["rope_parameters"]["llama_4_scaling_beta"]}
CASES = {
    "llama_default": ("llama", True), "llama_bias_headdim": ("llama", True), "llama_rope_linear": ("llama", True),
    "llama_rope_llama3": ("llama", True), "llama_rope_yarn": ("llama", True), "mistral_headdim": ("llama", True),
    "ministral3": ("mistral3", True, MINISTRAL3),
    "qwen2_tied": ("qwen2", False), "qwen3": ("qwen3", False), "phi3_longrope": ("phi3", False),
    "phi3_mini_swa": ("phi3", False), "granite": ("granite", True, GRANITE), "olmo2": ("olmo2", False),
    "olmo3": ("olmo2", False), "smollm3": ("smollm3", True), "stablelm": ("stablelm", False),
    "starcoder2": ("starcoder2", False),
    "gemma1": ("gemma", False), "gemma2": ("gemma2", False, GEMMA2), "nemotron": ("nemotron", False),
    "cohere": ("command-r", False, COHERE), "cohere_qknorm": ("command-r", False, COHERE),
    "cohere2": ("cohere2", False, COHERE),
    "stablelm2_12b": ("stablelm", False, {"use_parallel_residual": lambda c: True}),
}


@pytest.mark.parametrize("name", CASES)
def test_converted(name, tmp_path):
    model = support.need(f"fixtures/models/{name}")
    convert(model, tmp_path / "model.gguf", *CASES[name])
    result = support.run_json("eval", "logits", "-m", tmp_path / "model.gguf", "--ref", model / "ref.safetensors",
                              "--kernels", "reference", "--kv", "f32")
    assert result["pass"] and result["rel"] < 1e-4


# ---- DeepSeek: experts stacked, and keys and values made from latents by one tensor or by two

LATENT_NAMES = {
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate": "ffn_gate_inp", "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps", "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}


def stack_experts(tensors, count):
    for first in [name for name in tensors if ".experts.0." in name]:
        tensors[first.replace(".experts.0.", ".experts.")] = np.stack(
            [tensors.pop(first.replace(".experts.0.", f".experts.{i}.")) for i in range(count)])


def deepseek_name(name):
    layer, rest = name.removeprefix("model.layers.").split(".", 1) if name.startswith("model.layers.") else ("", name)
    if rest == "mlp.gate.e_score_correction_bias":
        return f"blk.{layer}.exp_probs_b.bias"
    stem, suffix = rest.rsplit(".", 1)
    own = LATENT_NAMES.get(stem) or NAMES[stem]
    return f"blk.{layer}.{own}.{suffix}" if layer else f"{own}.{suffix}"


def split_kv(tensors, config):
    plain, values, heads = config["qk_nope_head_dim"], config["v_head_dim"], config["num_attention_heads"]
    for name in [name for name in tensors if "attn_kv_b" in name]:
        both = tensors.pop(name).reshape(heads, plain + values, -1)
        tensors[name.replace("kv_b", "k_b")] = both[:, :plain].swapaxes(1, 2)
        tensors[name.replace("kv_b", "v_b")] = both[:, plain:]


def deepseek_metadata(config, is_split):
    head, rotated, latent = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    keys = {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"], "attention.kv_lora_rank": latent,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "rope.dimension_count": rotated,
        "rope.freq_base": float(config["rope_theta"]), "vocab_size": config["vocab_size"],
        "expert_count": config["n_routed_experts"], "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"], "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]), "leading_dense_block_count": 1,
        "expert_weights_norm": config["norm_topk_prob"], "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
    }
    if config["scoring_func"] == "sigmoid":
        keys["expert_gating_func"] = 2
    if config["q_lora_rank"]:
        keys["attention.q_lora_rank"] = config["q_lora_rank"]
    if is_split:
        keys |= {"attention.head_count_kv": 1, "attention.key_length": latent + rotated, "attention.value_length": latent,
                 "attention.key_length_mla": head, "attention.value_length_mla": config["v_head_dim"]}
    else:
        keys |= {"attention.head_count_kv": config["num_attention_heads"], "attention.key_length": head,
                 "attention.value_length": config["v_head_dim"]}
    if config["rope_scaling"]:
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(config["rope_scaling"]["factor"]),
                 "rope.scaling.original_context_length": config["rope_scaling"]["original_max_position_embeddings"],
                 "rope.scaling.yarn_log_multiplier": 0.1 * config["rope_scaling"]["mscale_all_dim"]}
    return {"general.architecture": "deepseek2", **{f"deepseek2.{key}": value for key, value in keys.items()}}


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("name", ["deepseek_v2_group", "deepseek_v2_lite", "deepseek_v3", "deepseek_v3_yarn"])
def test_latents_in_one_tensor_or_two(name, is_split, tmp_path):
    model = support.need(f"fixtures/models/{name}")
    config = json.loads((model / "config.json").read_text())
    source = load_safetensors(model / "model.safetensors")
    stack_experts(source, config["n_routed_experts"])
    tensors = {deepseek_name(key): array for key, array in source.items()}
    if is_split:
        split_kv(tensors, config)
    write_gguf(tmp_path / "model.gguf", deepseek_metadata(config, is_split), tensors)
    result = support.run_json("eval", "logits", "-m", tmp_path / "model.gguf", "--ref", model / "ref.safetensors",
                              "--kernels", "reference", "--kv", "f32")
    assert result["pass"] and result["rel"] < 1e-4


ENCODER_NAMES = {
    "embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
    "embeddings.tok_embeddings": "token_embd", "embeddings.norm": "token_embd_norm", "final_norm": "output_norm",
    "attn.Wqkv": "attn_qkv", "attn.Wo": "attn_output", "attn_norm": "attn_norm", "mlp_norm": "ffn_norm", "mlp.Wi": "ffn_up",
    "mlp.Wo": "ffn_down",
}


def encoder_name(name):
    stem, suffix = name.rsplit(".", 1)
    layer = re.match(r"(?:encoder\.layer|layers)\.(\d+)\.(.*)", stem)
    return f"blk.{layer[1]}.{ENCODER_NAMES[layer[2]]}.{suffix}" if layer else f"{ENCODER_NAMES[stem]}.{suffix}"


@pytest.mark.parametrize("name,arch,pooling", [("bert_minilm_mean", "bert", 1), ("xlmr_bge_m3_cls", "bert", 2), ("xlmr_e5_mean", "bert", 1),
                                               ("modernbert_cls", "modern-bert", 2)])
def test_encoders(name, arch, pooling, tmp_path):
    model = support.need(f"fixtures/models/{name}")
    config = json.loads((model / "config.json").read_text())
    tensors = {encoder_name(key): array for key, array in load_safetensors(model / "model.safetensors").items() if "pooler" not in key}
    skip = config["pad_token_id"] + 1 if name.startswith("xlmr") else 0  # converters leave the rows before the first position out
    if skip:
        tensors["position_embd.weight"] = tensors["position_embd.weight"][skip:]
    values = {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"] - skip,
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"], "attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
        "attention.causal": False, "pooling_type": pooling,
    }
    if arch == "modern-bert":
        values |= {"attention.sliding_window": config["local_attention"], "rope.freq_base": config["global_rope_theta"],
                   "rope.freq_base_swa": config["local_rope_theta"]}
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in values.items()}
    if arch == "bert":
        metadata["tokenizer.ggml.token_type_count"] = config["type_vocab_size"]
    write_gguf(tmp_path / "model.gguf", metadata, tensors)
    result = support.run_json("eval", "logits", "-m", tmp_path / "model.gguf", "--ref", model / "ref.safetensors", "--kernels", "reference")
    assert result["pass"] and result["rel"] < 1e-4
