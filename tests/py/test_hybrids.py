"""Models whose layers keep states, in the forms that hubs carry beside those of the fixtures: GGUF files as converters write
them, and Qwen 3.5 with experts. Made from the fixtures, whose logits they must give."""
import json
import struct

import pytest
import support

np = pytest.importorskip("numpy")
from test_gguf_families import load_safetensors, stack_experts, write_gguf  # noqa: E402

COMMON = {
    "embed_tokens": "token_embd", "embeddings": "token_embd", "norm_f": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps", "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.in_proj_b": "ssm_beta", "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out",
    "mixer.q_proj": "attn_q", "mixer.k_proj": "attn_k", "mixer.v_proj": "attn_v", "mixer.o_proj": "attn_output",
    "mixer.up_proj": "ffn_up", "mixer.down_proj": "ffn_down", "mixer.gate": "ffn_gate_inp",
    "mixer.experts.up_proj": "ffn_up_exps", "mixer.experts.down_proj": "ffn_down_exps",
    "mixer.shared_experts.up_proj": "ffn_up_shexp", "mixer.shared_experts.down_proj": "ffn_down_shexp",
    "mixer.in_proj": "ssm_in", "mixer.conv1d": "ssm_conv1d", "mixer.norm": "ssm_norm", "mixer.out_proj": "ssm_out",
}
WHOLE = {"A_log": "ssm_a", "dt_bias": "ssm_dt.bias", "D": "ssm_d", "e_score_correction_bias": "exp_probs_b.bias"}


def gguf_name(name):
    rest = name.split(".", 1)[1] if name.startswith(("model.", "backbone.")) else name
    layer, rest = rest.removeprefix("layers.").split(".", 1) if rest.startswith("layers.") else ("", rest)
    stem, last = rest.rsplit(".", 1)
    own = WHOLE.get(last) or f"{'attn_norm' if layer and stem == 'norm' else COMMON.get(stem, 'output_norm')}.{last}"
    return f"blk.{layer}.{own}" if layer else own


def pieces(array, groups, sizes):
    """Rows that stand group by group, as one array a piece."""
    grouped = array.reshape(groups, sum(sizes), *array.shape[1:])
    ends = np.cumsum(sizes)
    return [grouped[:, end - size:end].reshape(groups * size, *array.shape[1:]) for size, end in zip(sizes, ends)]


def sizes_of(config):
    groups, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    return groups, heads, config["linear_key_head_dim"], config["linear_value_head_dim"]


