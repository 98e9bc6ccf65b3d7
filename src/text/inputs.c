#include "text/inputs.h"

#include <string.h>

#include "base/assert.h"
#include "text/tokenizer_impl.h"

int ew_tokenize_text(const struct ew_tokenizer *tok, struct ew_str prefix, struct ew_str text, uint32_t max,
                     struct ew_ids *out, struct ew_error *err)
{
    size_t from = out->count, behind = tok->suffix.count, n, most = max;
    struct ew_buf joined;
    int rc;

    ew_buf_init(&joined, SIZE_MAX / 8);
    if (prefix.len) {
        ew_buf_append_str(&joined, prefix);
        ew_buf_append_str(&joined, text);
        text = ew_buf_str(&joined);
    }
    rc = ew_buf_ok(&joined) ? ew_tokenize(tok, text, true, false, out, err)
                            : ew_fail_memory(err, prefix.len + text.len, "a text");
    ew_buf_fini(&joined);
    n = out->count - from;
    if (rc || !max || n <= most)
        return rc;
    behind = EW_MIN(behind, most);
    memmove(out->ids + from + most - behind, out->ids + out->count - behind, behind * sizeof(*out->ids));
    out->count = from + most;
    return 0;
}

static int add_pieces(const struct ew_tokenizer *tok, const struct ew_ids texts[2], struct ew_ids *out,
                      struct ew_buf *segments, struct ew_error *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < tok->pair.count && rc == 0; i++) {
        const struct ew_pair_piece *piece = &tok->pair.pieces[i];
        const struct ew_ids *text = piece->id < 0 ? &texts[piece->id == EW_PAIR_SECOND] : NULL;
        size_t n = text ? text->count : 1;

        for (size_t k = 0; k < n && rc == 0; k++) {
            rc = ew_ids_add(out, text ? text->ids[k] : piece->id, err);
            ew_buf_append_char(segments, (char)piece->segment);
        }
    }
    return rc == 0 && !ew_buf_ok(segments) ? ew_fail_memory(err, segments->len, "a pair of texts") : rc;
}

// Ids that the template adds to the two texts.
static size_t count_special(const struct ew_pair_template *pair)
{
    size_t n = 0;

    for (uint32_t i = 0; i < pair->count; i++)
        n += pair->pieces[i].id >= 0;
    return n;
}

int ew_tokenize_pair(const struct ew_tokenizer *tok, struct ew_str first, struct ew_str second, uint32_t max,
                     struct ew_ids *out, struct ew_buf *segments, struct ew_error *err)
{
    struct ew_ids texts[2] = {0};
    size_t fixed;
    int rc;

    if (tok->pair.count == 0)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the vocabulary does not say how a pair of texts is written");
    rc = ew_tokenize(tok, first, false, false, &texts[0], err);
    if (rc == 0)
        rc = ew_tokenize(tok, second, false, false, &texts[1], err);
    fixed = texts[0].count + count_special(&tok->pair);
    if (rc == 0 && max && fixed + texts[1].count > max) {
        if (fixed >= max)
            rc = ew_fail(err, EW_ERR_LIMIT, "the first text of a pair takes %zu of the model's %u tokens", fixed, max);
        else
            texts[1].count = max - fixed;
    }
    if (rc == 0)
        rc = add_pieces(tok, texts, out, segments, err);
    ew_ids_fini(&texts[0]);
    ew_ids_fini(&texts[1]);
    return rc;
}
