// Choosing tokens where the logits are: what the sampler's settings mean to a backend, and which rows it gets.

#include "base/assert.h"
#include "base/rng.h"
#include "engine/schedule.h"

// ---- of one request -----------------------------------------------------------------------------

struct list {
    struct ew_sampler *sampler; // counts: 1 + a token's place in the list
    struct ew_pick_adjust *entries;
    uint32_t n, n_max;
    bool is_full;
};

static struct ew_pick_adjust *entry_of(struct list *list, int32_t token)
{
    uint32_t *place = &list->sampler->counts[token];

    if (*place == 0 && list->n == list->n_max)
        list->is_full = true;
    if (list->is_full)
        return NULL;
    if (*place == 0) {
        list->entries[list->n] = (struct ew_pick_adjust){.token = token};
        *place = ++list->n;
    }
    return &list->entries[*place - 1];
}

// `subtract` counts how often the answer has the token until finish() knows what that costs.
static void list_history(struct list *list, const struct ew_sampling *sampling, const struct ew_sampler_input *input)
{
    bool repeats = sampling->repetition_penalty != 1;
    bool counts = sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;

    for (uint32_t i = repeats ? 0 : input->n_prompt; (repeats || counts) && i < input->n_history; i++) {
        struct ew_pick_adjust *entry = entry_of(list, input->history[i]);

        if (!entry)
            return;
        entry->is_repeated = repeats;
        entry->subtract += counts && i >= input->n_prompt;
    }
}

static void finish(struct list *list, const struct ew_sampling *sampling)
{
    for (uint32_t i = 0; i < list->n; i++) {
        struct ew_pick_adjust *entry = &list->entries[i];

        if (entry->subtract > 0)
            entry->subtract = sampling->presence_penalty + entry->subtract * sampling->frequency_penalty;
        list->sampler->counts[entry->token] = 0;
    }
}

struct ew_pick ew_sampler_delegate(struct ew_sampler *sampler, const struct ew_sampling *sampling,
                                   const struct ew_sampler_input *input, struct ew_pick_adjust *adjusts,
                                   uint32_t n_max)
{
    struct list list = {.sampler = sampler, .entries = adjusts, .n_max = n_max};
    struct ew_rng rng = ew_rng_at(sampling->seed, input->n_history);

    list_history(&list, sampling, input);
    for (uint32_t i = 0; i < sampling->n_bias; i++) {
        struct ew_pick_adjust *entry = entry_of(&list, sampling->bias[i].token);

        if (entry)
            entry->bias += sampling->bias[i].bias;
    }
    finish(&list, sampling);
    return (struct ew_pick){
        .temperature = sampling->temperature,
        .top_p = sampling->top_p,
        .min_p = sampling->min_p,
        .repetition = sampling->repetition_penalty,
        .top_k = sampling->top_k > 0 ? (uint32_t)sampling->top_k : 0,
        .n_adjust = list.n,
        .adjust = adjusts,
        .mask = input->mask,
        .unit = ew_rng_unit(&rng),
        .by_host = list.is_full,
    };
}

int ew_sampler_pick_adjusted(struct ew_sampler *sampler, const struct ew_sampling *sampling,
                             const struct ew_sampler_input *input, int32_t *token, struct ew_error *err)
{
    struct ew_sampling rest = *sampling;
    struct ew_sampler_input adjusted = *input;

    rest.n_bias = 0;
    rest.repetition_penalty = 1;
    rest.presence_penalty = rest.frequency_penalty = 0;
    adjusted.mask = NULL;
    return ew_sampler_pick(sampler, &rest, &adjusted, token, err);
}

// ---- of a step ----------------------------------------------------------------------------------

static const uint32_t *mask_of(const struct ew_job *job)
{
    const struct ew_request *request = &job->request;

    return request->mask ? request->mask(request->mask_ctx, job->seq->tokens + request->n_ids, job->n_new) : NULL;
}

static struct ew_sampler_input input_of(const struct ew_job *job, const float *logits)
{
    return (struct ew_sampler_input){logits, mask_of(job), job->seq->tokens, job->seq->n_tokens, job->request.n_ids};
}

static const struct ew_pick *pick_of(const struct ew_engine *engine, const struct ew_work *work)
{
    return engine->core.step.batch.picks + work->first_logit;
}

