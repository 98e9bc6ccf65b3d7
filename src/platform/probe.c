#include "platform/probe.h"

#include "base/assert.h"

const struct ew_probe ew_probes[] = {
    {"os", ew_probe_os},
    {"memory", ew_probe_memory},
    {"disk", ew_probe_disk},
    {"jetson", ew_probe_jetson},
    {"nvidia", ew_probe_nvidia},
    {"power", ew_probe_power},
    {"thermal", ew_probe_thermal},
    {"container", ew_probe_container},
    {0},
};

#define TAGS_MAX 16

struct tags {
    struct ew_str list[TAGS_MAX];
    uint32_t count;
};

static void tag(struct tags *tags, bool holds, const char *name)
{
    if (!holds)
        return;
    EW_ASSERT(tags->count < TAGS_MAX);
    tags->list[tags->count++] = ew_str_of(name);
}

static bool named(const struct ew_facts *facts, const char *part)
{
    return ew_str_find(ew_facts_str(facts, "gpu_name", ""), ew_str_of(part), 0) >= 0;
}

// The kinds of machine that rules may name in `on`.
static void set_tags(struct ew_facts *facts)
{
    struct ew_str soc = ew_facts_str(facts, "soc", ""), plat = ew_facts_str(facts, "plat", "");
    bool thor = ew_str_is(soc, "tegra264"), orin = ew_str_is(soc, "tegra234");
    bool gb10 = named(facts, "GB10") ||
                ew_str_find(ew_facts_str(facts, "product_name", ""), EW_STR("DGX Spark"), 0) >= 0;
    bool discrete = !thor && !orin && !gb10 &&
                    (ew_facts_number(facts, "gpu_count", 0) > 0 || ew_facts_get(facts, EW_STR("drv_ver")));
    bool sff = named(facts, "RTX PRO 4000") && named(facts, "SFF");
    struct tags tags = {0};

    tag(&tags, soc.len > 0, "jetson");
    tag(&tags, thor, "thor");
    tag(&tags, orin, "orin");
    tag(&tags, ew_str_is(plat, "thor_t4000"), "t4000");
    tag(&tags, discrete, "dgpu");
    tag(&tags, gb10, "gb10");
    tag(&tags, named(facts, "H200"), "h200");
    tag(&tags, named(facts, "RTX PRO 4000") && !sff, "rtxpro4000");
    tag(&tags, sff, "rtxpro4000sff");
    tag(&tags, ew_facts_bool(facts, "ctr_engine", false) || ew_facts_bool(facts, "in_container", false), "container");
    tag(&tags, ew_facts_bool(facts, "is_k8s", false), "k8s");
    tag(&tags, ew_facts_bool(facts, "is_k3s", false), "k3s");
    ew_facts_set_strs(facts, "platform_tags", tags.list, tags.count, "what was found");
}

void ew_probe_all(const char *root, struct ew_facts *facts)
{
    for (const struct ew_probe *probe = ew_probes; probe->name; probe++)
        probe->run(root, facts);
    ew_probe_derive(facts);
}

void ew_probe_derive(struct ew_facts *facts)
{
    ew_probe_nvidia_derive(facts);
    set_tags(facts);
}
