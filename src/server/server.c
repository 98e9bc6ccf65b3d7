#include "server/server.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "server/conn.h"
#include "server/notify.h"

#define BACKLOG 1024
#define TICK_MS 250
#define CONNECTIONS_MAX 16384
#define FILES_OWN 64 // open files that are no connections

// ---- start --------------------------------------------------------------------------------------------------------

static int fail_uv(struct ew_error *err, int status, const char *what)
{
    return ew_fail(err, EW_ERR_IO, "%s: %s", what, uv_strerror(status));
}

// As many open files as the system lets this process have.
static void raise_file_limit(struct ew_server *server)
{
    struct rlimit limit;
    uint32_t most = CONNECTIONS_MAX;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = EW_MIN(limit.rlim_max, (rlim_t)(CONNECTIONS_MAX + FILES_OWN));
        (void)setrlimit(RLIMIT_NOFILE, &limit);
        (void)getrlimit(RLIMIT_NOFILE, &limit);
        if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < CONNECTIONS_MAX + FILES_OWN)
            most = limit.rlim_cur > 2 * FILES_OWN ? (uint32_t)limit.rlim_cur - FILES_OWN : FILES_OWN;
    }
    if (server->config.connections_max == 0 || server->config.connections_max > most)
        server->config.connections_max = most;
}

static void set_defaults(struct ew_server *server)
{
    struct ew_server_config *c = &server->config;

    c->host = c->host ? c->host : "127.0.0.1";
    c->head_bytes = c->head_bytes ? c->head_bytes : 16 << 10;
    c->body_bytes = c->body_bytes ? c->body_bytes : 32 << 20;
    c->bodies_bytes = EW_MAX(c->bodies_bytes ? c->bodies_bytes : 256 << 20, c->body_bytes);
    c->queue_bytes = c->queue_bytes ? c->queue_bytes : 1 << 20;
    c->head_s = c->head_s > 0 ? c->head_s : 10;
    c->body_s = c->body_s > 0 ? c->body_s : 30;
    c->idle_s = c->idle_s > 0 ? c->idle_s : 75;
    c->stalled_s = c->stalled_s > 0 ? c->stalled_s : 60;
    c->drain_s = c->drain_s > 0 ? c->drain_s : 30;
    server->limits = (struct ew_http_limits){c->head_bytes / 2, c->head_bytes, c->body_bytes};
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct ew_server *server = listener->data;

    if (status < 0)
        ew_log(EW_LOG_WARN, "a connection could not be accepted: %s", uv_strerror(status));
    else
        ew_conn_accept(server);
}

// A peer that is gone without a word (its power, its cable) is noticed after a minute, also while nothing is written.
// Linux hands these settings on to the connections that the socket accepts.
static void probe_silent_peers(struct ew_server *server)
{
    static const struct {
        int level, name, value;
    } settings[] = {
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 30},
        {IPPROTO_TCP, TCP_KEEPINTVL, 10},
        {IPPROTO_TCP, TCP_KEEPCNT, 3},
    };
    uv_os_fd_t fd;

    if (uv_fileno(&server->listener.handle, &fd))
        return;
    for (size_t i = 0; i < EW_COUNT_OF(settings); i++)
        (void)setsockopt(fd, settings[i].level, settings[i].name, &settings[i].value, sizeof(settings[i].value));
}

static int bind_tcp(struct ew_server *server, struct ew_error *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
    const char *host = server->config.host;
    char port[8];
    int rc;

    snprintf(port, sizeof(port), "%u", server->config.port);
    rc = getaddrinfo(host, port, &hints, &found);
    if (rc)
        return ew_fail(err, EW_ERR_USAGE, "%s is no address to listen at: %s", host, gai_strerror(rc));
    uv_tcp_init(&server->loop, &server->listener.tcp);
    rc = uv_tcp_bind(&server->listener.tcp, found->ai_addr, 0);
    freeaddrinfo(found);
    if (rc == 0) {
        probe_silent_peers(server);
        return 0;
    }
    fail_uv(err, rc, host);
    return rc == UV_EADDRNOTAVAIL
               ? ew_remedy(err, EW_ERR_IO, "This machine has no such address: give one of its own, or 0.0.0.0 for all")
               : EW_ERR_IO;
}

static bool is_answered(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool answered;

    if (fd < 0)
        return false;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    // EAGAIN: somebody listens, whose queue is full.
    answered = connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 || errno == EAGAIN;
    close(fd);
    return answered;
}

