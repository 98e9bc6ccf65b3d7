#pragma once
// What is answered to a request that cannot be served: an HTTP status and the error object that clients of the OpenAI
// API read, {"error": {"message", "type", "param", "code"}}.

#include "base/buf.h"
#include "base/error.h"

struct ew_fault {
    int status;             // of HTTP
    const char *type;       // "invalid_request_error"; static
    const char *code;       // "context_length_exceeded"; static, NULL: none
    char param[96];         // the field of the request that is to blame, or empty
    char message[960];
    uint32_t retry_after_s; // 0: no Retry-After header
};

// All return -1, so that failures read `return ew_fault_field(fault, "top_p", ...)`.
int ew_fault_set(struct ew_fault *fault, int status, const char *type, const char *code, const char *fmt,
                 ...) EW_PRINTF(5, 6);
// 400: a field has a wrong type or value. The message begins with the field's name.
int ew_fault_field(struct ew_fault *fault, const char *param, const char *fmt, ...) EW_PRINTF(3, 4);
// 400 with "unsupported_parameter": understood, and refused rather than ignored. why may be NULL.
int ew_fault_unsupported(struct ew_fault *fault, const char *param, const char *why);
// What an ew_error of the engine means to a client.
int ew_fault_of(struct ew_fault *fault, const struct ew_error *err);

void ew_fault_json(const struct ew_fault *fault, struct ew_buf *out);
