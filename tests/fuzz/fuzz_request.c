// The body of a request: byte 0 says for which route. Whatever comes is read or refused with a message, within the
// bounds.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/utf8.h"
#include "server/params.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct ew_model model = {0};
    enum ew_params_route route = size && data[0] & 1 ? EW_PARAMS_CHAT : EW_PARAMS_TEXT;
    struct ew_str body = {(const char *)data + 1, size ? size - 1 : 0};
    const struct ew_json *root;
    struct ew_request request;
    struct ew_params params;
    struct ew_arena arena;
    struct ew_fault fault;

    ew_arena_init(&arena, EW_PARAMS_ARENA_MAX);
    if (ew_params_parse(&arena, body, &root, &fault) < 0 ||
        ew_params_read(&params, route, root, &arena, &fault) < 0) {
        struct ew_buf out;

        EW_ASSERT(fault.status >= 400 && fault.message[0]);
        ew_buf_init(&out, (size_t)1 << 20);
        ew_fault_json(&fault, &out);
        EW_ASSERT(ew_buf_ok(&out) && ew_utf8_valid(out.ptr, out.len));
        ew_buf_fini(&out);
    } else {
        ew_params_request(&params, &model, &request);
        EW_ASSERT(request.n_logprobs <= EW_PARAMS_LOGPROBS_MAX + 1 && request.sampling.n_stop <= EW_PARAMS_STOPS_MAX);
        EW_ASSERT(params.n >= 1 && params.n <= EW_PARAMS_CHOICES_MAX);
    }
    ew_arena_fini(&arena);
    return 0;
}
