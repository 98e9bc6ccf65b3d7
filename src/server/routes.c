// Every route there is.

#include "server/api_state.h"

const struct ew_route ew_routes[] = {
    {"POST", "/v1/chat/completions", ew_api_chat, true},
    {"POST", "/v1/completions", ew_api_completions, true},
    {"POST", "/v1/embeddings", ew_api_embeddings, true},
    {"POST", "/v1/rerank", ew_api_rerank, true},
    {"POST", "/v1/classify", ew_api_classify, true},
    {"POST", "/v1/score", ew_api_score, true},
    {"GET", "/v1/models", ew_api_models, true},
    {"GET", "/v1/models/", ew_api_model, true},
    {"POST", "/tokenize", ew_api_tokenize, true},
    {"POST", "/detokenize", ew_api_detokenize, true},
    {"GET", "/health", ew_api_health, false},
    {"GET", "/ready", ew_api_ready, true},
    {"GET", "/metrics", ew_api_metrics, true},
    {0},
};

static bool matches(const struct ew_route *route, struct ew_str path)
{
    size_t len = strlen(route->path);

    if (route->path[len - 1] == '/')
        return path.len > len && memcmp(path.ptr, route->path, len) == 0;
    return ew_str_is(path, route->path);
}

const struct ew_route *ew_route_find(struct ew_str method, struct ew_str path, struct ew_fault *fault)
{
    const struct ew_route *other = NULL;

    for (const struct ew_route *route = ew_routes; route->method; route++) {
        if (!matches(route, path))
            continue;
        if (ew_str_is(method, route->method))
            return route;
        other = route;
    }
    if (other)
        ew_fault_set(fault, 405, "invalid_request_error", "method_not_allowed", "%s takes %s", other->path,
                     other->method);
    else
        ew_fault_set(fault, 404, "invalid_request_error", "unknown_route", "there is no route " EW_STR_FMT,
                     EW_STR_ARG(path));
    return NULL;
}

void ew_api_count(struct ew_api *api, const struct ew_route *route, int status)
{
    ew_metrics_reply(&api->metrics, route ? route->path : "other", status);
}
