#include "engine/schedule.h"

#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/map.h"
#include "engine/prefix.h"

static uint32_t tokens_pending(const struct ew_job *job)
{
    return job->seq->n_tokens - job->seq->n_cached;
}

// ---- blocks --------------------------------------------------------------------------------------------------------

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

static bool can_reserve(const struct ew_engine *engine, const struct ew_job *job)
{
    const struct ew_cache *cache = &engine->core.cache;

    for (uint32_t g = 0; g < cache->n_groups; g++) {
        uint64_t sum = job->reserve[g];

        for (uint32_t i = 0; i < engine->n_running; i++)
            sum += engine->running[i]->reserve[g];
        if (sum > cache->pools[g].n_blocks)
            return false;
    }
    return true;
}

// Blocks of a group that the sequence has yet to take for its next n tokens.
static uint32_t blocks_to_take(const struct ew_sequence *seq, uint32_t g, uint32_t n)
{
    const struct ew_cache_group *group = &seq->cache->pools[g].group;
    uint32_t n_tokens = EW_MIN(seq->n_cached + n, seq->capacity);
    uint32_t length = ew_cache_table_length(group, n_tokens, seq->cache->block_tokens);

    return length > seq->n_blocks[g] ? length - seq->n_blocks[g] : 0;
}

// Blocks that running requests of lower priority hold: an upper bound of what preempting them all would free.
static uint32_t held_below(const struct ew_engine *engine, int32_t priority, uint32_t g)
{
    uint32_t held = 0;

    for (uint32_t i = engine->n_running; i > 0 && engine->running[i - 1]->request.priority < priority; i--)
        held += engine->running[i - 1]->seq->n_blocks[g] - engine->running[i - 1]->seq->first[g];
    return held;
}

// Whether n more tokens of the sequence fit besides what is planned, were those below this priority gone. A window
// takes no more at once than a chunk does: behind it blocks come free.
static bool has_room(const struct ew_engine *engine, const struct ew_sequence *seq, uint32_t n, int32_t priority)
{
    const struct ew_cache *cache = &engine->core.cache;

    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const struct ew_cache_group *group = &cache->pools[g].group;
        uint64_t wanted = blocks_to_take(seq, g, n);

        if (group->kind == EW_CACHE_WINDOW)
            wanted = EW_MIN(wanted, ew_cache_blocks_needed(group, seq->n_cached + n, engine->core.config.chunk,
                                                           cache->block_tokens));
        if (wanted + engine->planned[g] > (uint64_t)ew_cache_available(cache, g) + held_below(engine, priority, g))
            return false;
    }
    return true;
}

static void plan_blocks(struct ew_engine *engine, const struct ew_sequence *seq, uint32_t n_tokens, bool add)
{
    for (uint32_t g = 0; g < engine->core.cache.n_groups; g++) {
        uint32_t n = blocks_to_take(seq, g, n_tokens);

        engine->planned[g] += add ? n : -n;
    }
}

// ---- running requests ----------------------------------------------------------------------------------------------

static void insert_running(struct ew_engine *engine, struct ew_job *job)
{
    uint32_t at = engine->n_running++;

    for (; at > 0 && engine->running[at - 1]->request.priority < job->request.priority; at--)
        engine->running[at] = engine->running[at - 1];
    engine->running[at] = job;
}

static void remove_running(struct ew_engine *engine, const struct ew_job *job)
{
    uint32_t at = 0;

    while (engine->running[at] != job)
        at++;
    engine->n_running--;
    memmove(engine->running + at, engine->running + at + 1, (engine->n_running - at) * sizeof(*engine->running));
}

static void give_up_blocks(struct ew_engine *engine, struct ew_job *job, bool keep)
{
    if (keep && engine->core.cache.prefix)
        ew_prefix_keep(engine->core.cache.prefix, job->root, job->seq, true);
    ew_sequence_rewind(job->seq, 0);
}

