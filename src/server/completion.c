#include "server/completion.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "server/exchange.h"

// The one event that needs no memory.
static const char g_no_memory[] = "data: {\"error\":{\"message\":\"no memory is left for the answer\",\"type\":"
                                  "\"server_error\",\"param\":null,\"code\":\"out_of_memory\"}}\n\n"
                                  "data: [DONE]\n\n";

// ---- which request is whose ---------------------------------------------------------------------------------------

static struct ew_choice **bucket_of(struct ew_api *api, uint64_t request)
{
    return &api->buckets[request % EW_API_BUCKETS]; // the engine numbers its requests one after the other
}

void ew_choice_remember(struct ew_choice *choice)
{
    struct ew_choice **bucket = bucket_of(choice->completion->api, choice->request);

    choice->next_in_bucket = *bucket;
    *bucket = choice;
    choice->is_open = true;
    choice->completion->n_open++;
}

static struct ew_choice *find_choice(struct ew_api *api, uint64_t request)
{
    struct ew_choice *choice = *bucket_of(api, request);

    while (choice && choice->request != request)
        choice = choice->next_in_bucket;
    return choice;
}

static void forget(struct ew_choice *choice)
{
    struct ew_choice **at = bucket_of(choice->completion->api, choice->request);

    while (*at != choice)
        at = &(*at)->next_in_bucket;
    *at = choice->next_in_bucket;
    choice->is_open = false;
    choice->completion->n_open--;
}

// ---- calls of tools, as the parser finds them ---------------------------------------------------------------------

static void on_content(void *ctx, struct ew_str text)
{
    struct ew_choice *choice = ctx;

    if (!choice->is_cut)
        ew_buf_append_str(&choice->content, text);
}

static void on_call(void *ctx, uint32_t index, struct ew_str name)
{
    struct ew_choice *choice = ctx;

    if (!choice->is_cut)
        ew_reply_note_call(choice, index, name);
}

static void on_arguments(void *ctx, uint32_t index, struct ew_str piece)
{
    struct ew_choice *choice = ctx;

    if (!choice->is_cut)
        ew_buf_append_str(&choice->arguments, piece);
}

static void on_call_end(void *ctx, uint32_t index)
{
    struct ew_choice *choice = ctx;

    if (choice->is_cut)
        return;
    ew_reply_note_arguments(choice, index);
    if (choice->completion->params.one_call) {
        choice->is_cut = true;
        ew_service_cancel(choice->completion->api->service, choice->request);
    }
}

// ---- a completion -------------------------------------------------------------------------------------------------

static void choice_fini(struct ew_choice *choice)
{
    ew_reasoning_fini(&choice->split);
    ew_toolcalls_fini(&choice->calls);
    ew_buf_fini(&choice->content);
    ew_buf_fini(&choice->reasoning);
    ew_buf_fini(&choice->pieces);
    ew_buf_fini(&choice->tool_calls);
    ew_buf_fini(&choice->arguments);
    for (int i = 0; i < 4; i++)
        ew_buf_fini(&choice->logprobs[i]);
}

void ew_completion_free(struct ew_completion *completion)
{
    completion->api->n_deferred -= completion->n_deferred;
    for (uint32_t i = 0; i < completion->n_choices; i++)
        choice_fini(&completion->choices[i]);
    *completion->link = completion->next;
    if (completion->next)
        completion->next->link = completion->link;
    completion->api->metrics.n_open--;
    ew_arena_fini(&completion->arena);
    ew_free(completion);
}

// The names of the tools; in the arena.
static void set_names(struct ew_completion *completion, const struct ew_json *tools, const struct ew_str **out,
                      uint32_t *n_out)
{
    struct ew_str *names = ew_arena_array(&completion->arena, tools->count, sizeof(*names));
    uint32_t n = 0;

    for (const struct ew_json *tool = names ? tools->child : NULL; tool; tool = tool->next)
        names[n++] = ew_json_str(ew_json_get(ew_json_get(tool, "function"), "name"), "");
    *out = names;
    *n_out = n;
}

