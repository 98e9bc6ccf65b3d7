#include "format/yaml_tree.h"

#include <yaml.h>

struct reader {
    yaml_parser_t parser;
    struct ew_arena *arena;
    const char *name;
    struct ew_error *err;
    // Open containers, outermost first; depth 0 is the document.
    struct ew_yaml *open[EW_YAML_DEPTH_MAX];
    struct ew_yaml *last[EW_YAML_DEPTH_MAX]; // newest child of each
    uint32_t depth;
    struct ew_yaml *root;
    struct ew_str key; // the pending key of the innermost map; ptr NULL: none
};

static int fail_at(struct reader *r, size_t line, const char *what)
{
    return ew_fail(r->err, EW_ERR_FORMAT, "%s:%zu: %s", r->name, line + 1, what);
}

static struct ew_yaml *new_node(struct reader *r, enum ew_yaml_type type, const yaml_event_t *event)
{
    struct ew_yaml *node = ew_arena_alloc(r->arena, sizeof(*node));

    if (!node) {
        ew_fail_memory(r->err, sizeof(*node), "a YAML node");
        return NULL;
    }
    node->type = type;
    node->line = (uint32_t)event->start_mark.line + 1;
    return node;
}

// Hangs the node into the innermost open container.
static int attach(struct reader *r, struct ew_yaml *node, const yaml_event_t *event)
{
    struct ew_yaml *parent = r->depth ? r->open[r->depth - 1] : NULL;

    if (!parent) {
        r->root = node;
        return 0;
    }
    if (parent->type == EW_YAML_MAP) {
        for (const struct ew_yaml *twin = parent->child; twin; twin = twin->next)
            if (ew_str_eq(twin->key, r->key))
                return fail_at(r, event->start_mark.line, "the key stands here a second time");
        node->key = r->key;
        r->key = (struct ew_str){0};
    }
    if (r->last[r->depth - 1])
        r->last[r->depth - 1]->next = node;
    else
        parent->child = node;
    r->last[r->depth - 1] = node;
    parent->count++;
    return 0;
}

static int open_container(struct reader *r, enum ew_yaml_type type, const yaml_event_t *event)
{
    struct ew_yaml *node;
    int rc;

    if (r->depth == EW_YAML_DEPTH_MAX)
        return fail_at(r, event->start_mark.line, "nested too deeply");
    if (r->depth && r->open[r->depth - 1]->type == EW_YAML_MAP && !r->key.ptr)
        return fail_at(r, event->start_mark.line, "a key must be a plain word");
    node = new_node(r, type, event);
    if (!node)
        return EW_ERR_MEMORY;
    rc = attach(r, node, event);
    if (rc)
        return rc;
    r->open[r->depth] = node;
    r->last[r->depth] = NULL;
    r->depth++;
    return 0;
}

static int add_scalar(struct reader *r, const yaml_event_t *event)
{
    size_t len = event->data.scalar.length;
    char *text = ew_arena_copy(r->arena, (const char *)event->data.scalar.value, len);
    struct ew_yaml *node;

    if (!text)
        return ew_fail_memory(r->err, len, "a YAML value");
    if (r->depth && r->open[r->depth - 1]->type == EW_YAML_MAP && !r->key.ptr) {
        r->key = (struct ew_str){text, len};
        return 0;
    }
    node = new_node(r, EW_YAML_SCALAR, event);
    if (!node)
        return EW_ERR_MEMORY;
    node->text = (struct ew_str){text, len};
    node->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    return attach(r, node, event);
}

static bool has_anchor_or_tag(const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return event->data.scalar.anchor || event->data.scalar.tag;
    case YAML_SEQUENCE_START_EVENT:
        return event->data.sequence_start.anchor || event->data.sequence_start.tag;
    case YAML_MAPPING_START_EVENT:
        return event->data.mapping_start.anchor || event->data.mapping_start.tag;
    default:
        return event->type == YAML_ALIAS_EVENT;
    }
}

static int take_event(struct reader *r, const yaml_event_t *event)
{
    if (has_anchor_or_tag(event))
        return fail_at(r, event->start_mark.line, "anchors, aliases and tags have no place in these tables");
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        return r->root ? fail_at(r, event->start_mark.line, "only one document may stand here") : 0;
    case YAML_SCALAR_EVENT:
        return add_scalar(r, event);
    case YAML_SEQUENCE_START_EVENT:
        return open_container(r, EW_YAML_LIST, event);
    case YAML_MAPPING_START_EVENT:
        return open_container(r, EW_YAML_MAP, event);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        r->depth--;
        return 0;
    default:
        return 0;
    }
}

static int read_events(struct reader *r)
{
    bool ended = false;
    int rc = 0;

    while (!rc && !ended) {
        yaml_event_t event;

        if (!yaml_parser_parse(&r->parser, &event))
            return fail_at(r, r->parser.problem_mark.line, r->parser.problem ? r->parser.problem : "not YAML");
        ended = event.type == YAML_STREAM_END_EVENT;
        rc = take_event(r, &event);
        yaml_event_delete(&event);
    }
    return rc;
}

int ew_yaml_parse(struct ew_arena *arena, const char *name, struct ew_str text, const struct ew_yaml **out,
                  struct ew_error *err)
{
    struct reader r = {.arena = arena, .name = name, .err = err};
    int rc;

    *out = NULL;
    if (!yaml_parser_initialize(&r.parser))
        return ew_fail_memory(err, sizeof(r.parser), "the YAML parser");
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text.ptr, text.len);
    rc = read_events(&r);
    yaml_parser_delete(&r.parser);
    if (!rc && !r.root)
        rc = ew_fail(err, EW_ERR_FORMAT, "%s: holds nothing", name);
    if (!rc)
        *out = r.root;
    return rc;
}

const struct ew_yaml *ew_yaml_get(const struct ew_yaml *map, const char *key)
{
    if (!map || map->type != EW_YAML_MAP)
        return NULL;
    for (const struct ew_yaml *node = map->child; node; node = node->next)
        if (ew_str_is(node->key, key))
            return node;
    return NULL;
}
