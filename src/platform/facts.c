#include "platform/facts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FACTS_ARENA_MAX ((size_t)16 << 20) // a machine has some hundred facts, a scanned file some dozens

int ew_facts_init(struct ew_facts *facts, const struct ew_facts *parent, struct ew_error *err)
{
    *facts = (struct ew_facts){.parent = parent};
    ew_arena_init(&facts->arena, FACTS_ARENA_MAX);
    if (ew_map_init(&facts->by_key, 64) != EW_OK)
        return ew_fail_memory(err, 64, "facts");
    return EW_OK;
}

void ew_facts_fini(struct ew_facts *facts)
{
    ew_map_fini(&facts->by_key);
    ew_arena_fini(&facts->arena);
    ew_free(facts->list);
    *facts = (struct ew_facts){0};
}

static struct ew_str copy(struct ew_facts *facts, struct ew_str text)
{
    char *bytes = ew_arena_copy(&facts->arena, text.ptr, text.len);

    facts->failed |= !bytes;
    return bytes ? (struct ew_str){bytes, text.len} : (struct ew_str){"", 0};
}

static struct ew_fact *append(struct ew_facts *facts, struct ew_str key)
{
    struct ew_fact *grown;

    if (facts->count == facts->cap) {
        grown = ew_realloc_array(facts->list, (size_t)facts->cap * 2 + 32, sizeof(*grown));
        if (!grown)
            return NULL;
        facts->list = grown;
        facts->cap = facts->cap * 2 + 32;
    }
    key = copy(facts, key);
    if (facts->failed || ew_map_put(&facts->by_key, key, facts->count, NULL) != EW_OK)
        return NULL;
    facts->list[facts->count] = (struct ew_fact){.key = key};
    return &facts->list[facts->count++];
}

static void set(struct ew_facts *facts, const char *name, struct ew_fact value, const char *source)
{
    struct ew_str key = ew_str_of(name);
    struct ew_fact *fact;
    uint32_t index;

    fact = ew_map_get(&facts->by_key, key, &index) ? &facts->list[index] : append(facts, key);
    if (!fact) {
        facts->failed = true;
        return;
    }
    value.key = fact->key;
    value.source = copy(facts, ew_str_of(source ? source : ""));
    *fact = value;
}

void ew_facts_set_bool(struct ew_facts *facts, const char *key, bool value, const char *source)
{
    set(facts, key, (struct ew_fact){.type = EW_FACT_BOOL, .boolean = value}, source);
}

void ew_facts_set_number(struct ew_facts *facts, const char *key, double value, const char *source)
{
    set(facts, key, (struct ew_fact){.type = EW_FACT_NUMBER, .number = value}, source);
}

void ew_facts_set_str(struct ew_facts *facts, const char *key, struct ew_str value, const char *source)
{
    set(facts, key, (struct ew_fact){.type = EW_FACT_STRING, .text = copy(facts, value)}, source);
}

