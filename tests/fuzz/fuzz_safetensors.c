// Whatever opens must be readable in full.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_safetensors st;
    struct ew_error err;
    volatile unsigned sum = 0;

    if (ew_safetensors_parse(&st, data, size, &err) != EW_OK) {
        EW_ASSERT(err.message[0]);
        return 0;
    }
    for (uint64_t i = 0; i < st.tensors.count; i++) {
        const struct ew_tensor *tensor = &st.tensors.list[i];

        EW_ASSERT(ew_tensors_find(&st.tensors, tensor->name) == tensor);
        for (uint64_t j = 0; j < tensor->bytes; j++)
            sum += tensor->data[j];
    }
    for (uint64_t i = 0; i < st.tensors.n_refused; i++) {
        const struct ew_tensor *none;

        EW_ASSERT(ew_tensors_need(&st.tensors, st.tensors.refused[i].name, &none, &err) == EW_ERR_UNSUPPORTED);
    }
    ew_safetensors_close(&st);
    return 0;
}
