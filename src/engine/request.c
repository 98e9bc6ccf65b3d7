#include "engine/request.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"

#define ARENA_BYTES_MAX ((size_t)1 << 30) // the prompt itself is bounded by the context

static int check(const struct ew_request *request, uint32_t n_vocab, struct ew_error *err)
{
    if (request->n_ids == 0)
        return ew_fail(err, EW_ERR_USAGE, "the prompt has no tokens");
    for (uint32_t i = 0; i < request->n_ids; i++)
        if (request->ids[i] < 0 || (uint32_t)request->ids[i] >= n_vocab)
            return ew_fail(err, EW_ERR_USAGE, "token %u of the prompt is %d and the vocabulary has %u", i,
                           request->ids[i], n_vocab);
    if (request->n_logprobs > EW_LOGPROBS_MAX || request->n_logprobs > n_vocab)
        return ew_fail(err, EW_ERR_USAGE, "%u log probabilities are asked for and at most %u are given",
                       request->n_logprobs, EW_MIN((uint32_t)EW_LOGPROBS_MAX, n_vocab));
    return ew_sampling_check(&request->sampling, n_vocab, err);
}

static void *copy_array(struct ew_arena *arena, const void *from, size_t count, size_t size)
{
    void *to = ew_arena_array(arena, EW_MAX(count, 1u), size);

    if (to && count)
        memcpy(to, from, count * size);
    return to;
}

static bool copy_stops(struct ew_job *job)
{
    struct ew_sampling *sampling = &job->request.sampling;
    struct ew_str *stop = copy_array(&job->arena, sampling->stop, sampling->n_stop, sizeof(*stop));

    sampling->stop = stop;
    for (uint32_t i = 0; stop && i < sampling->n_stop; i++) {
        stop[i].ptr = ew_arena_copy(&job->arena, stop[i].ptr, stop[i].len);
        if (!stop[i].ptr)
            return false;
    }
    return stop != NULL;
}

static bool copy(struct ew_job *job)
{
    struct ew_request *request = &job->request;

    request->ids = copy_array(&job->arena, request->ids, request->n_ids, sizeof(*request->ids));
    request->sampling.bias = copy_array(&job->arena, request->sampling.bias, request->sampling.n_bias,
                                        sizeof(*request->sampling.bias));
    job->logprobs = ew_arena_array(&job->arena, EW_MAX(request->n_logprobs, 1u), sizeof(*job->logprobs));
    if (request->segments)
        request->segments = copy_array(&job->arena, request->segments, request->n_ids, 1);
    return request->ids && request->sampling.bias && job->logprobs && copy_stops(job);
}

int ew_job_create(const struct ew_request *request, const struct ew_model *model,
                  const struct ew_tokenizer *tok_or_null, struct ew_job **out, struct ew_error *err)
{
    struct ew_job *job;
    int rc = check(request, model->program.n_vocab, err);

    if (rc < 0)
        return rc;
    job = ew_alloc(sizeof(*job));
    if (!job)
        return ew_fail_memory(err, sizeof(*job), "a request");
    job->request = *request;
    job->submitted_s = ew_clock_s();
    ew_arena_init(&job->arena, ARENA_BYTES_MAX);
    if (model->pooling.width)
        job->vector = ew_arena_array(&job->arena, model->pooling.width, sizeof(*job->vector));
    if (copy(job) && !job->vector == !model->pooling.width && !job->request.segments == !request->segments)
        rc = ew_answer_init(&job->answer, tok_or_null, job->request.sampling.stop, job->request.sampling.n_stop, err);
    else
        rc = ew_fail_memory(err, request->n_ids * sizeof(*request->ids), "a request");
    job->answer.shown = job->request.shown;
    job->answer.n_shown = job->request.n_shown;
    if (rc < 0) {
        ew_job_destroy(job);
        return rc;
    }
    *out = job;
    return 0;
}

void ew_job_destroy(struct ew_job *job)
{
    ew_answer_fini(&job->answer);
    ew_arena_fini(&job->arena);
    ew_free(job);
}
