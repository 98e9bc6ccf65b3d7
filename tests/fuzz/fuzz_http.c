// Requests as they arrive: the first byte says how the rest is cut into pieces, so that every state is left and entered
// again; pieces and whole must be judged alike.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "server/http.h"

struct outcome {
    int status;
    bool done;
    uint64_t body_bytes;
    struct ew_http_head head;
};

static const struct ew_http_limits g_limits = {512, 1024, 4096};

static void read_chunks(struct ew_str rest, size_t piece, struct outcome *out)
{
    struct ew_http_chunks chunks = {0};
    struct ew_http_fault fault = {0};

    while (rest.len && !out->done && !out->status) {
        struct ew_str part = {rest.ptr, rest.len < piece ? rest.len : piece}, data;
        size_t used = 0;

        if (!ew_http_chunks_read(&chunks, part, &g_limits, &used, &data, &out->done, &fault)) {
            out->status = fault.status;
            return;
        }
        EW_ASSERT(used > 0 && used <= part.len && data.len <= used);
        out->body_bytes += data.len;
        rest.ptr += used;
        rest.len -= used;
    }
    EW_ASSERT(out->body_bytes <= g_limits.body_bytes);
}

static struct outcome read_request(struct ew_str text, size_t piece)
{
    struct ew_http_fault fault = {0};
    struct outcome out = {0};
    size_t scanned = 0, end = 0;

    for (size_t len = 0; len < text.len && !end && !fault.status;) {
        len = len + piece < text.len ? len + piece : text.len;
        end = ew_http_head_end((struct ew_str){text.ptr, len}, &scanned, &g_limits, &fault);
    }
    if (end && ew_http_head_parse((struct ew_str){text.ptr, end}, &g_limits, &out.head, &fault)) {
        ew_http_header(out.head.headers, "host");
        if (out.head.chunked)
            read_chunks((struct ew_str){text.ptr + end, text.len - end}, piece, &out);
    } else {
        out.status = fault.status;
    }
    return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct outcome whole, pieces;
    char *text;

    if (size < 2)
        return 0;
    text = malloc(size - 1); // exactly as long as the input, so that AddressSanitizer sees reads past it
    EW_ASSERT(text);
    memcpy(text, data + 1, size - 1);
    whole = read_request((struct ew_str){text, size - 1}, size);
    pieces = read_request((struct ew_str){text, size - 1}, 1 + data[0] % 7);
    EW_ASSERT(whole.status == pieces.status && whole.done == pieces.done && whole.body_bytes == pieces.body_bytes);
    EW_ASSERT(whole.head.content_length == pieces.head.content_length && whole.head.chunked == pieces.head.chunked);
    free(text);
    return 0;
}
