// The life of a run, and --verify: what was answered under load is asked once more, alone.

#include "bench/load_run.h"

#include <stdio.h>
#include <unistd.h>

#include "base/alloc.h"

#define SHOWN 60 // bytes of each answer around their first difference

int ew__load_open(struct ew_load_run *run, struct ew_error *err)
{
    int rc = ew_load_target_parse(run->options->url, &run->target, err);

    if (rc < 0)
        return rc;
    run->target.api_key = run->options->api_key;
    run->path = run->options->chat ? "/v1/chat/completions" : "/v1/completions";
    rc = uv_loop_init(&run->loop);
    if (rc < 0)
        return ew_fail(err, EW_ERR_IO, "cannot make an event loop: %s", uv_strerror(rc));
    uv_timer_init(&run->loop, &run->tick);
    uv_timer_init(&run->loop, &run->due);
    return EW_OK;
}

void ew__load_close(struct ew_load_run *run)
{
    uv_close((uv_handle_t *)&run->tick, NULL);
    uv_close((uv_handle_t *)&run->due, NULL);
    uv_run(&run->loop, UV_RUN_DEFAULT); // all else is closing too: this lets it
    uv_loop_close(&run->loop);
    for (size_t i = 0; i < run->n_records; i++) {
        ew_free(run->records[i].body);
        ew_free(run->records[i].answer);
    }
    ew_free(run->records);
}

int ew__load_keep(struct ew_load_run *run, const struct ew_load_record *record)
{
    if (run->n_records == run->records_cap) {
        size_t cap = run->records_cap ? run->records_cap * 2 : 64;
        struct ew_load_record *grown = ew_realloc_array(run->records, cap, sizeof(*grown));

        if (!grown)
            return EW_ERR_MEMORY;
        run->records = grown;
        run->records_cap = cap;
    }
    run->records[run->n_records++] = *record;
    return EW_OK;
}

static void on_text(void *ctx, const struct ew_load_answer *piece, double gap_s)
{
    for (uint32_t i = 0; i < 3; i++)
        ew_buf_append_str(ctx, piece->text[i]);
}

static void describe(struct ew_load_report *report, size_t index, struct ew_str loaded, struct ew_str alone)
{
    size_t at = 0, from;

    while (at < loaded.len && at < alone.len && loaded.ptr[at] == alone.ptr[at])
        at++;
    from = at > SHOWN / 2 ? at - SHOWN / 2 : 0;
    snprintf(report->difference, sizeof(report->difference),
             "answer %zu differs from byte %zu: \"%.*s\" under load, \"%.*s\" alone", index, at,
             (int)(loaded.len - from < SHOWN ? loaded.len - from : SHOWN), loaded.ptr + from,
             (int)(alone.len - from < SHOWN ? alone.len - from : SHOWN), alone.ptr + from);
}

static int verify_one(struct ew_load_run *run, struct ew_load_client *client, size_t index, struct ew_buf *answer,
                      struct ew_error *err)
{
    const struct ew_load_record *record = &run->records[index];
    const struct ew_load_callbacks callbacks = {.text = on_text, .ctx = answer};
    struct ew_str body = {record->body, record->body_len}, loaded = ew_str_of(record->answer), alone;
    struct ew_load_report *report = run->report;
    struct ew_load_result result;
    int rc;

    ew_buf_reset(answer);
    rc = ew__load_ask(run, client, run->path, &body, &callbacks, &result, err);
    if (rc < 0)
        return rc;
    alone = answer->len ? ew_buf_str(answer) : EW_STR("");
    report->n_verified++;
    if (result.outcome == EW_LOAD_OK && ew_str_eq(loaded, alone))
        report->n_same++;
    else if (!report->difference[0] && result.outcome == EW_LOAD_OK)
        describe(report, index, loaded, alone);
    else if (!report->difference[0])
        snprintf(report->difference, sizeof(report->difference),
                 "request %zu was answered under load and fails alone: %s", index, result.message);
    return EW_OK;
}

int ew__load_verify(struct ew_load_run *run, struct ew_error *err)
{
    struct ew_load_client *client;
    struct ew_buf answer;
    int rc = ew_load_client_create(&run->loop, &run->target, &client, err);

    if (rc < 0)
        return rc;
    ew_buf_init(&answer, EW_LOAD_BODY_MAX);
    for (size_t i = 0; i < run->n_records && rc == 0; i++) {
        rc = verify_one(run, client, i, &answer, err);
        if (run->options->progress)
            fprintf(stderr, "\r\033[Kverify: %zu of %zu", i + 1, run->n_records);
    }
    if (run->options->progress)
        fputs("\r\033[K", stderr);
    ew_buf_fini(&answer);
    ew_load_client_destroy(client);
    if (rc == EW_ERR_CANCELLED) {
        run->report->interrupted = true;
        rc = EW_OK;
    }
    return rc;
}
