#include "server/params.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/random.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/utf8.h"

#define NOT_GIVEN INT64_MIN
#define SEED_BITS 53 // survives JSON readers that know only doubles

struct reader {
    struct ew_params *params;
    struct ew_arena *arena;
    struct ew_fault *fault;
};

enum kind {
    FLAG,
    INTEGER,
    NUMBER,
    STRING,
    OWN,         // a function reads it
    NOTE,        // accepted and without effect; read may check it
    UNSUPPORTED, // known, and refused
};

struct field {
    const char *name;
    enum ew_params_route routes;
    enum kind kind;
    size_t offset; // in struct ew_params
    double min, max;
    int (*read)(struct reader *reader, const struct ew_json *value);
    const char *why; // UNSUPPORTED
};

// ---- the body -----------------------------------------------------------------------------------------------------

// What the reader accepts for model files and a body must not have.
static int check_event(const struct ew_json_reader *reader, int event, struct ew_fault *fault)
{
    if (reader->depth > EW_PARAMS_DEPTH_MAX)
        return ew_fault_set(fault, 400, "invalid_request_error", "invalid_json",
                            "the body is nested deeper than %d levels", EW_PARAMS_DEPTH_MAX);
    if (event == EW_JSON_NUMBER && strchr("NI", reader->text.ptr[reader->text.ptr[0] == '-']))
        return ew_fault_set(fault, 400, "invalid_request_error", "invalid_json",
                            "the body is not JSON: NaN and Infinity are no numbers");
    if ((event == EW_JSON_STRING || event == EW_JSON_KEY) && !ew_utf8_valid(reader->text.ptr, reader->text.len))
        return ew_fault_set(fault, 400, "invalid_request_error", "invalid_json",
                            "the body is not valid Unicode: a surrogate stands alone at byte %zu", reader->start);
    return 0;
}

static int check_events(struct ew_str body, struct ew_fault *fault)
{
    struct ew_json_reader reader;
    struct ew_error err = {0};
    int event, rc = 0;

    ew_json_reader_init(&reader, body);
    do {
        event = ew_json_next(&reader, &err);
        if (event < 0 && err.code == EW_ERR_MEMORY)
            rc = ew_fault_of(fault, &err);
        else if (event < 0)
            rc = ew_fault_set(fault, 400, "invalid_request_error", "invalid_json", "the body is not JSON: %s",
                              err.message);
        else
            rc = check_event(&reader, event, fault);
    } while (rc == 0 && event > 0);
    ew_json_reader_fini(&reader);
    return rc;
}

int ew_params_parse(struct ew_arena *arena, struct ew_str body, const struct ew_json **out, struct ew_fault *fault)
{
    struct ew_error err = {0};

    if (body.len == 0)
        return ew_fault_set(fault, 400, "invalid_request_error", "invalid_json", "the request has no body");
    if (check_events(body, fault) < 0)
        return -1;
    if (ew_json_parse(arena, body, out, &err) < 0)
        return ew_fault_set(fault, 413, "invalid_request_error", "body_too_large", "%s", err.message);
    if ((*out)->type != EW_JSON_T_OBJECT)
        return ew_fault_set(fault, 400, "invalid_request_error", "invalid_json", "the body is not a JSON object");
    return 0;
}

// ---- single values ------------------------------------------------------------------------------------------------

static const char *type_name(const struct ew_json *value)
{
    static const char *const names[] = {
        [EW_JSON_T_NULL] = "null",     [EW_JSON_T_BOOL] = "a boolean",    [EW_JSON_T_INT] = "a number",
        [EW_JSON_T_DOUBLE] = "a number", [EW_JSON_T_STRING] = "a string", [EW_JSON_T_ARRAY] = "an array",
        [EW_JSON_T_OBJECT] = "an object",
    };

    return names[value->type];
}

static int wrong_type(struct reader *reader, const char *name, const char *wanted, const struct ew_json *value)
{
    ew_fault_field(reader->fault, name, "must be %s, not %s", wanted, type_name(value));
    reader->fault->code = "invalid_type";
    return -1;
}

static int out_of_memory(struct reader *reader)
{
    return ew_fault_set(reader->fault, 413, "invalid_request_error", "body_too_large",
                        "the body needs more memory than is allowed for it");
}

