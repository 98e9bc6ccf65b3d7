// chat: a conversation in the terminal, or through pipes.
//
// The whole conversation is rendered anew each time; the engine keeps what it computed before, and computes only the
// rest.

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "cli/conversation.h"
#include "cli/generate.h"
#include "cli/lineedit.h"

#define TEXT_BYTES_MAX ((size_t)256 << 20)
#define ANSWER_ROOM 256 // tokens that are kept free for an answer, or a quarter of a small context

struct chat {
    struct ew_runtime runtime;
    struct ew_conversation conversation;
    struct ew_sampling_args sampling;
    struct ew_lineedit edit;
    uint32_t n_max;
    bool ignore_eos, is_terminal; // is_terminal: answers go to one
    bool is_leaving, was_ctrl_c;  // was_ctrl_c: the next one leaves
    struct ew_buf prompt;
    struct ew_ids ids;
    struct ew_event last;         // of the last answer
    uint32_t n_answers;
};

// One answer while it is made.
struct answer {
    struct chat *chat;
    struct ew_reasoning split;
    struct ew_buf reasoning, content;            // all of it
    size_t reasoning_printed, content_printed;
};

// Printing. What the model says may hold escape codes, from its training or its prompt: a terminal must not obey them.

static void print_text(FILE *to, struct ew_str text, bool is_terminal)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];

        if (is_terminal && (c < 0x20 || c == 0x7F) && c != '\n' && c != '\t')
            fprintf(to, "^%c", c ^ 0x40);
        else
            putc(c, to);
    }
}

static void print_answer(struct answer *answer)
{
    bool is_terminal = answer->chat->is_terminal;
    struct ew_str reasoning = {answer->reasoning.ptr + answer->reasoning_printed,
                               answer->reasoning.len - answer->reasoning_printed};
    struct ew_str content = {answer->content.ptr + answer->content_printed,
                             answer->content.len - answer->content_printed};

    if (reasoning.len) {
        fputs(is_terminal ? "\x1b[2m" : "", stdout);
        print_text(is_terminal ? stdout : stderr, reasoning, is_terminal);
        fputs(is_terminal ? "\x1b[0m" : "", stdout);
        answer->reasoning_printed = answer->reasoning.len;
    }
    if (content.len) {
        if (is_terminal && answer->content_printed == 0 && answer->reasoning.len)
            fputs("\n\n", stdout);
        print_text(stdout, content, is_terminal);
        answer->content_printed = answer->content.len;
    }
    fflush(stdout);
}

static void note(const struct chat *chat, const char *text)
{
    fprintf(chat->is_terminal ? stdout : stderr, "(%s)\n", text);
}

static void notes_about_end(const struct chat *chat)
{
    char text[200];

    if (chat->last.finish == EW_FINISH_CANCELLED)
        note(chat, "stopped");
    if (chat->last.finish == EW_FINISH_CONTEXT) {
        snprintf(text, sizeof(text),
                 "the context is full after %u tokens, so the answer ends here; --ctx makes it larger",
                 chat->last.n_prompt + chat->last.n_new);
        note(chat, text);
    }
}

// One turn.

static bool on_event(void *ctx, const struct ew_event *event)
{
    struct answer *answer = ctx;

    ew_reasoning_push(&answer->split, event->text, &answer->reasoning, &answer->content);
    if (event->kind == EW_EVENT_FINISHED)
        ew_reasoning_end(&answer->split, &answer->reasoning, &answer->content);
    print_answer(answer);
    return !ferror(stdout) && ew_buf_ok(&answer->content) && ew_buf_ok(&answer->reasoning);
}

