#include "engine/service.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/schedule.h"

#define QUEUE_DEFAULT 64
#define TEXT_BYTES_MAX ((size_t)64 << 20) // of one request, not yet fetched
#define TEXT_BYTES_USUAL 4096
#define TOKENS_USUAL 64

// What one request has to tell. The engine's thread fills `back`; fetching swaps it with `front`, which the consumer
// reads meanwhile.
struct outbox {
    struct ew_buf text;
    int32_t *tokens;             // [capacity]
    struct ew_logprob *logprobs; // [capacity, n_logprobs]
    uint32_t n_tokens, capacity;
};

struct ticket {
    // Set at submission.
    struct ticket *next; // all tickets, oldest first
    uint64_t id;
    uint32_t n_logprobs;
    float *vector; // [n_vector], or NULL; the engine's thread fills it before the ticket is finished
    uint32_t n_vector;
    // Under the lock.
    struct ticket *next_ready;
    struct ew_job *job; // until the engine's thread takes it
    struct outbox back;
    struct ew_service_event last; // the newest event's figures
    bool is_ready, wants_cancel, is_finished, out_of_memory;
    // The consumer's.
    struct outbox front;
};

struct ew_service {
    // Set at start.
    struct ew_engine *engine; // the engine thread's, but for what never changes
    struct ew_service_config config;
    uint32_t context_max, n_open_max; // running and waiting
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work; // there are jobs or cancellations, or it closes
    // Under the lock.
    struct ticket *tickets, **tickets_end;
    struct ticket *ready, **ready_end;
    uint32_t n_incoming; // tickets whose job the engine has not seen
    uint32_t n_open;     // tickets that are not finished
    bool has_news, closing;
    uint64_t last_id;
    struct ew_service_stats stats;
    // The consumer's.
    struct ticket *fetched; // finished, and freed by the next fetch
};

// ---- tickets -------------------------------------------------------------------------------------------------------

static bool outbox_grow(struct outbox *box, uint32_t n_logprobs)
{
    uint32_t capacity = box->capacity ? 2 * box->capacity : TOKENS_USUAL;
    int32_t *tokens = ew_realloc_array(box->tokens, capacity, sizeof(*tokens));
    struct ew_logprob *logprobs = NULL;

    if (!tokens)
        return false;
    box->tokens = tokens;
    if (n_logprobs) {
        logprobs = ew_realloc_array(box->logprobs, (size_t)capacity * n_logprobs, sizeof(*logprobs));
        if (!logprobs)
            return false;
        box->logprobs = logprobs;
    }
    box->capacity = capacity;
    return true;
}

static bool outbox_init(struct outbox *box, uint32_t n_logprobs)
{
    ew_buf_init(&box->text, TEXT_BYTES_MAX);
    return ew_buf_reserve(&box->text, TEXT_BYTES_USUAL) && outbox_grow(box, n_logprobs);
}

static void outbox_fini(struct outbox *box)
{
    ew_buf_fini(&box->text);
    ew_free(box->tokens);
    ew_free(box->logprobs);
}

static void ticket_free(struct ticket *ticket)
{
    if (!ticket)
        return;
    if (ticket->job)
        ew_job_destroy(ticket->job);
    outbox_fini(&ticket->front);
    outbox_fini(&ticket->back);
    ew_free(ticket->vector);
    ew_free(ticket);
}

static int make_vector(const struct ew_service *service, struct ticket *ticket, struct ew_error *err)
{
    ticket->n_vector = service->engine->core.model->pooling.width;
    if (!ticket->n_vector)
        return 0;
    ticket->vector = ew_alloc_array(ticket->n_vector, sizeof(*ticket->vector));
    return ticket->vector ? 0 : ew_fail_memory(err, ticket->n_vector * sizeof(*ticket->vector), "a vector");
}

static int ticket_create(const struct ew_service *service, const struct ew_request *request, struct ticket **out,
                         struct ew_error *err)
{
    struct ticket *ticket = ew_alloc(sizeof(*ticket));
    int rc;

