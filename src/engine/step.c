#include "engine/step.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

int ew_step_init(struct ew_step *step, struct ew_backend *backend, const struct ew_program *program,
                 const struct ew_limits *limits, struct ew_error *err)
{
    size_t n = limits->n_tokens_max;

    *step = (struct ew_step){.backend = backend, .program = program, .limits = *limits};
    step->token = ew_alloc_array(n, sizeof(*step->token));
    step->position = ew_alloc_array(n * program->n_position_dims, sizeof(*step->position));
    step->want_logits = ew_alloc_array(n, sizeof(*step->want_logits));
    step->segment = ew_alloc_array(n, sizeof(*step->segment));
    step->seqs = ew_alloc_array(limits->n_seqs_max, sizeof(*step->seqs));
    if (!step->token || !step->position || !step->want_logits || !step->segment || !step->seqs) {
        ew_step_fini(step);
        return ew_fail_memory(err, n * (sizeof(*step->token) + sizeof(*step->position) + 2), "a step's batch");
    }
    return 0;
}

void ew_step_fini(struct ew_step *step)
{
    ew_free(step->token);
    ew_free(step->position);
    ew_free(step->want_logits);
    ew_free(step->segment);
    ew_free(step->seqs);
    *step = (struct ew_step){0};
}

static bool wants_logits(const struct ew_work *work, uint32_t i)
{
    if (work->want == EW_WANT_ALL)
        return true;
    return work->want == EW_WANT_LAST && i + 1 + work->n_proposed >= work->n_tokens;
}

static void add_tokens(struct ew_step *step, struct ew_work *work)
{
    const struct ew_sequence *seq = work->seq;
    uint32_t at = step->batch.n_tokens;

    EW_ASSERT(work->n_tokens > 0 && work->n_proposed < work->n_tokens);
    EW_ASSERT(work->follows ? work->n_tokens == 1 : work->n_tokens <= seq->n_tokens - seq->n_cached);
    EW_ASSERT(work->n_tokens <= step->limits.n_tokens_max - at);
    if (work->follows)
        step->token[at] = 0;
    else
        memcpy(step->token + at, seq->tokens + seq->n_cached, work->n_tokens * sizeof(*step->token));
    step->batch.follows |= work->follows;
    work->first_logit = step->batch.n_logits;
    for (uint32_t i = 0; i < work->n_tokens; i++) {
        step->want_logits[at + i] = wants_logits(work, i);
        step->batch.n_logits += step->want_logits[at + i];
    }
    work->n_logits = step->batch.n_logits - work->first_logit;
    EW_ASSERT(step->batch.n_logits <= step->limits.n_logits_max);
    step->batch.n_tokens += work->n_tokens;
}

static void add_sequence(struct ew_step *step, struct ew_work *work)
{
    EW_ASSERT(step->batch.n_seqs < step->limits.n_seqs_max);
    step->seqs[step->batch.n_seqs++] = (struct ew_batch_seq){
        .first = step->batch.n_tokens,
        .n_tokens = work->n_tokens,
        .n_past = work->seq->n_cached,
        .n_proposed = work->n_proposed,
        .rope_span = work->seq->rope_span,
        .is_prompt = work->is_prompt,
        .blocks = (const int32_t *const *)work->seq->tables,
    };
    add_tokens(step, work);
}

// The stride of a position dimension is the step's number of tokens, so positions are written once that is known.
static void fill_positions(struct ew_step *step)
{
    uint32_t n = step->batch.n_tokens;

    for (uint32_t s = 0; s < step->batch.n_seqs; s++) {
        const struct ew_batch_seq *seq = &step->seqs[s];

        for (uint32_t i = 0; i < seq->n_tokens; i++)
            for (uint32_t d = 0; d < step->program->n_position_dims; d++)
                step->position[(size_t)d * n + seq->first + i] = (int32_t)(seq->n_past + i);
    }
}

