// Bodies of requests for vectors and scores: from JSON to token ids.

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "model/pooling.h"
#include "server/exchange.h"
#include "server/vectors.h"

struct reader {
    struct ew_vector_task *task;
    const struct ew_json *body;
    struct ew_fault *fault;
    bool truncate;
    int64_t n_max; // tokens of a text where longer ones are cut; 0: they are refused
    struct ew_str instruction; // for pairs; may be empty
};

static const char *const g_members[][12] = {
    [EW_VECTORS_EMBED] = {"model", "input", "encoding_format", "dimensions", "user", "truncate",
                          "truncate_prompt_tokens", "input_type", "prompt_name"},
    [EW_VECTORS_RERANK] = {"model", "query", "documents", "top_n", "return_documents", "user", "truncate",
                           "truncate_prompt_tokens", "instruction"},
    [EW_VECTORS_SCORE] = {"model", "text_1", "text_2", "user", "truncate", "truncate_prompt_tokens", "instruction"},
    [EW_VECTORS_CLASSIFY] = {"model", "input", "user", "truncate", "truncate_prompt_tokens"},
};

static bool is_known(enum ew_vector_route route, struct ew_str name)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_members[route]) && g_members[route][i]; i++)
        if (ew_str_is(name, g_members[route][i]))
            return true;
    return false;
}

static int check_members(struct reader *r)
{
    for (const struct ew_json *member = r->body->child; member; member = member->next) {
        if (is_known(r->task->route, member->key))
            continue;
        ew_fault_set(r->fault, 400, "invalid_request_error", "unknown_parameter",
                     "\"" EW_STR_FMT "\" is no parameter of this route", EW_STR_ARG(member->key));
        snprintf(r->fault->param, sizeof(r->fault->param), EW_STR_FMT, EW_STR_ARG(member->key));
        return -1;
    }
    return 0;
}

static int no_memory(struct reader *r)
{
    return ew_fault_set(r->fault, 413, "invalid_request_error", "body_too_large",
                        "the request needs more memory than is allowed for it");
}

// An integer of [least, most]; absent or null leaves the value.
static int read_int(struct reader *r, const char *name, int64_t least, int64_t most, int64_t *value)
{
    const struct ew_json *node = ew_json_get(r->body, name);

    if (ew_json_is_null(node))
        return 0;
    if (node->type != EW_JSON_T_INT || node->integer < least || node->integer > most)
        return ew_fault_field(r->fault, name, "must be a whole number from %lld to %lld", (long long)least,
                              (long long)most);
    *value = node->integer;
    return 0;
}

static int read_bool(struct reader *r, const char *name, bool *value)
{
    const struct ew_json *node = ew_json_get(r->body, name);

    if (ew_json_is_null(node))
        return 0;
    if (node->type != EW_JSON_T_BOOL)
        return ew_fault_field(r->fault, name, "must be true or false");
    *value = node->boolean;
    return 0;
}

static int read_string(struct reader *r, const char *name, struct ew_str *value)
{
    const struct ew_json *node = ew_json_get(r->body, name);

    if (ew_json_is_null(node))
        return 0;
    if (node->type != EW_JSON_T_STRING)
        return ew_fault_field(r->fault, name, "must be a string");
    *value = node->text;
    return 0;
}

// vLLM's truncate_prompt_tokens names the length, -1 for the model's own; `truncate` is the latter.
static int read_truncation(struct reader *r)
{
    int64_t context = ew_service_context_max(r->task->api->service), wanted = 0;

    if (read_bool(r, "truncate", &r->truncate) < 0 ||
        read_int(r, "truncate_prompt_tokens", -1, context, &wanted) < 0)
        return -1;
    if (wanted > 0)
        r->n_max = wanted;
    else if (wanted < 0 || r->truncate)
        r->n_max = context;
    return 0;
}

// ---- texts --------------------------------------------------------------------------------------------------------

