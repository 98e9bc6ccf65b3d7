// bench kernels: every kernel against the plain C reference, and its speed as a share of this machine's
// measured limits.

#include <regex.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"
#include "bench/bandwidth.h"
#include "cli/bench_device.h"
#include "cli/cli.h"
#include "kernel/cpu/cpu_check.h"
#include "platform/cpu.h"
#include "platform/topology.h"

#define JSON_BYTES_MAX ((size_t)1 << 20)
#define STREAM_BYTES_MIN (64ull << 20)
#define STREAM_CACHES 4 // times the last cache: what it still holds must not count

struct bench {
    regex_t filter;
    bool has_filter, as_json;
    double read_bytes_s, flops_s; // limits
    struct ew_buf json;
    uint32_t n_checks, n_failed;
};

static bool wanted(void *ctx, const char *name)
{
    const struct bench *bench = ctx;

    return !ew_interrupted() && (!bench->has_filter || regexec(&bench->filter, name, 0, NULL, 0) == 0);
}

static void append_json(struct bench *bench, const struct ew_cpu_check *check)
{
    ew_buf_printf(&bench->json,
                  "%s\n  {\"op\": \"%s\", \"variant\": \"%s\", \"isa\": \"%s\", \"pass\": %s, \"cases\": %u, "
                  "\"error_of_bound\": %.4g, ",
                  bench->n_checks > 1 ? "," : "", check->op, check->variant, check->isa,
                  check->error <= 1 ? "true" : "false", check->n_cases, check->error <= 1e30 ? check->error : 1e30);
    if (check->seconds > 0)
        ew_buf_printf(&bench->json, "\"seconds\": %.6g, \"gb_s\": %.5g, \"limit_pct\": %.4g, ", check->seconds,
                      check->bytes / check->seconds / 1e9, 100 * check->bytes / check->seconds / bench->read_bytes_s);
    ew_buf_printf(&bench->json, "\"cache_gb_s\": %.5g, \"gflop_s\": %.5g, \"peak_pct\": %.4g}",
                  check->seconds > 0 ? check->cache_bytes / check->seconds / 1e9 : 0,
                  check->seconds > 0 ? check->flops / check->seconds / 1e9 : 0,
                  check->seconds > 0 ? 100 * check->flops / check->seconds / bench->flops_s : 0);
}

static void print_check(const struct bench *bench, const struct ew_cpu_check *check)
{
    char name[80];

    snprintf(name, sizeof(name), "%s %s", check->op, check->variant);
    printf("%-26s %-10s ", name, check->isa);
    if (check->n_cases)
        printf("%s %5u cases, error %4.2f of bound", check->error <= 1 ? "ok  " : "FAIL", check->n_cases, check->error);
    else
        printf("%41s", "");
    if (check->bytes > 0)
        printf("  %8.1f GB/s %3.0f %%", check->bytes / check->seconds / 1e9,
               100 * check->bytes / check->seconds / bench->read_bytes_s);
    if (check->cache_bytes > 0)
        printf("  %8.2f us for 4096, %.0f GB/s in the cache", check->seconds * 1e6,
               check->cache_bytes / check->seconds / 1e9);
    if (check->flops > 0 && check->seconds > 0)
        printf("  %8.1f GFLOP/s %3.0f %% of f32", check->flops / check->seconds / 1e9,
               100 * check->flops / check->seconds / bench->flops_s);
    printf("\n");
    fflush(stdout);
}

static void report(void *ctx, const struct ew_cpu_check *check)
{
    struct bench *bench = ctx;

    bench->n_checks++;
    bench->n_failed += !(check->error <= 1);
    if (bench->as_json)
        append_json(bench, check);
    else
        print_check(bench, check);
}

static int measure_limits(struct bench *bench, struct ew_pool *pool, uint32_t isa_mask, struct ew_error *err)
{
    double gb_s;
    int rc = ew_bandwidth_read(ew_pool_threads(pool), &gb_s, err);

    if (rc < 0)
        return rc;
    bench->read_bytes_s = gb_s * 1e9;
    return ew_cpu_measure_flops(pool, isa_mask, &bench->flops_s, err);
}

static int run_checks(struct bench *bench, struct ew_pool *pool, uint32_t isa_mask, struct ew_error *err)
{
    struct ew_cpu_check_config config = {
        .isa_mask = isa_mask, .wanted = wanted, .report = report, .ctx = bench, .pool = pool};
    struct ew_topology topology;
    int rc = measure_limits(bench, pool, isa_mask, err);

    if (rc < 0)
        return rc;
    ew_topology_read(NULL, &topology);
    config.stream_bytes = EW_MAX(STREAM_BYTES_MIN, STREAM_CACHES * topology.l3_bytes);
    if (bench->as_json)
        ew_buf_printf(&bench->json,
                      "{\"isa\": \"%s\", \"threads\": %u, \"read_gb_s\": %.5g, \"f32_gflop_s\": %.5g, \"kernels\": [",
                      ew_isa_best(isa_mask), ew_pool_threads(pool), bench->read_bytes_s / 1e9, bench->flops_s / 1e9);
    else
        printf("%s, %u threads: reads %.1f GB/s, computes %.1f GFLOP/s in f32\n", ew_isa_best(isa_mask),
               ew_pool_threads(pool), bench->read_bytes_s / 1e9, bench->flops_s / 1e9);
    return ew_cpu_check_run(&config, err);
}