static int read_integer(struct reader *reader, const struct field *field, const struct ew_json *value)
{
    int64_t integer = ew_json_int(value, NOT_GIVEN);

    if (integer == NOT_GIVEN)
        return wrong_type(reader, field->name, "an integer", value);
    if ((double)integer < field->min || (double)integer > field->max)
        return ew_fault_field(reader->fault, field->name, "is %lld and must be between %.0f and %.0f",
                              (long long)integer, field->min, field->max);
    *(int64_t *)((char *)reader->params + field->offset) = integer;
    return 0;
}

static int read_number(struct reader *reader, const struct field *field, const struct ew_json *value)
{
    double number = ew_json_number(value, NAN);

    if (isnan(number))
        return wrong_type(reader, field->name, "a number", value);
    if (!(number >= field->min && number <= field->max))
        return ew_fault_field(reader->fault, field->name, "is %g and must be between %g and %g", number, field->min,
                              field->max);
    *(double *)((char *)reader->params + field->offset) = number;
    return 0;
}

// ---- fields of their own kind -------------------------------------------------------------------------------------

static int read_messages(struct reader *reader, const struct ew_json *value)
{
    if (value->type != EW_JSON_T_ARRAY)
        return wrong_type(reader, "messages", "an array", value);
    if (value->count == 0)
        return ew_fault_field(reader->fault, "messages", "is empty");
    reader->params->messages = value;
    return 0;
}

static int read_prompt(struct reader *reader, const struct ew_json *value)
{
    if (value->type != EW_JSON_T_ARRAY && value->type != EW_JSON_T_STRING)
        return wrong_type(reader, "prompt", "a string, an array of strings, token ids or an array of these", value);
    if (value->type == EW_JSON_T_ARRAY && value->count == 0)
        return ew_fault_field(reader->fault, "prompt", "is empty");
    reader->params->prompt = value;
    return 0;
}

static int read_stream_options(struct reader *reader, const struct ew_json *value)
{
    if (value->type != EW_JSON_T_OBJECT)
        return wrong_type(reader, "stream_options", "an object", value);
    for (const struct ew_json *member = value->child; member; member = member->next) {
        char name[64];

        snprintf(name, sizeof(name), "stream_options." EW_STR_FMT, EW_STR_ARG(member->key));
        if (member->type == EW_JSON_T_NULL)
            continue;
        if (member->type != EW_JSON_T_BOOL)
            return wrong_type(reader, name, "a boolean", member);
        if (ew_str_is(member->key, "include_usage"))
            reader->params->include_usage = member->boolean;
        else if (!ew_str_is(member->key, "include_obfuscation") || member->boolean)
            return ew_fault_unsupported(reader->fault, name, NULL);
    }
    return 0;
}

static int add_stop(struct reader *reader, struct ew_str *list, const struct ew_json *value)
{
    if (value->type != EW_JSON_T_STRING)
        return wrong_type(reader, "stop", "a string or an array of strings", value);
    if (value->text.len == 0)
        return ew_fault_field(reader->fault, "stop", "has an empty string");
    list[reader->params->n_stop++] = value->text;
    return 0;
}

static int read_stop(struct reader *reader, const struct ew_json *value)
{
    struct ew_str *list = ew_arena_array(reader->arena, EW_PARAMS_STOPS_MAX, sizeof(*list));

    if (!list)
        return out_of_memory(reader);
    reader->params->stop = list;
    if (value->type != EW_JSON_T_ARRAY)
        return add_stop(reader, list, value);
    if (value->count > EW_PARAMS_STOPS_MAX)
        return ew_fault_field(reader->fault, "stop", "has %u strings and at most %d are allowed", value->count,
                              EW_PARAMS_STOPS_MAX);
    for (const struct ew_json *item = value->child; item; item = item->next)
        if (add_stop(reader, list, item) < 0)
            return -1;
    return 0;
}

