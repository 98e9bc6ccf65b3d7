// One step: every thread walks the stages and takes units of each while there are any. It goes on when all units of a
// stage are finished, whoever did them: a thread that the system has put aside holds up the others only where it had
// taken something, which matters wherever the machine does other work, too.

#include <math.h>
#include <sched.h>
#include <string.h>

#include "base/assert.h"
#include "kernel/cpu/cpu_backend.h"

#define SHARE_OF_REST 2 // a thread takes at once this part of its share of what is left
#define SPAN_TILES 8     // of a product that prompts and generated tokens take by turns
#define SPINS_MAX 4000  // looks at a counter, some microseconds

static float *row_at(const struct ew_cpu_backend *backend, uint32_t buffer, uint32_t row)
{
    if (buffer == EW_CPU_NO_BUFFER)
        return NULL;
    return backend->work.buffers[buffer] + (uint64_t)row * backend->plan.buffers[buffer].width;
}

static const float *vector_of(const struct ew_cpu_backend *backend, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? NULL : backend->vectors[weight];
}

// ---- rotary tables ------------------------------------------------------------------------------

// Position dimension of pair i: sections are counts of neighbouring pairs.
static uint32_t section_of(const struct ew_rope *rope, uint32_t pair)
{
    for (uint32_t d = 0, end = 0; d < 4; d++) {
        end += rope->sections[d];
        if (pair < end)
            return d;
    }
    return 0;
}

static double frequency(const struct ew_rope *rope, uint32_t pair, uint32_t span, double dynamic)
{
    if (dynamic > 0)
        return pow(dynamic, -2.0 * pair / rope->n_dims);
    return rope->freq_long && span > rope->span_short_max ? rope->freq_long[pair] : rope->freq_short[pair];
}

static double dynamic_base(const struct ew_rope *rope, uint32_t span)
{
    double n = rope->n_dims, factor = rope->dynamic_factor;

    if (rope->dynamic_base <= 0 || span <= rope->span_short_max || rope->n_dims <= 2)
        return 0;
    return rope->dynamic_base * pow(factor * span / rope->span_short_max - (factor - 1), n / (n - 2));
}

static void rope_table_row(const struct ew_cpu_backend *backend, const struct ew_rope *rope, uint32_t t, float *row)
{
    const struct ew_batch *batch = backend->batch;
    uint32_t half = rope->n_dims / 2, span = batch->seqs[backend->work.tokens[t].seq].rope_span;
    bool is_long = rope->freq_long && span > rope->span_short_max;
    double dynamic = dynamic_base(rope, span), scale = is_long ? rope->scale_long : rope->scale_short;

    for (uint32_t i = 0; i < half; i++) {
        uint32_t dim = backend->program->n_position_dims > 1 ? section_of(rope, i) : 0;
        double angle = batch->position[(uint64_t)dim * batch->n_tokens + t] * frequency(rope, i, span, dynamic);

        row[i] = (float)(cos(angle) * scale);
        row[half + i] = (float)(sin(angle) * scale);
    }
}

static void rope_tables(const struct ew_cpu_backend *backend, uint32_t t)
{
    for (uint32_t i = 0; i < backend->program->n_ropes; i++) {
        const struct ew_rope *rope = &backend->program->ropes[i];

        rope_table_row(backend, rope, t, backend->work.rope_rows[i] + (uint64_t)t * rope->n_dims);
    }
}

// ---- steps on one row ---------------------------------------------------------------------------

static void embed_row(const struct ew_cpu_backend *backend, const struct ew_op *op, uint32_t t, float *out)
{
    const struct ew_batch *batch = backend->batch;
    uint32_t width = backend->program->slot_width[op->out];
    int32_t token = batch->token[t];

    if (token < 0) {
        memcpy(out, batch->embedding + (uint64_t)(-1 - token) * width, width * sizeof(*out));
        return;
    }
    ew_cpu_matrix_row(&backend->matrices[op->weight], (uint32_t)token, out);
    if (op->embed.scale != 1)
        backend->ops.scale(out, out, width, op->embed.scale);
}

static void position_row(const struct ew_cpu_backend *backend, const struct ew_op *op, uint32_t t, const float *in,
                         float *out, float *scratch)
{
    const struct ew_batch *batch = backend->batch;
    uint32_t row = op->position.by_segment ? (batch->segment ? batch->segment[t] : 0)
                                           : (uint32_t)(batch->position[t] + op->position.first);

    ew_cpu_matrix_row(&backend->matrices[op->weight], row, scratch);
    backend->ops.add(out, in, scratch, backend->program->slot_width[op->out], 1);
}

