#include "format/modelfile.h"

#include <fcntl.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"

#define PATH_BYTES_MAX 4096
#define CONFIG_BYTES_MAX ((size_t)16 << 20)
#define TEMPLATE_BYTES_MAX ((size_t)4 << 20)
#define TOKENIZER_BYTES_MAX ((size_t)256 << 20) // the largest vocabularies of today make 35 MB
#define TREES_BYTES_MAX ((size_t)256 << 20)     // config.json and its like
#define TOKENIZER_TREE_BYTES_MAX ((size_t)2 << 30)

#define DEMO_MODEL "models/demo.gguf"

static int join(char path[PATH_BYTES_MAX], const char *dir, const char *name, struct ew_error *err)
{
    int len = snprintf(path, PATH_BYTES_MAX, "%s/%s", dir, name);

    return len > 0 && len < PATH_BYTES_MAX ? EW_OK : ew_fail(err, EW_ERR_LIMIT, "the path %.200s... is too long", dir);
}

static bool exists(const char *dir, const char *name)
{
    char path[PATH_BYTES_MAX];

    return join(path, dir, name, NULL) == EW_OK && access(path, F_OK) == 0;
}

// The directory of the running program, with a slash at its end; false where /proc does not tell.
static bool program_dir(char path[PATH_BYTES_MAX])
{
    ssize_t len = readlink("/proc/self/exe", path, PATH_BYTES_MAX - 1);
    char *slash;

    if (len <= 0)
        return false;
    path[len] = '\0';
    slash = strrchr(path, '/');
    if (!slash)
        return false;
    slash[1] = '\0';
    return true;
}

static int find_demo(char path[PATH_BYTES_MAX], struct ew_error *err)
{
    static const char *const below_program[] = {"../" DEMO_MODEL, "../share/edgewise/" DEMO_MODEL};
    char dir[PATH_BYTES_MAX];
    bool found = false;

    for (size_t i = 0; i < EW_COUNT_OF(below_program) && !found && program_dir(dir); i++)
        found = join(path, dir, below_program[i], NULL) == EW_OK && access(path, F_OK) == 0;
    if (!found)
        found = join(path, EW_DATADIR, DEMO_MODEL, NULL) == EW_OK && access(path, F_OK) == 0;
    if (found)
        return EW_OK;
    ew_fail(err, EW_ERR_IO, "the bundled model is neither beside this program nor at " EW_DATADIR "/" DEMO_MODEL);
    return ew_remedy(err, EW_ERR_IO, "set EDGEWISE_DEMO to its path, or install edgewise again");
}

int ew_modelfile_resolve(const char *model, char **path, struct ew_error *err)
{
    const char *chosen = model, *from_env = getenv("EDGEWISE_DEMO");
    char found[PATH_BYTES_MAX];
    int code = EW_OK;

    *path = NULL;
    if (strcmp(model, "demo") == 0) {
        chosen = found;
        if (from_env && *from_env)
            chosen = from_env;
        else
            code = find_demo(found, err);
    }
    if (code != EW_OK)
        return code;
    *path = ew_strdup(chosen);
    return *path ? EW_OK : ew_fail_memory(err, strlen(chosen), "a path");
}

// A GGUF name that one would pass to open a model: not one of the later files of a split one.
static bool opens_model(struct ew_str name)
{
    ptrdiff_t of = ew_str_find(name, EW_STR("-of-"), 0);

    if (!ew_str_ends(name, ".gguf") || name.ptr[0] == '.')
        return false;
    return of < 6 || ew_str_starts((struct ew_str){name.ptr + of - 6, 6}, "-00001");
}

// What a directory without config.json, or without safetensors, holds instead.
struct found {
    uint32_t ggufs, pytorch, files;
    char gguf[256]; // the name of one
};

