#include "bench/eval_self.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "engine/core.h"
#include "model/pooling.h"

#define SEED 20261121
#define PROMPT_TOKENS 24u // of the longer of two prompts: enough for matrix kernels' tiles, and not a multiple of 16
#define PROMPT_TOKENS_LEAST 4u
#define DECODE_STEPS 2u
#define LOGITS_ROWS (1 + 2 * (1 + DECODE_STEPS))
#define DISTURBANCE 1e-4                // relative, of the embeddings: far above f32 rounding, far below saturation
#define RECORD_BYTES_MAX (768ull << 20) // of what the reference computed

// What one traced op computed.
struct record {
    uint32_t op, n_rows, width;
    size_t first; // of its values
};

struct recording {
    struct record *records;
    float *values;
    float *logits; // of all steps
    double amplification[LOGITS_ROWS];
    size_t n_records, n_values, n_logits, records_max, values_max;
    size_t at; // replaying: the next record
    bool overflowed, mismatched;
    struct ew_self *out;
};

// ---- the two traces ------------------------------------------------------------------------------------------------

static void record_op(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                      uint32_t width)
{
    struct recording *r = ctx;
    size_t n = (size_t)n_rows * width;

    if (r->n_records == r->records_max || n > r->values_max - r->n_values) {
        r->overflowed = true;
        return;
    }
    r->records[r->n_records++] = (struct record){op, n_rows, width, r->n_values};
    memcpy(r->values + r->n_values, rows, n * sizeof(*rows));
    r->n_values += n;
}

static void disturb_embedding(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                              uint32_t width)
{
    struct ew_rng rng = ew_rng_at(SEED, op);

    (void)ctx;
    for (size_t i = 0; program->ops[op].kind == EW_OP_EMBED && i < (size_t)n_rows * width; i++)
        rows[i] *= 1 + (float)DISTURBANCE * ew_rng_normal(&rng);
}

// "linear ffn_down": the op, and its weight without the layer's number.
static void name_op(const struct ew_program *program, const struct ew_op *op, char *out, size_t size)
{
    const char *weight = op->weight != EW_WEIGHT_NONE ? program->weights[op->weight].name : "", *dot;

    if (strncmp(weight, "blk.", 4) == 0 && (dot = strchr(weight + 4, '.')))
        weight = dot + 1;
    snprintf(out, size, "%s%s%s", ew_op_name(op->kind), *weight ? " " : "", weight);
}

static struct ew_self_row *find_row(struct ew_self *out, const struct ew_program *program, const struct ew_op *op)
{
    char name[sizeof(out->rows[0].name)];

    name_op(program, op, name, sizeof(name));
    for (uint32_t i = 0; i < out->n_rows; i++)
        if (strcmp(out->rows[i].name, name) == 0)
            return &out->rows[i];
    if (out->n_rows == EW_SELF_ROWS_MAX) // a family with that many different ops shares the last row
        return &out->rows[EW_SELF_ROWS_MAX - 1];
    memcpy(out->rows[out->n_rows].name, name, sizeof(name));
    out->rows[out->n_rows].kind = op->kind;
    return &out->rows[out->n_rows++];
}

// Relative error in the norm; 0 for two zero vectors, infinite where only the reference is zero, NaN kept.
static double relative(const float *out, const float *ref, size_t n, double *max_abs)
{
    double sum_diff = 0, sum_ref = 0;

    *max_abs = 0;
    for (size_t i = 0; i < n; i++) {
        double diff = (double)out[i] - (double)ref[i];

        if (!(fabs(diff) <= *max_abs))
            *max_abs = fabs(diff);
        sum_diff += diff * diff;
        sum_ref += (double)ref[i] * (double)ref[i];
    }
    return sum_diff == 0 ? 0 : sqrt(sum_diff / sum_ref);
}

static void compare_op(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                       uint32_t width)
{
    struct recording *r = ctx;
    const struct record *record = &r->records[r->at];
    size_t n = (size_t)n_rows * width;
    struct ew_self_row *row;
    double rel, max_abs;

    if (r->at == r->n_records || record->op != op || record->n_rows != n_rows || record->width != width) {
        r->mismatched = true;
        return;
    }
    r->at++;
    row = find_row(r->out, program, &program->ops[op]);
    rel = relative(rows, r->values + record->first, n, &max_abs);
    row->n_compared++;
    if (!(rel <= row->rel)) {
        row->rel = rel;
        row->layer = program->ops[op].layer;
    }
    if (!(max_abs <= row->max_abs))
        row->max_abs = max_abs;
    memcpy(rows, r->values + record->first, n * sizeof(*rows));
}

// ---- the steps -----------------------------------------------------------------------------------------------------

enum logits_use { LOGITS_KEEP, LOGITS_AMPLIFICATION, LOGITS_COMPARE, LOGITS_IGNORE };

struct run {
    struct ew_core *core;
    struct recording *recording;
    enum logits_use use;
};

