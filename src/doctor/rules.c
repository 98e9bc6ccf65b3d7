#include "doctor/rules.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/data.h"
#include "format/mapfile.h"
#include "format/yaml_tree.h"

#define RULES_ARENA_MAX ((size_t)16 << 20)
#define FINDINGS_ARENA_MAX ((size_t)256 << 20) // a site-packages tree can have some ten thousand findings
#define RULE_FILE_BYTES_MAX ((size_t)1 << 20)
#define RULES_MAX 10000
#define TEXT_MAX 4096 // of a message with its holes filled

static const char *const g_severities[] = {"ok", "warn", "fail"};
static const char *const g_risks[] = {"low", "medium", "high"}; // by severity, where a rule does not say
static const char *const g_subjects[] = {"machine", "file", "package", "image", "plan", "request"};

const char *ew_severity_name(enum ew_severity severity)
{
    return g_severities[severity];
}

const char *ew_subject_name(enum ew_subject subject)
{
    return g_subjects[subject];
}

struct loader {
    struct ew_rules *rules;
    const char *file;
    struct ew_error *err;
};

static int bad(struct loader *loader, const struct ew_yaml *node, const char *what)
{
    return ew_fail(loader->err, EW_ERR_FORMAT, "%s:%u: %s", loader->file, node->line, what);
}

static int text_of(struct loader *loader, const struct ew_yaml *node, const char *key, bool needed, struct ew_str *out)
{
    const struct ew_yaml *value = ew_yaml_get(node, key);

    *out = EW_STR("");
    if (!value && !needed)
        return EW_OK;
    if (!value || value->type != EW_YAML_SCALAR || value->text.len == 0)
        return ew_fail(loader->err, EW_ERR_FORMAT, "%s:%u: the rule has no %s", loader->file, node->line, key);
    *out = value->text;
    return EW_OK;
}

static int choice_of(struct loader *loader, const struct ew_yaml *node, const char *key, const char *const *names,
                     uint32_t n, uint32_t *out)
{
    struct ew_str text;
    int code = text_of(loader, node, key, true, &text);

    if (code != EW_OK)
        return code;
    for (*out = 0; *out < n; (*out)++)
        if (ew_str_is(text, names[*out]))
            return EW_OK;
    return ew_fail(loader->err, EW_ERR_FORMAT, "%s:%u: \"" EW_STR_FMT "\" is no %s", loader->file, node->line,
                   EW_STR_ARG(text), key);
}

static int check_keys(struct loader *loader, const struct ew_yaml *node)
{
    static const char *const keys[] = {"id", "subject", "on", "when", "severity",
                                       "message", "remedy", "source", "build", "risk"};

    if (node->type != EW_YAML_MAP)
        return bad(loader, node, "a rule must be a mapping");
    for (const struct ew_yaml *child = node->child; child; child = child->next) {
        bool known = false;

        for (size_t i = 0; i < EW_COUNT_OF(keys); i++)
            known |= ew_str_is(child->key, keys[i]);
        if (!known)
            return ew_fail(loader->err, EW_ERR_FORMAT, "%s:%u: rules have no key \"" EW_STR_FMT "\"", loader->file,
                           child->line, EW_STR_ARG(child->key));
    }
    return EW_OK;
}

static int read_rule(struct loader *loader, const struct ew_yaml *node, struct ew_rule *rule)
{
    const struct {
        const char *key;
        bool needed;
        struct ew_str *out;
    } texts[] = {
        {"id", true, &rule->id},           {"on", false, &rule->on},         {"when", true, &rule->when_text},
        {"message", true, &rule->message}, {"remedy", false, &rule->remedy}, {"source", true, &rule->source},
        {"build", false, &rule->build},    {"risk", false, &rule->risk},
    };
    uint32_t subject, severity;
    int code = check_keys(loader, node);

    for (size_t i = 0; i < EW_COUNT_OF(texts) && code == EW_OK; i++)
        code = text_of(loader, node, texts[i].key, texts[i].needed, texts[i].out);
    if (code == EW_OK)
        code = choice_of(loader, node, "subject", g_subjects, EW_SUBJECT_COUNT, &subject);
    if (code == EW_OK)
        code = choice_of(loader, node, "severity", g_severities, 3, &severity);
    if (code != EW_OK)
        return code;
    rule->subject = (enum ew_subject)subject;
    rule->severity = (enum ew_severity)severity;
    if (!rule->risk.len)
        rule->risk = ew_str_of(g_risks[severity]);
    if (rule->severity != EW_SEVERITY_OK && rule->remedy.len == 0)
        return bad(loader, node, "a rule that warns or fails needs a remedy");
    code = ew_expr_parse(&loader->rules->arena, rule->when_text, &rule->when, loader->err);
    return code == EW_OK ? EW_OK : ew_fail_in(loader->err, code, "%s:%u", loader->file, node->line);
}