static void look_around(const char *dir, struct found *found)
{
    DIR *stream = opendir(dir);
    const struct dirent *entry;

    *found = (struct found){0};
    if (!stream)
        return;
    while ((entry = readdir(stream))) {
        struct ew_str name = ew_str_of(entry->d_name);

        found->files += entry->d_name[0] != '.';
        if (opens_model(name)) {
            found->ggufs++;
            snprintf(found->gguf, sizeof(found->gguf), "%s", entry->d_name);
        }
        found->pytorch += ew_str_ends(name, ".bin") || ew_str_ends(name, ".pth") || ew_str_ends(name, ".pt");
    }
    closedir(stream);
}

// For a directory without config.json: the path of the only GGUF model in it.
static int choose_gguf(const char *dir, char path[PATH_BYTES_MAX], struct ew_error *err)
{
    struct found found;

    look_around(dir, &found);
    if (found.ggufs == 1)
        return join(path, dir, found.gguf, err);
    if (found.ggufs > 1) {
        ew_fail(err, EW_ERR_USAGE, "%s holds %u GGUF models", dir, found.ggufs);
        return ew_remedy(err, EW_ERR_USAGE, "name one of them, such as %s/%.100s", dir, found.gguf);
    }
    ew_fail(err, EW_ERR_FORMAT, "%s %s", dir,
            found.files ? "is no model: it holds neither a config.json nor a GGUF file" : "is empty");
    return ew_remedy(err, EW_ERR_FORMAT, "give the directory that holds config.json, or a .gguf file");
}

static int open_weights(struct ew_modelfile *file, const char *dir, struct ew_error *err)
{
    struct found found;
    int code;

    if (!exists(dir, "model.safetensors") && !exists(dir, "model.safetensors.index.json")) {
        look_around(dir, &found);
        code = ew_safetensors_open_dir(&file->safetensors, dir, err);
        if (code != EW_ERR_IO)
            return code;
        if (found.pytorch == 0)
            return ew_remedy(err, code, "download the weights (model*.safetensors) too");
        ew_fail(err, EW_ERR_UNSUPPORTED, "%s has its weights in PyTorch's .bin or .pt form only, which is not read",
                dir);
        return ew_remedy(err, EW_ERR_UNSUPPORTED, "get or make a safetensors or GGUF form of the model");
    }
    return ew_safetensors_open_dir(&file->safetensors, dir, err);
}

// Reads dir/name into *tree; where the file is absent *tree stays NULL.
static int read_tree(struct ew_arena *arena, const char *dir, const char *name, size_t max, const struct ew_json **tree,
                     struct ew_error *err)
{
    char path[PATH_BYTES_MAX];
    int code = join(path, dir, name, err);

    if (code != EW_OK || access(path, F_OK) != 0)
        return code;
    code = ew_json_parse_file(arena, path, max, tree, err);
    if (code == EW_OK && (*tree)->type != EW_JSON_T_OBJECT)
        code = ew_fail(err, EW_ERR_FORMAT, "%s holds no JSON object", path);
    return code;
}

// Reads dir/name; where the file is absent *text stays as it is.
static int read_text(struct ew_modelfile *file, const char *dir, const char *name, struct ew_str *text,
                     struct ew_error *err)
{
    char path[PATH_BYTES_MAX], *bytes, *copy;
    size_t len;
    int code = join(path, dir, name, err);

    if (code != EW_OK || access(path, F_OK) != 0)
        return code;
    code = ew_file_read(path, TEMPLATE_BYTES_MAX, &bytes, &len, err);
    if (code != EW_OK)
        return code;
    copy = ew_arena_copy(&file->arena, bytes, len);
    ew_free(bytes);
    if (!copy)
        return ew_fail_memory(err, len, path);
    *text = (struct ew_str){copy, len};
    return EW_OK;
}

// The value of a chat_template member: one template, or a list of {name, template}.
static void take_templates(struct ew_modelfile *file, const struct ew_json *member)
{
    if (member && member->type == EW_JSON_T_STRING)
        file->chat_template = member->text;
    if (!member || member->type != EW_JSON_T_ARRAY)
        return;
    for (const struct ew_json *entry = member->child; entry; entry = entry->next) {
        struct ew_str name = ew_json_str(ew_json_get(entry, "name"), "");

        if (ew_str_is(name, "default"))
            file->chat_template = ew_json_str(ew_json_get(entry, "template"), NULL);
        else if (ew_str_is(name, "tool_use"))
            file->chat_template_tools = ew_json_str(ew_json_get(entry, "template"), NULL);
    }
}

