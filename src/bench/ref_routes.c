#include "bench/ref_routes.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

#define SPARSE_JUMP 0.03F // of a weight; what rounding moves it by is a tenth of that

// Tokens of a sequence whose logits are compared, or lead to one that is.
static uint32_t n_tokens_of(const struct ew_ref *ref)
{
    return ref->n_ids + (ref->n_greedy ? ref->n_greedy - 1 : 0);
}

bool ew_routes_has(const struct ew_program *program)
{
    for (uint32_t i = 0; i < program->n_ops; i++)
        if (program->ops[i].kind == EW_OP_ROUTE)
            return true;
    return false;
}

static void measure(struct ew_routes *routes)
{
    for (uint32_t i = 0; i < routes->program->n_ops; i++) {
        const struct ew_op *op = &routes->program->ops[i];

        if (op->kind != EW_OP_ROUTE)
            continue;
        routes->n_routes++;
        routes->n_active = EW_MAX(routes->n_active, op->route.n_active);
        routes->n_experts = EW_MAX(routes->n_experts, op->route.n_experts);
    }
}

static int alloc_routes(struct ew_routes *r, struct ew_error *err)
{
    size_t n_rows = 0;
    bool is_whole = true;

    for (uint32_t s = 0; s < r->refs->count; s++) {
        size_t n = (size_t)n_tokens_of(&r->refs->list[s]) * r->n_routes;

        n_rows += n_tokens_of(&r->refs->list[s]);
        r->chosen[s] = ew_alloc_array(n * 2 * r->n_active, sizeof(float));
        r->logits[s] = ew_alloc_array(n * r->n_experts, sizeof(float));
        is_whole = is_whole && r->chosen[s] && r->logits[s];
    }
    r->row_seq = ew_alloc_array(n_rows, sizeof(*r->row_seq));
    r->row_token = ew_alloc_array(n_rows, sizeof(*r->row_token));
    r->now = ew_alloc_array(n_rows * r->n_experts, sizeof(*r->now));
    return is_whole && r->row_seq && r->row_token && r->now
               ? 0
               : ew_fail(err, EW_ERR_MEMORY, "there is no memory for the experts that the reference chooses");
}

void ew_routes_fini(struct ew_routes *routes)
{
    for (uint32_t s = 0; s < EW_REFS_MAX; s++) {
        ew_free(routes->chosen[s]);
        ew_free(routes->logits[s]);
    }
    ew_free(routes->row_seq);
    ew_free(routes->row_token);
    ew_free(routes->now);
}

void ew_routes_step(struct ew_routes *routes, const struct ew_work *work, const uint32_t *owner, uint32_t n_work)
{
    routes->n_rows = 0;
    for (uint32_t w = 0; w < n_work; w++) {
        for (uint32_t i = 0; i < work[w].n_tokens; i++) {
            routes->row_seq[routes->n_rows] = owner[w];
            routes->row_token[routes->n_rows++] = work[w].seq->n_cached + i;
        }
    }
}

// ---- one choice --------------------------------------------------------------------------------------------------

static uint32_t find_expert(const float *chosen, uint32_t n_active, float expert)
{
    uint32_t i = 0;

    while (i < n_active && chosen[i] != expert)
        i++;
    return i;
}

// The order does not matter. A sparse mixer's weights jump where an expert that is not chosen comes near enough to
// the best, or leaves it: that is a choice, too.
static bool is_same_choice(const struct ew_op *op, const float *a, const float *b)
{
    uint32_t n_active = op->route.n_active;

    for (uint32_t i = 0; i < n_active; i++) {
        uint32_t k = find_expert(b, n_active, a[i]);

        if (k == n_active)
            return false;
        if (op->route.score == EW_ROUTE_SPARSEMIXER && fabsf(a[n_active + i] - b[n_active + k]) > SPARSE_JUMP)
            return false;
    }
    return true;
}

static double square_of_difference(const float *a, const float *b, uint32_t n)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum;
}

// Of the reference's logits of a token, on average over the sequence: those of one token may all be near zero, while
// what they are computed from is as large, and as exact, as ever.
static double mean_square(const struct ew_routes *r, uint32_t s, uint32_t route, uint32_t n_experts)
{
    uint32_t n_tokens = n_tokens_of(&r->refs->list[s]);
    double sum = 0;

    for (uint32_t t = 0; t < n_tokens; t++) {
        const float *logits = r->logits[s] + ((size_t)t * r->n_routes + route) * r->n_experts;

        for (uint32_t i = 0; i < n_experts; i++)
            sum += (double)logits[i] * (double)logits[i];
    }
    return sum / n_tokens;
}

