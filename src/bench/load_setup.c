// What has to be known before the first request that counts: the model's name and the length of prompts in tokens.

#include <stdio.h>

#include "base/clock.h"
#include "bench/load_run.h"
#include "format/json.h"

#define PROBE_WORDS_FEW 8
#define PROBE_WORDS_MANY 40
#define ANSWER_MAX ((size_t)16 << 20)
#define USABLE_MIN                                                                                                     \
    64 // fewer words of one token each make dull prompts: then all are used, and the count is an estimate

struct wait {
    bool done;
    struct ew_load_client *client;
    struct ew_load_result *result;
    const struct ew_load_callbacks *callbacks;
};

static void on_done(void *ctx, const struct ew_load_result *result)
{
    struct wait *wait = ctx;

    *wait->result = *result;
    wait->done = true;
}

static void on_text(void *ctx, const struct ew_load_answer *piece, double gap_s)
{
    struct wait *wait = ctx;

    wait->callbacks->text(wait->callbacks->ctx, piece, gap_s);
}

static void on_tick(uv_timer_t *timer)
{
    struct wait *wait = timer->data;

    ew_load_client_check(wait->client, ew_clock_s());
}

int ew__load_ask(struct ew_load_run *run, struct ew_load_client *client, const char *path, const struct ew_str *body,
                 const struct ew_load_callbacks *callbacks, struct ew_load_result *out, struct ew_error *err)
{
    struct wait wait = {.client = client, .result = out, .callbacks = callbacks};
    struct ew_load_callbacks own = {.text = callbacks ? on_text : NULL, .done = on_done, .ctx = &wait};
    int rc = ew_load_begin(client, path, body, ew_clock_s(), run->options->timeout_s, &own, err);

    if (rc < 0)
        return rc;
    run->tick.data = &wait;
    uv_timer_start(&run->tick, on_tick, EW_LOAD_TICK_MS, EW_LOAD_TICK_MS);
    while (!wait.done) {
        uv_run(&run->loop, UV_RUN_ONCE);
        if (!wait.done && run->options->interrupted && run->options->interrupted())
            ew_load_client_stop(client);
    }
    uv_timer_stop(&run->tick);
    return out->outcome == EW_LOAD_STOPPED ? ew_fail(err, EW_ERR_CANCELLED, "interrupted") : EW_OK;
}

// As ew__load_ask, and the answer must be a success.
static int must_ask(struct ew_load_run *run, struct ew_load_client *client, const char *path, const struct ew_str *body,
                    struct ew_load_result *result, struct ew_error *err)
{
    int rc = ew__load_ask(run, client, path, body, NULL, result, err);

    if (rc < 0 || result->outcome == EW_LOAD_OK)
        return rc;
    if (result->status)
        ew_fail(err, EW_ERR_IO, "%s answers %s with status %d: %s", run->options->url, path, result->status,
                result->message);
    else
        ew_fail(err, EW_ERR_IO, "%s does not answer %s: %s", run->options->url, path, result->message);
    if (result->outcome == EW_LOAD_REFUSED)
        return ew_remedy(err, EW_ERR_IO, "Start the server, or mend --url");
    if (result->status == 401 || result->status == 403)
        return ew_remedy(err, EW_ERR_IO, "Give its key in a file, by --api-key-file");
    if (result->status == 400 && strstr(result->message, "ignore_eos"))
        return ew_remedy(err, EW_ERR_IO, "Add --stop-at-eos: this server does not know ignore_eos");
    return EW_ERR_IO;
}

static int find_model(struct ew_load_run *run, struct ew_load_client *client, struct ew_error *err)
{
    struct ew_load_report *report = run->report;
    struct ew_load_result result;
    const struct ew_json *root;
    struct ew_arena arena;
    struct ew_str id = ew_str_of(run->options->model);
    int rc = EW_OK;

    ew_arena_init(&arena, ANSWER_MAX * 4);
    if (!id.ptr) {
        rc = must_ask(run, client, "/v1/models", NULL, &result, err);
        if (rc == 0)
            rc = ew_json_parse(&arena, ew_load_client_body(client), &root, err);
        if (rc == 0)
            id = ew_json_str(ew_json_get(ew_json_at(ew_json_get(root, "data"), 0), "id"), "");
    }
    if (rc == 0 && (id.len == 0 || id.len >= sizeof(report->model))) {
        ew_fail(err, EW_ERR_USAGE, "%s", id.len ? "the model's name is too long" : "the server lists no models");
        rc = ew_remedy(err, EW_ERR_USAGE, "Say --model NAME");
    }
    if (rc == 0)
        snprintf(report->model, sizeof(report->model), EW_STR_FMT, (int)id.len, id.ptr);
    ew_arena_fini(&arena);
    return rc;
}