void ew_choice_init(struct ew_choice *choice, struct ew_completion *completion, uint32_t index,
                        struct ew_str prompt_tail)
{
    static const struct ew_chat_caps no_template = {0};
    const struct ew_api *api = completion->api;
    const struct ew_json *tools = completion->params.no_tools ? NULL : completion->params.tools;
    const struct ew_toolcall_sink sink = {on_content, on_call, on_arguments, on_call_end, choice};
    bool is_chat = completion->route == EW_PARAMS_CHAT;

    choice->completion = completion;
    choice->index = index;
    ew_reasoning_init(&choice->split, is_chat ? ew_chat_format_caps(api->config.chat) : &no_template, prompt_tail);
    ew_toolcalls_init(&choice->calls, is_chat && tools ? api->tool_format.kind : EW_TOOLCALL_NONE, &sink);
    choice->calls.whole = !completion->params.stream;
    if (choice->calls.kind != EW_TOOLCALL_NONE)
        set_names(completion, tools, &choice->calls.names, &choice->calls.n_names);
    ew_buf_init(&choice->content, EW_ANSWER_BYTES_MAX);
    ew_buf_init(&choice->reasoning, EW_ANSWER_BYTES_MAX);
    ew_buf_init(&choice->pieces, EW_ANSWER_BYTES_MAX);
    ew_buf_init(&choice->tool_calls, EW_ANSWER_BYTES_MAX);
    ew_buf_init(&choice->arguments, EW_ANSWER_BYTES_MAX);
    for (int i = 0; i < 4; i++)
        ew_buf_init(&choice->logprobs[i], EW_ANSWER_BYTES_MAX);
}

