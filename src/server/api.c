// The API's start and end, and the routes that need no engine.

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/map.h"
#include "server/api_state.h"
#include "server/exchange.h"

#define REPLY_BYTES_MAX ((size_t)256 << 20)

// ---- start and end ------------------------------------------------------------------------------------------------

static void show(struct ew_api *api, const char *mark)
{
    int32_t token = mark ? ew_token_find(api->config.tok, ew_str_of(mark)) : EW_TOKEN_NONE;

    if (token != EW_TOKEN_NONE && api->n_shown < EW_SHOWN_MAX)
        api->shown[api->n_shown++] = token;
}

static void find_marks(struct ew_api *api)
{
    const struct ew_chat_caps *caps;

    if (!api->config.tok || !api->config.chat)
        return;
    caps = ew_chat_format_caps(api->config.chat);
    show(api, caps->reasoning_open);
    show(api, caps->reasoning_close);
    api->n_shown_plain = api->n_shown;
    api->tool_format = ew_toolcall_detect(api->config.chat);
    for (const char *const *mark = ew_toolcall_marks(api->tool_format.kind); *mark; mark++)
        show(api, *mark);
}

static int make_mask(struct ew_api *api, struct ew_error *err)
{
    const struct ew_model_tokens *tokens = &api->config.model->tokens;
    size_t n_words = api->config.model->program.n_vocab / 32 + 1;

    api->mask_no_end = ew_alloc_array(n_words, sizeof(*api->mask_no_end));
    if (!api->mask_no_end)
        return ew_fail_memory(err, n_words * sizeof(*api->mask_no_end), "a mask of tokens");
    memset(api->mask_no_end, 0xff, n_words * sizeof(*api->mask_no_end));
    for (uint32_t i = 0; i < tokens->n_eos; i++)
        if (tokens->eos[i] >= 0 && (size_t)tokens->eos[i] / 32 < n_words)
            api->mask_no_end[tokens->eos[i] / 32] &= ~(UINT32_C(1) << tokens->eos[i] % 32);
    return 0;
}

// Equal answers for equal seeds can be expected where this is equal.
static void set_fingerprint(struct ew_api *api)
{
    struct ew_service_stats stats;
    char text[512];
    int len;

    ew_service_stats(api->service, &stats);
    len = snprintf(text, sizeof(text), "%s %s %s %llu %s %d", api->config.version, api->config.model->shape.arch,
                   api->config.model->dtype, (unsigned long long)api->config.model->file_bytes,
                   stats.engine.backend_text, (int)stats.engine.arith);
    snprintf(api->fingerprint, sizeof(api->fingerprint), "fp_%012llx",
             (unsigned long long)(ew_hash_bytes(text, EW_MIN((size_t)len, sizeof(text) - 1), 0) >> 16));
}

static void open_meter(struct ew_api *api)
{
    struct ew_service_stats stats;
    struct ew_error err = {0};

    ew_service_stats(api->service, &stats);
    if (ew_energy_open(NULL, strcmp(stats.engine.backend_name, "cuda") == 0, &api->energy, &err) < 0)
        ew_log_error(&err);
}

int ew_api_create(const struct ew_api_config *config, struct ew_api **out, struct ew_error *err)
{
    struct ew_api *api = ew_alloc(sizeof(*api));
    int rc;

    if (!api)
        return ew_fail_memory(err, sizeof(*api), "the API");
    api->config = *config;
    if (api->config.stall_s <= 0)
        api->config.stall_s = EW_API_STALL_S;
    api->created = (int64_t)time(NULL);
    ew_metrics_init(&api->metrics);
    ew_buf_init(&api->chunk, REPLY_BYTES_MAX);
    find_marks(api);
    rc = make_mask(api, err);
    if (rc == 0)
        rc = ew_service_start(config->model, config->tok, &config->service, &api->service, err);
    if (rc < 0) {
        ew_api_destroy(api);
        return rc;
    }
    set_fingerprint(api);
    open_meter(api);
    *out = api;
    return 0;
}

void ew_api_destroy(struct ew_api *api)
{
    if (!api)
        return;
    ew_service_stop(api->service);
    ew_energy_close(api->energy);
    ew_api_forget_all(api);
    ew_buf_fini(&api->chunk);
    ew_free(api->mask_no_end);
    ew_free(api);
}

// ---- state --------------------------------------------------------------------------------------------------------

uint32_t ew_api_open_count(const struct ew_api *api)
{
    return api->metrics.n_open;
}

void ew_api_stats(const struct ew_api *api, struct ew_service_stats *out)
{
    ew_service_stats(api->service, out);
}

