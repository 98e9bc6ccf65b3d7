#include "model/family.h"

#include <math.h>
#include <stdio.h>

#include "base/assert.h"
#include "base/data.h"
#include "model/field.h"

#define FAMILIES_BYTES_MAX ((size_t)8 << 20)

// SmolLM3 before layer_types were written down: windows, where in use, are on the layers without positions.
static void window_where_no_rope(struct ew_shape *shape)
{
    for (uint32_t i = 0; i < shape->common.n_layers && !shape->layers_given; i++)
        if (!shape->layers[i].no_rope)
            shape->layers[i].mixer = EW_MIXER_FULL;
}

// Gemma 2's 27b divides by the width that each head has in the residual stream. GGUF files do not say so, but its 46
// layers do.
static void gemma2_scale(struct ew_shape *shape)
{
    if (shape->common.n_layers == 46 && !(shape->attention_scale > 0))
        shape->attention_scale = sqrtf((float)shape->common.n_heads / (float)shape->common.width);
}

// The same of Gemma 3's 27b and its 62 layers.
static void gemma3_scale(struct ew_shape *shape)
{
    if (shape->common.n_layers == 62 && !(shape->attention_scale > 0))
        shape->attention_scale = sqrtf((float)shape->common.n_heads / (float)shape->common.width);
}

static const struct {
    const char *name;
    enum ew_family_storage flag;
} g_storages[] = {
    {"grouped_qkv", EW_FAMILY_GROUPED_QKV},
    {"transposed", EW_FAMILY_TRANSPOSED},
    {"transposed_experts", EW_FAMILY_TRANSPOSED_EXPERTS},
    {"paired_experts", EW_FAMILY_PAIRED_EXPERTS},
    {"log_decay", EW_FAMILY_LOG_DECAY},
};

static const struct {
    const char *name;
    ew_family_hook hook;
} g_hooks[] = {
    {"gemma2_scale", gemma2_scale},
    {"gemma3_scale", gemma3_scale},
    {"window_where_no_rope", window_where_no_rope},
};

struct loader {
    struct ew_families *families;
    struct ew_family *family; // being read
    struct ew_error *err;
};

static int fail_at(const struct loader *l, const struct ew_yaml *node, const char *what)
{
    return ew_fail(l->err, EW_ERR_FORMAT, "%s:%u: " EW_STR_FMT ": %s", l->family->file, node->line,
                   EW_STR_ARG(node->key), what);
}

static int check_names(const struct loader *l, const struct ew_yaml *list)
{
    if (list->type != EW_YAML_LIST)
        return fail_at(l, list, "a list of names was expected");
    for (const struct ew_yaml *item = list->child; item; item = item->next)
        if (item->type != EW_YAML_SCALAR)
            return fail_at(l, list, "a list of names was expected");
    return 0;
}

static int check_tensors(const struct loader *l, const struct ew_yaml *map)
{
    if (map->type != EW_YAML_MAP)
        return fail_at(l, map, "names were expected, each with the file's name");
    for (const struct ew_yaml *item = map->child; item; item = item->next)
        if (item->type != EW_YAML_SCALAR && check_names(l, item))
            return EW_ERR_FORMAT;
    return 0;
}

// 0 where there is no such way.
static uint32_t storage_flag(struct ew_str name)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_storages); i++)
        if (ew_str_is(name, g_storages[i].name))
            return g_storages[i].flag;
    return 0;
}

static int check_storage(const struct loader *l, const struct ew_yaml *list)
{
    int rc = check_names(l, list);

    for (const struct ew_yaml *item = list->child; item && !rc; item = item->next)
        if (!storage_flag(item->text))
            rc = fail_at(l, list, "there is no such way of storing matrices");
    return rc;
}

static int check_roots(const struct loader *l, const struct ew_yaml *list)
{
    int rc = list->type == EW_YAML_LIST ? 0 : fail_at(l, list, "a list of roots was expected");

    for (const struct ew_yaml *item = rc ? NULL : list->child; item && !rc; item = item->next)
        rc = check_tensors(l, item);
    return rc;
}

static int check_refusals(const struct loader *l, const struct ew_yaml *map)
{
    if (map->type != EW_YAML_MAP)
        return fail_at(l, map, "keys were expected, each with the value that is refused");
    for (const struct ew_yaml *item = map->child; item; item = item->next)
        if (ew_value_of_yaml(item).kind != EW_VALUE_BOOL)
            return fail_at(l, item, "true or false was expected");
    return 0;
}

