#pragma once
// One GPU: its context, stream, memory and kernels. Every driver call is checked; what fails becomes a sentence.
//
// A context belongs to the threads that made it current: ew_cuda_enter stands at the beginning of whatever another
// thread may call.

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "platform/cuda_driver.h"

#define EW_CUDA_SPANS_MAX 4096

// The kernels, in the order of the table in cuda_device.c.
enum ew_cuda_kernel {
    EW_CUDA_EMBED, EW_CUDA_POSITION, EW_CUDA_NORM, EW_CUDA_ROPE_TABLE, EW_CUDA_ROPE, EW_CUDA_ACT, EW_CUDA_GLU,
    EW_CUDA_ADD, EW_CUDA_SCALE, EW_CUDA_SOFTCAP, EW_CUDA_GATHER, EW_CUDA_GATHER_MEAN, EW_CUDA_QUANTISE,
    EW_CUDA_LINEAR_F32, EW_CUDA_LINEAR_F16_1, EW_CUDA_LINEAR_F16_8, EW_CUDA_LINEAR_BF16_1, EW_CUDA_LINEAR_BF16_8,
    EW_CUDA_LINEAR_I8_1, EW_CUDA_LINEAR_I8_8, EW_CUDA_LINEAR_U4_1, EW_CUDA_LINEAR_U4_8, EW_CUDA_LINEAR_U4_MIN_1,
    EW_CUDA_LINEAR_U4_MIN_8, EW_CUDA_LINEAR_ANY,
    EW_CUDA_SOME_F16_16, EW_CUDA_SOME_F16_24, EW_CUDA_SOME_F16_32, EW_CUDA_SOME_F16_64,
    EW_CUDA_SOME_BF16_16, EW_CUDA_SOME_BF16_24, EW_CUDA_SOME_BF16_32, EW_CUDA_SOME_BF16_64,
    EW_CUDA_SOME_I8_16, EW_CUDA_SOME_I8_24, EW_CUDA_SOME_I8_32, EW_CUDA_SOME_I8_64,
    EW_CUDA_SOME_U4_16, EW_CUDA_SOME_U4_24, EW_CUDA_SOME_U4_32, EW_CUDA_SOME_U4_64,
    EW_CUDA_SOME_U4_MIN_16, EW_CUDA_SOME_U4_MIN_24, EW_CUDA_SOME_U4_MIN_64,
    EW_CUDA_SOME_F8_16, EW_CUDA_SOME_F8_24, EW_CUDA_SOME_F8_32, EW_CUDA_SOME_F8_64,
    EW_CUDA_NARROW_F16, EW_CUDA_NARROW_BF16, EW_CUDA_NARROW_F8, EW_CUDA_NORM_F16,
    EW_CUDA_NORM_BF16, EW_CUDA_NORM_F8, EW_CUDA_FORM_F8,
    EW_CUDA_EXPAND_I8, EW_CUDA_EXPAND_U4, EW_CUDA_EXPAND_U4_MIN, EW_CUDA_EXPAND_ANY,
    EW_CUDA_JOIN_SUMS, EW_CUDA_GEMM_F16, EW_CUDA_GEMM_BF16,
    EW_CUDA_APPEND, EW_CUDA_ATTENTION_1, EW_CUDA_ATTENTION_4, EW_CUDA_ATTENTION_8, EW_CUDA_ATTENTION_JOIN,
    EW_CUDA_FLASH_F16_64, EW_CUDA_FLASH_F16_96, EW_CUDA_FLASH_F16_128, EW_CUDA_FLASH_F16_256,
    EW_CUDA_FLASH_F8_64, EW_CUDA_FLASH_F8_96, EW_CUDA_FLASH_F8_128, EW_CUDA_FLASH_F8_256,
    EW_CUDA_FLASH_I8_64, EW_CUDA_FLASH_I8_96, EW_CUDA_FLASH_I8_128, EW_CUDA_FLASH_I8_256,
    EW_CUDA_WGMMA_F16_256, EW_CUDA_WGMMA_F16_128, EW_CUDA_WGMMA_BF16_256, EW_CUDA_WGMMA_BF16_128,
    EW_CUDA_WGMMA_F16_GATED, EW_CUDA_WGMMA_BF16_GATED, EW_CUDA_WGMMA_F8, EW_CUDA_WGMMA_F8_GATED,
    EW_CUDA_WGMMA_I8_64, EW_CUDA_WGMMA_I8_128, EW_CUDA_WGMMA_I8_64_GATED, EW_CUDA_WGMMA_I8_128_GATED,
    EW_CUDA_WGMMA_U4_64, EW_CUDA_WGMMA_U4_128, EW_CUDA_WGMMA_U4_64_GATED, EW_CUDA_WGMMA_U4_128_GATED,
    EW_CUDA_WGMMA_TABLE_64, EW_CUDA_WGMMA_TABLE_128, EW_CUDA_WGMMA_TABLE_64_GATED, EW_CUDA_WGMMA_TABLE_128_GATED,
    EW_CUDA_WGMMA_TABLE_16_64, EW_CUDA_WGMMA_TABLE_16_128,
    EW_CUDA_WGMMA_TABLE_16_64_GATED, EW_CUDA_WGMMA_TABLE_16_128_GATED,
    EW_CUDA_WGMMA_U5_64, EW_CUDA_WGMMA_U5_128, EW_CUDA_WGMMA_U5_64_GATED, EW_CUDA_WGMMA_U5_128_GATED,
    EW_CUDA_WGMMA_U6_64, EW_CUDA_WGMMA_U6_128, EW_CUDA_WGMMA_U6_64_GATED, EW_CUDA_WGMMA_U6_128_GATED,
    EW_CUDA_WCODED_JOIN, EW_CUDA_NARROW_MIXED, EW_CUDA_NORM_MIXED,
    EW_CUDA_GEMM_F8,
    EW_CUDA_HEADS, EW_CUDA_ATTENTION_LATENT, EW_CUDA_ATTENTION_LATENT_16,
    EW_CUDA_VECTOR_U4, EW_CUDA_VECTOR_I8, EW_CUDA_VECTOR_F8, EW_CUDA_VECTOR_HALF,
    EW_CUDA_VECTOR_TABLE, EW_CUDA_VECTOR_TABLE_16, EW_CUDA_VECTOR_U5, EW_CUDA_VECTOR_U6,
    EW_CUDA_VECTOR_U4_SCORED, EW_CUDA_VECTOR_I8_SCORED, EW_CUDA_VECTOR_F8_SCORED, // in the same order
    EW_CUDA_VECTOR_HALF_SCORED, EW_CUDA_VECTOR_TABLE_SCORED, EW_CUDA_VECTOR_TABLE_16_SCORED,
    EW_CUDA_VECTOR_U5_SCORED, EW_CUDA_VECTOR_U6_SCORED,
    EW_CUDA_DECODE_F16_64, EW_CUDA_DECODE_F16_96, EW_CUDA_DECODE_F16_128, EW_CUDA_DECODE_F16_256,
    EW_CUDA_DECODE_F8_64, EW_CUDA_DECODE_F8_96, EW_CUDA_DECODE_F8_128, EW_CUDA_DECODE_F8_256,
    EW_CUDA_DECODE_I8_64, EW_CUDA_DECODE_I8_96, EW_CUDA_DECODE_I8_128, EW_CUDA_DECODE_I8_256,
    EW_CUDA_ROUTE, EW_CUDA_SORT_PAIRS, EW_CUDA_COMBINE,
    EW_CUDA_EXPERTS_F32, EW_CUDA_EXPERTS_F16, EW_CUDA_EXPERTS_BF16, EW_CUDA_EXPERTS_I8, EW_CUDA_EXPERTS_U4,
    EW_CUDA_EXPERTS_U4_MIN, EW_CUDA_EXPERTS_ANY,
    EW_CUDA_EXPERTS_F16_32, EW_CUDA_EXPERTS_BF16_32, EW_CUDA_EXPERTS_I8_32, EW_CUDA_EXPERTS_U4_32,
    EW_CUDA_EXPERTS_U4_MIN_32, EW_CUDA_EXPERTS_ANY_32,
    EW_CUDA_PICK_ADJUST, EW_CUDA_PICK_MAX, EW_CUDA_PICK_WEIGH, EW_CUDA_PICK_GATHER, EW_CUDA_PICK_DRAW,
    EW_CUDA_CHOSEN_F16, EW_CUDA_CHOSEN_BF16, EW_CUDA_CHOSEN_I8, EW_CUDA_CHOSEN_U4, EW_CUDA_CHOSEN_U4_MIN,
    EW_CUDA_CHOSEN_F8, EW_CUDA_CHOSEN_TABLE, EW_CUDA_CHOSEN_NV4, EW_CUDA_CHOSEN_TABLE_16, EW_CUDA_CHOSEN_U5,
    EW_CUDA_CHOSEN_U5_MIN, EW_CUDA_CHOSEN_U6, EW_CUDA_SHOW_SCORES, EW_CUDA_TAKE_SCORES,
    EW_CUDA_LAY_ROUTER,
    EW_CUDA_PICK_COLUMNS, EW_CUDA_CONV, EW_CUDA_CONV_ADVANCE, EW_CUDA_SCAN_64, EW_CUDA_SCAN_128, EW_CUDA_SCAN_256,
    EW_CUDA_READ_ALL, EW_CUDA_MULTIPLY_TILES,
    EW_CUDA_FEW_STAGE, EW_CUDA_FEW_F16_1, EW_CUDA_FEW_F16_2, EW_CUDA_FEW_F16_3, EW_CUDA_FEW_F16_4,
    EW_CUDA_FEW_BF16_1, EW_CUDA_FEW_BF16_2, EW_CUDA_FEW_BF16_3, EW_CUDA_FEW_BF16_4,
    EW_CUDA_FEW_I8_1, EW_CUDA_FEW_I8_2, EW_CUDA_FEW_I8_3, EW_CUDA_FEW_I8_4,
    EW_CUDA_FEW_U4_1, EW_CUDA_FEW_U4_2, EW_CUDA_FEW_U4_3, EW_CUDA_FEW_U4_4,
    EW_CUDA_FEW_F8_1, EW_CUDA_FEW_F8_2, EW_CUDA_FEW_F8_3, EW_CUDA_FEW_F8_4,
    EW_CUDA_FEW_TABLE_1, EW_CUDA_FEW_TABLE_2, EW_CUDA_FEW_TABLE_3, EW_CUDA_FEW_TABLE_4,
    EW_CUDA_FEW_TABLE_16_1, EW_CUDA_FEW_TABLE_16_2, EW_CUDA_FEW_TABLE_16_3, EW_CUDA_FEW_TABLE_16_4,
    EW_CUDA_FEW_U5_1, EW_CUDA_FEW_U5_2, EW_CUDA_FEW_U5_3, EW_CUDA_FEW_U5_4,
    EW_CUDA_FEW_U6_1, EW_CUDA_FEW_U6_2, EW_CUDA_FEW_U6_3, EW_CUDA_FEW_U6_4,
    EW_CUDA_KERNEL_COUNT
};