static void norm_row(const struct ew_cpu_backend *backend, const struct ew_op *op, const float *in, float *out)
{
    uint32_t width = backend->program->slot_width[op->out], group = op->norm.group ? op->norm.group : width;
    const float *weight = vector_of(backend, op->weight), *bias = vector_of(backend, op->bias);

    for (uint32_t at = 0; at < width; at += group) {
        uint32_t skip = op->norm.weight_per_group ? at : 0;

        backend->ops.norm[op->norm.kind](out + at, in + at, weight ? weight + skip : NULL, bias ? bias + skip : NULL,
                                         group, op->norm.eps, op->norm.weight_offset);
    }
}

static void rope_row(const struct ew_cpu_backend *backend, const struct ew_op *op, uint32_t t, float *x)
{
    const struct ew_rope *rope = &backend->program->ropes[op->rope.table];

    backend->ops.rope(x + op->rope.first, backend->work.rope_rows[op->rope.table] + (uint64_t)t * rope->n_dims,
                      rope->n_dims, op->rope.n_heads, op->rope.head_dim, rope->kind);
}

// The row of `in` that an op reads for its own row.
static uint32_t input_row(const struct ew_cpu_backend *backend, enum ew_op_kind kind, uint32_t row)
{
    return kind == EW_OP_SELECT     ? backend->work.selected[row]
           : kind == EW_OP_DISPATCH ? backend->work.pairs.token[row]
                                    : row;
}

static void combine_row(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t t, float *out)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    const float *weights = row_at(backend, step->in2, t) + op->combine.n_active;
    uint32_t width = backend->program->slot_width[op->out], n = op->combine.n_active;

    memset(out, 0, width * sizeof(*out));
    for (uint32_t j = 0; j < n; j++)
        backend->ops.add(out, out, row_at(backend, step->in, backend->work.pairs.place[t * n + j]), width,
                         op->combine.is_plain ? 1 : weights[j]);
}

// The mean over the sequence of a wanted token.
static void mean_row(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t row, float *out)
{
    const struct ew_batch_seq *seq =
        &backend->batch->seqs[backend->work.tokens[backend->work.selected[row]].seq];
    uint32_t width = backend->program->slot_width[backend->program->ops[step->op].out];

    memset(out, 0, width * sizeof(*out));
    for (uint32_t i = 0; i < seq->n_tokens; i++)
        backend->ops.add(out, out, row_at(backend, step->in, seq->first + i), width, 1);
    backend->ops.scale(out, out, width, 1 / (float)seq->n_tokens);
}

static void sort_pairs(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step)
{
    // One thread does this stage, and nobody reads the pairs before it is finished.
    struct ew_cpu_pairs *pairs = (struct ew_cpu_pairs *)&backend->work.pairs;

    ew_cpu_pairs_sort(pairs, &backend->program->ops[step->op], row_at(backend, step->out, 0),
                      backend->plan.buffers[step->out].width, backend->batch->n_tokens);
}

static void pick_row(const struct ew_op *op, const float *in, float *out)
{
    for (uint32_t piece = 0; piece < op->pick.n_pieces; piece++) {
        uint32_t width = op->pick.width[piece];

        for (uint32_t g = 0; g < op->pick.n_groups; g++, out += width)
            memcpy(out, in + (uint64_t)g * op->pick.stride + op->pick.first[piece], width * sizeof(*out));
    }
}

static void clip_row(float *x, uint32_t n, float limit)
{
    for (uint32_t i = 0; i < n && limit > 0; i++)
        x[i] = fminf(fmaxf(x[i], -limit), limit);
}

