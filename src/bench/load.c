// The schedule of a load test: who sends what when, and the counting of what comes back.

#include "bench/load.h"

#include <math.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/rng.h"
#include "bench/load_run.h"

#define BODY_MAX EW_LOAD_BODY_MAX
#define PAUSE_S 0.1      // of a closed-loop client whose request failed, so that a server that is down is not hammered
#define PAUSE_MAX_S 1.0  // the most that Retry-After makes it wait
#define LATENESS_S 0.002 // an open-loop request this much behind its time is the client's timer, not the server's fault
#define CONNECT_TIMEOUT_S 10
#define DRAW_S 0.2              // progress
#define WARMUP_KEY (1ull << 40) // prompts of the warm-up are not those that are measured
#define SHARED_KEY (1ull << 41)
#define ARRIVALS_KEY (1ull << 42)
#define TURNS_MAX_LOG2 12 // --turns is below

struct load;

struct user { // one client and the conversation that it is in
    struct load *load;
    struct ew_load_client *client;
    bool busy;
    uint64_t conversation;
    uint32_t turn;
    double resume_s;       // pausing until then; 0: not
    struct ew_buf history; // as it stands in the request
    struct ew_buf content; // of the answer that is coming, for the next turn
    struct ew_buf answer;  // all of its text, for --verify
    struct ew_buf body;
};

struct load {
    struct ew_load_run run;
    struct user **users;
    uint32_t n_users, users_cap;
    // The phase: warming up, or measuring.
    bool measuring, failed;
    struct ew_error *err; // of the first failure that is not the server's
    uint64_t n_limit, n_begun, n_conversations, n_busy, n_ended, n_tokens;
    double begin_s, deadline_s, due_s, end_s, drawn_s;
    struct ew_rng arrivals;
    struct ew_samples ttft, ttft_first, ttft_later, itl, tpot, e2e;
    uint64_t n_behind; // tokens that came in one piece with another one: they waited 0 ms
};

static void next_request(struct user *user);

static bool stopping(const struct load *load)
{
    return load->failed || load->run.report->interrupted;
}

static void give_up(struct load *load)
{
    load->failed = true;
}

static double pause_of(const struct ew_load_result *result)
{
    double wanted = result->retry_after > 0 ? result->retry_after : PAUSE_S;

    return fmin(wanted, PAUSE_MAX_S);
}

static void count_status(struct ew_load_report *report, int status)
{
    for (uint32_t i = 0; i < EW_LOAD_STATUSES_MAX; i++) {
        bool last = i + 1 == EW_LOAD_STATUSES_MAX;

        if (report->statuses[i].count && report->statuses[i].status != status && !last)
            continue;
        report->statuses[i].status = last && report->statuses[i].count ? 0 : status;
        report->statuses[i].count++;
        return;
    }
}

static void count_failure(struct ew_load_report *report, const struct ew_load_result *result)
{
    struct ew_load_failures *failures = &report->outcomes[result->outcome];

    if (failures->count++ == 0)
        memcpy(failures->message, result->message, sizeof(failures->message));
    if (result->outcome == EW_LOAD_STATUS)
        count_status(report, result->status);
    if (result->outcome == EW_LOAD_STOPPED)
        report->n_stopped++;
    else
        report->n_failed++;
}

static bool within(double value_ms, double limit_ms)
{
    return limit_ms <= 0 || value_ms <= limit_ms;
}

static void count_prompt(struct ew_load_report *report, const struct ew_load_result *result)
{
    int64_t n = result->prompt_tokens;

    if (n < 0)
        return;
    report->prompt_tokens += (uint64_t)n;
    report->cached_tokens += result->cached_tokens > 0 ? (uint64_t)result->cached_tokens : 0;
    report->prompt_min = report->prompt_min < 0 || n < report->prompt_min ? n : report->prompt_min;
    report->prompt_max = n > report->prompt_max ? n : report->prompt_max;
}

