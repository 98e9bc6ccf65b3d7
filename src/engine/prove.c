#include "engine/prove.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "engine/core.h"
#include "engine/recording.h"
#include "model/miniature.h"

#define TOKENS_MAX 104 // of a step
#define SEQS_MAX 40
#define CONTEXT 120 // of the longest scene
#define TRIES 3
#define ADJUSTS_MAX (SEQS_MAX * CONTEXT)

// A prompt for each of some sequences in one step, the rest of it in another, then steps in which each has one token.
// Kernels are chosen by the number of tokens: few, some and many of each backend's own ranges.
static const struct scene {
    uint32_t n_seqs, n_prompt, n_rest, n_decode;
} SCENES[] = {{1, 100, 7, 3}, {1, 50, 12, 0}, {1, 28, 20, 0}, {3, 7, 0, 1}, {8, 9, 0, 1}, {12, 1, 0, 1}, {20, 1, 0, 1},
              {40, 1, 0, 1}};

struct proof {
    struct ew_core ref, fast;
    struct ew_recording recording; // of one step
    struct ew_proof *out;
    uint64_t seed;
    uint32_t n_tokens; // of the step
    uint32_t n_draws;  // steps whose tokens were chosen
    size_t at;         // next record
    uint32_t next_op;  // after the last that was shown
    const char *surplus; // what the fast backend showed and the reference had not
    struct ew_sampler sampler;
    struct ew_pick picks[SEQS_MAX];
    struct ew_pick_adjust *adjusts;
};

// ---- rows ---------------------------------------------------------------------------------------

static struct ew_proof_row *find_row(struct ew_proof *out, const char *kernels, const char *op)
{
    struct ew_proof_row *row;

    for (uint32_t i = 0; i < out->n_rows; i++) {
        row = &out->rows[i];
        if (strncmp(row->kernels, kernels, sizeof(row->kernels) - 1) == 0 && strcmp(row->op, op) == 0)
            return row;
    }
    if (out->n_rows == EW_PROOF_ROWS_MAX) // programs with that many share the last one
        return &out->rows[EW_PROOF_ROWS_MAX - 1];
    row = &out->rows[out->n_rows++];
    *row = (struct ew_proof_row){.allowed = 1};
    snprintf(row->kernels, sizeof(row->kernels), "%s", kernels);
    snprintf(row->op, sizeof(row->op), "%s", op);
    return row;
}

// The case that is nearest to what it is allowed counts, or farthest beyond.
static void note(struct proof *p, const char *op, double error, double allowed)
{
    const char *kernels = p->fast.backend->ops->launched(p->fast.backend);
    struct ew_proof_row *row;

    if (!*kernels) // a sum over one device
        return;
    row = find_row(p->out, kernels, op);
    error = isnan(error) ? INFINITY : error;
    row->n_cases++;
    if (row->n_cases > 1 && error / allowed <= row->error / row->allowed)
        return;
    row->error = error;
    row->allowed = allowed;
    row->n_tokens = p->n_tokens;
}

// Products are computed in the class's arithmetic, attention reads and writes what they multiply; the rest has no
// reason to be coarser than the reference. Where a gate is not shown apart from the product behind it, that rounds what
// was rounded before: the errors of both, which know nothing of each other.
static double allowed_of(const struct proof *p, const struct ew_program *program, uint32_t first, uint32_t last)
{
    enum ew_arith arith = EW_ARITH_REFERENCE, widest = p->fast.backend->ops->arith(p->fast.backend);
    bool has_gate = false;

    for (uint32_t i = first; i <= last; i++) {
        enum ew_op_kind kind = program->ops[i].kind;

        if (kind == EW_OP_LINEAR || kind == EW_OP_HEADS || kind == EW_OP_EXPERTS || kind == EW_OP_ATTENTION ||
            kind == EW_OP_EMBED)
            arith = widest;
        has_gate |= kind == EW_OP_GLU && i < last;
    }
    return ew_arith_tolerance(arith) * (has_gate ? sqrt(2) : 1);
}

static void compare(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                    uint32_t width)
{
    struct proof *p = ctx;
    const struct ew_recording *r = &p->recording;
    size_t n = (size_t)n_rows * width;
    char label[48];
    double max_abs;

    while (p->at < r->n_records && r->records[p->at].op < op)
        p->at++; // fused with what follows
    ew_op_label(program, &program->ops[op], label, sizeof(label));
    if (p->at == r->n_records || r->records[p->at].op != op || r->records[p->at].n_rows != n_rows ||
        r->records[p->at].width != width) {
        p->surplus = program->ops[op].weight != EW_WEIGHT_NONE ? program->weights[program->ops[op].weight].name
                                                              : ew_op_name(program->ops[op].kind);
        return;
    }
    note(p, label, ew_relative(rows, r->values + r->records[p->at].first, n, &max_abs),
         allowed_of(p, program, EW_MIN(p->next_op, op), op));
    p->next_op = op + 1;
    memcpy(rows, r->values + r->records[p->at].first, n * sizeof(*rows));
}

