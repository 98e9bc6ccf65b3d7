// Replies to requests for vectors and scores.

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "base/assert.h"
#include "model/pooling.h"
#include "server/vectors.h"

uint64_t ew_vectors_tokens(const struct ew_vector_task *task)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < task->n_texts; i++)
        n += task->texts[i].n_ids;
    return n;
}

static void append_usage(const struct ew_vector_task *task, struct ew_buf *out)
{
    uint64_t n = ew_vectors_tokens(task);

    ew_buf_printf(out, ",\"usage\":{\"prompt_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64 "}}", n, n);
}

static void append_model(const struct ew_vector_task *task, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("\"model\":"));
    ew_buf_append_json(out, ew_str_of(task->api->config.model_id));
}

// ---- vectors ------------------------------------------------------------------------------------------------------

// RFC 4648.
static void append_base64(const uint8_t *bytes, size_t n, struct ew_buf *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i < n; i += 3) {
        uint32_t left = (uint32_t)EW_MIN(n - i, 3u);
        uint32_t word = (uint32_t)bytes[i] << 16 | (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
                        (left > 2 ? bytes[i + 2] : 0);
        char text[4] = {digits[word >> 18], digits[word >> 12 & 63], left > 1 ? digits[word >> 6 & 63] : '=',
                        left > 2 ? digits[word & 63] : '='};

        ew_buf_append(out, text, sizeof(text));
    }
}

// Floats go out as they lie in memory, which is little-endian on every machine that edgewise runs on.
static void append_vector(const struct ew_vector_task *task, const float *vector, struct ew_buf *out)
{
    if (task->base64) {
        ew_buf_append_char(out, '"');
        append_base64((const uint8_t *)vector, task->dimensions * sizeof(*vector), out);
        ew_buf_append_char(out, '"');
        return;
    }
    for (uint32_t i = 0; i < task->dimensions; i++)
        ew_buf_printf(out, "%c%.9g", i ? ',' : '[', (double)vector[i]);
    ew_buf_append_char(out, ']');
}

static void reply_vectors(const struct ew_vector_task *task, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("{\"object\":\"list\",\"data\":["));
    for (uint32_t i = 0; i < task->n_texts; i++) {
        ew_pool_cut(&task->api->config.model->pooling, task->texts[i].vector, task->dimensions);
        ew_buf_printf(out, "%s{\"object\":\"embedding\",\"index\":%u,\"embedding\":", i ? "," : "", i);
        append_vector(task, task->texts[i].vector, out);
        ew_buf_append_char(out, '}');
    }
    ew_buf_append_str(out, EW_STR("],"));
    append_model(task, out);
    append_usage(task, out);
}

// ---- scores -------------------------------------------------------------------------------------------------------

