#include "bench/load_client.h"

#include <netdb.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"

#define READ_BYTES 65536
#define HEAD_MAX 8192
#define ANSWER_ARENA_MAX ((size_t)64 << 20)

struct connection; // a socket; outlives its client until libuv has closed it

struct ew_load_client {
    uv_loop_t *loop;
    const struct ew_load_target *target;
    struct connection *connection; // NULL: none
    uint64_t n_connects;
    bool busy;
    // The running or newest request.
    struct ew_load_callbacks callbacks;
    struct ew_buf out; // head and body as sent; kept for a second try
    double timeout_s, previous_s;
    bool reused; // the connection had served an earlier request: the server may close it under our feet
    bool saw_bytes, saw_end, stream;
    bool pending; // failed before the loop ran: ew_load_client_check tells
    enum ew_load_outcome pending_outcome;
    struct ew_load_result result;
    struct ew_reply reply;
    struct ew_sse sse;
    struct ew_buf body;
    struct ew_arena arena;
};

struct connection {
    uv_tcp_t tcp;
    uv_connect_t connect;
    uv_write_t write;
    struct ew_load_client *client; // NULL: abandoned, being closed
    bool connected, writing;
    char buffer[READ_BYTES];
};

static void open_connection(struct ew_load_client *client);

// For failures of calls that the user's own call may be below: `done` must not be called from there.
static void fail_later(struct ew_load_client *client, enum ew_load_outcome outcome, int uv_code)
{
    snprintf(client->result.message, sizeof(client->result.message), "%s", uv_strerror(uv_code));
    client->pending = true;
    client->pending_outcome = outcome;
}

static void on_closed(uv_handle_t *handle)
{
    ew_free(handle->data);
}

static void drop_connection(struct ew_load_client *client)
{
    struct connection *connection = client->connection;

    if (!connection)
        return;
    client->connection = NULL;
    connection->client = NULL;
    uv_close((uv_handle_t *)&connection->tcp, on_closed);
}

static void finish(struct ew_load_client *client, enum ew_load_outcome outcome)
{
    struct ew_load_result *result = &client->result;

    result->outcome = outcome;
    result->end_s = ew_clock_s();
    result->status = client->reply.state > EW_REPLY_HEADERS ? client->reply.status : 0;
    result->retry_after = client->reply.retry_after;
    if (client->reply.state != EW_REPLY_DONE || !client->reply.keep_alive ||
        (client->connection && client->connection->writing)) // answered before it was sent: its end is never read
        drop_connection(client);
    client->busy = false;
    client->callbacks.done(client->callbacks.ctx, result);
}

static void fail(struct ew_load_client *client, enum ew_load_outcome outcome, const char *message)
{
    snprintf(client->result.message, sizeof(client->result.message), "%s", message);
    drop_connection(client);
    finish(client, outcome);
}

// A kept connection that ends before a byte of the reply was closed by the server while idle: once more, on a new one.
static void lost(struct ew_load_client *client, const char *message)
{
    if (client->reused && !client->saw_bytes) {
        drop_connection(client);
        client->reused = false;
        open_connection(client);
        return;
    }
    fail(client, EW_LOAD_BROKEN, message);
}

// One chunk of a stream or one whole answer.
static bool take_answer(struct ew_load_client *client, struct ew_str json, double now)
{
    struct ew_load_result *result = &client->result;
    struct ew_load_answer answer;
    struct ew_error err;

    if (ew_load_answer_parse(&client->arena, json, &answer, &err) < 0) {
        fail(client, EW_LOAD_MALFORMED, err.message);
        return false;
    }
    if (answer.error.ptr) {
        snprintf(result->message, sizeof(result->message), EW_STR_FMT, EW_STR_ARG(answer.error));
        drop_connection(client);
        finish(client, client->stream ? EW_LOAD_ERROR : EW_LOAD_STATUS);
        return false;
    }
    result->prompt_tokens = answer.prompt_tokens >= 0 ? answer.prompt_tokens : result->prompt_tokens;
    result->completion_tokens = answer.completion_tokens >= 0 ? answer.completion_tokens : result->completion_tokens;
    result->cached_tokens = answer.cached_tokens >= 0 ? answer.cached_tokens : result->cached_tokens;
    client->saw_end |= answer.finished;
    if (!answer.has_text)
        return true;
    result->n_chunks++;
    result->first_s = result->first_s > 0 ? result->first_s : now;
    result->last_s = now;
    if (client->callbacks.text)
        client->callbacks.text(client->callbacks.ctx, &answer, result->n_chunks == 1 ? -1 : now - client->previous_s);
    client->previous_s = now;
    return true;
}

