#include "bench/profile_ops.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"

#define SEED 20261121

static void fill(struct ew_core *core, uint32_t index, uint32_t n_tokens)
{
    struct ew_rng rng = ew_rng_at(SEED, index);
    struct ew_sequence *seq = &core->seqs[index];

    ew_sequence_reset(seq);
    seq->rope_span = core->fit.limits.context_max;
    for (uint32_t i = 0; i < n_tokens; i++)
        ew_sequence_push(seq, (int32_t)ew_rng_below(&rng, core->model->program.n_vocab));
}

// All but the last of its tokens into the caches.
static int reach(struct ew_core *core, struct ew_sequence *seq, struct ew_error *err)
{
    int rc = 0;

    while (rc == 0 && seq->n_cached + 1 < seq->n_tokens) {
        uint32_t left = seq->n_tokens - 1 - seq->n_cached;
        struct ew_work work = {.seq = seq, .n_tokens = EW_MIN(left, core->config.chunk), .is_prompt = true};

        rc = ew_step_run(&core->step, &work, 1, err);
    }
    return rc;
}

static int profile_step(struct ew_core *core, const struct ew_profile_options *options, struct ew_work *work,
                        uint32_t n_work, struct ew_error *err)
{
    struct ew_backend *backend = core->backend;
    int rc = ew_step_build(&core->step, work, n_work, err);

    if (rc)
        return rc;
    options->begin(options->ctx, work->is_prompt, core->step.batch.n_tokens);
    return backend->ops->profile(backend, &core->step.batch, options->row, options->ctx, err);
}

static int profile_decode(struct ew_core *core, const struct ew_profile_options *options, struct ew_error *err)
{
    struct ew_work *work = ew_alloc_array(options->batch, sizeof(*work));
    int rc = 0;

    if (!work)
        return ew_fail_memory(err, options->batch * sizeof(*work), "a measurement");
    for (uint32_t i = 0; i < options->batch && rc == 0; i++) {
        fill(core, i, EW_MAX(options->depth, 1u) + 1);
        work[i] = (struct ew_work){.seq = &core->seqs[i], .n_tokens = 1, .want = EW_WANT_LAST};
        rc = reach(core, &core->seqs[i], err);
    }
    if (rc == 0)
        rc = profile_step(core, options, work, options->batch, err);
    ew_free(work);
    return rc;
}

static int profile_prompt(struct ew_core *core, const struct ew_profile_options *options, struct ew_error *err)
{
    uint32_t n = EW_MIN(options->n_prompt, core->config.chunk);
    struct ew_work work = {.seq = &core->seqs[0], .n_tokens = n, .want = EW_WANT_LAST, .is_prompt = true};

    fill(core, 0, n);
    return profile_step(core, options, &work, 1, err);
}

int ew_bench_profile(struct ew_core *core, const struct ew_profile_options *options, struct ew_error *err)
{
    int rc;

    if (!core->backend->ops->profile) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "the %s backend does not know what its single ops cost",
                core->backend->ops->name);
        return ew_remedy(err, EW_ERR_UNSUPPORTED, "Use --backend cuda, or bench kernels for the kernels of the CPU");
    }
    rc = profile_decode(core, options, err);
    for (uint32_t i = 0; i < options->batch; i++)
        ew_sequence_reset(&core->seqs[i]);
    if (rc == 0)
        rc = profile_prompt(core, options, err);
    ew_sequence_reset(&core->seqs[0]);
    return rc;
}
