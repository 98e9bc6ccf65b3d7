#include "bench/eval_vectors.h"

#include <math.h>
#include <stdio.h>

#include "base/alloc.h"
#include "engine/texts.h"
#include "model/pooling.h"

static void compare(struct ew_eval_logits *out, uint32_t s, const char *what, const float *got, const float *ref,
                    size_t n)
{
    struct ew_eval_case *result = &out->cases[out->n_cases++];
    double sum_diff = 0, sum_ref = 0;

    snprintf(result->name, sizeof(result->name), "%u/%s", s, what);
    for (size_t i = 0; i < n; i++) {
        double diff = fabs((double)got[i] - (double)ref[i]);

        if (!(diff <= result->max_abs)) // keeps a NaN
            result->max_abs = diff;
        sum_diff += diff * diff;
        sum_ref += (double)ref[i] * (double)ref[i];
    }
    result->rel = sqrt(sum_diff / sum_ref);
    result->pass = result->rel <= out->tolerance;
    out->pass = out->pass && result->pass;
    out->rel = result->rel <= out->rel ? out->rel : result->rel;
    out->max_abs = result->max_abs <= out->max_abs ? out->max_abs : result->max_abs;
}

// Texts [first, first + count) in one step.
static int run(struct ew_core *core, const struct ew_refs *refs, uint32_t first, uint32_t count, float *vector,
               struct ew_eval_logits *out, struct ew_error *err)
{
    const struct ew_pooling *pooling = &core->model->pooling;
    struct ew_text texts[EW_REFS_MAX];
    bool alone = count == 1;
    int rc;

    for (uint32_t i = 0; i < count; i++)
        texts[i] = (struct ew_text){.ids = refs->list[first + i].ids, .n_ids = refs->list[first + i].n_ids};
    ew_step_build_texts(&core->step, texts, count, EW_ROWS_ALL);
    rc = ew_step_run_texts(&core->step, err);
    for (uint32_t i = 0; i < count && rc == 0; i++) {
        const struct ew_ref *ref = &refs->list[first + i];
        const float *rows = ew_step_rows(&core->step, &texts[i]);
        enum ew_rows wanted = ew_texts_rows(pooling);
        uint32_t skip = wanted == EW_ROWS_LAST ? ref->n_ids - 1 : 0;

        compare(out, first + i, alone ? "whole" : "batch", rows, ref->hidden, (size_t)ref->n_ids * refs->width);
        ew_pool_rows(pooling, rows + (size_t)skip * refs->width, wanted == EW_ROWS_ALL ? ref->n_ids : 1, vector);
        compare(out, first + i, alone ? "vector" : "vector-batch", vector, ref->vector, refs->n_vector);
    }
    return rc;
}

int ew_eval_vectors(struct ew_core *core, const struct ew_refs *refs, const struct ew_eval_logits_options *options,
                    struct ew_eval_logits *out, struct ew_error *err)
{
    float *vector = ew_alloc_array(refs->n_vector, sizeof(*vector));
    int rc = 0;

    if (!vector)
        return ew_fail_memory(err, refs->n_vector * sizeof(*vector), "a vector");
    out->arith = core->backend->ops->arith(core->backend);
    out->tolerance = options->tolerance > 0 ? options->tolerance : ew_arith_tolerance(out->arith);
    out->pass = true;
    for (uint32_t s = 0; s < refs->count && rc == 0; s++)
        rc = run(core, refs, s, 1, vector, out, err);
    if (refs->count > 1 && rc == 0)
        rc = run(core, refs, 0, refs->count, vector, out, err);
    ew_free(vector);
    return rc;
}