// Every member must be a field of the shape; with constants, one that takes the value.
static int check_fields(const struct loader *l, const struct ew_yaml *map, bool constants)
{
    struct ew_shape *scratch;
    int rc = 0;

    if (map->type != EW_YAML_MAP)
        return fail_at(l, map, "fields were expected");
    scratch = ew_alloc(sizeof(*scratch));
    if (!scratch)
        return ew_fail_memory(l->err, sizeof(*scratch), "a shape");
    for (const struct ew_yaml *item = map->child; item && !rc; item = item->next) {
        const struct ew_field *field = ew_field_find(item->key);

        if (!field) {
            rc = fail_at(l, item, "there is no such field");
        } else if (constants) {
            struct ew_value value = ew_value_of_yaml(item);

            if (value.kind == EW_VALUE_ABSENT || ew_field_set(scratch, field, &value, "it", NULL))
                rc = fail_at(l, item, "the field does not take this value");
        } else if (item->type == EW_YAML_LIST) {
            rc = check_names(l, item);
        }
    }
    ew_free(scratch);
    return rc;
}

static int read_side(const struct loader *l, struct ew_family_side *side, const struct ew_yaml *map)
{
    int rc = 0;

    if (map->type != EW_YAML_MAP)
        return fail_at(l, map, "sections were expected");
    for (const struct ew_yaml *node = map->child; node && !rc; node = node->next) {
        if (ew_str_is(node->key, "model_types"))
            rc = check_names(l, side->model_types = node);
        else if (ew_str_is(node->key, "architectures"))
            rc = check_names(l, side->architectures = node);
        else if (ew_str_is(node->key, "shape"))
            rc = check_fields(l, side->shape = node, true);
        else if (ew_str_is(node->key, "keys"))
            rc = check_fields(l, side->keys = node, false);
        else if (ew_str_is(node->key, "present"))
            rc = check_fields(l, side->present = node, false);
        else if (ew_str_is(node->key, "absent"))
            rc = check_fields(l, side->absent = node, false);
        else if (ew_str_is(node->key, "tensors"))
            rc = check_tensors(l, side->tensors = node);
        else if (ew_str_is(node->key, "roots"))
            rc = check_roots(l, side->roots = node);
        else if (ew_str_is(node->key, "refuse"))
            rc = check_refusals(l, side->refuse = node);
        else if (ew_str_is(node->key, "storage"))
            rc = check_storage(l, side->storage = node);
        else
            rc = fail_at(l, node, "there is no such section");
    }
    return rc;
}

static int read_hook(const struct loader *l, const struct ew_yaml *node)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_hooks); i++)
        if (ew_str_is(node->text, g_hooks[i].name)) {
            l->family->hook = g_hooks[i].hook;
            return 0;
        }
    return fail_at(l, node, "there is no such hook");
}

static int read_section(const struct loader *l, const struct ew_yaml *node)
{
    struct ew_family *family = l->family;

    if (ew_str_is(node->key, "shape"))
        return check_fields(l, family->shape = node, true);
    if (ew_str_is(node->key, "hf"))
        return read_side(l, &family->sides[EW_FAMILY_HF], node);
    if (ew_str_is(node->key, "gguf"))
        return read_side(l, &family->sides[EW_FAMILY_GGUF], node);
    if (node->type != EW_YAML_SCALAR)
        return fail_at(l, node, "there is no such section");
    if (ew_str_is(node->key, "family"))
        family->name = node->text.ptr;
    else if (ew_str_is(node->key, "abstract"))
        family->is_abstract = ew_str_is(node->text, "true");
    else if (ew_str_is(node->key, "extends"))
        family->extends = node;
    else if (ew_str_is(node->key, "hook"))
        return read_hook(l, node);
    else
        return fail_at(l, node, "there is no such section");
    return 0;
}

static int read_family(struct loader *l, const struct ew_yaml *map)
{
    struct ew_family family = {.file = l->family->file};

    if (l->families->count == EW_FAMILIES_MAX)
        return fail_at(l, map, "there are too many families");
    *l->family = family;
    if (map->type != EW_YAML_MAP)
        return fail_at(l, map, "a family was expected");
    for (const struct ew_yaml *node = map->child; node; node = node->next) {
        int rc = read_section(l, node);

        if (rc)
            return rc;
    }
    if (!l->family->name || strlen(l->family->name) >= sizeof(((struct ew_model_shape *)0)->arch))
        return fail_at(l, map, "the family has no name, or one that is too long");
    l->families->list[l->families->count++] = *l->family;
    return 0;
}