static int keep(struct reader *r, const struct ew_ids *ids, const struct ew_buf *segments)
{
    struct ew_vector_task *task = r->task;
    struct ew_vector_text *text = &task->texts[task->n_texts];
    const struct ew_pooling *pooling = &task->api->config.model->pooling;

    int32_t *copy = ew_arena_array(&task->arena, EW_MAX(ids->count, 1u), sizeof(*copy));

    *text = (struct ew_vector_text){.task = task, .ids = copy, .n_ids = (uint32_t)ids->count};
    if (segments)
        text->segments = (const uint8_t *)ew_arena_copy(&task->arena, segments->ptr, segments->len);
    text->vector = ew_arena_array(&task->arena, pooling->width, sizeof(*text->vector));
    if (!copy || (segments && !text->segments) || !text->vector)
        return no_memory(r);
    if (ids->count)
        memcpy(copy, ids->ids, ids->count * sizeof(*copy));
    task->n_texts++;
    return 0;
}

static int add_text(struct reader *r, struct ew_str prefix, struct ew_str given)
{
    struct ew_error err = {0};
    struct ew_ids ids = {0};
    int rc = ew_tokenize_text(r->task->api->config.tok, prefix, given, (uint32_t)r->n_max, &ids, &err);

    rc = rc < 0 ? ew_fault_of(r->fault, &err) : keep(r, &ids, NULL);
    ew_ids_fini(&ids);
    return rc;
}

static int add_pair(struct reader *r, struct ew_str first, struct ew_str second)
{
    struct ew_error err = {0};
    struct ew_ids ids = {0};
    const struct ew_api_config *config = &r->task->api->config;
    struct ew_buf segments;
    int rc;

    ew_buf_init(&segments, EW_PARAMS_ARENA_MAX);
    if (config->pairs)
        rc = ew_pair_format_ids(config->pairs, config->tok, r->instruction, first, second, (uint32_t)r->n_max, &ids,
                                &err);
    else
        rc = ew_tokenize_pair(config->tok, first, second, (uint32_t)r->n_max, &ids, &segments, &err);
    rc = rc < 0 ? ew_fault_of(r->fault, &err) : keep(r, &ids, config->pairs ? NULL : &segments);
    ew_ids_fini(&ids);
    ew_buf_fini(&segments);
    return rc;
}

static int add_ids(struct reader *r, const struct ew_json *array)
{
    struct ew_ids ids = {0};
    int rc = ew_prompt_ids(r->task->api, "input", array, &ids, r->fault);

    if (rc == 0 && r->n_max && ids.count > (size_t)r->n_max)
        ids.count = (size_t)r->n_max;
    if (rc == 0)
        rc = keep(r, &ids, NULL);
    ew_ids_fini(&ids);
    return rc;
}

static int allocate(struct reader *r, const char *name, uint64_t n)
{
    if (n > EW_VECTOR_TEXTS_MAX)
        return ew_fault_field(r->fault, name, "has %llu texts and one request may have %d", (unsigned long long)n,
                              EW_VECTOR_TEXTS_MAX);
    r->task->texts = ew_arena_array(&r->task->arena, EW_MAX(n, 1u), sizeof(*r->task->texts));
    return r->task->texts ? 0 : no_memory(r);
}

// A text, or {"text": ...}; ptr NULL: neither.
static struct ew_str text_of(const struct ew_json *node)
{
    return ew_json_str(node && node->type == EW_JSON_T_OBJECT ? ew_json_get(node, "text") : node, NULL);
}

// ---- embeddings ---------------------------------------------------------------------------------------------------

// input_type is Cohere's and Jina's word; a model without prompts for it needs none.
static int read_prompt(struct reader *r, struct ew_str *prefix)
{
    const struct ew_pooling *pooling = &r->task->api->config.model->pooling;
    struct ew_str name = EW_STR(""), type = EW_STR("");

    if (read_string(r, "prompt_name", &name) < 0 || read_string(r, "input_type", &type) < 0)
        return -1;
    if (name.len && !ew_pooling_prompt(pooling, name, prefix))
        return ew_fault_field(r->fault, "prompt_name", "is no prompt of this model");
    if (name.len)
        return 0;
    if (ew_str_is(type, "search_query"))
        type = EW_STR("query");
    else if (ew_str_is(type, "search_document") || ew_str_is(type, "passage"))
        type = EW_STR("document");
    if (type.len && !ew_str_is(type, "query") && !ew_str_is(type, "document"))
        return ew_fault_field(r->fault, "input_type", "must be \"query\" or \"document\"");
    ew_pooling_prompt(pooling, type, prefix);
    return 0;
}