// Later sources win over earlier ones.
static int read_templates(struct ew_modelfile *file, const char *dir, struct ew_error *err)
{
    const struct ew_json *tree = NULL;
    int code = read_tree(&file->arena, dir, "chat_template.json", CONFIG_BYTES_MAX, &tree, err);

    if (code != EW_OK)
        return code;
    take_templates(file, ew_json_get(tree, "chat_template"));
    take_templates(file, ew_json_get(file->tokenizer_config, "chat_template"));
    code = read_text(file, dir, "chat_template.jinja", &file->chat_template, err);
    if (code == EW_OK) // both names of the directory of further templates are about
        code = read_text(file, dir, "chat_templates/tool_use.jinja", &file->chat_template_tools, err);
    if (code == EW_OK)
        code = read_text(file, dir, "additional_chat_templates/tool_use.jinja", &file->chat_template_tools, err);
    return code;
}

// The path of a file of a module inside the model's directory; false where it would lead elsewhere.
static bool module_path(const struct ew_json *module, const char *file, char *out, size_t size)
{
    struct ew_str path = ew_json_str(ew_json_get(module, "path"), "");

    if (path.len == 0 || path.ptr[0] == '/' || ew_str_find(path, EW_STR(".."), 0) >= 0)
        return false;
    return (size_t)snprintf(out, size, EW_STR_FMT "/%s", EW_STR_ARG(path), file) < size;
}

// Weights of sentence-transformers' modules stand in files of their own.
static int read_dense(struct ew_modelfile *file, const char *dir, const struct ew_json *module, bool need_weights,
                      struct ew_error *err)
{
    char path[PATH_BYTES_MAX], name[256], prefix[16];
    int code;

    if (file->n_dense == EW_DENSE_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "modules.json asks for more than %d Dense modules", EW_DENSE_MAX);
    if (!module_path(module, "config.json", name, sizeof(name)))
        return ew_fail(err, EW_ERR_FORMAT, "modules.json gives a Dense module no path inside the model's directory");
    code = read_tree(&file->arena, dir, name, CONFIG_BYTES_MAX, &file->dense[file->n_dense], err);
    if (code == EW_OK && !file->dense[file->n_dense])
        return ew_fail(err, EW_ERR_FORMAT, "modules.json asks for a Dense module whose %s is missing", name);
    snprintf(prefix, sizeof(prefix), "dense_%u.", file->n_dense++ + 2);
    if (code != EW_OK || !need_weights)
        return code;
    (void)module_path(module, "model.safetensors", name, sizeof(name));
    code = join(path, dir, name, err);
    return code == EW_OK ? ew_safetensors_add(&file->safetensors, path, prefix, err) : code;
}

// The modules behind the model, once its own weights are there.
static int read_module_files(struct ew_modelfile *file, const char *dir, bool need_weights, struct ew_error *err)
{
    int code = EW_OK;

    for (const struct ew_json *module = file->modules ? file->modules->child : NULL; module && code == EW_OK;
         module = module->next) {
        struct ew_str type = ew_json_str(ew_json_get(module, "type"), "");
        char name[256];

        if (ew_str_ends(type, ".Dense"))
            code = read_dense(file, dir, module, need_weights, err);
        else if (ew_str_ends(type, ".Pooling") && !file->pooling && module_path(module, "config.json", name, 256))
            code = read_tree(&file->arena, dir, name, CONFIG_BYTES_MAX, &file->pooling, err);
        else if (ew_str_ends(type, ".LogitScore") && module_path(module, "config.json", name, 256))
            code = read_tree(&file->arena, dir, name, CONFIG_BYTES_MAX, &file->logit_score, err);
    }
    return code;
}

