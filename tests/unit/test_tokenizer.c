// text: tokenizers of each kind against the ids of the reference implementation, and what no reference can say: bytes
// that are no text, streaming, memory that runs out, input of one long word.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "base/utf8.h"
#include "fixture.h"
#include "text/normaliser.h"
#include "text/pretok.h"
#include "text/tokenizer.h"

#define FILE_BYTES_MAX ((size_t)4 << 20)
#define TEXT_BYTES_MAX ((size_t)256 << 20)
#define LONG_WORD 400000

// Under a sanitizer or an emulator, of which EW_SLOW tells, a fourth of it: still past every buffer's first size, and
// long enough for time that grows with the square. Limits of patterns are met, or not, by programs at full speed.
static size_t long_word(void)
{
    return getenv("EW_SLOW") ? LONG_WORD / 4 : LONG_WORD;
}

struct subject {
    struct ew_arena arena;
    const struct ew_json *json;
    struct ew_tokenizer *tok;
};

static void parse(struct ew_arena *arena, const char *name, const struct ew_json **out)
{
    char path[4096], file[128];

    snprintf(file, sizeof(file), "tokenizers/%s.json", name);
    assert_true(fixture_find(path, sizeof(path), file));
    assert_int_equal(ew_json_parse_file(arena, path, FILE_BYTES_MAX, out, NULL), EW_OK);
}

static void open_subject(struct subject *s, const char *name)
{
    struct ew_error err;

    ew_arena_init(&s->arena, TEXT_BYTES_MAX);
    parse(&s->arena, name, &s->json);
    if (ew_tokenizer_load_json(s->json, NULL, &s->tok, &err) != EW_OK)
        fail_msg("%s: %s", name, err.message);
}

static void close_subject(struct subject *s)
{
    ew_tokenizer_free(s->tok);
    ew_arena_fini(&s->arena);
}

static void encode(const struct subject *s, struct ew_str text, bool special, struct ew_ids *ids)
{
    struct ew_error err;

    ids->count = 0;
    if (ew_tokenize(s->tok, text, special, special, ids, &err) != EW_OK)
        fail_msg("%s", err.message);
}

static void decode_streamed(const struct subject *s, const struct ew_ids *ids, bool skip_special, struct ew_buf *out)
{
    struct ew_detok detok;

    ew_buf_reset(out);
    ew_detok_init(&detok, s->tok, skip_special);
    for (size_t i = 0; i < ids->count; i++) {
        assert_int_equal(ew_detok_push(&detok, ids->ids[i], out, NULL), EW_OK);
        assert_true(ew_utf8_valid(out->ptr, out->len)); // whole characters only
    }
    ew_detok_flush(&detok, out);
}

static void check_case(const struct subject *s, const struct ew_json *node, struct ew_ids *ids, struct ew_buf *out)
{
    struct ew_str text = ew_json_str(ew_json_get(node, "text"), ""),
                  decoded = ew_json_str(ew_json_get(node, "decoded"), "");
    const struct ew_json *want = ew_json_get(node, "ids");

    encode(s, text, true, ids);
    if (ids->count != want->count)
        fail_msg("\"%s\": %zu ids, not %u", text.ptr, ids->count, want->count);
    for (uint32_t i = 0; i < want->count; i++)
        if (ids->ids[i] != ew_json_int(ew_json_at(want, i), -1))
            fail_msg("\"%s\": id %u is %d, not %lld", text.ptr, i, ids->ids[i],
                     (long long)ew_json_at(want, i)->integer);
    if (ew_str_find(decoded, EW_STR("\xEF\xBF\xBD"), 0) >= 0)
        return; // the reference replaces more bytes than are bad
    ew_buf_reset(out);
    assert_int_equal(ew_detokenize(s->tok, ids->ids, ids->count, true, out, NULL), EW_OK);
    assert_true(ew_str_eq(ew_buf_str(out), decoded));
    decode_streamed(s, ids, true, out);
    assert_true(ew_str_eq(ew_buf_str(out), decoded));
}

