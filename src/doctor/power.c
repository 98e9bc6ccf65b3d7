#include "doctor/power.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "platform/probe.h"

#define LABEL_FMT "  %-15s"

static bool known(const struct ew_facts *facts, const char *key)
{
    return ew_facts_get(facts, ew_str_of(key)) != NULL;
}

static void append(struct ew_buf *out, const struct ew_facts *facts, const char *text)
{
    ew_rule_fill(out, ew_str_of(text), facts);
}

// Lines whose facts are known; the first fact decides.
static const struct {
    const char *label, *fact, *text;
} g_lines[] = {
    {"power mode", "pow_name", "{pow_name} (id {pow_id}) of {pow_modes}"},
    {"default mode", "pow_default_id", "id {pow_default_id}"},
    {"cap", "pow_cap_w", "{pow_cap_w} W, by the mode's name"},
    {"draw", "power_draw_w", "{power_draw_w} W"},
    {"GPU draws", "gpu_power_w", "{gpu_power_w} W"},
    {"GPU limit", "gpu_power_limit_w", "{gpu_power_limit_w} W"},
    {"GPU clock", "gpu_clock_mhz", "{gpu_clock_mhz} MHz"},
    {"GPU clock max", "gpu_clock_max_mhz", "{gpu_clock_max_mhz} MHz"},
    {"memory clock", "emc_clock_mhz", "{emc_clock_mhz} MHz"},
    {"clocks locked", "clk_locked", "{clk_locked}"},
    {"GPU at", "gpu_temp_c", "{gpu_temp_c} C"},
    {"GPU slows at", "gpu_slowdown_c", "{gpu_slowdown_c} C"},
    {"nearest trip", "trip_c", "{temp_zone} at {temp_c} C, trip point {trip_c} C"},
    {"over-current", "oc_alarm", "{oc_alarm} {oc_rail}"},
};

// "rail_vdd_gpu_mw" is VDD_GPU.
static void append_rail(struct ew_buf *out, const struct ew_fact *fact)
{
    char name[64];
    size_t len = EW_MIN(fact->key.len - strlen("rail_") - strlen("_mw"), sizeof(name) - 1);

    for (size_t i = 0; i < len; i++) {
        char c = fact->key.ptr[strlen("rail_") + i];

        name[i] = c >= 'a' && c <= 'z' ? (char)(c - 32) : c;
    }
    ew_buf_printf(out, "%.*s %.1f W", (int)len, name, fact->number / 1000);
}

static bool is_rail(const struct ew_fact *fact)
{
    return ew_str_starts(fact->key, "rail_") && ew_str_ends(fact->key, "_mw") && fact->type == EW_FACT_NUMBER;
}

static bool is_zone(const struct ew_fact *fact)
{
    return ew_str_starts(fact->key, "temp_") && ew_str_ends(fact->key, "_c") && fact->key.len > strlen("temp__c") &&
           fact->type == EW_FACT_NUMBER;
}

static void append_list(const struct ew_facts *facts, struct ew_buf *out, const char *label,
                        bool (*wanted)(const struct ew_fact *), void (*one)(struct ew_buf *, const struct ew_fact *))
{
    bool any = false;

    for (uint32_t i = 0; i < facts->count; i++) {
        if (!wanted(&facts->list[i]))
            continue;
        if (any)
            ew_buf_append_str(out, EW_STR(", "));
        else
            ew_buf_printf(out, LABEL_FMT, label);
        any = true;
        one(out, &facts->list[i]);
    }
    if (any)
        ew_buf_append_char(out, '\n');
}

static void append_zone(struct ew_buf *out, const struct ew_fact *fact)
{
    int len = (int)(fact->key.len - strlen("temp_") - strlen("_c"));

    ew_buf_printf(out, "%.*s %.1f C", len, fact->key.ptr + strlen("temp_"), fact->number);
}

bool ew_power_throttles(const struct ew_facts *facts, struct ew_buf *why)
{
    const struct ew_fact *limits = ew_facts_get(facts, EW_STR("clock_limits"));

    if (ew_facts_bool(facts, "throttle_active", false))
        ew_buf_append_str(why, ew_facts_str(facts, "throttle_which", ""));
    else if (limits && limits->count)
        ew_fact_print(why, limits);
    else
        return false;
    return true;
}