// A file holds one family, or a list of them.
static int read_file(struct ew_families *families, const struct ew_data_file *file, struct ew_error *err)
{
    struct ew_family family = {.file = file->path};
    struct loader l = {.families = families, .family = &family, .err = err};
    const struct ew_yaml *root;
    int rc = ew_yaml_parse(&families->arena, file->path, file->text, &root, err);

    if (rc)
        return rc;
    if (root->type != EW_YAML_LIST)
        return read_family(&l, root);
    for (const struct ew_yaml *node = root->child; node && !rc; node = node->next)
        rc = read_family(&l, node);
    return rc;
}

static int find_parent(struct ew_families *families, struct ew_family *family, struct ew_error *err)
{
    struct loader l = {.families = families, .family = family, .err = err};

    for (uint32_t i = 0; i < families->count; i++)
        if (ew_str_is(family->extends->text, families->list[i].name))
            family->parent = &families->list[i];
    return family->parent ? 0 : fail_at(&l, family->extends, "there is no family of this name");
}

// Once all are read, so that files may come in any order.
static int find_parents(struct ew_families *families, struct ew_error *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < families->count && !rc; i++)
        if (families->list[i].extends)
            rc = find_parent(families, &families->list[i], err);
    for (uint32_t i = 0; i < families->count && !rc; i++) {
        struct loader l = {.families = families, .family = &families->list[i], .err = err};
        uint32_t chain = 0;

        for (const struct ew_family *family = l.family; family && chain <= EW_FAMILY_CHAIN_MAX; family = family->parent)
            chain++;
        if (chain > EW_FAMILY_CHAIN_MAX)
            rc = fail_at(&l, l.family->extends, "families extend each other too often, or in a circle");
    }
    return rc;
}

int ew_families_parse(struct ew_families *families, const struct ew_data_file *files, struct ew_error *err)
{
    int rc = 0;

    families->count = 0;
    ew_arena_init(&families->arena, FAMILIES_BYTES_MAX);
    for (; files->path && !rc; files++)
        if (ew_str_starts(ew_str_of(files->path), "families/"))
            rc = read_file(families, files, err);
    if (!rc)
        rc = find_parents(families, err);
    if (rc)
        ew_families_free(families);
    return rc;
}

int ew_families_load(struct ew_families *families, struct ew_error *err)
{
    return ew_families_parse(families, ew_data_files, err);
}

void ew_families_free(struct ew_families *families)
{
    ew_arena_fini(&families->arena);
    families->count = 0;
}

static bool list_has(const struct ew_yaml *list, struct ew_str name)
{
    for (const struct ew_yaml *item = list ? list->child : NULL; item; item = item->next)
        if (ew_str_eq(item->text, name))
            return true;
    return false;
}

const struct ew_family *ew_family_of_model_type(const struct ew_families *families, struct ew_str model_type)
{
    for (uint32_t i = 0; i < families->count; i++)
        if (list_has(families->list[i].sides[EW_FAMILY_HF].model_types, model_type))
            return &families->list[i];
    return NULL;
}

bool ew_family_has_architecture(const struct ew_family *family, enum ew_family_format format,
                                struct ew_str architecture)
{
    return list_has(family->sides[format].architectures, architecture);
}

const struct ew_family *ew_family_of_architecture(const struct ew_families *families, enum ew_family_format format,
                                                  struct ew_str architecture)
{
    for (uint32_t i = 0; i < families->count; i++)
        if (ew_family_has_architecture(&families->list[i], format, architecture))
            return &families->list[i];
    return NULL;
}

const struct ew_yaml *ew_family_key(const struct ew_family *family, enum ew_family_format format, const char *field)
{
    for (; family; family = family->parent) {
        const struct ew_yaml *node = ew_yaml_get(family->sides[format].keys, field);

        if (node)
            return node;
    }
    return NULL;
}

const struct ew_yaml *ew_family_constant(const struct ew_family *family, enum ew_family_format format,
                                         const char *field)
{
    for (; family; family = family->parent) {
        const struct ew_yaml *node = ew_yaml_get(family->sides[format].shape, field);

        if (!node)
            node = ew_yaml_get(family->shape, field);
        if (node)
            return node;
    }
    return NULL;
}

// "blk.12.attn_q" -> "blk.N.attn_q" and 12; names without a layer stay as they are.
static void generic_name(const char *canonical, char *out, size_t size, unsigned *layer)
{
    char rest[128];

    *layer = 0;
    if (sscanf(canonical, "blk.%u.%127s", layer, rest) == 2)
        snprintf(out, size, "blk.N.%s", rest);
    else
        snprintf(out, size, "%s", canonical);
}

