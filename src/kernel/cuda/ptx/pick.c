// From rows of logits to tokens, as engine/sampler.c chooses them: the greatest, or a draw from what temperature,
// top-k, top-p and min-p leave, walked in the order of the ids.
//
//   pick_adjust   bias, mask and penalties, in place (only where there are any)
//   pick_max      the greatest logit of a row; greedy rows are done
//   pick_weigh    weights by class: the distance from the greatest logit in halves of the temperature
//   pick_gather   which classes the cuts fall into; their members, and what each part of the row weighs
//   pick_draw     the members in order, the cuts among them, the draw
//
// Weights are whole numbers of 2^-40, so that their sums do not depend on who adds first. A row is shared out among
// PARTS blocks.

#include "kernel/cuda/ptx/gpu.h"

#define PARTS 32       // as EW_CUDA_PICK_PARTS
#define CLASSES 128
#define MEMBERS 2048   // of the classes that the cuts fall into; where there are more, the host chooses
#define UNIT 1099511627776.0f // 2^40
#define BY_HOST (-1)

struct pick { // as struct ew_cuda_pick
    float temperature, top_p, min_p, repetition;
    u32 top_k; // 0: off
    u32 first, n_adjust; // entries of pick_adjust
    u32 flags;           // 1: it has a mask; 2: the host chooses anyway
    double unit;         // in [0, 1)
};

struct adjust { // as struct ew_pick_adjust
    u32 token;
    float bias, subtract;
    u32 is_repeated;
};

// What the kernels of one row hand on.
struct state {
    u64 sums[CLASSES];
    u32 counts[CLASSES];
    u64 kept[PARTS]; // of the classes before those of the members, less what min_p drops
    float max_of[PARTS];
    u32 at_of[PARTS], bad[PARTS];
    float max;
    u32 n_done, n_members, first_class, last_class, n_before;
    u64 before, all; // weights before the members' classes; of all that top-k leaves, 0: the members tell
    u32 member[MEMBERS];
};
_Static_assert(sizeof(struct state) <= 10496, "EW_CUDA_PICK_STATE_BYTES");

static SHARED float g_max[32];
static SHARED u32 g_at[32], g_bad[32], g_flag;
static SHARED u64 g_sums[CLASSES];
static SHARED u32 g_counts[CLASSES];
static SHARED float g_logit[MEMBERS];
static SHARED u32 g_token[MEMBERS];
static SHARED u64 g_scan[32];

INLINE u64 shuffle_up_u64(u64 v, u32 lane, u32 by)
{
    u32 from = lane >= by ? lane - by : lane;
    u64 low = shuffle_from((u32)v, from), high = shuffle_from((u32)(v >> 32), from);

    return lane >= by ? low | high << 32 : 0;
}

// The sum of v over this thread and those before it; *total over all of a block of whole warps.
INLINE u64 block_scan(u64 v, u64 *total)
{
    u32 lane = THREAD % 32, warp = THREAD / 32, n_warps = N_THREADS / 32;
    u64 before = 0, all = 0;

    UNROLL
    for (u32 by = 1; by < 32; by *= 2)
        v += shuffle_up_u64(v, lane, by);
    block_sync();
    if (lane == 31)
        g_scan[warp] = v;
    block_sync();
    for (u32 i = 0; i < n_warps; i++) {
        before += i < warp ? g_scan[i] : 0;
        all += g_scan[i];
    }
    *total = all;
    return before + v;
}

// exp for arguments from -60 to 0, the polynomial of engine/sampler.c.
INLINE float exp_poly(float x)
{
    float shifted = x * 1.44269504f + 12582912.0f;
    float k = shifted - 12582912.0f, r = x - k * 0.693359375f + k * 2.12194440e-4f, p = 1.0f / 720;

    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1;
    p = p * r + 1;
    return p * f32_of_bits((bits_of_f32(shifted) << 23) + 0x3F800000u);
}

