// eval self: the fast kernels against the reference kernels.

#include <math.h>

#include "base/alloc.h"
#include "bench/eval_self.h"
#include "cli/generate.h"

static void print_number(double value)
{
    if (isfinite(value))
        printf("%.6g", value);
    else
        printf("null");
}

static void print_text(const struct ew_self *self)
{
    printf("%s against the reference kernels: %u tokens in steps of prompts, prompts beside decoding, and decoding\n\n",
           self->backend_text, self->n_tokens);
    printf("%-36s %8s %6s %12s %12s %12s\n", "op", "compared", "layer", "worst abs", "worst rel", "allowed");
    for (uint32_t i = 0; i < self->n_rows; i++) {
        const struct ew_self_row *row = &self->rows[i];

        printf("%-36s %8u ", row->name, row->n_compared);
        if (row->layer == UINT16_MAX || row->rel == 0)
            printf("%6s ", "-");
        else
            printf("%6u ", row->layer);
        printf("%12.3g %12.3g %12.3g%s\n", row->max_abs, row->rel, row->tolerance,
               row->rel <= row->tolerance ? "" : "  TOO LARGE");
    }
    printf("\nlogits, as users get them: rel %.3g, %.3g allowed for the class %s where the model amplifies %.1f times: "
           "%s\n",
           self->logits_rel, self->logits_tolerance, ew_arith_name(self->arith), self->amplification,
           self->pass ? "pass" : "FAIL");
}

static void print_json(const struct ew_self *self)
{
    printf("{\"pass\": %s, \"class\": \"%s\", \"backend\": \"%s\", \"tokens\": %u, \"logits_rel\": ",
           self->pass ? "true" : "false", ew_arith_name(self->arith), self->backend_text, self->n_tokens);
    print_number(self->logits_rel);
    printf(", \"logits_allowed\": ");
    print_number(self->logits_tolerance);
    printf(", \"ops\": [\n");
    for (uint32_t i = 0; i < self->n_rows; i++) {
        const struct ew_self_row *row = &self->rows[i];

        printf("  {\"name\": \"%s\", \"compared\": %u, \"max_abs\": ", row->name, row->n_compared);
        print_number(row->max_abs);
        printf(", \"rel\": ");
        print_number(row->rel);
        printf(", \"allowed\": %g}%s\n", row->tolerance, i + 1 < self->n_rows ? "," : "");
    }
    printf("]}\n");
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(args);
    struct ew_self *self;
    struct ew_model *model;
    const char *path;
    int rc = ew_model_of(args, &path, err);

    if (rc == 0)
        rc = ew_model_open(path, &model, err);
    if (rc < 0)
        return rc;
    self = ew_alloc(sizeof(*self));
    rc = self ? ew_eval_self(model, &config, self, err) : ew_fail_memory(err, sizeof(*self), "the comparison");
    ew_model_close(model);
    if (rc == 0 && ew_args_flag(args, "json"))
        print_json(self);
    else if (rc == 0)
        print_text(self);
    if (rc == 0 && !self->pass)
        rc = ew_fail(err, EW_ERR_MISMATCH,
                     "%s: the fast kernels differ from the reference by more than their arithmetic allows", path);
    ew_free(self);
    return rc;
}

static const struct ew_opt *const g_options[] = {ew_opts_model, ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_eval_self = {
    .name = "eval self",
    .usage = "eval self -m MODEL [OPTIONS]",
    .summary = "Compare the fast kernels with the reference kernels on a model's shapes",
    .details =
        "The reference kernels compute a few steps; then the fast kernels compute the same steps, each op on the "
        "reference's\n"
        "inputs, so that every op is judged by itself. Last, whole steps are compared as users get them. Needs the\n"
        "model's memory once, and up to 800 MB for the results that are compared.",
    .options = g_options,
    .run = run,
};