    if (!ticket)
        return ew_fail_memory(err, sizeof(*ticket), "a request");
    ticket->n_logprobs = request->n_logprobs;
    rc = ew_engine_make_job(service->engine, request, &ticket->job, err);
    if (rc < 0)
        ticket->job = NULL;
    if (rc == 0 && (!outbox_init(&ticket->front, request->n_logprobs) ||
                    !outbox_init(&ticket->back, request->n_logprobs)))
        rc = ew_fail_memory(err, 2 * TEXT_BYTES_USUAL, "a request's answer");
    if (rc == 0)
        rc = make_vector(service, ticket, err);
    if (rc < 0)
        ticket_free(ticket);
    else
        *out = ticket;
    return rc;
}

// ---- any thread ----------------------------------------------------------------------------------------------------

// Requests that wait: those the engine knew of when its last step ended, and those that came since.
static uint32_t n_queued(const struct ew_service *service)
{
    return service->stats.engine.n_waiting + service->n_incoming;
}

static void signal_news(struct ew_service *service)
{
    service->has_news = true;
    pthread_cond_signal(&service->work);
}

static bool enqueue(struct ew_service *service, struct ticket *ticket, uint64_t *id)
{
    bool has_room;

    pthread_mutex_lock(&service->lock);
    has_room = service->n_open < service->n_open_max && !service->closing;
    if (has_room) {
        *id = ticket->id = ticket->job->id = ++service->last_id;
        ticket->job->request.tag = ticket;
        *service->tickets_end = ticket;
        service->tickets_end = &ticket->next;
        service->n_incoming++;
        service->n_open++;
        service->stats.n_submitted++;
        signal_news(service);
    } else {
        service->stats.n_refused++;
    }
    pthread_mutex_unlock(&service->lock);
    return has_room;
}

int ew_service_submit(struct ew_service *service, const struct ew_request *request, uint64_t *id, struct ew_error *err)
{
    struct ticket *ticket = NULL;
    int rc = ticket_create(service, request, &ticket, err);

    if (rc < 0)
        return rc;
    // As soon as it is queued, the engine may finish it, and the consumer free the ticket.
    if (!enqueue(service, ticket, id)) {
        ticket_free(ticket);
        ew_fail(err, EW_ERR_BUSY, "%u requests are waiting, and no more may", service->config.queue_max);
        return ew_remedy(err, EW_ERR_BUSY, "Try again later, or serve with a longer queue");
    }
    return 0;
}

void ew_service_cancel(struct ew_service *service, uint64_t id)
{
    pthread_mutex_lock(&service->lock);
    for (struct ticket *ticket = service->tickets; ticket; ticket = ticket->next) {
        if (ticket->id != id || ticket->is_finished)
            continue;
        ticket->wants_cancel = true;
        signal_news(service);
    }
    pthread_mutex_unlock(&service->lock);
}

void ew_service_stats(struct ew_service *service, struct ew_service_stats *out)
{
    pthread_mutex_lock(&service->lock);
    *out = service->stats;
    out->n_queued = n_queued(service);
    pthread_mutex_unlock(&service->lock);
    out->queue_max = service->config.queue_max;
}

uint32_t ew_service_context_max(const struct ew_service *service)
{
    return service->context_max;
}

// ---- the engine's thread -------------------------------------------------------------------------------------------

// Under the lock. Takes the new jobs and the cancellations.
static void take_news(struct ew_service *service)
{
    struct ew_error no_memory;

    ew_fail(&no_memory, EW_ERR_MEMORY, "no memory was left for an answer that nobody fetched");
    for (struct ticket *ticket = service->tickets; ticket; ticket = ticket->next) {
        if (ticket->job)
            ew_engine_enqueue(service->engine, ticket->job);
        ticket->job = NULL;
        if (ticket->out_of_memory && !ticket->is_finished)
            ew_engine_abort(service->engine, ticket->id, &no_memory);
        else if (ticket->wants_cancel)
            ew_engine_cancel(service->engine, ticket->id);
        ticket->wants_cancel = false;
    }
    service->n_incoming = 0;
    service->has_news = false;
    ew_engine_stats(service->engine, &service->stats.engine);
}

