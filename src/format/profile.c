#include "format/profile.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/data.h"
#include "format/mapfile.h"

#define PROFILES_ARENA_MAX ((size_t)4 << 20)
#define PROFILES_MAX 64
#define FILE_BYTES_MAX ((size_t)256 << 10)

struct reader {
    struct ew_profile *profile;
    const char *file;
    struct ew_error *err;
};

static int bad(const struct reader *r, const struct ew_yaml *node, const char *what)
{
    return ew_fail(r->err, EW_ERR_FORMAT, "%s:%u: " EW_STR_FMT " %s", r->file, node->line, EW_STR_ARG(node->key), what);
}

enum field_type { FIELD_NUMBER, FIELD_COUNT, FIELD_FLAG, FIELD_TEXT };

struct field {
    const char *key;
    enum field_type type;
    size_t offset, size; // in ew_profile; size of texts
};

#define SERVE(name, type)                                                                                              \
    {                                                                                                                  \
#name, type, offsetof(struct ew_profile, serve.name), sizeof(((struct ew_profile *)0)->serve.name)             \
    }
#define TARGET(name)                                                                                                   \
    {                                                                                                                  \
#name, FIELD_NUMBER, offsetof(struct ew_profile, targets.name), sizeof(double)                                 \
    }

static const struct field g_serve[] = {
    SERVE(kv_cache_dtype, FIELD_TEXT),
    SERVE(kv_cache_free_gpu_memory_fraction, FIELD_NUMBER),
    SERVE(gpu_memory_utilization, FIELD_NUMBER),
    SERVE(enable_chunked_context, FIELD_FLAG),
    SERVE(use_paged_kv_cache, FIELD_FLAG),
    SERVE(enable_kv_cache_reuse, FIELD_FLAG),
    SERVE(max_num_tokens, FIELD_COUNT),
    SERVE(tokens_per_block, FIELD_COUNT),
    SERVE(max_batch_size, FIELD_COUNT),
    SERVE(max_concurrent_sessions, FIELD_COUNT),
    SERVE(context, FIELD_COUNT),
    SERVE(scheduler_policy, FIELD_TEXT),
    {0},
};

static const struct field g_targets[] = {TARGET(ttft_ms), TARGET(decode_tok_s), TARGET(latency_ms_p99), {0}};

static int read_field(const struct reader *r, const struct field *field, const struct ew_yaml *node)
{
    char *at = (char *)r->profile + field->offset;
    uint64_t count;

    if (node->type != EW_YAML_SCALAR)
        return bad(r, node, "must be one value");
    switch (field->type) {
    case FIELD_NUMBER:
        return ew_str_to_double(node->text, (double *)at) ? EW_OK : bad(r, node, "must be a number");
    case FIELD_COUNT:
        if (!ew_str_to_u64(node->text, &count) || count > UINT32_MAX)
            return bad(r, node, "must be a whole number");
        *(uint32_t *)at = (uint32_t)count;
        return EW_OK;
    case FIELD_FLAG:
        *(bool *)at = ew_str_is(node->text, "true");
        return *(bool *)at || ew_str_is(node->text, "false") ? EW_OK : bad(r, node, "must be true or false");
    case FIELD_TEXT:
        if (node->text.len >= field->size)
            return bad(r, node, "is too long");
        memcpy(at, node->text.ptr, node->text.len);
        at[node->text.len] = '\0';
        return EW_OK;
    }
    return EW_OK;
}

static int read_section(const struct reader *r, const struct field *fields, const struct ew_yaml *section)
{
    int code = EW_OK;

    for (const struct ew_yaml *node = section ? section->child : NULL; node && code == EW_OK; node = node->next) {
        const struct field *field = fields;

        while (field->key && !ew_str_is(node->key, field->key))
            field++;
        code = field->key ? read_field(r, field, node) : bad(r, node, "is not known here");
    }
    return code;
}

static int read_profile(struct ew_profiles *profiles, const char *file, struct ew_str id, struct ew_str text,
                        struct ew_error *err)
{
    struct ew_profile *profile = &profiles->list[profiles->count];
    struct reader r = {profile, file, err};
    const struct ew_yaml *root, *name;
    int code = ew_yaml_parse(&profiles->arena, file, text, &root, err);

