#pragma once
// What the files of the transport share: the server's state, and a connection with the exchange that it is in. I/O
// thread only.

#include <uv.h>

#include "base/buf.h"
#include "server/exchange.h"
#include "server/http.h"
#include "server/keys.h"
#include "server/server.h"

enum ew_conn_state {
    EW_CONN_HEAD,   // waiting for a request, or within its head
    EW_CONN_BODY,   // within its body
    EW_CONN_ANSWER, // a handler has it
    EW_CONN_LINGER, // the last reply is written; what still comes is thrown away, so that no reset destroys the reply
    EW_CONN_CLOSED, // handle is being closed
};

// One at a time belongs to a connection.
struct ew_exchange {
    struct ew_http_head head; // views into the connection's `in`
    const struct ew_route *route;
    double started_s;
    uint64_t bytes_out;
    double first_s;           // when the reply began; 0: not yet
    uint64_t n_prompt, n_new; // tokens, as the handler told
    int status;           // of the reply; 0: none yet
    bool streaming, over; // over: the reply is whole
    bool is_head;         // HEAD: no body goes out
    bool keep_alive;
    struct ew_buf headers; // of the reply, added by handlers
    void (*on_gone)(void *ctx);
    void *gone_ctx;
};

struct ew_conn {
    union {
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } handle;
    struct ew_server *server;
    struct ew_conn *next, *prev;    // of all
    struct ew_conn *next_unwritten; // of those with something in `out`
    enum ew_conn_state state;
    bool is_unwritten, closes; // closes: once everything is written
    bool is_shut;              // our side is
    bool is_working;           // within work(), which goes on by itself
    uint32_t n_writing;        // writes under way
    double deadline_s;         // when patience ends in this state
    double wrote_s;            // when the client last took something
    size_t seen_pending;       // of the write queue, then
    double linger_until_s;     // once our side is shut
    size_t scanned;            // of the head
    struct ew_buf in;          // the head of the request being read or answered
    struct ew_buf body;        // its body, decoded
    struct ew_buf rest;        // bytes of requests that follow
    struct ew_buf out;         // to be written with the next turn of the loop
    bool rest_overflowed;
    struct ew_http_chunks chunks;
    struct ew_exchange x;
};

struct ew_server {
    struct ew_server_config config;
    struct ew_http_limits limits;
    uv_loop_t loop;
    bool has_loop;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } listener;
    uv_async_t wake;
    uv_prepare_t writer; // writes what the turn has gathered
    uv_timer_t ticker;
    uv_signal_t signals[3];
    struct ew_api *api;
    struct ew_keys keys;
    struct ew_conn *conns, *unwritten;
    uint32_t n_conns;
    uint64_t held_bytes; // of all bodies
    char url[256];
    FILE *log;
    char date[40]; // of replies
    double now_s;  // of this turn
    double drain_until_s;
    bool draining, stopping;
    bool accept_waits; // there was no memory for a client; libuv tells of no others before this one is accepted
    double next_notify_s, notify_every_s; // of systemd's watchdog; 0: none
    char read_buffer[65536];              // one read at a time is under way
};

// conn.c
void ew_conn_accept(struct ew_server *server);
void ew_conn_tick(struct ew_conn *conn);
// Gives up whatever it is doing.
void ew_conn_abort(struct ew_conn *conn);
// For the drain: closes it now where it is between requests, else after its reply.
void ew_conn_wind_down(struct ew_conn *conn);
void ew_conn_write_gathered(struct ew_server *server);

// access_log.c: one line for an exchange that is over.
void ew_access_log(const struct ew_conn *conn, int status);
