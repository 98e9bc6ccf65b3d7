// A connection: bytes in, requests out; replies in, bytes out.

#include <stdio.h>
#include <sys/socket.h>

#include "base/assert.h"
#include "base/log.h"
#include "server/conn.h"

#define LINGER_S 2      // without a byte from a client that was refused
#define LINGER_MAX_S 30 // in all
#define BODY_BYTES_S 1024 // slower than this on average, a body takes its place for too long
#define SEND_BUFFER_BYTES 65536 // the kernel would hold megabytes for a client that does not read
#define REST_BYTES_MAX 65536    // of requests sent ahead
#define REPLY_HEAD_BYTES_MAX 8192
#define REPLY_BYTES_MAX ((size_t)512 << 20)

// ---- the end of a connection --------------------------------------------------------------------------------------

static void drop_body(struct ew_conn *conn)
{
    conn->server->held_bytes -= conn->body.len;
    ew_buf_fini(&conn->body);
}

static void on_closed(uv_handle_t *handle)
{
    struct ew_conn *conn = handle->data;
    struct ew_server *server = conn->server;

    *(conn->prev ? &conn->prev->next : &server->conns) = conn->next;
    if (conn->next)
        conn->next->prev = conn->prev;
    server->n_conns--;
    drop_body(conn);
    ew_buf_fini(&conn->in);
    ew_buf_fini(&conn->rest);
    ew_buf_fini(&conn->out);
    ew_buf_fini(&conn->x.headers);
    ew_free(conn);
}

// Takes it off the list of those with something to write.
static void forget_unwritten(struct ew_conn *conn)
{
    struct ew_conn **at = &conn->server->unwritten;

    while (*at && *at != conn)
        at = &(*at)->next_unwritten;
    if (*at)
        *at = conn->next_unwritten;
    conn->is_unwritten = false;
}

static void close_conn(struct ew_conn *conn)
{
    if (conn->state == EW_CONN_CLOSED)
        return;
    conn->state = EW_CONN_CLOSED;
    if (conn->is_unwritten)
        forget_unwritten(conn);
    uv_close((uv_handle_t *)&conn->handle, on_closed);
}

// The exchange is over: counted, logged, forgotten.
static void count_over(struct ew_conn *conn, int status)
{
    ew_access_log(conn, status);
    ew_api_count(conn->server->api, conn->x.route, status);
    conn->x.over = true;
    conn->x.on_gone = NULL;
}

void ew_conn_abort(struct ew_conn *conn)
{
    void (*on_gone)(void *ctx) = conn->x.on_gone;

    if (conn->state == EW_CONN_ANSWER && !conn->x.over) {
        count_over(conn, 499); // as others call a client that left
        if (on_gone)
            on_gone(conn->x.gone_ctx);
    }
    close_conn(conn);
}

// ---- writing ------------------------------------------------------------------------------------------------------

struct write {
    uv_write_t request;
    struct ew_conn *conn;
    char bytes[];
};

static size_t pending(const struct ew_conn *conn)
{
    return conn->out.len + uv_stream_get_write_queue_size(&conn->handle.stream);
}

// Everything is written, and no more will be: the other side has to close now.
static void shut(struct ew_conn *conn)
{
    uv_os_fd_t fd;

    if (conn->is_shut || uv_fileno((uv_handle_t *)&conn->handle, &fd))
        return;
    shutdown(fd, SHUT_WR);
    conn->is_shut = true;
    conn->deadline_s = conn->server->now_s + LINGER_S;
    conn->linger_until_s = conn->server->now_s + LINGER_MAX_S;
}

static void resume(struct ew_conn *conn);

static void on_written(uv_write_t *request, int status)
{
    struct write *write = (struct write *)request;
    struct ew_conn *conn = write->conn;

    conn->n_writing--;
    conn->wrote_s = conn->server->now_s;
    ew_free(write);
    if (conn->state == EW_CONN_CLOSED)
        return;
    if (status < 0) {
        ew_conn_abort(conn);
        return;
    }
    if (conn->closes && pending(conn) == 0)
        shut(conn);
    if (conn->state == EW_CONN_HEAD && conn->in.len == 0)
        conn->deadline_s = conn->server->now_s + conn->server->config.idle_s;
    resume(conn);
}