enum ew_cuda_module {
    EW_CUDA_ROWS, EW_CUDA_LINEAR, EW_CUDA_SOME, EW_CUDA_EXPAND, EW_CUDA_GEMM, EW_CUDA_ATTENTION,
    EW_CUDA_WGMMA, EW_CUDA_WGMMA_CODED, EW_CUDA_WGMMA_F8_MODULE, EW_CUDA_GEMM_F8_MODULE, EW_CUDA_VECTOR,
    EW_CUDA_DECODE, EW_CUDA_PICK,
    EW_CUDA_FEW,
    // loaded when the program and the type of caches are known
    EW_CUDA_LATENT, EW_CUDA_FLASH_F16, EW_CUDA_FLASH_F8, EW_CUDA_FLASH_I8, EW_CUDA_EXPERTS, EW_CUDA_CHOSEN,
    EW_CUDA_STATE,
    EW_CUDA_MEASURE,
    EW_CUDA_MODULE_COUNT
};

#define EW_CUDA_LAUNCHES_MAX 32

// The kernels launched since somebody looked; more than there is room for are left out.
struct ew_cuda_launches {
    enum ew_cuda_kernel kernels[EW_CUDA_LAUNCHES_MAX];
    uint32_t n;
};

// Products of one row of activations, by where they stand in a layer.
enum ew_cuda_place {
    EW_CUDA_BEFORE_ATTENTION,
    EW_CUDA_AFTER_ATTENTION,
    EW_CUDA_GATES,
    EW_CUDA_ELSEWHERE,
    EW_CUDA_PLACE_COUNT,
    EW_CUDA_LAST = EW_CUDA_PLACE_COUNT // of the program: its rings are the longest always
};