// Weights below this distance are left out, as engine/sampler.c does.
INLINE u32 is_candidate(float logit, float max, float temperature, u32 n)
{
    float bits = (float)(32 - __builtin_clz(n)); // of the whole vocabulary: at least its logarithm

    return logit >= max - temperature * ((bits + 24) * 0.6931472f) && logit > NEG_INFINITY;
}

INLINE float weight_of(float logit, float max, float temperature) { return exp_poly((logit - max) / temperature); }
INLINE u64 fixed(float weight) { return (u64)(weight * UNIT); }

INLINE u32 class_of(float logit, float max, float temperature)
{
    return (u32)min_f32((max - logit) / temperature * 2, (float)(CLASSES - 1));
}

// The part of a row that a block has.
INLINE u32 part_begin(u32 part, u32 n) { return (u32)((u64)n * part / PARTS); }

// ---- bias, mask and penalties -------------------------------------------------------------------

KERNEL pick_adjust(float *logits, u32 n, const struct pick *picks, const struct adjust *entries, const u32 *masks,
                   u32 mask_words)
{
    const struct pick *pick = picks + BLOCK_Y;
    u32 has_mask = pick->flags & 1;

    logits += (u64)BLOCK_Y * n;
    masks += (u64)BLOCK_Y * mask_words;
    if (BLOCK_X == 0) {
        for (u32 i = THREAD; i < pick->n_adjust; i += N_THREADS) {
            const struct adjust *entry = entries + pick->first + i;
            float x = logits[entry->token] + entry->bias;

            if (entry->is_repeated)
                x = x > 0 ? x / pick->repetition : x * pick->repetition;
            if (!has_mask || masks[entry->token / 32] >> entry->token % 32 & 1) // else another block's
                logits[entry->token] = x - entry->subtract;
        }
        return;
    }
    if (!has_mask)
        return;
    for (u32 i = (BLOCK_X - 1) * N_THREADS + THREAD; i < n; i += (N_BLOCKS_X - 1) * N_THREADS)
        if (!(masks[i / 32] >> i % 32 & 1))
            logits[i] = NEG_INFINITY;
}

// ---- the greatest -------------------------------------------------------------------------------

INLINE void take_better(float *max, u32 *at, float other, u32 other_at)
{
    u32 better = other > *max || (other == *max && other_at < *at);

    *max = better ? other : *max;
    *at = better ? other_at : *at;
}

// Of the block's values, in its first warp.
INLINE void block_max(float *max, u32 *at, u32 *bad)
{
    u32 lane = THREAD % 32, warp = THREAD / 32, n_warps = N_THREADS / 32;

    for (u32 pass = 0; pass < 2; pass++) {
        UNROLL
        for (u32 o = 16; o; o >>= 1) {
            float other = shuffle_xor(*max, o);
            u32 other_at = shuffle_xor_u32(*at, o);

            take_better(max, at, other, other_at);
            *bad |= shuffle_xor_u32(*bad, o);
        }
        if (pass == 1)
            return;
        if (lane == 0) {
            g_max[warp] = *max;
            g_at[warp] = *at;
            g_bad[warp] = *bad;
        }
        block_sync();
        *max = lane < n_warps ? g_max[lane] : NEG_INFINITY;
        *at = lane < n_warps ? g_at[lane] : 0xFFFFFFFFu;
        *bad = lane < n_warps ? g_bad[lane] : 0;
    }
}

// The last block of a row to come here puts the parts together.
INLINE void join_parts(struct state *state, const struct pick *pick, i32 *token)
{
    float max = THREAD < PARTS ? state->max_of[THREAD] : NEG_INFINITY;
    u32 at = THREAD < PARTS ? state->at_of[THREAD] : 0xFFFFFFFFu, bad = THREAD < PARTS ? state->bad[THREAD] : 0;

    block_sync();
    block_max(&max, &at, &bad);
    for (u32 i = THREAD; i < CLASSES; i += N_THREADS) {
        state->sums[i] = 0;
        state->counts[i] = 0;
    }
    if (THREAD)
        return;
    state->max = max;
    state->n_done = 0;
    state->n_members = 0;
    *token = bad || (pick->flags & 2) || !(max > NEG_INFINITY) ? BY_HOST : (i32)at;
}