// What the table has for the generic name; canonical names are GGUF's, so that GGUF needs no entry but for whole names.
static struct ew_str mapped_name(const struct ew_family *family, enum ew_family_format format, const char *generic,
                                 uint32_t choice)
{
    for (; family; family = family->parent) {
        const struct ew_yaml *node = ew_yaml_get(family->sides[format].tensors, generic);

        if (node && node->type == EW_YAML_LIST)
            for (node = node->child; node && choice; node = node->next)
                choice--;
        else if (!node)
            continue;
        return node && choice == 0 ? node->text : (struct ew_str){0};
    }
    if (format != EW_FAMILY_GGUF || choice || strstr(generic, ".weight") || strstr(generic, ".bias"))
        return (struct ew_str){0};
    return ew_str_of(generic);
}

static bool is_component(struct ew_str name, size_t at, char what)
{
    return name.ptr[at] == what && (at == 0 || name.ptr[at - 1] == '.') &&
           (at + 1 == name.len || name.ptr[at + 1] == '.');
}

bool ew_family_tensor(const struct ew_family *family, enum ew_family_format format, const char *canonical,
                      uint32_t part, uint32_t choice, char *out, size_t size)
{
    char generic[160];
    unsigned layer;
    struct ew_str name;
    size_t len = 0;

    generic_name(canonical, generic, sizeof(generic), &layer);
    name = mapped_name(family, format, generic, choice);
    for (size_t i = 0; i < name.len && len + 12 < size; i++) {
        if (is_component(name, i, 'N'))
            len += (size_t)snprintf(out + len, size - len, "%u", layer);
        else if (is_component(name, i, 'H') || is_component(name, i, 'X'))
            len += (size_t)snprintf(out + len, size - len, "%u", part);
        else
            out[len++] = name.ptr[i];
    }
    out[len] = '\0';
    return name.len > 0 && len + 12 < size;
}

bool ew_family_is_stack(const struct ew_family *family, enum ew_family_format format, const char *canonical)
{
    char generic[160];
    unsigned layer;
    struct ew_str name;

    generic_name(canonical, generic, sizeof(generic), &layer);
    name = mapped_name(family, format, generic, 0);
    for (size_t i = 0; i < name.len; i++)
        if (is_component(name, i, 'H') || is_component(name, i, 'X'))
            return true;
    return false;
}

uint32_t ew_family_storage(const struct ew_family *family, enum ew_family_format format)
{
    uint32_t flags = 0;

    while (family && !family->sides[format].storage)
        family = family->parent;
    for (const struct ew_yaml *item = family ? family->sides[format].storage->child : NULL; item; item = item->next)
        flags |= storage_flag(item->text);
    return flags;
}

bool ew_family_rooted_name(const struct ew_yaml *root, struct ew_str name, char *out, size_t size)
{
    const char *beginning = "";
    int len;

    for (const struct ew_yaml *item = root ? root->child : NULL; item; item = item->next)
        if (ew_str_starts(name, item->key.ptr) && (name.len == item->key.len || name.ptr[item->key.len] == '.')) {
            beginning = item->text.ptr;
            name = (struct ew_str){name.ptr + item->key.len, name.len - item->key.len};
            break;
        }
    len = snprintf(out, size, "%s" EW_STR_FMT, beginning, EW_STR_ARG(name));
    return len > 0 && (size_t)len < size;
}

const struct ew_tensor *ew_family_find_rooted(const struct ew_yaml *root, const struct ew_tensors *tensors,
                                              struct ew_str name)
{
    char text[256];

    return ew_family_rooted_name(root, name, text, sizeof(text)) ? ew_tensors_find(tensors, ew_str_of(text)) : NULL;
}

const struct ew_yaml *ew_family_root(const struct ew_family *family, enum ew_family_format format,
                                     const struct ew_tensors *tensors)
{
    const struct ew_family *at = family;
    char stem[128], name[160];

    while (at && !at->sides[format].roots)
        at = at->parent;
    if (!at || !ew_family_tensor(family, format, "token_embd", 0, 0, stem, sizeof(stem)))
        return NULL;
    snprintf(name, sizeof(name), "%s.weight", stem);
    for (const struct ew_yaml *root = at->sides[format].roots->child; root; root = root->next)
        if (ew_family_find_rooted(root, tensors, ew_str_of(name)))
            return root;
    return NULL;
}
