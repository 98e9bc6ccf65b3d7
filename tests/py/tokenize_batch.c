// Many texts through one tokenizer, for comparison with its reference implementation:
//   tokenize_batch (MODEL | tokenizer.json [tokenizer_config.json]) [--add-special] [--parse-special]
// Standard input holds texts, each a little-endian u32 length and bytes. For each a line of JSON is printed: its ids,
// the bytes they decode to at once and one by one, in hexadecimal; or the error.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "text/tokenizer.h"

#define TREE_BYTES_MAX ((size_t)1 << 30)
#define TEXT_BYTES_MAX ((size_t)1 << 30)

struct subject {
    struct ew_modelfile file;
    struct ew_arena arena;
    struct ew_tokenizer *tok;
    bool add_special, parse_special;
};

static int load_json(struct subject *s, const char *path, const char *config_path, struct ew_error *err)
{
    const struct ew_json *root, *config = NULL;
    int code = ew_json_parse_file(&s->arena, path, TEXT_BYTES_MAX, &root, err);

    if (code == EW_OK && config_path)
        code = ew_json_parse_file(&s->arena, config_path, TEXT_BYTES_MAX, &config, err);
    return code == EW_OK ? ew_tokenizer_load_json(root, config, &s->tok, err) : code;
}

static int load(struct subject *s, const char *model, const char *config, struct ew_error *err)
{
    int code;

    if (ew_str_ends(ew_str_of(model), ".json"))
        return load_json(s, model, config, err);
    code = ew_modelfile_open(&s->file, model, false, err);
    return code == EW_OK ? ew_tokenizer_load(&s->file, &s->tok, err) : code;
}

static void print_hex(const char *name, const struct ew_buf *bytes)
{
    printf(", \"%s\": \"", name);
    for (size_t i = 0; i < bytes->len; i++)
        printf("%02x", (unsigned char)bytes->ptr[i]);
    putchar('"');
}

static int stream(const struct subject *s, const struct ew_ids *ids, struct ew_buf *out, struct ew_error *err)
{
    struct ew_detok detok;
    int code = EW_OK;

    ew_detok_init(&detok, s->tok, false);
    for (size_t i = 0; i < ids->count && code == EW_OK; i++)
        code = ew_detok_push(&detok, ids->ids[i], out, err);
    ew_detok_flush(&detok, out);
    return code;
}

static void convert(const struct subject *s, struct ew_str text)
{
    struct ew_ids ids = {0};
    struct ew_buf whole, streamed;
    struct ew_error err;
    int code;

    ew_buf_init(&whole, TEXT_BYTES_MAX);
    ew_buf_init(&streamed, TEXT_BYTES_MAX);
    code = ew_tokenize(s->tok, text, s->add_special, s->parse_special, &ids, &err);
    if (code == EW_OK)
        code = ew_detokenize(s->tok, ids.ids, ids.count, false, &whole, &err);
    if (code == EW_OK)
        code = stream(s, &ids, &streamed, &err);
    if (code == EW_OK) {
        printf("{\"ids\": [");
        for (size_t i = 0; i < ids.count; i++)
            printf("%s%d", i ? ", " : "", ids.ids[i]);
        putchar(']');
        print_hex("text", &whole);
        print_hex("stream", &streamed);
        puts("}");
    } else {
        printf("{\"error\": \"%d\"}\n", code);
        fprintf(stderr, "%s\n", err.message);
    }
    ew_ids_fini(&ids);
    ew_buf_fini(&whole);
    ew_buf_fini(&streamed);
}

static void convert_all(const struct subject *s)
{
    unsigned char header[4];

    while (fread(header, 1, 4, stdin) == 4) {
        size_t len = header[0] | (size_t)header[1] << 8 | (size_t)header[2] << 16 | (size_t)header[3] << 24;
        char *text = ew_alloc(len + 1);

        EW_ASSERT(text && fread(text, 1, len, stdin) == len);
        convert(s, (struct ew_str){text, len});
        ew_free(text);
    }
}

int main(int argc, char **argv)
{
    struct subject s = {0};
    const char *paths[2] = {NULL, NULL};
    int n_paths = 0;
    struct ew_error err;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--add-special") == 0)
            s.add_special = true;
        else if (strcmp(argv[i], "--parse-special") == 0)
            s.parse_special = true;
        else if (n_paths < 2)
            paths[n_paths++] = argv[i];
    }
    ew_arena_init(&s.arena, TREE_BYTES_MAX);
    if (n_paths == 0 || load(&s, paths[0], paths[1], &err) != EW_OK) {
        fprintf(stderr, "tokenize_batch: %s\n", n_paths ? err.message : "no tokenizer is given");
        return 1;
    }
    convert_all(&s);
    ew_tokenizer_free(s.tok);
    if (s.file.path)
        ew_modelfile_close(&s.file);
    ew_arena_fini(&s.arena);
    return 0;
}
