#include "base/log.h"

#include <ctype.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"

#define PROGRESS_QUIET_S 0.5   // shorter work shows no bar
#define PROGRESS_REDRAW_S 0.1
#define PROGRESS_WIDTH 30

static enum ew_log_level g_level = EW_LOG_WARN;

void ew_log_set_level(enum ew_log_level level)
{
    g_level = level;
}

bool ew_log_enabled(enum ew_log_level level)
{
    return level <= g_level;
}

void ew_log(enum ew_log_level level, const char *fmt, ...)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    char line[1024];
    va_list args;

    if (!ew_log_enabled(level))
        return;
    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    fprintf(stderr, "edgewise: %s%s\n", names[level], line);
}

void ew_log_error(const struct ew_error *err)
{
    fprintf(stderr, "edgewise: %s.", err->message);
    if (err->remedy[0])
        fprintf(stderr, " %c%s.", toupper((unsigned char)err->remedy[0]), err->remedy + 1);
    fputc('\n', stderr);
}

void ew_progress_begin(struct ew_progress *progress, const char *label, uint64_t total)
{
    *progress = (struct ew_progress){.label = label, .total = total, .started_s = ew_clock_s()};
}

static void draw(const struct ew_progress *progress, double now)
{
    double share = progress->total ? (double)progress->done / (double)progress->total : 1;
    int full = (int)(share * PROGRESS_WIDTH);

    fprintf(stderr, "\r%s [%.*s%*s] %3.0f%% %.1f/%.1f MB %.0f MB/s\x1b[K", progress->label, full,
            "##############################", PROGRESS_WIDTH - full, "", 100 * share, (double)progress->done / 1e6,
            (double)progress->total / 1e6, (double)progress->done / 1e6 / (now - progress->started_s));
    fflush(stderr);
}

void ew_progress_update(struct ew_progress *progress, uint64_t done)
{
    double now = ew_clock_s();

    progress->done = done < progress->total ? done : progress->total;
    if (now - progress->started_s < PROGRESS_QUIET_S || now - progress->drawn_s < PROGRESS_REDRAW_S)
        return;
    if (!isatty(STDERR_FILENO))
        return;
    progress->drawn_s = now;
    progress->drawn = true;
    draw(progress, now);
}

void ew_progress_end(struct ew_progress *progress)
{
    double took = ew_clock_s() - progress->started_s;

    if (progress->drawn)
        fprintf(stderr, "\r\x1b[K");
    ew_log(EW_LOG_INFO, "%s: %.1f MB in %.2f s", progress->label, (double)progress->done / 1e6, took);
}
