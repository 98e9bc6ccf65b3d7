// plan: does it fit, and how fast can it be. profiles: the devices that plan knows.

#include <string.h>

#include "base/assert.h"
#include "bench/bandwidth.h"
#include "bench/disk.h"
#include "cli/cli.h"
#include "plan/plan.h"
#include "platform/probe.h"

#define REPORT_BYTES_MAX 65536

static const struct ew_opt g_own[] = {
    {"params", 0, EW_OPT_STRING, "N", "instead of a model: its parameters, as 70B"},
    {"active", 0, EW_OPT_STRING, "N", "of these, read for each token (mixtures of experts)"},
    {"layers", 0, EW_OPT_INT, "N", "with --params: layers, for the caches", NULL, 1, 1024},
    {"kv-heads", 0, EW_OPT_INT, "N", "with --params: KV heads", NULL, 1, 2048},
    {"head-dim", 0, EW_OPT_INT, "N", "with --params: elements of a head", NULL, 1, 2048},
    {"width", 0, EW_OPT_INT, "N", "with --params: hidden size", NULL, 1, 1000000},
    {"profile", 0, EW_OPT_STRING, "NAME", "a device of `edgewise profiles`, or a .yaml file; default this machine"},
    {"quant", 0, EW_OPT_STRING, "TYPE", "weights in this type instead: bf16, fp8, q8_0, q4_k, int4, ..."},
    {"kv", 0, EW_OPT_CHOICE, "TYPE", "type of the caches; default the profile's", "f32|f16|fp8|int8"},
    {"ctx", 'c', EW_OPT_INT, "N", "context of a session; default the profile's", NULL, 1, 16777216},
    {"sessions", 0, EW_OPT_INT, "N", "sessions at once; default 1", NULL, 1, 100000},
    {"reserve", 0, EW_OPT_BYTES, "SIZE", "memory left for others, such as a database beside it"},
    {"measure", 0, EW_OPT_FLAG, NULL, "measure this machine's memory bandwidth, and its disk with the model's file"},
    {"table", 0, EW_OPT_FLAG, NULL, "instead of a model: which sizes of models the device is good for"},
    {"write-profile", 0, EW_OPT_STRING, "FILE", "write the settings of a plan that holds, for serve --profile FILE"},
    {"bandwidth", 0, EW_OPT_FLOAT, "GB/s", "memory bandwidth; default the profile's", NULL, 0.001, 1e6},
    {"prompt", 'p', EW_OPT_INT, "N", "tokens of the prompt whose TTFT is told; default 512", NULL, 1, 16777216},
    {"target-tps", 0, EW_OPT_FLOAT, "N", "is this decode speed possible?", NULL, 0.001, 1e9},
    {"target-ttft", 0, EW_OPT_FLOAT, "MS", "is this time to the first token possible?", NULL, 0.001, 1e9},
    {"target-width", 0, EW_OPT_INT, "N", "can its embeddings be so wide?", NULL, 1, 1000000},
    {"target-load", 0, EW_OPT_FLOAT, "S", "is this loading time possible?", NULL, 0.001, 1e9},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model, g_own, ew_opts_common, NULL};
static const struct ew_opt *const g_profile_options[] = {ew_opts_common, NULL};

// "70B", "1.5T", "600M" or a plain number of parameters: powers of 1000, unlike sizes of memory.
static int parse_params(const char *name, const char *text, double *out, struct ew_error *err)
{
    size_t len = strlen(text);
    const char *units = "MBT", *unit = len ? strchr(units, text[len - 1] & ~0x20) : NULL;
    double scale = unit && *unit ? (unit == units ? 1e6 : unit == units + 1 ? 1e9 : 1e12) : 1;

    if (ew_str_to_double((struct ew_str){text, len - (scale > 1)}, out) && *out > 0) {
        *out *= scale;
        return EW_OK;
    }
    return ew_fail(err, EW_ERR_USAGE, "--%s needs a number of parameters such as 8B, not \"%s\"", name, text);
}

