#include "engine/engine.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "engine/prefix.h"
#include "engine/schedule.h"
#include "engine/texts.h"

int ew_engine_create(const struct ew_model *model, const struct ew_tokenizer *tok_or_null,
                     const struct ew_engine_config *config, struct ew_engine **out, struct ew_error *err)
{
    struct ew_engine *engine = ew_alloc(sizeof(*engine));
    uint32_t n_batch, n_seqs;
    int rc;

    if (!engine)
        return ew_fail_memory(err, sizeof(*engine), "the engine");
    rc = ew_core_init(&engine->core, model, config, 0, err);
    if (rc < 0)
        goto free_engine;
    engine->tok = tok_or_null;
    n_batch = engine->core.config.max_batch_size;
    n_seqs = engine->core.fit.n_resident;
    rc = ew_sampler_init(&engine->sampler, model->program.n_vocab, err);
    if (rc < 0)
        goto destroy;
    rc = ew_delegation_init(&engine->delegation, &engine->core, err);
    if (rc == 0)
        rc = ew_ahead_init(&engine->ahead, &engine->core, err);
    if (rc < 0)
        goto destroy;
    engine->jobs_end = &engine->jobs;
    engine->seq_jobs = ew_alloc_array(n_seqs, sizeof(*engine->seq_jobs));
    engine->running = ew_alloc_array(n_seqs, sizeof(*engine->running));
    engine->work = ew_alloc_array(n_batch, sizeof(*engine->work));
    engine->work_jobs = ew_alloc_array(n_batch, sizeof(*engine->work_jobs));
    engine->texts = ew_alloc_array(n_batch, sizeof(*engine->texts));
    if (!engine->seq_jobs || !engine->running || !engine->work || !engine->work_jobs || !engine->texts) {
        rc = ew_fail_memory(err, n_batch * sizeof(*engine->work), "the scheduler");
        goto destroy;
    }
    *out = engine;
    return 0;
destroy:
    ew_engine_destroy(engine);
    return rc;
free_engine:
    ew_free(engine);
    return rc;
}

void ew_engine_destroy(struct ew_engine *engine)
{
    if (!engine)
        return;
    while (engine->jobs) {
        struct ew_job *job = engine->jobs;

        engine->jobs = job->next;
        ew_job_destroy(job);
    }
    ew_free(engine->seq_jobs);
    ew_free(engine->running);
    ew_free(engine->work);
    ew_free(engine->work_jobs);
    ew_free(engine->texts);
    ew_ahead_fini(&engine->ahead);
    ew_delegation_fini(&engine->delegation);
    ew_sampler_fini(&engine->sampler);
    ew_core_fini(&engine->core);
    ew_free(engine);
}

void ew_engine_stats(const struct ew_engine *engine, struct ew_engine_stats *out)
{
    const struct ew_core *core = &engine->core;

    *out = engine->stats;
    out->need = core->fit.need;
    out->driver_bytes = core->fit.held_bytes;
    out->budget_bytes = core->fit.budget_bytes;
    out->context_max = core->fit.limits.context_max;
    out->blocks_total = ew_cache_blocks_total(&core->cache);
    out->blocks_used = ew_cache_blocks_used(&core->cache);
    out->blocks_cached = ew_cache_blocks_reusable(&core->cache);
    for (const struct ew_job *job = engine->jobs; job; job = job->next) {
        out->n_waiting += !job->seq && !job->is_finished && !job->is_planned;
        out->n_prefilling += job->is_planned || (job->seq && job->n_new == 0);
        out->n_decoding += job->seq && job->n_new > 0;
    }
    out->n_running_max = core->fit.n_resident;
    out->load_s = core->load_s;
    out->arith = core->backend->ops->arith(core->backend);
    out->backend_name = core->backend->ops->name;
    out->backend_text = core->backend->ops->describe(core->backend);
}

// ---- requests ------------------------------------------------------------------------------------------------------

// A whole prompt has room beside the tokens of all other sequences of a step.
static uint32_t prompt_max(const struct ew_engine_config *config)
{
    return config->max_num_tokens - config->max_batch_size + 1;
}

