// run: one answer.

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "cli/conversation.h"
#include "cli/generate.h"

// far beyond any context; keeps a mistaken `< /dev/zero` from eating the memory
#define PROMPT_BYTES_MAX ((size_t)256 << 20)
#define ANSWER_BYTES_MAX ((size_t)1 << 30)

struct answer {
    const struct ew_runtime *runtime;
    bool json, ids, terminal;
    struct ew_reasoning split;
    struct ew_buf reasoning, content; // all of it for --json; otherwise what is not yet printed
    struct ew_buf tokens, logprobs;   // --json: the insides of the two arrays
};

static int read_stdin(struct ew_buf *text, struct ew_error *err)
{
    char block[65536];
    ssize_t len;

    while ((len = read(STDIN_FILENO, block, sizeof(block))) > 0)
        ew_buf_append(text, block, (size_t)len);
    if (len < 0)
        return errno == EINTR ? ew_fail(err, EW_ERR_CANCELLED, "interrupted while reading the prompt")
                              : ew_fail_errno(err, EW_ERR_IO, "cannot read the prompt from standard input");
    return ew_buf_ok(text) ? EW_OK
                           : ew_fail(err, EW_ERR_LIMIT, "the prompt is larger than %zu MB", PROMPT_BYTES_MAX >> 20);
}

static int parse_ids(const char *text, int32_t n_vocab, struct ew_ids *ids, struct ew_error *err)
{
    while (*text) {
        size_t len = strcspn(text, " ,\t\n");
        int64_t id;

        if (len && (!ew_str_to_i64((struct ew_str){text, len}, &id) || id < 0 || id >= n_vocab))
            return ew_fail(err, EW_ERR_USAGE, "--ids: \"%.*s\" is not a token id below %d", (int)len, text, n_vocab);
        if (len && ew_ids_push(ids, (int32_t)id) != EW_OK)
            return ew_fail_memory(err, ids->count * sizeof(*ids->ids), "token ids");
        text += len + (text[len] != '\0');
    }
    return EW_OK;
}

// The conversation as the template wants it: --messages FILE as it stands, or a system message and the prompt.
static int conversation(const struct ew_args *args, struct ew_str prompt, struct ew_arena *arena,
                        const struct ew_json **out, struct ew_error *err)
{
    const char *file = ew_args_str(args, "messages", NULL), *system = ew_args_str(args, "system", NULL);
    struct ew_conversation messages = {0};
    int code = EW_OK;

    if (file)
        return ew_json_parse_file(arena, file, PROMPT_BYTES_MAX, out, err);
    if (system)
        code = ew_conversation_set_system(&messages, ew_str_of(system), err);
    if (code == EW_OK)
        code = ew_conversation_add(&messages, "user", prompt, (struct ew_str){0}, err);
    if (code == EW_OK)
        code = ew_conversation_json(&messages, arena, out, err);
    ew_conversation_fini(&messages);
    return code;
}

static int render(const struct ew_runtime *runtime, const struct ew_args *args, struct ew_str prompt,
                  struct ew_buf *rendered, struct ew_ids *ids, struct ew_error *err)
{
    const struct ew_json *inputs;
    struct ew_arena arena;
    int code;

    if (!runtime->chat) {
        *err = runtime->chat_error;
        return runtime->chat_error.code;
    }
    ew_arena_init(&arena, 8 * PROMPT_BYTES_MAX);
    code = conversation(args, prompt, &arena, &inputs, err);
    if (code == EW_OK)
        code = ew_chat_render(runtime->chat, inputs, rendered, err);
    if (code == EW_OK)
        code = ew_chat_tokenize(runtime->chat, runtime->tok, ew_buf_str(rendered), ids, err);
    ew_arena_fini(&arena);
    return code;
}

static int text_prompt(const struct ew_runtime *runtime, const struct ew_args *args, struct ew_buf *rendered,
                       struct ew_ids *ids, struct ew_error *err)
{
    const char *given = ew_args_str(args, "prompt", NULL);
    struct ew_buf text;
    int code = EW_OK;

    if (!runtime->tok) {
        *err = runtime->tok_error;
        return runtime->tok_error.code;
    }
    ew_buf_init(&text, PROMPT_BYTES_MAX);
    if (given)
        ew_buf_append_str(&text, ew_str_of(given));
    else if (!ew_args_has(args, "messages"))
        code = read_stdin(&text, err);
    if (code == EW_OK && ew_args_flag(args, "raw"))
        code = ew_tokenize(runtime->tok, ew_buf_str(&text), true, true, ids, err);
    else if (code == EW_OK)
        code = render(runtime, args, ew_buf_str(&text), rendered, ids, err);
    ew_buf_fini(&text);
    return code;
}

