#include "format/safetensors.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "format/json.h"

#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE "model.safetensors.index.json"
#define PATH_BYTES_MAX 4096
#define LENGTH_BYTES 8                       // of the little-endian header length at the start
// names: EW_TENSORS_MAX of EW_TENSOR_NAME_MAX bytes, and the lists of one index
#define ARENA_BYTES_MAX ((size_t)1 << 30)
#define INDEX_BYTES_MAX ((size_t)256 << 20)
#define WHY_BYTES 64

// One file on its way into st->tensors.
struct part {
    struct ew_safetensors *st;
    struct ew_json_reader reader;
    const unsigned char *data; // behind the header
    uint64_t size;
    uint32_t file;
    const char *prefix; // of the names
};

// What the header says of one tensor.
struct entry {
    struct ew_str name;
    char dtype[24];
    uint64_t shape[EW_TENSOR_DIMS_MAX], n_dims; // n_dims may be larger than the array, which holds the first ones
    uint64_t offsets[2];
    bool has_dtype, has_shape, has_offsets;
};

// Makes room for element `count` of a list that grows by doubling.
static int grow(void **list, uint64_t count, size_t size, struct ew_error *err)
{
    uint64_t room = count < 16 ? 16 : 2 * count;
    void *grown;

    if (count >= 16 ? (count & (count - 1)) != 0 : count != 0)
        return EW_OK;
    if (count >= EW_TENSORS_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "there are more than %u tensors", EW_TENSORS_MAX);
    grown = ew_realloc_array(*list, room, size);
    if (!grown)
        return ew_fail_memory(err, room * size, "the list of tensors");
    *list = grown;
    return EW_OK;
}

static int expect(struct part *p, int wanted, const char *what, struct ew_error *err)
{
    int event = ew_json_next(&p->reader, err);

    return event < 0         ? event
           : event == wanted ? EW_OK
                             : ew_fail(err, EW_ERR_FORMAT, "the header holds something else than %s", what);
}

// An array of integers from 0 up; the first `max` are stored, all are counted.
static int read_numbers(struct part *p, uint64_t *out, uint64_t max, uint64_t *count, struct ew_error *err)
{
    int code = expect(p, EW_JSON_ARRAY_BEGIN, "an array of numbers for a shape or offset", err), event;

    *count = 0;
    if (code != EW_OK)
        return code;
    while ((event = ew_json_next(&p->reader, err)) == EW_JSON_NUMBER) {
        if (!p->reader.is_integer || p->reader.integer < 0)
            return ew_fail(err, EW_ERR_FORMAT, "a shape or offset is no integer from 0 up");
        if (*count < max)
            out[*count] = (uint64_t)p->reader.integer;
        ++*count;
    }
    if (event < 0)
        return event;
    return event == EW_JSON_ARRAY_END ? EW_OK : ew_fail(err, EW_ERR_FORMAT, "a shape or offset is no number");
}

static int read_field(struct part *p, struct entry *entry, struct ew_error *err)
{
    struct ew_str field = p->reader.text;
    uint64_t count = 0;
    int code;

    if (ew_str_is(field, "dtype")) {
        code = expect(p, EW_JSON_STRING, "a name for a dtype", err);
        if (code == EW_OK)
            snprintf(entry->dtype, sizeof(entry->dtype), EW_STR_FMT, EW_STR_ARG(p->reader.text));
        entry->has_dtype = true;
    } else if (ew_str_is(field, "shape")) {
        code = read_numbers(p, entry->shape, EW_TENSOR_DIMS_MAX, &entry->n_dims, err);
        entry->has_shape = true;
    } else if (ew_str_is(field, "data_offsets")) {
        code = read_numbers(p, entry->offsets, 2, &count, err);
        entry->has_offsets = count == 2;
    } else {
        code = ew_json_skip(&p->reader, err);
    }
    return code;
}

