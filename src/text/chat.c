#include "text/chat.h"

#include <stdio.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/data.h"

#define PROBE_OUTPUT_MAX ((size_t)4 << 20)
#define PROBE_STEPS_MAX 1000000u
#define PROBE_JSON_MAX ((size_t)1 << 20)
#define TOKEN_TEXT_MAX 4096

struct ew_chat_format {
    struct ew_jinja *tmpl, *tools_tmpl; // tools_tmpl: NULL where the one serves both
    char *bos, *eos;                    // the texts of the tokens, or NULL
    struct ew_chat_caps caps;
};

// Built-in formats, for models without a template whose vocabulary has the tokens that only this format uses. The more
// demanding ones come first. Names are files of data/templates.
static const struct {
    const char *name, *tokens[4];
} g_defaults[] = {
    {"chatml", {"<|im_start|>", "<|im_end|>"}},
    {"llama3", {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}},
    {"gemma", {"<start_of_turn>", "<end_of_turn>"}},
    {"deepseek", {"<｜User｜>", "<｜Assistant｜>"}},
    {"granite", {"<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"}},
    {"phi3", {"<|user|>", "<|assistant|>", "<|end|>"}},
    {"zephyr", {"<|user|>", "<|assistant|>", "<|system|>"}},
    {"llama2", {"[INST]", "[/INST]", "<<SYS>>"}},
    {"mistral", {"[INST]", "[/INST]"}},
};

// How models mark their reasoning. A template has the pair that its renderings show.
static const struct {
    const char *open, *close;
} g_markers[] = {
    {"<think>", "</think>"},
    {"<seed:think>", "</seed:think>"},
    {"<mm:think>", "</mm:think>"},
    {"[THINK]", "[/THINK]"},
    {"<|START_THINKING|>", "<|END_THINKING|>"},
    {"<|channel>thought", "<channel|>"},
    {"<|inner_prefix|>", "<|inner_suffix|>"},
    {"<|begin_of_thought|>", "<|end_of_thought|>"},
    {"<reasoning>", "</reasoning>"},
};

// Probing: small conversations are rendered, and the output shows what the template understands.

static bool probe(const struct ew_chat_format *format, const char *json, struct ew_buf *out)
{
    const struct ew_jinja_limits limits = {.steps_max = PROBE_STEPS_MAX, .output_max = PROBE_OUTPUT_MAX};
    struct ew_jinja_vars vars = {.bos_token = format->bos, .eos_token = format->eos, .now = "2026-01-01 00:00:00"};
    struct ew_arena arena;
    struct ew_error err;
    bool worked;

    ew_buf_reset(out);
    ew_arena_init(&arena, PROBE_JSON_MAX);
    worked = ew_json_parse(&arena, ew_str_of(json), &vars.object, &err) == EW_OK &&
             ew_jinja_render(format->tmpl, &vars, &limits, out, &err) == EW_OK;
    ew_arena_fini(&arena);
    return worked;
}

static bool shows(const struct ew_buf *out, const char *text)
{
    return ew_str_find(ew_buf_str(out), ew_str_of(text), 0) >= 0;
}

static bool probe_shows(const struct ew_chat_format *format, struct ew_buf *out, const char *json, const char *text)
{
    return probe(format, json, out) && shows(out, text);
}

static bool probe_system(const struct ew_chat_format *format, struct ew_buf *out)
{
    return probe_shows(format, out,
                       "{\"messages\": [{\"role\": \"system\", \"content\": \"probe-system\"},"
                       " {\"role\": \"user\", \"content\": \"probe-user\"}],"
                       " \"tools\": null, \"documents\": null, \"add_generation_prompt\": true}",
                       "probe-system");
}

// A template made for plain text prints the parts as a list of dicts, or fails to concatenate them.
static bool probe_typed(const struct ew_chat_format *format, struct ew_buf *out)
{
    return probe_shows(
               format, out,
               "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"probe-user\"}]}],"
               " \"tools\": null, \"documents\": null, \"add_generation_prompt\": true}",
               "probe-user") &&
           !shows(out, "'type'") && !shows(out, "\"type\"");
}

static bool probe_tools(const struct ew_chat_format *format, struct ew_buf *out)
{
    static const char json[] =
        "{\"messages\": [{\"role\": \"system\", \"content\": \"probe-system\"}, {\"role\": \"user\", \"content\": "
        "\"probe-user\"}],"
        " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"probe_tool\", \"description\": \"d\","
        " \"parameters\": {\"type\": \"object\", \"properties\": {\"x\": {\"type\": \"string\", \"description\": "
        "\"d\"}},"
        " \"required\": [\"x\"]}}}], \"documents\": null, \"add_generation_prompt\": true}";

    return format->tools_tmpl || probe_shows(format, out, json, "probe_tool");
}

#define PROBE_THINKING(value) \
    "{\"messages\": [{\"role\": \"user\", \"content\": \"probe-user\"}], \"tools\": null, \"documents\": null," \
    " \"add_generation_prompt\": true, \"enable_thinking\": " value "}"