bool ew_api_is_ready(const struct ew_api *api, struct ew_buf *why_not_or_null)
{
    struct ew_service_stats stats;
    double now_s = ew_clock_s(), age_s = 0;
    bool has_work;

    ew_service_stats(api->service, &stats);
    if (stats.failure.code) {
        if (why_not_or_null)
            ew_buf_append_str(why_not_or_null, ew_str_of(stats.failure.message));
        return false;
    }
    has_work = stats.n_queued + stats.engine.n_prefilling + stats.engine.n_decoding > 0;
    if (stats.busy)
        age_s = now_s - stats.busy_since_s;
    else if (has_work && api->metrics.n_open)
        age_s = now_s - stats.last_step_s;
    if (age_s <= api->config.stall_s)
        return true;
    if (why_not_or_null)
        ew_buf_printf(why_not_or_null, "no step has finished for %.1f seconds", age_s);
    return false;
}

// ---- replies ------------------------------------------------------------------------------------------------------

void ew_api_refuse(struct ew_exchange *x, const struct ew_fault *fault)
{
    struct ew_buf out;
    char seconds[16];

    ew_buf_init(&out, REPLY_BYTES_MAX);
    ew_fault_json(fault, &out);
    if (fault->retry_after_s) {
        snprintf(seconds, sizeof(seconds), "%u", fault->retry_after_s);
        ew_exchange_header_add(x, "Retry-After", seconds);
    }
    ew_exchange_reply(x, fault->status, "application/json", ew_buf_str(&out));
    ew_buf_fini(&out);
}

static void reply_json(struct ew_exchange *x, int status, const struct ew_buf *body)
{
    struct ew_fault fault;

    if (ew_buf_ok(body)) {
        ew_exchange_reply(x, status, "application/json", ew_buf_str(body));
        return;
    }
    ew_fault_set(&fault, 503, "server_error", "out_of_memory", "no memory is left for the reply");
    ew_api_refuse(x, &fault);
}

// ---- models -------------------------------------------------------------------------------------------------------

static void append_model(const struct ew_api *api, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("{\"id\":"));
    ew_buf_append_json(out, ew_str_of(api->config.model_id));
    ew_buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"edgewise\",\"max_model_len\":%u}",
                  (long long)api->created, ew_service_context_max(api->service));
}

void ew_api_models(struct ew_api *api, struct ew_exchange *x)
{
    struct ew_buf out;

    ew_buf_init(&out, REPLY_BYTES_MAX);
    ew_buf_append_str(&out, EW_STR("{\"object\":\"list\",\"data\":["));
    append_model(api, &out);
    ew_buf_append_str(&out, EW_STR("]}"));
    reply_json(x, 200, &out);
    ew_buf_fini(&out);
}

void ew_api_model(struct ew_api *api, struct ew_exchange *x)
{
    struct ew_str path = ew_exchange_path(x);
    size_t skip = strlen("/v1/models/");
    struct ew_fault fault;
    struct ew_buf out;

    if (ew_prompt_model(api, (struct ew_str){path.ptr + skip, path.len - skip}, &fault) < 0) {
        ew_api_refuse(x, &fault);
        return;
    }
    ew_buf_init(&out, REPLY_BYTES_MAX);
    append_model(api, &out);
    reply_json(x, 200, &out);
    ew_buf_fini(&out);
}

// ---- tokens -------------------------------------------------------------------------------------------------------

static int tokenize(const struct ew_api *api, const struct ew_json *body, struct ew_buf *out, struct ew_fault *fault)
{
    const struct ew_json *prompt = ew_json_get(body, "prompt");
    struct ew_error err = {0};
    struct ew_ids ids = {0};

    if (!prompt || prompt->type != EW_JSON_T_STRING)
        return ew_fault_field(fault, "prompt", "must be a string");
    if (ew_tokenize(api->config.tok, prompt->text, ew_json_bool(ew_json_get(body, "add_special_tokens"), true),
                    ew_json_bool(ew_json_get(body, "parse_special_tokens"), true), &ids, &err) < 0) {
        ew_ids_fini(&ids);
        return ew_fault_of(fault, &err);
    }
    ew_buf_printf(out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", ids.count,
                  ew_service_context_max(api->service));
    for (size_t i = 0; i < ids.count; i++)
        ew_buf_printf(out, "%s%d", i ? "," : "", ids.ids[i]);
    ew_buf_append_str(out, EW_STR("]}"));
    ew_ids_fini(&ids);
    return 0;
}

