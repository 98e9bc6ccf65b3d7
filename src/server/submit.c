// Submission: from an exchange to requests of the engine.

#include <inttypes.h>
#include <string.h>

#include "base/assert.h"
#include "base/map.h"
#include "server/completion.h"
#include "server/exchange.h"

#define RENDERED_BYTES_MAX ((size_t)64 << 20)
#define SHARED_TOKENS_MIN 64 // prompts from here on are computed once for all their choices
#define TEXT_MAX_TOKENS 16 // of /v1/completions where the client names none, as OpenAI has it

// ---- submission ---------------------------------------------------------------------------------------------------

// On the engine's thread: no token that ends the answer before so many are there.
static const uint32_t *mask_end(void *ctx, const int32_t *answer, uint32_t n_answer)
{
    const struct ew_completion *completion = ctx;

    return n_answer < completion->n_min_tokens ? completion->api->mask_no_end : NULL;
}

uint64_t ew_api_client(const struct ew_exchange *x, struct ew_str user)
{
    struct ew_str key = ew_exchange_header(x, "authorization");
    uint64_t hash = key.len ? ew_hash_bytes(key.ptr, key.len, 1) : 0;

    return user.len ? ew_hash_bytes(user.ptr, user.len, hash) : hash;
}

static void set_request(struct ew_completion *completion, struct ew_request *request)
{
    const struct ew_api *api = completion->api;
    bool has_calls = completion->choices[0].calls.kind != EW_TOOLCALL_NONE;

    ew_params_request(&completion->params, api->config.model, request);
    if (completion->route == EW_PARAMS_TEXT && !request->n_max)
        request->n_max = TEXT_MAX_TOKENS;
    request->client = ew_api_client(completion->x, completion->params.user);
    request->deadline_s = api->config.deadline_s;
    completion->n_min_tokens = (uint32_t)completion->params.min_tokens;
    if (completion->n_min_tokens && !request->ignore_eos) {
        request->mask = mask_end;
        request->mask_ctx = completion;
    }
    if (completion->route == EW_PARAMS_TEXT)
        return;
    request->n_shown = has_calls ? api->n_shown : api->n_shown_plain;
    memcpy(request->shown, api->shown, sizeof(request->shown));
}

static int submit(struct ew_choice *choice, struct ew_error *err)
{
    const struct ew_completion *completion = choice->completion;
    struct ew_request request = completion->prompts[choice->index / (uint32_t)completion->params.n];
    int rc;

    // Their seeds differ, so that their answers do where they are sampled.
    request.sampling.seed += choice->index % (uint32_t)completion->params.n;
    rc = ew_service_submit(completion->api->service, &request, &choice->request, err);
    if (rc == 0)
        ew_choice_remember(choice);
    return rc;
}

// Keeps the prompt and submits its choices: the first one, and the others once it has been computed, so that they find
// it in the caches; at once where that saves little.
static int submit_prompt(struct ew_completion *completion, const struct ew_request *base, uint32_t first,
                         const struct ew_ids *ids, struct ew_fault *fault)
{
    struct ew_request *kept = &completion->prompts[first / (uint32_t)completion->params.n];
    int32_t *copy = ew_arena_array(&completion->arena, EW_MAX(ids->count, 1u), sizeof(*copy));

    if (!copy)
        return ew_fault_set(fault, 413, "invalid_request_error", "body_too_large",
                            "the request needs more memory than is allowed for it");
    if (ids->count)
        memcpy(copy, ids->ids, ids->count * sizeof(*copy));
    *kept = *base;
    kept->ids = copy;
    kept->n_ids = (uint32_t)ids->count;
    for (uint32_t i = 0; i < (uint32_t)completion->params.n; i++) {
        struct ew_choice *choice = &completion->choices[first + i];
        struct ew_error err = {0};

        if (i > 0 && ids->count >= SHARED_TOKENS_MIN) {
            choice->is_deferred = true;
            completion->n_deferred++;
            completion->api->n_deferred++;
        } else if (submit(choice, &err) < 0) {
            return ew_fault_of(fault, &err);
        }
    }
    return 0;
}