static void check_cases(const char *name)
{
    const struct ew_json *cases;
    struct ew_ids ids = {0};
    struct ew_buf out;
    struct subject s;
    char file[128];

    open_subject(&s, name);
    snprintf(file, sizeof(file), "%s.cases", name);
    parse(&s.arena, file, &cases);
    ew_buf_init(&out, TEXT_BYTES_MAX);
    assert_true(cases->count > 30);
    for (const struct ew_json *node = cases->child; node; node = node->next)
        check_case(&s, node, &ids, &out);
    ew_buf_fini(&out);
    ew_ids_fini(&ids);
    close_subject(&s);
}

static void ids_are_those_of_the_reference(void **state)
{
    (void)state;
    check_cases("byte_level");
    check_cases("llama");
    check_cases("unigram");
    check_cases("wordpiece");
}

// Byte-level vocabularies and byte fallback give any bytes back, the latter behind the space that they put in front.
static void bytes_survive(void **state)
{
    static const char *const names[] = {"byte_level", "llama"};
    struct ew_rng rng = ew_rng_at(1, 0);

    (void)state;
    for (int which = 0; which < 2; which++) {
        struct ew_ids ids = {0};
        struct ew_buf out;
        struct subject s;

        open_subject(&s, names[which]);
        ew_buf_init(&out, TEXT_BYTES_MAX);
        for (int round = 0; round < 500; round++) {
            char bytes[40];
            struct ew_str text = {bytes, ew_rng_below(&rng, sizeof(bytes))};

            for (size_t i = 0; i < text.len; i++)
                bytes[i] = (char)ew_rng_u32(&rng);
            encode(&s, text, false, &ids);
            ew_buf_reset(&out);
            assert_int_equal(ew_detokenize(s.tok, ids.ids, ids.count, false, &out, NULL), EW_OK);
            assert_true(ew_str_eq(ew_buf_str(&out), text));
        }
        ew_buf_fini(&out);
        ew_ids_fini(&ids);
        close_subject(&s);
    }
}

static void plain_text_never_becomes_a_special_token(void **state)
{
    struct ew_ids ids = {0};
    struct subject s;

    (void)state;
    open_subject(&s, "llama");
    assert_int_equal(ew_tokenize(s.tok, EW_STR("</s><s>x<unk>"), false, false, &ids, NULL), EW_OK);
    for (size_t i = 0; i < ids.count; i++)
        assert_false(ew_token_is_special(s.tok, ids.ids[i]));
    encode(&s, EW_STR("</s>"), true, &ids);
    assert_int_equal(ids.ids[ids.count - 1], ew_token_find(s.tok, EW_STR("</s>")));
    assert_true(ew_token_is_special(s.tok, ids.ids[ids.count - 1]));
    ew_ids_fini(&ids);
    close_subject(&s);
}

static void tokens_are_found_by_their_text(void **state)
{
    struct subject s;
    struct ew_buf out;
    int32_t id;

    (void)state;
    ew_buf_init(&out, 100);
    open_subject(&s, "byte_level");
    id = ew_token_find(s.tok, EW_STR("\n"));
    assert_true(id >= 0 && ew_token_bytes(s.tok, id, &out));
    assert_true(ew_str_is(ew_buf_str(&out), "\n"));
    assert_int_equal(ew_token_find(s.tok, EW_STR("\xC4\x8A")), EW_TOKEN_NONE); // the vocabulary's spelling of it
    assert_true(ew_token_find(s.tok, EW_STR("<tool>")) >= 0);
    assert_false(ew_token_is_special(s.tok, ew_token_find(s.tok, EW_STR("<tool>"))));
    assert_false(ew_token_bytes(s.tok, 1 << 30, &out) || ew_token_bytes(s.tok, -1, &out));
    assert_int_equal(ew_tokenizer_info(s.tok)->bos, EW_TOKEN_NONE); // only tokenizer_config.json names it
    close_subject(&s);
    open_subject(&s, "llama");
    id = ew_token_find(s.tok, EW_STR(" "));
    ew_buf_reset(&out);
    assert_true(id >= 0 && ew_token_bytes(s.tok, id, &out) && ew_str_is(ew_buf_str(&out), " "));
    close_subject(&s);
    ew_buf_fini(&out);
}