// The rel that counts is the one nearest to what its row is allowed.
static void compare_logits(struct ew_self *out, double rel, double amplification)
{
    if (out->amplification == 0 || !(rel / amplification <= out->logits_rel / out->amplification)) {
        out->logits_rel = rel;
        out->amplification = amplification;
    }
}

static void use_logits(struct recording *r, enum logits_use use, const float *row, size_t n_vocab)
{
    float *kept = r->logits + r->n_logits;
    double *amplification = &r->amplification[r->n_logits / n_vocab], max_abs;

    if (use == LOGITS_KEEP)
        memcpy(kept, row, n_vocab * sizeof(*row));
    else if (use == LOGITS_AMPLIFICATION)
        *amplification = fmax(1, relative(row, kept, n_vocab, &max_abs) / DISTURBANCE);
    else if (use == LOGITS_COMPARE)
        compare_logits(r->out, relative(row, kept, n_vocab, &max_abs), *amplification);
    r->n_logits += n_vocab;
}

static void take_logits(struct run *run, const struct ew_work *work, uint32_t n_work)
{
    for (uint32_t w = 0; w < n_work; w++)
        use_logits(run->recording, run->use, ew_step_logits(&run->core->step, &work[w], 0),
                   run->core->model->program.n_vocab);
}

// Two sequences: a prompt alone, then a shorter prompt beside the first one's decoding, then both decoding.
static int run_steps(struct run *run, uint32_t n_prompt, struct ew_error *err)
{
    struct ew_sequence *a = &run->core->seqs[0], *b = &run->core->seqs[1];
    uint32_t n_vocab = run->core->model->program.n_vocab, second = n_prompt / 2;
    struct ew_rng rng = ew_rng_at(SEED, 0);
    int rc = 0;

    run->recording->n_logits = 0;
    ew_sequence_reset(a);
    ew_sequence_reset(b);
    for (uint32_t i = 0; i < n_prompt + 1 + DECODE_STEPS; i++)
        ew_sequence_push(a, (int32_t)ew_rng_below(&rng, n_vocab));
    for (uint32_t i = 0; i < second + DECODE_STEPS; i++)
        ew_sequence_push(b, (int32_t)ew_rng_below(&rng, n_vocab));
    a->rope_span = b->rope_span = run->core->fit.limits.context_max;
    for (uint32_t i = 0; i < 2 + DECODE_STEPS && rc == 0; i++) {
        struct ew_work work[2] = {
            {.seq = a, .n_tokens = i == 0 ? n_prompt : 1, .want = EW_WANT_LAST, .is_prompt = i == 0},
            {.seq = b, .n_tokens = i == 1 ? second : 1, .want = EW_WANT_LAST, .is_prompt = i == 1},
        };
        uint32_t n_work = i == 0 ? 1 : 2;

        rc = ew_step_run(&run->core->step, work, n_work, err);
        if (rc == 0)
            take_logits(run, work, n_work);
    }
    return rc;
}

static int run_traced(struct ew_core *core, struct recording *recording, ew_trace_fn trace, enum logits_use use,
                      uint32_t n_prompt, struct ew_error *err)
{
    struct run run = {.core = core, .recording = recording, .use = use};
    int rc;

    core->backend->ops->trace(core->backend, trace, recording);
    rc = run_steps(&run, n_prompt, err);
    core->backend->ops->trace(core->backend, NULL, NULL);
    return rc;
}

static int init_core(struct ew_core *core, const struct ew_model *model, const struct ew_engine_config *config,
                     enum ew_kernels kernels, uint32_t n_prompt, struct ew_error *err)
{
    struct ew_engine_config c = *config;
    int rc;

    c.device.kernels = kernels;
    if (kernels == EW_KERNELS_REFERENCE)
        c.backend = "cpu"; // plain C is what every backend is measured by
    c.context_max = n_prompt + 1 + DECODE_STEPS;
    c.max_num_tokens = c.chunk = EW_MAX(n_prompt, 2u);
    c.max_batch_size = c.max_sessions = 2;
    rc = ew_core_init(core, model, &c, 0, err);
    if (rc == 0 && !core->backend->ops->trace) {
        rc = ew_fail(err, EW_ERR_UNSUPPORTED, "the %s backend cannot show what its ops compute",
                     core->backend->ops->name);
        ew_core_fini(core);
    }
    return rc;
}

// ---- the three runs ------------------------------------------------------------------------------------------------

static int record_reference(const struct ew_model *model, const struct ew_engine_config *config,
                            struct recording *recording, uint32_t n_prompt, struct ew_error *err)
{
    struct ew_core core;
    int rc = init_core(&core, model, config, EW_KERNELS_REFERENCE, n_prompt, err);

    if (rc < 0)
        return rc;
    rc = run_traced(&core, recording, record_op, LOGITS_KEEP, n_prompt, err);
    if (rc == 0)
        rc = run_traced(&core, recording, disturb_embedding, LOGITS_AMPLIFICATION, n_prompt, err);
    ew_core_fini(&core);
    if (rc == 0 && (recording->overflowed || recording->n_records == 0))
        rc = ew_fail(err, EW_ERR_MEMORY, "what the reference kernels compute could not be kept");
    return rc;
}

