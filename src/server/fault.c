#include "server/fault.h"

#include <stdarg.h>
#include <stdio.h>

int ew_fault_set(struct ew_fault *fault, int status, const char *type, const char *code, const char *fmt, ...)
{
    va_list args;

    *fault = (struct ew_fault){.status = status, .type = type, .code = code};
    va_start(args, fmt);
    vsnprintf(fault->message, sizeof(fault->message), fmt, args);
    va_end(args);
    return -1;
}

int ew_fault_field(struct ew_fault *fault, const char *param, const char *fmt, ...)
{
    va_list args;
    int len;

    *fault = (struct ew_fault){.status = 400, .type = "invalid_request_error", .code = "invalid_value"};
    snprintf(fault->param, sizeof(fault->param), "%s", param);
    len = snprintf(fault->message, sizeof(fault->message), "%s ", fault->param);
    va_start(args, fmt);
    vsnprintf(fault->message + len, sizeof(fault->message) - (size_t)len, fmt, args);
    va_end(args);
    return -1;
}

int ew_fault_unsupported(struct ew_fault *fault, const char *param, const char *why)
{
    ew_fault_field(fault, param, "is not supported%s%s", why ? ": " : "", why ? why : "");
    fault->code = "unsupported_parameter";
    return -1;
}

static const struct {
    int code, status;
    const char *type, *name;
} g_meanings[] = {
    {EW_ERR_USAGE, 400, "invalid_request_error", "invalid_value"},
    {EW_ERR_UNSUPPORTED, 400, "invalid_request_error", "unsupported"},
    {EW_ERR_FORMAT, 400, "invalid_request_error", "invalid_value"},
    {EW_ERR_LIMIT, 400, "invalid_request_error", "context_length_exceeded"},
    {EW_ERR_BUSY, 429, "rate_limit_error", "queue_full"},
    {EW_ERR_MEMORY, 503, "server_error", "out_of_memory"},
    {EW_ERR_CANCELLED, 503, "server_error", "cancelled"},
    {0, 500, "server_error", "internal_error"},
};

int ew_fault_of(struct ew_fault *fault, const struct ew_error *err)
{
    size_t i = 0;

    while (g_meanings[i].code && g_meanings[i].code != err->code)
        i++;
    ew_fault_set(fault, g_meanings[i].status, g_meanings[i].type, g_meanings[i].name, "%s%s%s", err->message,
                 err->remedy[0] ? ". " : "", err->remedy);
    if (fault->status == 429 || fault->status == 503)
        fault->retry_after_s = 1;
    return -1;
}

static void append_or_null(struct ew_buf *out, const char *text)
{
    if (text && text[0])
        ew_buf_append_json(out, ew_str_of(text));
    else
        ew_buf_append_str(out, EW_STR("null"));
}

void ew_fault_json(const struct ew_fault *fault, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("{\"error\":{\"message\":"));
    ew_buf_append_json(out, ew_str_of(fault->message));
    ew_buf_append_str(out, EW_STR(",\"type\":"));
    append_or_null(out, fault->type);
    ew_buf_append_str(out, EW_STR(",\"param\":"));
    append_or_null(out, fault->param);
    ew_buf_append_str(out, EW_STR(",\"code\":"));
    append_or_null(out, fault->code);
    ew_buf_append_str(out, EW_STR("}}"));
}
