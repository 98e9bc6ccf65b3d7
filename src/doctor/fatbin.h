#pragma once
// The GPU code in a file, wherever it stands: fatbin containers, raw cubins, PTX text. Only headers are read,
// nothing is decompressed.
//
// Source of the layouts: the fatbin and cubin headers as public disassemblers describe them and as CUDA 13.0's
// tools write them. Libraries hide containers in sections of their own, so the whole file is searched and a hit is
// accepted only when its header is consistent.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum ew_image_kind { EW_IMAGE_PTX = 1, EW_IMAGE_CUBIN = 2, EW_IMAGE_LTO = 8 };

struct ew_image { // one distinct kind of image
    enum ew_image_kind kind;
    uint16_t sm;      // 87, 110, ...
    char suffix;      // 'a' (this GPU only), 'f' (this family), or 0
    bool zstd;        // needs a driver of CUDA 12.4 or newer
    uint16_t ptx_isa; // PTX: 10 * major + minor, e.g. 74
    bool is_bare;     // stands in the file by itself, not in a container: PTX text, a cubin
    uint32_t count;
};

#define EW_IMAGES_MAX 64      // distinct kinds in one file (libcufft, the richest known, has about 20)
#define EW_CONTAINERS_MAX 512 // distinct sets of them

struct ew_gpu_code {
    struct ew_image images[EW_IMAGES_MAX];
    uint32_t n_images;
    struct {
        uint64_t members; // bit i: images[i]
        uint32_t count;   // containers with exactly this set
    } containers[EW_CONTAINERS_MAX];
    uint32_t n_containers;    // distinct sets
    uint32_t container_count; // in all
    uint32_t empty_count;     // of these, with cubins that hold no code
    uint16_t toolkit;         // CUDA version of the newest cubin note seen, 1300 for 13.0; 0: unknown
    bool incomplete;          // more kinds or sets than fit: the counts are a lower bound
};

void ew_gpu_code_scan(struct ew_gpu_code *code, const unsigned char *bytes, uint64_t size);

struct ew_gpu_target {
    uint32_t cc;       // 10 * major + minor
    uint32_t drv_cuda; // 1300 for 13.0; 0: unknown, nothing is held against the file for the driver's sake
};

// Containers by what they offer the target.
struct ew_gpu_verdict {
    uint32_t total, sass, jit;    // all; with native code; without it but with PTX that the driver can compile
    bool only_tegra_unguaranteed; // native code only by the sm_80/86 rule on Orin
    bool blocked_a, blocked_f;    // code for this GPU's siblings exists that it may not run
    bool lto_only, zstd;
    uint32_t ptx_cuda; // CUDA version that the oldest suitable PTX needs, 0: none
};
struct ew_gpu_verdict ew_gpu_code_judge(const struct ew_gpu_code *code, struct ew_gpu_target target);

uint32_t ew_ptx_isa_cuda(uint32_t isa); // the CUDA version whose driver compiles PTX of this ISA: 74 -> 1140
