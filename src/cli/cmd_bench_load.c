// bench load: drive any server that speaks the OpenAI API, and say how it fared.

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "bench/load.h"
#include "cli/cli.h"
#include "cli/print_json.h"
#include "format/profile.h"

#define JSON_BYTES_MAX ((size_t)1 << 20)
#define KEY_BYTES_MAX 1024
#define REQUESTS_PER_CLIENT 10 // where neither a number nor a duration is given
#define SEEDS 1000000007ull // the clock's seeds are below this, short enough to be typed again
#define SLO_SHARE_DEFAULT 95   // per cent of the requests that must keep the limits

static const char *const g_outcomes[EW_LOAD_N_OUTCOMES] = {
    [EW_LOAD_REFUSED] = "refused",    [EW_LOAD_UNREACHED] = "unreached", [EW_LOAD_STATUS] = "status",
    [EW_LOAD_TIMEOUT] = "timeout",    [EW_LOAD_BROKEN] = "broken",       [EW_LOAD_MALFORMED] = "malformed",
    [EW_LOAD_ERROR] = "stream_error",
};
static const char *const g_outcome_texts[EW_LOAD_N_OUTCOMES] = {
    [EW_LOAD_REFUSED] = "connection refused", [EW_LOAD_UNREACHED] = "not connected",
    [EW_LOAD_STATUS] = "no success",          [EW_LOAD_TIMEOUT] = "over --timeout",
    [EW_LOAD_BROKEN] = "ended early",         [EW_LOAD_MALFORMED] = "not understood",
    [EW_LOAD_ERROR] = "error in the stream",
};

struct verdict { // of one target or limit
    const char *name, *unit;
    double measured, wanted;
    bool at_least; // else at most
};
#define VERDICTS_MAX 4

static bool holds(const struct verdict *verdict)
{
    return verdict->at_least ? verdict->measured >= verdict->wanted : verdict->measured <= verdict->wanted;
}

// What the profile expects: the first token for 95 of 100, the mean stream's speed, the whole answer for 99 of 100.
static uint32_t target_verdicts(const struct ew_targets *targets, const struct ew_load_report *report,
                                struct verdict *out)
{
    double itl_ms = fmax(report->itl_ms.mean, 1e-3); // 0 where answers came in one piece
    uint32_t n = 0;

    if (targets->ttft_ms > 0)
        out[n++] = (struct verdict){"TTFT p95", "ms", report->ttft_ms.p95, targets->ttft_ms, false};
    if (targets->decode_tok_s > 0 && report->itl_ms.count)
        out[n++] = (struct verdict){"decode", "tok/s", 1e3 / itl_ms, targets->decode_tok_s, true};
    if (targets->latency_ms_p99 > 0)
        out[n++] = (struct verdict){"answer p99", "ms", report->e2e_ms.p99, targets->latency_ms_p99, false};
    return n;
}

static uint64_t attempts(const struct ew_load_report *report)
{
    return report->n_ok + report->n_failed;
}

