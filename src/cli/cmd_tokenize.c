// tokenize: text to token ids, or back, for looking at a vocabulary and for scripts.

#include <unistd.h>

#include "base/alloc.h"
#include "cli/generate.h"
#include "text/tokenizer.h"

#define INPUT_BYTES_MAX ((size_t)4 << 30)

static const struct ew_opt g_own[] = {
    {"add-special", 0, EW_OPT_FLAG, NULL, "put the model's own BOS, EOS and the like around the text"},
    {"parse-special", 0, EW_OPT_FLAG, NULL, "special tokens written in the text become their ids"},
    {"decode", 0, EW_OPT_FLAG, NULL, "ids in, text out"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model, g_own, ew_opts_common, NULL};

static int read_input(struct ew_buf *text, struct ew_error *err)
{
    char block[65536];
    ssize_t count;

    while ((count = read(STDIN_FILENO, block, sizeof(block))) > 0)
        ew_buf_append(text, block, (size_t)count);
    if (count < 0)
        return ew_fail_errno(err, EW_ERR_IO, "standard input cannot be read");
    return ew_buf_ok(text) ? EW_OK : ew_fail_memory(err, text->len, "standard input");
}

static bool is_separator(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == ',';
}

// Reads ids that stand between spaces, line ends or commas.
static int parse_ids(struct ew_str text, const struct ew_tokenizer *tok, struct ew_ids *ids, struct ew_error *err)
{
    uint32_t n_vocab = ew_tokenizer_info(tok)->n_vocab;
    int code = EW_OK;

    for (size_t at = 0, end; at < text.len && code == EW_OK; at = end + 1) {
        struct ew_str word;
        int64_t id;

        for (end = at; end < text.len && !is_separator(text.ptr[end]); end++)
            ;
        word = (struct ew_str){text.ptr + at, end - at};
        if (word.len == 0)
            continue;
        if (!ew_str_to_i64(word, &id))
            return ew_fail(err, EW_ERR_USAGE, "\"" EW_STR_FMT "\" is no token id", EW_STR_ARG(word));
        if (id < 0 || id >= n_vocab)
            return ew_fail(err, EW_ERR_USAGE, "the token id %lld is not below the %u of this vocabulary", (long long)id,
                           n_vocab);
        code = ew_ids_add(ids, (int32_t)id, err);
    }
    return code;
}

static void print_ids(const struct ew_ids *ids, bool json, struct ew_buf *out)
{
    if (json)
        ew_buf_append_str(out, EW_STR("{\"ids\": ["));
    for (size_t i = 0; i < ids->count; i++)
        ew_buf_printf(out, "%s%d", i == 0 ? "" : json ? ", " : " ", ids->ids[i]);
    ew_buf_append_str(out, json ? EW_STR("]}\n") : EW_STR("\n"));
}

static int decode(const struct ew_args *args, const struct ew_tokenizer *tok, struct ew_str text, struct ew_buf *out,
                  struct ew_error *err)
{
    struct ew_ids ids = {0};
    struct ew_buf decoded;
    int code = parse_ids(text, tok, &ids, err);

    ew_buf_init(&decoded, INPUT_BYTES_MAX);
    if (code == EW_OK)
        code = ew_detokenize(tok, ids.ids, ids.count, false, &decoded, err);
    if (code == EW_OK && ew_args_flag(args, "json")) {
        ew_buf_append_str(out, EW_STR("{\"text\": "));
        ew_buf_append_json(out, ew_buf_str(&decoded));
        ew_buf_append_str(out, EW_STR("}\n"));
    } else if (code == EW_OK) {
        ew_buf_append_str(out, ew_buf_str(&decoded));
    }
    ew_buf_fini(&decoded);
    ew_ids_fini(&ids);
    return code;
}

static int encode(const struct ew_args *args, const struct ew_tokenizer *tok, struct ew_str text, struct ew_buf *out,
                  struct ew_error *err)
{
    struct ew_ids ids = {0};
    int code = ew_tokenize(tok, text, ew_args_flag(args, "add-special"), ew_args_flag(args, "parse-special"), &ids,
                           err);

    if (code == EW_OK)
        print_ids(&ids, ew_args_flag(args, "json"), out);
    ew_ids_fini(&ids);
    return code;
}

static int convert(const struct ew_args *args, const struct ew_tokenizer *tok, struct ew_error *err)
{
    struct ew_buf in, out;
    int code;

    ew_buf_init(&in, INPUT_BYTES_MAX);
    ew_buf_init(&out, INPUT_BYTES_MAX);
    code = read_input(&in, err);
    if (code == EW_OK)
        code = (ew_args_flag(args, "decode") ? decode : encode)(args, tok, ew_buf_str(&in), &out, err);
    if (code == EW_OK && !ew_buf_ok(&out))
        code = ew_fail_memory(err, out.len, "the output");
    if (code == EW_OK && out.len && fwrite(out.ptr, 1, out.len, stdout) != out.len)
        code = ew_fail_errno(err, EW_ERR_IO, "standard output cannot be written");
    ew_buf_fini(&in);
    ew_buf_fini(&out);
    return code;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_tokenizer *tok = NULL;
    struct ew_modelfile file;
    const char *model;
    int code = ew_model_of(args, &model, err);

    if (code == EW_OK)
        code = ew_modelfile_open(&file, model, false, err);
    if (code != EW_OK)
        return code;
    code = ew_tokenizer_load(&file, &tok, err);
    if (code == EW_OK)
        code = convert(args, tok, err);
    ew_tokenizer_free(tok);
    ew_modelfile_close(&file);
    return code;
}

const struct ew_command ew_cmd_tokenize = {
    .name = "tokenize",
    .usage = "tokenize -m MODEL [--add-special] [--parse-special] [--decode] < INPUT",
    .summary = "Text to token ids, or back",
    .details =
        "Reads standard input byte for byte and prints the ids on one line. With --decode it reads ids and prints the\n"
        "bytes they stand for. MODEL may be a vocabulary-only GGUF file or a directory without weights.",
    .options = g_options,
    .run = run,
};
