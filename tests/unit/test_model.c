// model: opening checkpoints of every family in both forms of config.json, what wrong ones are told, tables, tokens,
// sizes, synthetic models.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/data.h"
#include "kernel/backend.h"
#include "model/family.h"
#include "model/model.h"
#include "model/synthetic.h"

#define FILE_BYTES_MAX ((size_t)4 << 20)

static const char *const g_checkpoints[] = {
    "llama_default",
    "llama_bias_headdim",
    "llama_v5cfg",
    "llama_rope_dynamic",
    "llama_rope_linear",
    "llama_rope_llama3",
    "llama_rope_llama3_v5cfg",
    "llama_rope_longrope",
    "llama_rope_yarn",
    "llama_rope_yarn_betas",
    "mistral_headdim",
    "mistral_swa",
    "ministral3",
    "ministral_swa_mix",
    "qwen2",
    "qwen2_tied",
    "qwen3",
    "qwen3_v5cfg",
    "phi3_longrope",
    "phi3_mini_swa",
    "granite",
    "olmo2",
    "olmo3",
    "smollm3",
    "stablelm",
    "stablelm2_12b",
    "starcoder2",
    "cohere",
    "cohere_qknorm",
    "cohere2",
    "gemma1",
    "gemma2",
    "nemotron",
    "gpt2",
    "gpt_bigcode_mqa",
    "gptj",
    "gptneox_pythia",
    "gptneox_serial",
    "bloom",
    "mpt",
    "mpt_clip",
    "falcon_7b",
    "falcon_11b",
    "falcon_40b",
    "falcon_rw_alibi",
    "phi2",
    "glm",
    "glm4",
    "chatglm_remote_layout",
    "gemma3_text",
    "mixtral",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss_bf16",
    "llama4_text",
    "deepseek_v2_group",
    "deepseek_v2_lite",
    "deepseek_v3",
    "deepseek_v3_yarn",
    "bert_minilm_mean",
    "xlmr_bge_m3_cls",
    "xlmr_e5_mean",
    "modernbert_cls",
    "qwen3_embedding_last",
    "qwen3_next",
    "qwen3_5_text",
    "nemotron_h",
    "nemotron_h_moe",
};

static void fixture_path(char *out, size_t size, const char *name)
{
    const char *root = getenv("EW_SOURCE_ROOT");

    snprintf(out, size, "%s/tests/fixtures/%s", root ? root : "..", name);
}

// The shape that a config file gives, with the tensors of the checkpoint beside it.
static void read_shape(const struct ew_families *families, const char *dir, const char *file, struct ew_shape *shape)
{
    const struct ew_family *family;
    struct ew_modelfile model;
    const struct ew_json *config;
    struct ew_arena arena;
    struct ew_error err;
    char path[600];

    snprintf(path, sizeof(path), "%s/%s", dir, file);
    ew_arena_init(&arena, FILE_BYTES_MAX);
    if (ew_modelfile_open(&model, dir, true, &err) || ew_json_parse_file(&arena, path, FILE_BYTES_MAX, &config, &err) ||
        ew_shape_from_config(shape, families, config, model.tensors, &family, &err))
        fail_msg("%s", err.message);
    ew_modelfile_close(&model);
    ew_arena_fini(&arena);
}

static void both_forms_of_config_give_one_shape(void **state)
{
    struct ew_families *families = ew_alloc(sizeof(*families));
    struct ew_shape *old = ew_alloc(sizeof(*old)), *new = ew_alloc(sizeof(*new));
    struct ew_error err;
    int compared = 0;

    (void)state;
    if (ew_families_load(families, &err))
        fail_msg("%s", err.message);
    for (size_t i = 0; i < EW_COUNT_OF(g_checkpoints); i++) {
        char name[64], dir[512], path[600];

        snprintf(name, sizeof(name), "models/%s", g_checkpoints[i]);
        fixture_path(dir, sizeof(dir), name);
        snprintf(path, sizeof(path), "%s/config.v5.json", dir);
        if (access(path, R_OK))
            continue;
        read_shape(families, dir, "config.json", old);
        read_shape(families, dir, "config.v5.json", new);
        if (memcmp(old, new, sizeof(*old)))
            fail_msg("%s: config.json and config.v5.json give different shapes", g_checkpoints[i]);
        compared++;
    }
    assert_true(compared > 20);
    ew_families_free(families);
    ew_free(families);
    ew_free(old);
    ew_free(new);
}