// A rule whose id is known already replaces the earlier one.
static int store(struct loader *loader, const struct ew_rule *rule)
{
    struct ew_rules *rules = loader->rules;
    struct ew_rule *known = (struct ew_rule *)ew_rules_find(rules, rule->id), *grown;

    if (known) {
        *known = *rule;
        return EW_OK;
    }
    if (rules->count == rules->cap) {
        if (rules->count == RULES_MAX)
            return ew_fail(loader->err, EW_ERR_LIMIT, "%s: there are more than %d rules", loader->file, RULES_MAX);
        grown = ew_realloc_array(rules->list, rules->cap * 2 + 128, sizeof(*grown));
        if (!grown)
            return ew_fail_memory(loader->err, rules->cap * 2 * sizeof(*grown), "rules");
        rules->list = grown;
        rules->cap = rules->cap * 2 + 128;
    }
    rules->list[rules->count++] = *rule;
    return EW_OK;
}

static int load_text(struct loader *loader, struct ew_str text)
{
    const struct ew_yaml *root;
    int code = ew_yaml_parse(&loader->rules->arena, loader->file, text, &root, loader->err);

    if (code != EW_OK)
        return code;
    if (root->type != EW_YAML_LIST)
        return bad(loader, root, "a rule file is a list of rules");
    for (const struct ew_yaml *node = root->child; node && code == EW_OK; node = node->next) {
        struct ew_rule rule = {.file = ew_str_of(loader->file)};

        code = read_rule(loader, node, &rule);
        if (code == EW_OK)
            code = store(loader, &rule);
    }
    return code;
}

static int load_built_in(struct ew_rules *rules, struct ew_error *err)
{
    int code = EW_OK;

    for (const struct ew_data_file *file = ew_data_files; file->path && code == EW_OK; file++)
        if (ew_str_starts(ew_str_of(file->path), "rules/"))
            code = load_text(&(struct loader){rules, file->path, err}, file->text);
    return code;
}

static int load_user_file(struct ew_rules *rules, const char *dir, const char *name, struct ew_error *err)
{
    size_t size = strlen(dir) + strlen(name) + 2, len;
    char *path = ew_arena_alloc(&rules->arena, size), *text;
    int code;

    if (!path)
        return ew_fail_memory(err, size, "rules");
    snprintf(path, size, "%s/%s", dir, name);
    code = ew_file_read(path, RULE_FILE_BYTES_MAX, &text, &len, err);
    if (code != EW_OK)
        return code;
    code = load_text(&(struct loader){rules, path, err}, (struct ew_str){text, len});
    ew_free(text);
    return code;
}

#define USER_FILES_MAX 256

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// In the order of their names, so that which rule replaces which does not depend on the file system.
static int load_user_dir(struct ew_rules *rules, const char *dir, struct ew_error *err)
{
    const char *names[USER_FILES_MAX];
    struct dirent *entry;
    size_t count = 0;
    int code = EW_OK;
    DIR *opened = opendir(dir);

    if (!opened)
        return ew_fail_errno(err, EW_ERR_IO, "cannot read the rules directory %s", dir);
    while (count < USER_FILES_MAX && (entry = readdir(opened))) {
        if (!ew_str_ends(ew_str_of(entry->d_name), ".yaml"))
            continue;
        names[count] = ew_arena_copy(&rules->arena, entry->d_name, strlen(entry->d_name));
        count += names[count] != NULL;
    }
    closedir(opened);
    if (count)
        qsort(names, count, sizeof(*names), by_name);
    for (size_t i = 0; i < count && code == EW_OK; i++)
        code = load_user_file(rules, dir, names[i], err);
    return code;
}