// Bad bytes come out as one U+FFFD for each part that might have become a character.
static void streams_replace_what_is_no_character(void **state)
{
    struct ew_ids ids = {0};
    struct ew_buf out;
    struct subject s;

    (void)state;
    ew_buf_init(&out, 1000);
    open_subject(&s, "byte_level");
    encode(&s, EW_STR("a\xE2\x82" "b\xFF\xF0\x9F\x98\xC3\xA9\xF0\x9F\x98\x80\xE2\x82"), false, &ids);
    decode_streamed(&s, &ids, false, &out);
    assert_true(ew_str_is(ew_buf_str(&out), "a\xEF\xBF\xBD"
                                            "b\xEF\xBF\xBD\xEF\xBF\xBD\xC3\xA9\xF0\x9F\x98\x80\xEF\xBF\xBD"));
    ew_ids_fini(&ids);
    ew_buf_fini(&out);
    close_subject(&s);
}

// A word of one class of character: no failure, and time that grows with its length and not with the square.
static void long_words_are_no_trouble(void **state)
{
    static const char *const units[] = {"a",  " ",        "\n",           "1",    "!",   "A",
                                        "ab", "\xCC\x81", "\xE4\xBD\xA0", "\xFF", "\t ", "\xCC\xA3\xCC\x81"};
    static const char *const names[] = {"byte_level", "llama", "unigram", "wordpiece"};
    char *text = ew_alloc(LONG_WORD + 8);
    struct ew_ids ids = {0};
    struct subject s;

    (void)state;
    assert_non_null(text);
    for (int which = 0; which < 4; which++) {
        open_subject(&s, names[which]);
        for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
            size_t len = 0, unit = strlen(units[u]);

            for (; len + unit <= long_word(); len += unit)
                memcpy(text + len, units[u], unit);
            encode(&s, (struct ew_str){text, len}, false, &ids);
        }
        close_subject(&s);
    }
    ew_ids_fini(&ids);
    ew_free(text);
}

struct pieces {
    uint32_t count;
    size_t bytes;
};

static int count_piece(void *user, struct ew_str piece, struct ew_error *err)
{
    struct pieces *pieces = user;

    (void)err;
    pieces->count++;
    pieces->bytes += piece.len;
    return EW_OK;
}

// Every pre-tokeniser that GGUF files name, on long runs: nothing is lost, nothing fails.
static void named_pretokenizers_cope_with_long_runs(void **state)
{
    static const char *const names[] = {"default",     "llama-bpe",  "jais-2",     "deepseek-llm", "deepseek-coder",
                                        "deepseek-v3", "spark2_5",   "youtu",      "falcon",       "starcoder",
                                        "gpt-2",       "qwen2",      "qwen35",     "bloom",        "viking",
                                        "tekken",      "chameleon",  "gpt-4o",     "tiny_aya",     "kimi-k2",
                                        "superbpe",    "bailingmoe", "seed-coder", "ufakzeka",     "afmoe",
                                        "laguna",      "exaone-moe", "gemma4",     "minicpm5"};
    static const char *const units[] = {"a",   " ",        "\n",           "1",        "!",  "A", "a ",
                                        " \n", "\xCC\x81", "\xE4\xBD\xA0", "\xC3\xA9", "1a", "\r"};
    char *text = ew_alloc(LONG_WORD + 8);

    (void)state;
    assert_non_null(text);
    for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++) {
        struct ew_pretok_scratch scratch;
        struct ew_pretok pretok = {0};
        unsigned flags;

        assert_int_equal(ew_pretok_by_name(ew_str_of(names[n]), &pretok, &flags, NULL), EW_OK);
        ew_pretok_scratch_init(&scratch);
        for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
            struct pieces pieces = {0};
            struct ew_error err;
            size_t len = 0, unit = strlen(units[u]);

            for (; len + unit <= long_word(); len += unit)
                memcpy(text + len, units[u], unit);
            text[len++] = 'x';
            if (ew_pretok_run(&pretok, &scratch, (struct ew_str){text, len}, true, count_piece, &pieces, &err) != EW_OK)
                fail_msg("%s on %s: %s", names[n], units[u], err.message);
            assert_true(pieces.bytes >= len);
        }
        ew_pretok_scratch_fini(&scratch);
        ew_pretok_fini(&pretok);
    }
    ew_free(text);
}