// A socket that a server before us left behind is in the way only if somebody answers there. libuv unlinks ours when
// it is closed.
static int bind_unix(struct ew_server *server, struct ew_error *err)
{
    const char *path = server->config.unix_path;
    struct stat st;
    int rc;

    if (strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path))
        return ew_fail(err, EW_ERR_USAGE, "%s is too long for the path of a socket", path);
    if (stat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
        return ew_fail(err, EW_ERR_USAGE, "%s exists and is no socket", path);
    if (is_answered(path)) {
        ew_fail(err, EW_ERR_IO, "%s: another program listens there", path);
        return ew_remedy(err, EW_ERR_IO, "Stop it, or choose another path with --unix");
    }
    unlink(path);
    uv_pipe_init(&server->loop, &server->listener.pipe, 0);
    rc = uv_pipe_bind(&server->listener.pipe, path);
    if (rc == 0)
        return 0;
    fail_uv(err, rc, path);
    return ew_remedy(err, EW_ERR_IO, "Its directory must exist, and this user must be allowed to write there");
}

static void set_url(struct ew_server *server)
{
    struct sockaddr_storage address;
    int len = sizeof(address);
    char name[64] = "";

    if (server->config.unix_path) {
        snprintf(server->url, sizeof(server->url), "unix:%.200s", server->config.unix_path);
        return;
    }
    if (uv_tcp_getsockname(&server->listener.tcp, (struct sockaddr *)&address, &len))
        return;
    if (address.ss_family == AF_INET6) {
        uv_ip6_name((const struct sockaddr_in6 *)&address, name, sizeof(name));
        snprintf(server->url, sizeof(server->url), "http://[%s]:%u", name,
                 ntohs(((const struct sockaddr_in6 *)&address)->sin6_port));
    } else {
        uv_ip4_name((const struct sockaddr_in *)&address, name, sizeof(name));
        snprintf(server->url, sizeof(server->url), "http://%s:%u", name,
                 ntohs(((const struct sockaddr_in *)&address)->sin_port));
    }
}

static int start_listening(struct ew_server *server, struct ew_error *err)
{
    int rc = server->config.unix_path ? bind_unix(server, err) : bind_tcp(server, err);

    if (rc)
        return rc;
    server->listener.handle.data = server;
    rc = uv_listen(&server->listener.stream, BACKLOG, on_connection);
    if (rc) {
        ew_fail(err, EW_ERR_IO, "%s port %u: %s", server->config.host, server->config.port, uv_strerror(rc));
        return rc == UV_EADDRINUSE
                   ? ew_remedy(err, EW_ERR_IO, "Another program has this port: stop it, or choose one with --port")
                   : EW_ERR_IO;
    }
    set_url(server);
    return 0;
}

static int open_log(struct ew_server *server, struct ew_error *err)
{
    const char *path = server->config.log_path;

    if (!path)
        return 0;
    server->log = strcmp(path, "-") == 0 ? stderr : fopen(path, "ae");
    if (!server->log)
        return ew_fail_errno(err, EW_ERR_IO, "the access log %s cannot be written", path);
    setvbuf(server->log, NULL, _IOLBF, 0);
    return 0;
}

// ---- the loop's turns ---------------------------------------------------------------------------------------------

static void each_conn(struct ew_server *server, void (*fn)(struct ew_conn *conn))
{
    struct ew_conn *next;

    for (struct ew_conn *conn = server->conns; conn; conn = next) {
        next = conn->next; // closing only takes effect later
        fn(conn);
    }
}

static void set_now(struct ew_server *server)
{
    server->now_s = (double)uv_now(&server->loop) / 1e3;
}