// Their rings of weights: the shortest; the longest that fits a multiprocessor beside a neighbour's shortest, and that
// is to keep two blocks of one product apart; the longest that a block can have.
enum ew_cuda_ring { EW_CUDA_RING_SHORT, EW_CUDA_RING_FITTING, EW_CUDA_RING_LONGEST, EW_CUDA_RING_COUNT };

// How a decode step is done, with the same results: which of the kernels that can wait for their predecessor themselves
// are started before it has ended, and how much of weights is under way in products of one row.
enum ew_cuda_way {
    EW_CUDA_WAY_EARLY, // all of them; plus one bit for each place whose rings are fitting ones
    EW_CUDA_WAY_LONGEST = 1 << EW_CUDA_PLACE_COUNT, // plus these: the longest ones there
    EW_CUDA_WAY_PRODUCTS_LATE = 2 << EW_CUDA_PLACE_COUNT,
    EW_CUDA_WAY_LATE,
    EW_CUDA_WAY_COUNT
};

struct ew_cuda_device {
    struct ew_cuda_driver driver;
    const struct ew_cuda_device *owner; // of context, stream and the modules that both have; NULL: this one
    struct ew_cuda_launches *launches;  // kept where somebody wants to know
    void *context, *stream;
    int device, major, minor, driver_version, n_multiprocessors;
    int shared_bytes_max; // of a block that asks for it
    bool is_integrated;   // its memory is the machine's
    uint64_t part_bytes;  // what mapped memory comes in multiples of; 0: there is only cuMemAlloc
    char name[64];
    bool unwanted[EW_CUDA_KERNEL_COUNT];   // not loaded with its module, but when it is launched
    void *handles[EW_CUDA_KERNEL_COUNT];   // the driver's module, or library, that has this kernel alone
    void *functions[EW_CUDA_KERNEL_COUNT]; // NULL: unwanted, or of a module that this GPU or driver has not
    const char *files[EW_CUDA_KERNEL_COUNT]; // "rows.sm_90.ptx", and how long the driver took for the kernel
    double load_s[EW_CUDA_KERNEL_COUNT];
    _Atomic bool is_refused[EW_CUDA_MODULE_COUNT]; // a tier of it, by the driver
    bool waits_itself[EW_CUDA_KERNEL_COUNT]; // for the kernel before it: may be started early
    bool clusters[EW_CUDA_KERNEL_COUNT];     // its blocks can be launched in clusters
    bool has_clusters;                       // the GPU and the driver have them
    enum ew_cuda_way way; // of what is launched now
    uint32_t shared_bytes[EW_CUDA_KERNEL_COUNT]; // that it may ask for beyond its own arrays; 0: the usual 48 KiB
    bool is_shared; // ew_cuda_share_multiprocessors was called
};

