// params: bodies of requests, what is read from them, and by which name each mistake is refused. metrics: their text.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "server/api.h"
#include "server/metrics.h"
#include "server/params.h"

static int read_body(enum ew_params_route route, struct ew_str body, struct ew_arena *arena, struct ew_params *params,
                     struct ew_fault *fault)
{
    const struct ew_json *root;

    if (ew_params_parse(arena, body, &root, fault) < 0)
        return -1;
    return ew_params_read(params, route, root, arena, fault);
}

#define ALL_FIELDS                                                                                                     \
    "{\"model\": \"m\", \"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"stream\": true,"                   \
    " \"stream_options\": {\"include_usage\": true}, \"n\": 3, \"stop\": [\"a\", \"b\"], \"seed\": -7,"                \
    " \"temperature\": 0.5, \"top_p\": 0.9, \"top_k\": 40, \"min_p\": 0.1, \"presence_penalty\": 1,"                   \
    " \"frequency_penalty\": -1, \"repetition_penalty\": 1.1, \"logit_bias\": {\"5\": -100, \"6\": 2.5},"              \
    " \"logprobs\": true, \"top_logprobs\": 4, \"max_tokens\": 10, \"max_completion_tokens\": 10,"                     \
    " \"min_tokens\": 2, \"ignore_eos\": true, \"priority\": -3, \"user\": \"u\", \"tools\": [],"                      \
    " \"tool_choice\": \"none\", \"parallel_tool_calls\": false, \"response_format\": {\"type\": \"text\"},"           \
    " \"chat_template_kwargs\": {\"enable_thinking\": false}, \"metadata\": {}, \"store\": false,"                     \
    " \"service_tier\": \"auto\""

static void fields_are_read(void **state)
{
    const struct ew_model model = {.sampling = {NAN, NAN, NAN, NAN, -1, false, false}};
    struct ew_request request;
    struct ew_params params;
    struct ew_arena arena;
    struct ew_fault fault;

    ew_arena_init(&arena, EW_PARAMS_ARENA_MAX);
    // An unknown field is refused even where it is null.
    assert_int_equal(read_body(EW_PARAMS_CHAT, ew_str_of(ALL_FIELDS ", \"suffix_is_null\": null}"), &arena, &params,
                               &fault),
                     -1);
    assert_string_equal(fault.param, "suffix_is_null");
    assert_int_equal(read_body(EW_PARAMS_CHAT, ew_str_of("{\"messages\": [1], \"temperature\": null}"), &arena, &params,
                               &fault),
                     0);
    assert_true(isnan(params.temperature));
    assert_int_equal(read_body(EW_PARAMS_CHAT, ew_str_of(ALL_FIELDS "}"), &arena, &params, &fault), 0);
    assert_true(params.stream && params.include_usage && params.no_tools && params.one_call && params.logprobs);
    assert_null(params.tools);
    assert_int_equal(params.n, 3);
    ew_params_request(&params, &model, &request);
    assert_int_equal(request.n_max, 10);
    assert_int_equal(request.n_logprobs, 5);
    assert_int_equal(request.priority, -3);
    assert_int_equal(request.sampling.seed, (uint64_t)-7);
    assert_int_equal(request.sampling.top_k, 40);
    assert_int_equal(request.sampling.n_stop, 2);
    assert_int_equal(request.sampling.n_bias, 2);
    assert_int_equal(request.sampling.bias[1].token, 6);
    assert_float_equal(request.sampling.temperature, 0.5, 1e-6);
    assert_float_equal(request.sampling.frequency_penalty, -1, 1e-6);
    ew_arena_fini(&arena);
}

static void the_models_own_sampling_is_the_default(void **state)
{
    const struct ew_model greedy = {.sampling = {0.7f, 0.8f, NAN, NAN, 20, true, false}};
    const struct ew_model silent = {.sampling = {NAN, NAN, NAN, NAN, -1, false, false}};
    struct ew_request request;
    struct ew_params params;
    struct ew_arena arena;
    struct ew_fault fault;

    ew_arena_init(&arena, EW_PARAMS_ARENA_MAX);
    assert_int_equal(read_body(EW_PARAMS_TEXT, ew_str_of("{\"prompt\": \"x\"}"), &arena, &params, &fault), 0);
    ew_params_request(&params, &greedy, &request);
    assert_float_equal(request.sampling.temperature, 0, 0);
    assert_float_equal(request.sampling.top_p, 0.8, 1e-6);
    assert_int_equal(request.sampling.top_k, 20);
    ew_params_request(&params, &silent, &request);
    assert_float_equal(request.sampling.temperature, 1, 0);
    assert_float_equal(request.sampling.top_p, 1, 0);
    ew_arena_fini(&arena);
}