// A state's n_done is 0 before the first step.
KERNEL pick_max(const float *logits, u32 n, const struct pick *picks, struct state *states, i32 *tokens)
{
    struct state *state = states + BLOCK_Y;
    u32 end = part_begin(BLOCK_X + 1, n), at = 0xFFFFFFFFu, bad = 0;
    float max = NEG_INFINITY;

    logits += (u64)BLOCK_Y * n;
    for (u32 i = part_begin(BLOCK_X, n) + THREAD; i < end; i += N_THREADS) {
        float x = logits[i];

        bad |= !(x < -NEG_INFINITY);
        take_better(&max, &at, x, i);
    }
    block_max(&max, &at, &bad);
    if (THREAD == 0) {
        state->max_of[BLOCK_X] = max;
        state->at_of[BLOCK_X] = at;
        state->bad[BLOCK_X] = bad;
        device_fence();
        g_flag = atomic_add(&state->n_done, 1) == PARTS - 1;
    }
    block_sync();
    if (!g_flag)
        return;
    device_fence();
    join_parts(state, picks + BLOCK_Y, tokens + BLOCK_Y);
}

// ---- weights by class ---------------------------------------------------------------------------

INLINE u32 is_done(const struct pick *pick, const i32 *token) { return pick->temperature <= 0 || *token == BY_HOST; }

KERNEL pick_weigh(const float *logits, u32 n, const struct pick *picks, struct state *states, const i32 *tokens)
{
    const struct pick *pick = picks + BLOCK_Y;
    struct state *state = states + BLOCK_Y;
    u32 end = part_begin(BLOCK_X + 1, n);
    float max = state->max;

    if (is_done(pick, tokens + BLOCK_Y))
        return;
    logits += (u64)BLOCK_Y * n;
    for (u32 i = THREAD; i < CLASSES; i += N_THREADS) {
        g_sums[i] = 0;
        g_counts[i] = 0;
    }
    block_sync();
    for (u32 i = part_begin(BLOCK_X, n) + THREAD; i < end; i += N_THREADS) {
        float x = logits[i];
        u32 class = class_of(x, max, pick->temperature);

        if (!is_candidate(x, max, pick->temperature, n))
            continue;
        shared_add(g_counts + class, 1);
        shared_add_u64(g_sums + class, fixed(weight_of(x, max, pick->temperature)));
    }
    block_sync();
    for (u32 i = THREAD; i < CLASSES; i += N_THREADS) {
        if (g_counts[i] == 0)
            continue;
        (void)atomic_add(&state->counts[i], g_counts[i]);
        (void)atomic_add_u64(&state->sums[i], g_sums[i]);
    }
}

// ---- where the cuts fall ------------------------------------------------------------------------

INLINE u64 share(u64 sum, float top_p) { return (u64)((double)sum * (double)top_p); }

// The first class in which `weight` is reached, or the last one.
INLINE u32 class_reaching(const struct state *state, u64 weight)
{
    u64 sum = 0;
    u32 i = 0;

    while (i < CLASSES - 1 && (sum += state->sums[i]) < weight)
        i++;
    return i;
}

