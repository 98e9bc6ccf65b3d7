// eval logits: a model against reference logits.

#include <math.h>
#include <string.h>

#include "bench/eval_logits.h"
#include "cli/generate.h"

static void print_number(const char *name, double value)
{
    if (isfinite(value))
        printf("\"%s\": %.6g, ", name, value);
    else
        printf("\"%s\": null, ", name);
}

static void print_case(const struct ew_eval_case *result, bool is_last)
{
    printf("  {\"name\": \"%s\", ", result->name);
    print_number("max_abs", result->max_abs);
    print_number("rel", result->rel);
    if (result->route_ties) {
        printf("\"route_ties\": %u, ", result->route_ties);
        print_number("rel_aligned", result->rel_aligned);
    }
    printf("\"greedy_equal\": %s, \"near_ties\": %u}%s\n",
           !result->has_greedy    ? "null"
           : result->greedy_equal ? "true"
                                  : "false",
           result->near_ties, is_last ? "" : ",");
}

static void print(const struct ew_eval_logits *result)
{
    printf("{\"pass\": %s, \"class\": \"%s\", ", result->pass ? "true" : "false", ew_arith_name(result->arith));
    print_number("max_abs", result->max_abs);
    print_number("rel", result->rel);
    print_number("tolerance", result->tolerance);
    printf("\"cases\": [\n");
    for (uint32_t i = 0; i < result->n_cases; i++)
        print_case(&result->cases[i], i + 1 == result->n_cases);
    printf("]}\n");
}

static enum ew_eval_mode mode_of(const char *name)
{
    static const char *const names[] = {
        [EW_EVAL_WHOLE] = "whole",
        [EW_EVAL_CHUNK5] = "chunk5",
        [EW_EVAL_TOKEN] = "token",
        [EW_EVAL_BATCH] = "batch",
    };

    for (uint32_t i = 0; i < EW_EVAL_ALL; i++)
        if (strcmp(names[i], name) == 0)
            return (enum ew_eval_mode)i;
    return EW_EVAL_ALL;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(args);
    struct ew_eval_logits_options options = {
        .ref = ew_args_str(args, "ref", NULL),
        .logits_only = ew_args_flag(args, "logits-only"),
        .tolerance = ew_args_float(args, "tol", 0),
        .mode = mode_of(ew_args_str(args, "mode", "all")),
    };
    struct ew_eval_logits result;
    struct ew_model *model;
    const char *path;
    int rc = ew_model_of(args, &path, err);

    if (rc < 0)
        return rc;
    if (!options.ref)
        return ew_fail(err, EW_ERR_USAGE, "no reference is given: add --ref FILE.safetensors");
    rc = ew_model_open(path, &model, err);
    if (rc < 0)
        return rc;
    rc = ew_eval_logits(model, &config, &options, &result, err);
    ew_model_close(model);
    if (rc < 0)
        return rc;
    print(&result);
    return result.pass ? 0
                       : ew_fail(err, EW_ERR_MISMATCH,
                                 "%s differs from %s: rel %.3g, and %.3g is allowed for the class %s, "
                                 "or a continuation departs where there is no tie",
                                 path, options.ref, result.rel, result.tolerance, ew_arith_name(result.arith));
}

static const struct ew_opt g_own[] = {
    {"ref", 0, EW_OPT_STRING, "FILE", "the references: input_ids_N, logits_N, greedy_N, greedy_margin_N"},
    {"logits-only", 0, EW_OPT_FLAG, NULL, "do not compare greedy continuations"},
    {"tol", 0, EW_OPT_FLOAT, "T", "largest relative error; default that of the arithmetic that runs", NULL, 0, 1000},
    {"mode", 0, EW_OPT_CHOICE, "MODE", "how prompts are fed; default all", "whole|chunk5|token|batch|all"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model, g_own, ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_eval_logits = {
    .name = "eval logits",
    .usage = "eval logits -m MODEL --ref FILE.safetensors [OPTIONS]",
    .summary = "Compare a model with reference logits",
    .details =
        "Feeds the reference's token ids whole, in chunks of 5, token by token and all sequences in one batch, "
        "compares the\n"
        "logits of every position, then continues greedily. Prints JSON. Exit status 1 where the relative error is\n"
        "larger than the arithmetic allows, or where a continuation departs at a place that is no near-tie.\n"
        "A model that chooses experts and differs by more runs once more, with the reference's experts where others\n"
        "were chosen by nearly the same numbers (route_ties); rel_aligned is what that leaves, and must be allowed.",
    .options = g_options,
    .run = run,
};