// Log probabilities are the host's: they take the whole row.
static void delegate(struct ew_engine *engine, const struct ew_work *work, const struct ew_job *job, uint32_t *n_used)
{
    struct ew_delegation *d = &engine->delegation;
    struct ew_pick *pick = &d->picks[d->turn][work->first_logit];
    struct ew_sampler_input input;

    *pick = (struct ew_pick){.by_host = true};
    if (work->n_logits > 1 || job->request.n_logprobs)
        return;
    input = input_of(job, NULL);
    input.n_history += work->follows; // what is not known is not looked at: see ew_ahead_start
    *pick = ew_sampler_delegate(&engine->sampler, &job->request.sampling, &input, d->adjusts[d->turn] + *n_used,
                                EW_PICK_ADJUST_MAX - *n_used);
    *n_used += pick->n_adjust;
}

void ew_delegate_next(struct ew_engine *engine, struct ew_batch *batch, const struct ew_work *work,
                      struct ew_job *const *jobs, uint32_t n_work)
{
    struct ew_delegation *d = &engine->delegation;
    uint32_t n_used = 0;

    d->turn = !d->turn;
    for (uint32_t w = 0; w < n_work; w++) {
        if (work[w].n_logits)
            delegate(engine, &work[w], jobs[w], &n_used);
    }
    batch->picks = d->picks[d->turn];
}

void ew_delegate_step(struct ew_engine *engine)
{
    struct ew_batch *batch = &engine->core.step.batch;

    batch->picks = NULL;
    if (!engine->delegation.picks[0] || batch->n_logits == 0 || batch->n_logits > engine->core.config.max_batch_size)
        return;
    for (uint32_t w = 0; w < engine->n_work; w++) {
        if (engine->work[w].n_logits > 1)
            return; // proposals are judged by whole rows
    }
    ew_delegate_next(engine, batch, engine->work, engine->work_jobs, engine->n_work);
}

// The row that the backend left to the host, as it is now.
static int choose_here(struct ew_engine *engine, const struct ew_work *work, struct ew_job *job, int32_t *token,
                       struct ew_error *err)
{
    struct ew_backend *backend = engine->core.backend;
    const struct ew_pick *pick = pick_of(engine, work);
    struct ew_sampler_input input = input_of(job, NULL);
    int rc = backend->ops->logits_row(backend, work->first_logit, &input.logits, err);

    if (rc == 0)
        rc = (pick->by_host ? ew_sampler_pick : ew_sampler_pick_adjusted)(&engine->sampler, &job->request.sampling,
                                                                          &input, token, err);
    if (rc == 0 && job->request.n_logprobs)
        ew_sampler_logprobs(input.logits, engine->sampler.n_vocab, *token, job->logprobs, job->request.n_logprobs);
    return rc;
}

int ew_delegate_token(struct ew_engine *engine, const struct ew_work *work, struct ew_job *job, int32_t *token,
                      struct ew_error *err)
{
    struct ew_backend *backend = engine->core.backend;
    struct ew_sampler_input input;
    int rc;

    if (engine->core.step.batch.picks) {
        *token = backend->ops->picked(backend)[work->first_logit];
        if (*token == EW_PICK_BY_HOST && engine->ahead.is_running)
            return 0;
        return *token == EW_PICK_BY_HOST ? choose_here(engine, work, job, token, err) : 0;
    }
    input = input_of(job, ew_step_logits(&engine->core.step, work, 0));
    rc = ew_sampler_pick(&engine->sampler, &job->request.sampling, &input, token, err);
    if (rc == 0 && job->request.n_logprobs)
        ew_sampler_logprobs(input.logits, engine->sampler.n_vocab, *token, job->logprobs, job->request.n_logprobs);
    return rc;
}

int ew_delegation_init(struct ew_delegation *d, const struct ew_core *core, struct ew_error *err)
{
    uint32_t n = core->config.max_batch_size;

    *d = (struct ew_delegation){0};
    if (!core->backend->ops->picked)
        return 0;
    for (int i = 0; i < 2; i++) {
        d->picks[i] = ew_alloc_array(n, sizeof(*d->picks[i]));
        d->adjusts[i] = ew_alloc_array(EW_PICK_ADJUST_MAX, sizeof(*d->adjusts[i]));
        if (!d->picks[i] || !d->adjusts[i])
            return ew_fail_memory(err, n * sizeof(*d->picks[i]), "the tokens' choice");
    }
    return 0;
}

void ew_delegation_fini(struct ew_delegation *d)
{
    for (int i = 0; i < 2; i++) {
        ew_free(d->picks[i]);
        ew_free(d->adjusts[i]);
    }
    *d = (struct ew_delegation){0};
}