// What the kernel does not take at once waits in a copy.
static bool queue_write(struct ew_conn *conn, const char *bytes, size_t len)
{
    struct write *write = ew_alloc(sizeof(*write) + len);
    uv_buf_t part;

    if (!write)
        return false;
    write->conn = conn;
    memcpy(write->bytes, bytes, len);
    part = uv_buf_init(write->bytes, (unsigned)len);
    if (uv_write(&write->request, &conn->handle.stream, &part, 1, on_written)) {
        ew_free(write);
        return false;
    }
    if (conn->n_writing++ == 0)
        conn->wrote_s = conn->server->now_s;
    return true;
}

static void write_out(struct ew_conn *conn)
{
    uv_buf_t part = uv_buf_init(conn->out.ptr, (unsigned)conn->out.len);
    int n = conn->out.len && conn->n_writing == 0 ? uv_try_write(&conn->handle.stream, &part, 1) : 0;
    bool ok = n >= 0 || n == UV_EAGAIN;

    n = n < 0 ? 0 : n;
    if (ok && (size_t)n < conn->out.len)
        ok = queue_write(conn, conn->out.ptr + n, conn->out.len - (size_t)n);
    conn->out.len = 0;
    if (!ok)
        ew_conn_abort(conn);
    else if (conn->closes && pending(conn) == 0)
        shut(conn);
    if (conn->x.over && conn->state != EW_CONN_CLOSED) // an idle connection holds no memory
        ew_buf_fini(&conn->out);
    resume(conn);
}

void ew_conn_write_gathered(struct ew_server *server)
{
    while (server->unwritten) {
        struct ew_conn *conn = server->unwritten;

        server->unwritten = conn->next_unwritten;
        conn->is_unwritten = false;
        write_out(conn);
    }
}

static void gather(struct ew_conn *conn)
{
    if (conn->is_unwritten || conn->state == EW_CONN_CLOSED)
        return;
    conn->is_unwritten = true;
    conn->next_unwritten = conn->server->unwritten;
    conn->server->unwritten = conn;
}

// ---- requests -----------------------------------------------------------------------------------------------------

static void take(struct ew_conn *conn, struct ew_str bytes);

static void reset_exchange(struct ew_conn *conn)
{
    ew_buf_fini(&conn->x.headers);
    conn->x = (struct ew_exchange){.over = true, .started_s = conn->server->now_s};
    ew_buf_init(&conn->x.headers, REPLY_HEAD_BYTES_MAX);
}

static void await_request(struct ew_conn *conn)
{
    ew_buf_fini(&conn->in);
    drop_body(conn);
    reset_exchange(conn);
    conn->scanned = 0;
    conn->chunks = (struct ew_http_chunks){0};
    conn->state = EW_CONN_HEAD;
    conn->deadline_s = conn->server->now_s + conn->server->config.idle_s;
}

// Nothing more is read as a request; what is whole is still written.
static void end_after_writing(struct ew_conn *conn)
{
    conn->closes = true;
    conn->state = EW_CONN_LINGER;
    conn->deadline_s = conn->server->now_s + conn->server->config.stalled_s;
}

// Who sends requests ahead and does not take the replies gets no more of them until it does.
static bool is_clogged(const struct ew_conn *conn)
{
    return pending(conn) >= conn->server->config.queue_bytes;
}

// Goes on with requests that were sent ahead.
static void resume(struct ew_conn *conn)
{
    struct ew_buf rest = conn->rest;

    if (conn->state != EW_CONN_HEAD || conn->is_working || rest.len == 0 || is_clogged(conn))
        return;
    ew_buf_init(&conn->rest, REST_BYTES_MAX);
    take(conn, ew_buf_str(&rest));
    ew_buf_fini(&rest);
}

// The reply is whole.
static void finish(struct ew_conn *conn)
{
    conn->x.bytes_out += conn->out.len;
    count_over(conn, conn->x.status);
    gather(conn);
    if (!conn->x.keep_alive || conn->rest_overflowed) {
        end_after_writing(conn);
        return;
    }
    await_request(conn);
    resume(conn);
}

static void refuse(struct ew_conn *conn, int status, const char *type, const char *code, const char *why)
{
    struct ew_fault fault = {0};

    conn->state = EW_CONN_ANSWER;
    ew_fault_set(&fault, status, type, code, "%s", why);
    if (status == 429 || status == 503)
        fault.retry_after_s = 1;
    ew_api_refuse(&conn->x, &fault);
}