#define CHAT(fields) EW_PARAMS_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], " fields "}"
#define TEXT(fields) EW_PARAMS_TEXT, "{\"prompt\": \"x\", " fields "}"

static void mistakes_are_named(void **state)
{
    static const struct {
        enum ew_params_route route;
        const char *body, *param, *code;
    } cases[] = {
        {EW_PARAMS_CHAT, "", "", "invalid_json"},
        {EW_PARAMS_CHAT, "{", "", "invalid_json"},
        {EW_PARAMS_CHAT, "[]", "", "invalid_json"},
        {EW_PARAMS_CHAT, "{\"seed\": NaN}", "", "invalid_json"},
        {EW_PARAMS_CHAT, "{\"temperature\": -Infinity}", "", "invalid_json"},
        {EW_PARAMS_CHAT, "{\"user\": \"\\ud800\"}", "", "invalid_json"},
        {EW_PARAMS_CHAT, "{}", "messages", "invalid_value"},
        {EW_PARAMS_CHAT, "{\"messages\": []}", "messages", "invalid_value"},
        {EW_PARAMS_CHAT, "{\"messages\": \"x\"}", "messages", "invalid_type"},
        {EW_PARAMS_CHAT, "{\"prompt\": \"x\"}", "prompt", "unknown_parameter"},
        {EW_PARAMS_TEXT, "{}", "prompt", "invalid_value"},
        {EW_PARAMS_TEXT, "{\"prompt\": []}", "prompt", "invalid_value"},
        {EW_PARAMS_TEXT, "{\"prompt\": 3}", "prompt", "invalid_type"},
        {CHAT("\"temperature\": \"hot\""), "temperature", "invalid_type"},
        {CHAT("\"temperature\": 2.5"), "temperature", "invalid_value"},
        {CHAT("\"n\": 0"), "n", "invalid_value"},
        {CHAT("\"n\": 1.5"), "n", "invalid_type"},
        {CHAT("\"n\": true"), "n", "invalid_type"},
        {CHAT("\"stream\": 1"), "stream", "invalid_type"},
        {CHAT("\"stream_options\": {\"include_usage\": true}"), "stream_options", "invalid_value"},
        {CHAT("\"stream\": true, \"stream_options\": {\"x\": true}"), "stream_options.x", "unsupported_parameter"},
        {CHAT("\"stop\": \"\""), "stop", "invalid_value"},
        {CHAT("\"stop\": [1]"), "stop", "invalid_type"},
        {CHAT("\"logit_bias\": {\"x\": 1}"), "logit_bias", "invalid_value"},
        {CHAT("\"logit_bias\": {\"1\": 101}"), "logit_bias", "invalid_value"},
        {CHAT("\"top_logprobs\": 2"), "top_logprobs", "invalid_value"},
        {CHAT("\"logprobs\": true, \"top_logprobs\": 21"), "top_logprobs", "invalid_value"},
        {CHAT("\"max_tokens\": 0"), "max_tokens", "invalid_value"},
        {CHAT("\"max_tokens\": 1, \"max_completion_tokens\": 2"), "max_tokens", "invalid_value"},
        {CHAT("\"max_tokens\": 1, \"min_tokens\": 2"), "min_tokens", "invalid_value"},
        {CHAT("\"tool_choice\": \"required\""), "tool_choice", "unsupported_parameter"},
        {CHAT("\"tool_choice\": {\"type\": \"function\"}"), "tool_choice", "unsupported_parameter"},
        {CHAT("\"response_format\": {\"type\": \"json_object\"}"), "response_format", "unsupported_parameter"},
        {CHAT("\"chat_template_kwargs\": {\"messages\": 1}"), "chat_template_kwargs", "invalid_value"},
        {CHAT("\"store\": true"), "store", "unsupported_parameter"},
        {CHAT("\"functions\": []"), "functions", "unsupported_parameter"},
        {CHAT("\"echo\": true"), "echo", "unknown_parameter"},
        {TEXT("\"logprobs\": 1, \"echo\": true"), "echo", "unsupported_parameter"},
        {TEXT("\"suffix\": \"y\""), "suffix", "unsupported_parameter"},
        {TEXT("\"logprobs\": true"), "logprobs", "invalid_type"},
    };

    for (size_t i = 0; i < EW_COUNT_OF(cases); i++) {
        struct ew_params params;
        struct ew_arena arena;
        struct ew_fault fault = {0};

        ew_arena_init(&arena, EW_PARAMS_ARENA_MAX);
        assert_int_equal(read_body(cases[i].route, ew_str_of(cases[i].body), &arena, &params, &fault), -1);
        assert_int_equal(fault.status, 400);
        assert_string_equal(fault.type, "invalid_request_error");
        assert_string_equal(fault.param, cases[i].param);
        assert_string_equal(fault.code, cases[i].code);
        assert_non_null(strstr(fault.message, cases[i].param));
        ew_arena_fini(&arena);
    }
}

