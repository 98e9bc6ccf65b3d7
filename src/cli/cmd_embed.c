// embed: one vector a text, in the order of the texts.

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/generate.h"
#include "format/mapfile.h"
#include "model/pooling.h"
#include "text/inputs.h"

#define TEXT_BYTES_MAX ((size_t)4 << 30)
#define TEXTS_MAX 64 // -p on one command line
#define IN_FLIGHT_MAX 256

struct embed {
    const struct ew_args *args;
    struct ew_model *model;
    struct ew_tokenizer *tok;
    struct ew_engine *engine;
    struct ew_str prefix;
    uint32_t n_max, width; // tokens of a text, where longer ones are cut; elements given of a vector
    bool json, binary;
    // Texts in flight: their vectors are given out in order.
    struct slot {
        float *vector; // [pooling.width]
        uint32_t n_tokens;
        bool is_done;
    } slots[IN_FLIGHT_MAX];
    uint64_t n_begun, n_given, n_tokens;
    struct ew_buf out;
};

// ---- output -------------------------------------------------------------------------------------------------------

static void print_vector(struct embed *e, const struct slot *slot)
{
    if (e->binary) {
        ew_buf_append(&e->out, (const char *)slot->vector, e->width * sizeof(*slot->vector));
        return;
    }
    if (e->json)
        ew_buf_printf(&e->out, "%s\n  {\"index\": %llu, \"tokens\": %u, \"embedding\": ", e->n_given ? "," : "",
                      (unsigned long long)e->n_given, slot->n_tokens);
    for (uint32_t i = 0; i < e->width; i++)
        ew_buf_printf(&e->out, "%s%.9g", i ? ", " : "[", (double)slot->vector[i]);
    ew_buf_append_str(&e->out, e->json ? EW_STR("]}") : EW_STR("]\n"));
}

static int flush(struct embed *e, struct ew_error *err)
{
    if (!ew_buf_ok(&e->out))
        return ew_fail_memory(err, e->out.len, "the vectors");
    if (e->out.len && fwrite(e->out.ptr, 1, e->out.len, stdout) != e->out.len)
        return ew_fail_errno(err, EW_ERR_IO, "standard output cannot be written");
    ew_buf_reset(&e->out);
    return 0;
}

static int give(struct embed *e, struct ew_error *err)
{
    struct slot *slot = &e->slots[e->n_given % IN_FLIGHT_MAX];

    for (; e->n_given < e->n_begun && slot->is_done; slot = &e->slots[e->n_given % IN_FLIGHT_MAX]) {
        ew_pool_cut(&e->model->pooling, slot->vector, e->width);
        print_vector(e, slot);
        slot->is_done = false;
        e->n_given++;
        e->n_tokens += slot->n_tokens;
    }
    return flush(e, err);
}

// ---- the engine ---------------------------------------------------------------------------------------------------

static int take_events(struct embed *e, struct ew_error *err)
{
    struct ew_event event;

    while (ew_engine_next_event(e->engine, &event)) {
        struct slot *slot = event.tag;

        if (event.finish != EW_FINISH_STOP) {
            *err = event.error;
            return err->code ? err->code : ew_fail(err, EW_ERR_CANCELLED, "a text was given up");
        }
        memcpy(slot->vector, event.vector, event.n_vector * sizeof(*slot->vector));
        slot->n_tokens = event.n_prompt;
        slot->is_done = true;
    }
    return give(e, err);
}

// Runs steps until there are at most n texts in flight.
static int run_until(struct embed *e, uint64_t n, struct ew_error *err)
{
    bool idle = false;
    int rc = 0;

    while (rc == 0 && !idle && e->n_begun - e->n_given > n) {
        if (ew_interrupted())
            return ew_fail(err, EW_ERR_CANCELLED, "interrupted");
        rc = ew_engine_step(e->engine, &idle, err);
        if (rc == 0)
            rc = take_events(e, err);
    }
    return rc;
}

static int add_text(struct embed *e, struct ew_str text, struct ew_error *err)
{
    struct slot *slot = &e->slots[e->n_begun % IN_FLIGHT_MAX];
    struct ew_request request = {.tag = slot, .sampling = ew_sampling_default()};
    struct ew_ids ids = {0};
    uint64_t id;
    int rc = run_until(e, IN_FLIGHT_MAX - 1, err);

    if (rc == 0)
        rc = ew_tokenize_text(e->tok, e->prefix, text, e->n_max, &ids, err);
    request.ids = ids.ids;
    request.n_ids = (uint32_t)ids.count;
    if (rc == 0)
        rc = ew_engine_submit(e->engine, &request, &id, err);
    ew_ids_fini(&ids);
    if (rc < 0)
        return ew_fail_in(err, rc, "text %llu", (unsigned long long)e->n_begun + 1);
    e->n_begun++;
    return 0;
}

