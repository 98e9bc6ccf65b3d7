#include "bench/eval_self.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "engine/core.h"
#include "engine/recording.h"
#include "model/pooling.h"

#define SEED 20261121
#define PROMPT_TOKENS 24u // of the longer of two prompts: enough for matrix kernels' tiles, and not a multiple of 16
#define PROMPT_TOKENS_LEAST 4u
#define DECODE_STEPS 2u
#define LOGITS_ROWS (1 + 2 * (1 + DECODE_STEPS))
#define DISTURBANCE 1e-4                // relative, of the embeddings: far above f32 rounding, far below saturation
#define RECORD_BYTES_MAX (768ull << 20) // of what the reference computed

struct recording {
    struct ew_recording ops;
    float *logits; // of all steps
    double amplification[LOGITS_ROWS];
    size_t n_logits;
    size_t at; // replaying: the next record
    bool mismatched;
    struct ew_self *out;
};

// ---- the two traces ------------------------------------------------------------------------------------------------

static void record_op(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                      uint32_t width)
{
    ew_recording_add(&((struct recording *)ctx)->ops, program, op, rows, n_rows, width);
}

static void disturb_embedding(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                              uint32_t width)
{
    struct ew_rng rng = ew_rng_at(SEED, op);

    (void)ctx;
    for (size_t i = 0; program->ops[op].kind == EW_OP_EMBED && i < (size_t)n_rows * width; i++)
        rows[i] *= 1 + (float)DISTURBANCE * ew_rng_normal(&rng);
}

static struct ew_self_row *find_row(struct ew_self *out, const struct ew_program *program, const struct ew_op *op)
{
    char name[sizeof(out->rows[0].name)];

    ew_op_label(program, op, name, sizeof(name));
    for (uint32_t i = 0; i < out->n_rows; i++)
        if (strcmp(out->rows[i].name, name) == 0)
            return &out->rows[i];
    if (out->n_rows == EW_SELF_ROWS_MAX) // a family with that many different ops shares the last row
        return &out->rows[EW_SELF_ROWS_MAX - 1];
    memcpy(out->rows[out->n_rows].name, name, sizeof(name));
    out->rows[out->n_rows].kind = op->kind;
    return &out->rows[out->n_rows++];
}

static void compare_op(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                       uint32_t width)
{
    struct recording *r = ctx;
    const struct ew_record *record = &r->ops.records[r->at];
    const float *expected;
    size_t n = (size_t)n_rows * width;
    struct ew_self_row *row;
    double rel, max_abs;

    if (r->at == r->ops.n_records || record->op != op || record->n_rows != n_rows || record->width != width) {
        r->mismatched = true;
        return;
    }
    r->at++;
    row = find_row(r->out, program, &program->ops[op]);
    expected = r->ops.values + record->first;
    rel = ew_relative(rows, expected, n, &max_abs);
    row->n_compared++;
    if (!(rel <= row->rel)) {
        row->rel = rel;
        row->layer = program->ops[op].layer;
    }
    if (!(max_abs <= row->max_abs))
        row->max_abs = max_abs;
    memcpy(rows, expected, n * sizeof(*rows));
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
        *amplification = fmax(1, ew_relative(row, kept, n_vocab, &max_abs) / DISTURBANCE);
    else if (use == LOGITS_COMPARE)
        compare_logits(r->out, ew_relative(row, kept, n_vocab, &max_abs), *amplification);
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
    c.self_test = false; // this is one
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
    if (rc == 0 && (recording->ops.overflowed || recording->ops.n_records == 0))
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
    if (rc == 0 && (recording->mismatched || recording->at != recording->ops.n_records))
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
static uint32_t choose_prompt(const struct ew_program *program)
{
    uint64_t token_bytes = ew_recording_floats(program) * sizeof(float);
    uint32_t n = PROMPT_TOKENS;

    while (n >= PROMPT_TOKENS_LEAST && tokens_of(n) * token_bytes > RECORD_BYTES_MAX)
        n--;
    return n >= PROMPT_TOKENS_LEAST ? n : 0;
}

static int alloc_recording(struct recording *r, const struct ew_program *program, uint32_t n_prompt,
                           struct ew_error *err)
{
    r->logits = ew_alloc_array((size_t)program->n_vocab * LOGITS_ROWS, sizeof(*r->logits));
    if (!r->logits)
        return ew_fail_memory(err, program->n_vocab * LOGITS_ROWS * sizeof(*r->logits), "the reference's logits");
    return ew_recording_init(&r->ops, program, tokens_of(n_prompt), 2 + DECODE_STEPS, err);
}

int ew_eval_self(const struct ew_model *model, const struct ew_engine_config *config, struct ew_self *out,
                 struct ew_error *err)
{
    struct recording recording = {.out = out};
    struct ew_engine_config adapted = *config;
    uint32_t n_prompt = choose_prompt(&model->program);
    int rc;

    *out = (struct ew_self){.n_tokens = tokens_of(n_prompt)};
    rc = ew_pooling_needs_text(model, err);
    if (rc < 0)
        return rc;
    if (n_prompt == 0)
        return ew_fail(err, EW_ERR_LIMIT, "%s computes too much a token to keep it for comparison", model->path);
    rc = alloc_recording(&recording, &model->program, n_prompt, err);
    adapted.reserve += recording.ops.values_max * sizeof(*recording.ops.values); // the budget is for both
    if (rc == 0)
        rc = record_reference(model, &adapted, &recording, n_prompt, err);
    if (rc == 0)
        rc = compare_fast(model, &adapted, &recording, n_prompt, out, err);
    if (rc == 0)
        judge(out);
    ew_recording_fini(&recording.ops);
    ew_free(recording.logits);
    return rc;
}