static void count_answer(struct user *user, const struct ew_load_result *result)
{
    struct load *load = user->load;
    const struct ew_load_options *options = load->run.options;
    struct ew_load_report *report = load->run.report;
    bool told = result->completion_tokens >= 0;
    uint64_t n = told ? (uint64_t)result->completion_tokens : result->n_chunks;
    double first_s = result->first_s > 0 && options->stream ? result->first_s : result->end_s;
    double ttft_ms = (first_s - result->begin_s) * 1e3, e2e_ms = (result->end_s - result->begin_s) * 1e3;
    double tpot_ms = n > 1 && options->stream ? (result->last_s - first_s) * 1e3 / (double)(n - 1) : 0;

    report->n_ok++;
    report->usage &= told;
    report->output_tokens += n;
    report->n_short += n < options->n_gen;
    count_prompt(report, result);
    if (options->stream && result->n_chunks && n > result->n_chunks)
        load->n_behind += n - result->n_chunks;
    ew_samples_add(&load->ttft, ttft_ms);
    ew_samples_add(user->turn ? &load->ttft_later : &load->ttft_first, ttft_ms);
    ew_samples_add(&load->e2e, e2e_ms);
    if (n > 1 && options->stream)
        ew_samples_add(&load->tpot, tpot_ms);
    report->n_good += within(ttft_ms, options->slo_ttft_ms) && within(tpot_ms, options->slo_itl_ms) &&
                      within(e2e_ms, options->slo_e2e_ms);
}

static void on_text(void *ctx, const struct ew_load_answer *piece, double gap_s)
{
    struct user *user = ctx;
    const struct ew_load_options *options = user->load->run.options;

    user->load->n_tokens++;
    if (user->load->measuring && gap_s >= 0)
        ew_samples_add(&user->load->itl, gap_s * 1e3);
    if (options->n_turns > 1)
        ew_buf_append_str(&user->content, piece->text[1]);
    for (uint32_t i = 0; options->verify && i < 3; i++)
        ew_buf_append_str(&user->answer, piece->text[i]);
}

// For --verify: keeps what was asked and answered.
static void keep_record(struct user *user)
{
    struct load *load = user->load;
    struct ew_load_record record = {.body = ew_alloc(user->body.len + 1),
                                    .body_len = user->body.len,
                                    .answer = ew_buf_ok(&user->answer) ? ew_buf_take(&user->answer) : NULL};

    if (!record.answer)
        record.answer = ew_strdup("");
    if (!record.body || !record.answer || ew__load_keep(&load->run, &record) < 0) {
        ew_free(record.body);
        ew_free(record.answer);
        ew_fail_memory(load->err, user->body.len, "the answers to be verified");
        give_up(load);
        return;
    }
    memcpy(record.body, user->body.ptr, record.body_len);
}

static void on_done(void *ctx, const struct ew_load_result *result)
{
    struct user *user = ctx;
    struct load *load = user->load;
    bool ok = result->outcome == EW_LOAD_OK;

    user->busy = false;
    load->n_busy--;
    load->n_ended++;
    load->end_s = result->end_s;
    if (load->measuring && ok)
        count_answer(user, result);
    else if (load->measuring)
        count_failure(load->run.report, result);
    if (load->measuring && ok && load->run.options->verify)
        keep_record(user);
    user->turn = ok ? user->turn + 1 : load->run.options->n_turns;
    if (!ok && load->run.options->rate <= 0)
        user->resume_s = result->end_s + pause_of(result);
    else
        next_request(user);
}

// The words of one turn, as they stand within a JSON string.
static void append_turn(struct user *user, struct ew_buf *out)
{
    struct load *load = user->load;
    const struct ew_load_options *options = load->run.options;
    const struct ew_load_words *words = &load->run.words;
    uint64_t key = (load->measuring ? 0 : WARMUP_KEY) + (user->conversation << TURNS_MAX_LOG2) + user->turn;
    uint32_t n, n_shared = 0;

    if (user->turn) {
        ew_load_words_append(words, options->seed, key, ew_load_words_for(words, options->n_turn_tokens), options->chat,
                             out);
        return;
    }
    n = ew_load_words_for(words, options->n_prompt - words->overhead);
    if (options->n_shared)
        n_shared = (uint32_t)fmin(ew_load_words_for(words, options->n_shared), n);
    ew_load_words_append(words, options->seed, SHARED_KEY, n_shared, true, out);
    ew_load_words_append(words, options->seed, key, n - n_shared, n_shared == 0, out);
}

