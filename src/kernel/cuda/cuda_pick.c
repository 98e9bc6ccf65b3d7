// Choosing tokens on the GPU, so that logits stay there: what the kernels of ptx/pick.c are told, and when they run.

#include <string.h>

#include "base/assert.h"
#include "kernel/cuda/cuda_backend.h"

#define PARTS 32 // blocks that share a row, as in ptx/pick.c
#define WIDE 256
#define MAX_THREADS 1024 // each round of a block through its part of a row waits for memory anew
#define DRAW_THREADS 512 // of 1024 each could have 64 registers, and the kernel takes 80
#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

enum { HAS_MASK = 1, BY_HOST = 2 };

struct pick { // as in ptx/pick.c
    float temperature, top_p, min_p, repetition;
    uint32_t top_k, first, n_adjust, flags;
    double unit;
};

_Static_assert(sizeof(struct pick) == 40 && sizeof(struct ew_pick_adjust) == 16, "as the kernels read them");

static uint64_t take(uint64_t *used, uint64_t bytes)
{
    uint64_t at = *used;

    *used += (bytes + 255) & ~(uint64_t)255;
    return at;
}

void ew_cuda_pick_shape(struct ew_cuda_picks *picks, const struct ew_program *program, const struct ew_limits *limits)
{
    uint64_t n = EW_MIN(limits->n_logits_max, limits->n_seqs_max), used = 0;

    picks->n_max = (uint32_t)n;
    picks->mask_words = (program->n_vocab + 31) / 32;
    picks->picks = take(&used, n * sizeof(struct pick));
    picks->adjusts = take(&used, EW_PICK_ADJUST_MAX * sizeof(struct ew_pick_adjust));
    picks->masks = take(&used, n * picks->mask_words * sizeof(uint32_t));
    picks->tokens = take(&used, n * sizeof(int32_t));
    picks->shared_bytes = used;
    picks->states = take(&used, n * EW_CUDA_PICK_STATE_BYTES);
    picks->bytes = used;
}

static struct pick encode(const struct ew_pick *from, uint32_t first)
{
    return (struct pick){
        .temperature = from->temperature,
        .top_p = from->top_p,
        .min_p = from->min_p,
        .repetition = from->repetition,
        .top_k = from->top_k,
        .first = first,
        .n_adjust = from->by_host ? 0 : from->n_adjust,
        .flags = (from->mask && !from->by_host ? HAS_MASK : 0u) | (from->by_host ? BY_HOST : 0u),
        .unit = from->unit,
    };
}

static int copy(struct ew_cuda_backend *backend, uint64_t at, uint64_t bytes, struct ew_error *err)
{
    const struct ew_cuda_picks *picks = &backend->work.picks;

    return ew_cuda_check(&backend->device,
                         backend->device.driver.cuMemcpyHtoDAsync_v2(picks->device + at, picks->host + at, bytes,
                                                                     backend->device.stream),
                         "copying how to choose", err);
}

int ew_cuda_pick_send(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    struct ew_cuda_picks *picks = &backend->work.picks;
    struct pick *to = (struct pick *)(picks->host + picks->picks);
    struct ew_pick_adjust *adjusts = (struct ew_pick_adjust *)(picks->host + picks->adjusts);
    uint32_t *masks = (uint32_t *)(picks->host + picks->masks), n_adjusts = 0;
    int rc;

    EW_ASSERT(batch->n_logits <= picks->n_max);
    picks->has_random = picks->has_masks = false;
    for (uint32_t i = 0; i < batch->n_logits; i++) {
        const struct ew_pick *pick = &batch->picks[i];

        to[i] = encode(pick, n_adjusts);
        EW_ASSERT(to[i].n_adjust <= EW_PICK_ADJUST_MAX - n_adjusts);
        if (to[i].n_adjust)
            memcpy(adjusts + n_adjusts, pick->adjust, to[i].n_adjust * sizeof(*adjusts));
        if (to[i].flags & HAS_MASK)
            memcpy(masks + (size_t)i * picks->mask_words, pick->mask, picks->mask_words * sizeof(*masks));
        n_adjusts += to[i].n_adjust;
        picks->has_random |= pick->temperature > 0 && !pick->by_host;
        picks->has_masks |= to[i].flags & HAS_MASK;
    }
    picks->has_adjusts = n_adjusts > 0;
    rc = copy(backend, picks->picks, batch->n_logits * sizeof(*to), err);
    if (rc == 0 && n_adjusts)
        rc = copy(backend, picks->adjusts, n_adjusts * sizeof(*adjusts), err);
    if (rc == 0 && picks->has_masks)
        rc = copy(backend, picks->masks, (uint64_t)batch->n_logits * picks->mask_words * sizeof(*masks), err);
    return rc;
}

static int launch_random(const struct ew_cuda_backend *backend, uint32_t n_rows, void **arguments,
                         struct ew_error *err)
{
    static const enum ew_cuda_kernel by_part[] = {EW_CUDA_PICK_WEIGH, EW_CUDA_PICK_GATHER};
    int rc = 0;

    for (size_t i = 0; i < EW_COUNT_OF(by_part) && rc == 0; i++)
        rc = ew_cuda_launch(&backend->device, by_part[i], (struct ew_cuda_grid){PARTS, n_rows, 1, WIDE}, arguments,
                            err);
    if (rc == 0)
        rc = ew_cuda_launch(&backend->device, EW_CUDA_PICK_DRAW, (struct ew_cuda_grid){n_rows, 1, 1, DRAW_THREADS},
                            arguments, err);
    return rc;
}

int ew_cuda_pick_launch(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    struct ew_cuda_picks *picks = &backend->work.picks;
    uint64_t logits = backend->work.buffers[backend->plan.result], at = picks->device + picks->picks;
    uint64_t adjusts = picks->device + picks->adjusts, masks = picks->device + picks->masks;
    uint64_t states = picks->device + picks->states;
    uint64_t tokens = backend->work.batch.device + backend->work.batch.token; // for a step that follows at once
    uint32_t n_vocab = backend->program->n_vocab, n_rows = batch->n_logits;
    void **arguments = ARGUMENTS(&logits, &n_vocab, &at, &states, &tokens);
    int rc = 0;

    if (picks->has_adjusts || picks->has_masks)
        rc = ew_cuda_launch(&backend->device, EW_CUDA_PICK_ADJUST, (struct ew_cuda_grid){PARTS, n_rows, 1, WIDE},
                            ARGUMENTS(&logits, &n_vocab, &at, &adjusts, &masks, &picks->mask_words), err);
    if (rc == 0)
        rc = ew_cuda_launch(&backend->device, EW_CUDA_PICK_MAX,
                            (struct ew_cuda_grid){PARTS, n_rows, 1, MAX_THREADS}, arguments, err);
    if (rc == 0 && picks->has_random)
        rc = launch_random(backend, n_rows, arguments, err);
    if (rc)
        return rc;
    return ew_cuda_check(&backend->device,
                         backend->device.driver.cuMemcpyDtoHAsync_v2(picks->host + picks->tokens, tokens,
                                                                     n_rows * sizeof(int32_t), backend->device.stream),
                         "copying tokens", err);
}