static bool take_stream(struct ew_load_client *client, struct ew_str bytes, double now)
{
    while (bytes.len) {
        struct ew_error err;
        struct ew_str data;
        bool event;
        ptrdiff_t n = ew_sse_feed(&client->sse, bytes.ptr, bytes.len, &event, &data, &err);

        if (n < 0) {
            fail(client, EW_LOAD_MALFORMED, err.message);
            return false;
        }
        bytes.ptr += n;
        bytes.len -= (size_t)n;
        if (event && ew_str_is(data, "[DONE]"))
            client->saw_end = true;
        else if (event && !take_answer(client, data, now))
            return false;
    }
    return true;
}

static bool take_body(struct ew_load_client *client, struct ew_str bytes, double now)
{
    client->stream = client->reply.event_stream && client->reply.status == 200;
    if (client->stream)
        return take_stream(client, bytes, now);
    ew_buf_append_str(&client->body, bytes);
    if (ew_buf_ok(&client->body))
        return true;
    fail(client, EW_LOAD_MALFORMED, "the reply is longer than 16 MiB");
    return false;
}

// The text of an error reply: its JSON message, or its first bytes.
static void take_error(struct ew_load_client *client)
{
    struct ew_str body = ew_buf_str(&client->body);
    struct ew_load_answer answer;

    if (ew_load_answer_parse(&client->arena, body, &answer, NULL) == EW_OK && answer.error.ptr)
        body = answer.error;
    snprintf(client->result.message, sizeof(client->result.message), EW_STR_FMT, EW_STR_ARG(body));
    finish(client, EW_LOAD_STATUS);
}

static void end_reply(struct ew_load_client *client, double now)
{
    if (client->reply.status < 200 || client->reply.status > 299) {
        take_error(client);
        return;
    }
    if (client->stream && !client->saw_end) {
        fail(client, EW_LOAD_BROKEN, "the stream ended without a finish_reason or [DONE]");
        return;
    }
    if (!client->stream && client->callbacks.text && !take_answer(client, ew_buf_str(&client->body), now))
        return;
    finish(client, EW_LOAD_OK);
}