static void preempt(struct ew_engine *engine, struct ew_job *job)
{
    give_up_blocks(engine, job, true);
    job->is_paused = true;
    job->n_preempted++;
    engine->stats.n_preempted++;
}

void ew_schedule_release(struct ew_engine *engine, struct ew_job *job, bool keep)
{
    give_up_blocks(engine, job, keep);
    ew_sequence_reset(job->seq);
    engine->seq_jobs[job->seq - engine->core.seqs] = NULL;
    remove_running(engine, job);
    job->seq = NULL;
    job->is_paused = false;
}

// ---- admission -----------------------------------------------------------------------------------------------------

// Keys rotated for a sequence of one span do not always serve one of another: see struct ew_rope.
static uint64_t rotation_key(const struct ew_program *program, uint32_t span)
{
    uint64_t key = 0;

    for (uint32_t i = 0; i < program->n_ropes; i++) {
        const struct ew_rope *rope = &program->ropes[i];
        uint32_t parts[2] = {0};

        if (rope->freq_long)
            parts[0] = span > rope->span_short_max;
        if (rope->dynamic_base > 0)
            parts[1] = EW_MAX(span, rope->span_short_max);
        if (parts[0] || parts[1])
            key = ew_hash_bytes(parts, sizeof(parts), key + i + 1);
    }
    return key;
}

static struct ew_sequence *free_sequence(struct ew_engine *engine)
{
    for (uint32_t i = 0; i < engine->core.fit.n_resident; i++)
        if (!engine->seq_jobs[i])
            return &engine->core.seqs[i];
    return NULL;
}

static bool goes_before(const struct ew_engine *engine, const struct ew_job *a, const struct ew_job *b)
{
    if (a->request.priority != b->request.priority)
        return a->request.priority > b->request.priority;
    return engine->shares.list[a->share].served < engine->shares.list[b->share].served; // else as submitted
}

struct ew_job *ew_schedule_next(const struct ew_engine *engine)
{
    struct ew_job *best = NULL;

    for (struct ew_job *job = engine->jobs; job; job = job->next)
        if (!job->seq && !job->is_finished && !job->is_planned && (!best || goes_before(engine, job, best)))
            best = job;
    return best;
}

static struct ew_job *next_paused(const struct ew_engine *engine)
{
    for (uint32_t i = 0; i < engine->n_running; i++)
        if (engine->running[i]->is_paused)
            return engine->running[i];
    return NULL;
}

static void adopt_prefix(struct ew_engine *engine, struct ew_job *job)
{
    if (engine->core.cache.prefix && (!job->request.no_reuse || job->n_preempted))
        ew_prefix_adopt(engine->core.cache.prefix, job->root, job->seq, engine->core.backend);
}

// What an active request will take to compute its known tokens and to hold the next one.
static void plan_pending(struct ew_engine *engine, const struct ew_job *job, bool add)
{
    plan_blocks(engine, job->seq, tokens_pending(job) + 1, add);
}

// Whether what the sequence has to compute fits, after requests of lower priority made room. Nobody gives way where it
// would not help.
static bool make_room_below(struct ew_engine *engine, const struct ew_job *job)
{
    uint32_t n = tokens_pending(job) + 1;
    int32_t priority = job->request.priority;

    if (!has_room(engine, job->seq, n, priority))
        return false;
    for (uint32_t i = engine->n_running; i > 0 && !has_room(engine, job->seq, n, INT32_MIN); i--) {
        struct ew_job *victim = engine->running[i - 1];

        if (victim->is_paused || victim->request.priority >= priority)
            continue;
        plan_pending(engine, victim, false);
        preempt(engine, victim);
    }
    return has_room(engine, job->seq, n, INT32_MIN);
}