static double share(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static bool has_limits(const struct ew_load_options *options)
{
    return options->slo_ttft_ms > 0 || options->slo_itl_ms > 0 || options->slo_e2e_ms > 0;
}

static double per_second(uint64_t n, const struct ew_load_report *report)
{
    return report->wall_s > 0 ? (double)n / report->wall_s : 0;
}

static void json_quantiles(struct ew_buf *json, const char *name, const struct ew_quantiles *q)
{
    ew_buf_printf(json, ", \"%s\": ", name);
    if (q->count == 0)
        ew_buf_append_str(json, EW_STR("null"));
    else
        ew_buf_printf(json,
                      "{\"mean\": %.6g, \"p50\": %.6g, \"p90\": %.6g, \"p95\": %.6g, \"p99\": %.6g, \"max\": %.6g, "
                      "\"count\": %llu}",
                      q->mean, q->p50, q->p90, q->p95, q->p99, q->max, (unsigned long long)q->count);
}

static void json_setting(struct ew_buf *json, const struct ew_load_options *options,
                         const struct ew_load_report *report)
{
    ew_buf_append_str(json, EW_STR("{\"url\": "));
    ew_buf_append_json(json, ew_str_of(options->url));
    ew_buf_append_str(json, EW_STR(", \"model\": "));
    ew_buf_append_json(json, ew_str_of(report->model));
    ew_buf_printf(json, ", \"endpoint\": \"%s\", \"loop\": \"%s\"", options->chat ? "chat" : "completions",
                  options->rate > 0 ? "open" : "closed");
    if (options->rate > 0)
        ew_buf_printf(json, ", \"rate\": %.9g, \"arrival\": \"%s\"", options->rate,
                      options->constant ? "constant" : "poisson");
    else
        ew_buf_printf(json, ", \"concurrency\": %u", options->concurrency);
    ew_buf_printf(json,
                  ", \"seed\": %llu, \"turns\": %u, \"asked_prompt_tokens\": %u, \"asked_gen_tokens\": %u, "
                  "\"shared_prefix_tokens\": %u, \"prompts_exact\": %s, \"tokens_per_word\": %.6g",
                  (unsigned long long)options->seed, options->n_turns, options->n_prompt, options->n_gen,
                  options->n_shared, report->exact_prompts ? "true" : "false", report->tokens_per_word);
}

static void json_failures(struct ew_buf *json, const struct ew_load_report *report)
{
    bool first = true;

    ew_buf_append_str(json, EW_STR(", \"errors\": {"));
    for (uint32_t i = 0; i < EW_LOAD_N_OUTCOMES; i++) {
        if (!g_outcomes[i] || !report->outcomes[i].count)
            continue;
        ew_buf_printf(json, "%s\"%s\": {\"count\": %llu, \"first\": ", first ? "" : ", ", g_outcomes[i],
                      (unsigned long long)report->outcomes[i].count);
        ew_buf_append_json(json, ew_str_of(report->outcomes[i].message));
        ew_buf_append_char(json, '}');
        first = false;
    }
    ew_buf_append_str(json, EW_STR("}, \"statuses\": {"));
    for (uint32_t i = 0; i < EW_LOAD_STATUSES_MAX && report->statuses[i].count; i++)
        ew_buf_printf(json, "%s\"%d\": %llu", i ? ", " : "", report->statuses[i].status,
                      (unsigned long long)report->statuses[i].count);
    ew_buf_append_char(json, '}');
}

static void json_counts(struct ew_buf *json, const struct ew_load_report *report)
{
    const unsigned long long attempted = attempts(report), ok = report->n_ok, failed = report->n_failed;

    ew_buf_printf(json,
                  ", \"requests\": %llu, \"ok\": %llu, \"failed\": %llu, \"stopped\": %llu, \"interrupted\": %s, "
                  "\"duration_s\": %.6g, \"client_cpu_s\": %.6g, \"connections\": %llu, \"in_flight_max\": %u",
                  attempted, ok, failed, (unsigned long long)report->n_stopped, report->interrupted ? "true" : "false",
                  report->wall_s, report->cpu_s, (unsigned long long)report->n_connects, report->in_flight_max);
    ew_buf_printf(
        json,
        ", \"prompt_tokens\": %llu, \"cached_tokens\": %llu, \"prompt_tokens_min\": %lld, "
        "\"prompt_tokens_max\": %lld, \"output_tokens\": %llu, \"counted_by\": \"%s\", \"short_answers\": %llu",
        (unsigned long long)report->prompt_tokens, (unsigned long long)report->cached_tokens,
        (long long)report->prompt_min, (long long)report->prompt_max, (unsigned long long)report->output_tokens,
        report->usage ? "usage" : "pieces", (unsigned long long)report->n_short);
    ew_buf_printf(json, ", \"request_s\": %.6g, \"output_tok_s\": %.6g, \"prompt_tok_s\": %.6g",
                  per_second(report->n_ok, report), per_second(report->output_tokens, report),
                  per_second(report->prompt_tokens, report));
}

static int print_json(const struct ew_load_options *options, const struct ew_load_report *report,
                      const struct verdict *verdicts, uint32_t n_verdicts, struct ew_error *err)
{
    struct ew_buf json;

    ew_buf_init(&json, JSON_BYTES_MAX);
    json_setting(&json, options, report);
    json_counts(&json, report);
    json_quantiles(&json, "ttft_ms", &report->ttft_ms);
    if (options->n_turns > 1) {
        json_quantiles(&json, "ttft_first_turn_ms", &report->ttft_first_ms);
        json_quantiles(&json, "ttft_later_turns_ms", &report->ttft_later_ms);
    }
    json_quantiles(&json, "itl_ms", &report->itl_ms);
    json_quantiles(&json, "tpot_ms", &report->tpot_ms);
    json_quantiles(&json, "e2e_ms", &report->e2e_ms);
    json_failures(&json, report);
    if (has_limits(options))
        ew_buf_printf(&json, ", \"good\": %llu, \"goodput_request_s\": %.6g, \"good_pct\": %.6g",
                      (unsigned long long)report->n_good, per_second(report->n_good, report),
                      share(report->n_good, attempts(report)));
    if (options->verify)
        ew_buf_printf(&json, ", \"verified\": %llu, \"verified_same\": %llu", (unsigned long long)report->n_verified,
                      (unsigned long long)report->n_same);
    for (uint32_t i = 0; i < n_verdicts; i++)
        ew_buf_printf(&json, "%s{\"name\": \"%s\", \"measured\": %.6g, \"%s\": %.6g, \"met\": %s}%s",
                      i ? ", " : ", \"targets\": [", verdicts[i].name, verdicts[i].measured,
                      verdicts[i].at_least ? "at_least" : "at_most", verdicts[i].wanted,
                      holds(&verdicts[i]) ? "true" : "false", i + 1 == n_verdicts ? "]" : "");
    ew_buf_append_str(&json, EW_STR("}\n"));
    return ew_print_json(&json, err);
}

static void print_quantiles(const char *name, const struct ew_quantiles *q)
{
    if (q->count)
        printf("  %-16s %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f\n", name, q->mean, q->p50, q->p90, q->p95, q->p99, q->max);
}

static void print_setting(const struct ew_load_options *options, const struct ew_load_report *report)
{
    printf("%s at %s, %s, ", report->model, options->url, options->chat ? "chat" : "completions");
    if (options->rate > 0)
        printf("%.4g requests due a second (%s, seed %llu)\n", options->rate,
               options->constant ? "constant" : "Poisson", (unsigned long long)options->seed);
    else
        printf("%u client%s (seed %llu)\n", options->concurrency, options->concurrency == 1 ? "" : "s",
               (unsigned long long)options->seed);
    if (report->prompt_min >= 0)
        printf("  prompts          %lld to %lld tokens", (long long)report->prompt_min, (long long)report->prompt_max);
    else
        printf("  prompts          about %u words; the server does not count", options->n_prompt);
    if (report->cached_tokens)
        printf(", %.0f %% of them reused", share(report->cached_tokens, report->prompt_tokens));
    printf("; answers %.1f tokens%s\n", report->n_ok ? (double)report->output_tokens / (double)report->n_ok : 0,
           report->usage ? "" : " (pieces counted, the server does not tell)");
}

static void print_failures(const struct ew_load_report *report)
{
    for (uint32_t i = 0; i < EW_LOAD_N_OUTCOMES; i++)
        if (g_outcomes[i] && report->outcomes[i].count)
            printf("  failed           %llu %s; the first: %s\n", (unsigned long long)report->outcomes[i].count,
                   g_outcome_texts[i], report->outcomes[i].message);
    for (uint32_t i = 0; i < EW_LOAD_STATUSES_MAX && report->statuses[i].count; i++)
        if (report->statuses[i].status)
            printf("    status %d       %llu\n", report->statuses[i].status,
                   (unsigned long long)report->statuses[i].count);
        else
            printf("    other statuses   %llu\n", (unsigned long long)report->statuses[i].count);
}

static void print_text(const struct ew_load_options *options, const struct ew_load_report *report,
                       const struct verdict *verdicts, uint32_t n_verdicts)
{
    print_setting(options, report);
    printf("  requests         %llu answered, %llu failed in %.2f s%s%s\n", (unsigned long long)report->n_ok,
           (unsigned long long)report->n_failed, report->wall_s, report->n_stopped ? ", the rest stopped" : "",
           report->interrupted ? " (interrupted)" : "");
    print_failures(report);
    printf("  throughput       %.1f output tok/s, %.2f requests/s; this client used %.0f %% of a core\n",
           per_second(report->output_tokens, report), per_second(report->n_ok, report),
           report->wall_s > 0 ? 100 * report->cpu_s / report->wall_s : 0);
    printf("  ms                    mean       p50       p90       p95       p99       max\n");
    print_quantiles("TTFT", &report->ttft_ms);
    if (options->n_turns > 1) {
        print_quantiles("  first turn", &report->ttft_first_ms);
        print_quantiles("  later turns", &report->ttft_later_ms);
    }
    print_quantiles("ITL", &report->itl_ms);
    print_quantiles("ITL of a request", &report->tpot_ms);
    print_quantiles("whole answer", &report->e2e_ms);
    if (report->n_short)
        printf("  short            %llu answers ended before %u tokens\n", (unsigned long long)report->n_short,
               options->n_gen);
    if (has_limits(options))
        printf("  goodput          %.2f requests/s, %.1f %% within the limits\n", per_second(report->n_good, report),
               share(report->n_good, attempts(report)));
    if (options->verify)
        printf("  verified         %llu of %llu answers are the same alone%s%s\n", (unsigned long long)report->n_same,
               (unsigned long long)report->n_verified, report->difference[0] ? "; " : "", report->difference);
    for (uint32_t i = 0; i < n_verdicts; i++)
        printf("  %-16s %.4g %s, wanted %s %.4g: %s\n", verdicts[i].name, verdicts[i].measured, verdicts[i].unit,
               verdicts[i].at_least ? "at least" : "at most", verdicts[i].wanted,
               holds(&verdicts[i]) ? "met" : "missed");
}

// The exit status: 1 where a request failed, a limit or target was missed, an answer differs, or the user interrupted.
static int judge(const struct ew_load_options *options, const struct ew_load_report *report, double slo_share,
                 const struct verdict *verdicts, uint32_t n_verdicts, struct ew_error *err)
{
    const unsigned long long failed = report->n_failed, attempted = attempts(report);

    if (report->interrupted)
        return ew_fail(err, EW_ERR_CANCELLED, "interrupted; the figures are those until then");
    if (report->n_failed)
        return ew_fail(err, EW_ERR_IO, "%llu of %llu requests failed", failed, attempted);
    if (report->n_ok == 0)
        return ew_fail(err, EW_ERR_IO, "no request was answered");
    if (options->verify && report->n_same != report->n_verified)
        return ew_fail(err, EW_ERR_MISMATCH, "%llu answers differ from those that the same prompts give alone",
                       (unsigned long long)(report->n_verified - report->n_same));
    if (has_limits(options) && share(report->n_good, attempts(report)) < slo_share)
        return ew_fail(err, EW_ERR_LIMIT, "%.1f %% of the requests kept the limits, %.4g %% were wanted",
                       share(report->n_good, attempts(report)), slo_share);
    for (uint32_t i = 0; i < n_verdicts; i++)
        if (!holds(&verdicts[i]))
            return ew_fail(err, EW_ERR_LIMIT, "the profile's target for %s is missed: %.4g %s against %.4g",
                           verdicts[i].name, verdicts[i].measured, verdicts[i].unit, verdicts[i].wanted);
    return EW_OK;
}

// The first line of the file, which a header must be able to carry.
static int read_key(const char *path, char *key, size_t size, struct ew_error *err)
{
    FILE *file = fopen(path, "re");
    bool whole;

    if (!file)
        return ew_fail_errno(err, EW_ERR_IO, "--api-key-file: cannot open %s", path);
    whole = fgets(key, (int)size, file) && strlen(key) + 1 < size;
    fclose(file);
    key[whole ? strcspn(key, "\r\n") : 0] = '\0';
    for (const char *c = key; *c; c++)
        whole &= *c > ' ' && *c < 0x7f;
    return whole && key[0] ? EW_OK
                           : ew_fail(err, EW_ERR_FORMAT, "--api-key-file: %s has no key in its first line", path);
}

static struct ew_load_options options_of(const struct ew_args *args)
{
    struct ew_load_options options = {
        .url = ew_args_str(args, "url", NULL),
        .model = ew_args_str(args, "model", NULL),
        .chat = strcmp(ew_args_str(args, "endpoint", "chat"), "chat") == 0,
        .concurrency = (uint32_t)ew_args_int(args, "concurrency", 1),
        .rate = ew_args_float(args, "rate", 0),
        .constant = strcmp(ew_args_str(args, "arrival", "poisson"), "constant") == 0,
        .n_requests = (uint64_t)ew_args_int(args, "requests", 0),
        .duration_s = ew_args_float(args, "duration", 0),
        .n_prompt = (uint32_t)ew_args_int(args, "prompt-tokens", 256),
        .n_shared = (uint32_t)ew_args_int(args, "shared-prefix", 0),
        .n_turns = (uint32_t)ew_args_int(args, "turns", 1),
        .n_turn_tokens = (uint32_t)ew_args_int(args, "turn-tokens", 32),
        .n_gen = (uint32_t)ew_args_int(args, "gen-tokens", 64),
        .seed = (uint64_t)ew_args_int(args, "seed", (int64_t)(ew_clock_ns() % SEEDS)),
        .temperature = ew_args_float(args, "temp", 0),
        .timeout_s = ew_args_float(args, "timeout", 600),
        .stream = !ew_args_flag(args, "no-stream"),
        .ignore_eos = !ew_args_flag(args, "stop-at-eos"),
        .verify = ew_args_flag(args, "verify"),
        .slo_ttft_ms = ew_args_float(args, "slo-ttft", 0),
        .slo_itl_ms = ew_args_float(args, "slo-itl", 0),
        .slo_e2e_ms = ew_args_float(args, "slo-e2e", 0),
        .interrupted = ew_interrupted,
        .progress = isatty(STDERR_FILENO),
    };
    uint64_t clients = options.rate > 0 ? (uint64_t)ceil(options.rate) : options.concurrency;

    if (!options.n_requests && options.duration_s <= 0)
        options.n_requests = clients * REQUESTS_PER_CLIENT;
    options.n_warmup = (uint32_t)ew_args_int(args, "warmup", options.rate > 0 ? 1 : options.concurrency);
    return options;
}

static int check(const struct ew_args *args, const struct ew_load_options *options, struct ew_error *err)
{
    if (!options->url) {
        ew_fail(err, EW_ERR_USAGE, "no server is given");
        return ew_remedy(err, EW_ERR_USAGE, "Add --url http://127.0.0.1:8080");
    }
    if (options->rate > 0 && ew_args_has(args, "concurrency"))
        return ew_fail(err, EW_ERR_USAGE,
                       "--rate and --concurrency exclude each other: requests come when they are due, "
                       "or when a client is free");
    if (options->verify && options->temperature > 0)
        return ew_fail(err, EW_ERR_USAGE, "--verify needs greedy answers, and --temp is not 0");
    if (options->n_shared > options->n_prompt)
        return ew_fail(err, EW_ERR_USAGE, "--shared-prefix %u is longer than --prompt-tokens %u", options->n_shared,
                       options->n_prompt);
    return EW_OK;
}

static int targets_of(const struct ew_args *args, struct ew_targets *out, struct ew_error *err)
{
    const char *name = ew_args_str(args, "profile", NULL);
    const struct ew_profile *profile;
    struct ew_profiles profiles;
    int rc;

    *out = (struct ew_targets){0};
    if (!name)
        return EW_OK;
    rc = ew_profiles_load(&profiles, err);
    if (rc < 0)
        return rc;
    rc = ew_profiles_find(&profiles, name, &profile, err);
    if (rc == 0)
        *out = profile->targets;
    ew_profiles_fini(&profiles);
    if (rc == 0 && out->ttft_ms <= 0 && out->decode_tok_s <= 0 && out->latency_ms_p99 <= 0)
        return ew_fail(err, EW_ERR_USAGE, "the profile %s has no targets", name);
    return rc;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_load_options options = options_of(args);
    double slo_share = ew_args_float(args, "slo-share", SLO_SHARE_DEFAULT);
    const char *key_file = ew_args_str(args, "api-key-file", NULL);
    struct verdict verdicts[VERDICTS_MAX];
    struct ew_load_report report;
    struct ew_targets targets = {0};
    char key[KEY_BYTES_MAX];
    uint32_t n_verdicts;
    int rc = check(args, &options, err);

    if (rc == 0)
        rc = targets_of(args, &targets, err);
    if (rc == 0 && key_file) {
        rc = read_key(key_file, key, sizeof(key), err);
        options.api_key = key;
    }
    if (rc == 0)
        rc = ew_bench_load(&options, &report, err);
    if (rc < 0)
        return rc;
    n_verdicts = target_verdicts(&targets, &report, verdicts);
    if (ew_args_flag(args, "json"))
        rc = print_json(&options, &report, verdicts, n_verdicts, err);
    else
        print_text(&options, &report, verdicts, n_verdicts);
    return rc < 0 ? rc : judge(&options, &report, slo_share, verdicts, n_verdicts, err);
}

static const struct ew_opt g_own[] = {
    {"url", 0, EW_OPT_STRING, "URL", "the server, as http://127.0.0.1:8080"},
    {"model", 'm', EW_OPT_STRING, "NAME", "the model's name there; default the first that it lists"},
    {"endpoint", 0, EW_OPT_CHOICE, "NAME", "default chat", "chat|completions"},
    {"api-key-file", 0, EW_OPT_STRING, "FILE", "its first line is the key"},
    {"concurrency", 'c', EW_OPT_INT, "N", "clients that ask again when they are answered; default 1", NULL, 1,
     EW_LOAD_CLIENTS_MAX},
    {"rate", 0, EW_OPT_FLOAT, "R", "instead: requests due a second, whether answered or not", NULL, 0.001, 100000},
    {"arrival", 0, EW_OPT_CHOICE, "KIND", "with --rate; default poisson", "poisson|constant"},
    {"requests", 'n', EW_OPT_INT, "N", "how many; default 10 for each client", NULL, 1, 100000000},
    {"duration", 0, EW_OPT_FLOAT, "S", "seconds after which no more begin", NULL, 0.1, 1e6},
    {"warmup", 0, EW_OPT_INT, "N", "requests before those that count; default one for each client", NULL, 0, 1000000},
    {"prompt-tokens", 'p', EW_OPT_INT, "N", "tokens of a prompt, the template's included; default 256", NULL, 1,
     1000000},
    {"gen-tokens", 'g', EW_OPT_INT, "N", "tokens of an answer; default 64", NULL, 1, 1000000},
    {"shared-prefix", 0, EW_OPT_INT, "N", "the first N tokens of all prompts are the same; default 0", NULL, 0,
     1000000},
    {"turns", 0, EW_OPT_INT, "N", "requests of a conversation, each with all before it; default 1", NULL, 1, 1000},
    {"turn-tokens", 0, EW_OPT_INT, "N", "tokens of its later messages; default 32", NULL, 1, 1000000},
    {"stop-at-eos", 0, EW_OPT_FLAG, NULL, "answers may be shorter: ignore_eos is not sent"},
    {"no-stream", 0, EW_OPT_FLAG, NULL, "ask for whole answers"},
    {"temp", 0, EW_OPT_FLOAT, "T", "temperature; default 0, greedy", NULL, 0, 100},
    {"seed", 0, EW_OPT_INT, "N",
     "of prompts and arrivals; default the clock: equal prompts find caches warm", NULL, 0, 9e15},
    {"timeout", 0, EW_OPT_FLOAT, "S", "of one request; default 600", NULL, 0.01, 1e6},
    {"verify", 0, EW_OPT_FLAG, NULL, "ask each prompt once more, alone: the answer must be the same"},
    {"slo-ttft", 0, EW_OPT_FLOAT, "MS", "limit for the first token; goodput counts what keeps all limits", NULL, 0.001,
     1e9},
    {"slo-itl", 0, EW_OPT_FLOAT, "MS", "limit for the mean wait for a token in a request", NULL, 0.001, 1e9},
    {"slo-e2e", 0, EW_OPT_FLOAT, "MS", "limit for the whole answer", NULL, 0.001, 1e9},
    {"slo-share", 0, EW_OPT_FLOAT, "PCT", "requests that must keep the limits; default 95", NULL, 0, 100},
    {"profile", 0, EW_OPT_STRING, "NAME", "judge by the targets of this device profile"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {g_own, ew_opts_common, NULL};

const struct ew_command ew_cmd_bench_load = {
    .name = "bench load",
    .usage = "bench load --url URL [--model NAME] [-c N | --rate R] [-n N | --duration S] [-p N] [-g N] [OPTIONS]",
    .summary = "Drive a server that speaks the OpenAI API, and measure it",
    .details =
        "TTFT runs from the beginning of a request to its first text, with --rate from when it was due. ITL is the "
        "wait for\n"
        "each later token; of tokens that come in one piece the first has waited and the others have not (their "
        "number is the\n"
        "server's usage). Prompts are random words; where the server has /tokenize they have exactly N tokens.\n"
        "\n"
        "Exit status 1: a request failed, fewer requests than --slo-share kept the limits, a target of --profile "
        "was missed,\n"
        "--verify found a difference, or Ctrl-C ended it (the figures until then are printed).",
    .options = g_options,
    .run = run,
};
