#include "engine/recording.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"

uint64_t ew_recording_floats(const struct ew_program *program)
{
    uint32_t n_active = 1, n_rows = 1;
    uint64_t n = program->n_vocab; // a selected row may be wider than what it was selected from

    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        n_active = op->kind == EW_OP_ROUTE ? op->route.n_active : n_active;
        n_rows = op->kind == EW_OP_DISPATCH ? n_active : op->kind == EW_OP_COMBINE ? 1 : n_rows; // pairs between them
        n += (uint64_t)n_rows * program->slot_width[op->out];
    }
    return n;
}

int ew_recording_init(struct ew_recording *recording, const struct ew_program *program, uint32_t n_tokens,
                      uint32_t n_steps, struct ew_error *err)
{
    *recording = (struct ew_recording){.records_max = (size_t)program->n_ops * n_steps,
                                       .values_max = n_tokens * ew_recording_floats(program)};
    recording->records = ew_alloc_array(recording->records_max, sizeof(*recording->records));
    recording->values = ew_alloc_array(recording->values_max, sizeof(*recording->values));
    if (!recording->records || !recording->values)
        return ew_fail_memory(err, recording->values_max * sizeof(float), "the reference's results");
    return 0;
}

void ew_recording_fini(struct ew_recording *recording)
{
    ew_free(recording->records);
    ew_free(recording->values);
    *recording = (struct ew_recording){0};
}

void ew_recording_clear(struct ew_recording *recording)
{
    recording->n_records = recording->n_values = 0;
}

void ew_recording_add(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                      uint32_t width)
{
    struct ew_recording *r = ctx;
    size_t n = (size_t)n_rows * width;

    (void)program;
    if (r->n_records == r->records_max || n > r->values_max - r->n_values) {
        r->overflowed = true;
        return;
    }
    r->records[r->n_records++] = (struct ew_record){op, n_rows, width, r->n_values};
    memcpy(r->values + r->n_values, rows, n * sizeof(*rows));
    r->n_values += n;
}

double ew_relative(const float *out, const float *ref, size_t n, double *max_abs)
{
    double sum_diff = 0, sum_ref = 0;

    *max_abs = 0;
    for (size_t i = 0; i < n; i++) {
        double diff = (double)out[i] - (double)ref[i];

        if (!(fabs(diff) <= *max_abs))
            *max_abs = fabs(diff);
        sum_diff += diff * diff;
        sum_ref += (double)ref[i] * (double)ref[i];
    }
    return sum_diff == 0 ? 0 : sqrt(sum_diff / sum_ref);
}