static int read_figures(const struct ew_args *args, struct ew_outline_figures *figures, struct ew_error *err)
{
    const char *active = ew_args_str(args, "active", NULL);
    int code = parse_params("params", ew_args_str(args, "params", ""), &figures->params, err);

    if (code == EW_OK && active)
        code = parse_params("active", active, &figures->active_params, err);
    figures->layers = (uint32_t)ew_args_int(args, "layers", 0);
    figures->kv_heads = (uint32_t)ew_args_int(args, "kv-heads", 0);
    figures->head_dim = (uint32_t)ew_args_int(args, "head-dim", 0);
    figures->width = (uint32_t)ew_args_int(args, "width", 0);
    return code;
}

static int read_model(const struct ew_args *args, struct ew_outline *outline, struct ew_error *err)
{
    const char *quant = ew_args_str(args, "quant", NULL), *model = ew_args_str(args, "model", NULL);
    const struct ew_weight_type *type = quant ? ew_weight_type_find(quant) : NULL;
    struct ew_outline_figures figures = {0};
    int code;

    if (quant && !type) {
        ew_fail(err, EW_ERR_USAGE, "--quant does not know \"%s\"", quant);
        return ew_remedy(
            err, EW_ERR_USAGE,
            "Use one of f32, bf16, f16, q8_0, fp8, int8, q6_k, q5_k, q4_k_m, q4_k, q4_0, nvfp4, mxfp4, awq, int4");
    }
    if (!ew_args_has(args, "params") && model)
        return ew_outline_of_model(outline, model, type, err);
    if (!ew_args_has(args, "params")) {
        ew_fail(err, EW_ERR_USAGE, "no model is given");
        return ew_remedy(err, EW_ERR_USAGE, "Add -m MODEL, or --params 8B with --layers, --kv-heads and --head-dim");
    }
    code = read_figures(args, &figures, err);
    return code == EW_OK ? ew_outline_of_figures(outline, &figures, type ? type : ew_weight_type_find("bf16"), err)
                         : code;
}

static void read_device(const struct ew_args *args, const struct ew_facts *facts, struct ew_plan_request *request)
{
    const struct ew_profile *profile = request->profile;
    double bits = request->model.weight_bytes * 8 / request->model.params;
    double usable = ew_profile_number(profile, "memory_usable_mib", 0);
    double utilization = profile->serve.gpu_memory_utilization > 0 ? profile->serve.gpu_memory_utilization : 1;
    bool unified = ew_facts_bool(facts, "integrated", true);
    const char *rate = bits < 6 && ew_profile_number(profile, "fp4_tflops", 0) > 0    ? "fp4_tflops"
                       : bits < 12 && ew_profile_number(profile, "fp8_tflops", 0) > 0 ? "fp8_tflops"
                                                                                      : "fp16_tflops";

    request->memory_mib = usable * utilization;
    request->cache_fraction = request->on_this_machine ? 0 : profile->serve.kv_cache_free_gpu_memory_fraction;
    if (request->on_this_machine) // a discrete card has memory of its own, everything else shares the system's
        request->memory_mib = !unified && ew_facts_get(facts, EW_STR("gpu_mem_free_mib"))
                                  ? ew_facts_number(facts, "gpu_mem_free_mib", 0)
                                  : ew_facts_number(facts, "host_avail_mib", 0);
    request->bandwidth_gb_s = ew_args_float(args, "bandwidth", ew_profile_number(profile, "bandwidth_gb_s", 0));
    request->flops = ew_profile_number(profile, rate, 0) * 1e12;
    request->disk_gb_s = ew_profile_number(profile, "disk_gb_s", 0);
}

