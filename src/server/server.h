#pragma once
// The server: sockets, limits, keys, drain. One I/O thread (the caller of ew_server_run) owns every socket; requests go
// to the routes of the API, replies come from there.
//
// A client is noticed to have left as soon as its side closes, also while its answer is being computed: reading never
// stops. A half-close counts as leaving. A client that takes its answer too slowly is given up once its bounded queue
// is full, or when it took nothing for a while.

#include "server/api.h"

struct ew_server;

struct ew_server_config {
    const char *host;      // name or address; NULL: 127.0.0.1
    uint16_t port;         // 0: any free one
    const char *unix_path; // a socket in the file system instead; or NULL
    const char *key_file;  // one key a line; NULL: everybody may
    const char *cors;      // origin that browsers may call from, "*" for all; NULL: none
    const char *log_path;  // access log, "-" for standard error; NULL: none
    bool log_json;
    uint32_t connections_max; // 0: as many as the limit of open files allows, at most 16384
    uint32_t head_bytes;      // 0: 16 KiB
    uint64_t body_bytes;      // 0: 32 MiB
    uint64_t bodies_bytes;    // of all requests together, 0: 256 MiB, or one body if that is more
    uint64_t queue_bytes;     // of an answer not yet taken, 0: 1 MiB
    double head_s, body_s;    // for a head to arrive, and between pieces of a body; 0: 10, 30
    double idle_s;            // between requests of a connection, 0: 75
    double stalled_s;         // without taking anything of its answer, 0: 60
    double drain_s;           // for running answers to end, 0: 30
    bool (*interrupted)(void); // whether a signal to end came before run, or NULL
};

// Binds and listens, reads the keys, raises the limit of open files. Nothing is served before run.
int ew_server_create(const struct ew_server_config *config, struct ew_server **out, struct ew_error *err) EW_MUST_CHECK;
void ew_server_destroy(struct ew_server *server); // NULL is fine
// For struct ew_service_config: tells the I/O thread that events wait. Any thread.
void ew_server_wake(void *server);
// Where it listens: "http://127.0.0.1:8080". Lives as long as the server.
const char *ew_server_url(const struct ew_server *server);
// Serves until SIGTERM or SIGINT has come and what ran has ended; a second signal ends it at once. SIGHUP reads the
// keys again.
int ew_server_run(struct ew_server *server, struct ew_api *api, struct ew_error *err) EW_MUST_CHECK;
