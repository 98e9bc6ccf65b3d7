#include "cli/generate.h"

#include <math.h>
#include <string.h>
#include <sys/random.h>

#include "base/assert.h"
#include "base/clock.h"
#include "model/pooling.h"

const struct ew_opt ew_opts_sampling[] = {
    {"n-predict", 'n', EW_OPT_INT, "N", "new tokens at most; default until the answer or the context ends", NULL, 1,
     16777216},
    {"temp", 0, EW_OPT_FLOAT, "T", "temperature; 0 is greedy; default the model's, or 0.7", NULL, 0, 100},
    {"top-k", 0, EW_OPT_INT, "K", "only the K likeliest tokens; 0 is off", NULL, 0, 16777216},
    {"top-p", 0, EW_OPT_FLOAT, "P", "only the likeliest tokens that make up P; 1 is off", NULL, 0, 1},
    {"min-p", 0, EW_OPT_FLOAT, "P", "only tokens with P times the likeliest one's probability; 0 is off", NULL, 0, 1},
    {"seed", 0, EW_OPT_INT, "S", "makes the answer repeatable; default a random one", NULL, 0, 9007199254740992},
    {"repetition-penalty", 0, EW_OPT_FLOAT, "X", "divides the logits of tokens seen before; 1 is off", NULL, 0.01, 100},
    {"presence-penalty", 0, EW_OPT_FLOAT, "X", "lowers the logits of tokens already in the answer; 0 is off", NULL,
     -100, 100},
    {"frequency-penalty", 0, EW_OPT_FLOAT, "X", "the same times their number; 0 is off", NULL, -100, 100},
    {"logit-bias", 0, EW_OPT_STRINGS, "ID=X", "adds X to a token's logit; may repeat"},
    {"stop", 0, EW_OPT_STRINGS, "TEXT", "ends the answer before this text; may repeat"},
    {"ignore-eos", 0, EW_OPT_FLAG, NULL, "go on past the end of the answer"},
    EW_OPT_END,
};

static int read_biases(struct ew_sampling_args *out, const struct ew_args *args, struct ew_error *err)
{
    const char *texts[EW_BIASES_MAX];
    uint32_t count = ew_args_strings(args, "logit-bias", texts, EW_BIASES_MAX);

    for (uint32_t i = 0; i < count; i++) {
        const char *equals = strchr(texts[i], '=');
        int64_t token;
        double bias;

        if (!equals || !ew_str_to_i64((struct ew_str){texts[i], (size_t)(equals - texts[i])}, &token) || token < 0 ||
            token > INT32_MAX || !ew_str_to_double(ew_str_of(equals + 1), &bias) || isnan(bias))
            return ew_fail(err, EW_ERR_USAGE, "--logit-bias needs ID=NUMBER, not \"%s\"", texts[i]);
        out->biases[i] = (struct ew_logit_bias){(int32_t)token, (float)bias};
    }
    out->sampling.bias = out->biases;
    out->sampling.n_bias = count;
    return EW_OK;
}

static void read_stops(struct ew_sampling_args *out, const struct ew_args *args)
{
    const char *texts[EW_STOPS_MAX];
    uint32_t count = ew_args_strings(args, "stop", texts, EW_STOPS_MAX);

    for (uint32_t i = 0; i < count; i++)
        out->stops[i] = ew_str_of(texts[i]);
    out->sampling.stop = out->stops;
    out->sampling.n_stop = count;
}

// A model whose authors said how to sample it is sampled that way; do_sample false means greedy.
static void apply_model_defaults(struct ew_sampling *sampling, const struct ew_sampling_defaults *given)
{
    sampling->temperature = 0.7f; // coherent answers from small models, still varied
    sampling->top_p = 0.95f;
    if (given->do_sample_given && !given->do_sample)
        sampling->temperature = 0;
    else if (!isnan(given->temperature))
        sampling->temperature = given->temperature;
    if (!isnan(given->top_p))
        sampling->top_p = given->top_p;
    if (!isnan(given->min_p))
        sampling->min_p = given->min_p;
    if (given->top_k >= 0)
        sampling->top_k = given->top_k;
    if (!isnan(given->repetition_penalty))
        sampling->repetition_penalty = given->repetition_penalty;
}

static uint64_t random_seed(void)
{
    uint64_t seed;

    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != sizeof(seed))
        seed = ew_clock_ns();
    return seed >> 11; // 53 bits: it survives JSON readers that know only doubles
}

int ew_sampling_of(struct ew_sampling_args *out, const struct ew_args *args, const struct ew_model *model,
                   struct ew_error *err)
{
    struct ew_sampling *sampling = &out->sampling;

