#include "text/pair_format.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "format/json.h"
#include "text/jinja.h"
#include "text/tokenizer_impl.h"

#define TEXT_BYTES_MAX ((size_t)1 << 20)
#define JSON_BYTES_MAX ((size_t)64 << 10)
#define TOKEN_BYTES_MAX 4096
#define STEPS_MAX 1000000u
#define PIECES_MAX 16

enum { INSTRUCTION, QUERY, DOCUMENT, N_TEXTS };

// What templates are rendered with in place of the texts: no text of a template contains these bytes.
static const char *const g_marks[N_TEXTS] = {"\002instruction\003", "\002query\003", "\002document\003"};
static const char *const g_plain[N_TEXTS] = {"{instruction}", "{query}", "{document}"};

// Pieces of the template, and the texts between them.
struct layout {
    char *text; // rendered
    uint32_t n_pieces;
    struct piece {
        struct ew_str literal; // of the template; ptr NULL: a text
        int text;
    } pieces[PIECES_MAX];
};

struct ew_pair_format {
    struct layout without, with; // an instruction
};

// ---- rendering ----------------------------------------------------------------------------------------------------

static int add_piece(struct layout *layout, struct piece piece, struct ew_error *err)
{
    if (layout->n_pieces == PIECES_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "the template for pairs has more than %d pieces", PIECES_MAX);
    layout->pieces[layout->n_pieces++] = piece;
    return 0;
}

static int split(struct layout *layout, const char *const marks[N_TEXTS], struct ew_error *err)
{
    struct ew_str left = ew_str_of(layout->text);
    bool has[N_TEXTS] = {false};
    int rc = 0;

    while (rc == 0) {
        ptrdiff_t first = -1;
        int which = -1;

        for (int i = 0; i < N_TEXTS; i++) {
            ptrdiff_t at = ew_str_find(left, ew_str_of(marks[i]), 0);

            if (at >= 0 && (first < 0 || at < first))
                first = at, which = i;
        }
        rc = add_piece(layout, (struct piece){{left.ptr, which < 0 ? left.len : (size_t)first}, 0}, err);
        if (which < 0 || rc)
            break;
        has[which] = true;
        rc = add_piece(layout, (struct piece){{NULL, 0}, which}, err);
        left.ptr += (size_t)first + strlen(marks[which]);
        left.len -= (size_t)first + strlen(marks[which]);
    }
    if (rc == 0 && (!has[QUERY] || !has[DOCUMENT]))
        rc = ew_fail(err, EW_ERR_UNSUPPORTED, "the model's template for pairs leaves out the query or the document");
    return rc;
}

static void append_message(struct ew_buf *json, const char *role, int text, const char *before)
{
    ew_buf_printf(json, "%s{\"role\": \"%s\", \"content\": ", before, role);
    ew_buf_append_json(json, ew_str_of(g_marks[text]));
    ew_buf_append_char(json, '}');
}

static int parse_messages(struct ew_arena *arena, bool has_instruction, const struct ew_json **out,
                          struct ew_error *err)
{
    struct ew_buf json;
    int rc;

    ew_buf_init(&json, JSON_BYTES_MAX);
    ew_buf_append_str(&json, EW_STR("{\"messages\": ["));
    if (has_instruction)
        append_message(&json, "system", INSTRUCTION, "");
    append_message(&json, "query", QUERY, has_instruction ? ", " : "");
    append_message(&json, "document", DOCUMENT, ", ");
    ew_buf_append_str(&json, EW_STR("], \"add_generation_prompt\": true}"));
    rc = ew_buf_ok(&json) ? ew_json_parse(arena, ew_buf_str(&json), out, err)
                          : ew_fail_memory(err, json.len, "a pair's messages");
    ew_buf_fini(&json);
    return rc;
}

// A token's text, or NULL.
static const char *token_text(const struct ew_tokenizer *tok, int32_t id, struct ew_buf *buf)
{
    return id != EW_TOKEN_NONE && ew_token_bytes(tok, id, buf) && ew_buf_ok(buf) ? buf->ptr : NULL;
}

