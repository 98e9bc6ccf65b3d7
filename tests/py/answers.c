// answers MODEL FILE.jsonl [ISA|cuda]: the greedy answer to each conversation of the file ({messages, tools?,
// add_generation_prompt}), as a JSON string a line. One process and many sequences in flight, so that tests can
// afford hundreds of prompts.
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/log.h"
#include "engine/engine.h"
#include "format/mapfile.h"
#include "format/modelfile.h"
#include "model/model.h"
#include "text/chat.h"
#include "text/tokenizer.h"

#define IN_FLIGHT 16
#define PROMPTS_MAX 1024
#define ANSWER_TOKENS 128 // the longest reference answer has some 60
#define ANSWER_BYTES 4096

struct prompt {
    uint64_t request;
    bool finished;
    struct ew_buf answer;
};

struct answers {
    struct ew_model *model;
    struct ew_tokenizer *tok;
    struct ew_chat_format *chat;
    struct ew_engine *engine;
    uint32_t n_prompts;
    struct ew_str lines[PROMPTS_MAX];
    struct prompt prompts[PROMPTS_MAX];
};

static int open_all(struct answers *a, const char *path, const char *cpu_max, struct ew_error *err)
{
    bool is_cuda = cpu_max && strcmp(cpu_max, "cuda") == 0;
    struct ew_engine_config config = {.backend = is_cuda ? "cuda" : "cpu",
                                      .device = {.cpu_max = is_cuda ? NULL : cpu_max},
                                      .max_batch_size = IN_FLIGHT,
                                      .max_sessions = IN_FLIGHT};
    int rc = ew_model_open(path, &a->model, err);

    if (!rc)
        rc = ew_tokenizer_load(&a->model->file, &a->tok, err);
    if (!rc)
        rc = ew_chat_format_load(&a->model->file, a->tok, &a->chat, err);
    return rc ? rc : ew_engine_create(a->model, a->tok, &config, &a->engine, err);
}

static void split_lines(struct answers *a, char *text)
{
    char *rest = NULL;

    for (char *line = strtok_r(text, "\n", &rest); line && a->n_prompts < PROMPTS_MAX;
         line = strtok_r(NULL, "\n", &rest))
        a->lines[a->n_prompts++] = ew_str_of(line);
}

static int to_ids(struct answers *a, struct ew_str line, struct ew_ids *ids, struct ew_error *err)
{
    const struct ew_json *inputs;
    struct ew_arena arena;
    struct ew_buf prompt;
    int rc;

    ew_arena_init(&arena, (size_t)16 << 20);
    ew_buf_init(&prompt, (size_t)1 << 20);
    rc = ew_json_parse(&arena, line, &inputs, err);
    if (!rc)
        rc = ew_chat_render(a->chat, inputs, &prompt, err);
    if (!rc)
        rc = ew_chat_tokenize(a->chat, a->tok, ew_buf_str(&prompt), ids, err);
    ew_buf_fini(&prompt);
    ew_arena_fini(&arena);
    return rc;
}

static int submit(struct answers *a, uint32_t which, struct ew_error *err)
{
    struct ew_request request = {.n_max = ANSWER_TOKENS,
                                 .sampling = {.repetition_penalty = 1}}; // temperature 0: greedy
    struct ew_ids ids = {0};
    int rc = to_ids(a, a->lines[which], &ids, err);

    request.sampling.temperature = 0; // greedy
    ew_buf_init(&a->prompts[which].answer, ANSWER_BYTES);
    request.ids = ids.ids;
    request.n_ids = (uint32_t)ids.count;
    if (!rc)
        rc = ew_engine_submit(a->engine, &request, &a->prompts[which].request, err);
    ew_ids_fini(&ids);
    return rc;
}

static int take_events(struct answers *a, uint32_t *in_flight, struct ew_error *err)
{
    struct ew_event event;
    int rc = 0;

    while (!rc && ew_engine_next_event(a->engine, &event))
        for (uint32_t i = 0; i < a->n_prompts; i++) {
            struct prompt *prompt = &a->prompts[i];

            if (prompt->request != event.request || prompt->finished || !prompt->answer.max)
                continue;
            ew_buf_append_str(&prompt->answer, event.text);
            prompt->finished = event.kind == EW_EVENT_FINISHED;
            *in_flight -= prompt->finished;
            if (prompt->finished && event.finish == EW_FINISH_ERROR)
                rc = ew_fail(err, event.error.code, "%s", event.error.message);
            break;
        }
    return rc;
}

static int answer_all(struct answers *a, struct ew_error *err)
{
    uint32_t next = 0, in_flight = 0;
    bool idle;
    int rc = 0;

    while (!rc && (next < a->n_prompts || in_flight)) {
        if (next < a->n_prompts && in_flight < IN_FLIGHT) {
            rc = submit(a, next++, err);
            in_flight++;
            continue;
        }
        rc = ew_engine_step(a->engine, &idle, err);
        if (!rc)
            rc = take_events(a, &in_flight, err);
    }
    return rc;
}

static void print_all(struct answers *a)
{
    struct ew_buf line;

    ew_buf_init(&line, 8 * ANSWER_BYTES);
    for (uint32_t i = 0; i < a->n_prompts; i++) {
        ew_buf_reset(&line);
        ew_buf_append_json(&line, ew_buf_str(&a->prompts[i].answer));
        puts(line.ptr);
        ew_buf_fini(&a->prompts[i].answer);
    }
    ew_buf_fini(&line);
}

static void close_all(struct answers *a)
{
    ew_engine_destroy(a->engine);
    ew_chat_format_free(a->chat);
    ew_tokenizer_free(a->tok);
    ew_model_close(a->model);
}

int main(int argc, char **argv)
{
    static struct answers a;
    struct ew_error err = {0};
    char *text = NULL;
    size_t len;
    int rc;

    if (argc != 3 && argc != 4) {
        fputs("usage: answers MODEL FILE.jsonl [ISA|cuda]\n", stderr);
        return 2;
    }
    rc = ew_file_read(argv[2], (size_t)64 << 20, &text, &len, &err);
    if (!rc)
        rc = open_all(&a, argv[1], argc == 4 ? argv[3] : NULL, &err);
    if (!rc) {
        split_lines(&a, text);
        rc = answer_all(&a, &err);
    }
    if (rc)
        ew_log_error(&err);
    else
        print_all(&a);
    close_all(&a);
    ew_free(text);
    return rc ? 1 : 0;
}