void ew_facts_set_numbers(struct ew_facts *facts, const char *key, const double *values, uint32_t count,
                          const char *source)
{
    double *copied = ew_arena_array(&facts->arena, count, sizeof(*copied));

    if (!copied) {
        facts->failed = true;
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        copied[i] = values[i];
    set(facts, key, (struct ew_fact){.type = EW_FACT_NUMBERS, .numbers = copied, .count = count}, source);
}

void ew_facts_set_strs(struct ew_facts *facts, const char *key, const struct ew_str *values, uint32_t count,
                       const char *source)
{
    struct ew_str *copied = ew_arena_array(&facts->arena, count, sizeof(*copied));

    if (!copied) {
        facts->failed = true;
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        copied[i] = copy(facts, values[i]);
    set(facts, key, (struct ew_fact){.type = EW_FACT_STRINGS, .texts = copied, .count = count}, source);
}

const struct ew_fact *ew_facts_get(const struct ew_facts *facts, struct ew_str key)
{
    uint32_t index;

    for (; facts; facts = facts->parent)
        if (ew_map_get(&facts->by_key, key, &index))
            return facts->list[index].type == EW_FACT_UNKNOWN ? NULL : &facts->list[index];
    return NULL;
}

bool ew_facts_has_own(const struct ew_facts *facts, const char *key)
{
    uint32_t index;

    return ew_map_get(&facts->by_key, ew_str_of(key), &index);
}

double ew_facts_number(const struct ew_facts *facts, const char *key, double fallback)
{
    const struct ew_fact *fact = ew_facts_get(facts, ew_str_of(key));

    return fact && fact->type == EW_FACT_NUMBER ? fact->number : fallback;
}

bool ew_facts_bool(const struct ew_facts *facts, const char *key, bool fallback)
{
    const struct ew_fact *fact = ew_facts_get(facts, ew_str_of(key));

    return fact && fact->type == EW_FACT_BOOL ? fact->boolean : fallback;
}

struct ew_str ew_facts_str(const struct ew_facts *facts, const char *key, const char *fallback)
{
    const struct ew_fact *fact = ew_facts_get(facts, ew_str_of(key));

    return fact && fact->type == EW_FACT_STRING ? fact->text : ew_str_of(fallback);
}

static void parse_line(struct ew_facts *facts, char *line, const char *source)
{
    char *value = strchr(line, '=');

    if (!value || !value[1] || value[2] != ':')
        return;
    *value++ = '\0';
    if (value[0] == 'n')
        ew_facts_set_number(facts, line, strtod(value + 2, NULL), source);
    else if (value[0] == 'b')
        ew_facts_set_bool(facts, line, value[2] == '1', source);
    else if (value[0] == 's')
        ew_facts_set_str(facts, line, ew_str_of(value + 2), source);
}

void ew_facts_parse_lines(struct ew_facts *facts, char *text, const char *source)
{
    for (char *line = text; line;) {
        char *end = strchr(line, '\n');

        if (end)
            *end = '\0';
        parse_line(facts, line, source);
        line = end ? end + 1 : NULL;
    }
}

static void print_number(struct ew_buf *out, double number)
{
    if (number == floor(number) && fabs(number) < 0x1p53)
        ew_buf_printf(out, "%lld", (long long)number);
    else
        ew_buf_printf(out, "%.6g", number);
}

void ew_fact_print(struct ew_buf *out, const struct ew_fact *fact)
{
    switch (fact->type) {
    case EW_FACT_UNKNOWN:
        ew_buf_append_str(out, EW_STR("unknown"));
        break;
    case EW_FACT_BOOL:
        ew_buf_append_str(out, fact->boolean ? EW_STR("yes") : EW_STR("no"));
        break;
    case EW_FACT_NUMBER:
        print_number(out, fact->number);
        break;
    case EW_FACT_STRING:
        ew_buf_append_str(out, fact->text);
        break;
    case EW_FACT_NUMBERS:
    case EW_FACT_STRINGS:
        if (fact->count == 0)
            ew_buf_append_str(out, EW_STR("none"));
        for (uint32_t i = 0; i < fact->count; i++) {
            ew_buf_append_str(out, i ? EW_STR(", ") : EW_STR(""));
            if (fact->type == EW_FACT_NUMBERS)
                print_number(out, fact->numbers[i]);
            else
                ew_buf_append_str(out, fact->texts[i]);
        }
        break;
    }
}

void ew_fact_json(struct ew_buf *out, const struct ew_fact *fact)
{
    switch (fact->type) {
    case EW_FACT_UNKNOWN:
        ew_buf_append_str(out, EW_STR("null"));
        break;
    case EW_FACT_BOOL:
        ew_buf_append_str(out, fact->boolean ? EW_STR("true") : EW_STR("false"));
        break;
    case EW_FACT_NUMBER:
        print_number(out, fact->number);
        break;
    case EW_FACT_STRING:
        ew_buf_append_json(out, fact->text);
        break;
    case EW_FACT_NUMBERS:
    case EW_FACT_STRINGS:
        ew_buf_append_char(out, '[');
        for (uint32_t i = 0; i < fact->count; i++) {
            ew_buf_append_str(out, i ? EW_STR(", ") : EW_STR(""));
            if (fact->type == EW_FACT_NUMBERS)
                print_number(out, fact->numbers[i]);
            else
                ew_buf_append_json(out, fact->texts[i]);
        }
        ew_buf_append_char(out, ']');
        break;
    }
}