// The two forms of /tokenize that are in use: llama.cpp's and ours, and vLLM's.
static void tokenize_body(const struct ew_load_run *run, bool content, struct ew_str word, struct ew_buf *out)
{
    ew_buf_reset(out);
    ew_buf_append_str(out, content ? EW_STR("{\"add_special\": false, \"content\": \"")
                                   : EW_STR("{\"add_special_tokens\": false, \"prompt\": \""));
    ew_buf_printf(out, EW_STR_FMT " " EW_STR_FMT "\"", EW_STR_ARG(word), EW_STR_ARG(word));
    if (!content) {
        ew_buf_append_str(out, EW_STR(", \"model\": "));
        ew_buf_append_json(out, ew_str_of(run->report->model));
    }
    ew_buf_append_char(out, '}');
}

// Tokens of "word word", or 0 where the server does not tell.
static int count_tokens(struct ew_load_run *run, struct ew_load_client *client, bool content, struct ew_str word,
                        uint32_t *count, struct ew_error *err)
{
    struct ew_load_result result;
    const struct ew_json *root;
    struct ew_arena arena;
    struct ew_buf body;
    struct ew_str view;
    int rc;

    *count = 0;
    ew_buf_init(&body, 4096);
    ew_arena_init(&arena, ANSWER_MAX);
    tokenize_body(run, content, word, &body);
    view = ew_buf_str(&body);
    rc = ew__load_ask(run, client, "/tokenize", &view, NULL, &result, err);
    if (rc == 0 && result.outcome == EW_LOAD_OK &&
        ew_json_parse(&arena, ew_load_client_body(client), &root, NULL) == 0) {
        const struct ew_json *tokens = ew_json_get(root, "tokens");

        *count = tokens && tokens->type == EW_JSON_T_ARRAY ? tokens->count : 0;
    }
    ew_arena_fini(&arena);
    ew_buf_fini(&body);
    return rc;
}

// Keeps the words that are one token each, at the beginning of a text and within: those whose repetition has the
// fewest.
static int choose_words(struct ew_load_run *run, struct ew_load_client *client, struct ew_error *err)
{
    uint32_t counts[EW_LOAD_WORDS], least = UINT32_MAX, n_usable = 0;
    uint16_t usable[EW_LOAD_WORDS];
    bool content = true;
    int rc = count_tokens(run, client, content, ew_load_word(0), &counts[0], err);

    if (rc == 0 && counts[0] == 0) {
        content = false;
        rc = count_tokens(run, client, content, ew_load_word(0), &counts[0], err);
    }
    if (rc < 0 || counts[0] == 0)
        return rc;
    for (uint32_t i = 0; i < EW_LOAD_WORDS && rc == 0; i++) {
        rc = count_tokens(run, client, content, ew_load_word(i), &counts[i], err);
        least = counts[i] && counts[i] < least ? counts[i] : least;
    }
    for (uint32_t i = 0; i < EW_LOAD_WORDS && rc == 0; i++)
        if (counts[i] == least)
            usable[n_usable++] = (uint16_t)i;
    if (rc < 0 || n_usable < USABLE_MIN)
        return rc;
    memcpy(run->words.usable, usable, n_usable * sizeof(*usable));
    run->words.n_usable = n_usable;
    run->words.exact = true;
    return EW_OK;
}

static int probe(struct ew_load_run *run, struct ew_load_client *client, uint32_t n_words, int64_t *tokens,
                 struct ew_error *err)
{
    struct ew_load_result result;
    struct ew_load_answer answer;
    struct ew_buf prompt, body;
    struct ew_arena arena;
    struct ew_str view;
    int rc;