static int plan_length(const struct ew_engine *engine, struct ew_job *job, struct ew_error *err)
{
    uint32_t context = engine->core.fit.limits.context_max, n_ids = job->request.n_ids;

    if (ew_texts_made(engine))
        return ew_texts_check(engine, n_ids, err);
    if (n_ids >= context) {
        ew_fail(err, EW_ERR_LIMIT, "the prompt has %u tokens and the context %u, which leaves no room for an answer",
                n_ids, context);
        return ew_remedy(err, EW_ERR_LIMIT, "Shorten the prompt or raise --ctx");
    }
    if (engine->core.config.whole_prompts && n_ids > prompt_max(&engine->core.config)) {
        ew_fail(err, EW_ERR_LIMIT, "the prompt has %u tokens, and a step takes a whole prompt of %u at most", n_ids,
                prompt_max(&engine->core.config));
        return ew_remedy(err, EW_ERR_LIMIT, "Shorten the prompt, raise max_num_tokens, or enable chunked context");
    }
    job->n_tokens_max = context;
    if (job->request.n_max && job->request.n_max < context - n_ids)
        job->n_tokens_max = n_ids + job->request.n_max;
    if (!ew_schedule_reserve(engine, job->n_tokens_max, job->reserve))
        return ew_fail(err, EW_ERR_LIMIT, "a request of %u tokens needs more cache blocks than there are",
                       job->n_tokens_max);
    return 0;
}

void ew_engine_enqueue(struct ew_engine *engine, struct ew_job *job)
{
    job->share = ew_shares_enter(&engine->shares, job->request.client);
    *engine->jobs_end = job;
    engine->jobs_end = &job->next;
}

int ew_engine_make_job(const struct ew_engine *engine, const struct ew_request *request, struct ew_job **out,
                       struct ew_error *err)
{
    int rc;

    // Before anything is copied: a prompt may be far longer than any context.
    if (request->n_ids > engine->core.fit.limits.context_max)
        return plan_length(engine, &(struct ew_job){.request = *request}, err);
    rc = ew_job_create(request, engine->core.model, engine->tok, out, err);
    if (rc < 0)
        return rc;
    rc = plan_length(engine, *out, err);
    if (rc < 0)
        ew_job_destroy(*out);
    return rc;
}

int ew_engine_submit(struct ew_engine *engine, const struct ew_request *request, uint64_t *id, struct ew_error *err)
{
    struct ew_job *job;
    int rc;

    rc = ew_engine_make_job(engine, request, &job, err);
    if (rc < 0)
        return rc;
    job->id = *id = ++engine->last_id;
    ew_engine_enqueue(engine, job);
    return 0;
}

void ew_engine_finish(struct ew_engine *engine, struct ew_job *job, enum ew_finish why)
{
    ew_ahead_forget(engine, job);
    if (job->seq)
        ew_schedule_release(engine, job, why != EW_FINISH_ERROR);
    ew_shares_leave(&engine->shares, job->share);
    job->rest = ew_answer_end(&job->answer);
    job->finish = why;
    job->is_finished = true;
    job->is_planned = false;
    job->ended_s = ew_clock_s();
    engine->stats.n_finished[why]++;
}

void ew_engine_abort(struct ew_engine *engine, uint64_t id, const struct ew_error *why)
{
    for (struct ew_job *job = engine->jobs; job; job = job->next) {
        if (job->id != id || job->is_finished)
            continue;
        if (why)
            job->error = *why;
        ew_engine_finish(engine, job, why ? EW_FINISH_ERROR : EW_FINISH_CANCELLED);
    }
}

void ew_engine_cancel(struct ew_engine *engine, uint64_t id)
{
    ew_engine_abort(engine, id, NULL);
}

static void end_late_ones(struct ew_engine *engine)
{
    double now_s = ew_clock_s();

    for (struct ew_job *job = engine->jobs; job; job = job->next)
        if (job->request.deadline_s > 0 && !job->is_finished && now_s - job->submitted_s > job->request.deadline_s)
            ew_engine_finish(engine, job, EW_FINISH_DEADLINE);
}

// ---- a step --------------------------------------------------------------------------------------------------------

static bool is_eos(const struct ew_model_tokens *tokens, int32_t token)
{
    for (uint32_t i = 0; i < tokens->n_eos; i++)
        if (tokens->eos[i] == token)
            return true;
    return false;
}

