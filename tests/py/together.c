// together MODEL [KEY=N ...] <REQUESTS: greedy answers of requests that run together, as many as the settings allow.
//
// A line of standard input is a request: how many tokens are wanted, then the ids of the prompt. A line of the output
// is its answer: for each token the id and, of the likeliest ones, id:log probability, which "%a" writes exactly.
//
// Keys: cuda, deterministic, reference, reuse, evicts (0 or 1), kv (enum ew_kv_dtype), batch, sessions, chunk, ctx,
// budget (MiB), shown (log probabilities of each token; 0: the backend chooses).
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"
#include "base/log.h"
#include "engine/engine.h"
#include "model/model.h"

#define REQUESTS_MAX 64
#define IDS_MAX 4096
#define ANSWER_BYTES ((size_t)1 << 20)

struct answer {
    uint64_t request;
    bool finished;
    struct ew_buf text;
};

struct settings {
    uint32_t cuda, deterministic, reference, reuse, evicts, kv, batch, sessions, chunk, ctx, budget, shown;
};

static const struct {
    const char *name;
    size_t at;
} KEYS[] = {
#define KEY(name) {#name, offsetof(struct settings, name)}
    KEY(cuda), KEY(deterministic), KEY(reference), KEY(reuse), KEY(evicts), KEY(kv), KEY(batch), KEY(sessions),
    KEY(chunk), KEY(ctx), KEY(budget), KEY(shown),
#undef KEY
};

static bool set(struct settings *settings, const char *argument)
{
    for (size_t i = 0; i < EW_COUNT_OF(KEYS); i++) {
        size_t len = strlen(KEYS[i].name);

        if (strncmp(argument, KEYS[i].name, len) || argument[len] != '=')
            continue;
        *(uint32_t *)((char *)settings + KEYS[i].at) = (uint32_t)strtoul(argument + len + 1, NULL, 10);
        return true;
    }
    return false;
}

static int create(const struct ew_model *model, const struct settings *s, struct ew_engine **out, struct ew_error *err)
{
    struct ew_engine_config config = {
        .backend = s->cuda ? "cuda" : "cpu",
        .device = {.n_threads = 2,
                   .kernels = s->reference ? EW_KERNELS_REFERENCE : EW_KERNELS_AUTO,
                   .deterministic = s->deterministic},
        .memory_budget = (uint64_t)s->budget << 20,
        .kv = s->kv,
        .context_max = s->ctx,
        .chunk = s->chunk,
        .max_batch_size = s->batch,
        .max_sessions = s->sessions,
        .policy = s->evicts ? EW_POLICY_MAX_UTILIZATION : EW_POLICY_GUARANTEED_NO_EVICT,
        .reuse = s->reuse,
    };

    return ew_engine_create(model, NULL, &config, out, err);
}

static int submit(struct ew_engine *engine, char *line, uint32_t shown, uint64_t *id, struct ew_error *err)
{
    static int32_t ids[IDS_MAX];
    struct ew_request request = {.ids = ids, .n_logprobs = shown, .ignore_eos = true};
    char *rest = line;

    request.sampling = ew_sampling_default();
    request.sampling.temperature = 0;
    request.n_max = (uint32_t)strtoul(rest, &rest, 10);
    while (*rest == ' ' && request.n_ids < IDS_MAX)
        ids[request.n_ids++] = (int32_t)strtol(rest + 1, &rest, 10);
    return ew_engine_submit(engine, &request, id, err);
}

static int take_events(struct ew_engine *engine, struct answer *answers, uint32_t n, uint32_t *n_left,
                       struct ew_error *err)
{
    struct ew_event event;

    while (ew_engine_next_event(engine, &event)) {
        struct answer *answer = answers;

        while (answer < answers + n - 1 && answer->request != event.request)
            answer++;
        if (event.kind == EW_EVENT_FINISHED) {
            if (event.finish == EW_FINISH_ERROR)
                return ew_fail(err, event.error.code, "%s", event.error.message);
            answer->finished = true;
            --*n_left;
            fprintf(stderr, "request %" PRIu64 ": %u reused, preempted %u times\n", event.request, event.n_reused,
                    event.n_preempted);
            continue;
        }
        ew_buf_printf(&answer->text, " %d", event.token);
        for (uint32_t i = 0; i < event.n_logprobs; i++)
            ew_buf_printf(&answer->text, ",%d:%a", event.logprobs[i].token, (double)event.logprobs[i].logprob);
    }
    return 0;
}

static int answer_all(struct ew_engine *engine, uint32_t shown, struct ew_error *err)
{
    static struct answer answers[REQUESTS_MAX];
    uint32_t n = 0, n_left = 0;
    char *line = NULL;
    size_t size = 0;
    bool idle;
    int rc = 0;

    while (rc == 0 && n < REQUESTS_MAX && getline(&line, &size, stdin) > 0) {
        ew_buf_init(&answers[n].text, ANSWER_BYTES);
        rc = submit(engine, line, shown, &answers[n].request, err);
        n_left = ++n;
    }
    while (rc == 0 && n_left) {
        rc = ew_engine_step(engine, &idle, err);
        if (rc == 0)
            rc = take_events(engine, answers, n, &n_left, err);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (rc == 0)
            puts(answers[i].text.ptr);
        ew_buf_fini(&answers[i].text);
    }
    free(line);
    return rc;
}

int main(int argc, char **argv)
{
    struct settings settings = {.kv = EW_KV_F16};
    struct ew_engine *engine = NULL;
    struct ew_model *model = NULL;
    struct ew_error err = {0};
    int rc;

    for (int i = 2; i < argc; i++) {
        if (!set(&settings, argv[i]))
            argc = 0;
    }
    if (argc < 2) {
        fputs("usage: together MODEL [KEY=N ...] <REQUESTS\n", stderr);
        return 2;
    }
    rc = ew_model_open(argv[1], &model, &err);
    if (rc == 0)
        rc = create(model, &settings, &engine, &err);
    if (rc == 0)
        rc = answer_all(engine, settings.shown, &err);
    if (rc)
        ew_log_error(&err);
    ew_engine_destroy(engine);
    ew_model_close(model);
    return rc ? 1 : 0;
}