static int read_entry(struct part *p, struct entry *entry, struct ew_error *err)
{
    int code = expect(p, EW_JSON_OBJECT_BEGIN, "an object for each tensor", err), event;

    if (code != EW_OK)
        return code;
    while ((event = ew_json_next(&p->reader, err)) == EW_JSON_KEY) {
        code = read_field(p, entry, err);
        if (code != EW_OK)
            return code;
    }
    if (event < 0)
        return event;
    if (!entry->has_dtype || !entry->has_shape || !entry->has_offsets)
        return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " lacks its dtype, shape or data_offsets",
                       EW_STR_ARG(entry->name));
    if (entry->offsets[0] > entry->offsets[1])
        return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " ends before it begins", EW_STR_ARG(entry->name));
    if (entry->offsets[1] > p->size) {
        ew_fail(err, EW_ERR_FORMAT,
                "the file is truncated: tensor " EW_STR_FMT " ends at byte %llu of its data, which has %llu",
                EW_STR_ARG(entry->name), (unsigned long long)entry->offsets[1], (unsigned long long)p->size);
        return ew_remedy(err, EW_ERR_FORMAT, "download it again");
    }
    return EW_OK;
}

static int refuse(struct part *p, const struct entry *entry, struct ew_error *err)
{
    struct ew_tensors *set = &p->st->tensors;
    int code = grow((void **)&set->refused, set->n_refused, sizeof(*set->refused), err);
    char *why = ew_arena_alloc(&p->st->arena, WHY_BYTES);

    if (code != EW_OK)
        return code;
    if (!why)
        return ew_fail_memory(err, WHY_BYTES, "the list of tensors");
    if (entry->n_dims > EW_TENSOR_DIMS_MAX)
        snprintf(why, WHY_BYTES, "has %llu dimensions, more than %d", (unsigned long long)entry->n_dims,
                 EW_TENSOR_DIMS_MAX);
    else
        snprintf(why, WHY_BYTES, "has the unknown type %s", entry->dtype);
    set->refused[set->n_refused++] = (struct ew_tensor_refused){entry->name, why};
    return EW_OK;
}

static int add_tensor(struct part *p, const struct entry *entry, struct ew_error *err)
{
    struct ew_tensors *set = &p->st->tensors;
    int dtype = ew_dtype_by_safetensors(ew_str_of(entry->dtype)), code;
    struct ew_tensor tensor = {.name = entry->name, .file = p->file, .n_dims = (uint32_t)entry->n_dims};

    if (dtype < 0 || entry->n_dims > EW_TENSOR_DIMS_MAX)
        return refuse(p, entry, err);
    tensor.dtype = (enum ew_dtype)dtype;
    for (uint32_t i = 0; i < EW_TENSOR_DIMS_MAX; i++)
        tensor.shape[i] = i < tensor.n_dims ? entry->shape[i] : 1;
    if (!ew_tensor_size(tensor.dtype, tensor.n_dims, tensor.shape, &tensor.bytes) ||
        tensor.bytes != entry->offsets[1] - entry->offsets[0])
        return ew_fail(err, EW_ERR_FORMAT, "the %llu bytes of tensor " EW_STR_FMT " are not those of its shape in %s",
                       (unsigned long long)(entry->offsets[1] - entry->offsets[0]), EW_STR_ARG(entry->name),
                       entry->dtype);
    tensor.data = p->data + entry->offsets[0];
    code = grow((void **)&set->list, set->count, sizeof(*set->list), err);
    if (code == EW_OK)
        set->list[set->count++] = tensor;
    return code;
}

static int read_tensor(struct part *p, struct ew_error *err)
{
    struct entry entry = {0};
    size_t len;
    char *name;
    int code = ew_tensor_name_check(p->reader.text, EW_TENSOR_NAME_MAX, err);

    if (code != EW_OK)
        return code;
    len = strlen(p->prefix) + p->reader.text.len;
    name = ew_arena_alloc(&p->st->arena, len + 1);
    if (!name)
        return ew_fail_memory(err, len, "the name of a tensor");
    memcpy(name, p->prefix, strlen(p->prefix));
    memcpy(name + strlen(p->prefix), p->reader.text.ptr, p->reader.text.len);
    entry.name = (struct ew_str){name, len};
    code = read_entry(p, &entry, err);
    return code == EW_OK ? add_tensor(p, &entry, err) : code;
}

