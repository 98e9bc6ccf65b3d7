// A hostile GGUF vocabulary: it loads or is refused, and what loads takes text and gives it back without harm.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/utf8.h"
#include "text/tokenizer.h"

#define TEXT_BYTES_MAX ((size_t)64 << 20)

static const char g_sample[] =
    "Hello,  World's 1234567 caf\xC3\xA9 e\xCC\x81\xCC\xA3 \xE4\xBD\xA0\xE5\xA5\xBD\n\n\t<s>[MASK]"
    " x\xFF\xC3\xF4\x8F\xBE\x80 \xE2\x96\x81 \xC4\xB0\xEF\xB7\xBA";

static void round_trip(const struct ew_tokenizer *tok, bool special)
{
    struct ew_str text = {g_sample, sizeof(g_sample) - 1};
    struct ew_ids ids = {0};
    struct ew_detok detok;
    struct ew_buf out;
    struct ew_error err;
    int code = ew_tokenize(tok, text, special, special, &ids, &err);

    ew_buf_init(&out, TEXT_BYTES_MAX);
    ew_detok_init(&detok, tok, special);
    for (size_t i = 0; i < ids.count && code == EW_OK; i++) {
        EW_ASSERT(ids.ids[i] >= 0 && (uint32_t)ids.ids[i] < ew_tokenizer_info(tok)->n_vocab);
        code = ew_detok_push(&detok, ids.ids[i], &out, &err);
    }
    ew_detok_flush(&detok, &out);
    EW_ASSERT(!ew_buf_ok(&out) || ew_utf8_valid(out.ptr, out.len));
    ew_buf_fini(&out);
    ew_ids_fini(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_modelfile file = {.kind = EW_MODELFILE_GGUF, .path = (char[]){"fuzz.gguf"}};
    struct ew_tokenizer *tok;
    struct ew_error err;

    if (ew_gguf_parse(&file.gguf, data, size, &err) != EW_OK)
        return 0;
    if (ew_tokenizer_load(&file, &tok, &err) == EW_OK) {
        round_trip(tok, true);
        round_trip(tok, false);
        ew_tokenizer_free(tok);
    }
    ew_gguf_close(&file.gguf);
    return 0;
}