static void op_row(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t row, float *scratch)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    const struct ew_cpu_ops *ops = &backend->ops;
    uint32_t width = backend->program->slot_width[op->out];
    const float *in2 = row_at(backend, step->in2, row);
    float *in = row_at(backend, step->in, input_row(backend, op->kind, row));
    float *out = row_at(backend, step->out, row);

    switch (op->kind) {
    case EW_OP_EMBED:
        embed_row(backend, op, row, out);
        break;
    case EW_OP_POSITION:
        position_row(backend, op, row, in, out, scratch);
        break;
    case EW_OP_NORM:
        norm_row(backend, op, in, out);
        break;
    case EW_OP_ROPE:
        rope_row(backend, op, row, out);
        break;
    case EW_OP_ACT:
        ops->act(out, in, width, op->act.act);
        clip_row(out, width, op->act.limit);
        break;
    case EW_OP_GLU:
        ops->glu(out, in, in2, width, op->act.act, op->act.limit, op->act.alpha);
        break;
    case EW_OP_ADD:
        ops->add(out, in, in2, width, op->add.scale);
        break;
    case EW_OP_SCALE:
        ops->scale(out, in, width, op->mul.scale);
        break;
    case EW_OP_SOFTCAP:
        ops->softcap(out, in, width, op->softcap.cap);
        break;
    case EW_OP_SCALE_BY:
        ops->scale(out, in, width, in2[op->scale_by.column]);
        break;
    case EW_OP_PICK:
        pick_row(op, in, out);
        break;
    case EW_OP_ROUTE:
        ew_cpu_route(op, in, vector_of(backend, op->bias), out, scratch);
        break;
    case EW_OP_COMBINE:
        combine_row(backend, step, row, out);
        break;
    case EW_OP_DISPATCH:
    case EW_OP_SELECT:
    case EW_OP_ALL_REDUCE: // one device has the whole sum
        if (op->kind == EW_OP_SELECT && op->select.is_mean)
            mean_row(backend, step, row, out);
        else if (in != out)
            memcpy(out, in, width * sizeof(*out));
        break;
    case EW_OP_LINEAR:
    case EW_OP_HEADS:
    case EW_OP_EXPERTS:
    case EW_OP_ATTENTION:
    case EW_OP_CONV:
    case EW_OP_SCAN:
    case EW_OP_COUNT:
    default:
        EW_ASSERT(!"an op on single rows");
    }
}

static bool is_prompt_row(const struct ew_cpu_backend *backend, uint32_t buffer, uint32_t row)
{
    return backend->plan.has_prompt && backend->plan.buffers[buffer].rows == EW_CPU_ROWS_TOKENS &&
           backend->batch->seqs[backend->work.tokens[row].seq].is_prompt;
}

static void quantise_row(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t row,
                         float *scratch)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    const uint32_t *order = backend->matrices[op->weight].order;
    const float *in = row_at(backend, step->in, row);
    uint32_t width = backend->program->slot_width[op->in];
    struct ew_cpu_q8 q8 = backend->work.q8;

    bool is_prompt = is_prompt_row(backend, step->in, row);

    if (!(is_prompt ? backend->plan.prompt_has_q8 : backend->plan.has_q8))
        q8.q = NULL;
    if (!(is_prompt ? backend->plan.prompt_has_bf16 : backend->plan.has_bf16))
        q8.bf16 = NULL;
    for (uint32_t i = 0; order && i < width; i++)
        scratch[i] = in[order[i]];
    ew_cpu_quantise_row(&backend->ops, order ? scratch : in, width, &q8, row);
}

static void append_row(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t row)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    struct ew_cpu_token token = backend->work.tokens[row];
    const struct ew_batch_seq *seq = &backend->batch->seqs[token.seq];
    const struct ew_cpu_cache *cache = &backend->caches[op->attention.group];

    if (seq->no_cache)
        return;
    ew_cpu_cache_append(&backend->ops, cache, seq->blocks[op->attention.group][token.index / cache->block_tokens],
                        op->attention.cache_layer, token.index % cache->block_tokens, row_at(backend, step->in2, row),
                        row_at(backend, step->in3, row));
}

static void step_row(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t row, float *scratch)
{
    switch (step->kind) {
    case EW_CPU_STEP_OP:
        op_row(backend, step, row, scratch);
        break;
    case EW_CPU_STEP_ROPE_TABLES:
        rope_tables(backend, row);
        break;
    case EW_CPU_STEP_QUANTISE:
        quantise_row(backend, step, row, scratch);
        break;
    case EW_CPU_STEP_APPEND:
        append_row(backend, step, row);
        break;
    case EW_CPU_STEP_SORT:
        sort_pairs(backend, step);
        break;
    }
}

// ---- stages -------------------------------------------------------------------------------------

