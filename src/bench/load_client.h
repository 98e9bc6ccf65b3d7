#pragma once
// One client of an HTTP server on a libuv loop: a connection that is kept alive, one request on it at a time.
//
// Everything runs on the loop's thread. The callbacks of ew_load_begin are not called from within it, and none is
// called after `done`; a new request may be begun from `done`.

#include <uv.h>

#include "base/buf.h"
#include "base/error.h"
#include "bench/load_answer.h"
#include "bench/load_http.h"
#include "bench/load_sse.h"

#define EW_LOAD_BODY_MAX ((size_t)16 << 20) // bytes of a reply that is no stream

enum ew_load_outcome {
    EW_LOAD_OK,
    EW_LOAD_REFUSED,   // nobody listens
    EW_LOAD_UNREACHED, // connecting failed for another reason, or took too long
    EW_LOAD_STATUS,    // a status that is no success
    EW_LOAD_TIMEOUT,
    EW_LOAD_BROKEN,    // the connection or the stream ended early
    EW_LOAD_MALFORMED, // the reply is no HTTP, no event stream, no JSON, or past our limits
    EW_LOAD_ERROR,     // an error object in a stream that began well
    EW_LOAD_STOPPED,   // we gave it up
    EW_LOAD_N_OUTCOMES,
};

struct ew_load_result {
    enum ew_load_outcome outcome;
    int status; // 0 where no reply came
    uint32_t retry_after;
    double begin_s, first_s, last_s, end_s; // ew_clock_s; first and last: text arrived, 0 where none did
    uint64_t n_chunks;                      // pieces of the stream that carried text
    int64_t prompt_tokens, completion_tokens, cached_tokens; // -1 where the server does not say
    char message[256];                      // what went wrong
};

struct ew_load_target {
    struct sockaddr_storage address;
    char host[288];   // of the Host header, with the port
    char prefix[256]; // of all paths; "" or "/something"
    const char *api_key; // NULL: none
    double connect_timeout_s;
};

struct ew_load_callbacks {
    void (*text)(void *ctx, const struct ew_load_answer *piece, double gap_s); // NULL, or a piece of text came; gap
    // since the one before it, negative for the first
    void (*done)(void *ctx, const struct ew_load_result *result);
    void *ctx;
};

struct ew_load_client;

int ew_load_client_create(uv_loop_t *loop, const struct ew_load_target *target, struct ew_load_client **out,
                          struct ew_error *err) EW_MUST_CHECK;
// Closes the connection; the memory is freed when the loop has run on. A running request is forgotten without `done`.
void ew_load_client_destroy(struct ew_load_client *client);
// The body (NULL: GET) is copied. begin_s is when the request counts as begun: now, or when it was due.
int ew_load_begin(struct ew_load_client *client, const char *path, const struct ew_str *body, double begin_s,
                  double timeout_s, const struct ew_load_callbacks *callbacks, struct ew_error *err) EW_MUST_CHECK;
bool ew_load_client_busy(const struct ew_load_client *client);
// To be called now and then: ends the request where its time is over. Precision is that of the calls.
void ew_load_client_check(struct ew_load_client *client, double now_s);
void ew_load_client_stop(struct ew_load_client *client); // ends the running request with EW_LOAD_STOPPED
// The body of the newest reply that was no stream; valid until the next begin.
struct ew_str ew_load_client_body(const struct ew_load_client *client);
uint64_t ew_load_client_connects(const struct ew_load_client *client); // connections made so far

// "http://host[:port][/path]" to a target; resolves the name. A /v1 at the path's end is cut: it belongs to the routes.
int ew_load_target_parse(const char *url, struct ew_load_target *out, struct ew_error *err) EW_MUST_CHECK;