static int finish(struct bench *bench, int rc, struct ew_error *err)
{
    if (rc != 0 && rc != EW_ERR_MISMATCH)
        return rc;
    ew_buf_printf(&bench->json, "],\n \"checks\": %u, \"failed\": %u}\n", bench->n_checks, bench->n_failed);
    if (!bench->as_json)
        printf("%u checks, %u failed\n", bench->n_checks, bench->n_failed);
    else if (ew_buf_ok(&bench->json))
        fwrite(bench->json.ptr, 1, bench->json.len, stdout);
    else
        return ew_fail_memory(err, bench->json.len, "the result");
    return rc;
}

static int compile_filter(struct bench *bench, const char *pattern, struct ew_error *err)
{
    char why[128];
    int failed;

    if (!pattern)
        return 0;
    failed = regcomp(&bench->filter, pattern, REG_EXTENDED | REG_NOSUB);
    if (failed) {
        regerror(failed, &bench->filter, why, sizeof(why));
        return ew_fail(err, EW_ERR_USAGE, "--filter \"%.100s\" is not a regular expression: %s", pattern, why);
    }
    bench->has_filter = true;
    return 0;
}

static int bench_cpu(struct bench *bench, const struct ew_args *args, struct ew_error *err)
{
    struct ew_pool *pool = NULL;
    struct ew_topology topology;
    uint32_t mask;
    int rc = ew_isa_cap(ew_args_str(args, "cpu-max", NULL), &mask, err);

    ew_topology_read(NULL, &topology);
    ew_buf_init(&bench->json, JSON_BYTES_MAX);
    if (rc == 0)
        rc = ew_pool_create((uint32_t)ew_args_int(args, "threads", topology.n_usable), "kernels", &pool, err);
    if (rc == 0)
        rc = finish(bench, run_checks(bench, pool, ew_cpu_isa() & mask, err), err);
    ew_pool_destroy(pool);
    ew_buf_fini(&bench->json);
    return rc;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct bench bench = {.as_json = ew_args_flag(args, "json")};
    int rc = compile_filter(&bench, ew_args_str(args, "filter", NULL), err);

    if (rc < 0)
        return rc;
    if (strcmp(ew_args_str(args, "backend", "cpu"), "cuda") == 0)
        rc = ew_bench_device(args, bench.has_filter ? &bench.filter : NULL, err);
    else
        rc = bench_cpu(&bench, args, err);
    if (bench.has_filter)
        regfree(&bench.filter);
    return rc;
}

static const struct ew_opt g_own[] = {
    {"backend", 0, EW_OPT_CHOICE, "NAME", "whose kernels; default cpu", "cpu|cuda"},
    {"model", 'm', EW_OPT_STRING, "MODEL", "with --backend cuda: only the kernels of this model"},
    {"check", 0, EW_OPT_FLAG, NULL, "with --backend cuda: time nothing"},
    {"filter", 0, EW_OPT_STRING, "RE",
     "only kernels whose \"op variant\" (GPU: \"op kernels\") matches this regular expression"},
    {"threads", 't', EW_OPT_INT, "N", "threads that are timed; default one a physical core", NULL, 1,
     EW_POOL_THREADS_MAX},
    {"cpu-max", 0, EW_OPT_CHOICE, "ISA", "check no newer instruction set",
     "reference|avx2|avx512|avx512-vnni|avx512-vbmi|amx|neon|dotprod|i8mm"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {g_own, ew_opts_common, NULL};

const struct ew_command ew_cmd_bench_kernels = {
    .name = "bench kernels",
    .usage = "bench kernels [--backend cuda [-m MODEL] [--check]] [--filter RE] [-t N] [--cpu-max ISA] [--json]",
    .summary = "Check and time every kernel of this machine",
    .details =
        "Each kernel of each instruction set is compared with the plain C reference on inputs that favour extremes and "
        "odd\n"
        "sizes, within its own error bound, and timed: products read weights from memory, and their GB/s is given as a "
        "share\n"
        "of the bandwidth measured in the same run; products with 64 activations as a share of the f32 peak of the\n"
        "widest kernels. With --backend cuda, models in small of every kind are computed launch by launch, and\n"
        "launches of real sizes are timed beside what the GPU's memory and tensor cores reach. Exits with status 1\n"
        "where a kernel is wrong.",
    .options = g_options,
    .run = run,
};
