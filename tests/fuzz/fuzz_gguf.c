// Whatever opens must be readable in full: every element of every value, every byte of every tensor.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "format/gguf.h"

static unsigned sum_bytes(const void *bytes, uint64_t len)
{
    const unsigned char *at = bytes;
    unsigned sum = 0;

    for (uint64_t i = 0; i < len; i++)
        sum += at[i];
    return sum;
}

static unsigned read_value(const struct ew_gguf_value *value)
{
    unsigned sum = sum_bytes(value->data, value->bytes);
    uint64_t cursor = 0, n = 0;
    struct ew_str text;
    double number;
    int64_t integer;

    if (value->type != EW_GGUF_ARRAY)
        return sum;
    for (uint64_t i = 0; i <= value->count; i++) {
        bool is_number = ew_gguf_array_number(value, i, &number);

        EW_ASSERT(i < value->count || !is_number);
        EW_ASSERT(!ew_gguf_array_int(value, i, &integer) || is_number);
    }
    for (; ew_gguf_array_next_str(value, &cursor, &text); n++)
        sum += sum_bytes(text.ptr, text.len);
    EW_ASSERT(value->element_type != EW_GGUF_STRING || (n == value->count && cursor == value->bytes));
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_gguf gguf;
    struct ew_error err;
    volatile unsigned sum = 0;

    if (ew_gguf_parse(&gguf, data, size, &err) != EW_OK) {
        EW_ASSERT(err.message[0]);
        return 0;
    }
    for (uint64_t i = 0; i < gguf.n_values; i++)
        sum += read_value(&gguf.values[i]);
    for (uint64_t i = 0; i < gguf.tensors.count; i++) {
        const struct ew_tensor *tensor = &gguf.tensors.list[i];

        EW_ASSERT(ew_tensors_find(&gguf.tensors, tensor->name) == tensor);
        sum += sum_bytes(tensor->data, tensor->bytes);
    }
    sum += (unsigned)ew_gguf_str(&gguf, "general.architecture", "").len;
    ew_gguf_close(&gguf);
    return 0;
}