static void every_weight_reads_what_is_mapped(void **state)
{
    (void)state;
    for (size_t i = 0; i < EW_COUNT_OF(g_checkpoints); i++) {
        char name[64], dir[512];
        struct ew_model *model;
        struct ew_error err;
        uint64_t params = 0;

        snprintf(name, sizeof(name), "models/%s", g_checkpoints[i]);
        fixture_path(dir, sizeof(dir), name);
        if (ew_model_open(dir, &model, &err))
            fail_msg("%s", err.message);
        assert_true(model->shape.has_weights);
        for (uint32_t w = 0; w < model->program.n_weights; w++) {
            const struct ew_weight *weight = &model->program.weights[w];
            uint64_t bytes = ew_dtype_row_bytes(weight->source.dtype, weight->cols);
            unsigned char *row = ew_alloc(bytes);

            assert_int_equal(weight->source.read(&weight->source, weight->rows - 1, 1, row, &err), 0);
            if (weight->source.mapped)
                assert_memory_equal(row, (const unsigned char *)weight->source.mapped + (weight->rows - 1) * bytes,
                                    bytes);
            ew_free(row);
            params += weight->rows * weight->cols;
        }
        assert_int_equal(params, model->n_params);
        // Nothing in these files is superfluous but ChatGLM's table of frequencies and BERT's pooler.
        if (strncmp(g_checkpoints[i], "chatglm", 7) != 0 && !strstr(g_checkpoints[i], "bert_m") &&
            !strstr(g_checkpoints[i], "xlmr"))
            assert_int_equal(model->file_bytes, model->file.tensors->bytes);
        ew_model_close(model);
    }
}

// ---- wrong checkpoints --------------------------------------------------------------------------

static char *read_all(const char *path, size_t *len)
{
    char *text;
    struct ew_error err;

    if (ew_file_read(path, FILE_BYTES_MAX, &text, len, &err))
        fail_msg("%s", err.message);
    return text;
}

static void write_all(const char *path, const char *bytes, size_t len)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

// Copies a file with the first `from` replaced by `to`.
static void copy_with(const char *source, const char *target, const char *from, const char *to)
{
    size_t len;
    char *text = read_all(source, &len), *at = from ? memmem(text, len, from, strlen(from)) : NULL, *out;
    size_t before = at ? (size_t)(at - text) : len, out_len = len;

    if (from && !at)
        fail_msg("%s has no %s", source, from);
    out = ew_alloc(len + 1000);
    memcpy(out, text, before);
    if (at) {
        memcpy(out + before, to, strlen(to));
        memcpy(out + before + strlen(to), at + strlen(from), len - before - strlen(from));
        out_len = len - strlen(from) + strlen(to);
    }
    write_all(target, out, out_len);
    ew_free(out);
    ew_free(text);
}

struct corruption {
    const char *checkpoint, *file; // what is changed: config.json or model.safetensors
    const char *from, *to;
    const char *message; // part of what is said
};