static void long_runs_of_marks_are_ordered_like_short_ones(void **state)
{
    struct ew_normaliser_scratch scratch;
    struct ew_buf text, out;

    (void)state;
    ew_normaliser_scratch_init(&scratch);
    ew_buf_init(&text, 1 << 20);
    ew_buf_init(&out, 1 << 20);
    for (int i = 0; i < 50000; i++)
        ew_buf_append_str(&text,
                          i % 2 ? EW_STR("\xCC\xA3") : EW_STR("\xCC\x81")); // U+0301 is of class 230, U+0323 of 220
    assert_int_equal(ew_normform(EW_FORM_NFD, &scratch, ew_buf_str(&text), &out, NULL), EW_OK);
    assert_int_equal(out.len, text.len);
    assert_memory_equal(out.ptr, "\xCC\xA3\xCC\xA3", 4);
    assert_memory_equal(out.ptr + out.len / 2, "\xCC\x81\xCC\x81", 4);
    ew_buf_fini(&text);
    ew_buf_fini(&out);
    ew_normaliser_scratch_fini(&scratch);
}

// U+11A7 stands one before the trailing consonants: utf8proc alone would swallow it.
static void a_jamo_that_composes_with_nothing_stays(void **state)
{
    struct ew_normaliser_scratch scratch;
    struct ew_buf out;

    (void)state;
    ew_normaliser_scratch_init(&scratch);
    ew_buf_init(&out, 1 << 10);
    assert_int_equal(ew_normform(EW_FORM_NFC, &scratch, EW_STR("\xEA\xB5\xAC\xE1\x86\xA7"
                                                               "\xEA\xB5\xAC\xE1\x86\xA8"), &out, NULL), EW_OK);
    assert_true(ew_str_is(ew_buf_str(&out), "\xEA\xB5\xAC\xE1\x86\xA7\xEA\xB5\xAD"));
    ew_buf_fini(&out);
    ew_normaliser_scratch_fini(&scratch);
}

// Each allocation fails in turn, of loading and of one round trip.
static void memory_that_runs_out_is_an_error(void **state)
{
    static const char *const names[] = {"byte_level", "llama", "unigram", "wordpiece"};

    (void)state;
    for (int which = 0; which < 4; which++) {
        struct subject s;
        bool done = false;

        ew_arena_init(&s.arena, TEXT_BYTES_MAX);
        parse(&s.arena, names[which], &s.json);
        for (uint64_t n = 1; !done && n < 10000; n++) {
            struct ew_tokenizer *tok = NULL;
            struct ew_ids ids = {0};
            struct ew_error err;
            int code;

            ew_alloc_fail_at(n);
            code = ew_tokenizer_load_json(s.json, NULL, &tok, &err);
            if (code == EW_OK)
                code = ew_tokenize(tok, EW_STR("Caf\xC3\xA9 \xFF 12 Stra\xC3\x9F" "e\xCC\x81"), true, true, &ids, &err);
            done = code == EW_OK;
            assert_true(done || code == EW_ERR_MEMORY);
            ew_alloc_fail_at(0);
            ew_ids_fini(&ids);
            ew_tokenizer_free(tok);
        }
        assert_true(done);
        ew_arena_fini(&s.arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_the_reference),
        cmocka_unit_test(bytes_survive),
        cmocka_unit_test(plain_text_never_becomes_a_special_token),
        cmocka_unit_test(tokens_are_found_by_their_text),
        cmocka_unit_test(streams_replace_what_is_no_character),
        cmocka_unit_test(long_words_are_no_trouble),
        cmocka_unit_test(named_pretokenizers_cope_with_long_runs),
        cmocka_unit_test(long_runs_of_marks_are_ordered_like_short_ones),
        cmocka_unit_test(a_jamo_that_composes_with_nothing_stays),
        cmocka_unit_test(memory_that_runs_out_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