// ---- steps --------------------------------------------------------------------------------------

// n_prompt 0: each has one token.
static void plan_work(struct ew_core *core, uint32_t n_seqs, uint32_t n_prompt, struct ew_work *work)
{
    for (uint32_t i = 0; i < n_seqs; i++)
        work[i] = (struct ew_work){.seq = &core->seqs[i],
                                   .n_tokens = EW_MAX(n_prompt, 1u),
                                   .want = EW_WANT_LAST,
                                   .is_prompt = n_prompt > 0};
}

// Each row is chosen in another way, and the same row in the next step.
static struct ew_sampling sampling_of(const struct proof *p, uint32_t row)
{
    struct ew_sampling s = ew_sampling_default();
    uint32_t way = (row + p->n_draws) % 4;

    s.seed = p->seed + row;
    s.temperature = way == 0 ? 0 : 0.8F;
    s.top_k = way == 1 ? 20 : 0;
    s.top_p = way == 2 ? 0.9F : 1;
    s.repetition_penalty = way == 3 ? 1.3F : 1;
    return s;
}

static struct ew_sampler_input input_of(const struct ew_sequence *seq, uint32_t n_history, const float *logits)
{
    return (struct ew_sampler_input){logits, NULL, seq->tokens, n_history, 1};
}

static void delegate(struct proof *p, const struct ew_work *work, uint32_t n_work)
{
    uint32_t n_used = 0;

    for (uint32_t i = 0; i < n_work; i++) {
        struct ew_sampling sampling = sampling_of(p, i);
        struct ew_sampler_input input = input_of(work[i].seq, work[i].seq->n_cached + 1, NULL);

        p->picks[i] = ew_sampler_delegate(&p->sampler, &sampling, &input, p->adjusts + n_used, ADJUSTS_MAX - n_used);
        n_used += p->picks[i].n_adjust;
    }
    p->fast.step.batch.picks = p->picks;
}

// The reference's logits are where the backend chooses from, too: the trace put them there.
static int compare_picks(struct proof *p, const struct ew_work *ref_work, const struct ew_work *work, uint32_t n_work,
                         struct ew_error *err)
{
    const int32_t *picked = p->fast.backend->ops->picked(p->fast.backend);
    uint32_t n_wrong = 0;
    int rc = 0;

    for (uint32_t i = 0; i < n_work && rc == 0; i++) {
        struct ew_sampling sampling = sampling_of(p, i);
        struct ew_sampler_input input = input_of(work[i].seq, work[i].seq->n_cached,
                                                 ew_step_logits(&p->ref.step, &ref_work[i], 0));
        int32_t token = 0;

        rc = ew_sampler_pick(&p->sampler, &sampling, &input, &token, err);
        n_wrong += picked[i] != EW_PICK_BY_HOST && picked[i] != token;
    }
    note(p, "sampling", (double)n_wrong / n_work, 0.5 / n_work);
    p->n_draws++;
    return rc;
}

static int step_fast(struct proof *p, struct ew_work *work, uint32_t n_work, bool picks, struct ew_error *err)
{
    int rc = ew_step_build(&p->fast.step, work, n_work, err);

    if (rc == 0 && picks)
        delegate(p, work, n_work);
    if (rc == 0)
        rc = ew_step_submit(&p->fast.step, work, n_work, err);
    return rc ? rc : ew_step_wait(&p->fast.step, err);
}

static void begin_step(struct proof *p, uint32_t n_tokens)
{
    ew_recording_clear(&p->recording);
    p->at = p->next_op = 0;
    p->n_tokens = n_tokens;
}

static int check_step(struct proof *p, struct ew_error *err)
{
    if (p->recording.overflowed)
        return ew_fail(err, EW_ERR_MEMORY, "what the reference kernels compute could not be kept");
    if (p->surplus)
        return ew_fail(err, EW_ERR_MISMATCH, "the backend computes other rows for %s than the reference", p->surplus);
    return 0;
}

