#pragma once
// What load.c, load_run.c and load_setup.c share: one run. Nothing of it is seen outside.

#include "bench/load.h"
#include "bench/load_words.h"

#define EW_LOAD_TICK_MS 20 // timeouts, pauses and interrupts are looked at this often

struct ew_load_record { // for --verify: what was asked and answered
    char *body, *answer;
    size_t body_len;
};

struct ew_load_run {
    const struct ew_load_options *options;
    struct ew_load_report *report;
    struct ew_load_target target;
    uv_loop_t loop;
    uv_timer_t tick, due; // used by whatever runs at the moment
    struct ew_load_words words;
    const char *path; // of the endpoint
    struct ew_load_record *records;
    size_t n_records, records_cap;
};

int ew__load_open(struct ew_load_run *run, struct ew_error *err) EW_MUST_CHECK; // options and report are set
void ew__load_close(struct ew_load_run *run); // all clients are destroyed
// Takes both strings. EW_ERR_MEMORY: they stay the caller's.
int ew__load_keep(struct ew_load_run *run, const struct ew_load_record *record) EW_MUST_CHECK;
// Asks once and waits for the answer; `done` is called within.
int ew__load_ask(struct ew_load_run *run, struct ew_load_client *client, const char *path, const struct ew_str *body,
                 const struct ew_load_callbacks *callbacks, struct ew_load_result *out,
                 struct ew_error *err) EW_MUST_CHECK;
// The model's name, which words to use and what they cost.
int ew__load_setup(struct ew_load_run *run, struct ew_error *err) EW_MUST_CHECK;
// The body of a request. The prompt is JSON already: the messages without brackets (chat), the text without quotes.
void ew__load_body(const struct ew_load_run *run, struct ew_str prompt, uint32_t n_gen, bool stream,
                   struct ew_buf *out);
// Asks everything that was answered once more, one after the other, and compares.
int ew__load_verify(struct ew_load_run *run, struct ew_error *err) EW_MUST_CHECK;
