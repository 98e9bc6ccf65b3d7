#include "bench/bandwidth.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/pool.h"
#include "platform/memory.h"
#include "platform/topology.h"

#define BUFFER_BYTES_MAX (1ull << 30)
#define BUFFER_BYTES_MIN (64ull << 20)
#define CACHE_FACTOR 8 // of the last-level cache: what it still holds of the last pass must not count
#define AHEAD_WORDS 512
#define SECONDS 0.4
#define PASSES_MIN 3

struct pass {
    const uint64_t *words;
    size_t n_words;
    uint64_t sums[EW_POOL_THREADS_MAX]; // kept, so that the reads are
};

// Eight sums, so that no addition waits for the one before it. Lines are asked for ahead of time, as the kernels do:
// some CPUs read by a half more so. Asking past the end does no harm.
static uint64_t sum_words(const uint64_t *words, size_t n)
{
    uint64_t sums[8] = {0}, sum = 0;

    for (size_t i = 0; i + 8 <= n; i += 8) {
        __builtin_prefetch(words + i + AHEAD_WORDS);
        for (int k = 0; k < 8; k++)
            sums[k] += words[i + k];
    }
    for (int k = 0; k < 8; k++)
        sum += sums[k];
    return sum;
}

static void read_share(void *ctx, uint32_t thread, uint32_t n_threads)
{
    struct pass *pass = ctx;
    size_t share = pass->n_words / n_threads;

    pass->sums[thread] += sum_words(pass->words + share * thread, share);
}

static size_t buffer_bytes(void)
{
    struct ew_topology topology;
    struct ew_memory memory;
    uint64_t bytes;

    ew_topology_read(NULL, &topology);
    bytes = EW_MIN(EW_MAX(topology.l3_bytes * CACHE_FACTOR, BUFFER_BYTES_MIN), BUFFER_BYTES_MAX);
    if (ew_memory_read(NULL, &memory, NULL) == 0)
        bytes = EW_MIN(bytes, memory.available_bytes / 2);
    return (size_t)bytes & ~(size_t)4095;
}

int ew_bandwidth_read(unsigned n_threads, double *gb_s, struct ew_error *err)
{
    struct ew_topology topology;
    struct ew_pool *pool = NULL;
    struct pass pass = {0};
    size_t bytes = buffer_bytes();
    double best_s = 1e9, end_s;
    void *buffer = ew_alloc_aligned(bytes);
    int rc;

    ew_topology_read(NULL, &topology);
    if (!buffer)
        return ew_fail_memory(err, bytes, "the bandwidth measurement");
    rc = ew_pool_create(n_threads ? n_threads : topology.n_usable, "bandwidth", &pool, err);
    if (rc < 0)
        goto free_buffer;
    pass.words = buffer;
    pass.n_words = bytes / sizeof(uint64_t);
    end_s = ew_clock_s() + SECONDS;
    for (int i = 0; i < PASSES_MIN || ew_clock_s() < end_s; i++) {
        double started_s = ew_clock_s();

        ew_pool_all(pool, read_share, &pass);
        best_s = EW_MIN(best_s, ew_clock_s() - started_s);
    }
    *gb_s = (double)bytes / best_s / 1e9;
    ew_pool_destroy(pool);
free_buffer:
    ew_free(buffer);
    return rc;
}