static int add_input(struct reader *r, const struct ew_json *input, struct ew_str prefix)
{
    if (input->type == EW_JSON_T_STRING)
        return add_text(r, prefix, input->text);
    if (input->type == EW_JSON_T_ARRAY && input->count)
        return add_ids(r, input);
    return ew_fault_field(r->fault, "input", "must be a string, an array of strings, token ids or an array of these");
}

// The texts of "input", each behind the prefix.
static int read_inputs(struct reader *r, struct ew_str prefix)
{
    const struct ew_json *input = ew_json_get(r->body, "input");
    bool is_list;

    if (ew_json_is_null(input))
        return ew_fault_field(r->fault, "input", "is missing");
    is_list = input->type == EW_JSON_T_ARRAY && input->count && input->child->type != EW_JSON_T_INT;
    if (input->type == EW_JSON_T_ARRAY && !input->count)
        return ew_fault_field(r->fault, "input", "is empty");
    if (allocate(r, "input", is_list ? input->count : 1) < 0)
        return -1;
    if (!is_list)
        return add_input(r, input, prefix);
    for (const struct ew_json *one = input->child; one; one = one->next)
        if (add_input(r, one, prefix) < 0)
            return -1;
    return 0;
}

static int read_embeddings(struct reader *r)
{
    const struct ew_pooling *pooling = &r->task->api->config.model->pooling;
    struct ew_str format = EW_STR("float"), prefix;
    int64_t dimensions = pooling->width;

    if (pooling->is_score)
        return ew_fault_set(r->fault, 400, "invalid_request_error", "unsupported",
                            "the model scores pairs of texts and makes no vectors; use /v1/rerank or /v1/score");
    if (read_string(r, "encoding_format", &format) < 0 || read_prompt(r, &prefix) < 0 ||
        read_int(r, "dimensions", 1, pooling->width, &dimensions) < 0)
        return -1;
    if (!ew_str_is(format, "float") && !ew_str_is(format, "base64"))
        return ew_fault_field(r->fault, "encoding_format", "must be \"float\" or \"base64\"");
    r->task->base64 = ew_str_is(format, "base64");
    r->task->dimensions = (uint32_t)dimensions;
    return read_inputs(r, prefix);
}

static int read_classify(struct reader *r)
{
    if (!r->task->api->config.model->pooling.is_score)
        return ew_fault_set(r->fault, 400, "invalid_request_error", "unsupported",
                            "the model makes vectors and is no classifier; use /v1/embeddings");
    return read_inputs(r, EW_STR(""));
}

// ---- pairs --------------------------------------------------------------------------------------------------------

// A prompt of the model that may go before texts of this kind, or nothing.
static struct ew_str prompt_for(const struct reader *r, const char *kind)
{
    struct ew_str prefix;

    ew_pooling_prompt(&r->task->api->config.model->pooling, ew_str_of(kind), &prefix);
    return prefix;
}

// firsts: one text or as many as seconds. A model that scores reads each pair as one, others all texts by themselves.
static int add_pairs(struct reader *r, const char *names[2], const struct ew_json *firsts, uint32_t n_firsts,
                     const struct ew_json *seconds, uint32_t n_seconds)
{
    bool scores = r->task->api->config.model->pooling.is_score;
    const struct ew_json *first = firsts, *second;

    if (n_firsts != 1 && n_firsts != n_seconds)
        return ew_fault_field(r->fault, names[0], "has %u texts where %s has %u", n_firsts, names[1], n_seconds);
    if (allocate(r, names[1], (uint64_t)n_seconds + (scores ? 0 : n_firsts)) < 0)
        return -1;
    r->task->n_pairs = n_seconds;
    r->task->n_firsts = n_firsts;
    for (first = firsts; first && !scores; first = n_firsts > 1 ? first->next : NULL)
        if (add_text(r, prompt_for(r, "query"), text_of(first)) < 0)
            return -1;
    for (first = firsts, second = seconds; second; second = n_seconds > 1 ? second->next : NULL) {
        if (scores ? add_pair(r, text_of(first), text_of(second)) < 0
                   : add_text(r, prompt_for(r, "document"), text_of(second)) < 0)
            return -1;
        if (n_firsts > 1)
            first = first->next;
    }
    return 0;
}