static void align(struct ew_routes *r, const struct ew_op *op, uint32_t row, float *chosen, size_t at)
{
    uint32_t s = r->row_seq[row], n_active = op->route.n_active;
    const float *ref = r->chosen[s] + at * 2 * r->n_active, *ref_logits = r->logits[s] + at * r->n_experts;
    const float *logits = r->now + (size_t)row * r->n_experts;
    double error;

    if (is_same_choice(op, chosen, ref))
        return;
    error = square_of_difference(logits, ref_logits, op->route.n_experts) /
            mean_square(r, s, (uint32_t)(at % r->n_routes), op->route.n_experts);
    if (sqrt(error) <= r->tolerance)
        r->n_ties[s]++;
    else
        r->n_wrong[s]++; // NaN counts here
    memcpy(chosen, ref, 2 * n_active * sizeof(*chosen));
}

static void record(struct ew_routes *r, const struct ew_op *op, uint32_t row, const float *chosen, size_t at)
{
    uint32_t s = r->row_seq[row];

    memcpy(r->chosen[s] + at * 2 * r->n_active, chosen, 2 * op->route.n_active * sizeof(*chosen));
    memcpy(r->logits[s] + at * r->n_experts, r->now + (size_t)row * r->n_experts,
           op->route.n_experts * sizeof(*chosen));
}

// ---- the trace ---------------------------------------------------------------------------------------------------

static void on_route(struct ew_routes *r, uint32_t op, float *rows, uint32_t width)
{
    uint32_t route = 0;

    for (uint32_t i = 0; i < op; i++)
        route += r->program->ops[i].kind == EW_OP_ROUTE;
    for (uint32_t row = 0; row < r->n_rows; row++) {
        size_t at = (size_t)r->row_token[row] * r->n_routes + route;
        float *chosen = rows + (size_t)row * width;

        if (r->is_recording)
            record(r, &r->program->ops[op], row, chosen, at);
        else
            align(r, &r->program->ops[op], row, chosen, at);
    }
}

// Whether the next choice is made by what this op computed.
static bool feeds_route(const struct ew_program *program, uint32_t op)
{
    for (uint32_t i = op + 1; i < program->n_ops; i++)
        if (program->ops[i].kind == EW_OP_ROUTE)
            return program->ops[i].in == program->ops[op].out;
    return false;
}

void ew_routes_trace(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                     uint32_t width)
{
    struct ew_routes *r = ctx;

    if (program->ops[op].kind == EW_OP_ROUTE) {
        EW_ASSERT(n_rows == r->n_rows);
        on_route(r, op, rows, width);
    } else if (n_rows == r->n_rows && width <= r->n_experts && feeds_route(program, op)) {
        for (uint32_t row = 0; row < n_rows; row++)
            memcpy(r->now + (size_t)row * r->n_experts, rows + (size_t)row * width, width * sizeof(*rows));
    }
}

// ---- the reference's run -----------------------------------------------------------------------------------------

static int record_sequence(struct ew_routes *r, struct ew_core *core, uint32_t s, struct ew_error *err)
{
    const struct ew_ref *ref = &r->refs->list[s];
    struct ew_sequence *seq = &core->seqs[0];
    struct ew_work work = {.seq = seq, .n_tokens = n_tokens_of(ref), .want = EW_WANT_LAST, .is_prompt = true};

    ew_sequence_reset(seq);
    ew_sequence_append(seq, ref->ids, ref->n_ids);
    if (ref->n_greedy)
        ew_sequence_append(seq, ref->greedy, ref->n_greedy - 1);
    seq->rope_span = ref->n_ids + ref->n_greedy;
    ew_routes_step(r, &work, &s, 1);
    return ew_step_run(&core->step, &work, 1, err);
}

int ew_routes_record(struct ew_routes *routes, const struct ew_model *model, const struct ew_engine_config *config,
                     const struct ew_refs *refs, struct ew_error *err)
{
    struct ew_engine_config c = *config;
    struct ew_core core;
    int rc;

    *routes = (struct ew_routes){.refs = refs, .program = &model->program, .is_recording = true};
    measure(routes);
    c.backend = "cpu";
    c.device.kernels = EW_KERNELS_REFERENCE;
    c.chunk = 0;
    for (uint32_t s = 0; s < refs->count; s++)
        c.max_num_tokens = EW_MAX(c.max_num_tokens, n_tokens_of(&refs->list[s]));
    rc = alloc_routes(routes, err);
    if (rc == 0)
        rc = ew_core_init(&core, model, &c, 0, err);
    if (rc < 0)
        return rc;
    core.backend->ops->trace(core.backend, ew_routes_trace, routes);
    for (uint32_t s = 0; s < refs->count && rc == 0; s++)
        rc = record_sequence(routes, &core, s, err);
    ew_core_fini(&core);
    routes->is_recording = false;
    return rc;
}