static const struct corruption g_corruptions[] = {
    {"llama_default", "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000000",
     "num_hidden_layers is 1000000000 where 1 to 1024"},
    {"llama_default", "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0", "num_hidden_layers is 0"},
    {"llama_default", "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": \"two\"",
     "num_hidden_layers is a text where a whole number"},
    {"llama_default", "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3",
     "tensor model.layers.2.input_layernorm.weight is missing"},
    {"llama_default", "config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 0",
     "num_attention_heads is 0"},
    {"llama_default", "config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 3",
     "cannot be shared by 3 heads"},
    {"llama_default", "config.json", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3",
     "cannot share 3 key/value heads"},
    {"llama_default", "config.json", "\"hidden_size\": 64", "\"hidden_size\": 128",
     "tensor model.embed_tokens.weight is [320, 64] where the configuration asks for [320, 128]"},
    {"llama_default", "config.json", "\"hidden_size\": 64", "\"hidden_size\": 1e300", "hidden_size is 1e+300"},
    {"llama_default", "config.json", "\"hidden_size\": 64", "\"hidden_size\": 64.5",
     "hidden_size is a number where a whole number"},
    {"llama_default", "config.json", "\"hidden_size\"", "\"hidden_sizes\"",
     "does not give the number of the residual stream's width"},
    {"llama_default", "config.json", "\"vocab_size\": 320", "\"vocab_size\": 321",
     "[320, 64] where the configuration asks for [321, 64]"},
    {"llama_default", "config.json", "\"intermediate_size\": 96", "\"intermediate_size\": 95",
     "gate_proj.weight is [96, 64] where"},
    {"llama_default", "config.json", "\"model_type\": \"llama\"", "\"model_type\": \"lama\"",
     "a model of type \"lama\" (LlamaForCausalLM)"},
    {"llama_default", "config.json", "LlamaForCausalLM", "LlamaForSequenceClassification",
     "describes a LlamaForSequenceClassification, whose tensor score.weight is missing"},
    {"llama_default", "config.json", "LlamaForCausalLM", "LlamaForTokenClassification",
     "describes a LlamaForTokenClassification"},
    {"llama_default", "config.json", "\"silu\"", "\"snake\"", "hidden_act is \"snake\""},
    {"llama_default", "config.json", "\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"spiral\"}",
     "the rope type \"spiral\""},
    {"llama_default", "config.json", "\"rope_scaling\": null",
     "\"rope_scaling\": {\"type\": \"linear\", \"factor\": -1}", "the rope parameter factor is -1"},
    {"llama_default", "config.json", "\"rope_scaling\": null", "\"quantization_config\": {\"quant_method\": \"magic\"}",
     "quantised by \"magic\""},
    {"llama_default", "config.json", "\"rope_theta\": 10000.0", "\"rope_theta\": NaN", "rope_theta is nan"},
    {"llama_default", "config.json", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": true",
     "rms_norm_eps is true or false where a number"},
    {"llama_default", "config.json", "\"attention_bias\": false", "\"attention_bias\": true",
     "tensor model.layers.0.self_attn.q_proj.bias is missing"},
    {"llama_bias_headdim", "config.json", "\"head_dim\": 24", "\"head_dim\": 4000000000", "head_dim is 4000000000"},
    {"llama_bias_headdim", "config.json", "\"head_dim\": 24", "\"head_dim\": 23", "even number"},
    {"llama_rope_longrope", "config.json", "1.05,", "", "7 short and 8 long factors where 8 of each"},
    {"phi3_mini_swa", "config.json", "\"intermediate_size\": 96", "\"intermediate_size\": 97",
     "gate_up_proj.weight is [192, 64] where the configuration asks for [194, 64]"},
    {"stablelm2_12b", "model.safetensors", "0.self_attn.q_layernorm.norms.3", "0.self_attn.q_layernorm.norms.9",
     "0.self_attn.q_layernorm.norms.3.weight, of which blk.0.attn_q_norm is made with others, is missing"},
    {"ministral_swa_mix", "config.json", "\"full_attention\",", "", "layer_types has 2 entries for 3 layers"},
    {"ministral_swa_mix", "config.json", "\"full_attention\"", "\"no_attention\"", "layer_types is \"no_attention\""},
    {"llama_default", "model.safetensors", "lm_head.weight", "lm_tail.weight", "tensor lm_head.weight is missing"},
    {"llama_default", "model.safetensors", "0.self_attn.v_proj", "0.self_attn.x_proj",
     "tensor model.layers.0.self_attn.v_proj.weight is missing"},
    {"llama_default", "model.safetensors", "{\"dtype\":\"F32\"", "{\"dtype\":\"I32\"",
     "has the type i32, which no weight can have"},
    {"qwen3_moe", "model.safetensors", "0.mlp.experts.2.gate_proj", "0.mlp.experts.2.gate_prox",
     "tensor model.layers.0.mlp.experts.2.gate_proj.weight, of which blk.0.ffn_gate_exps is made with others, "
     "is missing"},
    {"quant_awq_g64", "model.safetensors", "0.self_attn.q_proj.scales", "0.self_attn.q_proj.skales",
     "tensor model.layers.0.self_attn.q_proj.qweight holds codes in i32, and the scales beside it are missing"},
    {"quant_fp8_block_f32scale", "model.safetensors", "0.mlp.up_proj.weight_scale_inv",
     "0.mlp.up_proj.weight_skale_inv",
     "tensor model.layers.0.mlp.up_proj.weight holds codes in f8_e4m3, and the scales beside it are missing"},
    {"qwen3_next", "model.safetensors", "0.linear_attn.A_log", "0.linear_attn.B_log",
     "tensor model.layers.0.linear_attn.A_log is missing"},
    {"bert_minilm_mean", "model.safetensors", "\"embeddings.position_embeddings", "\"embeddings.pasition_embeddings",
     "tensor embeddings.position_embeddings.weight is missing"},
    {"llama_default", "model.safetensors", "[320,64]", "[64,320]",
     "is [64, 320] where the configuration asks for [320, 64]"},
};