// ---- texts --------------------------------------------------------------------------------------------------------

static int add_lines(struct embed *e, struct ew_str all, struct ew_error *err)
{
    int rc = 0;

    for (size_t at = 0, end; at < all.len && rc == 0; at = end + 1) {
        const char *stop = memchr(all.ptr + at, '\n', all.len - at);

        end = stop ? (size_t)(stop - all.ptr) : all.len;
        rc = add_text(e, (struct ew_str){all.ptr + at, end - at - (end > at && all.ptr[end - 1] == '\r')}, err);
    }
    return rc;
}

static int add_stdin(struct embed *e, struct ew_error *err)
{
    struct ew_buf text;
    char block[65536];
    ssize_t len;
    int rc = 0;

    ew_buf_init(&text, TEXT_BYTES_MAX);
    while ((len = read(STDIN_FILENO, block, sizeof(block))) > 0)
        ew_buf_append(&text, block, (size_t)len);
    if (len < 0)
        rc = ew_fail_errno(err, EW_ERR_IO, "standard input cannot be read");
    else if (!ew_buf_ok(&text))
        rc = ew_fail_memory(err, text.len, "standard input");
    if (rc == 0)
        rc = add_lines(e, ew_buf_str(&text), err);
    ew_buf_fini(&text);
    return rc;
}

static int add_file(struct embed *e, const char *path, struct ew_error *err)
{
    char *bytes;
    size_t len;
    int rc = ew_file_read(path, TEXT_BYTES_MAX, &bytes, &len, err);

    if (rc < 0)
        return rc;
    rc = add_lines(e, (struct ew_str){bytes, len}, err);
    ew_free(bytes);
    return rc < 0 ? ew_fail_in(err, rc, "%s", path) : 0;
}

static int add_all(struct embed *e, struct ew_error *err)
{
    const char *texts[TEXTS_MAX];
    uint32_t n_texts = ew_args_strings(e->args, "prompt", texts, TEXTS_MAX), n_files = ew_args_count(e->args);
    int rc = 0;

    for (uint32_t i = 0; i < n_texts && rc == 0; i++)
        rc = add_text(e, ew_str_of(texts[i]), err);
    for (uint32_t i = 0; i < n_files && rc == 0; i++)
        rc = add_file(e, ew_args_at(e->args, i), err);
    if (rc == 0 && n_texts == 0 && n_files == 0)
        rc = add_stdin(e, err);
    return rc == 0 ? run_until(e, 0, err) : rc;
}

// ---- the whole ----------------------------------------------------------------------------------------------------

static int choose_prefix(struct embed *e, struct ew_error *err)
{
    const struct ew_pooling *pooling = &e->model->pooling;
    const char *name = ew_args_flag(e->args, "query")      ? "query"
                       : ew_args_flag(e->args, "document") ? "document"
                                                           : ew_args_str(e->args, "prompt-name", "");

    if (ew_args_has(e->args, "prefix")) {
        e->prefix = ew_str_of(ew_args_str(e->args, "prefix", ""));
        return 0;
    }
    if (ew_pooling_prompt(pooling, ew_str_of(name), &e->prefix))
        return 0;
    ew_fail(err, EW_ERR_USAGE, "the model has no prompt named \"%s\"", name);
    for (uint32_t i = 0; i < pooling->n_prompts && i < 1; i++)
        return ew_remedy(err, EW_ERR_USAGE, "It has \"" EW_STR_FMT "\"; --prefix TEXT gives any other",
                         EW_STR_ARG(pooling->prompts[i].name));
    return ew_remedy(err, EW_ERR_USAGE, "Its directory names none; --prefix TEXT gives one");
}

static int configure(struct embed *e, struct ew_error *err)
{
    const struct ew_pooling *pooling = &e->model->pooling;

    if (pooling->kind == EW_POOLING_NONE || pooling->is_score) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "%s %s", e->model->path,
                pooling->is_score ? "scores pairs of texts and makes no vectors" : "writes text and makes no vectors");
        return ew_remedy(err, EW_ERR_UNSUPPORTED,
                         pooling->is_score ? "Serve it and ask /v1/rerank" : "Use a model for embeddings");
    }
    e->width = (uint32_t)ew_args_int(e->args, "dimensions", pooling->width);
    if (e->width > pooling->width)
        return ew_fail(err, EW_ERR_USAGE, "--dimensions is %u and the model's vectors have %u", e->width,
                       pooling->width);
    e->json = ew_args_flag(e->args, "json");
    e->binary = strcmp(ew_args_str(e->args, "format", "json"), "f32") == 0;
    if (e->json && e->binary)
        return ew_fail(err, EW_ERR_USAGE, "--json and --format f32 exclude each other");
    return choose_prefix(e, err);
}