    if (code != EW_OK)
        return code;
    *profile = (struct ew_profile){.id = id, .text = text, .device = ew_yaml_get(root, "device")};
    name = ew_yaml_get(profile->device, "name");
    profile->match = ew_yaml_get(profile->device, "match");
    profile->software = ew_yaml_get(root, "software");
    if (!name || name->type != EW_YAML_SCALAR)
        return bad(&r, root, "has no device name");
    profile->title = name->text;
    code = read_section(&r, g_serve, ew_yaml_get(root, "serve"));
    if (code == EW_OK)
        code = read_section(&r, g_targets, ew_yaml_get(root, "targets"));
    profiles->count += code == EW_OK;
    return code;
}

// "profiles/h200.yaml" is h200.
static struct ew_str built_in_id(const char *path)
{
    return (struct ew_str){path + strlen("profiles/"), strlen(path) - strlen("profiles/.yaml")};
}

int ew_profiles_load(struct ew_profiles *profiles, struct ew_error *err)
{
    int code = EW_OK;

    *profiles = (struct ew_profiles){0};
    ew_arena_init(&profiles->arena, PROFILES_ARENA_MAX);
    profiles->list = ew_arena_array(&profiles->arena, PROFILES_MAX, sizeof(*profiles->list));
    if (!profiles->list)
        return ew_fail_memory(err, PROFILES_MAX * sizeof(*profiles->list), "device profiles");
    for (const struct ew_data_file *file = ew_data_files; file->path && code == EW_OK; file++) {
        if (!ew_str_starts(ew_str_of(file->path), "profiles/"))
            continue;
        EW_ASSERT(profiles->count < PROFILES_MAX); // the files are our own
        code = read_profile(profiles, file->path, built_in_id(file->path), file->text, err);
    }
    if (code != EW_OK)
        ew_profiles_fini(profiles);
    return code;
}

void ew_profiles_fini(struct ew_profiles *profiles)
{
    ew_arena_fini(&profiles->arena);
    *profiles = (struct ew_profiles){0};
}

// A file of the user's, such as `plan --write-profile` makes.
static int load_file(struct ew_profiles *profiles, const char *path, const struct ew_profile **out,
                     struct ew_error *err)
{
    char *text, *kept, *name = ew_arena_copy(&profiles->arena, path, strlen(path));
    size_t len;
    int code;

    if (profiles->count == PROFILES_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "there are more than %d profiles", PROFILES_MAX);
    code = ew_file_read(path, FILE_BYTES_MAX, &text, &len, err);
    if (code != EW_OK)
        return code;
    kept = ew_arena_copy(&profiles->arena, text, len);
    ew_free(text);
    if (!kept || !name)
        return ew_fail_memory(err, len, "a profile");
    code = read_profile(profiles, name, ew_str_of(name), (struct ew_str){kept, len}, err);
    if (code == EW_OK)
        *out = &profiles->list[profiles->count - 1];
    return code;
}

int ew_profiles_find(struct ew_profiles *profiles, const char *id, const struct ew_profile **out,
                     struct ew_error *err)
{
    struct ew_buf names;

    if (ew_str_ends(ew_str_of(id), ".yaml"))
        return load_file(profiles, id, out, err);
    for (uint32_t i = 0; i < profiles->count; i++)
        if (ew_str_is(profiles->list[i].id, id)) {
            *out = &profiles->list[i];
            return EW_OK;
        }
    ew_buf_init(&names, 1024);
    for (uint32_t i = 0; i < profiles->count; i++) {
        ew_buf_append_str(&names, i ? EW_STR(", ") : EW_STR(""));
        ew_buf_append_str(&names, profiles->list[i].id);
    }
    ew_fail(err, EW_ERR_USAGE, "there is no device profile \"%s\"", id);
    ew_remedy(err, EW_ERR_USAGE, "Use one of %s", names.ptr ? names.ptr : "");
    ew_buf_fini(&names);
    return EW_ERR_USAGE;
}

// {plat: thor_t5000}, {gpu_name: "RTX PRO 4000", not: SFF}: a fact equals or, for names, contains the text.
static bool matches(const struct ew_profile *profile, const struct ew_facts *facts)
{
    const struct ew_yaml *plat = ew_yaml_get(profile->match, "plat"), *gpu = ew_yaml_get(profile->match, "gpu_name");
    const struct ew_yaml *not = ew_yaml_get(profile->match, "not");
    struct ew_str name = ew_facts_str(facts, "gpu_name", "");

    if (plat)
        return ew_str_eq(ew_facts_str(facts, "plat", ""), plat->text);
    return gpu && ew_str_find(name, gpu->text, 0) >= 0 && !(not &&ew_str_find(name, not ->text, 0) >= 0);
}

