#include "engine/schedule.h"

#include "base/assert.h"
#include "base/clock.h"

bool ew_schedule_reserve(const struct ew_engine *engine, uint32_t n_tokens, uint32_t reserve[EW_CACHE_GROUPS_MAX])
{
    const struct ew_cache *cache = &engine->core.cache;
    bool fits = true;

    for (uint32_t g = 0; g < cache->n_groups; g++) {
        reserve[g] = ew_cache_blocks_needed(&cache->pools[g].group, n_tokens, engine->core.config.chunk,
                                            cache->block_tokens);
        fits = fits && reserve[g] <= cache->pools[g].n_blocks;
    }
    return fits;
}

static uint32_t blocks_missing(const struct ew_job *job, uint32_t g)
{
    uint32_t held = job->seq->n_blocks[g] - job->seq->first[g];

    EW_ASSERT(held <= job->reserve[g]);
    return job->reserve[g] - held;
}

// Blocks of a group set aside for all running requests; of those, the ones not yet taken.
static uint32_t reserved(const struct ew_engine *engine, uint32_t g, bool only_missing)
{
    uint32_t sum = 0;

    for (const struct ew_job *job = engine->jobs; job; job = job->next)
        if (job->seq)
            sum += only_missing ? blocks_missing(job, g) : job->reserve[g];
    return sum;
}

static bool can_reserve(const struct ew_engine *engine, const struct ew_job *job)
{
    const struct ew_cache *cache = &engine->core.cache;

    for (uint32_t g = 0; g < cache->n_groups; g++)
        if (job->reserve[g] > cache->pools[g].n_blocks - reserved(engine, g, false))
            return false;
    return true;
}

static struct ew_resident *find_session(struct ew_engine *engine, uint32_t session)
{
    for (uint32_t i = 0; session && i < engine->core.fit.n_resident; i++)
        if (engine->residents[i].session == session)
            return &engine->residents[i];
    return NULL;
}

// The idle sequence to take: nobody's first, then the one whose session was used longest ago.
static struct ew_resident *find_idle(struct ew_engine *engine, bool with_blocks)
{
    struct ew_resident *best = NULL;

    for (uint32_t i = 0; i < engine->core.fit.n_resident; i++) {
        struct ew_resident *resident = &engine->residents[i];

        if (resident->job || (with_blocks && engine->core.seqs[i].n_cached == 0))
            continue;
        if (!best || (resident->session != 0) < (best->session != 0) ||
            ((resident->session != 0) == (best->session != 0) && resident->used_step < best->used_step))
            best = resident;
    }
    return best;
}

static struct ew_sequence *sequence_of(struct ew_engine *engine, const struct ew_resident *resident)
{
    return &engine->core.seqs[resident - engine->residents];
}

// Idle sessions lose their caches, one after the other, until what is set aside can really be taken.
static void make_room(struct ew_engine *engine)
{
    struct ew_cache *cache = &engine->core.cache;

    for (uint32_t g = 0; g < cache->n_groups; g++) {
        while (cache->pools[g].n_free < reserved(engine, g, true)) {
            struct ew_resident *victim = find_idle(engine, true);

            EW_ASSERT(victim);
            ew_sequence_reset(sequence_of(engine, victim));
        }
    }
}

// Whether keys rotated for a sequence of span a serve one of span b: see struct ew_rope.
static bool same_rotation(const struct ew_program *program, uint32_t a, uint32_t b)
{
    for (uint32_t i = 0; i < program->n_ropes; i++) {
        const struct ew_rope *rope = &program->ropes[i];

        if (rope->freq_long && (a > rope->span_short_max) != (b > rope->span_short_max))
            return false;
        if (rope->dynamic_base > 0 && EW_MAX(a, rope->span_short_max) != EW_MAX(b, rope->span_short_max))
            return false;
    }
    return true;
}

static void start(struct ew_engine *engine, struct ew_job *job, struct ew_resident *resident)
{
    struct ew_sequence *seq = sequence_of(engine, resident);
    const struct ew_request *request = &job->request;
    uint32_t n = 0;

    if (resident->session && resident->session == request->session &&
        same_rotation(&engine->core.model->program, seq->rope_span, job->n_tokens_max))
        n = ew_sequence_common_prefix(seq, request->ids, request->n_ids - 1); // the last one is computed for its logits
    job->n_reused = ew_sequence_truncate(seq, n);
    ew_sequence_append(seq, request->ids + job->n_reused, request->n_ids - job->n_reused);
    seq->rope_span = job->n_tokens_max;
    resident->session = request->session;
    resident->job = job;
    job->seq = seq;
    job->started_s = ew_clock_s();
    engine->n_running++;
    engine->stats.reused_tokens += job->n_reused;
    make_room(engine);
}

static bool is_open(const struct ew_engine *engine, uint32_t session)
{
    for (uint32_t i = 0; i < engine->n_sessions; i++)
        if (engine->sessions[i] == session)
            return true;
    return false;
}

void ew_schedule_admit(struct ew_engine *engine)
{
    for (struct ew_job *job = engine->jobs; job && engine->n_running < engine->core.config.max_batch_size;
         job = job->next) {
        struct ew_resident *resident;

        if (job->seq || job->is_finished)
            continue;
        if (job->request.session && !is_open(engine, job->request.session))
            job->request.session = 0; // closed in the meantime
        resident = find_session(engine, job->request.session);
        if (resident && resident->job)
            continue; // its session is busy: it waits, others need not
        if (!can_reserve(engine, job))
            break;
        resident = resident ? resident : find_idle(engine, false);
        if (!resident)
            break;
        start(engine, job, resident);
    }
}

static uint32_t tokens_pending(const struct ew_job *job)
{
    return job->seq->n_tokens - job->seq->n_cached;
}

static void add_work(struct ew_engine *engine, struct ew_job *job, uint32_t n_tokens)
{
    engine->work_jobs[engine->n_work] = job;
    engine->work[engine->n_work++] = (struct ew_work){
        .seq = job->seq,
        .n_tokens = n_tokens,
        .want = n_tokens == tokens_pending(job) ? EW_WANT_LAST : EW_WANT_NONE,
    };
}

void ew_schedule_plan(struct ew_engine *engine)
{
    uint32_t left = engine->core.config.max_num_tokens;

    engine->n_work = 0;
    for (struct ew_job *job = engine->jobs; job; job = job->next) {
        if (!job->seq || tokens_pending(job) != 1)
            continue;
        add_work(engine, job, 1);
        left--; // max_num_tokens is at least max_batch_size
    }
    for (struct ew_job *job = engine->jobs; job && left > 0; job = job->next) {
        uint32_t n;

        if (!job->seq || tokens_pending(job) == 1)
            continue;
        n = EW_MIN(EW_MIN(tokens_pending(job), engine->core.config.chunk), left);
        add_work(engine, job, n);
        left -= n;
    }
}

void ew_schedule_release(struct ew_engine *engine, struct ew_job *job, bool keep)
{
    struct ew_resident *resident = &engine->residents[job->seq - engine->core.seqs];

    resident->job = NULL;
    resident->used_step = engine->stats.steps;
    if (!keep || !resident->session) {
        ew_sequence_reset(job->seq);
        resident->session = 0;
    }
    job->seq = NULL;
    engine->n_running--;
}