// cache: as in ew_backend_config.
int ew_cuda_device_open(struct ew_cuda_device *device, const char *cache, struct ew_error *err) EW_MUST_CHECK;
void ew_cuda_device_close(struct ew_cuda_device *device); // also of one that was not opened whole
// A second user of the same context, stream and loaded modules, closed before the first.
void ew_cuda_device_share(const struct ew_cuda_device *device, struct ew_cuda_device *out);
const char *ew_cuda_kernel_name(enum ew_cuda_kernel kernel);
// The wanted kernels of a module, one after the other; those that are there already stay.
int ew_cuda_device_load_module(struct ew_cuda_device *device, enum ew_cuda_module module,
                               struct ew_error *err) EW_MUST_CHECK;
bool ew_cuda_kernel_is_missing(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel); // wanted, not there
// What was asked for before the kernel was there.
int ew_cuda_kernel_set_up(struct ew_cuda_device *device, enum ew_cuda_kernel kernel, struct ew_error *err)
    EW_MUST_CHECK;
// For steps of one sequence: blocks of a kernel that was started early lie beside those of the one before it, which
// needs one division of a multiprocessor's memory for all. Products of several rows would miss the first cache.
int ew_cuda_share_multiprocessors(struct ew_cuda_device *device, struct ew_error *err) EW_MUST_CHECK;
int ew_cuda_enter(const struct ew_cuda_device *device, struct ew_error *err) EW_MUST_CHECK;
// 0, or the error that a driver's status stands for; `what` was tried: "copying a batch".
int ew_cuda_check(const struct ew_cuda_device *device, int status, const char *what, struct ew_error *err)
    EW_MUST_CHECK;
