#include "base/rng.h"

#include <math.h>
#include <string.h>

static void philox(uint32_t ctr[4], uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t a = 0xD2511F53ull * ctr[0], b = 0xCD9E8D57ull * ctr[2];
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ ctr[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ ctr[3] ^ k1,
                            (uint32_t)a};

        memcpy(ctr, next, sizeof(next));
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

struct ew_rng ew_rng_at(uint64_t seed, uint64_t position)
{
    return (struct ew_rng){.seed = seed, .position = position};
}

uint32_t ew_rng_u32(struct ew_rng *rng)
{
    if (rng->left == 0) {
        uint32_t ctr[4] = {rng->counter++, (uint32_t)rng->position, (uint32_t)(rng->position >> 32), 0};

        philox(ctr, (uint32_t)rng->seed, (uint32_t)(rng->seed >> 32));
        memcpy(rng->block, ctr, sizeof(ctr));
        rng->left = 4;
    }
    return rng->block[--rng->left];
}

double ew_rng_unit(struct ew_rng *rng)
{
    uint64_t high = ew_rng_u32(rng), low = ew_rng_u32(rng);

    return (double)((high << 32 | low) >> 11) * 0x1p-53;
}

float ew_rng_normal(struct ew_rng *rng)
{
    double u = 1.0 - ew_rng_unit(rng), v = ew_rng_unit(rng);

    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

uint32_t ew_rng_below(struct ew_rng *rng, uint32_t n)
{
    // Rejection keeps it uniform; the loop ends with probability > 1/2 each time.
    uint32_t threshold = (uint32_t)(0 - n) % n, x;

    do
        x = ew_rng_u32(rng);
    while (x < threshold);
    return x % n;
}

void ew_rng_fill(uint64_t seed, uint64_t position, void *bytes, size_t len)
{
    struct ew_rng rng = ew_rng_at(seed, position);
    unsigned char *at = bytes;

    for (; len > 0;) {
        uint32_t word = ew_rng_u32(&rng);
        size_t part = len < 4 ? len : 4;

        memcpy(at, &word, part);
        at += part;
        len -= part;
    }
}