static void check_corruption(const char *dir, const struct corruption *corruption)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    char name[64], source[512], from[600], to[600];
    struct ew_model *model;
    struct ew_error err = {0};

    snprintf(name, sizeof(name), "models/%s", corruption->checkpoint);
    fixture_path(source, sizeof(source), name);
    for (size_t i = 0; i < EW_COUNT_OF(files); i++) {
        bool changed = strcmp(files[i], corruption->file) == 0;

        snprintf(from, sizeof(from), "%s/%s", source, files[i]);
        snprintf(to, sizeof(to), "%s/%s", dir, files[i]);
        copy_with(from, to, changed ? corruption->from : NULL, corruption->to);
    }
    assert_true(ew_model_open(dir, &model, &err) < 0);
    assert_null(model);
    if (!strstr(err.message, corruption->message))
        fail_msg("%s with %s: \"%s\" lacks \"%s\"", corruption->checkpoint, corruption->to, err.message,
                 corruption->message);
}

static void make_dir(char *dir, size_t size)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(dir, size, "%s/edgewise-model-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
}

static void remove_dir(const char *dir)
{
    static const char *const files[] = {"config.json", "model.safetensors", "generation_config.json"};

    for (size_t i = 0; i < EW_COUNT_OF(files); i++) {
        char path[600];

        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(dir), 0);
}

static void wrong_checkpoints_are_told_what_is_wrong(void **state)
{
    char dir[256];

    (void)state;
    make_dir(dir, sizeof(dir));
    for (size_t i = 0; i < EW_COUNT_OF(g_corruptions); i++)
        check_corruption(dir, &g_corruptions[i]);
    remove_dir(dir);
}

static void short_memory_is_an_error(void **state)
{
    char dir[512];
    int failures = 0;

    (void)state;
    fixture_path(dir, sizeof(dir), "models/stablelm2_12b");
    for (uint64_t n = 1; n < 10000; n++) {
        struct ew_model *model = NULL;
        struct ew_error err = {0};
        int rc;

        ew_alloc_fail_at(n);
        rc = ew_model_open(dir, &model, &err);
        ew_alloc_fail_at(0);
        ew_model_close(model);
        if (rc == 0)
            break;
        assert_int_equal(rc, EW_ERR_MEMORY);
        failures++;
    }
    assert_true(failures > 5 && failures < 9999);
}

// ---- tables -------------------------------------------------------------------------------------

static void wrong_tables_are_named_with_their_line(void **state)
{
    static const struct {
        const char *text, *message;
    } tables[] = {
        {"family: x\ncolour: red\n", "families/x.yaml:2: colour: there is no such section"},
        {"family: x\nshape:\n  widht: 3\n", "families/x.yaml:3: widht: there is no such field"},
        {"family: x\nshape: {width: wide}\n", "families/x.yaml:2: width: the field does not take this value"},
        {"family: x\nshape: {norm: [rms]}\n", "families/x.yaml:2: norm: the field does not take this value"},
        {"family: x\nextends: y\n", "families/x.yaml:2: extends: there is no family of this name"},
        {"family: x\nextends: x\n", "families/x.yaml:2: extends: families extend each other too often"},
        {"family: x\nhook: y\n", "families/x.yaml:2: hook: there is no such hook"},
        {"family: x\nhf:\n  tensors: [a]\n", "families/x.yaml:3: tensors: names were expected"},
        {"family: x\nfamily: y\n", "families/x.yaml:2: the key stands here a second time"},
        {"extends: x\n", "the family has no name"},
        {"family: &a x\n", "families/x.yaml:1: anchors"},
        {"family: [\n", "families/x.yaml:"},
    };
    struct ew_families *families = ew_alloc(sizeof(*families));

    (void)state;
    for (size_t i = 0; i < EW_COUNT_OF(tables); i++) {
        const struct ew_data_file files[] = {{"families/x.yaml", {tables[i].text, strlen(tables[i].text)}}, {0}};
        struct ew_error err;

        assert_true(ew_families_parse(families, files, &err) < 0);
        if (!strstr(err.message, tables[i].message))
            fail_msg("\"%s\" lacks \"%s\"", err.message, tables[i].message);
    }
    ew_free(families);
}