static int detokenize(const struct ew_api *api, const struct ew_json *body, struct ew_buf *out, struct ew_fault *fault)
{
    const struct ew_json *tokens = ew_json_get(body, "tokens");
    struct ew_error err = {0};
    struct ew_ids ids = {0};
    struct ew_buf text;
    int rc;

    if (!tokens || tokens->type != EW_JSON_T_ARRAY)
        return ew_fault_field(fault, "tokens", "must be an array of token ids");
    ew_buf_init(&text, REPLY_BYTES_MAX);
    rc = ew_prompt_ids(api, "tokens", tokens, &ids, fault);
    if (rc == 0 && ew_detokenize(api->config.tok, ids.ids, ids.count, false, &text, &err) < 0)
        rc = ew_fault_of(fault, &err);
    if (rc == 0) {
        ew_buf_append_str(out, EW_STR("{\"prompt\":"));
        ew_buf_append_json(out, ew_buf_str(&text));
        ew_buf_append_char(out, '}');
    }
    ew_ids_fini(&ids);
    ew_buf_fini(&text);
    return rc;
}

struct token_route {
    const char *fields[4]; // besides "model"
    int (*handle)(const struct ew_api *api, const struct ew_json *body, struct ew_buf *out, struct ew_fault *fault);
};

static int check_fields(const struct token_route *route, const struct ew_api *api, const struct ew_json *body,
                        struct ew_fault *fault)
{
    for (const struct ew_json *member = body->child; member; member = member->next) {
        bool known = ew_str_is(member->key, "model");

        for (int i = 0; i < 4 && route->fields[i]; i++)
            known |= ew_str_is(member->key, route->fields[i]);
        if (!known) {
            ew_fault_field(fault, "the body", "has the unknown member \"" EW_STR_FMT "\"", EW_STR_ARG(member->key));
            snprintf(fault->param, sizeof(fault->param), EW_STR_FMT, EW_STR_ARG(member->key));
            fault->code = "unknown_parameter";
            return -1;
        }
    }
    if (!api->config.tok)
        return ew_fault_set(fault, 400, "invalid_request_error", "no_tokenizer", "the model has no tokenizer");
    return ew_prompt_model(api, ew_json_str(ew_json_get(body, "model"), NULL), fault);
}

static void answer_tokens(struct ew_api *api, struct ew_exchange *x, const struct token_route *route)
{
    const struct ew_json *body;
    struct ew_arena arena;
    struct ew_fault fault;
    struct ew_buf out;

    ew_arena_init(&arena, EW_PARAMS_ARENA_MAX);
    ew_buf_init(&out, REPLY_BYTES_MAX);
    if (ew_params_parse(&arena, ew_exchange_body(x), &body, &fault) < 0 ||
        check_fields(route, api, body, &fault) < 0 || route->handle(api, body, &out, &fault) < 0)
        ew_api_refuse(x, &fault);
    else
        reply_json(x, 200, &out);
    ew_buf_fini(&out);
    ew_arena_fini(&arena);
}

void ew_api_tokenize(struct ew_api *api, struct ew_exchange *x)
{
    static const struct token_route route = {{"prompt", "add_special_tokens", "parse_special_tokens"}, tokenize};

    answer_tokens(api, x, &route);
}

void ew_api_detokenize(struct ew_api *api, struct ew_exchange *x)
{
    static const struct token_route route = {{"tokens"}, detokenize};

    answer_tokens(api, x, &route);
}

// ---- health -------------------------------------------------------------------------------------------------------

// The process answers; only a device that failed its last step makes it unwell.
void ew_api_health(struct ew_api *api, struct ew_exchange *x)
{
    struct ew_service_stats stats;
    struct ew_fault fault;

    ew_service_stats(api->service, &stats);
    if (stats.failure.code) {
        ew_fault_of(&fault, &stats.failure);
        fault.status = 503;
        ew_api_refuse(x, &fault);
        return;
    }
    ew_exchange_reply(x, 200, "application/json", EW_STR("{\"status\":\"ok\"}"));
}

void ew_api_ready(struct ew_api *api, struct ew_exchange *x)
{
    struct ew_fault fault;
    struct ew_buf why;

    ew_buf_init(&why, sizeof(fault.message));
    if (ew_api_is_ready(api, &why)) {
        ew_exchange_reply(x, 200, "application/json", EW_STR("{\"status\":\"ready\"}"));
    } else {
        ew_fault_set(&fault, 503, "server_error", "not_ready", "%s", why.len ? why.ptr : "the engine is stuck");
        ew_api_refuse(x, &fault);
    }
    ew_buf_fini(&why);
}

void ew_api_metrics(struct ew_api *api, struct ew_exchange *x)
{
    struct ew_service_stats stats;
    struct ew_buf out;

    ew_service_stats(api->service, &stats);
    ew_buf_init(&out, REPLY_BYTES_MAX);
    ew_metrics_write(&api->metrics, &stats, &out);
    if (api->energy)
        ew_metrics_write_energy(ew_energy_joules(api->energy), ew_energy_watts(api->energy), &out);
    ew_exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", ew_buf_str(&out));
    ew_buf_fini(&out);
}