// Gives the request, whose sequence has its tokens, caches to start with.
static bool take_place(struct ew_engine *engine, struct ew_job *job)
{
    if (engine->core.config.policy == EW_POLICY_GUARANTEED_NO_EVICT && !can_reserve(engine, job))
        return false;
    adopt_prefix(engine, job);
    if (engine->core.config.policy == EW_POLICY_MAX_UTILIZATION && !make_room_below(engine, job)) {
        ew_sequence_rewind(job->seq, 0);
        return false;
    }
    plan_pending(engine, job, true);
    return true;
}

static bool resume(struct ew_engine *engine, struct ew_job *job)
{
    if (!take_place(engine, job))
        return false;
    job->is_paused = false;
    engine->stats.recomputed_tokens += tokens_pending(job) - 1;
    return true;
}

static bool start(struct ew_engine *engine, struct ew_job *job)
{
    struct ew_sequence *seq = free_sequence(engine);

    ew_sequence_append(seq, job->request.ids, job->request.n_ids);
    seq->rope_span = job->n_tokens_max;
    job->seq = seq;
    job->root = rotation_key(&engine->core.model->program, job->n_tokens_max);
    if (!take_place(engine, job)) {
        ew_sequence_reset(seq);
        job->seq = NULL;
        return false;
    }
    engine->seq_jobs[seq - engine->core.seqs] = job;
    job->n_reused = seq->n_cached;
    job->turn = ++engine->last_turn;
    job->started_s = ew_clock_s();
    engine->stats.reused_tokens += job->n_reused;
    engine->shares.list[job->share].served += tokens_pending(job);
    insert_running(engine, job);
    return true;
}

void ew_schedule_admit(struct ew_engine *engine)
{
    bool went_on = true;

    memset(engine->planned, 0, sizeof(engine->planned));
    for (uint32_t i = 0; i < engine->n_running; i++)
        if (!engine->running[i]->is_paused)
            plan_pending(engine, engine->running[i], true);
    // Whoever is first in order and does not fit holds up the others: else it might never fit.
    while (went_on) {
        struct ew_job *paused = next_paused(engine), *waiting = ew_schedule_next(engine);
        bool is_urgent = waiting && (!paused || waiting->request.priority > paused->request.priority);

        if (is_urgent && free_sequence(engine))
            went_on = start(engine, waiting);
        else
            went_on = paused && resume(engine, paused);
    }
}

// ---- the work of a step --------------------------------------------------------------------------------------------

static bool is_decoding(const struct ew_job *job)
{
    return !job->is_paused && tokens_pending(job) == 1;
}

static bool is_prompt(const struct ew_job *job)
{
    return !job->is_paused && tokens_pending(job) > 1;
}

static void drop_work(struct ew_engine *engine, const struct ew_job *job)
{
    for (uint32_t w = 0; w < engine->n_work; w++) {
        uint32_t n_after = engine->n_work - w - 1;

        if (engine->work_jobs[w] != job)
            continue;
        plan_blocks(engine, engine->work[w].seq, engine->work[w].n_tokens, false);
        memmove(engine->work + w, engine->work + w + 1, n_after * sizeof(*engine->work));
        memmove(engine->work_jobs + w, engine->work_jobs + w + 1, n_after * sizeof(*engine->work_jobs));
        engine->n_decoding -= w < engine->n_decoding;
        engine->n_work--;
        return;
    }
}

// The last of the running requests gives its blocks up, then the one before it, until n tokens of this one fit.
// false: those before it have all there is.
static bool make_room(struct ew_engine *engine, const struct ew_job *job, uint32_t n)
{
    ew_sequence_release_passed(job->seq);
    for (uint32_t i = engine->n_running; !has_room(engine, job->seq, n, INT32_MIN);) {
        struct ew_job *victim;

        do {
            if (i == 0 || engine->running[i - 1] == job)
                return false;
            victim = engine->running[--i];
        } while (victim->is_paused || victim->seq->n_cached == 0);
        drop_work(engine, victim);
        preempt(engine, victim);
    }
    return true;
}