int ew_cuda_free_bytes(const struct ew_cuda_device *device, uint64_t *free_bytes, uint64_t *total_bytes,
                       struct ew_error *err) EW_MUST_CHECK;

struct ew_cuda_grid {
    uint32_t x, y, z, threads;
    uint32_t shared_bytes; // beyond the kernel's own arrays; over 48 KiB after ew_cuda_allow_shared
    uint32_t cluster;      // blocks along z that reach each other's shared memory; over 1 if device->clusters[kernel]
};
// Loads it, if nobody has yet.
int ew_cuda_kernel_need(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel, struct ew_error *err)
    EW_MUST_CHECK;
int ew_cuda_launch(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel, struct ew_cuda_grid grid,
                   void **arguments, struct ew_error *err) EW_MUST_CHECK;

int ew_cuda_allow_shared(struct ew_cuda_device *device, enum ew_cuda_kernel kernel, uint32_t bytes,
                         struct ew_error *err) EW_MUST_CHECK;
enum ew_cuda_module ew_cuda_kernel_module(enum ew_cuda_kernel kernel);
const char *ew_cuda_module_name(enum ew_cuda_module module); // "rows"

// Memory of the GPU in spans, freed all at once; pieces are 256-byte aligned and never cross a span.
struct ew_cuda_span {
    uint64_t address, bytes;
    uint64_t mapped; // from its beginning
    bool is_plain;   // of cuMemAlloc: all of it has memory
};

struct ew_cuda_arena {
    struct ew_cuda_span spans[EW_CUDA_SPANS_MAX];
    uint32_t n_spans;
    uint64_t used;     // of the last span
    uint64_t expected; // that will still be asked for
};
// Of a GPU that can map memory: whether the driver does, and in which units.
void ew_cuda_arena_probe(struct ew_cuda_device *device);
// What will be asked for in all: addresses for it are reserved at once, memory comes as it is needed.
void ew_cuda_arena_expect(struct ew_cuda_arena *arena, uint64_t bytes);
int ew_cuda_arena_alloc(const struct ew_cuda_device *device, struct ew_cuda_arena *arena, uint64_t bytes,
                        const char *what, uint64_t *address, struct ew_error *err) EW_MUST_CHECK;
void ew_cuda_arena_fini(const struct ew_cuda_device *device, struct ew_cuda_arena *arena);