// No interface tells when throttling began; some tell for how long there has been any.
static void append_times(const struct ew_facts *facts, struct ew_buf *out)
{
    static const struct {
        const char *label, *fact, *what;
    } times[] = {{"by heat", "throttled_heat_s", "heat"}, {"by power", "throttled_power_s", "the power limit"}};

    for (size_t i = 0; i < EW_COUNT_OF(times); i++)
        if (known(facts, times[i].fact))
            ew_buf_printf(out, LABEL_FMT "%.1f s held down by %s since the driver or the box was started\n",
                          times[i].label, ew_facts_number(facts, times[i].fact, 0), times[i].what);
}

static void append_throttling(const struct ew_facts *facts, struct ew_buf *out)
{
    if (known(facts, "throttle_active") || known(facts, "clock_limits")) {
        ew_buf_printf(out, LABEL_FMT, "throttling");
        if (!ew_power_throttles(facts, out))
            ew_buf_append_str(out, EW_STR("no"));
        ew_buf_append_char(out, '\n');
    }
    append_times(facts, out);
}

static void append_advice(const struct ew_findings *findings, struct ew_buf *out)
{
    for (uint32_t i = 0; i < findings->count; i++) {
        const struct ew_finding *finding = &findings->list[i];

        if (!ew_str_starts(finding->rule->id, "PERF-") || finding->rule->severity == EW_SEVERITY_OK)
            continue;
        ew_buf_printf(out, "\n%s  " EW_STR_FMT "  " EW_STR_FMT "\n      -> " EW_STR_FMT "\n",
                      ew_severity_name(finding->rule->severity), EW_STR_ARG(finding->rule->id),
                      EW_STR_ARG(finding->message), EW_STR_ARG(finding->remedy));
    }
}

void ew_power_report(const struct ew_doctor *doctor, struct ew_buf *out)
{
    const struct ew_facts *facts = &doctor->facts;
    bool any = false;

    for (size_t i = 0; i < EW_COUNT_OF(g_lines); i++) {
        if (!known(facts, g_lines[i].fact))
            continue;
        any = true;
        ew_buf_printf(out, LABEL_FMT, g_lines[i].label);
        append(out, facts, g_lines[i].text);
        ew_buf_append_char(out, '\n');
    }
    append_list(facts, out, "rails", is_rail, append_rail);
    append_list(facts, out, "temperatures", is_zone, append_zone);
    append_throttling(facts, out);
    if (!any)
        ew_buf_append_str(out,
                          EW_STR("This machine tells nothing about power: no rails, no thermal zones, no NVML.\n"));
    append_advice(&doctor->findings, out);
}

void ew_power_json(const struct ew_facts *facts, struct ew_buf *out)
{
    static const char *const prefixes[] = {
        "pow_",     "power_",    "rail_",     "temp_",    "trip_",        "throttle", "oc_",
        "gpu_clock", "gpu_power", "gpu_temp", "gpu_slow", "clk_", "clock_", "emc_"};
    bool any = false;

    ew_buf_append_char(out, '{');
    for (uint32_t i = 0; i < facts->count; i++)
        for (size_t k = 0; k < EW_COUNT_OF(prefixes); k++) {
            if (!ew_str_starts(facts->list[i].key, prefixes[k]))
                continue;
            ew_buf_append_str(out, any ? EW_STR(", ") : EW_STR(""));
            ew_buf_append_json(out, facts->list[i].key);
            ew_buf_append_str(out, EW_STR(": "));
            ew_fact_json(out, &facts->list[i]);
            any = true;
            break;
        }
    ew_buf_append_str(out, EW_STR("}\n"));
}

void ew_power_read(const char *root, struct ew_facts *facts)
{
    ew_probe_gpu_readings(root, facts);
    ew_probe_power(root, facts);
    ew_probe_thermal(root, facts);
}

void ew_power_line(const struct ew_facts *facts, struct ew_buf *out)
{
    static const struct {
        const char *fact, *text;
    } parts[] = {
        {"power_draw_w", "{power_draw_w} W"},
        {"gpu_power_w", "GPU {gpu_power_w} W"},
        {"gpu_clock_mhz", "GPU {gpu_clock_mhz} MHz"},
        {"gpu_temp_c", "GPU {gpu_temp_c} C"},
        {"temp_c", "{temp_zone} {temp_c} C of {trip_c} C"},
    };
    size_t before = out->len;

    for (size_t i = 0; i < EW_COUNT_OF(parts); i++) {
        if (!known(facts, parts[i].fact))
            continue;
        ew_buf_append_str(out, out->len > before ? EW_STR("  ") : EW_STR(""));
        append(out, facts, parts[i].text);
    }
    for (uint32_t i = 0; i < facts->count; i++)
        if (is_rail(&facts->list[i])) {
            ew_buf_append_str(out, EW_STR("  "));
            append_rail(out, &facts->list[i]);
        }
}