// Hubs keep what a model is for in the YAML before its description. Of a checkpoint that has no other trace of it, such
// as the Qwen 3 rerankers, that is all there is to go by. Nothing depends on a README that cannot be read.
static void read_purpose(struct ew_modelfile *file, const char *dir)
{
    struct ew_str text = EW_STR("");
    ptrdiff_t end, at;

    if (read_text(file, dir, "README.md", &text, NULL) != EW_OK || !ew_str_starts(text, "---\n"))
        return;
    end = ew_str_find(text, EW_STR("\n---"), 3);
    at = ew_str_find(text, EW_STR("\npipeline_tag: text-ranking\n"), 3);
    file->is_ranker = at >= 0 && at < end;
}

static int read_modules(struct ew_modelfile *file, const char *dir, struct ew_error *err)
{
    char path[PATH_BYTES_MAX];
    int code = join(path, dir, "modules.json", err);

    if (code != EW_OK || access(path, F_OK) != 0)
        return code;
    code = ew_json_parse_file(&file->arena, path, CONFIG_BYTES_MAX, &file->modules, err);
    if (code == EW_OK && file->modules->type != EW_JSON_T_ARRAY)
        code = ew_fail(err, EW_ERR_FORMAT, "%s holds no JSON array", path);
    if (code == EW_OK)
        code = read_tree(&file->arena, dir, "config_sentence_transformers.json", CONFIG_BYTES_MAX,
                         &file->sentence_config, err);
    if (code == EW_OK)
        code = read_tree(&file->arena, dir, "sentence_bert_config.json", CONFIG_BYTES_MAX, &file->sentence_limits, err);
    return code;
}

static int open_hf(struct ew_modelfile *file, const char *dir, bool need_weights, struct ew_error *err)
{
    int code = read_tree(&file->arena, dir, "config.json", CONFIG_BYTES_MAX, &file->config, err);

    file->kind = EW_MODELFILE_HF;
    file->tensors = &file->safetensors.tensors;
    if (code == EW_OK)
        code = read_tree(&file->arena, dir, "generation_config.json", CONFIG_BYTES_MAX, &file->generation_config, err);
    if (code == EW_OK)
        code = read_tree(&file->arena, dir, "tokenizer_config.json", CONFIG_BYTES_MAX, &file->tokenizer_config, err);
    if (code == EW_OK)
        code = read_templates(file, dir, err);
    if (code == EW_OK)
        code = read_modules(file, dir, err);
    if (code == EW_OK && need_weights) // before the vocabulary: a missing shard should not take long to be told
        code = open_weights(file, dir, err);
    if (code == EW_OK)
        code = read_module_files(file, dir, need_weights, err);
    if (code == EW_OK)
        read_purpose(file, dir);
    if (code == EW_OK)
        code = read_tree(&file->tokenizer_arena, dir, "tokenizer.json", TOKENIZER_BYTES_MAX, &file->tokenizer, err);
    return code;
}

static int open_gguf(struct ew_modelfile *file, const char *path, bool need_weights, struct ew_error *err)
{
    int code = ew_gguf_open(&file->gguf, path, err);

    file->kind = EW_MODELFILE_GGUF;
    file->tensors = &file->gguf.tensors;
    if (code != EW_OK)
        return code;
    if (need_weights && file->gguf.tensors.count == 0) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "%s holds a vocabulary only, no weights", path);
        return ew_remedy(err, EW_ERR_UNSUPPORTED, "it serves `tokenize`; give a GGUF file with weights to run a model");
    }
    file->chat_template = ew_gguf_str(&file->gguf, "tokenizer.chat_template", NULL);
    file->chat_template_tools = ew_gguf_str(&file->gguf, "tokenizer.chat_template.tool_use", NULL);
    return EW_OK;
}

static int no_such_model(const char *path, struct ew_error *err)
{
    const char *slash = strchr(path, '/');
    bool absent = errno == ENOENT;
    int code = ew_fail_errno(err, EW_ERR_IO, "cannot open the model %s", path);

    if (absent && slash && slash != path && path[0] != '.' && !strchr(slash + 1, '/') &&
        !ew_str_ends(ew_str_of(path), ".gguf"))
        return ew_remedy(err, code, "if this is a name on a model hub, download it first and give its directory");
    return ew_remedy(err, code, "give a .gguf file, a Hugging Face model directory, or demo");
}

