// serve: a model behind the OpenAI API.

#include <stdio.h>
#include <string.h>

#include "cli/serving.h"
#include "server/server.h"

#define PORT_DEFAULT 8080

static struct ew_server_config server_config(const struct ew_args *args)
{
    return (struct ew_server_config){
        .host = ew_args_str(args, "host", NULL),
        .port = (uint16_t)ew_args_int(args, "port", PORT_DEFAULT),
        .unix_path = ew_args_str(args, "unix", NULL),
        .key_file = ew_args_str(args, "api-key-file", NULL),
        .cors = ew_args_str(args, "cors", NULL),
        .log_path = ew_args_str(args, "access-log", NULL),
        .log_json = strcmp(ew_args_str(args, "log-format", "text"), "json") == 0,
        .connections_max = (uint32_t)ew_args_int(args, "max-connections", 0),
        .body_bytes = ew_args_bytes(args, "max-body", 0),
        .head_s = ew_args_float(args, "head-timeout", 0),
        .body_s = ew_args_float(args, "body-timeout", 0),
        .stalled_s = ew_args_float(args, "send-timeout", 0),
        .idle_s = ew_args_float(args, "idle-timeout", 0),
        .drain_s = ew_args_float(args, "drain-timeout", 0),
        .interrupted = ew_interrupted,
    };
}

static int serve(struct ew_serving *serving, struct ew_server *server, struct ew_error *err)
{
    struct ew_api *api;
    int rc;

    serving->config.version = EW_VERSION;
    serving->config.service.wake = ew_server_wake;
    serving->config.service.wake_ctx = server;
    rc = ew_api_create(&serving->config, &api, err);
    if (rc)
        return rc;
    ew_serving_report(serving, api, stderr);
    fprintf(stderr, "edgewise: listening at %s\n", ew_server_url(server));
    rc = ew_server_run(server, api, err);
    ew_api_destroy(api);
    return rc;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_server_config config = server_config(args);
    struct ew_serving serving;
    struct ew_server *server = NULL;
    int rc = ew_serving_open(&serving, args, err);

    if (rc)
        return rc;
    rc = ew_server_create(&config, &server, err); // before loading: a port in use is known at once
    if (rc == 0)
        rc = serve(&serving, server, err);
    ew_server_destroy(server);
    ew_serving_close(&serving);
    return rc;
}

static const struct ew_opt g_own[] = {
    {"host", 0, EW_OPT_STRING, "HOST", "address to listen at; default 127.0.0.1"},
    {"port", 'p', EW_OPT_INT, "N", "port to listen at, 0 for a free one; default 8080", NULL, 0, 65535},
    {"unix", 0, EW_OPT_STRING, "PATH", "listen at a socket in the file system instead"},
    {"api-key-file", 0, EW_OPT_STRING, "FILE", "keys that clients may use, one a line; read again on SIGHUP"},
    {"cors", 0, EW_OPT_STRING, "ORIGIN", "let pages of this origin call; default none"},
    {"access-log", 0, EW_OPT_STRING, "FILE", "log requests to FILE, or - for standard error; default none"},
    {"log-format", 0, EW_OPT_CHOICE, "FORMAT", "of the access log; default text", "text|json"},
    {"max-connections", 0, EW_OPT_INT, "N", "default what the limit of open files allows", NULL, 1, 65536},
    {"max-body", 0, EW_OPT_BYTES, "SIZE", "of a request; default 32M"},
    {"head-timeout", 0, EW_OPT_FLOAT, "SECONDS", "for a request's head to arrive; default 10", NULL, 0, 1e6},
    {"body-timeout", 0, EW_OPT_FLOAT, "SECONDS", "between pieces of a body; default 30", NULL, 0, 1e6},
    {"send-timeout", 0, EW_OPT_FLOAT, "SECONDS", "for a client to take any of its answer; default 60", NULL, 0, 1e6},
    {"idle-timeout", 0, EW_OPT_FLOAT, "SECONDS", "between requests of a connection; default 75", NULL, 0, 1e6},
    {"drain-timeout", 0, EW_OPT_FLOAT, "SECONDS", "for running answers after SIGTERM; default 30", NULL, 0, 1e6},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_serving, g_own, ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_serve = {
    .name = "serve",
    .usage = "serve -m MODEL[=ALIAS] [--profile NAME] [--host HOST] [--port N] [OPTIONS]",
    .summary = "Serve a model over HTTP, as the OpenAI API has it",
    .details = "Routes: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank, /v1/score,\n"
               "/v1/classify, /v1/models, /tokenize, /detokenize, /health, /ready, /metrics.\n"
               "SIGTERM and Ctrl-C stop taking requests and let running ones finish; the second one ends at once.\n"
               "docs/server.md has the parameters, limits, and samples for systemd, nginx and caddy.",
    .options = g_options,
    .run = run,
};
