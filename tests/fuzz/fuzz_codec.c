// Any bytes as blocks of any type, and any bits as values to encode: the first byte chooses, the rest is the material.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/assert.h"
#include "format/dtype.h"

#define ELEMENTS_MAX 4096

static void decode(const struct ew_dtype_info *info, const uint8_t *data, size_t size, float *values)
{
    size_t blocks = EW_MIN(size / info->block_bytes, ELEMENTS_MAX / info->block_elements);

    info->decode(data, values, blocks * info->block_elements);
}

// What was encoded must decode to numbers, whatever the input was.
static void encode(const struct ew_dtype_info *info, const uint8_t *data, size_t size, float *values)
{
    static uint8_t blocks[ELEMENTS_MAX * sizeof(float)];
    static float decoded[ELEMENTS_MAX];
    size_t n = EW_MIN(size / sizeof(float), (size_t)ELEMENTS_MAX) / info->block_elements * info->block_elements;

    memcpy(values, data, n * sizeof(float));
    info->encode(values, size % 2 ? values : NULL, blocks, n);
    info->decode(blocks, decoded, n);
    for (size_t i = 0; i < n && info->block_elements > 1; i++)
        EW_ASSERT(decoded[i] - decoded[i] == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static float values[ELEMENTS_MAX];
    const struct ew_dtype_info *info;

    if (size == 0)
        return 0;
    info = ew_dtype_info((enum ew_dtype)(data[0] % EW_DTYPE_COUNT));
    if (info->decode && data[0] < 128)
        decode(info, data + 1, size - 1, values);
    if (info->encode && data[0] >= 128)
        encode(info, data + 1, size - 1, values);
    return 0;
}
