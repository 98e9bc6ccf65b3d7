// A hostile tokenizer.json: it loads or is refused, and what loads takes any text and gives it back without harm.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/utf8.h"
#include "text/tokenizer.h"

#define TREE_BYTES_MAX ((size_t)64 << 20)
#define TEXT_BYTES_MAX ((size_t)64 << 20)

static const char g_sample[] =
    "Hello,  World's 1234567 caf\xC3\xA9 e\xCC\x81\xCC\xA3 \xE4\xBD\xA0\xE5\xA5\xBD\n\n\t<s>[MASK] x\xFF\xC3"
    "\xF4\x8F\xBE\x80 \xE2\x96\x81 ##ing \xC4\xB0\xEF\xB7\xBA";

static void round_trip(const struct ew_tokenizer *tok, struct ew_str text, bool special)
{
    uint32_t n_vocab = ew_tokenizer_info(tok)->n_vocab;
    struct ew_ids ids = {0};
    struct ew_detok detok;
    struct ew_buf out;
    struct ew_error err;

    ew_buf_init(&out, TEXT_BYTES_MAX);
    if (ew_tokenize(tok, text, special, special, &ids, &err) == EW_OK) {
        for (size_t i = 0; i < ids.count; i++)
            EW_ASSERT(ids.ids[i] >= 0 && (uint32_t)ids.ids[i] < n_vocab);
        if (ew_detokenize(tok, ids.ids, ids.count, special, &out, &err) == EW_OK)
            ew_buf_reset(&out);
        ew_detok_init(&detok, tok, special);
        for (size_t i = 0; i < ids.count && ew_detok_push(&detok, ids.ids[i], &out, &err) == EW_OK; i++)
            ;
        ew_detok_flush(&detok, &out);
        EW_ASSERT(!ew_buf_ok(&out) || ew_utf8_valid(out.ptr, out.len));
    }
    ew_ids_fini(&ids);
    ew_buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_str input = {(const char *)data, size};
    const struct ew_json *root;
    struct ew_tokenizer *tok;
    struct ew_arena arena;
    struct ew_error err;

    ew_arena_init(&arena, TREE_BYTES_MAX);
    // The document may carry its own tokenizer_config.json, which the reader of tokenizer.json does not know.
    if (ew_json_parse(&arena, input, &root, &err) == EW_OK &&
        ew_tokenizer_load_json(root, ew_json_get(root, "tokenizer_config"), &tok, &err) == EW_OK) {
        round_trip(tok, (struct ew_str){g_sample, sizeof(g_sample) - 1}, true);
        round_trip(tok, (struct ew_str){g_sample, sizeof(g_sample) - 1}, false);
        round_trip(tok, (struct ew_str){input.ptr, EW_MIN(size, (size_t)300)}, true);
        (void)ew_token_find(tok, EW_STR("Hello"));
        ew_tokenizer_free(tok);
    }
    ew_arena_fini(&arena);
    return 0;
}
