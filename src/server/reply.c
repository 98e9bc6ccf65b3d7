// The JSON of replies: whole ones, and the chunks of streamed ones. Field order and names are those of the OpenAI
// API.

#include <inttypes.h>
#include <math.h>
#include <sys/random.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/rng.h"
#include "server/completion.h"

static bool is_chat(const struct ew_completion *completion)
{
    return completion->route == EW_PARAMS_CHAT;
}

const char *ew_reply_finish(const struct ew_choice *choice)
{
    if (choice->finish == EW_FINISH_LENGTH || choice->finish == EW_FINISH_CONTEXT)
        return "length";
    return choice->calls.n_calls ? "tool_calls" : "stop";
}

static void append_head(const struct ew_completion *completion, const char *object, struct ew_buf *out)
{
    const struct ew_api *api = completion->api;

    ew_buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":", completion->id, object,
                  completion->created);
    ew_buf_append_json(out, ew_str_of(api->config.model_id));
    ew_buf_printf(out, ",\"system_fingerprint\":\"%s\"", api->fingerprint);
}

struct ew_usage ew_reply_usage(const struct ew_completion *completion)
{
    struct ew_usage usage = {0};

    for (uint32_t i = 0; i < completion->n_choices; i++) {
        const struct ew_choice *choice = &completion->choices[i];

        usage.n_new += choice->n_new;
        if (i % (uint64_t)completion->params.n)
            continue;
        usage.n_prompt += choice->n_prompt;
        usage.n_cached += choice->n_cached;
    }
    return usage;
}

static void append_usage(const struct ew_completion *completion, struct ew_buf *out)
{
    struct ew_usage usage = ew_reply_usage(completion);

    ew_buf_printf(out,
                  "{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64
                  ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRIu64 "}",
                  usage.n_prompt, usage.n_new, usage.n_prompt + usage.n_new, usage.n_cached);
    if (completion->api->energy)
        ew_buf_printf(out, ",\"energy_joules\":%.4g", completion->joules);
    ew_buf_append_char(out, '}');
}

// ---- log probabilities --------------------------------------------------------------------------------------------

// JSON has no infinity; OpenAI writes -9999 for what is as good as impossible.
static double finite_logprob(float logprob)
{
    return isfinite(logprob) ? (double)logprob : -9999.0;
}

static void separate(struct ew_buf *out)
{
    if (out->len)
        ew_buf_append_char(out, ',');
}

// {"token", "logprob", "bytes"}, its end left open.
static void append_token(struct ew_buf *out, struct ew_str bytes, float logprob)
{
    ew_buf_append_str(out, EW_STR("{\"token\":"));
    ew_buf_append_json(out, bytes);
    ew_buf_printf(out, ",\"logprob\":%.7g,\"bytes\":[", finite_logprob(logprob));
    for (size_t i = 0; i < bytes.len; i++)
        ew_buf_printf(out, "%s%u", i ? "," : "", (unsigned char)bytes.ptr[i]);
    ew_buf_append_char(out, ']');
}

static struct ew_str token_bytes(const struct ew_choice *choice, int32_t token, struct ew_buf *scratch)
{
    const struct ew_tokenizer *tok = choice->completion->api->config.tok;

    ew_buf_reset(scratch);
    if (tok)
        ew_token_bytes(tok, token, scratch);
    return ew_buf_str(scratch);
}

// tops: [n], the likeliest tokens, among which the chosen one is or is not.
static void note_chat_row(struct ew_choice *choice, const struct ew_logprob *chosen, const struct ew_logprob *tops,
                          uint32_t n, struct ew_buf *scratch)
{
    struct ew_buf *out = &choice->logprobs[0];

    separate(out);
    append_token(out, token_bytes(choice, chosen->token, scratch), chosen->logprob);
    ew_buf_append_str(out, EW_STR(",\"top_logprobs\":["));
    for (uint32_t i = 0; i < n; i++) {
        if (i)
            ew_buf_append_char(out, ',');
        append_token(out, token_bytes(choice, tops[i].token, scratch), tops[i].logprob);
        ew_buf_append_char(out, '}');
    }
    ew_buf_append_str(out, EW_STR("]}"));
}

static void note_text_row(struct ew_choice *choice, const struct ew_logprob *chosen, const struct ew_logprob *tops,
                          uint32_t n, struct ew_buf *scratch)
{
    struct ew_buf *object = &choice->logprobs[2];
    struct ew_str bytes;

    for (int i = 0; i < 4; i++)
        separate(&choice->logprobs[i]);
    bytes = token_bytes(choice, chosen->token, scratch);
    ew_buf_append_json(&choice->logprobs[0], bytes);
    ew_buf_printf(&choice->logprobs[1], "%.7g", finite_logprob(chosen->logprob));
    ew_buf_printf(&choice->logprobs[3], "%zu", choice->text_offset);
    choice->text_offset += bytes.len;
    ew_buf_append_char(object, '{');
    for (uint32_t i = 0; i < n; i++) {
        if (i)
            ew_buf_append_char(object, ',');
        ew_buf_append_json(object, token_bytes(choice, tops[i].token, scratch));
        ew_buf_printf(object, ":%.7g", finite_logprob(tops[i].logprob));
    }
    ew_buf_append_char(object, '}');
}