// Renders the conversation; while it leaves too little of the context, the oldest turns go.
static int prepare(struct chat *chat, struct ew_error *err)
{
    struct ew_engine_stats stats;
    uint32_t room, dropped = 0, n;
    char text[120];
    int code;

    ew_engine_stats(chat->runtime.engine, &stats);
    room = EW_MIN(ANSWER_ROOM, stats.context_max / 4);
    for (;;) {
        code = ew_conversation_tokens(&chat->conversation, chat->runtime.chat, chat->runtime.tok, &chat->prompt,
                                      &chat->ids, err);
        if (code != EW_OK || chat->ids.count + room <= stats.context_max)
            break;
        n = ew_conversation_drop_oldest(&chat->conversation);
        if (n == 0)
            break;
        dropped += n;
    }
    if (dropped) {
        snprintf(text, sizeof(text), "the context of %u tokens is full: the oldest %u messages are dropped",
                 stats.context_max, dropped);
        note(chat, text);
    }
    return code;
}

static int generate(struct chat *chat, struct answer *answer, struct ew_error *err)
{
    struct ew_request request = {
        .ids = chat->ids.ids,
        .n_ids = (uint32_t)chat->ids.count,
        .n_max = chat->n_max,
        .sampling = chat->sampling.sampling,
        .ignore_eos = chat->ignore_eos,
    };
    int code;

    ew_request_show_reasoning(&request, &chat->runtime);
    ew_reasoning_init(&answer->split, ew_chat_format_caps(chat->runtime.chat), ew_buf_str(&chat->prompt));
    code = ew_generate(chat->runtime.engine, &request, on_event, answer, &chat->last, err);
    ew_reasoning_fini(&answer->split);
    chat->n_answers += code == EW_OK;
    if (answer->content_printed || answer->reasoning_printed || code == EW_OK)
        putchar('\n');
    return code;
}

// What was said is kept, also where it was stopped; a turn without an answer is undone.
static int keep_answer(struct chat *chat, const struct answer *answer, struct ew_error *err)
{
    if (answer->content.len == 0 && answer->reasoning.len == 0) {
        ew_conversation_drop_last(&chat->conversation);
        return EW_OK;
    }
    return ew_conversation_add(&chat->conversation, "assistant", ew_buf_str(&answer->content),
                               ew_buf_str(&answer->reasoning), err);
}

static int answer_text(struct chat *chat, struct ew_str text, struct ew_error *err)
{
    struct answer answer = {.chat = chat};
    int code = ew_conversation_add(&chat->conversation, "user", text, (struct ew_str){0}, err);

    if (code != EW_OK)
        return code;
    ew_buf_init(&answer.reasoning, TEXT_BYTES_MAX);
    ew_buf_init(&answer.content, TEXT_BYTES_MAX);
    code = prepare(chat, err);
    if (code == EW_OK)
        code = generate(chat, &answer, err);
    if (code == EW_OK) {
        code = keep_answer(chat, &answer, err);
        notes_about_end(chat);
        chat->was_ctrl_c = chat->last.finish == EW_FINISH_CANCELLED;
    } else {
        ew_conversation_drop_last(&chat->conversation);
        ew_log_error(err); // the conversation goes on
        code = EW_OK;
    }
    ew_interrupt_reset();
    ew_buf_fini(&answer.reasoning);
    ew_buf_fini(&answer.content);
    return code;
}

// Commands.

static int do_reset(struct chat *chat, struct ew_str argument, struct ew_error *err)
{
    ew_conversation_reset(&chat->conversation);
    note(chat, "the conversation begins anew");
    return EW_OK;
}

static double rate(uint64_t count, double seconds)
{
    return seconds > 0 ? (double)count / seconds : 0;
}

