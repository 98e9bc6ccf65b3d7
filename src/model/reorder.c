// GPTQ with activation order, where nothing but a product and an activation makes a matrix's input: rather than have
// activations brought into the order of its columns at every step, the rows of what makes them are taken in that order
// when they are loaded, and the matrix is then one like any other.

#include "model/builder_parts.h"

struct permuted {
    struct ew_weight_source whole; // as it is without
    const uint32_t *rows;          // which of its rows each row is
    uint64_t row_bytes;
};

static int read_permuted(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                         struct ew_error *err)
{
    const struct permuted *p = source->ctx;
    int rc = 0;

    for (uint64_t i = 0; i < n_rows && rc == 0; i++)
        rc = p->whole.read(&p->whole, p->rows[row + i], 1, (char *)dst + i * p->row_bytes, err);
    return rc;
}

// NULL where there is no memory.
static struct ew_weight_source *permute(struct builder *b, const struct ew_weight_source *source, uint64_t cols,
                                        const uint32_t *rows)
{
    struct permuted *p = ew_arena_alloc(b->arena, sizeof(*p));
    struct ew_weight_source *out = ew_arena_alloc(b->arena, sizeof(*out));

    if (!p || !out)
        return NULL;
    *p = (struct permuted){*source, rows, ew_dtype_row_bytes(source->dtype, cols)};
    *out = (struct ew_weight_source){.dtype = source->dtype, .read = read_permuted, .ctx = p, .order = source->order};
    if (source->ordered && !(out->ordered = permute(b, source->ordered, cols, rows)))
        return NULL;
    return out;
}

static void permute_rows(struct builder *b, struct ew_weight *weight, const uint32_t *rows)
{
    struct ew_weight_source *source = permute(b, &weight->source, weight->cols, rows);

    if (source)
        weight->source = *source;
    else
        b->rc = ew_fail_memory(b->err, sizeof(*source), "the order of a weight's rows");
}

void ew__order_rows(struct builder *b, uint32_t first)
{
    struct ew_program *program = b->program;
    uint32_t last = first;
    struct ew_weight *reader;

    if (b->rc)
        return;
    for (uint32_t i = first; i < program->n_ops; i++)
        last = program->ops[i].kind == EW_OP_LINEAR ? i : last;
    reader = &program->weights[program->ops[last].weight];
    if (!reader->source.ordered)
        return;
    for (uint32_t i = first; i < last; i++) {
        if (program->ops[i].kind == EW_OP_LINEAR && program->ops[i].bias != EW_WEIGHT_NONE)
            return; // elements would have to change places as well
    }
    for (uint32_t i = first; i < last && !b->rc; i++) {
        if (program->ops[i].kind == EW_OP_LINEAR)
            permute_rows(b, &program->weights[program->ops[i].weight], reader->source.order);
    }
    reader->source = *reader->source.ordered;
}
