#pragma once
// The API: what requests mean. It owns the service (the engine behind its thread), turns bodies into engine requests
// and events into replies, and counts. Everything here runs on the I/O thread.
//
// The server finds a route for each exchange and calls its handler with the api as ctx; the engine's thread wakes the
// I/O thread, which then calls ew_api_poll.

#include "base/str.h"
#include "engine/service.h"
#include "server/fault.h"
#include "text/chat.h"
#include "text/pair_format.h"

struct ew_api;
struct ew_exchange;

struct ew_api_config {
    const char *model_id; // what clients call the model
    const char *version;  // of edgewise
    // These outlive the api. tok, chat and pairs may be NULL where the model has none; what needs them is then refused,
    // and pairs are written as the vocabulary has it.
    const struct ew_model *model;
    const struct ew_tokenizer *tok;
    const struct ew_chat_format *chat;
    const struct ew_pair_format *pairs;
    struct ew_service_config service; // its wake is the server's
    double deadline_s;                // of a request; 0: none
    double stall_s;                   // a step that takes longer is taken for stuck; 0: EW_API_STALL_S
};

#define EW_API_STALL_S 30

// Loads the model and starts the service.
int ew_api_create(const struct ew_api_config *config, struct ew_api **out, struct ew_error *err) EW_MUST_CHECK;
void ew_api_destroy(struct ew_api *api); // no exchange may be open; NULL is fine
// Takes the engine's events and writes replies.
void ew_api_poll(struct ew_api *api);
// A step has finished lately, or there is nothing to do.
bool ew_api_is_ready(const struct ew_api *api, struct ew_buf *why_not_or_null);
uint32_t ew_api_open_count(const struct ew_api *api); // answers under way
void ew_api_stats(const struct ew_api *api, struct ew_service_stats *out);

// ---- routes ----

struct ew_route {
    const char *method, *path; // a path that ends with "/" stands for all that begin with it
    void (*handle)(struct ew_api *api, struct ew_exchange *x);
    bool needs_key;
};

extern const struct ew_route ew_routes[]; // ended by an entry without a method

// NULL: no route; fault says whether the path or only the method is wrong.
const struct ew_route *ew_route_find(struct ew_str method, struct ew_str path, struct ew_fault *fault);
// Replies with a fault, Retry-After included; for the server's own refusals too.
void ew_api_refuse(struct ew_exchange *x, const struct ew_fault *fault);
// Counts a reply. The server calls it once an exchange is over; route NULL: there was none.
void ew_api_count(struct ew_api *api, const struct ew_route *route, int status);