static void nothing_is_claimed_by_two_families(void **state)
{
    struct ew_families *families = ew_alloc(sizeof(*families));
    struct ew_error err;

    (void)state;
    if (ew_families_load(families, &err))
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < families->count; i++) {
        const struct ew_family *family = &families->list[i];
        const struct ew_yaml *types = family->sides[EW_FAMILY_HF].model_types;
        const struct ew_yaml *archs = family->sides[EW_FAMILY_GGUF].architectures;

        for (const struct ew_yaml *item = types ? types->child : NULL; item; item = item->next)
            assert_ptr_equal(ew_family_of_model_type(families, item->text), family);
        for (const struct ew_yaml *item = archs ? archs->child : NULL; item; item = item->next)
            assert_ptr_equal(ew_family_of_architecture(families, EW_FAMILY_GGUF, item->text), family);
    }
    ew_families_free(families);
    ew_free(families);
}

// ---- tokens -------------------------------------------------------------------------------------

static void generation_config_comes_first(void **state)
{
    static const char text[] =
        "{\"eos_token_id\": [7, 9, 7, 100000, -3], \"temperature\": 0.6, \"top_k\": 20, \"top_p\": 7, "
        "\"do_sample\": true}";
    char dir[256], source[512], path[600], from[600];
    struct ew_model *model;
    struct ew_error err;

    (void)state;
    make_dir(dir, sizeof(dir));
    fixture_path(source, sizeof(source), "models/llama_default");
    snprintf(from, sizeof(from), "%s/config.json", source);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    copy_with(from, path, NULL, NULL);
    snprintf(from, sizeof(from), "%s/model.safetensors", source);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    copy_with(from, path, NULL, NULL);
    if (ew_model_open(dir, &model, &err))
        fail_msg("%s", err.message);
    assert_int_equal(model->tokens.bos, 1);
    assert_int_equal(model->tokens.n_eos, 1);
    assert_int_equal(model->tokens.eos[0], 2);
    assert_true(isnan(model->sampling.temperature) && model->sampling.top_k == -1 && !model->sampling.do_sample_given);
    ew_model_close(model);
    snprintf(path, sizeof(path), "%s/generation_config.json", dir);
    write_all(path, text, sizeof(text) - 1);
    if (ew_model_open(dir, &model, &err))
        fail_msg("%s", err.message);
    assert_int_equal(model->tokens.bos, 1); // from config.json
    assert_int_equal(model->tokens.n_eos, 2);
    assert_int_equal(model->tokens.eos[0], 7);
    assert_int_equal(model->tokens.eos[1], 9);
    assert_float_equal(model->sampling.temperature, 0.6, 1e-6);
    assert_int_equal(model->sampling.top_k, 20);
    assert_true(isnan(model->sampling.top_p)); // out of range
    assert_true(model->sampling.do_sample_given && model->sampling.do_sample);
    ew_model_close(model);
    remove_dir(dir);
}

static void gguf_metadata_gives_tokens(void **state)
{
    struct ew_model *model;
    struct ew_error err;
    char path[512];

    (void)state;
    fixture_path(path, sizeof(path), "gguf/llama-q4_k_m.gguf");
    if (ew_model_open(path, &model, &err))
        fail_msg("%s", err.message);
    assert_int_equal(model->tokens.bos, 1);
    assert_int_equal(model->tokens.n_eos, 1);
    assert_int_equal(model->tokens.eos[0], 2);
    assert_string_equal(model->dtype, "q4_k");
    assert_string_equal(model->shape.arch, "llama");
    ew_model_close(model);
}

// ---- sizes and synthetic models -----------------------------------------------------------------