// The engine's rows have the chosen token first and then the best of the others; clients asked for so many of the
// best, among which the chosen one is or is not.
static uint32_t sort_row(const struct ew_logprob *row, uint32_t n, uint32_t n_wanted, struct ew_logprob *out)
{
    uint32_t n_out = 0;
    bool placed = false;

    for (uint32_t i = 1; i < n && n_out < n_wanted; i++) {
        if (!placed && row[0].logprob >= row[i].logprob) {
            out[n_out++] = row[0];
            placed = true;
        }
        if (n_out < n_wanted)
            out[n_out++] = row[i];
    }
    if (!placed && n_out < n_wanted)
        out[n_out++] = row[0];
    return n_out;
}

void ew_reply_note_logprobs(struct ew_choice *choice, const struct ew_service_event *event)
{
    uint32_t n_wanted = (uint32_t)choice->completion->params.top_logprobs;
    struct ew_logprob tops[EW_LOGPROBS_MAX];
    struct ew_buf scratch;

    if (!event->n_logprobs)
        return;
    ew_buf_init(&scratch, EW_ANSWER_BYTES_MAX);
    for (uint32_t i = 0; i < event->n_tokens; i++) {
        const struct ew_logprob *row = event->logprobs + (size_t)i * event->n_logprobs;
        uint32_t n = sort_row(row, event->n_logprobs, n_wanted, tops);

        (is_chat(choice->completion) ? note_chat_row : note_text_row)(choice, row, tops, n, &scratch);
    }
    ew_buf_fini(&scratch);
}

static void append_logprobs(const struct ew_choice *choice, struct ew_buf *out)
{
    static const char *const names[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};

    if (!choice->completion->params.logprobs) {
        ew_buf_append_str(out, EW_STR("null"));
        return;
    }
    if (is_chat(choice->completion)) {
        ew_buf_append_str(out, EW_STR("{\"content\":["));
        ew_buf_append_str(out, ew_buf_str(&choice->logprobs[0]));
        ew_buf_append_str(out, EW_STR("],\"refusal\":null}"));
        return;
    }
    for (int i = 0; i < 4; i++) {
        ew_buf_printf(out, "%s\"%s\":[", i ? "," : "{", names[i]);
        ew_buf_append_str(out, ew_buf_str(&choice->logprobs[i]));
        ew_buf_append_char(out, ']');
    }
    ew_buf_append_char(out, '}');
}

// ---- calls of tools -----------------------------------------------------------------------------------------------

// Mistral's templates take ids of exactly nine letters and digits; the others any.
static void append_call_id(const struct ew_choice *choice, struct ew_buf *out)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    bool is_short = choice->calls.kind == EW_TOOLCALL_MISTRAL;
    size_t len = is_short ? 9 : 24;
    unsigned char random[24];

    if (getrandom(random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
        ew_rng_fill(ew_clock_ns(), choice->request, random, sizeof(random));
    ew_buf_append_str(out, is_short ? EW_STR("") : EW_STR("call_"));
    for (size_t i = 0; i < len; i++)
        ew_buf_append_char(out, letters[random[i] % (sizeof(letters) - 1)]);
}

void ew_reply_note_call(struct ew_choice *choice, uint32_t index, struct ew_str name)
{
    struct ew_buf *out = &choice->tool_calls;

    separate(out);
    ew_buf_append_char(out, '{');
    if (choice->completion->params.stream)
        ew_buf_printf(out, "\"index\":%u,", index);
    ew_buf_append_str(out, EW_STR("\"id\":\""));
    append_call_id(choice, out);
    ew_buf_append_str(out, EW_STR("\",\"type\":\"function\",\"function\":{\"name\":"));
    ew_buf_append_json(out, name);
    choice->call_is_open = true;
}

// Where the call's begin has been written already, its arguments are an entry of their own.
void ew_reply_note_arguments(struct ew_choice *choice, uint32_t index)
{
    struct ew_buf *out = &choice->tool_calls;

    if (!choice->call_is_open && !choice->arguments.len)
        return;
    if (choice->call_is_open) {
        ew_buf_append_str(out, EW_STR(",\"arguments\":"));
    } else {
        separate(out);
        ew_buf_printf(out, "{\"index\":%u,\"function\":{\"arguments\":", index);
    }
    ew_buf_append_json(out, ew_buf_str(&choice->arguments));
    ew_buf_append_str(out, EW_STR("}}"));
    choice->call_is_open = false;
    ew_buf_reset(&choice->arguments);
}

static void append_calls(const struct ew_choice *choice, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("\"tool_calls\":["));
    ew_buf_append_str(out, ew_buf_str(&choice->tool_calls));
    ew_buf_append_char(out, ']');
}

// ---- whole replies ------------------------------------------------------------------------------------------------