def ungroup(source, config, gates=False):
    """Qwen 3 Next's fused inputs apart, as newer files have them; with gates as Qwen 3.5 has them."""
    groups, heads, k, v = sizes_of(config)
    for name in [name for name in source if "in_proj_qkvz" in name]:
        q, key, value, z = pieces(source.pop(name), groups, [k, k, heads // groups * v, heads // groups * v])
        source[name.replace("qkvz", "qkv")] = np.concatenate([q, key, value])
        source[name.replace("qkvz", "z")] = z
    for name in [name for name in source if "in_proj_ba" in name and gates]:
        b, a = pieces(source.pop(name), groups, [heads // groups] * 2)
        source[name.replace("_ba", "_b")], source[name.replace("_ba", "_a")] = b, a


def tile_heads(source, config):
    """From heads in order of their groups to neighbours of different groups."""
    groups, heads, k, v = sizes_of(config)
    order = np.arange(heads).reshape(groups, heads // groups).T.reshape(-1)

    def rows(array, first, width):
        tiled = array[first:].reshape(heads, width, *array.shape[1:])[order].reshape(array.shape[0] - first, *array.shape[1:])
        return np.concatenate([array[:first], tiled])

    for name, array in source.items():
        part = name.split("linear_attn.")[-1]
        if part in ("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias"):
            source[name] = rows(array, 0, 1)
        elif part in ("in_proj_qkv.weight", "conv1d.weight"):
            source[name] = rows(array, 2 * groups * k, v)
        elif part == "in_proj_z.weight":
            source[name] = rows(array, 0, v)
        elif part == "out_proj.weight":
            source[name] = rows(array.T, 0, v).T


def adjust(source):
    """What converters change in values and dimensions."""
    for name, array in source.items():
        if name.endswith("A_log"):
            source[name] = -np.exp(array)
        elif name.endswith("conv1d.weight"):
            source[name] = array[:, 0]
        elif name.endswith("norm.weight") and not name.startswith("backbone") and not name.endswith("linear_attn.norm.weight"):
            source[name] = array + 1


def common_keys(config, head_dim):
    return {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "vocab_size": config["vocab_size"],
        "attention.head_count": config["num_attention_heads"], "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps", config.get("layer_norm_epsilon")),
    }


def qwen_keys(config):
    groups, heads, k, v = sizes_of(config)
    rope = config.get("rope_parameters", config)
    keys = common_keys(config, config["head_dim"]) | {
        "feed_forward_length": config["intermediate_size"], "attention.head_count_kv": config["num_key_value_heads"],
        "rope.dimension_count": config["head_dim"] // 4, "rope.freq_base": float(rope["rope_theta"]),
        "ssm.conv_kernel": config["linear_conv_kernel_dim"], "ssm.state_size": k, "ssm.group_count": groups,
        "ssm.time_step_rank": heads, "ssm.inner_size": heads * v, "full_attention_interval": config["full_attention_interval"],
    }
    if "num_experts" in config:
        keys |= {"expert_count": config["num_experts"], "expert_used_count": config["num_experts_per_tok"],
                 "expert_feed_forward_length": config["moe_intermediate_size"],
                 "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"]}
    return keys


def nemotron_keys(config):
    pattern, inner = config["hybrid_override_pattern"], config["mamba_num_heads"] * config["mamba_head_dim"]
    keys = common_keys(config, config["head_dim"]) | {
        "feed_forward_length": [config["intermediate_size"] if kind in "-E" else 0 for kind in pattern],
        "attention.head_count_kv": [config["num_key_value_heads"] if kind == "*" else 0 for kind in pattern],
        "ssm.conv_kernel": config["conv_kernel"], "ssm.state_size": config["ssm_state_size"],
        "ssm.group_count": config["n_groups"], "ssm.time_step_rank": config["mamba_num_heads"], "ssm.inner_size": inner,
    }
    if "E" in pattern:
        keys |= {"expert_count": config["n_routed_experts"], "expert_used_count": config["num_experts_per_tok"],
                 "expert_feed_forward_length": config["moe_intermediate_size"], "expert_shared_count": 1,
                 "expert_shared_feed_forward_length": config["moe_shared_expert_intermediate_size"],
                 "expert_weights_norm": config["norm_topk_prob"], "expert_weights_scale": config["routed_scaling_factor"],
                 "expert_group_count": config["n_group"], "expert_group_used_count": config["topk_group"]}
    return keys


def open_fixture(name):
    model = support.need(f"fixtures/models/{name}")
    return model, json.loads((model / "config.json").read_text()), load_safetensors(model / "model.safetensors")


def check(path, fixture):
    result = support.run_json("eval", "logits", "-m", path, "--ref", fixture / "ref.safetensors", "--kernels", "reference",
                              "--kv", "f32")
    assert result["pass"] and result["rel"] < 2e-4


@pytest.mark.parametrize("name, arch", [("qwen3_next", "qwen3next"), ("qwen3_next", "qwen35moe"), ("qwen3_5_text", "qwen35"),
                                        ("nemotron_h", "nemotron_h"), ("nemotron_h_moe", "nemotron_h_moe")])
def test_gguf(name, arch, tmp_path):
    model, config, source = open_fixture(name)
    stack_experts(source, config.get("num_experts", config.get("n_routed_experts", 0)))
    if arch.startswith("qwen"):
        ungroup(source, config, gates=arch != "qwen3next")
    if arch.startswith("qwen35"):
        tile_heads(source, config)
    adjust(source)
    keys = qwen_keys(config) if arch.startswith("qwen") else nemotron_keys(config)
    metadata = {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}}
    write_gguf(tmp_path / "model.gguf", metadata, {gguf_name(name): array for name, array in source.items()})
    check(tmp_path / "model.gguf", model)


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in tensors.values()))


def test_qwen3_5_with_experts(tmp_path):
    """As hubs carry it: below model.language_model, inputs of states apart, experts in two tensors, and more than the text."""
    model, config, source = open_fixture("qwen3_next")
    ungroup(source, config, gates=True)
    stack_experts(source, config["num_experts"])
    for name in [name for name in source if name.endswith("experts.gate_proj.weight")]:
        gate, up = source.pop(name), source.pop(name.replace("gate_proj", "up_proj"))
        source[name.replace("gate_proj.weight", "gate_up_proj")] = np.concatenate([gate, up], axis=1)
        down = name.replace("gate_proj", "down_proj")
        source[down.removesuffix(".weight")] = source.pop(down)
    source = {name.replace("model.", "model.language_model.", 1): np.ascontiguousarray(array, np.float32)
              for name, array in source.items()}
    source["model.visual.patch_embed.proj.weight"] = source["mtp.norm.weight"] = np.zeros(4, np.float32)
    config |= {"model_type": "qwen3_5_moe_text"}
    outer = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "text_config": config}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    write_safetensors(tmp_path / "model.safetensors", source)
    check(tmp_path, model)


def test_further_predictors_are_left_out(tmp_path):
    _, config, source = open_fixture("qwen3_next")
    source["mtp.norm.weight"] = np.zeros(4, np.float32)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "in/model.safetensors", {name: np.ascontiguousarray(a) for name, a in source.items()})
    support.run_ok("quantize", tmp_path / "in", tmp_path / "out.gguf", "--to", "q8_0")