static int open_engine(struct embed *e, struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(e->args);
    struct ew_engine_stats stats;
    int rc;

    config.max_batch_size = (uint32_t)ew_args_int(e->args, "batch", 64);
    rc = ew_tokenizer_load(&e->model->file, &e->tok, err);
    if (rc == 0)
        rc = ew_engine_create(e->model, e->tok, &config, &e->engine, err);
    if (rc < 0)
        return rc;
    ew_engine_stats(e->engine, &stats);
    e->n_max = ew_args_flag(e->args, "truncate") ? stats.context_max : 0;
    for (uint32_t i = 0; i < IN_FLIGHT_MAX; i++) {
        e->slots[i].vector = ew_alloc_array(e->model->pooling.width, sizeof(float));
        if (!e->slots[i].vector)
            return ew_fail_memory(err, e->model->pooling.width * sizeof(float), "a vector");
    }
    return 0;
}

static int embed_all(struct embed *e, struct ew_error *err)
{
    double started_s = ew_clock_s();
    int rc;

    if (e->json) {
        ew_buf_append_str(&e->out, EW_STR("{\"model\": "));
        ew_buf_append_json(&e->out, ew_str_of(e->model->path));
        ew_buf_printf(&e->out, ", \"dimensions\": %u, \"data\": [", e->width);
    }
    rc = add_all(e, err);
    if (rc < 0)
        return rc;
    if (e->json)
        ew_buf_printf(&e->out, "\n], \"prompt_tokens\": %llu, \"seconds\": %.6f}\n", (unsigned long long)e->n_tokens,
                      ew_clock_s() - started_s);
    return flush(e, err);
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct embed *e = ew_alloc(sizeof(*e));
    const char *path;
    int rc;

    if (!e)
        return ew_fail_memory(err, sizeof(*e), "the command");
    e->args = args;
    ew_buf_init(&e->out, TEXT_BYTES_MAX);
    rc = ew_model_of(args, &path, err);
    if (rc == 0)
        rc = ew_model_open(path, &e->model, err);
    if (rc == 0)
        rc = configure(e, err);
    if (rc == 0)
        rc = open_engine(e, err);
    if (rc == 0)
        rc = embed_all(e, err);
    for (uint32_t i = 0; i < IN_FLIGHT_MAX; i++)
        ew_free(e->slots[i].vector);
    ew_engine_destroy(e->engine);
    ew_tokenizer_free(e->tok);
    ew_model_close(e->model);
    ew_buf_fini(&e->out);
    ew_free(e);
    return rc;
}

static const struct ew_opt g_own[] = {
    {"prompt", 'p', EW_OPT_STRINGS, "TEXT", "a text; may be given several times"},
    {"dimensions", 0, EW_OPT_INT, "N", "the vectors' first N elements; default all", NULL, 1, 1e6},
    {"truncate", 0, EW_OPT_FLAG, NULL, "cut what is longer than the model takes, instead of failing"},
    {"query", 0, EW_OPT_FLAG, NULL, "put the model's prompt for queries before each text"},
    {"document", 0, EW_OPT_FLAG, NULL, "put the model's prompt for documents before each text"},
    {"prompt-name", 0, EW_OPT_STRING, "NAME", "put that prompt of the model before each text"},
    {"prefix", 0, EW_OPT_STRING, "TEXT", "put this before each text"},
    {"batch", 'b', EW_OPT_INT, "N", "texts of one step; default 64", NULL, 1, 4096},
    {"format", 0, EW_OPT_CHOICE, "F", "json: a list a line; f32: raw little-endian floats; default json", "json|f32"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model, g_own, ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_embed = {
    .name = "embed",
    .usage = "embed -m MODEL [-p TEXT] [OPTIONS] [FILE ...]",
    .summary = "Vectors of texts",
    .details =
        "Texts are those given with -p, the lines of the files, or the lines of standard input. Each vector is one\n"
        "line of output, a JSON list; --json gives one object with all of them. How the tokens are pooled, and\n"
        "which prompts there are, is read from the model's own files; docs/embeddings.md says more.",
    .options = g_options,
    .n_args_max = EW_ARGS_POSITIONAL_MAX,
    .run = run,
};