static int render(const struct ew_jinja *tmpl, const struct ew_tokenizer *tok, bool has_instruction,
                  struct layout *layout, struct ew_error *err)
{
    const struct ew_jinja_limits limits = {.steps_max = STEPS_MAX, .output_max = TEXT_BYTES_MAX};
    struct ew_jinja_vars vars = {.now = "2026-01-01 00:00:00"};
    struct ew_buf text, bos, eos;
    struct ew_arena arena;
    int rc;

    ew_arena_init(&arena, JSON_BYTES_MAX);
    ew_buf_init(&text, TEXT_BYTES_MAX);
    ew_buf_init(&bos, TOKEN_BYTES_MAX);
    ew_buf_init(&eos, TOKEN_BYTES_MAX);
    vars.bos_token = token_text(tok, ew_tokenizer_info(tok)->bos, &bos);
    vars.eos_token = token_text(tok, ew_tokenizer_info(tok)->eos, &eos);
    rc = parse_messages(&arena, has_instruction, &vars.object, err);
    if (rc == 0)
        rc = ew_jinja_render(tmpl, &vars, &limits, &text, err);
    if (rc == 0 && (!ew_buf_ok(&text) || !(layout->text = ew_strdup(text.ptr ? text.ptr : ""))))
        rc = ew_fail_memory(err, text.len, "the template for pairs");
    ew_buf_fini(&text);
    ew_buf_fini(&bos);
    ew_buf_fini(&eos);
    ew_arena_fini(&arena);
    return rc ? rc : split(layout, g_marks, err);
}

static int compile_jinja(struct ew_str source, const struct ew_tokenizer *tok, struct ew_pair_format *format,
                         struct ew_error *err)
{
    struct ew_jinja *tmpl;
    int rc = ew_jinja_compile(source, &tmpl, err);

    if (rc)
        return rc;
    rc = render(tmpl, tok, false, &format->without, err);
    if (rc == 0)
        rc = render(tmpl, tok, true, &format->with, err);
    ew_jinja_free(tmpl);
    return rc;
}

static int compile_plain(struct ew_str source, struct layout *layout, struct ew_error *err)
{
    if (source.len > TEXT_BYTES_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "the template for pairs has %zu bytes", source.len);
    layout->text = ew_alloc(source.len + 1);
    if (!layout->text)
        return ew_fail_memory(err, source.len, "the template for pairs");
    memcpy(layout->text, source.ptr, source.len);
    return split(layout, g_plain, err);
}

int ew_pair_format_compile(struct ew_str source, const struct ew_tokenizer *tok, struct ew_pair_format **out,
                           struct ew_error *err)
{
    bool is_jinja = ew_str_find(source, EW_STR("{{"), 0) >= 0 || ew_str_find(source, EW_STR("{%"), 0) >= 0;
    struct ew_pair_format *format = ew_alloc(sizeof(*format));
    int rc;

    *out = NULL;
    if (!format)
        return ew_fail_memory(err, sizeof(*format), "a format of pairs");
    if (is_jinja) {
        rc = compile_jinja(source, tok, format, err);
    } else {
        rc = compile_plain(source, &format->without, err);
        if (rc == 0)
            rc = compile_plain(source, &format->with, err);
    }
    if (rc) {
        ew_pair_format_free(format);
        return ew_fail_in(err, rc, "the template for pairs");
    }
    *out = format;
    return 0;
}

void ew_pair_format_free(struct ew_pair_format *format)
{
    if (!format)
        return;
    ew_free(format->without.text);
    ew_free(format->with.text);
    ew_free(format);
}

// ---- tokens -------------------------------------------------------------------------------------------------------

// Ids of what stands between two special tokens of the template: text, whoever wrote it.
static int flush(const struct ew_tokenizer *tok, struct ew_buf *run, struct ew_ids *out, struct ew_error *err)
{
    int rc = ew_buf_ok(run) ? 0 : ew_fail_memory(err, run->len, "a pair of texts");

    if (rc == 0 && run->len)
        rc = ew_tokenize(tok, ew_buf_str(run), false, false, out, err);
    ew_buf_reset(run);
    return rc;
}