static int do_stats(struct chat *chat, struct ew_str argument, struct ew_error *err)
{
    const struct ew_event *last = &chat->last;
    struct ew_engine_stats stats;

    ew_engine_stats(chat->runtime.engine, &stats);
    printf("model    %s, %s\n", chat->runtime.model->path, stats.backend_text);
    printf("context  %u of %u tokens, %u messages\n", chat->n_answers ? last->n_prompt + last->n_new : 0,
           stats.context_max, chat->conversation.count);
    if (!chat->n_answers)
        return EW_OK;
    printf("prompt   %u tokens, %u of them reused, %u computed in %.3f s (%.1f tok/s)\n", last->n_prompt,
           last->n_reused, last->n_prompt - last->n_reused, last->prefill_s,
           rate(last->n_prompt - last->n_reused, last->prefill_s));
    printf("answer   %u tokens in %.3f s (%.1f tok/s), ended by %s\n", last->n_new, last->decode_s,
           rate(last->n_new ? last->n_new - 1 : 0, last->decode_s), ew_finish_name(last->finish));
    return EW_OK;
}

static int do_system(struct chat *chat, struct ew_str argument, struct ew_error *err)
{
    int code = ew_conversation_set_system(&chat->conversation, argument, err);

    if (code == EW_OK)
        note(chat, argument.len ? "the system message is set" : "there is no system message now");
    return code;
}

static int do_exit(struct chat *chat, struct ew_str argument, struct ew_error *err)
{
    chat->is_leaving = true;
    return EW_OK;
}

static int do_help(struct chat *chat, struct ew_str argument, struct ew_error *err);

static const struct {
    const char *name, *usage, *help;
    int (*run)(struct chat *chat, struct ew_str argument, struct ew_error *err);
} g_commands[] = {
    {"/help", "/help", "this text", do_help},
    {"/reset", "/reset", "forget the conversation, but not the system message", do_reset},
    {"/stats", "/stats", "tokens and speed of the last answer", do_stats},
    {"/system", "/system TEXT", "set the system message; without TEXT there is none", do_system},
    {"/exit", "/exit", "leave, as Ctrl-D does", do_exit},
};

static int do_help(struct chat *chat, struct ew_str argument, struct ew_error *err)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_commands); i++)
        printf("%-16s%s\n", g_commands[i].usage, g_commands[i].help);
    puts("A line that ends in \\ goes on in the next; \"\"\" begins and ends several lines.\n"
         "Ctrl-C stops an answer; twice leaves.");
    return EW_OK;
}

static int run_command(struct chat *chat, struct ew_str line, struct ew_error *err)
{
    size_t len = 0;
    struct ew_str name, argument;

    while (len < line.len && line.ptr[len] != ' ' && line.ptr[len] != '\n')
        len++;
    name = (struct ew_str){line.ptr, len};
    argument = (struct ew_str){line.ptr + len, line.len - len};
    while (argument.len && argument.ptr[0] == ' ')
        argument = (struct ew_str){argument.ptr + 1, argument.len - 1};
    for (size_t i = 0; i < EW_COUNT_OF(g_commands); i++)
        if (ew_str_is(name, g_commands[i].name))
            return g_commands[i].run(chat, argument, err);
    fputs("there is no command ", stderr);
    print_text(stderr, name, true);
    fputs("; /help lists them, and a space before it makes it text\n", stderr);
    return EW_OK;
}

// The conversation.

static bool is_blank(struct ew_str text)
{
    for (size_t i = 0; i < text.len; i++)
        if (!strchr(" \t\n", text.ptr[i]))
            return false;
    return true;
}

static int handle_text(struct chat *chat, struct ew_str text, struct ew_error *err)
{
    int code = EW_OK;

    chat->was_ctrl_c = false;
    if (is_blank(text))
        return EW_OK;
    if (chat->edit.is_terminal)
        ew_lineedit_remember(&chat->edit, text);
    code = text.ptr[0] == '/' ? run_command(chat, text, err) : answer_text(chat, text, err);
    fflush(stdout);
    return code;
}

static void handle_ctrl_c(struct chat *chat, bool line_was_empty)
{
    if (line_was_empty && chat->was_ctrl_c)
        chat->is_leaving = true;
    else if (line_was_empty)
        note(chat, "Ctrl-C again, Ctrl-D or /exit leaves");
    chat->was_ctrl_c = line_was_empty;
}

