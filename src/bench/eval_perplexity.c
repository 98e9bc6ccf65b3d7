#include "bench/eval_perplexity.h"

#include <math.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/core.h"
#include "model/pooling.h"

#define LOGITS_BYTES_MAX (64u << 20) // of one step
#define LOGITS_ROWS_MIN 16u

struct perplexity {
    struct ew_core *core;
    const struct ew_perplexity_options *options;
    const int32_t *ids; // of the whole text
    uint32_t rows_max;  // of logits
    double nll;
    uint64_t n_scored;
};

// Scores the rows of a step: row i predicts the token after the i-th of those fed.
static void score(struct perplexity *p, const struct ew_work *work, const int32_t *targets)
{
    uint32_t n_vocab = p->core->model->program.n_vocab;

    for (uint32_t i = 0; i < work->n_logits; i++) {
        const float *row = ew_step_logits(&p->core->step, work, i);

        p->nll += ew_log_sum_exp(row, n_vocab) - (double)row[targets[i]];
    }
    p->n_scored += work->n_logits;
}

// Feeds tokens [from, to) of the window that starts at ids; with logits, they predict tokens [from + 1, to].
static int feed(struct perplexity *p, const int32_t *ids, uint32_t from, uint32_t to, bool with_logits,
                struct ew_error *err)
{
    uint32_t most = with_logits ? EW_MIN(p->rows_max, p->core->config.chunk) : p->core->config.chunk;

    for (uint32_t at = from; at < to;) {
        struct ew_work work = {
            .seq = &p->core->seqs[0],
            .n_tokens = EW_MIN(most, to - at),
            .want = with_logits ? EW_WANT_ALL : EW_WANT_NONE,
            .is_prompt = true,
        };
        int rc = ew_step_run(&p->core->step, &work, 1, err);

        if (rc < 0)
            return rc;
        if (with_logits)
            score(p, &work, ids + at + 1);
        if (p->options->interrupted && p->options->interrupted())
            return ew_fail(err, EW_ERR_CANCELLED, "interrupted");
        at += work.n_tokens;
    }
    return 0;
}

// Scores tokens [from, end) of a window of `end` tokens; from is at least 1.
static int run_window(struct perplexity *p, const int32_t *ids, uint32_t from, uint32_t end, struct ew_error *err)
{
    struct ew_sequence *seq = &p->core->seqs[0];
    int rc;

    ew_sequence_reset(seq);
    ew_sequence_append(seq, ids, end);
    seq->rope_span = end;
    rc = feed(p, ids, 0, from - 1, false, err);
    return rc < 0 ? rc : feed(p, ids, from - 1, end - 1, true, err);
}

static int run_windows(struct perplexity *p, uint64_t n_ids, struct ew_perplexity *out, struct ew_error *err)
{
    struct ew_progress progress;
    uint64_t done = 0; // tokens that were in some window
    int rc = 0;

    ew_progress_begin(&progress, "scoring", n_ids);
    for (uint64_t start = 0; done < n_ids && rc == 0; start += out->stride) {
        uint64_t end = EW_MIN(start + out->window, n_ids), from = EW_MAX(done, start + 1);

        if (from < end)
            rc = run_window(p, p->ids + start, (uint32_t)(from - start), (uint32_t)(end - start), err);
        done = end;
        out->n_windows++;
        ew_progress_update(&progress, done);
    }
    ew_progress_end(&progress);
    return rc;
}

static struct ew_engine_config config_for(const struct ew_engine_config *config, uint32_t window)
{
    struct ew_engine_config c = *config;

    c.context_max = window;
    c.max_batch_size = c.max_sessions = 1;
    c.max_num_tokens = c.chunk ? c.chunk : 512;
    return c;
}

static int check(const struct ew_model *model, const int32_t *ids, uint64_t n_ids, const struct ew_perplexity *out,
                 struct ew_error *err)
{
    int rc = ew_pooling_needs_text(model, err);

    if (rc < 0)
        return rc;
    if (n_ids < 2)
        return ew_fail(err, EW_ERR_USAGE, "the text has %llu tokens and perplexity needs two",
                       (unsigned long long)n_ids);
    if (out->window < 2 || out->stride == 0 || out->stride > out->window)
        return ew_fail(err, EW_ERR_USAGE, "a window of %u with a stride of %u leaves tokens out", out->window,
                       out->stride);
    for (uint64_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= model->program.n_vocab)
            return ew_fail(err, EW_ERR_FORMAT, "the tokenizer gave token %d and the model has %u", ids[i],
                           model->program.n_vocab);
    return 0;
}

static int evaluate(struct ew_core *core, const struct ew_perplexity_options *options, const int32_t *ids,
                    uint64_t n_ids, uint32_t rows_max, struct ew_perplexity *out, struct ew_error *err)
{
    struct perplexity p = {.core = core, .options = options, .ids = ids, .rows_max = rows_max};
    double started_s = ew_clock_s();
    int rc = run_windows(&p, n_ids, out, err);

    out->seconds = ew_clock_s() - started_s;
    out->arith = core->backend->ops->arith(core->backend);
    out->n_scored = p.n_scored;
    out->nll_per_token = p.nll / (double)p.n_scored;
    out->ppl = exp(out->nll_per_token);
    out->bits_per_byte = p.nll / M_LN2 / (double)out->n_bytes;
    return rc;
}

int ew_eval_perplexity(const struct ew_model *model, const struct ew_engine_config *config, const int32_t *ids,
                       uint64_t n_ids, uint64_t n_bytes, const struct ew_perplexity_options *options,
                       struct ew_perplexity *out, struct ew_error *err)
{
    struct ew_engine_config adapted;
    struct ew_core core;
    uint32_t rows_max;
    int rc;

    *out = (struct ew_perplexity){
        .n_tokens = n_ids, .n_bytes = n_bytes, .window = options->window ? options->window : 1024};
    out->stride = options->stride ? options->stride : EW_MAX(out->window / 2, 1u);
    rc = check(model, ids, n_ids, out, err);
    if (rc < 0)
        return rc;
    adapted = config_for(config, out->window);
    rows_max = EW_MAX(LOGITS_BYTES_MAX / sizeof(float) / model->program.n_vocab, LOGITS_ROWS_MIN);
    rows_max = EW_MIN(rows_max, adapted.max_num_tokens);
    rc = ew_core_init(&core, model, &adapted, rows_max, err);
    if (rc < 0)
        return rc;
    rc = evaluate(&core, options, ids, n_ids, rows_max, out, err);
    ew_core_fini(&core);
    return rc;
}