static void begin_batch(struct ew_step *step)
{
    step->logits = NULL;
    step->batch = (struct ew_batch){
        .token = step->token,
        .position = step->position,
        .want_logits = step->want_logits,
        .seqs = step->seqs,
    };
}

int ew_step_build(struct ew_step *step, struct ew_work *work, uint32_t n_work, struct ew_error *err)
{
    begin_batch(step);
    for (uint32_t w = 0; w < n_work; w++) {
        int rc;

        ew_sequence_release_passed(work[w].seq);
        rc = ew_sequence_extend(work[w].seq, step->backend, work[w].n_tokens, err);
        if (rc < 0)
            return rc;
        add_sequence(step, &work[w]);
    }
    fill_positions(step);
    return 0;
}

int ew_step_submit(struct ew_step *step, const struct ew_work *work, uint32_t n_work, struct ew_error *err)
{
    for (uint32_t w = 0; w < n_work; w++)
        work[w].seq->n_cached += work[w].n_tokens;
    return step->backend->ops->submit(step->backend, &step->batch, err);
}

int ew_step_wait(struct ew_step *step, struct ew_error *err)
{
    return step->backend->ops->wait(step->backend, &step->logits, err);
}

int ew_step_run(struct ew_step *step, struct ew_work *work, uint32_t n_work, struct ew_error *err)
{
    int rc = ew_step_build(step, work, n_work, err);

    if (rc == 0)
        rc = ew_step_submit(step, work, n_work, err);
    if (rc == 0)
        rc = ew_step_wait(step, err);
    return rc;
}

const float *ew_step_logits(const struct ew_step *step, const struct ew_work *work, uint32_t i)
{
    EW_ASSERT(step->logits && i < work->n_logits);
    return step->logits + (size_t)(work->first_logit + i) * step->program->n_vocab;
}

// ---- texts --------------------------------------------------------------------------------------------------------

static bool wants_row(enum ew_rows rows, uint32_t i, uint32_t n)
{
    return rows == EW_ROWS_ALL || i == (rows == EW_ROWS_FIRST ? 0 : n - 1);
}

static void add_text(struct ew_step *step, struct ew_text *text, enum ew_rows rows)
{
    struct ew_batch *batch = &step->batch;
    uint32_t at = batch->n_tokens;

    EW_ASSERT(batch->n_seqs < step->limits.n_seqs_max && text->n_ids > 0);
    EW_ASSERT(text->n_ids <= step->limits.n_tokens_max - at);
    step->seqs[batch->n_seqs++] = (struct ew_batch_seq){
        .first = at, .n_tokens = text->n_ids, .rope_span = text->n_ids, .no_cache = true};
    memcpy(step->token + at, text->ids, text->n_ids * sizeof(*step->token));
    memset(step->segment + at, 0, text->n_ids);
    if (text->segments) {
        memcpy(step->segment + at, text->segments, text->n_ids);
        batch->segment = step->segment;
    }
    text->first_row = batch->n_logits;
    for (uint32_t i = 0; i < text->n_ids; i++) {
        step->want_logits[at + i] = wants_row(rows, i, text->n_ids);
        batch->n_logits += step->want_logits[at + i];
    }
    text->n_rows = batch->n_logits - text->first_row;
    EW_ASSERT(batch->n_logits <= step->limits.n_logits_max);
    batch->n_tokens += text->n_ids;
}

void ew_step_build_texts(struct ew_step *step, struct ew_text *texts, uint32_t n_texts, enum ew_rows rows)
{
    begin_batch(step);
    for (uint32_t i = 0; i < n_texts; i++)
        add_text(step, &texts[i], rows);
    fill_positions(step);
}

int ew_step_run_texts(struct ew_step *step, struct ew_error *err)
{
    int rc = step->backend->ops->submit(step->backend, &step->batch, err);

    return rc ? rc : ew_step_wait(step, err);
}

const float *ew_step_rows(const struct ew_step *step, const struct ew_text *text)
{
    EW_ASSERT(step->logits);
    return step->logits + (size_t)text->first_row * step->program->slot_width[step->program->logits];
}