static void print_piece(struct answer *answer)
{
    if (answer->reasoning.len) {
        fprintf(stderr, answer->terminal ? "\x1b[2m%.*s\x1b[0m" : "%.*s", (int)answer->reasoning.len,
                answer->reasoning.ptr);
        ew_buf_reset(&answer->reasoning);
    }
    if (answer->content.len) {
        fwrite(answer->content.ptr, 1, answer->content.len, stdout);
        fflush(stdout);
        ew_buf_reset(&answer->content);
    }
}

static void keep_token(struct answer *answer, const struct ew_event *event)
{
    ew_buf_printf(&answer->tokens, "%s%d", answer->tokens.len ? ", " : "", event->token);
    if (!event->n_logprobs)
        return;
    ew_buf_append_str(&answer->logprobs, answer->logprobs.len ? EW_STR(", [") : EW_STR("["));
    for (uint32_t i = 0; i < event->n_logprobs; i++)
        ew_buf_printf(&answer->logprobs, "%s{\"id\": %d, \"logprob\": %.6g}", i ? ", " : "", event->logprobs[i].token,
                      (double)event->logprobs[i].logprob);
    ew_buf_append_char(&answer->logprobs, ']');
}

static bool on_event(void *ctx, const struct ew_event *event)
{
    struct answer *answer = ctx;

    if (event->kind == EW_EVENT_TOKEN && answer->json)
        keep_token(answer, event);
    if (event->kind == EW_EVENT_TOKEN && answer->ids && !answer->json) {
        printf("%d ", event->token);
        fflush(stdout);
    }
    if (answer->ids)
        return !ferror(stdout);
    ew_reasoning_push(&answer->split, event->text, &answer->reasoning, &answer->content);
    if (event->kind == EW_EVENT_FINISHED)
        ew_reasoning_end(&answer->split, &answer->reasoning, &answer->content);
    if (!answer->json)
        print_piece(answer);
    return !ferror(stdout); // whoever read our output has left
}

static double rate(uint64_t count, double seconds)
{
    return seconds > 0 ? (double)count / seconds : 0;
}

static int print_json(struct answer *answer, const struct ew_event *last, const struct ew_sampling *sampling,
                      struct ew_error *err)
{
    struct ew_engine_stats stats;
    struct ew_buf out;
    int code = EW_OK;

    ew_engine_stats(answer->runtime->engine, &stats);
    ew_buf_init(&out, ANSWER_BYTES_MAX);
    ew_buf_append_str(&out, EW_STR("{\"model\": "));
    ew_buf_append_json(&out, ew_str_of(answer->runtime->model->path));
    ew_buf_append_str(&out, EW_STR(", \"text\": "));
    ew_buf_append_json(&out, ew_buf_str(&answer->content));
    ew_buf_append_str(&out, EW_STR(", \"reasoning\": "));
    if (answer->reasoning.len)
        ew_buf_append_json(&out, ew_buf_str(&answer->reasoning));
    else
        ew_buf_append_str(&out, EW_STR("null"));
    ew_buf_printf(&out, ", \"ids\": [%s]", answer->tokens.len ? answer->tokens.ptr : "");
    if (answer->logprobs.len)
        ew_buf_printf(&out, ", \"logprobs\": [%s]", answer->logprobs.ptr);
    ew_buf_printf(&out, ", \"finish\": \"%s\", \"prompt_tokens\": %u, \"gen_tokens\": %u, \"seed\": %llu",
                  ew_finish_name(last->finish), last->n_prompt, last->n_new, (unsigned long long)sampling->seed);
    ew_buf_printf(&out, ", \"backend\": \"%s\", \"load_s\": %.4f, \"ttft_ms\": %.3f", stats.backend_text, stats.load_s,
                  last->prefill_s * 1e3);
    ew_buf_printf(&out, ", \"prefill_tok_s\": %.2f, \"decode_tok_s\": %.2f}\n",
                  rate(last->n_prompt - last->n_reused, last->prefill_s),
                  rate(last->n_new ? last->n_new - 1 : 0, last->decode_s));
    if (!ew_buf_ok(&out) || !ew_buf_ok(&answer->content) || !ew_buf_ok(&answer->tokens) ||
        !ew_buf_ok(&answer->logprobs))
        code = ew_fail_memory(err, out.len, "the answer");
    else
        fwrite(out.ptr, 1, out.len, stdout);
    ew_buf_fini(&out);
    return code;
}