static int read_logit_bias(struct reader *reader, const struct ew_json *value)
{
    struct ew_logit_bias *list;

    if (value->type != EW_JSON_T_OBJECT)
        return wrong_type(reader, "logit_bias", "an object from token ids to numbers", value);
    if (value->count > EW_PARAMS_BIASES_MAX)
        return ew_fault_field(reader->fault, "logit_bias", "has %u entries and at most %d are allowed", value->count,
                              EW_PARAMS_BIASES_MAX);
    list = ew_arena_array(reader->arena, EW_MAX(value->count, 1u), sizeof(*list));
    if (!list)
        return out_of_memory(reader);
    for (const struct ew_json *member = value->child; member; member = member->next) {
        double bias = ew_json_number(member, NAN);
        int64_t id;

        if (!ew_str_to_i64(member->key, &id) || id < 0 || id > INT32_MAX)
            return ew_fault_field(reader->fault, "logit_bias", "has the key \"" EW_STR_FMT "\", which is no token id",
                                  EW_STR_ARG(member->key));
        if (!(bias >= -100 && bias <= 100))
            return ew_fault_field(reader->fault, "logit_bias", "must have numbers between -100 and 100");
        list[reader->params->n_bias++] = (struct ew_logit_bias){(int32_t)id, (float)bias};
    }
    reader->params->bias = list;
    return 0;
}

// A flag beside top_logprobs for chat, the number of alternatives for completions.
static int read_logprobs(struct reader *reader, const struct ew_json *value)
{
    if (value->type != EW_JSON_T_BOOL)
        return wrong_type(reader, "logprobs", "a boolean", value);
    reader->params->logprobs = value->boolean;
    return 0;
}

static int read_text_logprobs(struct reader *reader, const struct ew_json *value)
{
    static const struct field field = {"logprobs", EW_PARAMS_TEXT, INTEGER, offsetof(struct ew_params, top_logprobs), 0,
                                       EW_PARAMS_LOGPROBS_MAX};

    reader->params->logprobs = true;
    return read_integer(reader, &field, value);
}

static int read_tools(struct reader *reader, const struct ew_json *value)
{
    if (value->type != EW_JSON_T_ARRAY)
        return wrong_type(reader, "tools", "an array", value);
    reader->params->tools = value->count ? value : NULL;
    return 0;
}

static int read_tool_choice(struct reader *reader, const struct ew_json *value)
{
    static const char why[] = "only \"auto\" and \"none\" can be honoured yet";

    if (value->type == EW_JSON_T_OBJECT || ew_str_is(ew_json_str(value, ""), "required"))
        return ew_fault_unsupported(reader->fault, "tool_choice", why);
    if (value->type != EW_JSON_T_STRING)
        return wrong_type(reader, "tool_choice", "a string", value);
    if (!ew_str_is(value->text, "auto") && !ew_str_is(value->text, "none"))
        return ew_fault_field(reader->fault, "tool_choice", "must be \"auto\" or \"none\"");
    reader->params->no_tools = ew_str_is(value->text, "none");
    return 0;
}

static int read_parallel(struct reader *reader, const struct ew_json *value)
{
    if (value->type != EW_JSON_T_BOOL)
        return wrong_type(reader, "parallel_tool_calls", "a boolean", value);
    reader->params->one_call = !value->boolean;
    return 0;
}

static int read_response_format(struct reader *reader, const struct ew_json *value)
{
    const struct ew_json *type = ew_json_get(value, "type");

    if (value->type != EW_JSON_T_OBJECT)
        return wrong_type(reader, "response_format", "an object", value);
    if (ew_str_is(ew_json_str(type, ""), "text"))
        return 0;
    return ew_fault_unsupported(reader->fault, "response_format", "only {\"type\": \"text\"} can be honoured yet");
}

static int read_template_vars(struct reader *reader, const struct ew_json *value)
{
    static const char *const reserved[] = {"messages", "tools", "documents", "add_generation_prompt", "bos_token",
                                           "eos_token"};

    if (value->type != EW_JSON_T_OBJECT)
        return wrong_type(reader, "chat_template_kwargs", "an object", value);
    for (size_t i = 0; i < EW_COUNT_OF(reserved); i++)
        if (ew_json_get(value, reserved[i]))
            return ew_fault_field(reader->fault, "chat_template_kwargs", "may not set %s", reserved[i]);
    reader->params->template_vars = value;
    return 0;
}

static int check_store(struct reader *reader, const struct ew_json *value)
{
    if (value->type == EW_JSON_T_BOOL && !value->boolean)
        return 0;
    return ew_fault_unsupported(reader->fault, "store", "nothing is kept here");
}

