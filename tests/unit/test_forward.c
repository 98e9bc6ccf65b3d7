// The mathematics of every family: programs run by the reference kernels give the logits of the reference
// implementation, whole, in chunks, token by token and batched, with caches paged in blocks of 16 tokens.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "format/safetensors.h"
#include "kernel/backend.h"
#include "model/model.h"

#define BLOCK_TOKENS 16
#define TOKENS_MAX 96
#define BLOCKS_PER_SEQ (TOKENS_MAX / BLOCK_TOKENS)
#define GROUPS_MAX 8
#define TOLERANCE 1e-3 // design: reference kernels

struct sequence {
    int32_t token[TOKENS_MAX];
    uint32_t n_tokens, n_done;
    int32_t blocks[BLOCKS_PER_SEQ];
    const int32_t *tables[GROUPS_MAX];
    float *logits; // [n_tokens, n_vocab] as computed
    const float *expected;
};

struct bench {
    struct ew_model *model;
    struct ew_backend *backend;
    struct ew_safetensors ref;
    struct sequence seqs[2];
};

static void die(const struct ew_error *err)
{
    fail_msg("%s", err->message);
}

static void load_sequence(struct bench *bench, uint32_t which)
{
    struct sequence *seq = &bench->seqs[which];
    const struct ew_tensor *ids, *logits;
    char name[32];

    snprintf(name, sizeof(name), "input_ids_%u", which);
    ids = ew_tensors_find(&bench->ref.tensors, ew_str_of(name));
    snprintf(name, sizeof(name), "logits_%u", which);
    logits = ew_tensors_find(&bench->ref.tensors, ew_str_of(name));
    assert_non_null(ids);
    assert_non_null(logits);
    assert_int_equal(ids->dtype, EW_DTYPE_I64);
    assert_true(ids->shape[ids->n_dims - 1] <= TOKENS_MAX);
    seq->n_tokens = (uint32_t)ids->shape[ids->n_dims - 1];
    for (uint32_t i = 0; i < seq->n_tokens; i++) {
        int64_t id;

        memcpy(&id, ids->data + 8 * i, 8);
        seq->token[i] = (int32_t)id;
    }
    assert_int_equal(logits->bytes, seq->n_tokens * bench->model->shape.n_vocab * sizeof(float));
    seq->expected = ew_alloc(logits->bytes);
    memcpy((void *)(uintptr_t)seq->expected, logits->data, logits->bytes);
    seq->logits = ew_alloc(logits->bytes);
    // Blocks neither in order nor next to each other.
    for (uint32_t i = 0; i < BLOCKS_PER_SEQ; i++)
        seq->blocks[i] = (int32_t)(2 * BLOCKS_PER_SEQ - 1 - 2 * i - which);
    for (uint32_t i = 0; i < GROUPS_MAX; i++)
        seq->tables[i] = seq->blocks;
}

static void open_bench(struct bench *bench, const char *model, const char *ref)
{
    struct ew_backend_config config = {.n_threads = 1, .kernels = EW_KERNELS_REFERENCE};
    uint32_t n_blocks[GROUPS_MAX];
    struct ew_limits limits = {
        .n_tokens_max = 2 * TOKENS_MAX,
        .n_seqs_max = 2,
        .n_logits_max = 2 * TOKENS_MAX,
        .context_max = TOKENS_MAX,
        .block_tokens = BLOCK_TOKENS,
        .n_blocks = n_blocks,
        .kv = EW_KV_F32,
    };
    struct ew_error err;

    for (uint32_t i = 0; i < GROUPS_MAX; i++)
        n_blocks[i] = 2 * BLOCKS_PER_SEQ;
    memset(bench, 0, sizeof(*bench));
    if (ew_model_open(model, &bench->model, &err))
        die(&err);
    if (ew_safetensors_open(&bench->ref, ref, &err))
        die(&err);
    if (ew_backend_create("cpu", &config, &bench->backend, &err))
        die(&err);
    if (bench->backend->ops->load(bench->backend, &bench->model->program, NULL, NULL, &err))
        die(&err);
    if (bench->backend->ops->prepare(bench->backend, &limits, &err))
        die(&err);
    assert_true(bench->model->program.n_ops > 0);
    load_sequence(bench, 0);
    load_sequence(bench, 1);
}

static void close_bench(struct bench *bench)
{
    for (int i = 0; i < 2; i++) {
        ew_free(bench->seqs[i].logits);
        ew_free((void *)(uintptr_t)bench->seqs[i].expected);
    }
    ew_backend_destroy(bench->backend);
    ew_safetensors_close(&bench->ref);
    ew_model_close(bench->model);
}