// Appends the answer to the turn before (nothing in the first) and this turn's words.
static void write_history(struct user *user)
{
    bool chat = user->load->run.options->chat;
    struct ew_buf escaped;

    if (user->turn == 0) {
        ew_buf_reset(&user->history);
    } else {
        ew_buf_init(&escaped, BODY_MAX);
        ew_buf_append_json(&escaped, ew_buf_str(&user->content));
        if (chat)
            ew_buf_append_str(&user->history, EW_STR(", {\"role\": \"assistant\", \"content\": "));
        if (escaped.len >= 2) // completions: it goes on within one string, so the quotes are left out
            ew_buf_append(&user->history, escaped.ptr + !chat, escaped.len - 2 * !chat);
        if (chat)
            ew_buf_append_str(&user->history, EW_STR("}, "));
        user->history.failed |= escaped.failed;
        ew_buf_fini(&escaped);
    }
    if (chat)
        ew_buf_append_str(&user->history, EW_STR("{\"role\": \"user\", \"content\": \""));
    append_turn(user, &user->history);
    if (chat)
        ew_buf_append_str(&user->history, EW_STR("\"}"));
}

static void begin_turn(struct user *user, double begin_s)
{
    struct load *load = user->load;
    const struct ew_load_options *options = load->run.options;
    const struct ew_load_callbacks callbacks = {on_text, on_done, user};
    struct ew_str body;

    write_history(user);
    ew_buf_reset(&user->content);
    ew_buf_reset(&user->answer);
    ew__load_body(&load->run, ew_buf_str(&user->history), options->n_gen, options->stream, &user->body);
    if (!ew_buf_ok(&user->history) || !ew_buf_ok(&user->body)) {
        ew_fail(load->err, EW_ERR_LIMIT, "a request is longer than %zu bytes, or memory is short", BODY_MAX);
        give_up(load);
        return;
    }
    body = ew_buf_str(&user->body);
    if (ew_load_begin(user->client, load->run.path, &body, begin_s, options->timeout_s, &callbacks, load->err) < 0) {
        give_up(load);
        return;
    }
    user->busy = true;
    load->n_begun++;
    load->n_busy++;
    if (load->measuring && load->n_busy > load->run.report->in_flight_max)
        load->run.report->in_flight_max = (uint32_t)load->n_busy;
}

static bool may_begin(const struct load *load, double now)
{
    return !stopping(load) && load->n_begun < load->n_limit && now < load->deadline_s;
}

// The conversation's next turn or, in a closed loop, the next conversation; else the client is idle.
static void next_request(struct user *user)
{
    struct load *load = user->load;
    bool over = user->turn >= load->run.options->n_turns;
    double now = ew_clock_s();

    user->resume_s = 0;
    if (!may_begin(load, now) || (over && load->run.options->rate > 0 && load->measuring))
        return;
    if (over) {
        user->conversation = load->n_conversations++;
        user->turn = 0;
    }
    begin_turn(user, now);
}

static struct user *add_user(struct load *load)
{
    struct user *user = load->n_users < load->users_cap ? ew_alloc(sizeof(*user)) : NULL;

    if (!user)
        return NULL;
    if (ew_load_client_create(&load->run.loop, &load->run.target, &user->client, load->err) < 0) {
        ew_free(user);
        return NULL;
    }
    user->load = load;
    user->turn = load->run.options->n_turns; // no conversation yet
    ew_buf_init(&user->history, BODY_MAX);
    ew_buf_init(&user->content, BODY_MAX);
    ew_buf_init(&user->answer, BODY_MAX);
    ew_buf_init(&user->body, BODY_MAX);
    load->users[load->n_users++] = user;
    return user;
}