static void bodies_have_bounds(void **state)
{
    struct ew_params params;
    struct ew_arena arena;
    struct ew_fault fault;
    struct ew_buf body;

    ew_arena_init(&arena, EW_PARAMS_ARENA_MAX);
    ew_buf_init(&body, (size_t)1 << 24);
    ew_buf_append_str(&body, EW_STR("{\"messages\": "));
    for (int i = 0; i < EW_PARAMS_DEPTH_MAX; i++)
        ew_buf_append_char(&body, '[');
    assert_int_equal(read_body(EW_PARAMS_CHAT, ew_buf_str(&body), &arena, &params, &fault), -1);
    assert_non_null(strstr(fault.message, "deeper"));
    ew_buf_reset(&body);
    ew_buf_append_str(&body, EW_STR("{\"messages\": ["));
    for (int i = 0; i < 3000000; i++)
        ew_buf_append_str(&body, EW_STR("0,"));
    ew_buf_append_str(&body, EW_STR("0]}"));
    assert_int_equal(read_body(EW_PARAMS_CHAT, ew_buf_str(&body), &arena, &params, &fault), -1);
    assert_int_equal(fault.status, 413);
    ew_buf_fini(&body);
    ew_arena_fini(&arena);
}

static void errors_have_the_shape_that_clients_read(void **state)
{
    struct ew_error err = {0};
    struct ew_fault fault;
    struct ew_buf out;

    ew_buf_init(&out, 4096);
    ew_fault_field(&fault, "top_p", "is %d and \"must\" be less", 7);
    ew_fault_json(&fault, &out);
    assert_string_equal(out.ptr, "{\"error\":{\"message\":\"top_p is 7 and \\\"must\\\" be less\",\"type\":"
                                 "\"invalid_request_error\",\"param\":\"top_p\",\"code\":\"invalid_value\"}}");
    ew_fail(&err, EW_ERR_BUSY, "the queue is full");
    ew_fault_of(&fault, &err);
    assert_int_equal(fault.status, 429);
    assert_int_equal(fault.retry_after_s, 1);
    ew_fail(&err, EW_ERR_LIMIT, "the prompt has 9 tokens");
    ew_fault_of(&fault, &err);
    assert_string_equal(fault.code, "context_length_exceeded");
    ew_buf_fini(&out);
}

static void metrics_are_prometheus_text(void **state)
{
    struct ew_service_stats stats = {.queue_max = 8};
    struct ew_metrics metrics;
    struct ew_buf out;

    ew_metrics_init(&metrics);
    ew_metrics_reply(&metrics, "/health", 200);
    ew_metrics_reply(&metrics, "/health", 200);
    ew_metrics_reply(&metrics, "/health", 503);
    ew_histogram_add(&metrics.ttft, 0.3, 1);
    ew_histogram_add(&metrics.ttft, 100, 1);
    ew_buf_init(&out, 1 << 20);
    ew_metrics_write(&metrics, &stats, &out);
    assert_true(ew_buf_ok(&out));
    assert_non_null(strstr(out.ptr, "# TYPE edgewise_requests_total counter\n"));
    assert_non_null(strstr(out.ptr, "edgewise_requests_total{route=\"/health\",status=\"200\"} 2\n"));
    assert_non_null(strstr(out.ptr, "edgewise_requests_total{route=\"/health\",status=\"503\"} 1\n"));
    assert_non_null(strstr(out.ptr, "edgewise_ttft_seconds_bucket{le=\"0.2\"} 0\n"));
    assert_non_null(strstr(out.ptr, "edgewise_ttft_seconds_bucket{le=\"0.35\"} 1\n"));
    assert_non_null(strstr(out.ptr, "edgewise_ttft_seconds_bucket{le=\"+Inf\"} 2\n"));
    assert_non_null(strstr(out.ptr, "edgewise_ttft_seconds_sum 100.3\n"));
    assert_non_null(strstr(out.ptr, "edgewise_queue_max 8\n"));
    ew_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_read),    cmocka_unit_test(the_models_own_sampling_is_the_default),
        cmocka_unit_test(mistakes_are_named), cmocka_unit_test(bodies_have_bounds),
        cmocka_unit_test(errors_have_the_shape_that_clients_read), cmocka_unit_test(metrics_are_prometheus_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
