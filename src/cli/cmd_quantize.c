// edgewise quantize: the table that it prints; the work is in model/quantize.
#include "cli/cli.h"

#include <stdio.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "model/quantize.h"
#include "platform/topology.h"

#define NAME_COLUMN 32
#define JSON_BYTES_MAX ((size_t)64 << 20)

static const struct ew_opt g_quantize_options[] = {
    {"to", 0, EW_OPT_CHOICE, "TYPE", "what to write; q4_k_m is the usual mix, q4_k is pure", ew_quantize_types},
    {"force", 'f', EW_OPT_FLAG, NULL, "overwrite OUT"},
    {"threads", 't', EW_OPT_INT, "N", "CPU threads; default one a physical core", NULL, 1, 512},
    {"pre", 0, EW_OPT_STRING, "NAME", "GGUF's name of the pre-tokeniser; default recognised"},
    EW_OPT_END,
};

static void shape_text(const struct ew_quantize_tensor *tensor, const char *between, char *out, size_t size)
{
    size_t len = 0;

    out[0] = '\0';
    for (uint32_t i = 0; i < tensor->n_dims && len < size; i++)
        len += (size_t)snprintf(out + len, size - len, "%s%llu", i ? between : "",
                                (unsigned long long)tensor->shape[i]);
}

// A row of the table, as soon as it is known.
static void print_tensor(void *ctx, const struct ew_quantize_tensor *tensor)
{
    char shape[128];

    (void)ctx;
    shape_text(tensor, " x ", shape, sizeof(shape));
    printf("%-*.*s  %-16s  %-7s -> %-5s", NAME_COLUMN, (int)tensor->name.len, tensor->name.ptr, shape,
           ew_dtype_name(tensor->from), ew_dtype_name(tensor->to));
    if (tensor->rms_error > 0)
        printf("  %9.6f  %10.3g", tensor->rms_error, tensor->max_error);
    else
        printf("  %9s  %10s", "exact", "");
    printf("%s\n", tensor->fell_back ? "  fallback" : "");
}

static void add_tensor_json(void *ctx, const struct ew_quantize_tensor *tensor)
{
    struct ew_buf *json = ctx;
    char shape[128];

    shape_text(tensor, ", ", shape, sizeof(shape));
    ew_buf_printf(json, "%s\n  {\"name\": ", json->len ? "," : "");
    ew_buf_append_json(json, tensor->name);
    ew_buf_printf(
        json,
        ", \"shape\": [%s], \"from\": \"%s\", \"to\": \"%s\", \"fallback\": %s, \"bytes\": %llu, \"rms_error\": %.9g, "
        "\"max_error\": %.9g, \"not_finite\": %llu}",
        shape, ew_dtype_name(tensor->from), ew_dtype_name(tensor->to), tensor->fell_back ? "true" : "false",
        (unsigned long long)tensor->bytes, tensor->rms_error, tensor->max_error,
        (unsigned long long)tensor->n_not_finite);
}

static void print_json(const struct ew_quantize_options *options, const struct ew_quantize_summary *summary,
                       const struct ew_buf *tensors, double seconds)
{
    struct ew_buf names;

    ew_buf_init(&names, JSON_BYTES_MAX);
    ew_buf_printf(&names, "{\"in\": ");
    ew_buf_append_json(&names, ew_str_of(options->in));
    ew_buf_printf(&names, ", \"out\": ");
    ew_buf_append_json(&names, ew_str_of(options->out));
    printf("%s, \"type\": \"%s\", \"bytes_in\": %llu, \"bytes_out\": %llu, \"fallbacks\": %llu, \"seconds\": %.3f, "
           "\"tensors\": [%s]}\n",
           names.ptr, options->type, (unsigned long long)summary->bytes_in, (unsigned long long)summary->bytes_out,
           (unsigned long long)summary->n_fell_back, seconds, tensors->ptr ? tensors->ptr : "");
    ew_buf_fini(&names);
}

static void print_summary(const struct ew_quantize_options *options, const struct ew_quantize_summary *summary,
                          double seconds)
{
    printf("%llu tensors, %.1f MB -> %.1f MB in %.1f s: %s\n", (unsigned long long)summary->n_tensors,
           (double)summary->bytes_in / 1e6, (double)summary->bytes_out / 1e6, seconds, options->out);
    if (summary->n_fell_back)
        printf("%llu of them have rows that blocks of %s do not divide, and fell back to another type\n",
               (unsigned long long)summary->n_fell_back, options->type);
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    bool as_json = ew_args_flag(args, "json");
    struct ew_topology topology;
    struct ew_quantize_summary summary;
    struct ew_quantize_options options = {
        .in = ew_args_at(args, 0),
        .out = ew_args_at(args, 1),
        .type = ew_args_str(args, "to", NULL),
        .pre_name = ew_args_str(args, "pre", NULL),
        .overwrite = ew_args_flag(args, "force"),
        .interrupted = ew_interrupted,
        .on_tensor = as_json ? add_tensor_json : print_tensor,
    };
    struct ew_buf tensors;
    double started = ew_clock_s();
    int code;

    if (!options.type) {
        ew_fail(err, EW_ERR_USAGE, "quantize was not told what to write");
        return ew_remedy(err, EW_ERR_USAGE, "add --to with one of %s", ew_quantize_types);
    }
    ew_topology_read(NULL, &topology);
    options.n_threads = (uint32_t)ew_args_int(args, "threads", topology.n_usable);
    ew_buf_init(&tensors, JSON_BYTES_MAX);
    options.ctx = &tensors;
    code = ew_quantize(&options, &summary, err);
    if (code == EW_OK && as_json && !ew_buf_ok(&tensors))
        code = ew_fail_memory(err, tensors.len, "the list of tensors");
    if (code == EW_OK && as_json)
        print_json(&options, &summary, &tensors, ew_clock_s() - started);
    else if (code == EW_OK)
        print_summary(&options, &summary, ew_clock_s() - started);
    if (code == EW_OK && summary.n_not_finite)
        ew_log(EW_LOG_WARN, "%llu values of %s are NaN or infinite; blocks hold 0 or the largest f16 in their place",
               (unsigned long long)summary.n_not_finite, options.in);
    ew_buf_fini(&tensors);
    return code;
}

static const struct ew_opt *const g_options[] = {g_quantize_options, ew_opts_common, NULL};

const struct ew_command ew_cmd_quantize = {
    .name = "quantize",
    .usage = "quantize IN OUT --to TYPE [--force] [--json]",
    .summary = "Convert and quantise a model to a GGUF file",
    .details =
        "IN is a GGUF file or a Hugging Face directory. For each tensor a line says its type before and after, the "
        "error (root\n"
        "mean square, relative to the values') and the largest error. Vectors and norms stay in f32. Rows that the "
        "blocks of\n"
        "TYPE do not divide fall back: q4_k to q5_0, q6_k to q8_0, and to f16 where those do not divide them either.",
    .options = g_options,
    .n_args_min = 2,
    .n_args_max = 2,
    .run = run,
};
