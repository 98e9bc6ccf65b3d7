#include "engine/ahead.h"

#include "base/alloc.h"
#include "base/log.h"
#include "engine/schedule.h"

// States change with every token: there is no going back from one too many.
static bool is_possible(const struct ew_core *core)
{
    const struct ew_program *program = &core->model->program;
    bool possible = core->backend->ops->runs_ahead && core->backend->ops->picked &&
                    core->model->pooling.kind == EW_POOLING_NONE;

    for (uint32_t g = 0; g < program->n_groups; g++)
        possible = possible && program->groups[g].kind != EW_CACHE_STATE;
    return possible;
}

int ew_ahead_init(struct ew_ahead *ahead, const struct ew_core *core, struct ew_error *err)
{
    uint32_t n = core->config.max_batch_size;

    *ahead = (struct ew_ahead){.is_possible = is_possible(core)};
    if (!ahead->is_possible)
        return 0;
    ahead->work = ew_alloc_array(n, sizeof(*ahead->work));
    ahead->jobs = ew_alloc_array(n, sizeof(*ahead->jobs));
    if (!ahead->work || !ahead->jobs)
        return ew_fail_memory(err, n * sizeof(*ahead->work), "the scheduler");
    return ew_step_init(&ahead->step, core->backend, &core->model->program, &core->fit.limits, err);
}

void ew_ahead_fini(struct ew_ahead *ahead)
{
    ew_step_fini(&ahead->step);
    ew_free(ahead->work);
    ew_free(ahead->jobs);
    *ahead = (struct ew_ahead){0};
}

// What depends on the token that is not known yet keeps a request from it: penalties, masks, probabilities, its end.
static bool is_known(const struct ew_job *job)
{
    const struct ew_sampling *sampling = &job->request.sampling;

    return !job->is_alone && !job->request.mask && job->request.n_logprobs == 0 && sampling->repetition_penalty == 1 &&
           sampling->presence_penalty == 0 && sampling->frequency_penalty == 0 &&
           job->seq->n_tokens + 1 < job->n_tokens_max;
}

static bool can_follow(const struct ew_engine *engine)
{
    const struct ew_ahead *ahead = &engine->ahead;
    const struct ew_batch *batch = &engine->core.step.batch;

    if (!ahead->is_possible || ahead->is_running || !batch->picks || engine->n_work != engine->n_running ||
        engine->n_work != batch->n_logits || engine->n_work != batch->n_seqs)
        return false;
    for (uint32_t w = 0; w < engine->n_work; w++) {
        if (engine->work[w].n_logits != 1 || engine->work[w].first_logit != w || batch->picks[w].by_host ||
            !is_known(engine->work_jobs[w]))
            return false;
    }
    return engine->n_running == engine->core.fit.n_resident || !ew_schedule_next(engine);
}

static int build(struct ew_engine *engine, struct ew_error *err)
{
    struct ew_ahead *ahead = &engine->ahead;
    int rc;

    ahead->n_work = engine->n_work;
    for (uint32_t w = 0; w < engine->n_work; w++) {
        ahead->jobs[w] = engine->work_jobs[w];
        ahead->work[w] = (struct ew_work){
            .seq = engine->work[w].seq, .n_tokens = 1, .want = EW_WANT_LAST, .follows = true};
    }
    rc = ew_step_build(&ahead->step, ahead->work, ahead->n_work, err);
    if (rc == 0)
        ew_delegate_next(engine, &ahead->step.batch, ahead->work, ahead->jobs, ahead->n_work);
    return rc;
}

void ew_ahead_start(struct ew_engine *engine)
{
    struct ew_ahead *ahead = &engine->ahead;
    struct ew_error err;

    if (!can_follow(engine))
        return;
    if (build(engine, &err) < 0)
        return; // no block is left: whoever plans the next step makes room
    if (ahead->step.backend->ops->submit(ahead->step.backend, &ahead->step.batch, &err) < 0)
        ew_log_error(&err); // the steps that follow fail for the same reason, and say so to their clients
    else
        ahead->is_running = true;
}

void ew_ahead_forget(struct ew_engine *engine, const struct ew_job *job)
{
    for (uint32_t w = 0; w < engine->ahead.n_work; w++)
        if (engine->ahead.jobs[w] == job)
            engine->ahead.jobs[w] = NULL;
}

// Rows of the logits stay as they are: a work knows which is its own.
static void take_over(struct ew_engine *engine)
{
    struct ew_ahead *ahead = &engine->ahead;
    struct ew_step step = engine->core.step;

    engine->core.step = ahead->step;
    ahead->step = step;
    ahead->is_running = false;
    engine->n_work = 0;
    for (uint32_t w = 0; w < ahead->n_work; w++) {
        if (!ahead->jobs[w])
            continue;
        engine->work[engine->n_work] = ahead->work[w];
        engine->work_jobs[engine->n_work++] = ahead->jobs[w];
        ahead->work[w].seq->n_cached++;
        ahead->jobs[w]->stepped = engine->stats.steps + 1;
    }
    engine->n_decoding = engine->n_work;
    ahead->n_work = 0;
}

bool ew_ahead_promote(struct ew_engine *engine)
{
    struct ew_ahead *ahead = &engine->ahead;
    bool is_wanted = false;

    for (uint32_t w = 0; w < ahead->n_work; w++)
        is_wanted |= ahead->jobs[w] != NULL;
    if (!ahead->is_running || !is_wanted)
        return false;
    take_over(engine);
    return true;
}

void ew_ahead_drain(struct ew_engine *engine)
{
    struct ew_ahead *ahead = &engine->ahead;
    struct ew_error err;

    if (ahead->is_running && ew_step_wait(&ahead->step, &err) < 0)
        ew_log_error(&err);
    ahead->is_running = false;
    ahead->n_work = 0;
}