static void read_load(const struct ew_args *args, struct ew_plan_request *request)
{
    const struct ew_serve_settings *serve = &request->profile->serve;
    const char *kv = ew_args_str(args, "kv", serve->kv_cache_dtype);
    uint32_t context = request->model.context_trained ? EW_MIN(serve->context, request->model.context_trained)
                                                      : serve->context;

    snprintf(request->kv, sizeof(request->kv), "%s", kv);
    request->kv_scaled = strcmp(kv, "fp8") == 0 || strcmp(kv, "int8") == 0;
    request->kv_bits = request->kv_scaled ? 8 : strcmp(kv, "f32") == 0 ? 32 : 16;
    request->context = (uint32_t)ew_args_int(args, "ctx", context);
    request->sessions = (uint32_t)ew_args_int(args, "sessions", 1);
    request->reserve_mib = (double)(ew_args_bytes(args, "reserve", 0) >> 20);
    request->prompt_tokens = (uint32_t)ew_args_int(args, "prompt", 512);
    request->targets = (struct ew_targets){
        .ttft_ms = ew_args_float(args, "target-ttft", 0),
        .decode_tok_s = ew_args_float(args, "target-tps", 0),
    };
    request->load_target_s = ew_args_float(args, "target-load", 0);
    request->width_target = (uint32_t)ew_args_int(args, "target-width", 0);
}

// What the engine itself would take, where it would be this machine's CPU that runs the model as it is.
static int read_sizes(const struct ew_args *args, struct ew_plan_request *request, struct ew_error *err)
{
    const char *model = ew_args_str(args, "model", NULL);
    struct ew_outline_load load = {
        .profile = request->profile, .kv = request->kv, .context = request->context, .sessions = request->sessions};
    bool gpu = ew_profile_number(request->profile, "compute_capability", 0) > 0;
    int code;

    if (!model || gpu || ew_args_has(args, "quant") || ew_args_has(args, "params"))
        return EW_OK;
    code = ew_outline_size(model, &load, &request->sizes, err);
    return code == EW_ERR_USAGE ? code : EW_OK; // what cannot be opened whole is estimated from its headers
}

static int measure(const struct ew_args *args, struct ew_plan_request *request, struct ew_error *err)
{
    const char *model = ew_args_str(args, "model", NULL);
    double gb_s;
    int code;

    if (!ew_args_flag(args, "measure"))
        return EW_OK;
    if (!request->on_this_machine)
        return ew_fail(err, EW_ERR_USAGE, "--measure is about this machine, --profile about another");
    code = ew_bandwidth_read(0, &request->bandwidth_gb_s, err);
    if (code == EW_OK && model && ew_disk_read(model, &gb_s, NULL) == EW_OK)
        request->disk_gb_s = gb_s;
    return code;
}

static int write_profile(const char *path, const struct ew_plan_request *request, const struct ew_plan *plan,
                         struct ew_error *err)
{
    struct ew_buf out;
    FILE *file;
    int code = EW_OK;

    if (!plan->fits) {
        ew_fail(err, EW_ERR_MEMORY, "%s is not written, because the plan does not fit", path);
        return ew_remedy(err, EW_ERR_MEMORY, "Change what the report names and plan again");
    }
    file = fopen(path, "wxe");
    if (!file)
        return ew_fail_errno(err, EW_ERR_IO, "cannot make %s", path);
    ew_buf_init(&out, REPORT_BYTES_MAX);
    ew_plan_serving_profile(request, plan, &out);
    if (!ew_buf_ok(&out))
        code = ew_fail_memory(err, out.len, "the profile");
    else if (fwrite(out.ptr, 1, out.len, file) != out.len)
        code = ew_fail_errno(err, EW_ERR_IO, "cannot write %s", path);
    if (fclose(file) != 0 && code == EW_OK)
        code = ew_fail_errno(err, EW_ERR_IO, "cannot write %s", path);
    ew_buf_fini(&out);
    return code;
}

static void print_table(const struct ew_args *args, const struct ew_plan_request *request)
{
    struct ew_buf out;

    ew_buf_init(&out, REPORT_BYTES_MAX);
    (ew_args_flag(args, "json") ? ew_plan_table_json : ew_plan_table_text)(request, &out);
    fwrite(out.ptr, 1, out.len, stdout);
    ew_buf_fini(&out);
}