static void append_message(const struct ew_choice *choice, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("\"message\":{\"role\":\"assistant\",\"content\":"));
    if (choice->content.len || !choice->calls.n_calls)
        ew_buf_append_json(out, ew_buf_str(&choice->content));
    else
        ew_buf_append_str(out, EW_STR("null"));
    if (choice->reasoning.len) {
        ew_buf_append_str(out, EW_STR(",\"reasoning_content\":"));
        ew_buf_append_json(out, ew_buf_str(&choice->reasoning));
    }
    ew_buf_append_str(out, EW_STR(",\"refusal\":null"));
    if (choice->calls.n_calls) {
        ew_buf_append_char(out, ',');
        append_calls(choice, out);
    }
    ew_buf_append_char(out, '}');
}

static void append_text(const struct ew_choice *choice, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("\"text\":"));
    ew_buf_append_json(out, ew_buf_str(&choice->content));
}

void ew_reply_whole(const struct ew_completion *completion, struct ew_buf *out)
{
    append_head(completion, is_chat(completion) ? "chat.completion" : "text_completion", out);
    ew_buf_append_str(out, EW_STR(",\"choices\":["));
    for (uint32_t i = 0; i < completion->n_choices; i++) {
        const struct ew_choice *choice = &completion->choices[i];

        ew_buf_printf(out, "%s{\"index\":%u,", i ? "," : "", i);
        (is_chat(completion) ? append_message : append_text)(choice, out);
        ew_buf_append_str(out, EW_STR(",\"logprobs\":"));
        append_logprobs(choice, out);
        ew_buf_printf(out, ",\"finish_reason\":\"%s\"}", ew_reply_finish(choice));
        out->failed |= !ew_buf_ok(&choice->content) || !ew_buf_ok(&choice->tool_calls);
    }
    ew_buf_append_str(out, EW_STR("],\"usage\":"));
    append_usage(completion, out);
    ew_buf_append_char(out, '}');
}

// ---- chunks -------------------------------------------------------------------------------------------------------

static void append_delta(struct ew_choice *choice, struct ew_buf *out)
{
    const char *comma = "";

    ew_buf_append_str(out, EW_STR("\"delta\":{"));
    if (!choice->role_written) {
        ew_buf_append_str(out, EW_STR("\"role\":\"assistant\""));
        choice->role_written = true;
        comma = ",";
    }
    if (choice->reasoning.len) {
        ew_buf_printf(out, "%s\"reasoning_content\":", comma);
        ew_buf_append_json(out, ew_buf_str(&choice->reasoning));
        comma = ",";
    }
    if (choice->content.len || choice->logprobs[0].len) {
        ew_buf_printf(out, "%s\"content\":", comma);
        ew_buf_append_json(out, ew_buf_str(&choice->content));
        comma = ",";
    }
    if (choice->tool_calls.len) {
        ew_buf_append_str(out, ew_str_of(comma));
        append_calls(choice, out);
    }
    ew_buf_append_char(out, '}');
}

static void append_chunk_end(const struct ew_completion *completion, struct ew_buf *out)
{
    if (completion->params.include_usage)
        ew_buf_append_str(out, EW_STR(",\"usage\":null"));
    ew_buf_append_str(out, EW_STR("}\n\n"));
}

static void append_chunk_head(const struct ew_completion *completion, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("data: "));
    append_head(completion, is_chat(completion) ? "chat.completion.chunk" : "text_completion", out);
}

void ew_reply_chunk(struct ew_choice *choice, const char *finish, struct ew_buf *out)
{
    const struct ew_completion *completion = choice->completion;
    struct ew_buf *parts[] = {&choice->content, &choice->reasoning, &choice->tool_calls, &choice->logprobs[0],
                              &choice->logprobs[1], &choice->logprobs[2], &choice->logprobs[3]};

    if (!finish && !choice->content.len && !choice->reasoning.len && !choice->tool_calls.len &&
        !choice->logprobs[0].len)
        return;
    append_chunk_head(completion, out);
    ew_buf_printf(out, ",\"choices\":[{\"index\":%u,", choice->index);
    if (is_chat(completion))
        append_delta(choice, out);
    else
        append_text(choice, out);
    ew_buf_append_str(out, EW_STR(",\"logprobs\":"));
    if (choice->logprobs[0].len)
        append_logprobs(choice, out);
    else
        ew_buf_append_str(out, EW_STR("null"));
    if (finish)
        ew_buf_printf(out, ",\"finish_reason\":\"%s\"}]", finish);
    else
        ew_buf_append_str(out, EW_STR(",\"finish_reason\":null}]"));
    append_chunk_end(completion, out);
    for (size_t i = 0; i < EW_COUNT_OF(parts); i++) {
        out->failed |= !ew_buf_ok(parts[i]);
        ew_buf_reset(parts[i]);
    }
}

void ew_reply_usage_chunk(const struct ew_completion *completion, struct ew_buf *out)
{
    append_chunk_head(completion, out);
    ew_buf_append_str(out, EW_STR(",\"choices\":[],\"usage\":"));
    append_usage(completion, out);
    ew_buf_append_str(out, EW_STR("}\n\n"));
}