static uint32_t stage_rows(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage)
{
    switch (stage->rows) {
    case EW_CPU_ROWS_TOKENS:
        break;
    case EW_CPU_ROWS_LOGITS:
        return backend->batch->n_logits;
    case EW_CPU_ROWS_PAIRS:
        return backend->batch->n_tokens * backend->plan.n_active;
    case EW_CPU_ROWS_ONE:
        return 1;
    }
    return backend->batch->n_tokens;
}

static void run_rows(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage, uint32_t row, uint32_t end,
                     float *scratch)
{
    for (; row < end; row++) {
        for (uint32_t i = 0; i < stage->count; i++)
            step_row(backend, &backend->plan.steps[stage->first + i], row, scratch);
    }
}

static struct ew_cpu_linear linear_job(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step,
                                       uint32_t n_rows, float *scratch)
{
    const struct ew_op *op = &backend->program->ops[step->op];

    return (struct ew_cpu_linear){
        .matrix = &backend->matrices[op->weight],
        .x = row_at(backend, step->in, 0),
        .q8 = &backend->work.q8,
        .bias = vector_of(backend, op->bias),
        .out = row_at(backend, step->out, 0),
        .n_rows = n_rows,
        .x_stride = backend->plan.buffers[step->in].width,
        .out_stride = backend->plan.buffers[step->out].width,
        .scratch = scratch,
    };
}

static uint32_t step_tiles(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step)
{
    return ew_cpu_tiles(backend->matrices[backend->program->ops[step->op].weight].rows);
}

// The same product for rows [first, first + n) alone.
static struct ew_cpu_linear rows_of_job(const struct ew_cpu_linear *job, uint32_t first, uint32_t n,
                                        struct ew_cpu_q8 *q8)
{
    struct ew_cpu_linear part = *job;

    *q8 = *job->q8;
    if (q8->bf16)
        q8->bf16 += (uint64_t)first * q8->q_stride;
    if (q8->q) {
        q8->q += (uint64_t)first * q8->q_stride;
        q8->scale += (uint64_t)first * q8->group_stride;
        q8->scaled_sum += (uint64_t)first * q8->group_stride;
        q8->sum += (uint64_t)first * q8->group_stride * 2;
    }
    part.q8 = q8;
    part.x += (uint64_t)first * job->x_stride;
    part.out += (uint64_t)first * job->out_stride;
    part.n_rows = n;
    return part;
}

// One expert's matrix, and the pairs that chose it.
static struct ew_cpu_linear expert_job(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step,
                                       uint32_t expert, struct ew_cpu_matrix *matrix, struct ew_cpu_q8 *q8,
                                       float *scratch)
{
    const struct ew_cpu_pairs *pairs = &backend->work.pairs;
    struct ew_cpu_linear all = linear_job(backend, step, 0, scratch);
    struct ew_cpu_linear job = rows_of_job(&all, pairs->first[expert], pairs->first[expert + 1] - pairs->first[expert],
                                           q8);

    *matrix = *job.matrix;
    matrix->data += expert * matrix->expert_bytes;
    job.matrix = matrix;
    if (job.bias)
        job.bias += (uint64_t)expert * matrix->rows;
    return job;
}

// One product's tiles. Where prompts and generated tokens share a step, each weight is read for both while it is near.
static void run_product(const struct ew_cpu_backend *backend, const struct ew_cpu_linear *job, enum ew_cpu_rows rows,
                        uint32_t from, uint32_t to)
{
    ew_cpu_linear_fn plain = backend->ops.linear[job->matrix->layout],
                     prompt = backend->ops.linear_prompt[job->matrix->layout];
    uint32_t n_spans = rows == EW_CPU_ROWS_TOKENS && prompt ? backend->n_spans : 0;

    if (n_spans < 2) {
        (n_spans && backend->work.spans[0].is_prompt ? prompt : plain)(job, from, to);
        return;
    }
    for (; from < to; from += EW_MIN(to - from, SPAN_TILES)) {
        for (uint32_t i = 0; i < n_spans; i++) {
            const struct ew_cpu_span *span = &backend->work.spans[i];
            struct ew_cpu_q8 q8;
            struct ew_cpu_linear part = rows_of_job(job, span->first, span->n_rows, &q8);

            (span->is_prompt ? prompt : plain)(&part, from, EW_MIN(to, from + SPAN_TILES));
        }
    }
}