int ew_rules_load(struct ew_rules *rules, const char *user_dir, struct ew_error *err)
{
    int code;

    *rules = (struct ew_rules){0};
    ew_arena_init(&rules->arena, RULES_ARENA_MAX);
    code = load_built_in(rules, err);
    if (code == EW_OK && user_dir)
        code = load_user_dir(rules, user_dir, err);
    if (code != EW_OK)
        ew_rules_fini(rules);
    return code;
}

int ew_rules_parse(struct ew_rules *rules, const char *file, struct ew_str text, struct ew_error *err)
{
    int code;

    *rules = (struct ew_rules){0};
    ew_arena_init(&rules->arena, RULES_ARENA_MAX);
    code = load_text(&(struct loader){rules, file, err}, text);
    if (code != EW_OK)
        ew_rules_fini(rules);
    return code;
}

void ew_rules_fini(struct ew_rules *rules)
{
    ew_free(rules->list);
    ew_arena_fini(&rules->arena);
    *rules = (struct ew_rules){0};
}

const struct ew_rule *ew_rules_find(const struct ew_rules *rules, struct ew_str id)
{
    for (uint32_t i = 0; i < rules->count; i++)
        if (ew_str_eq(rules->list[i].id, id))
            return &rules->list[i];
    return NULL;
}

// ---- applying ----

void ew_findings_init(struct ew_findings *findings)
{
    *findings = (struct ew_findings){0};
    ew_arena_init(&findings->arena, FINDINGS_ARENA_MAX);
}

void ew_findings_fini(struct ew_findings *findings)
{
    ew_free(findings->list);
    ew_free(findings->unchecked);
    ew_arena_fini(&findings->arena);
    *findings = (struct ew_findings){0};
}

static bool concerns(const struct ew_rule *rule, const struct ew_facts *facts)
{
    const struct ew_fact *tags = ew_facts_get(facts, EW_STR("platform_tags"));

    if (rule->on.len == 0)
        return true;
    for (uint32_t i = 0; tags && tags->type == EW_FACT_STRINGS && i < tags->count; i++)
        if (ew_str_eq(tags->texts[i], rule->on))
            return true;
    return false;
}

static void append_hole(struct ew_buf *out, struct ew_str hole, const struct ew_facts *facts)
{
    const char *colon = memchr(hole.ptr, ':', hole.len);
    struct ew_str name = {hole.ptr, colon ? (size_t)(colon - hole.ptr) : hole.len};
    struct ew_str style = colon ? (struct ew_str){colon + 1, hole.len - name.len - 1} : EW_STR("");
    const struct ew_fact *fact = ew_facts_get(facts, name);
    long number = fact && fact->type == EW_FACT_NUMBER ? (long)fact->number : 0;

    if (!fact)
        ew_buf_append_char(out, '?');
    else if (ew_str_is(style, "cuda") && fact->type == EW_FACT_NUMBER)
        ew_buf_printf(out, "%ld.%ld", number / 100, number % 100 / 10);
    else if (ew_str_is(style, "py") && fact->type == EW_FACT_NUMBER)
        ew_buf_printf(out, "%ld.%ld", number / 100, number % 100);
    else if (ew_str_is(style, "cc") && fact->type == EW_FACT_NUMBER)
        ew_buf_printf(out, "%ld.%ld", number / 10, number % 10);
    else
        ew_fact_print(out, fact);
}

void ew_rule_fill(struct ew_buf *out, struct ew_str text, const struct ew_facts *facts)
{
    size_t at = 0;

    while (at < text.len) {
        const char *open = memchr(text.ptr + at, '{', text.len - at);
        const char *close = open ? memchr(open, '}', text.len - (size_t)(open - text.ptr)) : NULL;

        if (!close) {
            ew_buf_append(out, text.ptr + at, text.len - at);
            return;
        }
        ew_buf_append(out, text.ptr + at, (size_t)(open - text.ptr) - at);
        append_hole(out, (struct ew_str){open + 1, (size_t)(close - open) - 1}, facts);
        at = (size_t)(close - text.ptr) + 1;
    }
}

static struct ew_str filled(struct ew_findings *out, struct ew_str text, const struct ew_facts *facts)
{
    struct ew_buf buf;
    char *copy;
    size_t len;