static void add_token(struct ticket *ticket, const struct ew_event *event)
{
    struct outbox *box = &ticket->back;

    ew_buf_append_str(&box->text, event->text);
    ticket->out_of_memory |= !ew_buf_ok(&box->text) ||
                             (box->n_tokens == box->capacity && !outbox_grow(box, ticket->n_logprobs));
    if (ticket->out_of_memory)
        return;
    box->tokens[box->n_tokens] = event->token;
    if (ticket->n_logprobs)
        memcpy(box->logprobs + (size_t)box->n_tokens * ticket->n_logprobs, event->logprobs,
               ticket->n_logprobs * sizeof(*event->logprobs));
    box->n_tokens++;
}

static void note(struct ticket *ticket, const struct ew_event *event)
{
    ticket->last = (struct ew_service_event){
        .request = event->request,
        .n_logprobs = ticket->n_logprobs,
        .time_s = ew_clock_s(),
        .n_prompt = event->n_prompt,
        .n_reused = event->n_reused,
        .n_new = event->n_new,
        .n_preempted = event->n_preempted,
        .finish = event->finish,
        .queue_s = event->queue_s,
        .prefill_s = event->prefill_s,
        .decode_s = event->decode_s,
        .error = event->error,
    };
}

static void finish_ticket(struct ew_service *service, struct ticket *ticket, const struct ew_event *event)
{
    ew_buf_append_str(&ticket->back.text, event->text);
    if (event->vector && ticket->vector)
        memcpy(ticket->vector, event->vector, ticket->n_vector * sizeof(*ticket->vector));
    ticket->is_finished = true;
    service->n_open--;
}

static void make_ready(struct ew_service *service, struct ticket *ticket)
{
    if (ticket->is_ready)
        return;
    ticket->is_ready = true;
    ticket->next_ready = NULL;
    *service->ready_end = ticket;
    service->ready_end = &ticket->next_ready;
}

// Under the lock. Hands all events of the engine over; returns whether there were any.
static bool publish(struct ew_service *service)
{
    struct ew_event event;
    bool any = false;

    while (ew_engine_next_event(service->engine, &event)) {
        struct ticket *ticket = event.tag;

        any = true;
        note(ticket, &event);
        if (event.kind == EW_EVENT_TOKEN)
            add_token(ticket, &event);
        else
            finish_ticket(service, ticket, &event);
        if (ticket->out_of_memory && !ticket->is_finished)
            service->has_news = true; // it ends before the next step
        make_ready(service, ticket);
    }
    return any;
}

static bool is_done(const struct ew_service *service, bool idle)
{
    return service->closing || !idle || service->has_news;
}

// The step that was begun, if any, runs after the events of the one before were handed over.
static void run_begun(struct ew_service *service, bool idle)
{
    struct ew_error err = {0};
    bool any;
    int rc;

    pthread_mutex_lock(&service->lock);
    any = publish(service);
    ew_engine_stats(service->engine, &service->stats.engine);
    service->stats.busy = !idle;
    service->stats.busy_since_s = ew_clock_s();
    pthread_mutex_unlock(&service->lock);
    if (any && service->config.wake)
        service->config.wake(service->config.wake_ctx);
    if (idle)
        return;
    rc = ew_engine_complete(service->engine, &err);
    if (rc < 0)
        ew_log_error(&err);
    pthread_mutex_lock(&service->lock);
    if (rc == EW_ERR_DEVICE)
        service->stats.failure = err;
    else if (rc == 0)
        service->stats.failure.code = 0;
    service->stats.busy = false;
    service->stats.last_step_s = ew_clock_s();
    pthread_mutex_unlock(&service->lock);
}

static void *engine_main(void *arg)
{
    struct ew_service *service = arg;
    struct ew_error err = {0};
    bool idle = false, open;

    for (;;) {
        pthread_mutex_lock(&service->lock);
        while (!is_done(service, idle))
            pthread_cond_wait(&service->work, &service->lock);
        if (service->has_news)
            take_news(service);
        open = !service->closing;
        pthread_mutex_unlock(&service->lock);
        if (!open)
            return NULL;
        if (ew_engine_begin(service->engine, &idle, &err) < 0) {
            ew_log_error(&err);
            continue;
        }
        run_begun(service, idle);
    }
}

// ---- start and stop ------------------------------------------------------------------------------------------------

