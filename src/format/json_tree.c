#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "base/map.h"
#include "format/json.h"
#include "format/mapfile.h"

#define NODES_BLOCK 64     // nodes taken from the arena at once
#define LINEAR_KEYS_MAX 8  // objects up to here are searched for repeated keys without a map

struct builder {
    struct ew_json_reader reader;
    struct ew_arena *arena;
    char *text;            // a copy of the document, into which the texts of the nodes are written, each where it stood
    struct ew_json *nodes; // the current block
    uint32_t n_nodes;      // left in it
    struct ew_str key;     // of the value that comes next
    uint32_t depth;
    struct { struct ew_json *node, *last; } open[EW_JSON_DEPTH_MAX];
};

static int no_memory(struct builder *b, struct ew_error *err)
{
    ew_fail(err, EW_ERR_MEMORY, "the JSON document of %zu bytes needs more memory than the %zu bytes allowed for it",
            b->reader.input.len, b->arena->limit);
    return EW_ERR_MEMORY;
}

static struct ew_json *new_node(struct builder *b)
{
    if (b->n_nodes == 0) {
        b->nodes = ew_arena_array(b->arena, NODES_BLOCK, sizeof(*b->nodes));
        if (!b->nodes)
            return NULL;
        b->n_nodes = NODES_BLOCK;
    }
    return &b->nodes[NODES_BLOCK - b->n_nodes--];
}

// The event's text in the copy, NUL-terminated: behind a string there is its quote, behind a number what the
// reader, which works on the original, has yet to read or the end.
static struct ew_str keep_text(struct builder *b, bool quoted)
{
    const struct ew_json_reader *r = &b->reader;
    char *place = b->text + r->start + (quoted ? 1 : 0);

    if (r->text.ptr == r->scratch.ptr && r->text.len)
        memcpy(place, r->text.ptr, r->text.len);
    place[r->text.len] = '\0';
    return (struct ew_str){place, r->text.len};
}

static void fill_scalar(struct builder *b, struct ew_json *node, int event)
{
    switch (event) {
    case EW_JSON_STRING:
        node->type = EW_JSON_T_STRING;
        node->text = keep_text(b, true);
        break;
    case EW_JSON_NUMBER:
        node->type = b->reader.is_integer ? EW_JSON_T_INT : EW_JSON_T_DOUBLE;
        node->text = keep_text(b, false);
        node->integer = b->reader.is_integer ? b->reader.integer : 0;
        node->number = b->reader.number;
        break;
    case EW_JSON_NULL:
        node->type = EW_JSON_T_NULL;
        break;
    default:
        node->type = EW_JSON_T_BOOL;
        node->boolean = event == EW_JSON_TRUE;
    }
}

static void attach(struct builder *b, struct ew_json *node)
{
    struct ew_json *parent = b->open[b->depth - 1].node, *last = b->open[b->depth - 1].last;

    node->key = b->key;
    b->key = (struct ew_str){0};
    if (last)
        last->next = node;
    else
        parent->child = node;
    parent->count++;
    b->open[b->depth - 1].last = node;
}

static bool few_and_distinct(const struct ew_json *object)
{
    if (object->count > LINEAR_KEYS_MAX)
        return false;
    for (const struct ew_json *a = object->child; a; a = a->next)
        for (const struct ew_json *b = a->next; b; b = b->next)
            if (ew_str_eq(a->key, b->key))
                return false;
    return true;
}

static int has_repeated_keys(const struct ew_json *object, bool *repeated)
{
    struct ew_map seen;
    int code = ew_map_init(&seen, object->count);

    *repeated = false;
    for (const struct ew_json *member = object->child; member && code == EW_OK && !*repeated; member = member->next)
        code = ew_map_put(&seen, member->key, 0, repeated);
    ew_map_fini(&seen);
    return code;
}

// Gives `first` the value of `later`, in the place of `first`.
static void replace_value(struct ew_json *first, const struct ew_json *later)
{
    const struct ew_json *next = first->next;

    *first = *later;
    first->next = next;
}

static int merge_repeated_keys(struct ew_json *object)
{
    struct ew_json **kept = ew_alloc_array(object->count, sizeof(struct ew_json *)), *member, *next;
    struct ew_map seen;
    uint32_t n_kept = 0, at;
    int code = ew_map_init(&seen, object->count);

    if (!kept)
        code = EW_ERR_MEMORY;
    for (member = (struct ew_json *)object->child; member && code == EW_OK; member = next) {
        next = (struct ew_json *)member->next; // the builder made these nodes, and made them writable
        if (ew_map_get(&seen, member->key, &at)) {
            replace_value(kept[at], member);
            kept[n_kept - 1]->next = next;
            continue;
        }
        code = ew_map_put(&seen, member->key, n_kept, NULL);
        kept[n_kept++] = member;
    }
    object->count = n_kept;
    ew_map_fini(&seen);
    ew_free(kept);
    return code;
}