    ew_buf_init(&buf, TEXT_MAX);
    ew_rule_fill(&buf, text, facts); // a text that is too long is cut, not lost
    len = buf.len;
    copy = ew_arena_copy(&out->arena, buf.ptr ? buf.ptr : "", len);
    ew_buf_fini(&buf);
    out->failed |= !copy;
    return copy ? (struct ew_str){copy, len} : EW_STR("");
}

static void *room(struct ew_findings *out, void **list, uint32_t count, uint32_t *cap, size_t size)
{
    void *grown;

    if (count < *cap)
        return (char *)*list + count * size;
    grown = ew_realloc_array(*list, (size_t)*cap * 2 + 64, size);
    if (!grown) {
        out->failed = true;
        return NULL;
    }
    *list = grown;
    *cap = *cap * 2 + 64;
    return (char *)grown + count * size;
}

static struct ew_str keep(struct ew_findings *out, struct ew_str text)
{
    char *copy = ew_arena_copy(&out->arena, text.ptr, text.len);

    out->failed |= !copy;
    return copy ? (struct ew_str){copy, text.len} : EW_STR("");
}

static void add_finding(struct ew_findings *out, const struct ew_rule *rule, const struct ew_facts *facts,
                        struct ew_str about)
{
    struct ew_finding *finding = room(out, (void **)&out->list, out->count, &out->cap, sizeof(*finding));

    if (!finding)
        return;
    *finding = (struct ew_finding){.rule = rule,
                                   .about = keep(out, about),
                                   .message = filled(out, rule->message, facts),
                                   .remedy = filled(out, rule->remedy, facts)};
    out->count++;
    out->n_by_severity[rule->severity]++;
}

static void add_unchecked(struct ew_findings *out, const struct ew_rule *rule, struct ew_str missing)
{
    struct ew_unchecked *unchecked;

    for (uint32_t i = 0; i < out->n_unchecked; i++)
        if (out->unchecked[i].rule == rule && ew_str_eq(out->unchecked[i].missing, missing)) {
            out->unchecked[i].count++;
            return;
        }
    unchecked = room(out, (void **)&out->unchecked, out->n_unchecked, &out->unchecked_cap, sizeof(*unchecked));
    if (!unchecked)
        return;
    *unchecked = (struct ew_unchecked){rule, missing, 1};
    out->n_unchecked++;
}

void ew_rules_apply(const struct ew_rules *rules, enum ew_subject subject, const struct ew_facts *facts,
                    struct ew_str about, struct ew_findings *out)
{
    for (uint32_t i = 0; i < rules->count; i++) {
        const struct ew_rule *rule = &rules->list[i];
        struct ew_str missing;
        enum ew_truth truth;

        if (rule->subject != subject || !concerns(rule, facts))
            continue;
        truth = ew_expr_eval(rule->when, facts, &missing);
        if (truth == EW_TRUE)
            add_finding(out, rule, facts, about);
        else if (truth == EW_UNKNOWN)
            add_unchecked(out, rule, missing);
    }
}

static int by_subject(const void *a, const void *b)
{
    const struct ew_finding *x = a, *y = b;

    return ew_str_compare(x->about, y->about);
}

static int by_weight(const void *a, const void *b)
{
    const struct ew_finding *x = a, *y = b;
    int order = (int)y->worst - (int)x->worst;

    if (order == 0)
        order = ew_str_compare(x->about, y->about);
    if (order == 0)
        order = (int)y->rule->severity - (int)x->rule->severity;
    return order ? order : ew_str_compare(x->rule->id, y->rule->id);
}

void ew_findings_sort(struct ew_findings *findings)
{
    struct ew_finding *list = findings->list;

    if (!findings->count)
        return;
    qsort(list, findings->count, sizeof(*list), by_subject);
    for (uint32_t begin = 0, end; begin < findings->count; begin = end) {
        enum ew_severity worst = EW_SEVERITY_OK;

        for (end = begin; end < findings->count && ew_str_eq(list[end].about, list[begin].about); end++)
            worst = EW_MAX(worst, list[end].rule->severity);
        for (uint32_t i = begin; i < end; i++)
            list[i].worst = worst;
    }
    qsort(list, findings->count, sizeof(*list), by_weight);
}
