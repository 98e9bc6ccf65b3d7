#include "server/vectors.h"

#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "model/pooling.h"
#include "server/exchange.h"

#define REPLY_BYTES_MAX ((size_t)256 << 20)

// ---- which request is whose ---------------------------------------------------------------------------------------

static struct ew_vector_text **bucket_of(struct ew_api *api, uint64_t request)
{
    return &api->vector_buckets[request % EW_API_BUCKETS]; // the engine numbers its requests one after the other
}

static void remember(struct ew_vector_text *text)
{
    struct ew_vector_text **bucket = bucket_of(text->task->api, text->request);

    text->next_in_bucket = *bucket;
    *bucket = text;
    text->is_open = true;
    text->task->n_open++;
}

static void forget(struct ew_vector_text *text)
{
    struct ew_vector_text **at = bucket_of(text->task->api, text->request);

    while (*at != text)
        at = &(*at)->next_in_bucket;
    *at = text->next_in_bucket;
    text->is_open = false;
    text->task->n_open--;
}

// ---- a task -------------------------------------------------------------------------------------------------------

static struct ew_vector_task *new_task(struct ew_api *api, struct ew_exchange *x, enum ew_vector_route route)
{
    struct ew_vector_task *task = ew_alloc(sizeof(*task));

    if (!task)
        return NULL;
    task->api = api;
    task->x = x;
    task->route = route;
    task->started_s = ew_clock_s();
    task->client = ew_api_client(x, (struct ew_str){0});
    ew_arena_init(&task->arena, EW_PARAMS_ARENA_MAX);
    task->next = api->vector_tasks;
    task->link = &api->vector_tasks;
    if (task->next)
        task->next->link = &task->next;
    api->vector_tasks = task;
    api->metrics.n_open++;
    return task;
}

static void free_task(struct ew_vector_task *task)
{
    *task->link = task->next;
    if (task->next)
        task->next->link = task->link;
    task->api->metrics.n_open--;
    ew_arena_fini(&task->arena);
    ew_free(task);
}

// The reply is over. What the engine still does for it is stopped, and ends the task.
static void let_go(struct ew_vector_task *task)
{
    task->x = NULL;
    task->n_sent = task->n_texts;
    for (uint32_t i = 0; i < task->n_texts; i++)
        if (task->texts[i].is_open)
            ew_service_cancel(task->api->service, task->texts[i].request);
}

static void fail(struct ew_vector_task *task, const struct ew_fault *fault)
{
    struct ew_exchange *x = task->x;

    let_go(task);
    if (x)
        ew_api_refuse(x, fault);
}

static void on_gone(void *ctx)
{
    struct ew_vector_task *task = ctx;

    task->api->metrics.n_gone++;
    let_go(task);
    if (task->n_open == 0) // it was waiting to submit more
        free_task(task);
}

static void finish(struct ew_vector_task *task)
{
    struct ew_exchange *x = task->x;
    struct ew_fault fault;
    struct ew_buf out;

    if (x) {
        ew_buf_init(&out, REPLY_BYTES_MAX);
        ew_vectors_reply(task, &out);
        ew_histogram_add(&task->api->metrics.e2e, ew_clock_s() - task->started_s, 1);
        ew_exchange_note_tokens(x, ew_vectors_tokens(task), 0);
        task->x = NULL;
        if (ew_buf_ok(&out)) {
            ew_exchange_reply(x, 200, "application/json", ew_buf_str(&out));
        } else {
            ew_fault_set(&fault, 503, "server_error", "out_of_memory", "no memory is left for the reply");
            ew_api_refuse(x, &fault);
        }
        ew_buf_fini(&out);
    }
    free_task(task);
}

// ---- submission and events ----------------------------------------------------------------------------------------

static int submit(struct ew_vector_text *text, struct ew_error *err)
{
    const struct ew_vector_task *task = text->task;
    struct ew_request request = {
        .ids = text->ids,
        .segments = text->segments,
        .n_ids = text->n_ids,
        .client = task->client,
        .deadline_s = task->api->config.deadline_s,
        .sampling = ew_sampling_default(),
    };
    int rc = ew_service_submit(task->api->service, &request, &text->request, err);

    if (rc == 0)
        remember(text);
    return rc;
}