// Where the queue is full the choice is tried again after the next events: its request has been accepted.
static void submit_deferred_of(struct ew_completion *completion)
{
    for (uint32_t i = 0; i < completion->n_choices && completion->n_deferred; i++) {
        struct ew_choice *choice = &completion->choices[i];
        const struct ew_choice *leader = &completion->choices[i - i % (uint32_t)completion->params.n];
        struct ew_error err = {0};
        struct ew_fault fault;
        int rc;

        if (!choice->is_deferred || (leader->is_open && leader->n_new == 0))
            continue;
        rc = submit(choice, &err);
        if (rc == EW_ERR_BUSY)
            return;
        choice->is_deferred = false;
        completion->n_deferred--;
        completion->api->n_deferred--;
        if (rc < 0) {
            ew_fault_of(&fault, &err);
            ew_completion_fail(completion, &fault);
        }
    }
    if (completion->n_open == 0 && completion->n_deferred == 0)
        ew_completion_finish(completion);
}

void ew_submit_deferred(struct ew_api *api)
{
    struct ew_completion *completion = api->completions, *next;

    for (; completion; completion = next) {
        next = completion->next;
        if (completion->n_deferred)
            submit_deferred_of(completion);
    }
}

static int prepare(struct ew_completion *completion, struct ew_fault *fault)
{
    const struct ew_params *params = &completion->params;

    completion->prompts = ew_arena_array(&completion->arena, completion->n_choices, sizeof(*completion->prompts));
    if (!completion->prompts)
        return ew_fault_set(fault, 413, "invalid_request_error", "body_too_large",
                            "the request needs more memory than is allowed for it");
    if (!completion->api->config.tok && (params->n_stop || completion->route == EW_PARAMS_CHAT))
        return ew_fault_set(fault, 400, "invalid_request_error", "no_tokenizer", "the model has no tokenizer");
    for (uint32_t i = 0; i < params->n_bias; i++)
        if ((uint32_t)params->bias[i].token >= completion->api->config.model->shape.n_vocab)
            return ew_fault_field(fault, "logit_bias", "names token %d and the vocabulary has %u",
                                  params->bias[i].token, completion->api->config.model->shape.n_vocab);
    return 0;
}

static int start_chat(struct ew_completion *completion, struct ew_fault *fault)
{
    struct ew_request request;
    struct ew_ids ids = {0};
    struct ew_buf rendered;
    int rc;

    ew_buf_init(&rendered, RENDERED_BYTES_MAX);
    rc = ew_prompt_chat(completion->api, &completion->params, &completion->arena, &rendered, &ids, fault);
    if (rc == 0) {
        for (uint32_t i = 0; i < completion->n_choices; i++)
            ew_choice_init(&completion->choices[i], completion, i, ew_buf_str(&rendered));
        set_request(completion, &request);
        rc = submit_prompt(completion, &request, 0, &ids, fault);
    }
    ew_ids_fini(&ids);
    ew_buf_fini(&rendered);
    return rc;
}

static void put_echo(struct ew_choice *choice, const struct ew_json *prompt, const struct ew_ids *ids)
{
    const struct ew_tokenizer *tok = choice->completion->api->config.tok;

    if (prompt->type == EW_JSON_T_STRING)
        ew_buf_append_str(&choice->content, prompt->text);
    else if (tok && ew_detokenize(tok, ids->ids, ids->count, false, &choice->content, NULL) < 0)
        choice->content.failed = true;
}

static int start_text_prompt(struct ew_completion *completion, uint32_t first, const struct ew_json *prompt,
                             struct ew_fault *fault)
{
    struct ew_request request;
    struct ew_ids ids = {0};
    int rc = ew_prompt_text(completion->api, prompt, &ids, fault);

    for (uint32_t i = 0; rc == 0 && i < (uint32_t)completion->params.n; i++) {
        ew_choice_init(&completion->choices[first + i], completion, first + i, (struct ew_str){0});
        if (completion->params.echo)
            put_echo(&completion->choices[first + i], prompt, &ids);
    }
    if (rc == 0) {
        set_request(completion, &request);
        rc = submit_prompt(completion, &request, first, &ids, fault);
    }
    ew_ids_fini(&ids);
    return rc;
}

