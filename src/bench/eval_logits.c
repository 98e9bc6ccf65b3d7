#include "bench/eval_logits.h"

#include <math.h>
#include <stdio.h>

#include "base/assert.h"
#include "bench/eval_vectors.h"
#include "bench/refs.h"
#include "bench/ref_routes.h"

// An expert as good as the one that the reference chose changes logits, but not beyond recognition: with more than
// this, or with NaN, it is not the choice that is wrong. The run with the reference's choices would not show that:
// nothing is fused where rows are traced.
#define TIED_MAX 0.5

static const struct {
    const char *name;
    uint32_t chunk; // 0: the whole prompt
    bool together;  // all sequences in one batch
} g_modes[] = {
    [EW_EVAL_WHOLE] = {"whole", 0, false},
    [EW_EVAL_CHUNK5] = {"chunk5", 5, false},
    [EW_EVAL_TOKEN] = {"token", 1, false},
    [EW_EVAL_BATCH] = {"batch", 0, true},
};

struct comparison {
    double max_abs, sum_diff, sum_ref; // sums of squares
};

// Sequences [first, first + count) run together, from their first token to the end of their continuation.
struct eval {
    struct ew_core *core;
    const struct ew_refs *refs;
    bool greedy;
    uint32_t first, count;
    struct comparison compared[EW_REFS_MAX];
    const float *last[EW_REFS_MAX]; // logits of the newest token, until the next step
    struct ew_eval_case *cases[EW_REFS_MAX];
    struct ew_routes *routes; // NULL: the choice of experts is the backend's own
};

static void compare(struct comparison *to, const float *out, const float *ref, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        double diff = fabs((double)out[i] - (double)ref[i]);

        if (!(diff <= to->max_abs)) // keeps a NaN
            to->max_abs = diff;
        to->sum_diff += diff * diff;
        to->sum_ref += (double)ref[i] * (double)ref[i];
    }
}

static int run_step(struct eval *eval, struct ew_work *work, const uint32_t *owner, uint32_t n, struct ew_error *err)
{
    if (eval->routes)
        ew_routes_step(eval->routes, work, owner, n);
    return ew_step_run(&eval->core->step, work, n, err);
}

static uint32_t plan_prompt_step(struct eval *eval, uint32_t chunk, struct ew_work *work, uint32_t *owner)
{
    uint32_t n = 0;

    for (uint32_t s = eval->first; s < eval->first + eval->count; s++) {
        struct ew_sequence *seq = &eval->core->seqs[s];
        uint32_t left = eval->refs->list[s].n_ids - seq->n_cached;

        if (left == 0)
            continue;
        owner[n] = s;
        work[n++] = (struct ew_work){
            .seq = seq, .n_tokens = chunk ? EW_MIN(chunk, left) : left, .want = EW_WANT_ALL, .is_prompt = true};
    }
    return n;
}

static int feed_prompts(struct eval *eval, uint32_t chunk, struct ew_error *err)
{
    struct ew_work work[EW_REFS_MAX];
    uint32_t owner[EW_REFS_MAX], n, n_vocab = eval->refs->n_vocab;

    while ((n = plan_prompt_step(eval, chunk, work, owner)) > 0) {
        int rc = run_step(eval, work, owner, n, err);

        if (rc < 0)
            return rc;
        for (uint32_t w = 0; w < n; w++) {
            uint32_t at = work[w].seq->n_cached - work[w].n_tokens;

            compare(&eval->compared[owner[w]], ew_step_logits(&eval->core->step, &work[w], 0),
                    eval->refs->list[owner[w]].logits + (size_t)at * n_vocab, work[w].n_tokens * n_vocab);
            eval->last[owner[w]] = ew_step_logits(&eval->core->step, &work[w], work[w].n_tokens - 1);
        }
    }
    return 0;
}