    *tokens = -1;
    ew_buf_init(&prompt, ANSWER_MAX);
    ew_buf_init(&body, ANSWER_MAX);
    ew_arena_init(&arena, ANSWER_MAX * 4);
    if (run->options->chat)
        ew_buf_append_str(&prompt, EW_STR("{\"role\": \"user\", \"content\": \""));
    ew_load_words_append(&run->words, run->options->seed, UINT64_MAX - n_words, n_words, true, &prompt);
    if (run->options->chat)
        ew_buf_append_str(&prompt, EW_STR("\"}"));
    ew__load_body(run, ew_buf_str(&prompt), 1, false, &body);
    view = ew_buf_str(&body);
    rc = ew_buf_ok(&prompt) && ew_buf_ok(&body) ? 0 : ew_fail_memory(err, n_words, "a prompt");
    if (rc == 0)
        rc = must_ask(run, client, run->path, &view, &result, err);
    if (rc == 0)
        rc = ew_load_answer_parse(&arena, ew_load_client_body(client), &answer, err);
    if (rc == 0)
        *tokens = answer.prompt_tokens;
    ew_arena_fini(&arena);
    ew_buf_fini(&body);
    ew_buf_fini(&prompt);
    return rc;
}

// Two prompts tell what a word costs and what the template adds.
static int calibrate(struct ew_load_run *run, struct ew_load_client *client, struct ew_error *err)
{
    struct ew_load_words *words = &run->words;
    int64_t few, many;
    int rc = probe(run, client, PROBE_WORDS_FEW, &few, err);

    if (rc == 0)
        rc = probe(run, client, PROBE_WORDS_MANY, &many, err);
    if (rc < 0)
        return rc;
    if (few > 0 && many > few) {
        words->tokens_per_word = (double)(many - few) / (PROBE_WORDS_MANY - PROBE_WORDS_FEW);
        words->overhead = (double)few - PROBE_WORDS_FEW * words->tokens_per_word;
    }
    words->exact = words->exact && words->tokens_per_word == 1 && few > 0;
    run->report->tokens_per_word = words->tokens_per_word;
    run->report->exact_prompts = words->exact;
    if (words->overhead + 1 > run->options->n_prompt) {
        ew_fail(err, EW_ERR_USAGE, "--prompt-tokens %u: the server's template alone takes %.0f tokens",
                run->options->n_prompt, words->overhead);
        return ew_remedy(err, EW_ERR_USAGE, "Ask for more than that, or add --endpoint completions");
    }
    return EW_OK;
}

int ew__load_setup(struct ew_load_run *run, struct ew_error *err)
{
    struct ew_load_client *client;
    int rc = ew_load_client_create(&run->loop, &run->target, &client, err);

    if (rc < 0)
        return rc;
    ew_load_words_init(&run->words);
    rc = find_model(run, client, err);
    if (rc == 0)
        rc = choose_words(run, client, err);
    if (rc == 0)
        rc = calibrate(run, client, err);
    ew_load_client_destroy(client);
    return rc;
}

void ew__load_body(const struct ew_load_run *run, struct ew_str prompt, uint32_t n_gen, bool stream, struct ew_buf *out)
{
    const struct ew_load_options *options = run->options;

    ew_buf_reset(out);
    ew_buf_append_str(out, EW_STR("{\"model\": "));
    ew_buf_append_json(out, ew_str_of(run->report->model));
    ew_buf_printf(out, ", \"max_tokens\": %u, \"temperature\": %.9g", n_gen, options->temperature);
    if (options->ignore_eos)
        ew_buf_append_str(out, EW_STR(", \"ignore_eos\": true"));
    if (stream)
        ew_buf_append_str(out, EW_STR(", \"stream\": true, \"stream_options\": {\"include_usage\": true}"));
    ew_buf_append_str(out, options->chat ? EW_STR(", \"messages\": [") : EW_STR(", \"prompt\": \""));
    ew_buf_append_str(out, prompt);
    ew_buf_append_str(out, options->chat ? EW_STR("]}") : EW_STR("\"}"));
}