// A request that is not read to its end: what follows it cannot be read either.
static void refuse_bytes(struct ew_conn *conn, const struct ew_http_fault *fault)
{
    conn->x.over = false;
    conn->x.keep_alive = false;
    if (fault->status == 429)
        refuse(conn, 429, "rate_limit_error", "too_many_connections", fault->why);
    else if (fault->status == 503)
        refuse(conn, 503, "server_error", "overloaded", fault->why);
    else
        refuse(conn, fault->status, "invalid_request_error", "bad_http", fault->why);
}

static bool reply_to_preflight(struct ew_conn *conn)
{
    if (!conn->server->config.cors || !ew_str_is(conn->x.head.method, "OPTIONS"))
        return false;
    ew_exchange_header_add(&conn->x, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    ew_exchange_header_add(&conn->x, "Access-Control-Allow-Headers", "Authorization, Content-Type, *");
    ew_exchange_header_add(&conn->x, "Access-Control-Max-Age", "600");
    ew_exchange_reply(&conn->x, 204, NULL, (struct ew_str){0});
    return true;
}

// Whether a request, of which the head is known, gets as far as its handler; it is answered where not.
static bool is_admitted(struct ew_conn *conn)
{
    struct ew_server *server = conn->server;
    struct ew_exchange *x = &conn->x;
    struct ew_fault fault = {0};

    x->is_head = ew_str_is(x->head.method, "HEAD");
    x->route = ew_route_find(x->is_head ? EW_STR("GET") : x->head.method, x->head.path, &fault);
    if (reply_to_preflight(conn))
        return false;
    if (server->config.key_file && (!x->route || x->route->needs_key) &&
        !ew_keys_allow(&server->keys, ew_http_header(x->head.headers, "authorization")))
        refuse(conn, 401, "authentication_error", "invalid_api_key", "the request has no valid API key");
    else if (!x->route)
        ew_api_refuse(x, &fault);
    else if (server->draining && ew_str_is(x->head.method, "POST"))
        refuse(conn, 503, "server_error", "draining", "the server is shutting down");
    else
        return true;
    return false;
}

static void dispatch(struct ew_conn *conn)
{
    conn->state = EW_CONN_ANSWER;
    conn->x.keep_alive = conn->x.head.keep_alive && !conn->server->draining;
    conn->x.route->handle(conn->server->api, &conn->x);
}

// A head has arrived.
static void begin_exchange(struct ew_conn *conn)
{
    struct ew_http_fault fault = {0};
    struct ew_exchange *x = &conn->x;
    bool has_body;

    reset_exchange(conn);
    x->over = false;
    if (!ew_http_head_parse(ew_buf_str(&conn->in), &conn->server->limits, &x->head, &fault)) {
        refuse_bytes(conn, &fault);
        return;
    }
    has_body = x->head.chunked || x->head.content_length;
    conn->state = EW_CONN_ANSWER;
    // Who is refused need not have sent its body; what comes of it is no request.
    x->keep_alive = x->head.keep_alive && !conn->server->draining && !has_body;
    if (!is_admitted(conn))
        return;
    if (!has_body) {
        dispatch(conn);
        return;
    }
    conn->state = EW_CONN_BODY;
    conn->deadline_s = conn->server->now_s + conn->server->config.body_s;
    if (x->head.expects_continue) {
        ew_buf_append_str(&conn->out, EW_STR("HTTP/1.1 100 Continue\r\n\r\n"));
        gather(conn);
    }
}

// Bytes of a head; returns how many it used.
static size_t take_head(struct ew_conn *conn, struct ew_str bytes)
{
    struct ew_http_fault fault = {0};
    size_t before = conn->in.len, room = conn->server->limits.head_bytes + 1, n, end;

    if (before == 0)
        conn->deadline_s = conn->server->now_s + conn->server->config.head_s;
    n = EW_MIN(bytes.len, room - before);
    ew_buf_append(&conn->in, bytes.ptr, n);
    if (!ew_buf_ok(&conn->in)) {
        close_conn(conn);
        return bytes.len;
    }
    if (before < 2 && ew_str_starts(ew_buf_str(&conn->in), "\r\n")) {
        conn->in.len = conn->scanned = 0; // RFC 9112, 2.2: an empty line before a request is read over
        return 2 - before;
    }
    end = ew_http_head_end(ew_buf_str(&conn->in), &conn->scanned, &conn->server->limits, &fault);
    if (fault.status) {
        refuse_bytes(conn, &fault);
        return bytes.len;
    }
    if (end == 0)
        return n;
    conn->in.len = end;
    n = end - before;
    begin_exchange(conn);
    return n;
}

static bool keep_body(struct ew_conn *conn, struct ew_str data)
{
    struct ew_server *server = conn->server;

    if (data.len > server->config.bodies_bytes - server->held_bytes) {
        refuse_bytes(conn, &(struct ew_http_fault){503, "the bodies of all requests together are too large now"});
        return false;
    }
    ew_buf_append(&conn->body, data.ptr, data.len);
    if (!ew_buf_ok(&conn->body)) {
        refuse_bytes(conn, &(struct ew_http_fault){503, "there is no memory for the body of the request"});
        return false;
    }
    server->held_bytes += data.len;
    return true;
}

static size_t take_sized_body(struct ew_conn *conn, struct ew_str bytes)
{
    size_t n = (size_t)EW_MIN((uint64_t)bytes.len, conn->x.head.content_length - conn->body.len);

    if (keep_body(conn, (struct ew_str){bytes.ptr, n}) && conn->body.len == conn->x.head.content_length)
        dispatch(conn);
    return n;
}

static size_t take_chunks(struct ew_conn *conn, struct ew_str bytes)
{
    struct ew_http_fault fault = {0};
    struct ew_str data;
    size_t used;
    bool done;

    if (!ew_http_chunks_read(&conn->chunks, bytes, &conn->server->limits, &used, &data, &done, &fault)) {
        refuse_bytes(conn, &fault);
        return bytes.len;
    }
    if (keep_body(conn, data) && done)
        dispatch(conn);
    return used;
}

// Each piece buys time, the more the longer it is: neither a pause nor single bytes now and then keep a place for long.
static size_t take_body(struct ew_conn *conn, struct ew_str bytes)
{
    double patience_s = conn->server->now_s + conn->server->config.body_s;

    conn->deadline_s = EW_MIN(patience_s, conn->deadline_s + (double)bytes.len / BODY_BYTES_S);
    return conn->x.head.chunked ? take_chunks(conn, bytes) : take_sized_body(conn, bytes);
}

// While a request is being answered, those that follow wait, up to a bound; reading goes on in any case.
static void keep_rest(struct ew_conn *conn, struct ew_str bytes)
{
    if (conn->rest.len + bytes.len > REST_BYTES_MAX)
        conn->rest_overflowed = true; // the connection ends with this answer
    if (!conn->rest_overflowed)
        ew_buf_append(&conn->rest, bytes.ptr, bytes.len);
    conn->rest_overflowed |= !ew_buf_ok(&conn->rest);
}

// Bytes of a request while none is being answered.
static size_t take_next(struct ew_conn *conn, struct ew_str bytes)
{
    if (conn->in.len || (conn->rest.len == 0 && !is_clogged(conn)))
        return take_head(conn, bytes);
    keep_rest(conn, bytes);
    if (conn->rest_overflowed)
        end_after_writing(conn);
    return bytes.len;
}

static void take(struct ew_conn *conn, struct ew_str bytes)
{
    conn->is_working = true;
    while (bytes.len) {
        size_t used = bytes.len;

        switch (conn->state) {
        case EW_CONN_HEAD:
            used = take_next(conn, bytes);
            break;
        case EW_CONN_BODY:
            used = take_body(conn, bytes);
            break;
        case EW_CONN_ANSWER:
            keep_rest(conn, bytes);
            break;
        case EW_CONN_LINGER:
            if (conn->is_shut)
                conn->deadline_s = EW_MIN(conn->server->now_s + LINGER_S, conn->linger_until_s);
            break;
        case EW_CONN_CLOSED:
            break;
        }
        bytes.ptr += used;
        bytes.len -= used;
    }
    conn->is_working = false;
}

// ---- reading ------------------------------------------------------------------------------------------------------

static void give_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    struct ew_server *server = ((struct ew_conn *)handle->data)->server;

    (void)suggested;
    *out = uv_buf_init(server->read_buffer, sizeof(server->read_buffer));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer)
{
    struct ew_conn *conn = stream->data;

    if (n > 0) {
        conn->server->now_s = (double)uv_now(&conn->server->loop) / 1e3;
        take(conn, (struct ew_str){buffer->base, (size_t)n});
        return;
    }
    if (n == 0)
        return;
    uv_read_stop(stream);
    if (n == UV_EOF && conn->state != EW_CONN_ANSWER && conn->state != EW_CONN_CLOSED && pending(conn) > 0) {
        end_after_writing(conn); // it asked, closed its side, and still takes the replies that are whole already
        return;
    }
    ew_conn_abort(conn);
}