static int print(const struct ew_args *args, const struct ew_plan_request *request, struct ew_error *err)
{
    struct ew_plan plan;
    struct ew_buf out;
    int code = EW_OK;

    ew_plan_make(request, &plan);
    if (ew_args_has(args, "write-profile"))
        code = write_profile(ew_args_str(args, "write-profile", ""), request, &plan, err);
    ew_buf_init(&out, REPORT_BYTES_MAX);
    (ew_args_flag(args, "json") ? ew_plan_json : ew_plan_text)(request, &plan, &out);
    fwrite(out.ptr, 1, out.len, stdout);
    ew_buf_fini(&out);
    if (code != EW_OK)
        return code;
    err->message[0] = '\0'; // the report has said it
    return ew_plan_holds(request, &plan) ? EW_OK : EW_ERR_MEMORY;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    const char *name = ew_args_str(args, "profile", NULL);
    struct ew_plan_request request = {.on_this_machine = !name};
    struct ew_profiles profiles;
    struct ew_facts facts;
    bool table = ew_args_flag(args, "table");
    int code = table ? EW_OK : read_model(args, &request.model, err);

    if (code != EW_OK)
        return code;
    code = ew_facts_init(&facts, NULL, err);
    if (code != EW_OK)
        return code;
    code = ew_profiles_load(&profiles, err);
    if (code != EW_OK)
        goto close_facts;
    if (name) {
        code = ew_profiles_find(&profiles, name, &request.profile, err);
    } else {
        ew_probe_all(NULL, &facts);
        request.profile = ew_profiles_match(&profiles, &facts);
    }
    if (code == EW_OK) {
        read_device(args, &facts, &request);
        read_load(args, &request);
        code = measure(args, &request, err);
    }
    if (code == EW_OK && table)
        print_table(args, &request);
    else if (code == EW_OK) {
        code = read_sizes(args, &request, err);
        code = code == EW_OK ? print(args, &request, err) : code;
    }
    ew_profiles_fini(&profiles);
close_facts:
    ew_facts_fini(&facts);
    return code;
}

static int run_profiles(const struct ew_args *args, struct ew_error *err)
{
    const struct ew_profile *profile;
    struct ew_profiles profiles;
    int code = ew_profiles_load(&profiles, err);

    if (code != EW_OK)
        return code;
    if (ew_args_count(args)) {
        code = ew_profiles_find(&profiles, ew_args_at(args, 0), &profile, err);
        if (code == EW_OK)
            fwrite(profile->text.ptr, 1, profile->text.len, stdout);
    }
    for (uint32_t i = 0; i < profiles.count && !ew_args_count(args); i++) {
        profile = &profiles.list[i];
        printf("%-24.*s%-32.*s%6.0f GB %6.0f GB/s\n", (int)profile->id.len, profile->id.ptr, (int)profile->title.len,
               profile->title.ptr, ew_profile_number(profile, "memory_gb", 0),
               ew_profile_number(profile, "bandwidth_gb_s", 0));
    }
    ew_profiles_fini(&profiles);
    return code;
}

const struct ew_command ew_cmd_plan = {
    .name = "plan",
    .usage = "plan (-m MODEL | --params N) [--profile NAME] [--ctx N] [--sessions N] [--quant TYPE] | --table",
    .summary = "Say what fits, and how fast it can possibly be, before loading",
    .details = "Reads headers only; a directory with nothing but a config.json will do. Exit status 1\n"
               "when it does not fit or a target is impossible. --write-profile makes a new file for\n"
               "edgewise serve --profile FILE.",
    .options = g_options,
    .run = run,
};

const struct ew_command ew_cmd_profiles = {
    .name = "profiles",
    .usage = "profiles [NAME]",
    .summary = "List the device profiles, or print one",
    .options = g_profile_options,
    .n_args_max = 1,
    .run = run_profiles,
};