static int run_step(struct proof *p, uint32_t n_seqs, uint32_t n_prompt, struct ew_error *err)
{
    struct ew_work ref_work[SEQS_MAX], work[SEQS_MAX];
    bool picks = n_prompt == 0 && p->fast.backend->ops->picked;
    int rc;

    begin_step(p, n_seqs * EW_MAX(n_prompt, 1u));
    plan_work(&p->ref, n_seqs, n_prompt, ref_work);
    plan_work(&p->fast, n_seqs, n_prompt, work);
    rc = ew_step_run(&p->ref.step, ref_work, n_seqs, err);
    if (rc == 0)
        rc = step_fast(p, work, n_seqs, picks, err);
    if (rc == 0 && picks)
        rc = compare_picks(p, ref_work, work, n_seqs, err);
    return rc ? rc : check_step(p, err);
}

static void begin_scene(struct proof *p, const struct scene *scene)
{
    struct ew_rng rng = ew_rng_at(p->seed, scene->n_seqs * CONTEXT + scene->n_prompt);
    uint32_t n_vocab = p->ref.model->program.n_vocab;

    for (uint32_t i = 0; i < scene->n_seqs; i++) {
        struct ew_sequence *a = &p->ref.seqs[i], *b = &p->fast.seqs[i];

        ew_sequence_reset(a);
        ew_sequence_reset(b);
        a->rope_span = b->rope_span = p->ref.fit.limits.context_max;
        for (uint32_t k = 0; k < scene->n_prompt + scene->n_rest + scene->n_decode; k++) {
            int32_t token = (int32_t)ew_rng_below(&rng, n_vocab);

            ew_sequence_push(a, token);
            ew_sequence_push(b, token);
        }
    }
}

// Of models that make vectors: whole texts, no caches.
static int run_texts(struct proof *p, const struct scene *scene, struct ew_error *err)
{
    struct ew_text texts[SEQS_MAX] = {0};
    int rc;

    for (uint32_t i = 0; i < scene->n_seqs; i++) {
        texts[i].ids = p->ref.seqs[i].tokens;
        texts[i].n_ids = scene->n_prompt;
    }
    begin_step(p, scene->n_seqs * scene->n_prompt);
    ew_step_build_texts(&p->ref.step, texts, scene->n_seqs, EW_ROWS_LAST);
    ew_step_build_texts(&p->fast.step, texts, scene->n_seqs, EW_ROWS_LAST);
    rc = ew_step_run_texts(&p->ref.step, err);
    if (rc == 0)
        rc = ew_step_run_texts(&p->fast.step, err);
    return rc ? rc : check_step(p, err);
}

static int run_scene(struct proof *p, const struct scene *scene, struct ew_error *err)
{
    const struct ew_limits *limits = &p->fast.fit.limits;
    int rc;

    if (scene->n_seqs > limits->n_seqs_max || scene->n_seqs * scene->n_prompt > limits->n_tokens_max)
        return 0;
    begin_scene(p, scene);
    if (p->ref.model->pooling.kind != EW_POOLING_NONE)
        return run_texts(p, scene, err);
    rc = run_step(p, scene->n_seqs, scene->n_prompt, err);
    if (rc == 0 && scene->n_rest)
        rc = run_step(p, scene->n_seqs, scene->n_rest, err);
    for (uint32_t i = 0; i < scene->n_decode && rc == 0; i++)
        rc = run_step(p, scene->n_seqs, 0, err);
    return rc;
}

// ---- both backends ------------------------------------------------------------------------------

static struct ew_engine_config config_of(const struct ew_engine_config *config)
{
    struct ew_engine_config c = *config;

    c.self_test = c.show_progress = c.reuse = false;
    c.memory_budget = c.reserve = 0;
    c.memory_utilization = 0;
    c.context_max = CONTEXT;
    c.max_batch_size = c.max_sessions = EW_MIN(c.max_batch_size, SEQS_MAX);
    c.max_num_tokens = c.chunk = EW_MAX(EW_MIN(c.max_num_tokens, TOKENS_MAX), c.max_batch_size);
    return c;
}

static int open_cores(struct proof *p, struct ew_backend *backend, const struct ew_model *mini,
                      const struct ew_engine_config *config, struct ew_error *err)
{
    struct ew_engine_config c = config_of(config);
    struct ew_backend *sibling = NULL;
    int rc = backend->ops->sibling(backend, &sibling, err);

    if (rc == 0)
        rc = ew_core_init_on(&p->fast, mini, &c, sibling, 0, err);
    c.backend = "cpu";
    c.device.kernels = EW_KERNELS_REFERENCE;
    c.device.cpu_max = NULL;
    if (rc == 0)
        rc = ew_core_init(&p->ref, mini, &c, 0, err);
    if (rc == 0)
        rc = ew_recording_init(&p->recording, &mini->program, EW_MAX(TOKENS_MAX, c.max_num_tokens), 1, err);
    if (rc == 0)
        rc = ew_sampler_init(&p->sampler, mini->program.n_vocab, err);
    p->adjusts = ew_alloc_array(ADJUSTS_MAX, sizeof(*p->adjusts));
    if (rc == 0 && !p->adjusts)
        rc = ew_fail_memory(err, ADJUSTS_MAX * sizeof(*p->adjusts), "a self-test");
    return rc;
}