static struct ew_conn *new_conn(struct ew_server *server)
{
    struct ew_conn *conn = ew_alloc(sizeof(*conn));

    if (!conn)
        return NULL;
    conn->server = server;
    ew_buf_init(&conn->in, (size_t)server->limits.head_bytes + 1);
    ew_buf_init(&conn->body, (size_t)server->limits.body_bytes);
    ew_buf_init(&conn->rest, REST_BYTES_MAX);
    ew_buf_init(&conn->out, REPLY_BYTES_MAX);
    if (server->config.unix_path)
        uv_pipe_init(&server->loop, &conn->handle.pipe, 0);
    else
        uv_tcp_init(&server->loop, &conn->handle.tcp);
    conn->handle.stream.data = conn;
    conn->next = server->conns;
    if (server->conns)
        server->conns->prev = conn;
    server->conns = conn;
    server->n_conns++;
    return conn;
}

void ew_conn_accept(struct ew_server *server)
{
    struct ew_conn *conn = new_conn(server);
    int bytes = SEND_BUFFER_BYTES;

    server->accept_waits = !conn;
    if (!conn)
        return;
    await_request(conn);
    if (uv_accept(&server->listener.stream, &conn->handle.stream)) {
        close_conn(conn);
        return;
    }
    if (!server->config.unix_path)
        uv_tcp_nodelay(&conn->handle.tcp, 1);
    uv_send_buffer_size((uv_handle_t *)&conn->handle, &bytes);
    if (uv_read_start(&conn->handle.stream, give_buffer, on_read)) {
        close_conn(conn);
        return;
    }
    if (server->n_conns > server->config.connections_max)
        refuse_bytes(conn, &(struct ew_http_fault){429, "the server has as many connections as it may have"});
}

