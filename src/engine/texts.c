#include "engine/texts.h"

#include <math.h>

#include "base/clock.h"
#include "model/pooling.h"

bool ew_texts_made(const struct ew_engine *engine)
{
    return engine->core.model->pooling.kind != EW_POOLING_NONE;
}

int ew_texts_check(const struct ew_engine *engine, uint32_t n_ids, struct ew_error *err)
{
    uint32_t most = engine->core.fit.limits.context_max;

    if (n_ids <= most)
        return 0;
    ew_fail(err, EW_ERR_LIMIT, "the text has %u tokens and the model takes %u", n_ids, most);
    return ew_remedy(err, EW_ERR_LIMIT, "Shorten it, ask for truncation, or raise --ctx where the model allows it");
}

enum ew_rows ew_texts_rows(const struct ew_pooling *pooling)
{
    if (pooling->kind == EW_POOLING_MEAN && !pooling->in_program)
        return EW_ROWS_ALL;
    return pooling->kind == EW_POOLING_CLS ? EW_ROWS_FIRST : EW_ROWS_LAST;
}

static void add(struct ew_engine *engine, struct ew_job *job)
{
    const struct ew_request *request = &job->request;

    engine->texts[engine->n_work] = (struct ew_text){
        .ids = request->ids, .segments = request->segments, .n_ids = request->n_ids};
    engine->work_jobs[engine->n_work++] = job;
    engine->shares.list[job->share].served += request->n_ids;
    job->is_planned = true;
    job->started_s = ew_clock_s();
}

void ew_texts_begin(struct ew_engine *engine)
{
    const struct ew_engine_config *config = &engine->core.config;
    uint32_t left = config->max_num_tokens;
    struct ew_job *job;

    engine->n_work = engine->n_decoding = 0;
    while (engine->n_work < config->max_batch_size && (job = ew_schedule_next(engine)) &&
           job->request.n_ids <= left) {
        left -= job->request.n_ids;
        add(engine, job);
    }
    if (engine->n_work)
        ew_step_build_texts(&engine->core.step, engine->texts, engine->n_work,
                            ew_texts_rows(&engine->core.model->pooling));
}

static void count(struct ew_engine *engine, double seconds)
{
    struct ew_engine_stats *stats = &engine->stats;

    stats->steps++;
    stats->n_batch_last = engine->n_work;
    stats->batch_sequences += engine->n_work;
    stats->batch_steps[ew_batch_bucket(engine->n_work)]++;
    stats->prefill_tokens += engine->core.step.batch.n_tokens;
    stats->prefill_s += seconds;
}

// A vector that is not made of numbers fails its request alone.
static enum ew_finish check(struct ew_job *job, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(job->vector[i])) {
            ew_fail(&job->error, EW_ERR_DEVICE, "element %u of the model's vector is %s", i,
                    isnan(job->vector[i]) ? "not a number" : "infinite");
            return EW_FINISH_ERROR;
        }
    return EW_FINISH_STOP;
}

int ew_texts_complete(struct ew_engine *engine, struct ew_error *err)
{
    const struct ew_pooling *pooling = &engine->core.model->pooling;
    struct ew_error failure = {0};
    double started_s = ew_clock_s();
    int rc = ew_step_run_texts(&engine->core.step, &failure);

    if (rc < 0)
        return ew_engine_fail_step(engine, &failure, err);
    for (uint32_t w = 0; w < engine->n_work; w++) {
        struct ew_job *job = engine->work_jobs[w];

        ew_pool_rows(pooling, ew_step_rows(&engine->core.step, &engine->texts[w]), engine->texts[w].n_rows,
                     job->vector);
        job->first_s = ew_clock_s();
        ew_engine_finish(engine, job, check(job, pooling->width));
    }
    count(engine, ew_clock_s() - started_s);
    return 0;
}