// Adds a chosen token to the answer, and says whether and why that is its end.
static int extend_answer(struct ew_engine *engine, struct ew_job *job, int32_t token, bool *ends, enum ew_finish *why,
                         struct ew_error *err)
{
    bool stopped;
    int rc;

    *ends = true;
    *why = EW_FINISH_STOP;
    if (!job->request.ignore_eos && is_eos(&engine->core.model->tokens, token))
        return 0;
    ew_sequence_push(job->seq, token);
    job->token = token;
    job->has_token = true;
    job->n_new++;
    rc = ew_answer_push(&job->answer, token, &stopped, err);
    if (rc < 0 || stopped)
        return rc;
    *why = job->n_new == job->request.n_max ? EW_FINISH_LENGTH : EW_FINISH_CONTEXT;
    *ends = job->seq->n_tokens == job->n_tokens_max;
    return 0;
}

// A token that the host has to choose, and its logits are gone: the step that ran ahead has overwritten them. It takes
// part in a step again, alone.
static void choose_again(struct ew_engine *engine, struct ew_job *job)
{
    ew_ahead_forget(engine, job);
    (void)ew_sequence_rewind(job->seq, job->seq->n_cached - 1);
    job->is_alone = true;
}

static void sample(struct ew_engine *engine, const struct ew_work *work, struct ew_job *job)
{
    enum ew_finish why = EW_FINISH_ERROR;
    bool ends = true;
    int32_t token;
    int rc = ew_delegate_token(engine, work, job, &token, &job->error);

    if (rc == 0 && token == EW_PICK_BY_HOST) {
        choose_again(engine, job);
        return;
    }
    job->is_alone = false;
    if (job->first_s == 0)
        job->first_s = ew_clock_s();
    if (rc == 0)
        rc = extend_answer(engine, job, token, &ends, &why, &job->error);
    if (ends)
        ew_engine_finish(engine, job, rc < 0 ? EW_FINISH_ERROR : why);
}

// A mixed step's time is divided by tokens: a little unfair to the prompt, whose tokens cost less.
static void count(struct ew_engine *engine, double seconds)
{
    uint64_t n_prefill = 0, n_decode = engine->n_decoding;

    for (uint32_t w = engine->n_decoding; w < engine->n_work; w++)
        n_prefill += engine->work[w].n_tokens;
    ew_pace_note(&engine->pace, engine->n_decoding, (uint32_t)n_prefill, seconds);
    engine->stats.steps++;
    engine->stats.n_batch_last = engine->n_work;
    engine->stats.batch_sequences += engine->n_work;
    engine->stats.batch_steps[ew_batch_bucket(engine->n_work)]++;
    engine->stats.prefill_tokens += n_prefill;
    engine->stats.decode_tokens += n_decode;
    engine->stats.prefill_s += seconds * (double)n_prefill / (double)(n_prefill + n_decode);
    engine->stats.decode_s += seconds * (double)n_decode / (double)(n_prefill + n_decode);
}

// What a step computed may be reused, and its clients had their share of it.
static void settle(struct ew_engine *engine)
{
    for (uint32_t w = 0; w < engine->n_work; w++) {
        struct ew_job *job = engine->work_jobs[w];

        if (engine->core.cache.prefix)
            ew_prefix_keep(engine->core.cache.prefix, job->root, job->seq, false);
        if (w < engine->n_decoding)
            engine->shares.list[job->share].served += 1;
    }
}

int ew_engine_fail_step(struct ew_engine *engine, const struct ew_error *why, struct ew_error *err)
{
    for (uint32_t w = 0; w < engine->n_work; w++) {
        engine->work_jobs[w]->error = *why;
        ew_engine_finish(engine, engine->work_jobs[w], EW_FINISH_ERROR);
    }
    if (err)
        *err = *why;
    return why->code;
}

static bool has_events(const struct ew_engine *engine)
{
    for (const struct ew_job *job = engine->jobs; job; job = job->next)
        if (job->has_token || (job->is_finished && !job->is_taken))
            return true;
    return false;
}

static void free_taken(struct ew_engine *engine)
{
    for (struct ew_job **at = &engine->jobs; *at;) {
        struct ew_job *job = *at;

        if (!job->is_taken) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        if (!job->next)
            engine->jobs_end = at;
        ew_job_destroy(job);
    }
}