// Submits what the queue takes now. A task whose first text finds it full is refused; later ones try again after the
// next events.
static int submit_more(struct ew_vector_task *task, struct ew_fault *fault)
{
    struct ew_error err = {0};

    while (task->n_sent < task->n_texts) {
        int rc = submit(&task->texts[task->n_sent], &err);

        if (rc == EW_ERR_BUSY && task->n_sent > 0)
            return 0;
        if (rc < 0)
            return ew_fault_of(fault, &err);
        task->n_sent++;
    }
    return 0;
}

static bool is_failure(const struct ew_service_event *event, struct ew_fault *fault)
{
    if (event->finish == EW_FINISH_STOP)
        return false;
    if (event->finish == EW_FINISH_ERROR)
        ew_fault_of(fault, &event->error);
    else if (event->finish == EW_FINISH_DEADLINE)
        ew_fault_set(fault, 504, "server_error", "timeout", "the request took longer than it may");
    else
        ew_fault_set(fault, 503, "server_error", "cancelled", "the server stopped before the answer was whole");
    return true;
}

static void on_finished(struct ew_vector_text *text, const struct ew_service_event *event)
{
    struct ew_vector_task *task = text->task;
    struct ew_metrics *metrics = &task->api->metrics;
    struct ew_fault fault;

    forget(text);
    metrics->prompt_tokens += event->n_prompt;
    ew_histogram_add(&metrics->queue, event->queue_s, 1);
    if (event->vector)
        memcpy(text->vector, event->vector, event->n_vector * sizeof(*text->vector));
    if (task->x && is_failure(event, &fault))
        fail(task, &fault);
    if (task->n_open == 0 && task->n_sent == task->n_texts)
        finish(task);
}

void ew_vectors_on_event(struct ew_api *api, const struct ew_service_event *event)
{
    struct ew_vector_text *text = *bucket_of(api, event->request);

    while (text && text->request != event->request)
        text = text->next_in_bucket;
    if (text && event->kind == EW_EVENT_FINISHED)
        on_finished(text, event);
}

void ew_vectors_submit_more(struct ew_api *api)
{
    struct ew_vector_task *task = api->vector_tasks, *next;
    struct ew_fault fault;

    for (; task; task = next) {
        next = task->next;
        if (task->n_sent == task->n_texts)
            continue;
        if (submit_more(task, &fault) < 0)
            fail(task, &fault);
        if (task->n_open == 0 && task->n_sent == task->n_texts)
            finish(task);
    }
}

void ew_vectors_forget_all(struct ew_api *api)
{
    while (api->vector_tasks)
        free_task(api->vector_tasks);
}

// ---- handlers -----------------------------------------------------------------------------------------------------

static void start(struct ew_api *api, struct ew_exchange *x, enum ew_vector_route route)
{
    struct ew_vector_task *task = new_task(api, x, route);
    struct ew_fault fault;

    if (!task) {
        ew_fault_set(&fault, 503, "server_error", "out_of_memory", "no memory is left for the request");
        ew_api_refuse(x, &fault);
        return;
    }
    if (ew_vectors_read(task, &fault) == 0 && submit_more(task, &fault) == 0) {
        ew_exchange_on_gone(x, on_gone, task);
        return;
    }
    fail(task, &fault);
    if (task->n_open == 0)
        free_task(task);
}

void ew_api_embeddings(struct ew_api *api, struct ew_exchange *x)
{
    start(api, x, EW_VECTORS_EMBED);
}

void ew_api_rerank(struct ew_api *api, struct ew_exchange *x)
{
    start(api, x, EW_VECTORS_RERANK);
}

void ew_api_classify(struct ew_api *api, struct ew_exchange *x)
{
    start(api, x, EW_VECTORS_CLASSIFY);
}

void ew_api_score(struct ew_api *api, struct ew_exchange *x)
{
    start(api, x, EW_VECTORS_SCORE);
}