static void report(const struct ew_event *last)
{
    ew_log(EW_LOG_INFO, "%u prompt tokens in %.3f s (%.1f tok/s), %u new in %.3f s (%.1f tok/s), finished by %s",
           last->n_prompt, last->prefill_s, rate(last->n_prompt, last->prefill_s), last->n_new, last->decode_s,
           rate(last->n_new ? last->n_new - 1 : 0, last->decode_s), ew_finish_name(last->finish));
    if (last->finish == EW_FINISH_CONTEXT)
        ew_log(EW_LOG_WARN, "the context is full after %u tokens, so the answer ends here; --ctx makes it larger",
               last->n_prompt + last->n_new);
}

static int answer_prompt(struct answer *answer, const struct ew_args *args, const struct ew_ids *ids,
                         struct ew_str prompt_tail, struct ew_error *err)
{
    const struct ew_runtime *runtime = answer->runtime;
    static const struct ew_chat_caps no_template = {0};
    bool through_template = runtime->chat && prompt_tail.len > 0;
    struct ew_sampling_args sampling;
    struct ew_request request;
    struct ew_event last;
    int code = ew_sampling_of(&sampling, args, runtime->model, err);

    if (code != EW_OK)
        return code;
    request = (struct ew_request){
        .ids = ids->ids,
        .n_ids = (uint32_t)ids->count,
        .n_max = (uint32_t)ew_args_int(args, "n-predict", 0),
        .sampling = sampling.sampling,
        .n_logprobs = (uint32_t)ew_args_int(args, "logprobs", 0),
        .ignore_eos = ew_args_flag(args, "ignore-eos"),
    };
    ew_request_show_reasoning(&request, runtime);
    ew_reasoning_init(&answer->split, through_template ? ew_chat_format_caps(runtime->chat) : &no_template,
                      prompt_tail);
    code = ew_generate(runtime->engine, &request, on_event, answer, &last, err);
    ew_reasoning_fini(&answer->split);
    if (code != EW_OK)
        return code;
    report(&last);
    if (answer->json)
        return print_json(answer, &last, &sampling.sampling, err);
    putchar('\n');
    return last.finish == EW_FINISH_CANCELLED ? ew_fail(err, EW_ERR_CANCELLED, "interrupted") : EW_OK;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    const char *ids_text = ew_args_str(args, "ids", NULL);
    struct ew_runtime runtime;
    struct answer answer;
    struct ew_buf rendered;
    struct ew_ids ids = {0};
    int code = ew_runtime_open(&runtime, args, err);

    if (code != EW_OK)
        return code;
    answer = (struct answer){.runtime = &runtime,
                             .json = ew_args_flag(args, "json"),
                             .ids = ids_text != NULL,
                             .terminal = isatty(STDERR_FILENO)};
    ew_buf_init(&answer.reasoning, ANSWER_BYTES_MAX);
    ew_buf_init(&answer.content, ANSWER_BYTES_MAX);
    ew_buf_init(&answer.tokens, ANSWER_BYTES_MAX);
    ew_buf_init(&answer.logprobs, ANSWER_BYTES_MAX);
    ew_buf_init(&rendered, PROMPT_BYTES_MAX);
    if (ids_text)
        code = parse_ids(ids_text, (int32_t)runtime.model->shape.n_vocab, &ids, err);
    else
        code = text_prompt(&runtime, args, &rendered, &ids, err);
    if (code == EW_OK)
        code = answer_prompt(&answer, args, &ids, ew_buf_str(&rendered), err);
    ew_ids_fini(&ids);
    ew_buf_fini(&rendered);
    ew_buf_fini(&answer.logprobs);
    ew_buf_fini(&answer.tokens);
    ew_buf_fini(&answer.content);
    ew_buf_fini(&answer.reasoning);
    ew_runtime_close(&runtime);
    return code;
}

static const struct ew_opt g_own[] = {
    {"prompt", 'p', EW_OPT_STRING, "TEXT", "the prompt; default standard input"},
    {"system", 0, EW_OPT_STRING, "TEXT", "a system message before it"},
    {"messages", 0, EW_OPT_STRING, "FILE",
     "a conversation as JSON instead: {messages, tools, ...} as chat templates take it"},
    {"raw", 0, EW_OPT_FLAG, NULL, "continue the prompt as it stands, without the chat template"},
    {"ids", 0, EW_OPT_STRING, "\"1 2 3\"", "token ids in, token ids out; for models without a tokenizer"},
    {"logprobs", 0, EW_OPT_INT, "N", "with --json: the N likeliest tokens at each place", NULL, 0, 100},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model,  g_own,          ew_opts_sampling,
                                                 ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_run = {
    .name = "run",
    .usage = "run -m MODEL [-p TEXT] [OPTIONS]",
    .summary = "Answer one prompt",
    .details = "The prompt goes through the model's chat template unless --raw is given. The answer goes to standard "
               "output as it\n"
               "is made; reasoning that the model marks as such goes to standard error. Ctrl-C stops the answer.",
    .options = g_options,
    .run = run,
};