    *sampling = ew_sampling_default();
    apply_model_defaults(sampling, &model->sampling);
    sampling->temperature = (float)ew_args_float(args, "temp", sampling->temperature);
    sampling->top_k = (int32_t)ew_args_int(args, "top-k", sampling->top_k);
    sampling->top_p = (float)ew_args_float(args, "top-p", sampling->top_p);
    sampling->min_p = (float)ew_args_float(args, "min-p", sampling->min_p);
    sampling->repetition_penalty = (float)ew_args_float(args, "repetition-penalty", sampling->repetition_penalty);
    sampling->presence_penalty = (float)ew_args_float(args, "presence-penalty", 0);
    sampling->frequency_penalty = (float)ew_args_float(args, "frequency-penalty", 0);
    sampling->seed = ew_args_has(args, "seed") ? (uint64_t)ew_args_int(args, "seed", 0) : random_seed();
    read_stops(out, args);
    return read_biases(out, args, err);
}

int ew_runtime_open(struct ew_runtime *runtime, const struct ew_args *args, struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(args);
    const char *path;
    int code;

    config.max_batch_size = 1; // one conversation: caches are sized for it
    *runtime = (struct ew_runtime){0};
    code = ew_model_of(args, &path, err);
    if (code == EW_OK)
        code = ew_model_open(path, &runtime->model, err);
    if (code != EW_OK)
        return code;
    code = ew_pooling_needs_text(runtime->model, err);
    if (code == EW_OK && !runtime->model->shape.has_weights)
        code = ew_fail(err, EW_ERR_UNSUPPORTED, "%s holds a vocabulary and no weights", path);
    if (code != EW_OK)
        goto close;
    if (runtime->model->is_synthetic)
        ew_fail(&runtime->tok_error, EW_ERR_UNSUPPORTED, "%s has no tokenizer", path);
    else if (ew_tokenizer_load(&runtime->model->file, &runtime->tok, &runtime->tok_error) == EW_OK &&
             ew_chat_format_load(&runtime->model->file, runtime->tok, &runtime->chat, &runtime->chat_error) != EW_OK)
        runtime->chat = NULL;
    code = ew_engine_create(runtime->model, runtime->tok, &config, &runtime->engine, err);
    if (code == EW_OK)
        return EW_OK;
close:
    ew_runtime_close(runtime);
    return code;
}

void ew_runtime_close(struct ew_runtime *runtime)
{
    ew_engine_destroy(runtime->engine);
    ew_chat_format_free(runtime->chat);
    ew_tokenizer_free(runtime->tok);
    ew_model_close(runtime->model);
    *runtime = (struct ew_runtime){0};
}

void ew_request_show_reasoning(struct ew_request *request, const struct ew_runtime *runtime)
{
    const struct ew_chat_caps *caps = runtime->chat ? ew_chat_format_caps(runtime->chat) : NULL;
    const char *marks[] = {caps ? caps->reasoning_open : NULL, caps ? caps->reasoning_close : NULL};

    for (size_t i = 0; i < EW_COUNT_OF(marks); i++) {
        int32_t token = marks[i] ? ew_token_find(runtime->tok, ew_str_of(marks[i])) : EW_TOKEN_NONE;

        if (token != EW_TOKEN_NONE)
            request->shown[request->n_shown++] = token;
    }
}

int ew_generate(struct ew_engine *engine, const struct ew_request *request,
                bool (*on_event)(void *ctx, const struct ew_event *event), void *ctx, struct ew_event *last,
                struct ew_error *err)
{
    bool idle = false, cancelled = false;
    struct ew_event event;
    uint64_t id;
    int code = ew_engine_submit(engine, request, &id, err);

    while (code == EW_OK && !idle) {
        code = ew_engine_step(engine, &idle, err);
        while (code == EW_OK && ew_engine_next_event(engine, &event)) {
            bool go_on = on_event(ctx, &event);

            if (event.kind == EW_EVENT_FINISHED) {
                *last = event;
                return event.finish == EW_FINISH_ERROR ? (*err = event.error, event.error.code) : EW_OK;
            }
            if ((!go_on || ew_interrupted()) && !cancelled) {
                ew_engine_cancel(engine, id);
                cancelled = true;
            }
        }
        if (ew_interrupted() && !cancelled) { // during a long prefill there are no events yet
            ew_engine_cancel(engine, id);
            cancelled = true;
        }
    }
    return code != EW_OK ? code : ew_fail(err, EW_ERR_DEVICE, "the engine stopped without finishing the request");
}

const char *ew_finish_name(enum ew_finish finish)
{
    static const char *const names[] = {
        [EW_FINISH_STOP] = "stop",           [EW_FINISH_LENGTH] = "length", [EW_FINISH_CONTEXT] = "context",
        [EW_FINISH_CANCELLED] = "cancelled", [EW_FINISH_DEADLINE] = "deadline", [EW_FINISH_ERROR] = "error",
    };

    return names[finish];
}