static struct user *idle_user(struct load *load)
{
    for (uint32_t i = 0; i < load->n_users; i++)
        if (!load->users[i]->busy)
            return load->users[i];
    return add_user(load);
}

static double gap(struct load *load)
{
    double rate = load->run.options->rate;

    return load->run.options->constant ? 1 / rate : -log(1 - ew_rng_unit(&load->arrivals)) / rate;
}

// Open loop: begins all conversations that are due.
static void begin_due(struct load *load)
{
    double now = ew_clock_s();

    while (load->due_s <= now && may_begin(load, load->due_s)) {
        struct user *user = idle_user(load);
        bool late = now - load->due_s > LATENESS_S;

        if (!user) {
            const struct ew_load_result unsent = {.outcome = EW_LOAD_UNREACHED,
                                                  .message = "not sent: too many requests were in flight already"};

            count_failure(load->run.report, &unsent);
            load->n_begun++;
            load->n_ended++;
        } else {
            user->conversation = load->n_conversations++;
            user->turn = 0;
            begin_turn(user, late ? load->due_s : now);
        }
        load->due_s += gap(load);
    }
}

static void draw(struct load *load, double now)
{
    const struct ew_load_report *report = load->run.report;
    char of[32] = "";

    if (!load->run.options->progress || now - load->drawn_s < DRAW_S)
        return;
    load->drawn_s = now;
    if (load->n_limit < UINT64_MAX)
        snprintf(of, sizeof(of), " of %llu", (unsigned long long)load->n_limit);
    fprintf(stderr, "\r\033[K%s: %llu%s answered, %llu running, %llu failed, %.0f tok/s, %.0f s",
            load->measuring ? "load" : "warm-up", (unsigned long long)(load->n_ended - report->n_failed), of,
            (unsigned long long)load->n_busy, (unsigned long long)report->n_failed,
            (double)load->n_tokens / fmax(now - load->begin_s, 1e-3), now - load->begin_s);
}

static void on_tick(uv_timer_t *timer)
{
    struct load *load = timer->data;
    double now = ew_clock_s();

    if (load->run.options->interrupted && load->run.options->interrupted())
        load->run.report->interrupted = true;
    for (uint32_t i = 0; i < load->n_users; i++) {
        struct user *user = load->users[i];

        if (stopping(load))
            ew_load_client_stop(user->client);
        else
            ew_load_client_check(user->client, now);
        if (user->resume_s > 0 && user->resume_s <= now)
            next_request(user);
    }
    draw(load, now);
}

static void on_due(uv_timer_t *timer)
{
    begin_due(timer->data);
}

static bool pausing(const struct load *load)
{
    for (uint32_t i = 0; i < load->n_users; i++)
        if (load->users[i]->resume_s > 0)
            return true;
    return false;
}

// Whether requests are running or will begin.
static bool goes_on(const struct load *load, bool open)
{
    if (load->n_busy)
        return true;
    return open ? may_begin(load, load->due_s) : may_begin(load, ew_clock_s()) && pausing(load);
}

static void run_phase(struct load *load, bool measuring, uint64_t n_limit, double duration_s)
{
    bool open = measuring && load->run.options->rate > 0;
    uv_timer_t *due = &load->run.due, *tick = &load->run.tick;

    load->measuring = measuring;
    load->n_limit = n_limit;
    load->n_begun = load->n_conversations = load->n_ended = load->n_tokens = 0;
    load->begin_s = load->end_s = load->due_s = ew_clock_s();
    load->deadline_s = duration_s > 0 ? load->begin_s + duration_s : INFINITY;
    tick->data = due->data = load;
    uv_update_time(&load->run.loop);
    uv_timer_start(tick, on_tick, EW_LOAD_TICK_MS, EW_LOAD_TICK_MS);
    if (open)
        begin_due(load);
    for (uint32_t i = 0; i < load->n_users && !open; i++) {
        load->users[i]->turn = load->run.options->n_turns;
        next_request(load->users[i]);
    }
    while (goes_on(load, open)) {
        double wait_ms = open ? floor((load->due_s - ew_clock_s()) * 1e3) : 0;

        if (open && may_begin(load, load->due_s))
            uv_timer_start(due, on_due, wait_ms > 0 ? (uint64_t)wait_ms : 0, 0);
        uv_run(&load->run.loop, UV_RUN_ONCE);
    }
    uv_timer_stop(due);
    uv_timer_stop(tick);
    if (load->drawn_s > 0)
        fputs("\r\033[K", stderr);
}

