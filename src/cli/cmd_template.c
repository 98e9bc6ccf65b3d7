// template: renders a chat template, byte for byte.

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/cli.h"
#include "format/mapfile.h"
#include "text/chat.h"

#define TEMPLATE_BYTES_MAX ((size_t)16 << 20)
#define INPUT_BYTES_MAX ((size_t)256 << 20)
#define INPUT_MEMORY_MAX ((size_t)2 << 30)
#define PROMPT_BYTES_MAX ((size_t)256 << 20)

static int compile_file(const char *path, struct ew_jinja **out, struct ew_error *err)
{
    char *source;
    size_t len;
    int code = ew_file_read(path, TEMPLATE_BYTES_MAX, &source, &len, err);

    if (code != EW_OK)
        return code;
    code = ew_jinja_compile((struct ew_str){source, len}, out, err);
    ew_free(source);
    return code;
}

static int read_input(struct ew_arena *arena, const char *path, const struct ew_json **out, struct ew_error *err)
{
    int code;

    code = ew_json_parse_file(arena, strcmp(path, "-") == 0 ? "/dev/stdin" : path, INPUT_BYTES_MAX, out, err);
    if (code == EW_OK && (*out)->type != EW_JSON_T_OBJECT)
        return ew_fail(err, EW_ERR_FORMAT, "%s is not a JSON object", path);
    return code;
}

// The template as the one or the other option names it.
struct source {
    struct ew_jinja *tmpl;        // --template
    struct ew_modelfile file;     // --model
    struct ew_tokenizer *tok;
    struct ew_chat_format *format;
};

static int open_source(struct source *source, const struct ew_args *args, struct ew_error *err)
{
    const char *path = ew_args_str(args, "template", NULL), *model = ew_args_str(args, "model", NULL);
    int code;

    if (!path == !model) {
        ew_fail(err, EW_ERR_USAGE, "template needs either a model or a template file");
        return ew_remedy(err, EW_ERR_USAGE, "Give one of -m MODEL and --template FILE");
    }
    if (path)
        return compile_file(path, &source->tmpl, err);
    code = ew_modelfile_open(&source->file, model, false, err);
    if (code == EW_OK)
        code = ew_tokenizer_load(&source->file, &source->tok, err);
    return code == EW_OK ? ew_chat_format_load(&source->file, source->tok, &source->format, err) : code;
}

static void close_source(struct source *source)
{
    ew_jinja_free(source->tmpl);
    ew_chat_format_free(source->format);
    ew_tokenizer_free(source->tok);
    ew_modelfile_close(&source->file);
}

static int render(const struct source *source, const struct ew_args *args, const struct ew_json *object,
                  struct ew_error *err)
{
    struct ew_jinja_vars vars = {
        .object = object,
        .bos_token = ew_args_str(args, "bos", NULL),
        .eos_token = ew_args_str(args, "eos", NULL),
        .now = ew_args_str(args, "now", NULL),
    };
    struct ew_buf out;
    int code;

    ew_buf_init(&out, PROMPT_BYTES_MAX);
    code = source->tmpl ? ew_jinja_render(source->tmpl, &vars, NULL, &out, err)
                        : ew_chat_render_vars(source->format, &vars, &out, err);
    if (code == EW_OK && out.len && fwrite(out.ptr, 1, out.len, stdout) != out.len)
        code = ew_fail_errno(err, EW_ERR_IO, "cannot write the prompt");
    ew_buf_fini(&out);
    return code;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct source source = {0};
    const struct ew_json *object;
    struct ew_arena arena;
    int code;

    ew_arena_init(&arena, INPUT_MEMORY_MAX);
    code = open_source(&source, args, err);
    if (code == EW_OK)
        code = read_input(&arena, ew_args_at(args, 0), &object, err);
    if (code == EW_OK)
        code = render(&source, args, object, err);
    close_source(&source);
    ew_arena_fini(&arena);
    return code;
}

static const struct ew_opt g_own[] = {
    {"template", 0, EW_OPT_STRING, "FILE", "the template, in place of a model's"},
    {"bos", 0, EW_OPT_STRING, "TEXT", "the variable bos_token; default the model's"},
    {"eos", 0, EW_OPT_STRING, "TEXT", "the variable eos_token; default the model's"},
    {"now", 0, EW_OPT_STRING, "TIME", "the time that strftime_now tells, as YYYY-MM-DD HH:MM:SS; default the clock's"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {g_own, ew_opts_model, ew_opts_common, NULL};

const struct ew_command ew_cmd_template = {
    .name = "template",
    .usage = "template (-m MODEL or --template FILE) [--bos TEXT --eos TEXT] [--now TIME] FILE.json",
    .summary = "Render a chat template",
    .details = "FILE.json (- for standard input) holds messages, tools, documents, add_generation_prompt and whatever\n"
               "else the template reads: each key is a variable. The prompt goes to standard output, byte for byte.",
    .options = g_options,
    .n_args_min = 1,
    .n_args_max = 1,
    .run = run,
};