static void sizes_add_up(void **state)
{
    struct ew_backend_config config = {.n_threads = 1};
    const uint32_t n_blocks[] = {10, 7};
    struct ew_limits limits = {
        .n_tokens_max = 32,
        .n_seqs_max = 2,
        .n_logits_max = 2,
        .context_max = 160,
        .block_tokens = 16,
        .n_blocks = n_blocks,
        .kv = EW_KV_F16,
    };
    struct ew_model_need need;
    struct ew_backend *backend;
    struct ew_model *model;
    struct ew_error err;
    char path[512];

    (void)state;
    fixture_path(path, sizeof(path), "models/olmo3");
    if (ew_model_open(path, &model, &err) || ew_backend_create("cpu", &config, &backend, &err) ||
        ew_model_size(model, backend, &limits, &need, &err))
        fail_msg("%s", err.message);
    assert_int_equal(model->program.n_groups, 2); // three of four layers have a window
    assert_int_equal(need.total_bytes, need.weight_bytes + need.workspace_bytes + need.cache_bytes);
    assert_true(need.kv_token_bytes >= 2 * 2 * 16 * 2); // one full layer: k and v, 2 heads of 16, f16
    assert_true(need.weight_bytes >= model->n_params * 2);
    ew_backend_destroy(backend);
    ew_model_close(model);
}

// Values of a block type must lie around 1 / sqrt(cols), whatever its random bytes are.
static void check_row(const struct ew_weight *weight)
{
    uint64_t bytes = ew_dtype_row_bytes(weight->source.dtype, weight->cols);
    unsigned char *row = ew_alloc(bytes), *again = ew_alloc(2 * bytes);
    float *values = ew_alloc_array(weight->cols, sizeof(*values));
    double sum = 0, deviation;

    assert_int_equal(weight->source.read(&weight->source, weight->rows - 1, 1, row, NULL), 0);
    assert_int_equal(weight->source.read(&weight->source, weight->rows - 2, 2, again, NULL), 0);
    assert_memory_equal(row, again + bytes, bytes);
    ew_dtype_info(weight->source.dtype)->decode(row, values, weight->cols);
    for (uint64_t i = 0; i < weight->cols; i++)
        sum += (double)values[i] * (double)values[i];
    deviation = sqrt(sum / (double)weight->cols) * sqrt((double)weight->cols);
    if (!(deviation > 0.3 && deviation < 1.5))
        fail_msg("%s in %s deviates by %g / sqrt(cols)", weight->name, ew_dtype_name(weight->source.dtype), deviation);
    ew_free(row);
    ew_free(again);
    ew_free(values);
}

static void synthetic_models_have_sane_weights(void **state)
{
    static const char *const shapes[] = {"8b", "4b", "1.1b", "0.6b"}, *const types[] = {
        "f16",    "bf16",    "q8_0",  "q4_0",    "q4_1",  "q5_0",   "q5_1",   "q2_k",  "q3_k",  "q4_k", "q4_k_m",
        "q5_k",   "q6_k",    "iq1_s", "iq1_m",   "iq2_s", "iq3_s",  "iq3_xxs", "iq2_xs", "iq4_nl", "iq4_xs", "tq1_0",
        "mxfp4",  "iq2_xxs", "fp8",   "nvfp4",   "awq",   "gptq",   "fp8_tensor", "fp8_channel"};
    static const double params[] = {8.03e9, 4.41e9, 1.10e9, 0.63e9};

    (void)state;
    for (size_t s = 0; s < EW_COUNT_OF(shapes); s++)
        for (size_t t = 0; t < EW_COUNT_OF(types); t++) {
            struct ew_model *model;
            struct ew_error err;
            char name[64];

            snprintf(name, sizeof(name), "synthetic:%s:%s", shapes[s], types[t]);
            if (ew_model_open(name, &model, &err))
                fail_msg("%s", err.message);
            if (fabs((double)model->n_params / params[s] - 1) > 0.02)
                fail_msg("%s has %llu parameters", name, (unsigned long long)model->n_params);
            for (uint32_t w = 0; w < model->program.n_weights; w += 5)
                if (model->program.weights[w].is_matrix)
                    check_row(&model->program.weights[w]);
            ew_model_close(model);
        }
}

static const struct ew_weight *weight_named(const struct ew_model *model, const char *name)
{
    for (uint32_t i = 0; i < model->program.n_weights; i++)
        if (strcmp(model->program.weights[i].name, name) == 0)
            return &model->program.weights[i];
    fail_msg("no weight %s", name);
    return NULL;
}