const struct ew_profile *ew_profiles_match(const struct ew_profiles *profiles, const struct ew_facts *facts)
{
    const struct ew_profile *generic = NULL;

    for (uint32_t i = 0; i < profiles->count; i++) {
        if (matches(&profiles->list[i], facts))
            return &profiles->list[i];
        if (ew_str_is(profiles->list[i].id, "generic"))
            generic = &profiles->list[i];
    }
    EW_ASSERT(generic);
    return generic;
}

static const struct ew_yaml *figure(const struct ew_profile *profile, const char *name)
{
    return ew_yaml_get(ew_yaml_get(profile->device, name), "value");
}

double ew_profile_number(const struct ew_profile *profile, const char *name, double fallback)
{
    const struct ew_yaml *value = figure(profile, name);
    double number;

    return value && ew_str_to_double(value->text, &number) ? number : fallback;
}

struct ew_str ew_profile_text(const struct ew_profile *profile, const char *name, const char *fallback)
{
    const struct ew_yaml *value = figure(profile, name);

    return value ? value->text : ew_str_of(fallback);
}

#define LIBRARIES_MAX 64

static void set_list(struct ew_facts *facts, const char *key, const struct ew_yaml *list, const char *source)
{
    struct ew_str texts[LIBRARIES_MAX];
    uint32_t count = 0;

    for (const struct ew_yaml *item = list->child; item && count < LIBRARIES_MAX; item = item->next)
        texts[count++] = item->text;
    ew_facts_set_strs(facts, key, texts, count, source);
}

// A scalar in quotes is text; others are a truth value, a number, or text.
static void set_scalar(struct ew_facts *facts, const char *key, const struct ew_yaml *node, const char *source)
{
    double number;

    if (!node->quoted && (ew_str_is(node->text, "true") || ew_str_is(node->text, "false")))
        ew_facts_set_bool(facts, key, ew_str_is(node->text, "true"), source);
    else if (!node->quoted && ew_str_to_double(node->text, &number))
        ew_facts_set_number(facts, key, number, source);
    else
        ew_facts_set_str(facts, key, node->text, source);
}

static void set_device(const struct ew_profile *profile, struct ew_facts *facts)
{
    static const struct {
        const char *figure, *fact;
        double scale;
    } figures[] = {{"compute_capability", "gpu_cc", 1},
                   {"memory_usable_mib", "gpu_mem_mib", 1},
                   {"sm_count", "gpu_sm_count", 1},
                   {"bandwidth_gb_s", "mem_bw_gbs", 1},
                   {"disk_gb_s", "disk_gbs", 1}};
    struct ew_str unified = ew_profile_text(profile, "unified", "");

    for (size_t i = 0; i < EW_COUNT_OF(figures); i++)
        if (figure(profile, figures[i].figure))
            ew_facts_set_number(facts, figures[i].fact, ew_profile_number(profile, figures[i].figure, 0), "profile");
    if (unified.len)
        ew_facts_set_bool(facts, "integrated", ew_str_is(unified, "true"), "profile");
    if (ew_str_is(unified, "true")) // then it is the host's memory too
        ew_facts_set_number(facts, "host_mem_mib", ew_profile_number(profile, "memory_usable_mib", 0), "profile");
    if (figure(profile, "compute_capability")) {
        ew_facts_set_str(facts, "gpu_name", profile->title, "profile");
        ew_facts_set_number(facts, "gpu_count", 1, "profile");
    }
}

void ew_profile_facts(const struct ew_profile *profile, struct ew_facts *facts)
{
    const struct ew_yaml *software = profile->software;

    ew_facts_set_str(facts, "profile", profile->id, "asked for");
    ew_facts_set_bool(facts, "env_known", false, "asked for");
    set_device(profile, facts);
    for (const struct ew_yaml *node = software ? software->child : NULL; node; node = node->next) {
        char key[64];

        if (ew_str_is(node->key, "source") || node->key.len >= sizeof(key))
            continue;
        snprintf(key, sizeof(key), "%.*s", (int)node->key.len, node->key.ptr);
        if (node->type == EW_YAML_LIST)
            set_list(facts, key, node, "profile");
        else if (node->type == EW_YAML_SCALAR)
            set_scalar(facts, key, node, "profile");
    }
    if (ew_facts_has_own(facts, "drv_cuda"))
        ew_facts_set_number(facts, "drv_cuda_major", (uint32_t)ew_facts_number(facts, "drv_cuda", 0) / 100, "profile");
}