static int converse(struct chat *chat, struct ew_error *err)
{
    struct ew_buf text;
    int code = EW_OK;

    ew_buf_init(&text, TEXT_BYTES_MAX);
    while (code == EW_OK && !chat->is_leaving) {
        switch (ew_lineedit_read_block(&chat->edit, "> ", &text)) {
        case EW_LINE_TEXT: code = handle_text(chat, ew_buf_str(&text), err); break;
        case EW_LINE_CTRL_C: handle_ctrl_c(chat, text.len == 0); break;
        case EW_LINE_EOF: chat->is_leaving = true; break;
        case EW_LINE_SIGNAL:
            code = ew_fail(err, EW_ERR_CANCELLED, ew_terminated() ? "terminated" : "interrupted");
            break;
        case EW_LINE_ERROR: code = ew_fail_errno(err, EW_ERR_IO, "cannot read what is typed"); break;
        }
        if (code == EW_OK && ew_terminated())
            code = ew_fail(err, EW_ERR_CANCELLED, "terminated");
        if (code == EW_OK && ferror(stdout))
            code = ew_fail(err, EW_ERR_IO, "the answer cannot be written");
    }
    ew_buf_fini(&text);
    return code;
}

static void greet(const struct chat *chat)
{
    struct ew_engine_stats stats;

    if (!chat->edit.is_terminal)
        return;
    ew_engine_stats(chat->runtime.engine, &stats);
    printf("%s on %s, context %u. /help lists the commands.\n", chat->runtime.model->path, stats.backend_text,
           stats.context_max);
    fflush(stdout);
}

static int begin(struct chat *chat, const struct ew_args *args, struct ew_error *err)
{
    const char *system = ew_args_str(args, "system", NULL);
    int code;

    if (!chat->runtime.chat) {
        *err = chat->runtime.tok ? chat->runtime.chat_error : chat->runtime.tok_error;
        return ew_remedy(err, err->code, "Use edgewise run --raw to continue plain text");
    }
    chat->n_max = (uint32_t)ew_args_int(args, "n-predict", 0);
    chat->ignore_eos = ew_args_flag(args, "ignore-eos");
    chat->is_terminal = isatty(STDOUT_FILENO);
    code = ew_sampling_of(&chat->sampling, args, chat->runtime.model, err);
    return code == EW_OK && system ? ew_conversation_set_system(&chat->conversation, ew_str_of(system), err) : code;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct chat chat = {0};
    char *history;
    int code = ew_runtime_open(&chat.runtime, args, err);

    if (code != EW_OK)
        return code;
    ew_buf_init(&chat.prompt, TEXT_BYTES_MAX);
    code = begin(&chat, args, err);
    if (code == EW_OK) {
        history = ew_state_path("chat_history");
        ew_lineedit_open(&chat.edit, STDIN_FILENO, STDOUT_FILENO, history);
        ew_free(history);
        greet(&chat);
        code = converse(&chat, err);
        ew_lineedit_close(&chat.edit);
    }
    ew_ids_fini(&chat.ids);
    ew_buf_fini(&chat.prompt);
    ew_conversation_fini(&chat.conversation);
    ew_runtime_close(&chat.runtime);
    return code;
}

static const struct ew_opt g_own[] = {
    {"system", 0, EW_OPT_STRING, "TEXT", "a system message"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model,  g_own,          ew_opts_sampling,
                                                 ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_chat = {
    .name = "chat",
    .usage = "chat -m MODEL [--system TEXT] [OPTIONS]",
    .summary = "Hold a conversation",
    .details =
        "Lines are edited as in a shell, with the lines of earlier conversations. /help lists the commands. Ctrl-C\n"
        "stops an answer; twice leaves. Through pipes, each line is a message.",
    .options = g_options,
    .run = run,
};