static int read_header(struct part *p, struct ew_error *err)
{
    int code = expect(p, EW_JSON_OBJECT_BEGIN, "an object", err), event;

    if (code != EW_OK)
        return code;
    while ((event = ew_json_next(&p->reader, err)) == EW_JSON_KEY) {
        code = ew_str_is(p->reader.text, "__metadata__") ? ew_json_skip(&p->reader, err) : read_tensor(p, err);
        if (code != EW_OK)
            return code;
    }
    return event < 0 ? event : expect(p, EW_JSON_END, "one object", err);
}

// Adds the tensors of one file, whose bytes stay where they are, to st.
static int add_file(struct ew_safetensors *st, uint32_t file, const char *path, const char *prefix,
                    const unsigned char *bytes, uint64_t size, struct ew_error *err)
{
    struct part p = {.st = st, .file = file, .prefix = prefix};
    uint64_t header = 0;
    int code = ew_file_check(path, bytes, (size_t)EW_MIN(size, 4096), err);

    if (code != EW_OK)
        return code;
    if (size >= LENGTH_BYTES)
        memcpy(&header, bytes, LENGTH_BYTES);
    if (size < LENGTH_BYTES || header > size - LENGTH_BYTES || header > EW_SAFETENSORS_HEADER_MAX || header < 2 ||
        bytes[LENGTH_BYTES] != '{') {
        ew_fail(err, EW_ERR_FORMAT, "%s is truncated or no safetensors file: its first bytes give no header within it",
                path);
        return ew_remedy(err, EW_ERR_FORMAT, "download it again");
    }
    p.data = bytes + LENGTH_BYTES + header;
    p.size = size - LENGTH_BYTES - header;
    ew_json_reader_init(&p.reader, (struct ew_str){(const char *)bytes + LENGTH_BYTES, (size_t)header});
    code = read_header(&p, err);
    ew_json_reader_fini(&p.reader);
    return code == EW_OK ? EW_OK : ew_fail_in(err, code, "%s", path);
}

static int index_tensors(struct ew_safetensors *st, const char *path, struct ew_error *err)
{
    int code = ew_tensors_index(&st->tensors, err);

    return code == EW_OK ? EW_OK : ew_fail_in(err, code, "%s", path);
}

static void init(struct ew_safetensors *st)
{
    *st = (struct ew_safetensors){0};
    ew_arena_init(&st->arena, ARENA_BYTES_MAX);
}

// Room for the mappings of n files, none of them open.
static int make_files(struct ew_safetensors *st, uint32_t n, struct ew_error *err)
{
    st->files = ew_alloc_array(n, sizeof(*st->files));
    st->n_files = st->files ? n : 0;
    return st->files ? EW_OK : ew_fail_memory(err, n * sizeof(*st->files), "the list of files");
}

static int open_file(struct ew_safetensors *st, uint32_t i, const char *path, struct ew_error *err)
{
    int code = ew_mapfile_open(&st->files[i], path, err);

    return code == EW_OK ? add_file(st, i, path, "", st->files[i].data, st->files[i].size, err) : code;
}

int ew_safetensors_add(struct ew_safetensors *st, const char *path, const char *prefix, struct ew_error *err)
{
    struct ew_mapfile *files = ew_realloc_array(st->files, (size_t)st->n_files + 1, sizeof(*files)), *last;
    int code;

    if (!files)
        return ew_fail_memory(err, sizeof(*files), "the list of files");
    st->files = files;
    last = &files[st->n_files];
    *last = (struct ew_mapfile){0};
    code = ew_mapfile_open(last, path, err);
    if (code != EW_OK)
        return code;
    code = add_file(st, st->n_files++, path, prefix, last->data, last->size, err);
    ew_tensors_fini(&st->tensors);
    return code == EW_OK ? index_tensors(st, path, err) : code;
}

int ew_safetensors_open(struct ew_safetensors *st, const char *path, struct ew_error *err)
{
    int code;

    init(st);
    code = make_files(st, 1, err);
    if (code == EW_OK)
        code = open_file(st, 0, path, err);
    if (code == EW_OK)
        code = index_tensors(st, path, err);
    if (code != EW_OK)
        ew_safetensors_close(st);
    return code;
}