static bool add_work(struct ew_engine *engine, struct ew_job *job, uint32_t n_tokens)
{
    struct ew_work *work;

    if (engine->core.config.policy == EW_POLICY_MAX_UTILIZATION && !make_room(engine, job, n_tokens))
        return false;
    work = &engine->work[engine->n_work];
    engine->work_jobs[engine->n_work++] = job;
    *work = (struct ew_work){
        .seq = job->seq,
        .n_tokens = n_tokens,
        .want = n_tokens == tokens_pending(job) ? EW_WANT_LAST : EW_WANT_NONE,
        .is_prompt = n_tokens > 1 || job->n_new == 0,
    };
    plan_blocks(engine, work->seq, work->n_tokens, true);
    job->stepped = engine->stats.steps + 1;
    return true;
}

// Of the decoding requests not yet in this step the one that waited longest, higher priorities first.
static struct ew_job *next_in_turn(const struct ew_engine *engine)
{
    struct ew_job *best = NULL;

    for (uint32_t i = 0; i < engine->n_running; i++) {
        struct ew_job *job = engine->running[i];

        if (!is_decoding(job) || job->stepped > engine->stats.steps)
            continue;
        if (!best || (job->request.priority == best->request.priority && job->stepped < best->stepped))
            best = job;
    }
    return best;
}

static void plan_decoding(struct ew_engine *engine, uint32_t n_slots)
{
    struct ew_job *job;

    while (engine->n_work < n_slots && (job = next_in_turn(engine))) {
        job->stepped = engine->stats.steps + 1; // also where there is no room for it
        if (add_work(engine, job, 1))
            engine->n_decoding++;
    }
}

// Tokens of prompts that may join the decoding sequences.
static uint32_t prompt_budget(const struct ew_engine *engine)
{
    const struct ew_engine_config *config = &engine->core.config;
    uint32_t left = config->max_num_tokens - engine->n_work;

    if (engine->n_decoding == 0 || config->whole_prompts)
        return left;
    return EW_MIN(left, ew_pace_chunk(&engine->pace, engine->n_decoding, config->itl_target_s, left));
}

// Of a prompt that has n tokens to go. A little more than the pace allows takes less time than another step.
static uint32_t prompt_part(uint32_t n, uint32_t left, uint32_t room)
{
    n = EW_MIN(n, room);
    return n <= left + left / 4 ? n : left;
}

static void plan_prompts(struct ew_engine *engine)
{
    const struct ew_engine_config *config = &engine->core.config;
    uint32_t left = prompt_budget(engine), room = config->max_num_tokens - engine->n_work;

    for (uint32_t i = 0; i < engine->n_running && left > 0 && engine->n_work < config->max_batch_size; i++) {
        struct ew_job *job = engine->running[i];
        uint32_t n;

        if (!is_prompt(job))
            continue;
        n = prompt_part(EW_MIN(tokens_pending(job), config->whole_prompts ? UINT32_MAX : config->chunk), left, room);
        if (config->whole_prompts && n < tokens_pending(job) && job->n_preempted == 0)
            continue; // a later step has room for all of it
        if (engine->core.prefix && !config->whole_prompts)
            n = ew_prefix_chunk(engine->core.prefix, job->seq, n);
        if (!add_work(engine, job, n))
            continue;
        left -= EW_MIN(n, left);
        room -= n;
    }
}

void ew_schedule_plan(struct ew_engine *engine)
{
    uint32_t n_slots = engine->core.config.max_batch_size, n_prompts = 0, n_kept;

    engine->n_work = engine->n_decoding = 0;
    memset(engine->planned, 0, sizeof(engine->planned));
    for (uint32_t i = 0; i < engine->n_running; i++)
        n_prompts += is_prompt(engine->running[i]);
    n_kept = n_prompts && (n_slots > 1 || engine->stats.steps % 2); // a slot for a prompt; a single one alternates
    plan_decoding(engine, n_slots - n_kept);
    if (n_prompts)
        plan_prompts(engine);
}