static int32_t argmax(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

// Chooses token i of a continuation. false: it is over, at its end or at its first difference.
static bool continue_one(struct eval *eval, uint32_t s, uint32_t i)
{
    const struct ew_ref *ref = &eval->refs->list[s];
    struct ew_eval_case *result = eval->cases[s];
    int32_t token;

    if (i >= ref->n_greedy || !result->greedy_equal)
        return false;
    token = argmax(eval->last[s], eval->refs->n_vocab);
    if (token != ref->greedy[i]) {
        result->greedy_equal = false;
        result->near_ties += (double)ref->margin[i] <= 2 * eval->compared[s].max_abs;
        return false;
    }
    ew_sequence_push(&eval->core->seqs[s], token);
    return i + 1 < ref->n_greedy;
}

static int continue_greedily(struct eval *eval, struct ew_error *err)
{
    struct ew_work work[EW_REFS_MAX];
    uint32_t owner[EW_REFS_MAX], n = 1;

    for (uint32_t i = 0; n > 0; i++) {
        int rc;

        n = 0;
        for (uint32_t s = eval->first; s < eval->first + eval->count; s++) {
            if (!continue_one(eval, s, i))
                continue;
            owner[n] = s;
            work[n++] = (struct ew_work){.seq = &eval->core->seqs[s], .n_tokens = 1, .want = EW_WANT_LAST};
        }
        rc = n > 0 ? run_step(eval, work, owner, n, err) : 0;
        if (rc < 0)
            return rc;
        for (uint32_t w = 0; w < n; w++)
            eval->last[owner[w]] = ew_step_logits(&eval->core->step, &work[w], 0);
    }
    return 0;
}

static void start(struct eval *eval, uint32_t s)
{
    const struct ew_ref *ref = &eval->refs->list[s];
    struct ew_sequence *seq = &eval->core->seqs[s];

    ew_sequence_reset(seq);
    ew_sequence_append(seq, ref->ids, ref->n_ids);
    seq->rope_span = ref->n_ids + (eval->greedy ? ref->n_greedy : 0);
    eval->compared[s] = (struct comparison){0};
    eval->cases[s]->near_ties = 0;
    eval->cases[s]->has_greedy = eval->cases[s]->greedy_equal = eval->greedy && ref->n_greedy > 0;
}

static void conclude(const struct eval *eval, uint32_t s, double tolerance)
{
    const struct comparison *compared = &eval->compared[s];
    struct ew_eval_case *result = eval->cases[s];
    double rel = sqrt(compared->sum_diff / compared->sum_ref);

    if (eval->routes) {
        result->route_ties = eval->routes->n_ties[s];
        result->rel_aligned = rel;
    } else {
        result->max_abs = compared->max_abs;
        result->rel = rel;
    }
    result->pass = rel <= tolerance; // a NaN fails
    if (eval->routes)
        result->pass = result->pass && result->rel <= TIED_MAX && !eval->routes->n_wrong[s];
    if (result->has_greedy && !result->greedy_equal && result->near_ties == 0)
        result->pass = false;
}

static int run_sequences(struct eval *eval, enum ew_eval_mode mode, double tolerance, struct ew_error *err)
{
    int rc;

    for (uint32_t s = eval->first; s < eval->first + eval->count; s++)
        start(eval, s);
    rc = feed_prompts(eval, g_modes[mode].chunk, err);
    if (rc == 0 && eval->greedy)
        rc = continue_greedily(eval, err);
    for (uint32_t s = eval->first; s < eval->first + eval->count; s++) {
        conclude(eval, s, tolerance);
        ew_sequence_reset(&eval->core->seqs[s]);
    }
    return rc;
}

// Whether the choice of experts may be what is wrong.
static bool want_aligned(const struct eval *eval)
{
    const struct ew_backend *backend = eval->core->backend;
    bool failed = false;

    for (uint32_t s = eval->first; s < eval->first + eval->count; s++)
        failed = failed || !eval->cases[s]->pass;
    return failed && backend->ops->trace && ew_routes_has(&eval->core->model->program);
}

// Once more, with the reference's experts wherever others were chosen.
static int run_aligned(struct eval *eval, enum ew_eval_mode mode, double tolerance, struct ew_error *err)
{
    struct ew_backend *backend = eval->core->backend;
    struct ew_routes routes;
    int rc = ew_routes_record(&routes, eval->core->model, &eval->core->config, eval->refs, err);

    if (rc == 0) {
        routes.tolerance = tolerance;
        eval->routes = &routes;
        backend->ops->trace(backend, ew_routes_trace, &routes);
        rc = run_sequences(eval, mode, tolerance, err);
        backend->ops->trace(backend, NULL, NULL);
        eval->routes = NULL;
    }
    ew_routes_fini(&routes);
    return rc;
}

static int run_together(struct eval *eval, enum ew_eval_mode mode, struct ew_eval_logits *out, struct ew_error *err)
{
    int rc;

    for (uint32_t s = eval->first; s < eval->first + eval->count; s++) {
        eval->cases[s] = &out->cases[out->n_cases++];
        snprintf(eval->cases[s]->name, sizeof(eval->cases[s]->name), "%u/%s", s, g_modes[mode].name);
    }
    rc = run_sequences(eval, mode, out->tolerance, err);
    return rc == 0 && want_aligned(eval) ? run_aligned(eval, mode, out->tolerance, err) : rc;
}

static int run_mode(struct eval *eval, enum ew_eval_mode mode, struct ew_eval_logits *out, struct ew_error *err)
{
    uint32_t step = g_modes[mode].together ? eval->refs->count : 1;
    int rc = 0;

    for (uint32_t s = 0; s < eval->refs->count && rc == 0; s += step) {
        eval->first = s;
        eval->count = step;
        rc = run_together(eval, mode, out, err);
    }
    return rc;
}

static struct ew_engine_config config_for(const struct ew_engine_config *config, const struct ew_refs *refs)
{
    struct ew_engine_config c = *config;

    c.max_num_tokens = c.context_max = c.chunk = 0;
    for (uint32_t s = 0; s < refs->count; s++) {
        c.max_num_tokens += refs->list[s].n_ids;
        c.context_max = EW_MAX(c.context_max, refs->list[s].n_ids + refs->list[s].n_greedy);
    }
    c.max_batch_size = c.max_sessions = refs->count;
    c.self_test = false; // this is one
    return c;
}

static int run_modes(struct ew_core *core, const struct ew_refs *refs, const struct ew_eval_logits_options *options,
                     struct ew_eval_logits *out, struct ew_error *err)
{
    struct eval eval = {.core = core, .refs = refs, .greedy = !options->logits_only};
    int rc = 0;

    out->arith = core->backend->ops->arith(core->backend);
    out->tolerance = options->tolerance > 0 ? options->tolerance : ew_arith_tolerance(out->arith);
    for (uint32_t mode = 0; mode < EW_EVAL_ALL && rc == 0; mode++)
        if (options->mode == EW_EVAL_ALL || options->mode == mode)
            rc = run_mode(&eval, mode, out, err);
    out->pass = rc == 0;
    for (uint32_t i = 0; i < out->n_cases; i++) {
        out->pass = out->pass && out->cases[i].pass;
        out->rel = out->cases[i].rel <= out->rel ? out->rel : out->cases[i].rel;
        out->max_abs = out->cases[i].max_abs <= out->max_abs ? out->max_abs : out->cases[i].max_abs;
    }
    return rc;
}

int ew_eval_logits(const struct ew_model *model, const struct ew_engine_config *config,
                   const struct ew_eval_logits_options *options, struct ew_eval_logits *out, struct ew_error *err)
{
    struct ew_engine_config adapted;
    struct ew_refs refs;
    struct ew_core core;
    int rc;

    *out = (struct ew_eval_logits){0};
    rc = ew_refs_open(&refs, options->ref, model, err);
    if (rc < 0)
        return rc;
    adapted = config_for(config, &refs);
    rc = ew_core_init(&core, model, &adapted, adapted.max_num_tokens, err);
    if (rc == 0) {
        rc = (refs.width ? ew_eval_vectors : run_modes)(&core, &refs, options, out, err);
        ew_core_fini(&core);
    }
    ew_refs_close(&refs);
    return rc;
}
