// eval perplexity: how well a model predicts a text.

#include "base/alloc.h"
#include "bench/eval_perplexity.h"
#include "cli/generate.h"
#include "format/mapfile.h"

#define TEXT_BYTES_MAX ((size_t)1 << 30)

static void print_text(const struct ew_perplexity *p)
{
    printf("perplexity %.4f  (%.5f nats a token, %.5f bits a byte)\n", p->ppl, p->nll_per_token, p->bits_per_byte);
    printf(
        "protocol: %llu tokens without special tokens, %llu scored, each once, in the first of %u windows of %u "
        "tokens, one\n"
        "every %u, that holds it and a token before it; each window is seen from its own first token, at position 0\n",
        (unsigned long long)p->n_tokens, (unsigned long long)p->n_scored, p->n_windows, p->window, p->stride);
    printf("class %s, %.1f s, %.0f tokens/s\n", ew_arith_name(p->arith), p->seconds,
           p->seconds > 0 ? (double)p->n_scored / p->seconds : 0);
}

static void print_json(const struct ew_perplexity *p)
{
    printf(
        "{\"ppl\": %.6f, \"nll_per_token\": %.8f, \"bits_per_byte\": %.8f, \"tokens\": %llu, \"scored_tokens\": %llu, "
        "\"bytes\": %llu, \"windows\": %u, \"window\": %u, \"stride\": %u, \"class\": \"%s\", \"seconds\": %.3f}\n",
        p->ppl, p->nll_per_token, p->bits_per_byte, (unsigned long long)p->n_tokens, (unsigned long long)p->n_scored,
        (unsigned long long)p->n_bytes, p->n_windows, p->window, p->stride, ew_arith_name(p->arith), p->seconds);
}

static int tokenize(const struct ew_model *model, const char *file, struct ew_ids *ids, uint64_t *n_bytes,
                    struct ew_error *err)
{
    struct ew_tokenizer *tok;
    size_t len;
    char *text;
    int rc = ew_tokenizer_load(&model->file, &tok, err);

    if (rc < 0)
        return rc;
    rc = ew_file_read(file, TEXT_BYTES_MAX, &text, &len, err);
    if (rc == 0) {
        rc = ew_tokenize(tok, (struct ew_str){text, len}, false, false, ids, err);
        *n_bytes = len;
        ew_free(text);
    }
    ew_tokenizer_free(tok);
    return rc;
}

static int evaluate(const struct ew_args *args, const struct ew_model *model, struct ew_perplexity *result,
                    struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(args);
    struct ew_perplexity_options options = {
        .window = (uint32_t)ew_args_int(args, "window", 0),
        .stride = (uint32_t)ew_args_int(args, "stride", 0),
        .interrupted = ew_interrupted,
    };
    struct ew_ids ids = {0};
    uint64_t n_bytes = 0;
    int rc;

    if (model->is_synthetic)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "%s has no tokenizer", model->path);
    rc = tokenize(model, ew_args_at(args, 0), &ids, &n_bytes, err);
    if (rc == 0)
        rc = ew_eval_perplexity(model, &config, ids.ids, ids.count, n_bytes, &options, result, err);
    ew_ids_fini(&ids);
    return rc;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_perplexity result;
    struct ew_model *model;
    int rc = ew_open_model(args, &model, err);

    if (rc < 0)
        return rc;
    rc = evaluate(args, model, &result, err);
    ew_model_close(model);
    if (rc < 0)
        return rc;
    if (ew_args_flag(args, "json"))
        print_json(&result);
    else
        print_text(&result);
    return 0;
}

static const struct ew_opt g_own[] = {
    {"window", 0, EW_OPT_INT, "N", "tokens the model sees at once; default 1024", NULL, 2, 16777216},
    {"stride", 0, EW_OPT_INT, "N", "tokens between the beginnings of windows; default half of one", NULL, 1, 16777216},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model, g_own, ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_eval_perplexity = {
    .name = "eval perplexity",
    .usage = "eval perplexity -m MODEL FILE [--window N] [--stride N] [OPTIONS]",
    .summary = "Perplexity of a text",
    .details = "The text is one sequence of tokens without special tokens. Each token is scored once, in the first "
               "window that holds\n"
               "it and a token before it; the protocol is printed with the result.",
    .options = g_options,
    .n_args_min = 1,
    .n_args_max = 1,
    .run = run,
};