// ---- time ---------------------------------------------------------------------------------------------------------

// Whether the client has stopped taking what waits for it.
static bool is_stalled(struct ew_conn *conn)
{
    size_t queued = uv_stream_get_write_queue_size(&conn->handle.stream);

    if (queued == 0 || queued != conn->seen_pending)
        conn->wrote_s = conn->server->now_s;
    conn->seen_pending = queued;
    return conn->server->now_s - conn->wrote_s > conn->server->config.stalled_s;
}

void ew_conn_tick(struct ew_conn *conn)
{
    bool is_late = conn->deadline_s <= conn->server->now_s;

    if (conn->state == EW_CONN_CLOSED)
        return;
    if (is_stalled(conn))
        ew_conn_abort(conn);
    else if (is_late && conn->state == EW_CONN_LINGER)
        close_conn(conn);
    else if (is_late && conn->state == EW_CONN_HEAD && conn->in.len == 0 && pending(conn) == 0)
        close_conn(conn);
    else if (is_late && (conn->in.len > 0 && (conn->state == EW_CONN_HEAD || conn->state == EW_CONN_BODY)))
        refuse_bytes(conn, &(struct ew_http_fault){408, "the request did not arrive in time"});
}

void ew_conn_wind_down(struct ew_conn *conn)
{
    conn->x.keep_alive = false;
    if (conn->state == EW_CONN_HEAD && conn->in.len == 0 && pending(conn) == 0)
        close_conn(conn);
}

// ---- the exchange, as handlers see it -----------------------------------------------------------------------------

static struct ew_conn *conn_of(const struct ew_exchange *x)
{
    return (struct ew_conn *)((uintptr_t)x - offsetof(struct ew_conn, x));
}

struct ew_str ew_exchange_method(const struct ew_exchange *x)
{
    return x->head.method;
}

struct ew_str ew_exchange_path(const struct ew_exchange *x)
{
    return x->head.path;
}

struct ew_str ew_exchange_query(const struct ew_exchange *x)
{
    return x->head.query;
}

struct ew_str ew_exchange_header(const struct ew_exchange *x, const char *name)
{
    return ew_http_header(x->head.headers, name);
}