// The part of tiles [from, to) of the whole stage that falls on each of its products.
static void run_tiles(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage, uint32_t from,
                      uint32_t to, float *scratch)
{
    uint32_t n_rows = stage_rows(backend, stage);

    for (uint32_t i = 0, first = 0; i < stage->count && first < to; i++) {
        struct ew_cpu_linear job = linear_job(backend, &backend->plan.steps[stage->first + i], n_rows, scratch);
        uint32_t n = ew_cpu_tiles(job.matrix->rows);

        if (from < first + n)
            run_product(backend, &job, stage->rows, from - first, EW_MIN(to - first, n));
        first += n;
        from = EW_MAX(from, first);
    }
}

static uint32_t stage_tiles(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < stage->count; i++)
        n += step_tiles(backend, &backend->plan.steps[stage->first + i]);
    return n;
}

// The most experts that the pairs of this step can have. How many it really is, differs from layer to layer; a thread
// that comes late to a stage must still find the number of units that the others found.
static uint32_t experts_most(const struct ew_cpu_backend *backend)
{
    return EW_MIN(backend->plan.n_experts, backend->batch->n_tokens * backend->plan.n_active);
}

// The same for experts: of each product, the tiles of every expert that has pairs; units beyond those are empty.
static void run_expert_tiles(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage, uint32_t from,
                             uint32_t to, float *scratch)
{
    const struct ew_cpu_pairs *pairs = &backend->work.pairs;

    for (uint32_t i = 0, first = 0; i < stage->count && first < to; i++) {
        const struct ew_cpu_step *step = &backend->plan.steps[stage->first + i];
        uint32_t tiles = step_tiles(backend, step), end = first + experts_most(backend) * tiles;

        while (from < EW_MIN(to, end)) {
            uint32_t used = (from - first) / tiles, begin = first + used * tiles, stop = EW_MIN(begin + tiles, to);
            struct ew_cpu_matrix matrix;
            struct ew_cpu_q8 q8;

            if (used < pairs->n_used) {
                struct ew_cpu_linear job = expert_job(backend, step, pairs->used[used], &matrix, &q8, scratch);

                backend->ops.linear[matrix.layout](&job, from - begin, stop - begin);
            }
            from = stop;
        }
        first = end;
    }
}

// Tiles of every head's matrix. Whoever has the first tile of a head also copies what its product leaves out.
static void run_head_tiles(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage, uint32_t from,
                           uint32_t to, float *scratch)
{
    const struct ew_cpu_step *step = &backend->plan.steps[stage->first];
    const struct ew_op *op = &backend->program->ops[step->op];
    uint32_t tiles = step_tiles(backend, step), n_rows = stage_rows(backend, stage);

    while (from < to) {
        uint32_t head = from / tiles, begin = head * tiles, stop = EW_MIN(begin + tiles, to);
        struct ew_cpu_linear job = linear_job(backend, step, n_rows, scratch);
        struct ew_cpu_matrix matrix = *job.matrix;
        uint32_t rest = op->heads.in_dim - matrix.cols;

        matrix.data += head * matrix.expert_bytes;
        job.matrix = &matrix;
        job.x += head * op->heads.in_dim;
        job.out += head * op->heads.out_dim;
        backend->ops.linear[matrix.layout](&job, from - begin, stop - begin);
        for (uint32_t row = 0; row < n_rows && from == begin && rest; row++)
            memcpy(job.out + (uint64_t)row * job.out_stride + matrix.rows,
                   job.x + (uint64_t)row * job.x_stride + matrix.cols, rest * sizeof(float));
        from = stop;
    }
}

static uint32_t stage_units(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage)
{
    switch (stage->kind) {
    case EW_CPU_STAGE_CHAIN:
        return stage_rows(backend, stage);
    case EW_CPU_STAGE_LINEAR:
        return stage_rows(backend, stage) ? stage_tiles(backend, stage) : 0;
    case EW_CPU_STAGE_HEADS:
        return stage_tiles(backend, stage) *
               backend->program->ops[backend->plan.steps[stage->first].op].heads.n_heads;
    case EW_CPU_STAGE_EXPERTS:
        return stage_tiles(backend, stage) * experts_most(backend);
    case EW_CPU_STAGE_STATE:
        return ew_cpu_state_items(backend, &backend->plan.steps[stage->first]);
    case EW_CPU_STAGE_ATTENTION:
        break;
    }
    return ew_cpu_attention_items(backend, &backend->plan.steps[stage->first]);
}

