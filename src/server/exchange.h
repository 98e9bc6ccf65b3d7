#pragma once
// One request and its reply. I/O thread only.
//
// An exchange begins when a request is whole and ends with its reply: with ew_exchange_reply, or with
// ew_exchange_stream_end, or when the client leaves. After its end it must not be touched any more.

#include <stdbool.h>

#include "base/error.h"
#include "base/str.h"

struct ew_exchange;

// Of the request; valid until the exchange ends. The path is without the query.
struct ew_str ew_exchange_method(const struct ew_exchange *x);
struct ew_str ew_exchange_path(const struct ew_exchange *x);
struct ew_str ew_exchange_query(const struct ew_exchange *x);
struct ew_str ew_exchange_header(const struct ew_exchange *x, const char *name); // ptr NULL: there is none
struct ew_str ew_exchange_body(const struct ew_exchange *x);

// Before the reply or the stream begins; both are copied.
void ew_exchange_header_add(struct ew_exchange *x, const char *name, const char *value);
// The whole reply; ends the exchange. The body is copied.
void ew_exchange_reply(struct ew_exchange *x, int status, const char *content_type, struct ew_str body);

// A reply in pieces.
int ew_exchange_stream_begin(struct ew_exchange *x, int status, const char *content_type) EW_MUST_CHECK;
// false: the client reads too slowly and its bounded queue is full. The exchange is over then, without a call of
// on_gone.
bool ew_exchange_stream_write(struct ew_exchange *x, struct ew_str data) EW_MUST_CHECK;
size_t ew_exchange_stream_pending(const struct ew_exchange *x); // bytes that the client has not taken yet
void ew_exchange_stream_end(struct ew_exchange *x);

// For the access log.
void ew_exchange_note_tokens(struct ew_exchange *x, uint64_t n_prompt, uint64_t n_new);

// Called when the client has left before the reply was whole, or the server gave up on it; the exchange is over then.
// Not called once the reply has ended.
void ew_exchange_on_gone(struct ew_exchange *x, void (*fn)(void *ctx), void *ctx);