static int end_container(struct builder *b, struct ew_error *err)
{
    struct ew_json *node = b->open[--b->depth].node;
    bool repeated = false;
    int code = EW_OK;

    if (node->type == EW_JSON_T_OBJECT && !few_and_distinct(node))
        code = has_repeated_keys(node, &repeated);
    if (repeated && code == EW_OK)
        code = merge_repeated_keys(node);
    return code == EW_OK ? EW_OK : no_memory(b, err);
}

static int add_value(struct builder *b, int event, const struct ew_json **root, struct ew_error *err)
{
    struct ew_json *node = new_node(b);

    if (!node)
        return no_memory(b, err);
    if (b->depth)
        attach(b, node);
    else
        *root = node;
    if (event != EW_JSON_OBJECT_BEGIN && event != EW_JSON_ARRAY_BEGIN) {
        fill_scalar(b, node, event);
        return EW_OK;
    }
    node->type = event == EW_JSON_OBJECT_BEGIN ? EW_JSON_T_OBJECT : EW_JSON_T_ARRAY;
    b->open[b->depth].node = node;
    b->open[b->depth++].last = NULL;
    return EW_OK;
}

static int build(struct builder *b, const struct ew_json **root, struct ew_error *err)
{
    int code = EW_OK;

    while (code == EW_OK) {
        int event = ew_json_next(&b->reader, err);

        switch (event) {
        case EW_JSON_END:
            return EW_OK;
        case EW_JSON_KEY:
            b->key = keep_text(b, true);
            break;
        case EW_JSON_OBJECT_END:
        case EW_JSON_ARRAY_END:
            code = end_container(b, err);
            break;
        default:
            code = event < 0 ? event : add_value(b, event, root, err);
        }
    }
    return code;
}

int ew_json_parse(struct ew_arena *arena, struct ew_str input, const struct ew_json **out, struct ew_error *err)
{
    struct builder b = {.arena = arena};
    const struct ew_json *root = NULL;
    int code;

    *out = NULL;
    if (input.len > UINT32_MAX) // so that no count can overflow
        return ew_fail(err, EW_ERR_LIMIT, "the JSON document of %zu bytes is larger than 4 GiB", input.len);
    ew_json_reader_init(&b.reader, input);
    b.text = ew_arena_copy(arena, input.ptr, input.len);
    code = b.text ? build(&b, &root, err) : no_memory(&b, err);
    ew_json_reader_fini(&b.reader);
    if (code == EW_OK)
        *out = root;
    return code;
}

int ew_json_parse_file(struct ew_arena *arena, const char *path, size_t max, const struct ew_json **out,
                       struct ew_error *err)
{
    size_t len;
    char *text;
    int code = ew_file_read(path, max, &text, &len, err);

    *out = NULL;
    if (code != EW_OK)
        return code;
    code = ew_file_check(path, text, len, err);
    if (code == EW_OK) {
        code = ew_json_parse(arena, (struct ew_str){text, len}, out, err);
        if (code != EW_OK)
            ew_fail_in(err, code, "%s", path);
    }
    ew_free(text);
    return code;
}

const struct ew_json *ew_json_get(const struct ew_json *object, const char *key)
{
    const struct ew_json *member = object && object->type == EW_JSON_T_OBJECT ? object->child : NULL;
    struct ew_str wanted = ew_str_of(key);

    while (member && !ew_str_eq(member->key, wanted))
        member = member->next;
    return member;
}

const struct ew_json *ew_json_at(const struct ew_json *array, uint32_t index)
{
    const struct ew_json *element = array && array->type == EW_JSON_T_ARRAY ? array->child : NULL;

    while (element && index--)
        element = element->next;
    return element;
}

bool ew_json_is_null(const struct ew_json *node)
{
    return !node || node->type == EW_JSON_T_NULL;
}

int64_t ew_json_int(const struct ew_json *node, int64_t fallback)
{
    if (node && node->type == EW_JSON_T_INT)
        return node->integer;
    if (node && node->type == EW_JSON_T_DOUBLE && node->number >= -0x1p63 && node->number < 0x1p63 &&
        node->number == trunc(node->number))
        return (int64_t)node->number;
    return fallback;
}

double ew_json_number(const struct ew_json *node, double fallback)
{
    return node && (node->type == EW_JSON_T_INT || node->type == EW_JSON_T_DOUBLE) ? node->number : fallback;
}

bool ew_json_bool(const struct ew_json *node, bool fallback)
{
    return node && node->type == EW_JSON_T_BOOL ? node->boolean : fallback;
}

struct ew_str ew_json_str(const struct ew_json *node, const char *fallback)
{
    return node && node->type == EW_JSON_T_STRING ? node->text : ew_str_of(fallback);
}