static int compare_fast(const struct ew_model *model, const struct ew_engine_config *config,
                        struct recording *recording, uint32_t n_prompt, struct ew_self *out, struct ew_error *err)
{
    struct run run = {.recording = recording, .use = LOGITS_COMPARE};
    struct ew_core core;
    int rc = init_core(&core, model, config, config->device.kernels, n_prompt, err);

    if (rc < 0)
        return rc;
    run.core = &core;
    snprintf(out->backend_text, sizeof(out->backend_text), "%s", core.backend->ops->describe(core.backend));
    out->arith = core.backend->ops->arith(core.backend);
    rc = run_traced(&core, recording, compare_op, LOGITS_IGNORE, n_prompt, err);
    if (rc == 0 && (recording->mismatched || recording->at != recording->n_records))
        rc = ew_fail(err, EW_ERR_MISMATCH, "the fast backend ran other ops than the reference");
    if (rc == 0)
        rc = run_steps(&run, n_prompt, err);
    ew_core_fini(&core);
    return rc;
}

// Products may be computed in the class's arithmetic, and attention reads caches and writes what they multiply; the
// rest of the ops have no reason to be coarser than the reference.
static void judge(struct ew_self *out)
{
    out->logits_tolerance = ew_arith_tolerance(out->arith) * out->amplification;
    out->pass = out->logits_rel <= out->logits_tolerance;
    for (uint32_t i = 0; i < out->n_rows; i++) {
        enum ew_op_kind kind = out->rows[i].kind;
        bool is_product = kind == EW_OP_LINEAR || kind == EW_OP_HEADS || kind == EW_OP_EXPERTS ||
                          kind == EW_OP_ATTENTION || kind == EW_OP_EMBED;

        out->rows[i].tolerance = ew_arith_tolerance(is_product ? out->arith : EW_ARITH_REFERENCE);
        out->pass = out->pass && out->rows[i].rel <= out->rows[i].tolerance;
    }
}

static uint32_t tokens_of(uint32_t n_prompt)
{
    return n_prompt + n_prompt / 2 + 1 + 2 * DECODE_STEPS;
}

// The longest prompt whose recording stays within the limit; 0 where not even the shortest does.
static uint32_t choose_prompt(const struct ew_program *program, uint64_t *floats_per_token)
{
    uint32_t n = PROMPT_TOKENS, n_active = 1, n_rows = 1;

    *floats_per_token = program->n_vocab; // a selected row may be wider than what it was selected from
    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        n_active = op->kind == EW_OP_ROUTE ? op->route.n_active : n_active;
        n_rows = op->kind == EW_OP_DISPATCH ? n_active : op->kind == EW_OP_COMBINE ? 1 : n_rows; // pairs between them
        *floats_per_token += (uint64_t)n_rows * program->slot_width[op->out];
    }
    while (n >= PROMPT_TOKENS_LEAST && tokens_of(n) * *floats_per_token * sizeof(float) > RECORD_BYTES_MAX)
        n--;
    return n >= PROMPT_TOKENS_LEAST ? n : 0;
}

static int alloc_recording(struct recording *r, const struct ew_program *program, uint32_t n_prompt,
                           uint64_t floats_per_token, struct ew_error *err)
{
    r->records_max = (size_t)program->n_ops * (2 + DECODE_STEPS);
    r->values_max = tokens_of(n_prompt) * floats_per_token;
    r->records = ew_alloc_array(r->records_max, sizeof(*r->records));
    r->values = ew_alloc_array(r->values_max, sizeof(*r->values));
    r->logits = ew_alloc_array((size_t)program->n_vocab * LOGITS_ROWS, sizeof(*r->logits));
    if (!r->records || !r->values || !r->logits)
        return ew_fail_memory(err, r->values_max * sizeof(*r->values), "the reference's results");
    return 0;
}

int ew_eval_self(const struct ew_model *model, const struct ew_engine_config *config, struct ew_self *out,
                 struct ew_error *err)
{
    struct recording recording = {.out = out};
    struct ew_engine_config adapted = *config;
    uint64_t floats_per_token;
    uint32_t n_prompt = choose_prompt(&model->program, &floats_per_token);
    int rc;

    *out = (struct ew_self){.n_tokens = tokens_of(n_prompt)};
    rc = ew_pooling_needs_text(model, err);
    if (rc < 0)
        return rc;
    if (n_prompt == 0)
        return ew_fail(err, EW_ERR_LIMIT, "%s computes too much a token to keep it for comparison", model->path);
    rc = alloc_recording(&recording, &model->program, n_prompt, floats_per_token, err);
    adapted.reserve += recording.values_max * sizeof(*recording.values); // the budget is for both
    if (rc == 0)
        rc = record_reference(model, &adapted, &recording, n_prompt, err);
    if (rc == 0)
        rc = compare_fast(model, &adapted, &recording, n_prompt, out, err);
    if (rc == 0)
        judge(out);
    ew_free(recording.records);
    ew_free(recording.values);
    ew_free(recording.logits);
    return rc;
}