struct ew_str ew_exchange_body(const struct ew_exchange *x)
{
    return ew_buf_str(&conn_of(x)->body);
}

void ew_exchange_header_add(struct ew_exchange *x, const char *name, const char *value)
{
    ew_buf_printf(&x->headers, "%s: %s\r\n", name, value);
}

static void write_head(struct ew_conn *conn, int status, const char *content_type, const char *framing)
{
    struct ew_exchange *x = &conn->x;
    const char *cors = conn->server->config.cors;

    x->status = status;
    x->first_s = conn->server->now_s;
    ew_buf_printf(&conn->out, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status, ew_http_reason(status), conn->server->date);
    if (content_type)
        ew_buf_printf(&conn->out, "Content-Type: %s\r\n", content_type);
    ew_buf_append_str(&conn->out, ew_buf_str(&x->headers));
    if (cors)
        ew_buf_printf(&conn->out, "Access-Control-Allow-Origin: %s\r\n%s", cors,
                      strcmp(cors, "*") ? "Vary: Origin\r\n" : "");
    if (!x->keep_alive)
        ew_buf_append_str(&conn->out, EW_STR("Connection: close\r\n"));
    else if (x->head.is_1_0)
        ew_buf_append_str(&conn->out, EW_STR("Connection: keep-alive\r\n"));
    ew_buf_printf(&conn->out, "%s\r\n", framing);
}

void ew_exchange_reply(struct ew_exchange *x, int status, const char *content_type, struct ew_str body)
{
    struct ew_conn *conn = conn_of(x);
    char length[64] = "";

    EW_ASSERT(!x->over && !x->streaming);
    if (status != 204)
        snprintf(length, sizeof(length), "Content-Length: %zu\r\n", body.len);
    write_head(conn, status, content_type, length);
    if (!x->is_head)
        ew_buf_append_str(&conn->out, body);
    if (!ew_buf_ok(&conn->out)) { // no memory for the reply
        count_over(conn, 500);
        close_conn(conn);
        return;
    }
    finish(conn);
}

int ew_exchange_stream_begin(struct ew_exchange *x, int status, const char *content_type)
{
    struct ew_conn *conn = conn_of(x);

    EW_ASSERT(!x->over && !x->streaming);
    x->streaming = true;
    if (x->head.is_1_0)
        x->keep_alive = false;
    write_head(conn, status, content_type, x->head.is_1_0 ? "" : "Transfer-Encoding: chunked\r\n");
    gather(conn);
    return ew_buf_ok(&conn->out) ? 0 : EW_ERR_MEMORY;
}

bool ew_exchange_stream_write(struct ew_exchange *x, struct ew_str data)
{
    struct ew_conn *conn = conn_of(x);

    EW_ASSERT(x->streaming && !x->over);
    if (data.len == 0)
        return true; // an empty chunk would end the reply
    if (pending(conn) + data.len > conn->server->config.queue_bytes) {
        count_over(conn, 499);
        close_conn(conn);
        return false;
    }
    x->bytes_out += data.len;
    if (!x->head.is_1_0)
        ew_buf_printf(&conn->out, "%zx\r\n", data.len);
    ew_buf_append_str(&conn->out, data);
    if (!x->head.is_1_0)
        ew_buf_append_str(&conn->out, EW_STR("\r\n"));
    if (!ew_buf_ok(&conn->out)) {
        count_over(conn, 499);
        close_conn(conn);
        return false;
    }
    gather(conn);
    return true;
}

size_t ew_exchange_stream_pending(const struct ew_exchange *x)
{
    return pending(conn_of(x));
}

void ew_exchange_stream_end(struct ew_exchange *x)
{
    struct ew_conn *conn = conn_of(x);

    EW_ASSERT(x->streaming && !x->over);
    if (!x->head.is_1_0)
        ew_buf_append_str(&conn->out, EW_STR("0\r\n\r\n"));
    finish(conn);
}

void ew_exchange_note_tokens(struct ew_exchange *x, uint64_t n_prompt, uint64_t n_new)
{
    x->n_prompt = n_prompt;
    x->n_new = n_new;
}

void ew_exchange_on_gone(struct ew_exchange *x, void (*fn)(void *ctx), void *ctx)
{
    x->on_gone = fn;
    x->gone_ctx = ctx;
}