int ew_safetensors_parse(struct ew_safetensors *st, const unsigned char *bytes, uint64_t size, struct ew_error *err)
{
    int code;

    init(st);
    code = add_file(st, 0, "the safetensors file", "", bytes, size, err);
    if (code == EW_OK)
        code = index_tensors(st, "the safetensors file", err);
    if (code != EW_OK)
        ew_safetensors_close(st);
    return code;
}

static int join(char path[PATH_BYTES_MAX], const char *dir, const char *name, struct ew_error *err)
{
    int len = snprintf(path, PATH_BYTES_MAX, "%s/%s", dir, name);

    return len > 0 && len < PATH_BYTES_MAX ? EW_OK : ew_fail(err, EW_ERR_LIMIT, "the path %.200s... is too long", dir);
}

// The shards that an index names, in the order of their first mention.
struct shards {
    struct ew_str *names;
    uint32_t count;
    struct ew_map by_name;
};

static int add_shard(struct shards *shards, struct ew_str name, struct ew_error *err)
{
    uint32_t known;

    if (ew_map_get(&shards->by_name, name, &known))
        return EW_OK;
    if (ew_tensor_name_check(name, 255, NULL) != EW_OK || memchr(name.ptr, '/', name.len) || ew_str_is(name, ".."))
        return ew_fail(err, EW_ERR_FORMAT, "it names a shard that is no plain file name");
    if (shards->count == EW_SAFETENSORS_FILES_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "it names more than %u files", EW_SAFETENSORS_FILES_MAX);
    if (ew_map_put(&shards->by_name, name, shards->count, NULL) != EW_OK)
        return ew_fail_memory(err, name.len, "the list of shards");
    shards->names[shards->count++] = name;
    return EW_OK;
}

static int list_shards(struct shards *shards, const struct ew_json *weight_map, struct ew_error *err)
{
    int code = EW_OK;

    if (!weight_map || weight_map->type != EW_JSON_T_OBJECT || weight_map->count == 0)
        return ew_fail(err, EW_ERR_FORMAT, "it has no weight_map");
    shards->names = ew_alloc_array(EW_SAFETENSORS_FILES_MAX, sizeof(*shards->names));
    if (!shards->names || ew_map_init(&shards->by_name, 64) != EW_OK)
        return ew_fail_memory(err, EW_SAFETENSORS_FILES_MAX * sizeof(*shards->names), "the list of shards");
    for (const struct ew_json *entry = weight_map->child; entry && code == EW_OK; entry = entry->next)
        code = entry->type == EW_JSON_T_STRING
                   ? add_shard(shards, entry->text, err)
                   : ew_fail(err, EW_ERR_FORMAT, "its weight_map holds something else than file names");
    return code;
}

// One error for all that are missing, so that they can be fetched at once.
static int check_shards_exist(const struct shards *shards, const char *dir, struct ew_error *err)
{
    char path[PATH_BYTES_MAX], names[320] = "";
    uint32_t missing = 0;
    size_t len = 0;

    for (uint32_t i = 0; i < shards->count; i++) {
        int code = join(path, dir, shards->names[i].ptr, err);

        if (code != EW_OK)
            return code;
        if (access(path, F_OK) == 0)
            continue;
        if (missing++ < 4 && len < sizeof(names))
            len += (size_t)snprintf(names + len, sizeof(names) - len, "%s%.100s", missing > 1 ? ", " : "",
                                    shards->names[i].ptr);
    }
    if (missing == 0)
        return EW_OK;
    ew_fail(err, EW_ERR_IO, "%s lacks %u of the %u files that its index names: %s%s", dir, missing, shards->count,
            names, missing > 4 ? ", ..." : "");
    return ew_remedy(err, EW_ERR_IO, "finish the download");
}