static void run_units(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage, uint32_t from,
                      uint32_t to, float *scratch)
{
    switch (stage->kind) {
    case EW_CPU_STAGE_CHAIN:
        run_rows(backend, stage, from, to, scratch);
        break;
    case EW_CPU_STAGE_LINEAR:
        run_tiles(backend, stage, from, to, scratch);
        break;
    case EW_CPU_STAGE_HEADS:
        run_head_tiles(backend, stage, from, to, scratch);
        break;
    case EW_CPU_STAGE_EXPERTS:
        run_expert_tiles(backend, stage, from, to, scratch);
        break;
    case EW_CPU_STAGE_ATTENTION:
        ew_cpu_attention_run(backend, &backend->plan.steps[stage->first], from, to, scratch);
        break;
    case EW_CPU_STAGE_STATE:
        ew_cpu_state_run(backend, &backend->plan.steps[stage->first], from, to, scratch);
        break;
    }
}

static void await_units(const struct ew_cpu_progress *progress, uint32_t n)
{
    for (uint32_t i = 0; atomic_load_explicit(&progress->done, memory_order_acquire) != n; i++) {
        if (i >= SPINS_MAX) // whoever has the rest may need this CPU
            sched_yield();
    }
}

// Shares shrink with what is left: memory is read in long runs, since every new one begins with some microseconds of
// waiting, and at the end a thread that was held up has little that others could have done.
static bool take_share(struct ew_cpu_progress *progress, uint32_t n, uint32_t n_threads, uint32_t *from, uint32_t *to)
{
    uint32_t next = atomic_load_explicit(&progress->next, memory_order_relaxed);

    do {
        if (next >= n)
            return false;
        *from = next;
        *to = next + EW_MAX(1, (n - next) / (SHARE_OF_REST * n_threads));
    } while (!atomic_compare_exchange_weak_explicit(&progress->next, &next, *to, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

static void run_stage(const struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage,
                      struct ew_cpu_progress *progress, uint32_t thread, uint32_t n_threads)
{
    uint32_t n = stage_units(backend, stage), from, to;

    while (take_share(progress, n, n_threads, &from, &to)) {
        run_units(backend, stage, from, to, backend->work.scratch[thread]);
        atomic_fetch_add_explicit(&progress->done, to - from, memory_order_acq_rel);
    }
    await_units(progress, n);
}

// Shows an op's rows to the trace as neighbouring rows, and takes them back as it left them.
static void trace_stage(struct ew_cpu_backend *backend, const struct ew_cpu_stage *stage)
{
    const struct ew_cpu_step *step = &backend->plan.steps[stage->first];
    uint32_t width, stride, n_rows = stage_rows(backend, stage);
    float *rows, *packed = (float *)backend->trace_rows.data;

    if (step->kind != EW_CPU_STEP_OP)
        return;
    width = backend->program->slot_width[backend->program->ops[step->op].out];
    stride = backend->plan.buffers[step->out].width;
    rows = row_at(backend, step->out, 0);
    if (stride == width) {
        backend->trace(backend->trace_ctx, backend->program, step->op, rows, n_rows, width);
        return;
    }
    for (uint32_t i = 0; i < n_rows; i++)
        memcpy(packed + (uint64_t)i * width, rows + (uint64_t)i * stride, width * sizeof(*rows));
    backend->trace(backend->trace_ctx, backend->program, step->op, packed, n_rows, width);
    for (uint32_t i = 0; i < n_rows; i++)
        memcpy(rows + (uint64_t)i * stride, packed + (uint64_t)i * width, width * sizeof(*rows));
}

static void step_thread(void *ctx, uint32_t thread, uint32_t n_threads)
{
    struct ew_cpu_backend *backend = ctx;
    const struct ew_cpu_stage *stages = backend->trace ? backend->plan.singles : backend->plan.stages;
    uint32_t n_stages = backend->trace ? backend->plan.n_singles : backend->plan.n_stages;

    for (uint32_t i = 0; i < n_stages; i++) {
        run_stage(backend, &stages[i], &backend->work.progress[i], thread, n_threads);
        if (!backend->trace)
            continue;
        ew_pool_barrier(backend->pool);
        if (thread == 0)
            trace_stage(backend, &stages[i]);
        ew_pool_barrier(backend->pool);
    }
}

void ew_cpu_step_run(struct ew_cpu_backend *backend)
{
    ew_pool_all(backend->pool, step_thread, backend);
}