// Classes before `first` stay whole, those after `last` go. Without cuts all classes are before `first`.
INLINE void find_classes(const struct pick *pick, const struct state *state, u32 *first, u32 *last, u64 *all)
{
    u32 count = 0, i = 0;
    u64 sum = 0;

    *first = *last = CLASSES;
    *all = 0;
    for (u32 c = 0; c < CLASSES; c++) {
        count += state->counts[c];
        *all += state->sums[c];
    }
    if (pick->top_k && pick->top_k < count) {
        for (count = 0; (count += state->counts[i]) < pick->top_k; i++)
            sum += state->sums[i];
        *first = *last = i;
        *all = 0;
        if (pick->top_p < 1)
            *first = min_u32(i, class_reaching(state, share(sum, pick->top_p)));
    } else if (pick->top_p < 1) {
        *first = *last = class_reaching(state, share(*all, pick->top_p));
    }
}

KERNEL pick_gather(const float *logits, u32 n, const struct pick *picks, struct state *states, const i32 *tokens)
{
    const struct pick *pick = picks + BLOCK_Y;
    struct state *state = states + BLOCK_Y;
    u32 end = part_begin(BLOCK_X + 1, n), first, last;
    float max = state->max;
    u64 sum = 0, total, all;

    if (is_done(pick, tokens + BLOCK_Y))
        return;
    find_classes(pick, state, &first, &last, &all);
    logits += (u64)BLOCK_Y * n;
    for (u32 i = part_begin(BLOCK_X, n) + THREAD; i < end; i += N_THREADS) {
        float x = logits[i], weight = weight_of(x, max, pick->temperature);
        u32 class = class_of(x, max, pick->temperature), at;

        if (!is_candidate(x, max, pick->temperature, n) || class > last)
            continue;
        if (class < first) {
            sum += weight >= pick->min_p ? fixed(weight) : 0;
            continue;
        }
        at = atomic_add(&state->n_members, 1);
        if (at < MEMBERS)
            state->member[at] = i;
    }
    (void)block_scan(sum, &total);
    if (THREAD)
        return;
    state->kept[BLOCK_X] = total;
    if (BLOCK_X)
        return;
    state->first_class = first;
    state->all = all;
    state->before = 0;
    state->n_before = 0;
    for (u32 i = 0; i < first; i++) {
        state->before += state->sums[i];
        state->n_before += state->counts[i];
    }
}

// ---- the draw -----------------------------------------------------------------------------------

// The members by falling logits, of equal ones the lower id first; a power of two of them.
INLINE void sort_members(u32 n)
{
    for (u32 size = 2; size <= n; size *= 2) {
        for (u32 step = size / 2; step; step /= 2) {
            block_sync();
            for (u32 i = THREAD; i < n; i += N_THREADS) {
                u32 j = i ^ step, down = (i & size) == 0, is_behind, token;
                float a, b;

                if (j < i) // the other thread of the pair may be writing
                    continue;
                a = g_logit[i];
                b = g_logit[j];
                token = g_token[i];
                is_behind = a < b || (a == b && token > g_token[j]);
                if (is_behind != down)
                    continue;
                g_logit[i] = b;
                g_logit[j] = a;
                g_token[i] = g_token[j];
                g_token[j] = token;
            }
        }
    }
    block_sync();
}

INLINE u32 load_members(const struct state *state, const float *logits)
{
    u32 n = 1;

    while (n < state->n_members)
        n *= 2;
    for (u32 i = THREAD; i < n; i += N_THREADS) {
        u32 is = i < state->n_members, token = is ? state->member[i] : 0xFFFFFFFFu;

        g_token[i] = token;
        g_logit[i] = is ? logits[token] : NEG_INFINITY;
    }
    return n;
}