int ew_engine_begin(struct ew_engine *engine, bool *idle, struct ew_error *err)
{
    struct ew_error failure = {0};
    int rc;

    free_taken(engine);
    end_late_ones(engine);
    if (ew_texts_made(engine)) {
        ew_texts_begin(engine);
        *idle = engine->n_work == 0;
        return 0;
    }
    engine->is_started = ew_ahead_promote(engine);
    *idle = false;
    if (engine->is_started)
        return 0;
    ew_schedule_admit(engine);
    ew_schedule_plan(engine);
    *idle = engine->n_work == 0;
    if (*idle)
        return 0;
    rc = ew_step_build(&engine->core.step, engine->work, engine->n_work, &failure);
    return rc < 0 ? ew_engine_fail_step(engine, &failure, err) : 0;
}

// One that ran ahead began when the one before it had ended.
static int start_step(struct ew_engine *engine, double *started_s, struct ew_error *err)
{
    *started_s = engine->is_started ? engine->waited_s : ew_clock_s();
    if (engine->is_started)
        return 0;
    ew_ahead_drain(engine);
    ew_delegate_step(engine);
    return ew_step_submit(&engine->core.step, engine->work, engine->n_work, err);
}

int ew_engine_complete(struct ew_engine *engine, struct ew_error *err)
{
    struct ew_error failure = {0};
    double started_s;
    int rc;

    if (ew_texts_made(engine))
        return ew_texts_complete(engine, err);
    rc = start_step(engine, &started_s, &failure);
    if (rc == 0) {
        ew_ahead_start(engine);
        rc = ew_step_wait(&engine->core.step, &failure);
    }
    if (rc < 0)
        return ew_engine_fail_step(engine, &failure, err);
    engine->waited_s = ew_clock_s();
    count(engine, engine->waited_s - started_s);
    settle(engine);
    for (uint32_t w = 0; w < engine->n_work; w++)
        if (engine->work[w].n_logits)
            sample(engine, &engine->work[w], engine->work_jobs[w]);
    return 0;
}

int ew_engine_step(struct ew_engine *engine, bool *idle, struct ew_error *err)
{
    int rc;

    *idle = false;
    if (has_events(engine))
        return 0;
    rc = ew_engine_begin(engine, idle, err);
    return rc < 0 || *idle ? rc : ew_engine_complete(engine, err);
}

// ---- events --------------------------------------------------------------------------------------------------------

static void take_token(struct ew_job *job, struct ew_event *event)
{
    event->kind = EW_EVENT_TOKEN;
    event->token = job->token;
    event->text = ew_buf_str(&job->answer.given);
    event->logprobs = job->logprobs;
    event->n_logprobs = job->request.n_logprobs;
    job->has_token = false;
}

static void take_finished(struct ew_job *job, uint32_t n_vector, struct ew_event *event)
{
    if (job->finish == EW_FINISH_STOP) {
        event->vector = job->vector;
        event->n_vector = n_vector;
    }
    event->kind = EW_EVENT_FINISHED;
    event->text = job->rest;
    event->finish = job->finish;
    if (job->finish == EW_FINISH_ERROR)
        event->error = job->error;
    job->is_taken = true;
}

bool ew_engine_next_event(struct ew_engine *engine, struct ew_event *event)
{
    struct ew_job *job = engine->jobs;
    double first_s;

    while (job && !job->has_token && (!job->is_finished || job->is_taken))
        job = job->next;
    if (!job)
        return false;
    first_s = job->first_s > 0 ? job->first_s : job->ended_s;
    *event = (struct ew_event){
        .request = job->id,
        .tag = job->request.tag,
        .n_prompt = job->request.n_ids,
        .n_reused = job->n_reused,
        .n_new = job->n_new,
        .n_preempted = job->n_preempted,
        .queue_s = (job->started_s > 0 ? job->started_s : job->ended_s) - job->submitted_s,
        .prefill_s = job->started_s > 0 ? first_s - job->started_s : 0,
        .decode_s = job->first_s > 0 && job->ended_s > 0 ? job->ended_s - job->first_s : 0,
    };
    if (job->has_token)
        take_token(job, event);
    else
        take_finished(job, engine->core.model->pooling.width, event);
    return true;
}