static double cpu_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void summarise(struct load *load)
{
    struct ew_load_report *report = load->run.report;

    report->ttft_ms = ew_samples_quantiles(&load->ttft, 0);
    report->ttft_first_ms = ew_samples_quantiles(&load->ttft_first, 0);
    report->ttft_later_ms = ew_samples_quantiles(&load->ttft_later, 0);
    report->itl_ms = ew_samples_quantiles(&load->itl, load->n_behind);
    report->tpot_ms = ew_samples_quantiles(&load->tpot, 0);
    report->e2e_ms = ew_samples_quantiles(&load->e2e, 0);
    report->wall_s = load->end_s - load->begin_s;
    for (uint32_t i = 0; i < load->n_users; i++)
        report->n_connects += ew_load_client_connects(load->users[i]->client);
}

static int measure(struct load *load)
{
    const struct ew_load_options *options = load->run.options;
    struct ew_load_report *report = load->run.report;
    uint32_t n_users = options->rate > 0 ? 1 : options->concurrency;
    double cpu_s;

    load->users_cap = options->rate > 0 ? EW_LOAD_CLIENTS_MAX : n_users;
    load->users = ew_alloc_array(load->users_cap, sizeof(*load->users));
    while (load->users && load->n_users < n_users)
        if (!add_user(load))
            break;
    if (load->n_users < n_users)
        return ew_fail_memory(load->err, n_users * sizeof(struct user), "the clients");
    if (options->n_warmup)
        run_phase(load, false, options->n_warmup, 0);
    load->arrivals = ew_rng_at(options->seed, ARRIVALS_KEY);
    cpu_s = cpu_seconds();
    if (!stopping(load))
        run_phase(load, true, options->n_requests ? options->n_requests : UINT64_MAX, options->duration_s);
    report->cpu_s = cpu_seconds() - cpu_s;
    summarise(load);
    return load->failed ? load->err->code : EW_OK;
}

static void free_users(struct load *load)
{
    for (uint32_t i = 0; i < load->n_users; i++) {
        struct user *user = load->users[i];

        ew_load_client_destroy(user->client);
        ew_buf_fini(&user->history);
        ew_buf_fini(&user->content);
        ew_buf_fini(&user->answer);
        ew_buf_fini(&user->body);
        ew_free(user);
    }
    ew_free(load->users);
    ew_samples_fini(&load->ttft);
    ew_samples_fini(&load->ttft_first);
    ew_samples_fini(&load->ttft_later);
    ew_samples_fini(&load->itl);
    ew_samples_fini(&load->tpot);
    ew_samples_fini(&load->e2e);
}

int ew_bench_load(const struct ew_load_options *options, struct ew_load_report *report, struct ew_error *err)
{
    struct ew_error own;
    struct load load = {.run = {.options = options, .report = report}, .err = err ? err : &own};
    int rc;

    *report = (struct ew_load_report){.prompt_min = -1, .prompt_max = -1, .usage = true};
    rc = ew__load_open(&load.run, load.err);
    if (rc < 0)
        return rc;
    load.run.target.connect_timeout_s = fmin(CONNECT_TIMEOUT_S, options->timeout_s);
    rc = ew__load_setup(&load.run, load.err);
    if (rc == 0)
        rc = measure(&load);
    free_users(&load);
    if (rc == 0 && options->verify && !report->interrupted)
        rc = ew__load_verify(&load.run, load.err);
    ew__load_close(&load.run);
    return rc;
}