// Every tensor must be where the index says, so that a mix of two downloads is noticed.
static int check_index(const struct ew_safetensors *st, const struct shards *shards, const struct ew_json *weight_map,
                       struct ew_error *err)
{
    for (const struct ew_json *entry = weight_map->child; entry; entry = entry->next) {
        const struct ew_tensor *tensor;
        uint32_t file = 0;
        int code = ew_tensors_need(&st->tensors, entry->key, &tensor, NULL);

        if (code == EW_ERR_UNSUPPORTED)
            continue;
        ew_map_get(&shards->by_name, entry->text, &file);
        if (code != EW_OK || tensor->file != file)
            return ew_fail(err, EW_ERR_FORMAT, EW_STR_FMT " does not hold tensor " EW_STR_FMT ", as the index says",
                           EW_STR_ARG(entry->text), EW_STR_ARG(entry->key));
    }
    return EW_OK;
}

static int open_shards(struct ew_safetensors *st, const char *dir, const struct shards *shards, struct ew_error *err)
{
    char path[PATH_BYTES_MAX];
    int code = check_shards_exist(shards, dir, err);

    if (code == EW_OK)
        code = make_files(st, shards->count, err);
    for (uint32_t i = 0; i < shards->count && code == EW_OK; i++) {
        code = join(path, dir, shards->names[i].ptr, err);
        if (code == EW_OK)
            code = open_file(st, i, path, err);
    }
    return code;
}

static int open_index(struct ew_safetensors *st, const char *dir, const char *index, struct ew_error *err)
{
    const struct ew_json *root, *weight_map;
    struct shards shards = {0};
    struct ew_arena arena;
    int code;

    ew_arena_init(&arena, ARENA_BYTES_MAX);
    code = ew_json_parse_file(&arena, index, INDEX_BYTES_MAX, &root, err);
    if (code != EW_OK)
        goto out;
    weight_map = ew_json_get(root, "weight_map");
    code = list_shards(&shards, weight_map, err);
    if (code != EW_OK) {
        ew_fail_in(err, code, "%s", index);
        goto out;
    }
    code = open_shards(st, dir, &shards, err);
    if (code == EW_OK)
        code = index_tensors(st, dir, err);
    if (code == EW_OK && (code = check_index(st, &shards, weight_map, err)) != EW_OK)
        ew_fail_in(err, code, "%s", dir);
out:
    ew_map_fini(&shards.by_name);
    ew_free(shards.names);
    ew_arena_fini(&arena);
    return code;
}

// The name of the only file in dir that ends in .safetensors; false where there is none or more.
static bool only_file(const char *dir, char *name, size_t size)
{
    DIR *stream = opendir(dir);
    const struct dirent *entry;
    uint32_t count = 0;

    if (!stream)
        return false;
    while ((entry = readdir(stream))) {
        if (!ew_str_ends(ew_str_of(entry->d_name), ".safetensors"))
            continue;
        count++;
        snprintf(name, size, "%s", entry->d_name);
    }
    closedir(stream);
    return count == 1;
}

int ew_safetensors_open_dir(struct ew_safetensors *st, const char *dir, struct ew_error *err)
{
    char path[PATH_BYTES_MAX], name[256];
    int code;

    *st = (struct ew_safetensors){0};
    code = join(path, dir, SINGLE_FILE, err);
    if (code != EW_OK || access(path, F_OK) == 0)
        return code == EW_OK ? ew_safetensors_open(st, path, err) : code;
    code = join(path, dir, INDEX_FILE, err);
    if (code == EW_OK && access(path, F_OK) == 0) {
        init(st);
        code = open_index(st, dir, path, err);
        if (code != EW_OK)
            ew_safetensors_close(st);
        return code;
    }
    if (code == EW_OK && only_file(dir, name, sizeof(name))) {
        code = join(path, dir, name, err);
        return code == EW_OK ? ew_safetensors_open(st, path, err) : code;
    }
    if (code != EW_OK)
        return code;
    return ew_fail(err, EW_ERR_IO, "%s holds neither " SINGLE_FILE " nor " INDEX_FILE, dir);
}

void ew_safetensors_close(struct ew_safetensors *st)
{
    for (uint32_t i = 0; i < st->n_files; i++)
        ew_mapfile_close(&st->files[i]);
    ew_free(st->files);
    ew_tensors_fini(&st->tensors);
    ew_free(st->tensors.list);
    ew_free(st->tensors.refused);
    ew_arena_fini(&st->arena);
    *st = (struct ew_safetensors){0};
}