// One step of up to `chunk` further tokens of each given sequence.
static void step(struct bench *bench, struct sequence *const *seqs, uint32_t n_seqs, uint32_t chunk)
{
    uint32_t n_vocab = bench->model->shape.n_vocab, at = 0;
    int32_t token[2 * TOKENS_MAX], position[2 * TOKENS_MAX];
    uint8_t want[2 * TOKENS_MAX];
    struct ew_batch_seq parts[2];
    struct ew_batch batch = {.token = token, .position = position, .want_logits = want, .seqs = parts};
    const float *logits;
    struct ew_error err;

    for (uint32_t s = 0; s < n_seqs; s++) {
        uint32_t n = EW_MIN(chunk, seqs[s]->n_tokens - seqs[s]->n_done);

        if (!n)
            continue;
        parts[batch.n_seqs++] = (struct ew_batch_seq){.first = at,
                                                      .n_tokens = n,
                                                      .n_past = seqs[s]->n_done,
                                                      .rope_span = seqs[s]->n_tokens,
                                                      .blocks = seqs[s]->tables};
        for (uint32_t i = 0; i < n; i++, at++) {
            token[at] = seqs[s]->token[seqs[s]->n_done + i];
            position[at] = (int32_t)(seqs[s]->n_done + i);
            want[at] = 1;
        }
    }
    batch.n_tokens = batch.n_logits = at;
    if (bench->backend->ops->submit(bench->backend, &batch, &err) ||
        bench->backend->ops->wait(bench->backend, &logits, &err))
        die(&err);
    for (uint32_t s = 0, part = 0; s < n_seqs; s++) {
        uint32_t n = EW_MIN(chunk, seqs[s]->n_tokens - seqs[s]->n_done);

        if (!n)
            continue;
        memcpy(seqs[s]->logits + (size_t)seqs[s]->n_done * n_vocab, logits + (size_t)parts[part++].first * n_vocab,
               (size_t)n * n_vocab * sizeof(float));
        seqs[s]->n_done += n;
    }
}

static double relative_error(const struct bench *bench, const struct sequence *seq)
{
    size_t n = (size_t)seq->n_tokens * bench->model->shape.n_vocab;
    double difference = 0, norm = 0;

    for (size_t i = 0; i < n; i++) {
        double d = (double)seq->logits[i] - (double)seq->expected[i];

        difference += d * d;
        norm += (double)seq->expected[i] * (double)seq->expected[i];
    }
    return sqrt(difference / norm);
}

static void run(struct bench *bench, const char *name, bool together, uint32_t chunk)
{
    struct sequence *both[2] = {&bench->seqs[0], &bench->seqs[1]};
    uint32_t groups = together ? 1 : 2, per_group = together ? 2 : 1;

    bench->seqs[0].n_done = bench->seqs[1].n_done = 0;
    for (uint32_t g = 0; g < groups; g++) {
        struct sequence **seqs = both + g;

        while (seqs[0]->n_done < seqs[0]->n_tokens || seqs[per_group - 1]->n_done < seqs[per_group - 1]->n_tokens)
            step(bench, seqs, per_group, chunk);
    }
    for (int i = 0; i < 2; i++) {
        double rel = relative_error(bench, &bench->seqs[i]);

        if (!(rel < TOLERANCE))
            fail_msg("%s: sequence %d, chunks of %u%s: relative error %g", name, i, chunk, together ? ", batched" : "",
                     rel);
    }
}

static void check(const char *name, const char *model, const char *ref)
{
    struct bench bench;

    open_bench(&bench, model, ref);
    run(&bench, name, false, TOKENS_MAX);
    run(&bench, name, false, 5);
    run(&bench, name, false, 1);
    run(&bench, name, true, TOKENS_MAX);
    printf("%-24s rel %.2g, %.2g\n", name, relative_error(&bench, &bench.seqs[0]),
           relative_error(&bench, &bench.seqs[1]));
    close_bench(&bench);
}

static const char *root(void)
{
    const char *given = getenv("EW_SOURCE_ROOT");

    return given ? given : "..";
}

static void checkpoints(void **state)
{
    // llama_rope_dynamic last: its frequencies follow the length of the sequence.
    static const char *const names[] = {
        "llama_default",
        "llama_bias_headdim",
        "llama_v5cfg",
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
        "qwen2_5_vl", // the language model; so below
        "qwen3_vl",
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
        "qwen3_omni_thinker_text",
        "gpt_oss_bf16",
        "llama4_text",
        "deepseek_v2_group",
        "deepseek_v2_lite",
        "deepseek_v3",
        "deepseek_v3_yarn",
        "qwen3_next",
        "qwen3_5_text",
        "nemotron_h",
        "nemotron_h_moe",
        "quant_awq_g64",
        "quant_ct_int8_w8a8",
        "quant_ct_w4a16_g64",
        "quant_fp8_block_f32scale",
        "quant_fp8_ct_channel",
        "quant_fp8_tensor_static",
        "quant_gptq_g32_sym",
        "quant_gptq_g64_act_asym",
        "quant_mxfp4_gpt_oss",
        "quant_nvfp4_ct",
        "quant_nvfp4_modelopt",
        "llama_rope_dynamic",
    };
    char model[512], ref[600];

    (void)state;
    for (size_t i = 0; i < EW_COUNT_OF(names); i++) {
        snprintf(model, sizeof(model), "%s/tests/fixtures/models/%s", root(), names[i]);
        snprintf(ref, sizeof(ref), "%s/ref.safetensors", model);
        check(names[i], model, ref);
    }
}

static void gguf_files(void **state)
{
    static const char *const names[] = {"llama-f16",  "llama-f32",    "llama-iq4_nl", "llama-mixed", "llama-mxfp4",
                                        "llama-q4_0", "llama-q4_k_m", "llama-q8_0",   "qwen2-q8_0"};
    char model[512], ref[600];

    (void)state;
    for (size_t i = 0; i < EW_COUNT_OF(names); i++) {
        snprintf(model, sizeof(model), "%s/tests/fixtures/gguf/%s.gguf", root(), names[i]);
        snprintf(ref, sizeof(ref), "%s/tests/fixtures/gguf/%s.ref.safetensors", root(), names[i]);
        check(names[i], model, ref);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checkpoints),
        cmocka_unit_test(gguf_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
