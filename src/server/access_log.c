// The access log: one line for each request, when its reply is over.

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "server/conn.h"

#define LINE_BYTES_MAX 65536 // a path of 8 KiB, each byte of it escaped

static void peer_name(const struct ew_conn *conn, char *out, size_t size)
{
    struct sockaddr_storage address;
    int len = sizeof(address);

    snprintf(out, size, "-");
    if (conn->server->config.unix_path || uv_tcp_getpeername(&conn->handle.tcp, (struct sockaddr *)&address, &len))
        return;
    if (address.ss_family == AF_INET)
        uv_ip4_name((const struct sockaddr_in *)&address, out, size);
    else
        uv_ip6_name((const struct sockaddr_in6 *)&address, out, size);
}

static struct ew_str or_dash(struct ew_str text)
{
    return text.len ? text : EW_STR("-");
}

// From the end of the request's head to the begin of its reply.
static double first_ms(const struct ew_exchange *x)
{
    return x->first_s > 0 ? 1e3 * (x->first_s - x->started_s) : 0;
}

static double whole_ms(const struct ew_conn *conn)
{
    return 1e3 * (conn->server->now_s - conn->x.started_s);
}

static void print_json(struct ew_buf *line, const struct ew_conn *conn, const char *time, const char *peer, int status)
{
    const struct ew_exchange *x = &conn->x;

    ew_buf_printf(line, "{\"time\": \"%s\", \"peer\": \"%s\", \"method\": ", time, peer);
    ew_buf_append_json(line, or_dash(x->head.method));
    ew_buf_append_str(line, EW_STR(", \"path\": "));
    ew_buf_append_json(line, or_dash(x->head.path));
    ew_buf_printf(line, ", \"status\": %d, \"first_ms\": %.1f, \"ms\": %.1f, ", status, first_ms(x), whole_ms(conn));
    ew_buf_printf(line, "\"prompt_tokens\": %" PRIu64 ", \"completion_tokens\": %" PRIu64 ", ", x->n_prompt, x->n_new);
    ew_buf_printf(line, "\"bytes_in\": %zu, \"bytes_out\": %" PRIu64 "}\n", conn->in.len + conn->body.len,
                  x->bytes_out);
}

static void print_text(struct ew_buf *line, const struct ew_conn *conn, const char *time, const char *peer, int status)
{
    const struct ew_exchange *x = &conn->x;
    struct ew_str method = or_dash(x->head.method), path = or_dash(x->head.path);

    ew_buf_printf(line, "%s %s " EW_STR_FMT " " EW_STR_FMT " %d ", time, peer, EW_STR_ARG(method), EW_STR_ARG(path),
                  status);
    ew_buf_printf(line, "%.1f ms, first %.1f ms, ", whole_ms(conn), first_ms(x));
    ew_buf_printf(line, "%" PRIu64 " + %" PRIu64 " tokens, %" PRIu64 " bytes\n", x->n_prompt, x->n_new, x->bytes_out);
}

void ew_access_log(const struct ew_conn *conn, int status)
{
    time_t now = time(NULL);
    struct ew_buf line;
    char stamp[32], peer[64];
    struct tm utc;

    if (!conn->server->log)
        return;
    strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    peer_name(conn, peer, sizeof(peer));
    ew_buf_init(&line, LINE_BYTES_MAX);
    (conn->server->config.log_json ? print_json : print_text)(&line, conn, stamp, peer, status);
    if (ew_buf_ok(&line))
        fwrite(line.ptr, 1, line.len, conn->server->log);
    ew_buf_fini(&line);
}