static void take_bytes(struct ew_load_client *client, const char *bytes, size_t len)
{
    double now = ew_clock_s();

    client->saw_bytes = true;
    while (len) {
        struct ew_error err;
        struct ew_str body;
        ptrdiff_t n = ew_reply_feed(&client->reply, bytes, len, &body, &err);

        if (n < 0) {
            fail(client, EW_LOAD_MALFORMED, err.message);
            return;
        }
        if (body.len && !take_body(client, body, now))
            return;
        bytes += n;
        len -= (size_t)n;
        if (client->reply.state == EW_REPLY_DONE) {
            if (len)
                client->reply.keep_alive = false; // bytes that nobody asked for: what follows cannot be trusted
            end_reply(client, now);
            return;
        }
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct connection *connection = handle->data;

    *buf = uv_buf_init(connection->buffer, READ_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct connection *connection = stream->data;
    struct ew_load_client *client = connection->client;
    struct ew_error err;

    if (!client || n == 0)
        return;
    if (!client->busy) { // closed while idle, or bytes that nobody asked for
        drop_connection(client);
    } else if (n > 0) {
        take_bytes(client, buf->base, (size_t)n);
    } else if (n != UV_EOF) {
        lost(client, uv_strerror((int)n));
    } else if (!client->saw_bytes || ew_reply_eof(&client->reply, &err) < 0) {
        lost(client, client->saw_bytes ? err.message : "the server closed the connection without a reply");
    } else {
        end_reply(client, ew_clock_s());
    }
}

static void on_written(uv_write_t *write, int status)
{
    struct connection *connection = write->data;

    // A failure is left to the reader: a reply may have come all the same (413, say), and tells more.
    connection->writing = false;
}

static void send_request(struct ew_load_client *client)
{
    struct connection *connection = client->connection;
    uv_buf_t buf = uv_buf_init(client->out.ptr, (unsigned)client->out.len);
    int rc;

    connection->write.data = connection;
    rc = uv_write(&connection->write, (uv_stream_t *)&connection->tcp, &buf, 1, on_written);
    connection->writing = rc == 0;
    if (rc < 0)
        fail_later(client, EW_LOAD_BROKEN, rc);
}

static void on_connected(uv_connect_t *connect, int status)
{
    struct connection *connection = connect->data;
    struct ew_load_client *client = connection->client;
    int rc = status;

    if (!client)
        return;
    connection->connected = rc == 0;
    if (rc == 0)
        rc = uv_read_start((uv_stream_t *)&connection->tcp, on_alloc, on_read);
    if (rc < 0)
        fail(client, rc == UV_ECONNREFUSED ? EW_LOAD_REFUSED : EW_LOAD_UNREACHED, uv_strerror(rc));
    else
        send_request(client);
}

static void open_connection(struct ew_load_client *client)
{
    struct connection *connection = ew_alloc(sizeof(*connection));
    int rc = connection ? uv_tcp_init(client->loop, &connection->tcp) : UV_ENOMEM;

    if (rc < 0) {
        ew_free(connection);
        fail_later(client, EW_LOAD_UNREACHED, rc);
        return;
    }
    connection->tcp.data = connection->connect.data = connection;
    connection->client = client;
    client->connection = connection;
    client->n_connects++;
    uv_tcp_nodelay(&connection->tcp, 1);
    rc = uv_tcp_connect(&connection->connect, &connection->tcp, (const struct sockaddr *)&client->target->address,
                        on_connected);
    if (rc < 0)
        fail_later(client, EW_LOAD_UNREACHED, rc);
}

int ew_load_client_create(uv_loop_t *loop, const struct ew_load_target *target, struct ew_load_client **out,
                          struct ew_error *err)
{
    struct ew_load_client *client = ew_alloc(sizeof(*client));

    if (!client)
        return ew_fail_memory(err, sizeof(*client), "a client");
    client->loop = loop;
    client->target = target;
    ew_buf_init(&client->out, EW_LOAD_BODY_MAX + HEAD_MAX);
    ew_buf_init(&client->body, EW_LOAD_BODY_MAX);
    ew_sse_init(&client->sse);
    ew_arena_init(&client->arena, ANSWER_ARENA_MAX);
    ew_reply_init(&client->reply);
    *out = client;
    return EW_OK;
}

void ew_load_client_destroy(struct ew_load_client *client)
{
    if (!client)
        return;
    drop_connection(client);
    ew_buf_fini(&client->out);
    ew_buf_fini(&client->body);
    ew_sse_fini(&client->sse);
    ew_arena_fini(&client->arena);
    ew_free(client);
}

static void write_head(struct ew_load_client *client, const char *path, const struct ew_str *body)
{
    const struct ew_load_target *target = client->target;

    ew_buf_printf(&client->out, "%s %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: edgewise\r\nAccept: */*\r\n",
                  body ? "POST" : "GET", target->prefix, path, target->host);
    if (target->api_key)
        ew_buf_printf(&client->out, "Authorization: Bearer %s\r\n", target->api_key);
    if (body)
        ew_buf_printf(&client->out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", body->len);
    ew_buf_append_str(&client->out, EW_STR("\r\n"));
    if (body)
        ew_buf_append_str(&client->out, *body);
}

int ew_load_begin(struct ew_load_client *client, const char *path, const struct ew_str *body, double begin_s,
                  double timeout_s, const struct ew_load_callbacks *callbacks, struct ew_error *err)
{
    EW_ASSERT(!client->busy);
    client->callbacks = *callbacks;
    client->timeout_s = timeout_s;
    client->saw_bytes = client->saw_end = client->stream = client->pending = false;
    client->result = (struct ew_load_result){
        .begin_s = begin_s, .prompt_tokens = -1, .completion_tokens = -1, .cached_tokens = -1};
    ew_reply_init(&client->reply);
    ew_sse_reset(&client->sse);
    ew_buf_reset(&client->body);
    ew_buf_reset(&client->out);
    write_head(client, path, body);
    if (!ew_buf_ok(&client->out))
        return ew_fail(err, EW_ERR_LIMIT, "a request is longer than %zu bytes", EW_LOAD_BODY_MAX);
    client->busy = true;
    client->reused = client->connection != NULL;
    if (client->reused)
        send_request(client);
    else
        open_connection(client);
    return EW_OK;
}

bool ew_load_client_busy(const struct ew_load_client *client)
{
    return client->busy;
}

void ew_load_client_check(struct ew_load_client *client, double now_s)
{
    bool connecting = client->busy && client->connection && !client->connection->connected;
    double spent = now_s - client->result.begin_s;

    if (client->busy && client->pending) {
        drop_connection(client);
        finish(client, client->pending_outcome);
    } else if (connecting && spent > client->target->connect_timeout_s) {
        fail(client, EW_LOAD_UNREACHED, "connecting took too long");
    } else if (client->busy && spent > client->timeout_s) {
        fail(client, EW_LOAD_TIMEOUT, "the request took longer than --timeout");
    }
}

void ew_load_client_stop(struct ew_load_client *client)
{
    if (client->busy)
        fail(client, EW_LOAD_STOPPED, "stopped");
}

struct ew_str ew_load_client_body(const struct ew_load_client *client)
{
    return ew_buf_str(&client->body);
}

uint64_t ew_load_client_connects(const struct ew_load_client *client)
{
    return client->n_connects;
}

// "host:port", "[::1]:port" or either without the port; false where a part does not fit or is empty.
static bool split_authority(struct ew_str text, char *host, size_t host_size, char *port, size_t port_size)
{
    bool bracket = text.len && text.ptr[0] == '[';
    const char *end = bracket ? memchr(text.ptr, ']', text.len) : memchr(text.ptr, ':', text.len);
    size_t len = end ? (size_t)(end - text.ptr) - bracket : text.len;
    size_t used = end ? len + 2 * bracket : text.len;
    struct ew_str rest = {text.ptr + used, text.len - used};

    if ((bracket && !end) || len == 0 || len >= host_size || rest.len > port_size || (rest.len && rest.ptr[0] != ':'))
        return false;
    memcpy(host, text.ptr + bracket, len);
    host[len] = '\0';
    snprintf(port, port_size, EW_STR_FMT, rest.len ? (int)rest.len - 1 : 2, rest.len ? rest.ptr + 1 : "80");
    return true;
}

static int resolve(const char *host, const char *port, struct ew_load_target *out, struct ew_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list;
    int rc = getaddrinfo(host, port, &hints, &list);

    if (rc != 0)
        return ew_fail(err, EW_ERR_IO, "cannot resolve \"%s\", port \"%s\": %s", host, port, gai_strerror(rc));
    memcpy(&out->address, list->ai_addr, list->ai_addrlen);
    freeaddrinfo(list);
    return EW_OK;
}

int ew_load_target_parse(const char *url, struct ew_load_target *out, struct ew_error *err)
{
    struct ew_str rest = ew_str_of(url), authority, path;
    char host[256], port[8];
    const char *slash;

    if (ew_str_starts(rest, "https://")) {
        ew_fail(err, EW_ERR_USAGE, "--url %s: bench load speaks no TLS", url);
        return ew_remedy(err, EW_ERR_USAGE, "Drive the server behind the proxy, by its http:// address");
    }
    if (ew_str_starts(rest, "http://"))
        rest = (struct ew_str){rest.ptr + 7, rest.len - 7};
    slash = memchr(rest.ptr, '/', rest.len);
    authority = (struct ew_str){rest.ptr, slash ? (size_t)(slash - rest.ptr) : rest.len};
    path = (struct ew_str){rest.ptr + authority.len, rest.len - authority.len};
    while (ew_str_ends(path, "/"))
        path.len--;
    if (ew_str_ends(path, "/v1"))
        path.len -= 3;
    for (size_t i = 0; i < rest.len; i++)
        if ((unsigned char)rest.ptr[i] <= ' ' || rest.ptr[i] == '?' || rest.ptr[i] == '#' || rest.ptr[i] == '@')
            path.len = sizeof(out->prefix);
    if (path.len >= sizeof(out->prefix) || !split_authority(authority, host, sizeof(host), port, sizeof(port))) {
        ew_fail(err, EW_ERR_USAGE, "--url \"%s\" is no address of a server", url);
        return ew_remedy(err, EW_ERR_USAGE, "Write it as http://127.0.0.1:8080");
    }
    memcpy(out->prefix, path.ptr, path.len);
    out->prefix[path.len] = '\0';
    snprintf(out->host, sizeof(out->host), EW_STR_FMT, (int)authority.len, authority.ptr);
    return resolve(host, port, out, err);
}
