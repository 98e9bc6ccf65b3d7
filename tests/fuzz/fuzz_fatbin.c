// GPU code anywhere in a file: the inventory stays within its bounds, and every target can be judged.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "doctor/fatbin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct ew_gpu_target targets[] = {{61, 0},    {87, 1140},  {87, 1260},
                                                   {90, 1220}, {110, 1300}, {121, 1320}};
    static struct ew_gpu_code code;

    ew_gpu_code_scan(&code, data, size);
    EW_ASSERT(code.n_images <= EW_IMAGES_MAX && code.n_containers <= EW_CONTAINERS_MAX);
    EW_ASSERT(code.n_containers <= code.container_count && code.container_count <= size);
    for (size_t i = 0; i < EW_COUNT_OF(targets); i++) {
        struct ew_gpu_verdict verdict = ew_gpu_code_judge(&code, targets[i]);

        EW_ASSERT(verdict.sass + verdict.jit <= verdict.total);
    }
    return 0;
}