static int check_metadata(struct reader *reader, const struct ew_json *value)
{
    return value->type == EW_JSON_T_OBJECT ? 0 : wrong_type(reader, "metadata", "an object", value);
}

static int check_service_tier(struct reader *reader, const struct ew_json *value)
{
    struct ew_str tier = ew_json_str(value, "");

    if (ew_str_is(tier, "auto") || ew_str_is(tier, "default"))
        return 0;
    return ew_fault_unsupported(reader->fault, "service_tier", "there is one tier only (see priority)");
}

static int check_modalities(struct reader *reader, const struct ew_json *value)
{
    if (value->type == EW_JSON_T_ARRAY && value->count == 1 && ew_str_is(ew_json_str(value->child, ""), "text"))
        return 0;
    return ew_fault_unsupported(reader->fault, "modalities", "answers are text");
}

// ---- the table ----------------------------------------------------------------------------------------------------

#define AT(member) offsetof(struct ew_params, member)
#define CONSTRAINED "constrained decoding is not there yet"

static const struct field g_fields[] = {
    {"model", EW_PARAMS_BOTH, STRING, AT(model)},
    {"messages", EW_PARAMS_CHAT, OWN, .read = read_messages},
    {"prompt", EW_PARAMS_TEXT, OWN, .read = read_prompt},
    {"stream", EW_PARAMS_BOTH, FLAG, AT(stream)},
    {"stream_options", EW_PARAMS_BOTH, OWN, .read = read_stream_options},
    {"n", EW_PARAMS_BOTH, INTEGER, AT(n), 1, EW_PARAMS_CHOICES_MAX},
    {"stop", EW_PARAMS_BOTH, OWN, .read = read_stop},
    {"seed", EW_PARAMS_BOTH, INTEGER, AT(seed), -0x1p62, 0x1p62},
    {"temperature", EW_PARAMS_BOTH, NUMBER, AT(temperature), 0, 2},
    {"top_p", EW_PARAMS_BOTH, NUMBER, AT(top_p), 0, 1},
    {"top_k", EW_PARAMS_BOTH, INTEGER, AT(top_k), -1, INT32_MAX},
    {"min_p", EW_PARAMS_BOTH, NUMBER, AT(min_p), 0, 1},
    {"presence_penalty", EW_PARAMS_BOTH, NUMBER, AT(presence_penalty), -2, 2},
    {"frequency_penalty", EW_PARAMS_BOTH, NUMBER, AT(frequency_penalty), -2, 2},
    {"repetition_penalty", EW_PARAMS_BOTH, NUMBER, AT(repetition_penalty), 0.01, 100},
    {"logit_bias", EW_PARAMS_BOTH, OWN, .read = read_logit_bias},
    {"logprobs", EW_PARAMS_CHAT, OWN, .read = read_logprobs},
    {"logprobs", EW_PARAMS_TEXT, OWN, .read = read_text_logprobs},
    {"top_logprobs", EW_PARAMS_CHAT, INTEGER, AT(top_logprobs), 0, EW_PARAMS_LOGPROBS_MAX},
    {"max_tokens", EW_PARAMS_BOTH, INTEGER, AT(max_tokens), 1, INT32_MAX},
    {"max_completion_tokens", EW_PARAMS_CHAT, INTEGER, AT(max_completion_tokens), 1, INT32_MAX},
    {"min_tokens", EW_PARAMS_BOTH, INTEGER, AT(min_tokens), 0, INT32_MAX},
    {"ignore_eos", EW_PARAMS_BOTH, FLAG, AT(ignore_eos)},
    {"priority", EW_PARAMS_BOTH, INTEGER, AT(priority), -1000, 1000},
    {"user", EW_PARAMS_BOTH, STRING, AT(user)},
    {"echo", EW_PARAMS_TEXT, FLAG, AT(echo)},
    {"tools", EW_PARAMS_CHAT, OWN, .read = read_tools},
    {"tool_choice", EW_PARAMS_CHAT, OWN, .read = read_tool_choice},
    {"parallel_tool_calls", EW_PARAMS_CHAT, OWN, .read = read_parallel},
    {"response_format", EW_PARAMS_BOTH, OWN, .read = read_response_format},
    {"chat_template_kwargs", EW_PARAMS_CHAT, OWN, .read = read_template_vars},
    // Without effect: notes of the client to itself, and hints for what happens here anyway.
    {"metadata", EW_PARAMS_BOTH, NOTE, .read = check_metadata},
    {"store", EW_PARAMS_BOTH, NOTE, .read = check_store},
    {"service_tier", EW_PARAMS_BOTH, NOTE, .read = check_service_tier},
    {"modalities", EW_PARAMS_CHAT, NOTE, .read = check_modalities},
    {"safety_identifier", EW_PARAMS_BOTH, NOTE},
    {"prompt_cache_key", EW_PARAMS_BOTH, NOTE},
    // Understood, and refused.
    {"audio", EW_PARAMS_CHAT, UNSUPPORTED, .why = "answers are text"},
    {"best_of", EW_PARAMS_TEXT, UNSUPPORTED, .why = "use n"},
    {"function_call", EW_PARAMS_CHAT, UNSUPPORTED, .why = "use tool_choice"},
    {"functions", EW_PARAMS_CHAT, UNSUPPORTED, .why = "use tools"},
    {"grammar", EW_PARAMS_BOTH, UNSUPPORTED, .why = CONSTRAINED},
    {"guided_choice", EW_PARAMS_BOTH, UNSUPPORTED, .why = CONSTRAINED},
    {"guided_grammar", EW_PARAMS_BOTH, UNSUPPORTED, .why = CONSTRAINED},
    {"guided_json", EW_PARAMS_BOTH, UNSUPPORTED, .why = CONSTRAINED},
    {"guided_regex", EW_PARAMS_BOTH, UNSUPPORTED, .why = CONSTRAINED},
    {"json_schema", EW_PARAMS_BOTH, UNSUPPORTED, .why = CONSTRAINED},
    {"structured_outputs", EW_PARAMS_BOTH, UNSUPPORTED, .why = CONSTRAINED},
    {"prediction", EW_PARAMS_CHAT, UNSUPPORTED},
    {"prompt_logprobs", EW_PARAMS_BOTH, UNSUPPORTED},
    {"reasoning_effort", EW_PARAMS_CHAT, UNSUPPORTED, .why = "templates take such settings in chat_template_kwargs"},
    {"stop_token_ids", EW_PARAMS_BOTH, UNSUPPORTED, .why = "use stop"},
    {"suffix", EW_PARAMS_TEXT, UNSUPPORTED},
    {"verbosity", EW_PARAMS_CHAT, UNSUPPORTED},
    {"web_search_options", EW_PARAMS_CHAT, UNSUPPORTED},
};