// A literal's special tokens end runs of text; what is between them joins the run.
static int add_literal(const struct ew_tokenizer *tok, struct ew_str literal, struct ew_buf *run, struct ew_ids *out,
                       struct ew_error *err)
{
    struct ew_added_match match;
    size_t from = 0, at = 0;
    int rc = 0;

    while (rc == 0 && at < literal.len && ew_added_find(&tok->added, literal, at, true, &match)) {
        at = match.end;
        if (!ew_token_is_special(tok, match.id))
            continue;
        ew_buf_append(run, literal.ptr + from, match.start - from);
        rc = flush(tok, run, out, err);
        if (rc == 0)
            rc = ew_ids_add(out, match.id, err);
        from = match.end;
    }
    ew_buf_append(run, literal.ptr + from, literal.len - from);
    return rc;
}

static int add_all(const struct layout *layout, const struct ew_tokenizer *tok, const struct ew_str texts[N_TEXTS],
                   struct ew_ids *out, struct ew_error *err)
{
    const struct ew_tokenizer_info *info = ew_tokenizer_info(tok);
    size_t begin = out->count;
    struct ew_buf run;
    int rc = 0;

    ew_buf_init(&run, SIZE_MAX / 8);
    for (uint32_t i = 0; i < layout->n_pieces && rc == 0; i++) {
        const struct piece *piece = &layout->pieces[i];

        if (piece->literal.ptr)
            rc = add_literal(tok, piece->literal, &run, out, err);
        else
            ew_buf_append_str(&run, texts[piece->text]);
    }
    if (rc == 0)
        rc = flush(tok, &run, out, err);
    ew_buf_fini(&run);
    if (rc || !info->add_bos || info->bos == EW_TOKEN_NONE || (out->count > begin && out->ids[begin] == info->bos))
        return rc;
    rc = ew_ids_add(out, info->bos, err); // the template did not write it
    if (rc == 0) {
        memmove(out->ids + begin + 1, out->ids + begin, (out->count - begin - 1) * sizeof(*out->ids));
        out->ids[begin] = info->bos;
    }
    return rc;
}

// The largest prefix of a text that ends with a whole character and has at most n bytes.
static struct ew_str cut(struct ew_str text, size_t n)
{
    while (n < text.len && n > 0 && ((unsigned char)text.ptr[n] & 0xC0) == 0x80)
        n--;
    return (struct ew_str){text.ptr, EW_MIN(n, text.len)};
}

// Halves the range of lengths until the longest document that fits is found: how many tokens a text makes depends on
// what follows it, so that cutting ids would not do.
static int shorten(const struct layout *layout, const struct ew_tokenizer *tok, struct ew_str texts[N_TEXTS],
                   uint32_t max, struct ew_ids *out, struct ew_error *err)
{
    struct ew_str document = texts[DOCUMENT];
    size_t begin = out->count, fits = 0, fails = document.len;
    int rc = 0;

    while (rc == 0 && fails - fits > 1) {
        size_t middle = fits + (fails - fits) / 2;

        texts[DOCUMENT] = cut(document, middle);
        out->count = begin;
        rc = add_all(layout, tok, texts, out, err);
        if (out->count - begin <= max)
            fits = middle;
        else
            fails = middle;
    }
    texts[DOCUMENT] = cut(document, fits);
    out->count = begin;
    if (rc == 0)
        rc = add_all(layout, tok, texts, out, err);
    if (rc == 0 && out->count - begin > max)
        rc = ew_fail(err, EW_ERR_LIMIT, "the query of a pair and what is around it take %zu of the model's %u tokens",
                     out->count - begin, max);
    return rc;
}

int ew_pair_format_ids(const struct ew_pair_format *format, const struct ew_tokenizer *tok, struct ew_str instruction,
                       struct ew_str query, struct ew_str document, uint32_t max, struct ew_ids *out,
                       struct ew_error *err)
{
    const struct layout *layout = instruction.len ? &format->with : &format->without;
    struct ew_str texts[N_TEXTS] = {[INSTRUCTION] = instruction, [QUERY] = query, [DOCUMENT] = document};
    size_t begin = out->count;
    int rc = add_all(layout, tok, texts, out, err);

    if (rc || !max || out->count - begin <= max)
        return rc;
    out->count = begin;
    return shorten(layout, tok, texts, max, out, err);
}