static bool probe_thinking(const struct ew_chat_format *format, struct ew_buf *out, struct ew_buf *other)
{
    return probe(format, PROBE_THINKING("true"), out) && probe(format, PROBE_THINKING("false"), other) &&
           !ew_str_eq(ew_buf_str(out), ew_buf_str(other));
}

static void note_markers(struct ew_chat_caps *caps, const struct ew_buf *out, bool needs_both)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_markers) && !caps->reasoning_open; i++) {
        bool has_open = shows(out, g_markers[i].open), has_close = shows(out, g_markers[i].close);

        if (needs_both ? has_open && has_close : has_open || has_close) {
            caps->reasoning_open = g_markers[i].open;
            caps->reasoning_close = g_markers[i].close;
        }
    }
}

// A template that knows the markers opens the reasoning in its generation prompt, writes the reasoning of an earlier
// turn between them, or cuts it out of what that turn said.
static void probe_reasoning(struct ew_chat_format *format, struct ew_buf *out)
{
    static const char said[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"probe-user\"}, {\"role\": \"assistant\","
        " \"reasoning_content\": \"probe-why\", \"content\": \"probe-answer\"}%s],"
        " \"tools\": null, \"documents\": null, \"add_generation_prompt\": false}";
    struct ew_buf json;

    if (probe(format, PROBE_THINKING("true"), out))
        note_markers(&format->caps, out, false);
    if (probe(format, PROBE_THINKING("false"), out))
        note_markers(&format->caps, out, true);
    ew_buf_init(&json, PROBE_JSON_MAX);
    ew_buf_printf(&json, said, "");
    if (ew_buf_ok(&json) && probe_shows(format, out, json.ptr, "probe-why"))
        note_markers(&format->caps, out, true);
    for (size_t i = 0; i < EW_COUNT_OF(g_markers) && !format->caps.reasoning_open; i++) {
        ew_buf_reset(&json);
        ew_buf_printf(
            &json,
            "{\"messages\": [{\"role\": \"user\", \"content\": \"probe-user\"}, {\"role\": \"assistant\", \"content\":"
            " \"%sprobe-why%sprobe-answer\"}, {\"role\": \"user\", \"content\": \"probe-more\"}],"
            " \"tools\": null, \"documents\": null, \"add_generation_prompt\": false}",
            g_markers[i].open, g_markers[i].close);
        if (ew_buf_ok(&json) && probe_shows(format, out, json.ptr, "probe-answer") && !shows(out, "probe-why")) {
            format->caps.reasoning_open = g_markers[i].open;
            format->caps.reasoning_close = g_markers[i].close;
        }
    }
    ew_buf_fini(&json);
}

static void probe_all(struct ew_chat_format *format)
{
    struct ew_chat_caps *caps = &format->caps;
    struct ew_buf out, other;

    ew_buf_init(&out, PROBE_OUTPUT_MAX);
    ew_buf_init(&other, PROBE_OUTPUT_MAX);
    caps->system_role = probe_system(format, &out);
    caps->typed_content = probe_typed(format, &out);
    caps->tools = probe_tools(format, &out);
    caps->enable_thinking = probe_thinking(format, &out, &other);
    probe_reasoning(format, &out);
    ew_buf_fini(&out);
    ew_buf_fini(&other);
}

// Loading.

int ew_chat_format_compile(struct ew_str source, struct ew_str tools_source, const char *bos, const char *eos,
                           struct ew_chat_format **out, struct ew_error *err)
{
    struct ew_chat_format *format = ew_alloc(sizeof(*format));
    int code;

    if (!format)
        return ew_fail_memory(err, sizeof(*format), "a chat format");
    format->caps.source = "model";
    format->bos = bos ? ew_strdup(bos) : NULL;
    format->eos = eos ? ew_strdup(eos) : NULL;
    if ((bos && !format->bos) || (eos && !format->eos)) {
        code = ew_fail_memory(err, TOKEN_TEXT_MAX, "a chat format");
        goto free_format;
    }
    code = ew_jinja_compile(source, &format->tmpl, err);
    if (code == EW_OK && tools_source.ptr)
        code = ew_jinja_compile(tools_source, &format->tools_tmpl, err);
    if (code != EW_OK)
        goto free_format;
    probe_all(format);
    *out = format;
    return EW_OK;
free_format:
    ew_chat_format_free(format);
    return code;
}

static bool has_tokens(const struct ew_tokenizer *tok, const char *const tokens[4])
{
    for (int i = 0; i < 4 && tokens[i]; i++)
        if (ew_token_find(tok, ew_str_of(tokens[i])) == EW_TOKEN_NONE)
            return false;
    return true;
}

// The source of the built-in format that the vocabulary tells, and its name.
static int find_default(const struct ew_tokenizer *tok, struct ew_str *source, const char **name, struct ew_error *err)
{
    const struct ew_data_file *file;
    char path[64];

    for (size_t i = 0; i < EW_COUNT_OF(g_defaults); i++) {
        if (!has_tokens(tok, g_defaults[i].tokens))
            continue;
        snprintf(path, sizeof(path), "templates/%s.jinja", g_defaults[i].name);
        file = ew_data_find(path);
        EW_ASSERT(file);
        *source = file->text;
        *name = g_defaults[i].name;
        return EW_OK;
    }
    ew_fail(err, EW_ERR_UNSUPPORTED, "the model has no chat template, and its tokens belong to no known chat format");
    return ew_remedy(err, EW_ERR_UNSUPPORTED, "Use --raw to continue plain text");
}

// A token's text: as tokenizer_config says, else what the tokenizer knows. NULL where there is none.
static const char *token_text(const struct ew_modelfile *file, const char *key, const struct ew_tokenizer *tok,
                              int32_t id, struct ew_buf *buf)
{
    const struct ew_json *named = ew_json_get(file->tokenizer_config, key), *content = ew_json_get(named, "content");

    if (content)
        named = content;
    if (named)
        return named->type == EW_JSON_T_STRING ? named->text.ptr : NULL;
    return id != EW_TOKEN_NONE && ew_token_bytes(tok, id, buf) && ew_buf_ok(buf) ? buf->ptr : NULL;
}

int ew_chat_format_load(const struct ew_modelfile *file, const struct ew_tokenizer *tok, struct ew_chat_format **out,
                        struct ew_error *err)
{
    const struct ew_tokenizer_info *info = ew_tokenizer_info(tok);
    struct ew_str source = file->chat_template;
    const char *name = "model";
    struct ew_buf bos, eos;
    int code = EW_OK;

    if (!source.ptr || source.len == 0)
        code = find_default(tok, &source, &name, err);
    if (code != EW_OK)
        return code;
    ew_buf_init(&bos, TOKEN_TEXT_MAX);
    ew_buf_init(&eos, TOKEN_TEXT_MAX);
    code = ew_chat_format_compile(source, file->chat_template_tools,
                                  token_text(file, "bos_token", tok, info->bos, &bos),
                                  token_text(file, "eos_token", tok, info->eos, &eos), out, err);
    ew_buf_fini(&bos);
    ew_buf_fini(&eos);
    if (code == EW_OK)
        (*out)->caps.source = name;
    return code;
}

void ew_chat_format_free(struct ew_chat_format *format)
{
    if (!format)
        return;
    ew_jinja_free(format->tmpl);
    ew_jinja_free(format->tools_tmpl);
    ew_free(format->bos);
    ew_free(format->eos);
    ew_free(format);
}

const struct ew_chat_caps *ew_chat_format_caps(const struct ew_chat_format *format)
{
    return &format->caps;
}

// Use.

int ew_chat_render_vars(const struct ew_chat_format *format, const struct ew_jinja_vars *vars, struct ew_buf *out,
                        struct ew_error *err)
{
    const struct ew_json *tools = ew_json_get(vars->object, "tools");
    bool has_tools = tools && tools->type == EW_JSON_T_ARRAY && tools->count > 0;
    struct ew_jinja_vars filled = *vars;

    if (!filled.bos_token)
        filled.bos_token = format->bos;
    if (!filled.eos_token)
        filled.eos_token = format->eos;
    return ew_jinja_render(has_tools && format->tools_tmpl ? format->tools_tmpl : format->tmpl, &filled, NULL, out,
                           err);
}

int ew_chat_render(const struct ew_chat_format *format, const struct ew_json *inputs, struct ew_buf *out,
                   struct ew_error *err)
{
    struct ew_json absent[] = {
        {.type = EW_JSON_T_NULL, .key = EW_STR("tools")},
        {.type = EW_JSON_T_NULL, .key = EW_STR("documents")},
        {.type = EW_JSON_T_BOOL, .key = EW_STR("add_generation_prompt")},
    };
    struct ew_json object = *inputs; // the same members, behind those that are absent
    struct ew_jinja_vars vars = {.object = &object};

    if (inputs->type != EW_JSON_T_OBJECT)
        return ew_fail(err, EW_ERR_USAGE, "the inputs of a chat template are not an object");
    for (size_t i = 0; i < EW_COUNT_OF(absent); i++)
        if (!ew_json_get(inputs, absent[i].key.ptr)) {
            absent[i].next = object.child;
            object.child = &absent[i];
            object.count++;
        }
    return ew_chat_render_vars(format, &vars, out, err);
}

int ew_chat_tokenize(const struct ew_chat_format *format, const struct ew_tokenizer *tok, struct ew_str prompt,
                     struct ew_ids *out, struct ew_error *err)
{
    const struct ew_tokenizer_info *info = ew_tokenizer_info(tok);
    bool needs_bos = info->add_bos && info->bos != EW_TOKEN_NONE;
    size_t begin = out->count;
    int code;

    if (needs_bos && ew_ids_push(out, info->bos) != EW_OK)
        return ew_fail_memory(err, sizeof(int32_t), "a prompt's tokens");
    code = ew_tokenize(tok, prompt, false, true, out, err);
    if (code == EW_OK && needs_bos && out->count > begin + 1 &&
        out->ids[begin + 1] == info->bos) { // the template wrote it
        memmove(out->ids + begin, out->ids + begin + 1, (out->count - begin - 1) * sizeof(*out->ids));
        out->count--;
    }
    return code;
}