static void read_row(const struct ew_weight_source *source, uint64_t row, uint8_t *out)
{
    struct ew_error err;

    if (source->read(source, row, 1, out, &err))
        fail_msg("%s", err.message);
}

// ffn_down's columns lie as their groups do, and what was their order is that of the rows of gate and up, whose own
// columns keep theirs.
static void rows_take_the_order_of_columns_behind_them(void **state)
{
    static const char *const names[] = {"blk.1.ffn_gate", "blk.1.ffn_up"};
    struct ew_model *ordered, *plain;
    struct ew_weight_source source = {.dtype = EW_DTYPE_Q4_0};
    const struct ew_weight *down;
    struct ew_error err;
    uint8_t got[4096], want[4096];

    (void)state;
    if (ew_model_open("synthetic:tiny:gptq_act", &ordered, &err) || ew_model_open("synthetic:tiny:gptq", &plain, &err))
        fail_msg("%s", err.message);
    down = weight_named(ordered, "blk.1.ffn_down");
    assert_null(down->source.ordered);
    assert_int_equal(down->source.dtype, EW_DTYPE_Q4_0);
    assert_int_equal(ew_synthetic_reorder(&ordered->arena, down->cols, &source, &err), 0);
    for (size_t i = 0; i < EW_COUNT_OF(names); i++) {
        const struct ew_weight *weight = weight_named(ordered, names[i]), *same = weight_named(plain, names[i]);
        uint64_t bytes = ew_dtype_row_bytes(EW_DTYPE_Q4_0, weight->cols);

        assert_int_equal(weight->rows, down->cols);
        assert_non_null(weight->source.ordered);
        assert_true(bytes <= sizeof(got));
        for (uint64_t row = 0; row < weight->rows; row++) {
            read_row(weight->source.ordered, row, got);
            read_row(&same->source, source.order[row], want);
            assert_memory_equal(got, want, bytes);
        }
    }
    ew_model_close(ordered);
    ew_model_close(plain);
}

static void synthetic_names_are_checked(void **state)
{
    static const char *const names[] = {"synthetic:", "synthetic:8b", "synthetic:9b:f16", "synthetic:8b:awk",
                                        "synthetic:30b:q4_k_m"};

    (void)state;
    for (size_t i = 0; i < EW_COUNT_OF(names); i++) {
        struct ew_model *model;
        struct ew_error err = {0};

        assert_true(ew_model_open(names[i], &model, &err) < 0);
        assert_true(err.remedy[0]);
    }
}

static void synthetic_weights_come_quickly(void **state)
{
    static unsigned char row[1 << 16];
    struct ew_model *model;
    struct ew_error err;
    uint64_t bytes = 0;
    double start = ew_clock_s(), seconds;

    (void)state;
    if (ew_model_open("synthetic:1.1b:q4_k_m", &model, &err))
        fail_msg("%s", err.message);
    for (uint32_t w = 0; w < model->program.n_weights; w++) {
        const struct ew_weight *weight = &model->program.weights[w];

        for (uint64_t r = 0; r < weight->rows; r += 8) {
            assert_int_equal(weight->source.read(&weight->source, r, 1, row, NULL), 0);
            bytes += ew_dtype_row_bytes(weight->source.dtype, weight->cols);
        }
    }
    seconds = ew_clock_s() - start;
    printf("synthetic weights: %.2f GB/s\n", (double)bytes / seconds / 1e9);
    ew_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_forms_of_config_give_one_shape),
        cmocka_unit_test(every_weight_reads_what_is_mapped),
        cmocka_unit_test(wrong_checkpoints_are_told_what_is_wrong),
        cmocka_unit_test(short_memory_is_an_error),
        cmocka_unit_test(wrong_tables_are_named_with_their_line),
        cmocka_unit_test(nothing_is_claimed_by_two_families),
        cmocka_unit_test(generation_config_comes_first),
        cmocka_unit_test(gguf_metadata_gives_tokens),
        cmocka_unit_test(sizes_add_up),
        cmocka_unit_test(synthetic_models_have_sane_weights),
        cmocka_unit_test(rows_take_the_order_of_columns_behind_them),
        cmocka_unit_test(synthetic_names_are_checked),
        cmocka_unit_test(synthetic_weights_come_quickly),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