static int read_field(struct reader *reader, const struct field *field, const struct ew_json *value)
{
    char *place = (char *)reader->params + field->offset;

    switch (field->kind) {
    case FLAG:
        if (value->type != EW_JSON_T_BOOL)
            return wrong_type(reader, field->name, "a boolean", value);
        *(bool *)place = value->boolean;
        return 0;
    case INTEGER:
        return read_integer(reader, field, value);
    case NUMBER:
        return read_number(reader, field, value);
    case STRING:
        if (value->type != EW_JSON_T_STRING)
            return wrong_type(reader, field->name, "a string", value);
        *(struct ew_str *)place = value->text;
        return 0;
    case UNSUPPORTED:
        return ew_fault_unsupported(reader->fault, field->name, field->why);
    default:
        return field->read ? field->read(reader, value) : 0;
    }
}

// A field that is null counts as absent, as clients with typed objects send it.
static int read_member(struct reader *reader, enum ew_params_route route, const struct ew_json *member)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_fields); i++)
        if (g_fields[i].routes & route && ew_str_is(member->key, g_fields[i].name))
            return member->type == EW_JSON_T_NULL ? 0 : read_field(reader, &g_fields[i], member);
    ew_fault_set(reader->fault, 400, "invalid_request_error", "unknown_parameter",
                 "\"" EW_STR_FMT "\" is no parameter of this route", EW_STR_ARG(member->key));
    snprintf(reader->fault->param, sizeof(reader->fault->param), EW_STR_FMT, EW_STR_ARG(member->key));
    return -1;
}

