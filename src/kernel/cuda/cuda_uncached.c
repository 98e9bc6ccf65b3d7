#include "kernel/cuda/cuda_uncached.h"

#include <string.h>

#include "base/assert.h"
#include "base/half.h"

// ctx: the weight as the file has it.
static int read_as_f16(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                       struct ew_error *err)
{
    const struct ew_weight *weight = source->ctx;
    uint64_t n = n_rows * weight->cols;
    float *rows = ew_alloc_array(n, sizeof(*rows));
    uint16_t *out = dst;
    int rc;

    if (!rows)
        return ew_fail_memory(err, n * sizeof(*rows), "rows of a weight");
    rc = weight->source.read(&weight->source, row, n_rows, rows, err);
    for (uint64_t i = 0; i < n && rc == 0; i++)
        out[i] = ew_f16_of_f32(rows[i]);
    ew_free(rows);
    return rc;
}

static void release_f32(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows)
{
    const struct ew_weight *weight = source->ctx;

    if (weight->source.release)
        weight->source.release(&weight->source, row, n_rows);
}

static void narrow(struct ew_weight *own, const struct ew_weight *weight)
{
    if (weight->is_matrix && weight->source.dtype == EW_DTYPE_F32 && weight->cols % 8 == 0)
        own->source = (struct ew_weight_source){
            .dtype = EW_DTYPE_F16, .read = read_as_f16, .release = release_f32, .ctx = weight};
}

static int find_group(const struct ew_program *program, struct ew_cache_group *group, struct ew_error *err)
{
    *group = (struct ew_cache_group){.kind = EW_CACHE_FULL, .n_layers = 1};
    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if (op->kind != EW_OP_ATTENTION)
            continue;
        if (group->n_kv_heads &&
            (group->n_kv_heads != op->attention.n_kv_heads || group->k_dim != op->attention.head_dim ||
             group->v_dim != op->attention.v_dim))
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "the CUDA backend takes programs without caches only where all layers are alike");
        group->n_kv_heads = op->attention.n_kv_heads;
        group->k_dim = op->attention.head_dim;
        group->v_dim = op->attention.v_dim;
    }
    if (!group->n_kv_heads)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend takes no programs without attention");
    return 0;
}

int ew_cuda_uncached_adapt(const struct ew_program *program, bool reference, struct ew_arena *arena,
                           const struct ew_program **out, struct ew_error *err)
{
    struct ew_program *own = ew_arena_alloc(arena, sizeof(*own));
    struct ew_cache_group *group = ew_arena_alloc(arena, sizeof(*group));
    struct ew_weight *weights = ew_arena_array(arena, program->n_weights, sizeof(*weights));
    int rc;

    if (!own || !group || !weights)
        return ew_fail_memory(err, program->n_weights * sizeof(*weights), "a program without caches");
    rc = find_group(program, group, err);
    if (rc)
        return rc;
    memcpy(weights, program->weights, program->n_weights * sizeof(*weights));
    for (uint32_t i = 0; i < program->n_weights && !reference; i++)
        narrow(&weights[i], &program->weights[i]);
    *own = *program;
    own->weights = weights;
    own->groups = group;
    own->n_groups = 1;
    *out = own;
    return 0;
}

uint32_t ew_cuda_uncached_blocks(const struct ew_limits *limits)
{
    return limits->n_tokens_max / limits->block_tokens + limits->n_seqs_max;
}