static void set_id(struct ew_completion *completion)
{
    unsigned char random[12];
    int at = snprintf(completion->id, sizeof(completion->id), "%s-",
                      completion->route == EW_PARAMS_CHAT ? "chatcmpl" : "cmpl");

    if (getrandom(random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
        snprintf((char *)random, sizeof(random), "%" PRIx64, ew_clock_ns());
    for (size_t i = 0; i < sizeof(random); i++)
        at += snprintf(completion->id + at, sizeof(completion->id) - (size_t)at, "%02x", random[i]);
}

struct ew_completion *ew_completion_new(struct ew_api *api, struct ew_exchange *x, enum ew_params_route route,
                                            uint32_t n_choices)
{
    struct ew_completion *completion = ew_alloc(sizeof(*completion) + n_choices * sizeof(completion->choices[0]));

    if (!completion)
        return NULL;
    if (api->energy)
        ew_api_share_energy(api);
    completion->api = api;
    completion->x = x;
    completion->route = route;
    completion->created = (int64_t)time(NULL);
    completion->started_s = ew_clock_s();
    set_id(completion);
    completion->next = api->completions;
    completion->link = &api->completions;
    if (completion->next)
        completion->next->link = &completion->next;
    api->completions = completion;
    api->metrics.n_open++;
    return completion;
}

static void cancel_all(struct ew_completion *completion)
{
    for (uint32_t i = 0; i < completion->n_choices; i++)
        if (completion->choices[i].is_open)
            ew_service_cancel(completion->api->service, completion->choices[i].request);
}

// The reply is over. What the engine still does for it is stopped, and ends the completion.
static void let_go(struct ew_completion *completion)
{
    completion->x = NULL;
    completion->api->n_deferred -= completion->n_deferred;
    completion->n_deferred = 0;
    cancel_all(completion);
}

static void give_up(struct ew_completion *completion)
{
    completion->api->metrics.n_gone++;
    let_go(completion);
}

void ew_completion_gone(void *ctx)
{
    struct ew_completion *completion = ctx;

    give_up(completion);
    if (completion->n_open == 0) // it was waiting to submit more
        ew_completion_free(completion);
}

// ---- events -------------------------------------------------------------------------------------------------------

// Takes what is in the chunk buffer to the client. One that reads too slowly is given up by the server.
static void write_chunk(struct ew_completion *completion)
{
    struct ew_buf *chunk = &completion->api->chunk;
    struct ew_exchange *x = completion->x;
    bool works = ew_buf_ok(chunk);

    if (!x || (works && !chunk->len))
        return;
    if (!completion->is_streaming) {
        ew_exchange_header_add(x, "Cache-Control", "no-cache");
        works &= ew_exchange_stream_begin(x, 200, "text/event-stream; charset=utf-8") == 0;
        completion->is_streaming = true;
    }
    if (!ew_exchange_stream_write(x, works ? ew_buf_str(chunk) : EW_STR(g_no_memory))) {
        give_up(completion);
    } else if (!works) {
        let_go(completion);
        ew_exchange_stream_end(x);
    }
}

void ew_completion_fail(struct ew_completion *completion, const struct ew_fault *fault)
{
    struct ew_buf *chunk = &completion->api->chunk;
    struct ew_exchange *x = completion->x;

    if (!x)
        return;
    if (!completion->is_streaming) {
        let_go(completion);
        ew_api_refuse(x, fault);
        return;
    }
    ew_buf_reset(chunk);
    ew_buf_append_str(chunk, EW_STR("data: "));
    ew_fault_json(fault, chunk);
    ew_buf_append_str(chunk, EW_STR("\n\ndata: [DONE]\n\n"));
    write_chunk(completion);
    if (!completion->x)
        return;
    let_go(completion);
    ew_exchange_stream_end(x);
}

static void fail_memory(struct ew_completion *completion)
{
    struct ew_fault fault;

    ew_fault_set(&fault, 503, "server_error", "out_of_memory", "no memory is left for the answer");
    ew_completion_fail(completion, &fault);
}

// Reasoning, then calls, then what is left is content.
static void take_text(struct ew_choice *choice, struct ew_str text, bool is_end)
{
    bool ok;

    ew_buf_reset(&choice->pieces);
    ew_reasoning_push(&choice->split, text, &choice->reasoning, &choice->pieces);
    if (is_end)
        ew_reasoning_end(&choice->split, &choice->reasoning, &choice->pieces);
    ok = ew_buf_ok(&choice->pieces) && ew_toolcalls_push(&choice->calls, ew_buf_str(&choice->pieces));
    if (ok && is_end)
        ok = ew_toolcalls_end(&choice->calls);
    if (!ok)
        choice->content.failed = true;
}

static void count_tokens(struct ew_choice *choice, const struct ew_service_event *event)
{
    struct ew_completion *completion = choice->completion;
    struct ew_metrics *metrics = &completion->api->metrics;

    if (!event->n_tokens)
        return;
    metrics->answer_tokens += event->n_tokens;
    if (!completion->has_first)
        ew_histogram_add(&metrics->ttft, event->time_s - completion->started_s, 1);
    if (choice->newest_s > 0) // merged events tell only their newest token's time
        ew_histogram_add(&metrics->itl, (event->time_s - choice->newest_s) / event->n_tokens, event->n_tokens);
    completion->has_first = true;
    choice->newest_s = event->time_s;
}

static void note(struct ew_choice *choice, const struct ew_service_event *event)
{
    choice->n_prompt = event->n_prompt;
    choice->n_cached = event->n_reused;
    choice->n_new = event->n_new;
    count_tokens(choice, event);
}

static void finish_stream(struct ew_completion *completion)
{
    struct ew_exchange *x = completion->x;
    struct ew_buf *chunk = &completion->api->chunk;

    ew_buf_reset(chunk);
    if (completion->params.include_usage)
        ew_reply_usage_chunk(completion, chunk);
    ew_buf_append_str(chunk, EW_STR("data: [DONE]\n\n"));
    write_chunk(completion);
    if (!completion->x)
        return;
    completion->x = NULL;
    ew_exchange_stream_end(x);
}

static void finish_whole(struct ew_completion *completion)
{
    struct ew_exchange *x = completion->x;
    struct ew_buf out;

    ew_buf_init(&out, EW_ANSWER_BYTES_MAX);
    ew_reply_whole(completion, &out);
    if (ew_buf_ok(&out)) {
        completion->x = NULL;
        ew_exchange_reply(x, 200, "application/json", ew_buf_str(&out));
    } else {
        fail_memory(completion);
    }
    ew_buf_fini(&out);
}

void ew_completion_finish(struct ew_completion *completion)
{
    struct ew_metrics *metrics = &completion->api->metrics;
    struct ew_usage usage = ew_reply_usage(completion);

    if (completion->x) {
        ew_exchange_note_tokens(completion->x, usage.n_prompt, usage.n_new);
        ew_histogram_add(&metrics->e2e, ew_clock_s() - completion->started_s, 1);
        (completion->params.stream ? finish_stream : finish_whole)(completion);
    }
    ew_completion_free(completion);
}

// What ended without an answer to give.
static bool is_failure(const struct ew_choice *choice, const struct ew_service_event *event, struct ew_fault *fault)
{
    if (choice->is_cut)
        return false;
    switch (event->finish) {
    case EW_FINISH_ERROR:
        ew_fault_of(fault, &event->error);
        return true;
    case EW_FINISH_DEADLINE:
        ew_fault_set(fault, 504, "server_error", "deadline_exceeded", "the answer took longer than %g seconds",
                     choice->completion->api->config.deadline_s);
        return true;
    case EW_FINISH_CANCELLED:
        ew_fault_set(fault, 503, "server_error", "cancelled", "the server stopped before the answer was whole");
        return true;
    default:
        return false;
    }
}

static void on_finished(struct ew_choice *choice, const struct ew_service_event *event)
{
    struct ew_completion *completion = choice->completion;
    struct ew_metrics *metrics = &completion->api->metrics;
    struct ew_fault fault;

    forget(choice);
    choice->finish = event->finish;
    metrics->prompt_tokens += event->n_prompt;
    metrics->cached_tokens += event->n_reused;
    ew_histogram_add(&metrics->queue, event->queue_s, 1);
    if (completion->x && is_failure(choice, event, &fault))
        ew_completion_fail(completion, &fault);
    if (completion->x && completion->params.stream) {
        ew_buf_reset(&completion->api->chunk);
        ew_reply_chunk(choice, ew_reply_finish(choice), &completion->api->chunk);
        write_chunk(completion);
    }
    if (completion->n_open == 0 && completion->n_deferred == 0)
        ew_completion_finish(completion);
}

static void on_event(struct ew_choice *choice, const struct ew_service_event *event)
{
    struct ew_completion *completion = choice->completion;
    bool ends = event->kind == EW_EVENT_FINISHED;

    note(choice, event);
    if (completion->x) {
        take_text(choice, event->text, ends);
        if (completion->params.logprobs && !choice->is_cut)
            ew_reply_note_logprobs(choice, event);
        if (!ew_buf_ok(&choice->content))
            fail_memory(completion);
    }
    if (completion->x && completion->params.stream && !ends) {
        if (choice->call_is_open || choice->arguments.len)
            ew_reply_note_arguments(choice, choice->calls.n_calls);
        ew_buf_reset(&completion->api->chunk);
        ew_reply_chunk(choice, NULL, &completion->api->chunk);
        write_chunk(completion);
    }
    if (ends)
        on_finished(choice, event);
}

// Equal shares for all that are open meanwhile: nothing finer can be measured.
void ew_api_share_energy(struct ew_api *api)
{
    double joules = ew_energy_joules(api->energy), used = joules - api->joules;

    api->joules = joules;
    for (struct ew_completion *completion = api->completions; completion; completion = completion->next)
        completion->joules += used / api->metrics.n_open;
}

void ew_api_poll(struct ew_api *api)
{
    struct ew_service_event event;

    if (api->energy)
        ew_api_share_energy(api);
    while (ew_service_next_event(api->service, &event)) {
        struct ew_choice *choice = find_choice(api, event.request);

        if (choice)
            on_event(choice, &event);
        else
            ew_vectors_on_event(api, &event);
    }
    ew_vectors_submit_more(api);
    if (api->n_deferred)
        ew_submit_deferred(api);
}

void ew_api_forget_all(struct ew_api *api)
{
    while (api->completions)
        ew_completion_free(api->completions);
    ew_vectors_forget_all(api);
}