// What no single field can tell.
static int check_together(struct reader *reader, enum ew_params_route route)
{
    struct ew_params *params = reader->params;

    if (route == EW_PARAMS_CHAT && !params->messages)
        return ew_fault_field(reader->fault, "messages", "is missing");
    if (route == EW_PARAMS_TEXT && !params->prompt)
        return ew_fault_field(reader->fault, "prompt", "is missing");
    if (params->include_usage && !params->stream)
        return ew_fault_field(reader->fault, "stream_options", "is only for requests with \"stream\": true");
    if (route == EW_PARAMS_CHAT && params->top_logprobs > 0 && !params->logprobs)
        return ew_fault_field(reader->fault, "top_logprobs", "needs \"logprobs\": true");
    if (params->max_tokens != NOT_GIVEN && params->max_completion_tokens != NOT_GIVEN &&
        params->max_tokens != params->max_completion_tokens)
        return ew_fault_field(reader->fault, "max_tokens", "and max_completion_tokens differ");
    if (params->max_completion_tokens != NOT_GIVEN)
        params->max_tokens = params->max_completion_tokens;
    if (params->max_tokens != NOT_GIVEN && params->min_tokens > params->max_tokens)
        return ew_fault_field(reader->fault, "min_tokens", "is more than max_tokens");
    if (params->echo && params->logprobs)
        return ew_fault_unsupported(reader->fault, "echo", "there are no log probabilities of prompts");
    return 0;
}

int ew_params_read(struct ew_params *params, enum ew_params_route route, const struct ew_json *body,
                   struct ew_arena *arena, struct ew_fault *fault)
{
    struct reader reader = {params, arena, fault};

    *params = (struct ew_params){
        .n = 1,
        .seed = NOT_GIVEN,
        .max_tokens = NOT_GIVEN,
        .max_completion_tokens = NOT_GIVEN,
        .top_k = NOT_GIVEN,
        .temperature = NAN,
        .top_p = NAN,
        .min_p = NAN,
        .repetition_penalty = NAN,
        .presence_penalty = 0,
        .frequency_penalty = 0,
    };
    for (const struct ew_json *member = body->child; member; member = member->next)
        if (read_member(&reader, route, member) < 0)
            return -1;
    return check_together(&reader, route);
}

// ---- what follows for the engine ----------------------------------------------------------------------------------

static uint64_t random_seed(void)
{
    uint64_t seed;

    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != sizeof(seed))
        seed = ew_clock_ns();
    return seed >> (64 - SEED_BITS);
}

static float pick(double given, float by_model, float otherwise)
{
    return !isnan(given) ? (float)given : !isnan(by_model) ? by_model : otherwise;
}

// A model whose authors said how to sample it is sampled that way, unless the client says otherwise; do_sample false
// means greedy. Without either the defaults are those of the OpenAI API: everything off.
static void set_sampling(const struct ew_params *params, const struct ew_sampling_defaults *model,
                         struct ew_sampling *sampling)
{
    bool greedy = model->do_sample_given && !model->do_sample;

    *sampling = ew_sampling_default();
    sampling->temperature = pick(params->temperature, greedy ? 0 : model->temperature, 1);
    sampling->top_p = pick(params->top_p, model->top_p, 1);
    sampling->min_p = pick(params->min_p, model->min_p, 0);
    sampling->repetition_penalty = pick(params->repetition_penalty, model->repetition_penalty, 1);
    sampling->presence_penalty = (float)params->presence_penalty;
    sampling->frequency_penalty = (float)params->frequency_penalty;
    sampling->top_k = params->top_k != NOT_GIVEN ? (int32_t)params->top_k : EW_MAX(model->top_k, 0);
    sampling->seed = params->seed != NOT_GIVEN ? (uint64_t)params->seed : random_seed();
    sampling->stop = params->stop;
    sampling->n_stop = params->n_stop;
    sampling->bias = params->bias;
    sampling->n_bias = params->n_bias;
}

void ew_params_request(const struct ew_params *params, const struct ew_model *model, struct ew_request *request)
{
    *request = (struct ew_request){
        .n_max = params->max_tokens != NOT_GIVEN ? (uint32_t)params->max_tokens : 0,
        .n_logprobs = params->logprobs ? (uint32_t)params->top_logprobs + 1 : 0,
        .ignore_eos = params->ignore_eos,
        .priority = (int32_t)params->priority,
    };
    set_sampling(params, &model->sampling, &request->sampling);
}