static double cosine(const float *a, const float *b, uint32_t n)
{
    double ab = 0, aa = 0, bb = 0;

    for (uint32_t i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return ab / fmax(sqrt(aa * bb), 1e-12);
}

// Of a classifier what it says, of vectors the cosine.
static double score_of(const struct ew_vector_task *task, uint32_t pair)
{
    const struct ew_pooling *pooling = &task->api->config.model->pooling;

    if (pooling->is_score)
        return ew_pooling_score(pooling, task->texts[pair].vector);
    return cosine(task->texts[task->n_firsts > 1 ? pair : 0].vector, task->texts[task->n_firsts + pair].vector,
                  pooling->width);
}

struct ranked {
    uint32_t index;
    double score;
    const struct ew_json *document;
};

static int compare_ranked(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return x->index < y->index ? -1 : 1;
}

static void append_ranked(const struct ew_vector_task *task, const struct ranked *ranked, struct ew_buf *out)
{
    const struct ew_json *document = ranked->document;

    ew_buf_printf(out, "{\"index\":%u,\"relevance_score\":%.9g", ranked->index, ranked->score);
    if (task->return_documents) {
        ew_buf_append_str(out, EW_STR(",\"document\":{\"text\":"));
        ew_buf_append_json(out, ew_json_str(document->type == EW_JSON_T_OBJECT ? ew_json_get(document, "text")
                                                                               : document, ""));
        ew_buf_append_char(out, '}');
    }
    ew_buf_append_char(out, '}');
}

static void reply_ranks(const struct ew_vector_task *task, struct ew_buf *out)
{
    struct ranked *list = ew_alloc_array(task->n_pairs, sizeof(*list));
    const struct ew_json *document = task->documents;

    if (!list) {
        out->failed = true;
        return;
    }
    for (uint32_t i = 0; i < task->n_pairs; i++, document = document->next)
        list[i] = (struct ranked){i, score_of(task, i), document};
    qsort(list, task->n_pairs, sizeof(*list), compare_ranked);
    ew_buf_append_char(out, '{');
    append_model(task, out);
    ew_buf_append_str(out, EW_STR(",\"results\":["));
    for (uint32_t i = 0; i < task->n_top; i++) {
        if (i)
            ew_buf_append_char(out, ',');
        append_ranked(task, &list[i], out);
    }
    ew_buf_append_char(out, ']');
    append_usage(task, out);
    ew_free(list);
}

static void reply_scores(const struct ew_vector_task *task, struct ew_buf *out)
{
    ew_buf_printf(out, "{\"object\":\"list\",\"created\":%lld,", (long long)time(NULL));
    append_model(task, out);
    ew_buf_append_str(out, EW_STR(",\"data\":["));
    for (uint32_t i = 0; i < task->n_pairs; i++)
        ew_buf_printf(out, "%s{\"index\":%u,\"object\":\"score\",\"score\":%.9g}", i ? "," : "", i, score_of(task, i));
    ew_buf_append_char(out, ']');
    append_usage(task, out);
}

// ---- labels -------------------------------------------------------------------------------------------------------

static void append_class(const struct ew_vector_task *task, uint32_t i, double *shares, struct ew_buf *out)
{
    const struct ew_model *model = task->api->config.model;
    uint32_t n = model->pooling.width, best = 0;

    ew_pooling_shares(&model->pooling, task->texts[i].vector, shares);
    for (uint32_t k = 1; k < n; k++)
        best = shares[k] > shares[best] ? k : best;
    ew_buf_printf(out, "%s{\"index\":%u,\"label\":", i ? "," : "", i);
    ew_buf_append_json(out, ew_pooling_label(model, best));
    for (uint32_t k = 0; k < n; k++)
        ew_buf_printf(out, "%s%.9g", k ? "," : ",\"probs\":[", shares[k]);
    ew_buf_printf(out, "],\"num_classes\":%u}", n);
}

// As vLLM's.
static void reply_classes(const struct ew_vector_task *task, struct ew_buf *out)
{
    double *shares = ew_alloc_array(task->api->config.model->pooling.width, sizeof(*shares));

    if (!shares) {
        out->failed = true;
        return;
    }
    ew_buf_printf(out, "{\"object\":\"list\",\"created\":%lld,", (long long)time(NULL));
    append_model(task, out);
    ew_buf_append_str(out, EW_STR(",\"data\":["));
    for (uint32_t i = 0; i < task->n_texts; i++)
        append_class(task, i, shares, out);
    ew_buf_append_char(out, ']');
    append_usage(task, out);
    ew_free(shares);
}

void ew_vectors_reply(const struct ew_vector_task *task, struct ew_buf *out)
{
    switch (task->route) {
    case EW_VECTORS_EMBED:
        reply_vectors(task, out);
        break;
    case EW_VECTORS_RERANK:
        reply_ranks(task, out);
        break;
    case EW_VECTORS_SCORE:
        reply_scores(task, out);
        break;
    case EW_VECTORS_CLASSIFY:
        reply_classes(task, out);
        break;
    }
}