static void set_date(struct ew_server *server)
{
    static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t now = time(NULL);
    struct tm utc;

    gmtime_r(&now, &utc); // RFC 9110, 5.6.7: names are English whatever the locale
    snprintf(server->date, sizeof(server->date), "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT", days + 3 * utc.tm_wday,
             utc.tm_mday, months + 3 * utc.tm_mon, utc.tm_year + 1900, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

static void on_wake(uv_async_t *wake)
{
    struct ew_server *server = wake->data;

    set_now(server);
    if (server->api)
        ew_api_poll(server->api);
}

static void on_prepare(uv_prepare_t *writer)
{
    struct ew_server *server = writer->data;

    set_now(server);
    ew_conn_write_gathered(server);
}

// The watchdog is fed only while steps come to an end.
static void feed_watchdog(struct ew_server *server)
{
    if (server->notify_every_s <= 0 || server->now_s < server->next_notify_s || !ew_api_is_ready(server->api, NULL))
        return;
    server->next_notify_s = server->now_s + server->notify_every_s;
    ew_notify("WATCHDOG=1");
}

static void on_tick(uv_timer_t *ticker)
{
    struct ew_server *server = ticker->data;

    set_now(server);
    set_date(server);
    each_conn(server, ew_conn_tick);
    feed_watchdog(server);
    if (server->accept_waits && !server->draining)
        ew_conn_accept(server);
    if (!server->draining)
        return;
    if (server->stopping || server->now_s >= server->drain_until_s) {
        if (server->n_conns && !server->stopping)
            ew_log(EW_LOG_WARN, "%u connections are cut off: their answers took longer than the drain may",
                   server->n_conns);
        server->stopping = true;
        each_conn(server, ew_conn_abort);
    }
    if (server->n_conns == 0)
        uv_stop(&server->loop);
}

// ---- signals ------------------------------------------------------------------------------------------------------

static void drain(struct ew_server *server)
{
    server->draining = true;
    server->drain_until_s = server->now_s + server->config.drain_s;
    ew_notify("STOPPING=1");
    if (server->n_conns)
        ew_log(EW_LOG_INFO, "no more requests are taken; running answers have %.0f s", server->config.drain_s);
    uv_close(&server->listener.handle, NULL);
    each_conn(server, ew_conn_wind_down);
}

static void read_keys_again(struct ew_server *server)
{
    struct ew_error err;

    if (!server->config.key_file)
        return;
    if (ew_keys_read(&server->keys, server->config.key_file, &err))
        ew_log(EW_LOG_WARN, "the keys stay as they were: %s", err.message);
    else
        ew_log(EW_LOG_INFO, "%u keys were read from %s", server->keys.count, server->config.key_file);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct ew_server *server = handle->data;

    set_now(server);
    if (number == SIGHUP)
        read_keys_again(server);
    else if (server->draining)
        server->stopping = true;
    else
        drain(server);
}

static void start_handles(struct ew_server *server)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};

    uv_prepare_init(&server->loop, &server->writer);
    server->writer.data = server;
    uv_prepare_start(&server->writer, on_prepare);
    uv_timer_init(&server->loop, &server->ticker);
    server->ticker.data = server;
    uv_timer_start(&server->ticker, on_tick, TICK_MS, TICK_MS);
    for (size_t i = 0; i < EW_COUNT_OF(numbers); i++) {
        uv_signal_init(&server->loop, &server->signals[i]);
        server->signals[i].data = server;
        uv_signal_start(&server->signals[i], on_signal, numbers[i]);
    }
}

// ---- life ---------------------------------------------------------------------------------------------------------

int ew_server_create(const struct ew_server_config *config, struct ew_server **out, struct ew_error *err)
{
    struct ew_server *server = ew_alloc(sizeof(*server));
    int rc = 0;

    if (!server)
        return ew_fail_memory(err, sizeof(*server), "the server");
    server->config = *config;
    set_defaults(server);
    raise_file_limit(server);
    if (config->key_file)
        rc = ew_keys_read(&server->keys, config->key_file, err);
    if (rc == 0)
        rc = open_log(server, err);
    if (rc == 0) {
        rc = uv_loop_init(&server->loop);
        server->has_loop = rc == 0;
        rc = rc ? fail_uv(err, rc, "the event loop") : 0;
    }
    if (rc == 0) {
        rc = uv_async_init(&server->loop, &server->wake, on_wake);
        server->wake.data = server;
        rc = rc ? fail_uv(err, rc, "the event loop") : start_listening(server, err);
    }
    if (rc) {
        ew_server_destroy(server);
        return rc;
    }
    *out = server;
    return 0;
}

static void close_handle(uv_handle_t *handle, void *ctx)
{
    (void)ctx;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void ew_server_destroy(struct ew_server *server)
{
    if (!server)
        return;
    if (server->has_loop) {
        each_conn(server, ew_conn_abort);
        uv_run(&server->loop, UV_RUN_NOWAIT); // connections free themselves
        uv_walk(&server->loop, close_handle, NULL);
        uv_run(&server->loop, UV_RUN_DEFAULT);
        uv_loop_close(&server->loop);
    }
    if (server->log && server->log != stderr)
        fclose(server->log);
    ew_keys_free(&server->keys);
    ew_free(server);
}

void ew_server_wake(void *server)
{
    uv_async_send(&((struct ew_server *)server)->wake);
}

const char *ew_server_url(const struct ew_server *server)
{
    return server->url;
}

int ew_server_run(struct ew_server *server, struct ew_api *api, struct ew_error *err)
{
    int rc;

    server->api = api;
    uv_update_time(&server->loop);
    set_now(server);
    set_date(server);
    server->notify_every_s = ew_notify_watchdog_s() / 2;
    start_handles(server);
    ew_notify("READY=1");
    if (server->config.interrupted && server->config.interrupted())
        drain(server);
    rc = uv_run(&server->loop, UV_RUN_DEFAULT);
    each_conn(server, ew_conn_abort);
    server->api = NULL;
    return rc < 0 ? fail_uv(err, rc, "the event loop") : 0;
}
