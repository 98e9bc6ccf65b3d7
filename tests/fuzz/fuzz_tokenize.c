// Any bytes through the small committed tokenizers; the first byte chooses. Vocabularies that can express bytes give
// them back.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/assert.h"
#include "base/utf8.h"
#include "text/tokenizer.h"

#define TREE_BYTES_MAX ((size_t)64 << 20)
#define TEXT_BYTES_MAX ((size_t)64 << 20)
#define KINDS 4

struct subject {
    const char *name;
    bool keeps_bytes;
    struct ew_arena arena;
    struct ew_tokenizer *tok;
};

static struct subject g_subjects[KINDS] = {{.name = "byte_level", .keeps_bytes = true},
                                           {.name = "llama", .keeps_bytes = true},
                                           {.name = "unigram"},
                                           {.name = "wordpiece"}};

static const struct ew_tokenizer *open_subject(struct subject *s)
{
    const struct ew_json *root;
    char path[4096];

    if (s->tok)
        return s->tok;
    snprintf(path, sizeof(path), "%s/tokenizers/%s.json", EW_TEST_FIXTURES, s->name);
    ew_arena_init(&s->arena, TREE_BYTES_MAX);
    EW_ASSERT(ew_json_parse_file(&s->arena, path, TEXT_BYTES_MAX, &root, NULL) == EW_OK);
    EW_ASSERT(ew_tokenizer_load_json(root, NULL, &s->tok, NULL) == EW_OK);
    return s->tok;
}

static void check_stream(const struct ew_tokenizer *tok, const struct ew_ids *ids, struct ew_str whole)
{
    struct ew_detok detok;
    struct ew_buf out;

    ew_buf_init(&out, TEXT_BYTES_MAX);
    ew_detok_init(&detok, tok, false);
    for (size_t i = 0; i < ids->count; i++)
        EW_ASSERT(ew_detok_push(&detok, ids->ids[i], &out, NULL) == EW_OK);
    ew_detok_flush(&detok, &out);
    EW_ASSERT(ew_utf8_valid(out.ptr, out.len));
    EW_ASSERT(!ew_utf8_valid(whole.ptr, whole.len) || ew_str_eq(ew_buf_str(&out), whole));
    ew_buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct subject *s = &g_subjects[size ? data[0] % KINDS : 0];
    bool special = size && data[0] & 0x80;
    struct ew_str text = {(const char *)data + (size > 0), size - (size > 0)};
    const struct ew_tokenizer *tok = open_subject(s);
    struct ew_ids ids = {0};
    struct ew_buf out;

    ew_buf_init(&out, TEXT_BYTES_MAX);
    EW_ASSERT(ew_tokenize(tok, text, special, special, &ids, NULL) == EW_OK);
    for (size_t i = 0; i < ids.count; i++)
        EW_ASSERT(special || !ew_token_is_special(tok, ids.ids[i]) || ids.ids[i] == ew_tokenizer_info(tok)->unk);
    EW_ASSERT(ew_detokenize(tok, ids.ids, ids.count, false, &out, NULL) == EW_OK);
    // SentencePiece writes spaces as U+2581, which therefore comes back as a space.
    if (s->keeps_bytes && !special && ew_str_find(text, EW_STR("\xE2\x96\x81"), 0) < 0)
        EW_ASSERT(ew_str_eq(ew_buf_str(&out), text));
    check_stream(tok, &ids, ew_buf_str(&out));
    ew_buf_fini(&out);
    ew_ids_fini(&ids);
    return 0;
}