static void close_cores(struct proof *p)
{
    if (p->fast.backend)
        ew_core_fini(&p->fast);
    if (p->ref.backend)
        ew_core_fini(&p->ref);
    ew_recording_fini(&p->recording);
    ew_sampler_fini(&p->sampler);
    ew_free(p->adjusts);
}

static int judge(const struct ew_proof *out, struct ew_error *err)
{
    for (uint32_t i = 0; i < out->n_rows; i++) {
        const struct ew_proof_row *row = &out->rows[i];

        ew_log(EW_LOG_DEBUG, "self-test: %s (%s, %u cases) %.3g of %.3g in a step of %u", row->kernels, row->op,
               row->n_cases, row->error, row->allowed, row->n_tokens);
        if (row->error <= row->allowed)
            continue;
        return ew_fail(err, EW_ERR_MISMATCH,
                       "the self-test finds the GPU's kernels %s wrong: in a step of %u tokens, %s is %.3g off, and "
                       "%.3g is allowed",
                       row->kernels, row->n_tokens, row->op, row->error, row->allowed);
    }
    return 0;
}

int ew_prove(struct ew_backend *backend, const struct ew_model *model, const struct ew_engine_config *config,
             uint64_t seed, struct ew_proof *out, struct ew_error *err)
{
    struct proof *p = ew_alloc(sizeof(*p));
    double started_s = ew_clock_s();
    struct ew_model *mini = NULL;
    int rc;

    *out = (struct ew_proof){0};
    if (!p)
        return ew_fail_memory(err, sizeof(*p), "a self-test");
    *p = (struct proof){.out = out, .seed = seed};
    if (!backend->ops->sibling || !backend->ops->trace_launches)
        rc = ew_fail(err, EW_ERR_UNSUPPORTED, "the %s backend has no self-test", backend->ops->name);
    else
        rc = ew_model_miniature(model, seed, &mini, err);
    if (rc == 0)
        rc = open_cores(p, backend, mini, config, err);
    if (rc == 0) {
        p->ref.backend->ops->trace(p->ref.backend, ew_recording_add, &p->recording);
        p->fast.backend->ops->trace_launches(p->fast.backend, compare, p);
    }
    for (size_t i = 0; i < EW_COUNT_OF(SCENES) && rc == 0; i++)
        rc = run_scene(p, &SCENES[i], err);
    if (rc == 0 && out->n_rows == 0)
        rc = ew_fail(err, EW_ERR_MEMORY, "no memory to show what the kernels compute");
    close_cores(p);
    ew_model_close(mini);
    ew_free(p);
    out->seconds = ew_clock_s() - started_s;
    return rc ? rc : judge(out, err);
}

int ew_prove_or_refuse(struct ew_backend *backend, const struct ew_model *model,
                       const struct ew_engine_config *config, struct ew_error *err)
{
    struct ew_proof *proof = ew_alloc(sizeof(*proof));
    int rc = EW_ERR_MISMATCH;

    if (!proof)
        return ew_fail_memory(err, sizeof(*proof), "a self-test");
    for (uint64_t seed = 1; seed <= TRIES && rc == EW_ERR_MISMATCH; seed++)
        rc = ew_prove(backend, model, config, seed, proof, err);
    if (rc == 0)
        ew_log(EW_LOG_INFO, "self-test: %u sequences of kernels are right, in %.2f s", proof->n_rows,
               proof->seconds);
    ew_free(proof);
    if (rc == EW_ERR_MEMORY || rc == EW_ERR_UNSUPPORTED || rc == EW_ERR_LIMIT) {
        ew_log(EW_LOG_WARN, "kernels are not tested: %s", err ? err->message : "no reason is known");
        return 0;
    }
    if (rc != EW_ERR_MISMATCH)
        return rc;
    return ew_remedy(err, rc,
                     "Run edgewise bench kernels --backend cuda and report what it says; meanwhile use --backend cpu, "
                     "or --no-self-test where wrong answers do no harm");
}