// An array of numbers is one prompt, one of anything else is several.
static bool has_many_prompts(const struct ew_json *prompt)
{
    return prompt->type == EW_JSON_T_ARRAY && prompt->child->type != EW_JSON_T_INT;
}

static int start_text(struct ew_completion *completion, struct ew_fault *fault)
{
    const struct ew_json *prompt = completion->params.prompt;
    uint32_t first = 0;

    if (!has_many_prompts(prompt))
        return start_text_prompt(completion, 0, prompt, fault);
    for (const struct ew_json *one = prompt->child; one; one = one->next) {
        if (start_text_prompt(completion, first, one, fault) < 0)
            return -1;
        first += (uint32_t)completion->params.n;
    }
    return 0;
}

static int count_choices(const struct ew_params *params, struct ew_fault *fault)
{
    uint64_t n_prompts = params->prompt && has_many_prompts(params->prompt) ? params->prompt->count : 1;

    if (n_prompts * (uint64_t)params->n > EW_PARAMS_CHOICES_MAX)
        return ew_fault_field(fault, params->prompt ? "prompt" : "n",
                              "asks for %" PRIu64 " answers and at most %d are given to one request",
                              n_prompts * (uint64_t)params->n, EW_PARAMS_CHOICES_MAX);
    return (int)(n_prompts * (uint64_t)params->n);
}

static int read_body(struct ew_api *api, struct ew_exchange *x, enum ew_params_route route, struct ew_arena *arena,
                     struct ew_params *params, struct ew_fault *fault)
{
    const struct ew_json *body;

    if (ew_params_parse(arena, ew_exchange_body(x), &body, fault) < 0 ||
        ew_params_read(params, route, body, arena, fault) < 0 || ew_prompt_model(api, params->model, fault) < 0)
        return -1;
    return count_choices(params, fault);
}

static int refuse_text(const struct ew_api *api, struct ew_fault *fault)
{
    bool scores = api->config.model->pooling.is_score;

    return ew_fault_set(fault, 400, "invalid_request_error", "unsupported",
                        "the model makes %s and writes no text; use %s",
                        scores ? "scores of pairs of texts" : "vectors",
                        scores ? "/v1/rerank or /v1/score" : "/v1/embeddings");
}

static void start(struct ew_api *api, struct ew_exchange *x, enum ew_params_route route)
{
    struct ew_completion *completion = NULL;
    struct ew_params params;
    struct ew_arena arena;
    struct ew_fault fault;
    int n;

    ew_arena_init(&arena, EW_PARAMS_ARENA_MAX);
    if (api->config.model->pooling.kind != EW_POOLING_NONE)
        n = refuse_text(api, &fault);
    else
        n = read_body(api, x, route, &arena, &params, &fault);
    if (n > 0)
        completion = ew_completion_new(api, x, route, (uint32_t)n);
    if (!completion) {
        if (n > 0)
            ew_fault_set(&fault, 503, "server_error", "out_of_memory", "no memory is left for the request");
        ew_arena_fini(&arena);
        ew_api_refuse(x, &fault);
        return;
    }
    completion->arena = arena;
    completion->params = params;
    completion->n_choices = (uint32_t)n;
    if (prepare(completion, &fault) == 0 &&
        (route == EW_PARAMS_CHAT ? start_chat : start_text)(completion, &fault) == 0) {
        ew_exchange_on_gone(x, ew_completion_gone, completion);
        return;
    }
    ew_completion_fail(completion, &fault);
    if (completion->n_open == 0)
        ew_completion_free(completion);
}

void ew_api_chat(struct ew_api *api, struct ew_exchange *x)
{
    start(api, x, EW_PARAMS_CHAT);
}

void ew_api_completions(struct ew_api *api, struct ew_exchange *x)
{
    start(api, x, EW_PARAMS_TEXT);
}