// What the query asks for, where the model's template for pairs has a place for that: the request's, or the model's
// default prompt.
static int read_instruction(struct reader *r)
{
    const struct ew_api_config *config = &r->task->api->config;

    if (config->pairs)
        ew_pooling_prompt(&config->model->pooling, EW_STR(""), &r->instruction);
    if (read_string(r, "instruction", &r->instruction) < 0)
        return -1;
    if (!config->pairs && r->instruction.len)
        return ew_fault_unsupported(r->fault, "instruction", "the model has no template for pairs with an instruction");
    return 0;
}

// A text, or a list of texts: its first one, and how many there are.
static int read_texts(struct reader *r, const char *name, const struct ew_json **first, uint32_t *n)
{
    const struct ew_json *node = ew_json_get(r->body, name);
    bool is_list = node && node->type == EW_JSON_T_ARRAY;

    if (ew_json_is_null(node))
        return ew_fault_field(r->fault, name, "is missing");
    *first = is_list ? node->child : node;
    *n = is_list ? node->count : 1;
    if (*n == 0)
        return ew_fault_field(r->fault, name, "is empty");
    for (const struct ew_json *one = *first; one; one = is_list ? one->next : NULL)
        if (!text_of(one).ptr)
            return ew_fault_field(r->fault, name, "must hold texts");
    return 0;
}

static int read_scores(struct reader *r)
{
    bool reranks = r->task->route == EW_VECTORS_RERANK;
    const char *names[2] = {reranks ? "query" : "text_1", reranks ? "documents" : "text_2"};
    const struct ew_json *firsts, *seconds;
    uint32_t n_firsts, n_seconds;
    int64_t n_top = EW_VECTOR_TEXTS_MAX;

    if (read_texts(r, names[0], &firsts, &n_firsts) < 0 || read_texts(r, names[1], &seconds, &n_seconds) < 0)
        return -1;
    if (read_instruction(r) < 0)
        return -1;
    if (reranks && n_firsts != 1)
        return ew_fault_field(r->fault, "query", "must be one text");
    if (reranks && (read_int(r, "top_n", 1, INT32_MAX, &n_top) < 0 ||
                    read_bool(r, "return_documents", &r->task->return_documents) < 0))
        return -1;
    r->task->n_top = (uint32_t)EW_MIN(n_top, n_seconds);
    r->task->documents = seconds;
    return add_pairs(r, names, firsts, n_firsts, seconds, n_seconds);
}

int ew_vectors_read(struct ew_vector_task *task, struct ew_fault *fault)
{
    struct reader r = {.task = task, .fault = fault};
    const struct ew_api_config *config = &task->api->config;

    if (ew_params_parse(&task->arena, ew_exchange_body(task->x), &r.body, fault) < 0 || check_members(&r) < 0 ||
        ew_prompt_model(task->api, ew_json_str(ew_json_get(r.body, "model"), NULL), fault) < 0)
        return -1;
    if (config->model->pooling.kind == EW_POOLING_NONE)
        return ew_fault_set(fault, 400, "invalid_request_error", "unsupported",
                            "the model writes text and makes no vectors; use /v1/chat/completions or /v1/completions");
    if (!config->tok)
        return ew_fault_set(fault, 400, "invalid_request_error", "no_tokenizer", "the model has no tokenizer");
    if (config->model->pooling.is_score && !ew_pooling_scores(&config->model->pooling) &&
        (task->route == EW_VECTORS_RERANK || task->route == EW_VECTORS_SCORE))
        return ew_fault_set(fault, 400, "invalid_request_error", "unsupported",
                            "the model's classifier has %u labels, and a score needs one; use /v1/classify",
                            config->model->pooling.width);
    if (read_truncation(&r) < 0)
        return -1;
    return task->route == EW_VECTORS_EMBED      ? read_embeddings(&r)
           : task->route == EW_VECTORS_CLASSIFY ? read_classify(&r)
                                                : read_scores(&r);
}
