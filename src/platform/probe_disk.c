// The disks: what kind they are and what their link could carry at most. How fast they really read is measured
// elsewhere (doctor --selftest): nothing is read from them here.

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "platform/probe.h"
#include "platform/sysfile.h"

#define DISKS_MAX 32
#define TEXT_MAX 96

struct disks {
    char texts[DISKS_MAX][TEXT_MAX];
    uint32_t count;
    double link_gb_s; // of the fastest NVMe disk; 0: none tells
};

// Whole disks; partitions are no entries of /sys/block.
static const char *kind_of(const char *root, const char *name)
{
    char text[16];

    if (strncmp(name, "nvme", 4) == 0)
        return "NVMe";
    if (strncmp(name, "mmcblk", 6) == 0)
        return strstr(name, "boot") ? NULL : "eMMC or SD card";
    if (strncmp(name, "vd", 2) == 0 || strncmp(name, "xvd", 3) == 0)
        return "virtual";
    if (strncmp(name, "sd", 2) != 0)
        return NULL; // loop, ram, dm, md, zram, optical
    if (ew_sysfile_readf(root, text, sizeof(text), "/sys/block/%s/queue/rotational", name) <= 0)
        return "disk";
    return text[0] == '1' ? "rotating disk" : "SSD";
}

// "16.0 GT/s PCIe" times lanes; from 8 GT/s on 128 of 130 bits are data, before that 8 of 10.
static double link_gb_s(const char *root, const char *name)
{
    char speed[64], width[16];
    double gt_s;
    uint64_t lanes;

    if (ew_sysfile_readf(root, speed, sizeof(speed), "/sys/block/%s/device/device/current_link_speed", name) <= 0 ||
        ew_sysfile_readf(root, width, sizeof(width), "/sys/block/%s/device/device/current_link_width", name) <= 0 ||
        !ew_sysfile_number(width, &lanes) || lanes > 32)
        return 0;
    gt_s = strtod(speed, NULL);
    return gt_s > 0 && gt_s < 1000 ? gt_s * (double)lanes / 8 * (gt_s >= 8 ? 128.0 / 130 : 0.8) : 0;
}

static void add(struct disks *disks, const char *root, const char *name)
{
    const char *kind = kind_of(root, name);
    double link;

    if (!kind || disks->count == DISKS_MAX || strlen(name) > 32)
        return;
    link = link_gb_s(root, name);
    if (link > 0)
        snprintf(disks->texts[disks->count++], TEXT_MAX, "%.32s (%s, link %.1f GB/s)", name, kind, link);
    else
        snprintf(disks->texts[disks->count++], TEXT_MAX, "%.32s (%s)", name, kind);
    disks->link_gb_s = EW_MAX(disks->link_gb_s, link);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

void ew_probe_disk(const char *root, struct ew_facts *facts)
{
    struct disks disks = {0};
    struct ew_str list[DISKS_MAX];
    struct dirent *entry;
    char path[4096];
    DIR *dir;

    snprintf(path, sizeof(path), "%s/sys/block", root ? root : "");
    dir = opendir(path);
    while (dir && (entry = readdir(dir)))
        add(&disks, root, entry->d_name);
    if (dir)
        closedir(dir);
    if (!disks.count)
        return;
    qsort(disks.texts, disks.count, TEXT_MAX, by_text);
    for (uint32_t i = 0; i < disks.count; i++)
        list[i] = ew_str_of(disks.texts[i]);
    ew_facts_set_strs(facts, "disks", list, disks.count, "/sys/block");
    if (disks.link_gb_s > 0)
        ew_facts_set_number(facts, "disk_link_gbs", (double)(int)(disks.link_gb_s * 10 + 0.5) / 10,
                            "PCIe link of the fastest NVMe disk");
}