// How many of the sorted members stay. A thread has neighbouring ones.
INLINE u32 cut_members(const struct pick *pick, const struct state *state)
{
    u32 each = MEMBERS / N_THREADS, begin = THREAD * each, n = state->n_members;
    u64 own = 0, sum, total, limit = ~0ull, n_kept, before;

    if (pick->top_k)
        n = pick->top_k > state->n_before ? min_u32(n, pick->top_k - state->n_before) : 0;
    for (u32 i = begin; i < min_u32(begin + each, n); i++)
        own += fixed(weight_of(g_logit[i], state->max, pick->temperature));
    sum = block_scan(own, &total);
    if (pick->top_p < 1)
        limit = share(state->all ? state->all : state->before + total, pick->top_p);
    before = state->before + sum - own;
    own = 0;
    for (u32 i = begin; i < min_u32(begin + each, n); i++) {
        own += before < limit || (i == 0 && state->n_before == 0);
        before += fixed(weight_of(g_logit[i], state->max, pick->temperature));
    }
    (void)block_scan(own, &n_kept);
    return (u32)n_kept;
}

// Whether a token that is_candidate stays; `cut` is the last of the members that do.
struct cut {
    u32 first_class, any;
    float logit;
    u32 token;
};

INLINE u64 kept_weight(const struct pick *pick, const struct state *state, const struct cut *cut, float x, u32 i, u32 n)
{
    float weight = weight_of(x, state->max, pick->temperature);
    u32 stays = class_of(x, state->max, pick->temperature) < cut->first_class ||
                (cut->any && (x > cut->logit || (x == cut->logit && i <= cut->token)));

    return is_candidate(x, state->max, pick->temperature, n) && stays && weight >= pick->min_p ? fixed(weight) : 0;
}

// Finds the token where the kept weights, added up by id, pass `at`, in the part [begin, end).
INLINE void draw_in_part(const float *logits, u32 n, const struct pick *pick, const struct state *state,
                         const struct cut *cut, u32 begin, u32 end, u64 at, i32 *token)
{
    u32 each = (end - begin + N_THREADS - 1) / N_THREADS, from = begin + THREAD * each;
    u64 own = 0, sum, total;

    for (u32 i = from; i < min_u32(from + each, end); i++)
        own += kept_weight(pick, state, cut, logits[i], i, n);
    sum = block_scan(own, &total) - own;
    if (at < sum || at >= sum + own)
        return;
    for (u32 i = from; i < end; i++) {
        sum += kept_weight(pick, state, cut, logits[i], i, n);
        if (at >= sum)
            continue;
        *token = (i32)i;
        return;
    }
}

KERNEL pick_draw(const float *logits, u32 n, const struct pick *picks, const struct state *states, i32 *tokens)
{
    const struct pick *pick = picks + BLOCK_X;
    const struct state *state = states + BLOCK_X;
    struct cut cut = {state->first_class, 0, 0, 0};
    u32 n_kept = 0, part = 0;
    u64 total = 0, at;

    if (is_done(pick, tokens + BLOCK_X))
        return;
    if (state->n_members > MEMBERS) {
        block_sync(); // all have read the token
        if (THREAD == 0)
            tokens[BLOCK_X] = BY_HOST;
        return;
    }
    logits += (u64)BLOCK_X * n;
    if (THREAD < PARTS)
        g_sums[THREAD] = state->kept[THREAD];
    if (state->n_members) {
        sort_members(load_members(state, logits));
        n_kept = cut_members(pick, state);
    }
    block_sync();
    if (n_kept)
        cut = (struct cut){state->first_class, 1, g_logit[n_kept - 1], g_token[n_kept - 1]};
    for (u32 i = THREAD; i < n_kept; i += N_THREADS) {
        u32 p = 0;

        while (part_begin(p + 1, n) <= g_token[i])
            p++;
        shared_add_u64(g_sums + p, kept_weight(pick, state, &cut, g_logit[i], g_token[i], n));
    }
    block_sync();
    for (u32 i = 0; i < PARTS; i++)
        total += g_sums[i];
    at = (u64)((double)total * pick->unit);
    at = at < total ? at : total - 1;
    while (part < PARTS - 1 && at >= g_sums[part])
        at -= g_sums[part++];
    draw_in_part(logits, n, pick, state, &cut, part_begin(part, n), part_begin(part + 1, n), at, tokens + BLOCK_X);
}