static int open_directory(struct ew_modelfile *file, const char *dir, bool need_weights, struct ew_error *err)
{
    char path[PATH_BYTES_MAX];
    int code;

    if (exists(dir, "config.json"))
        return open_hf(file, dir, need_weights, err);
    code = choose_gguf(dir, path, err);
    return code == EW_OK ? open_gguf(file, path, need_weights, err) : code;
}

// model.safetensors stands for the directory that it is in.
static int open_parent(struct ew_modelfile *file, bool need_weights, struct ew_error *err)
{
    char dir[PATH_BYTES_MAX], *slash;

    snprintf(dir, sizeof(dir), "%s", file->path);
    slash = strrchr(dir, '/');
    if (!slash)
        snprintf(dir, sizeof(dir), ".");
    else
        slash[slash == dir] = '\0';
    if (exists(dir, "config.json"))
        return open_hf(file, dir, need_weights, err);
    ew_fail(err, EW_ERR_FORMAT, "%s has no config.json beside it", file->path);
    return ew_remedy(err, EW_ERR_FORMAT, "download the whole model directory");
}

static int open_path(struct ew_modelfile *file, bool need_weights, struct ew_error *err)
{
    struct stat info;

    if (strlen(file->path) >= PATH_BYTES_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "the path %.200s... is too long", file->path);
    if (stat(file->path, &info) != 0)
        return no_such_model(file->path, err);
    if (S_ISDIR(info.st_mode))
        return open_directory(file, file->path, need_weights, err);
    if (ew_str_ends(ew_str_of(file->path), ".safetensors"))
        return open_parent(file, need_weights, err);
    return open_gguf(file, file->path, need_weights, err);
}

int ew_modelfile_open(struct ew_modelfile *file, const char *model, bool need_weights, struct ew_error *err)
{
    int code;

    *file = (struct ew_modelfile){0};
    ew_arena_init(&file->arena, TREES_BYTES_MAX);
    ew_arena_init(&file->tokenizer_arena, TOKENIZER_TREE_BYTES_MAX);
    code = ew_modelfile_resolve(model, &file->path, err);
    if (code == EW_OK)
        code = open_path(file, need_weights, err);
    if (code != EW_OK)
        ew_modelfile_close(file);
    return code;
}

void ew_modelfile_close(struct ew_modelfile *file)
{
    ew_gguf_close(&file->gguf);
    ew_safetensors_close(&file->safetensors);
    ew_arena_fini(&file->arena);
    ew_arena_fini(&file->tokenizer_arena);
    ew_free(file->path);
    *file = (struct ew_modelfile){0};
}

void ew_modelfile_drop_tokenizer(struct ew_modelfile *file)
{
    ew_arena_fini(&file->tokenizer_arena);
    file->tokenizer = NULL;
}

const struct ew_mapfile *ew_modelfile_map(const struct ew_modelfile *file, uint32_t index)
{
    if (file->kind == EW_MODELFILE_GGUF)
        return index == 0 ? &file->gguf.file : &file->gguf.parts[index - 1].file;
    return &file->safetensors.files[index];
}

static uint32_t count_maps(const struct ew_modelfile *file)
{
    return file->kind == EW_MODELFILE_GGUF ? 1 + file->gguf.n_parts : file->safetensors.n_files;
}

uint64_t ew_modelfile_bytes(const struct ew_modelfile *file)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < count_maps(file); i++)
        bytes += ew_modelfile_map(file, i)->size;
    return bytes;
}

void ew_modelfile_give_back(const struct ew_modelfile *file)
{
    for (uint32_t i = 0; i < count_maps(file); i++) {
        const struct ew_mapfile *map = ew_modelfile_map(file, i);

        if (map->path)
            (void)posix_fadvise(map->fd, 0, 0, POSIX_FADV_DONTNEED); // advice: nothing depends on it
    }
}