// Signals reach the thread that waits for them.
static int start_thread(struct ew_service *service, struct ew_error *err)
{
    sigset_t all, old;
    int failed;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    failed = pthread_create(&service->thread, NULL, engine_main, service);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed)
        return ew_fail(err, EW_ERR_MEMORY, "cannot start the engine's thread (error %d)", failed);
    pthread_setname_np(service->thread, "ew-engine");
    return 0;
}

int ew_service_start(const struct ew_model *model, const struct ew_tokenizer *tok_or_null,
                     const struct ew_service_config *config, struct ew_service **out, struct ew_error *err)
{
    struct ew_service *service = ew_alloc(sizeof(*service));
    int rc;

    if (!service)
        return ew_fail_memory(err, sizeof(*service), "the service");
    service->config = *config;
    service->config.queue_max = config->queue_max ? config->queue_max : QUEUE_DEFAULT;
    service->tickets_end = &service->tickets;
    service->ready_end = &service->ready;
    service->stats.last_step_s = ew_clock_s();
    pthread_mutex_init(&service->lock, NULL);
    pthread_cond_init(&service->work, NULL);
    rc = ew_engine_create(model, tok_or_null, &config->engine, &service->engine, err);
    if (rc < 0)
        goto free_service;
    ew_engine_stats(service->engine, &service->stats.engine);
    service->context_max = service->stats.engine.context_max;
    service->n_open_max = service->config.queue_max + service->stats.engine.n_running_max;
    rc = start_thread(service, err);
    if (rc < 0)
        goto destroy_engine;
    *out = service;
    return 0;
destroy_engine:
    ew_engine_destroy(service->engine);
free_service:
    pthread_cond_destroy(&service->work);
    pthread_mutex_destroy(&service->lock);
    ew_free(service);
    return rc;
}

void ew_service_stop(struct ew_service *service)
{
    if (!service)
        return;
    pthread_mutex_lock(&service->lock);
    service->closing = true;
    signal_news(service);
    pthread_mutex_unlock(&service->lock);
    pthread_join(service->thread, NULL);
    ew_engine_destroy(service->engine);
    while (service->tickets) {
        struct ticket *ticket = service->tickets;

        service->tickets = ticket->next;
        ticket_free(ticket);
    }
    ticket_free(service->fetched);
    pthread_cond_destroy(&service->work);
    pthread_mutex_destroy(&service->lock);
    ew_free(service);
}

// ---- the consumer --------------------------------------------------------------------------------------------------

// Under the lock.
static void remove_ticket(struct ew_service *service, struct ticket *ticket)
{
    struct ticket **at = &service->tickets;

    while (*at != ticket)
        at = &(*at)->next;
    *at = ticket->next;
    if (!ticket->next)
        service->tickets_end = at;
}

// Under the lock. The tokens first; where the request has ended too, the rest of its text is the event after.
static void fetch(struct ew_service *service, struct ticket *ticket, struct ew_service_event *event)
{
    struct outbox taken = ticket->back;
    bool ends = ticket->is_finished && taken.n_tokens == 0;

    ticket->back = ticket->front;
    ticket->front = taken;
    ew_buf_reset(&ticket->back.text);
    ticket->back.n_tokens = 0;
    *event = ticket->last;
    event->kind = ends ? EW_EVENT_FINISHED : EW_EVENT_TOKEN;
    event->text = ew_buf_str(&taken.text);
    event->tokens = taken.tokens;
    event->n_tokens = taken.n_tokens;
    event->logprobs = taken.logprobs;
    if (ends && event->finish == EW_FINISH_STOP && ticket->vector) {
        event->vector = ticket->vector;
        event->n_vector = ticket->n_vector;
    }
    if (ends) {
        remove_ticket(service, ticket);
        service->fetched = ticket;
    }
    if (ends || !ticket->is_finished) {
        ticket->is_ready = false;
        service->ready = ticket->next_ready;
        if (!service->ready)
            service->ready_end = &service->ready;
    }
}

bool ew_service_next_event(struct ew_service *service, struct ew_service_event *event)
{
    bool any;

    ticket_free(service->fetched);
    service->fetched = NULL;
    pthread_mutex_lock(&service->lock);
    any = service->ready != NULL;
    if (any)
        fetch(service, service->ready, event);
    pthread_mutex_unlock(&service->lock);
    return any;
}
