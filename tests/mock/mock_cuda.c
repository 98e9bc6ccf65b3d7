// A CUDA driver without a GPU: libcuda.so.1 for tests. Memory is the host's, between guard pages; kernels are those of
// src/kernel/cuda/ptx, compiled for the CPU and run by emulate.c; streams do what they are given at once; graphs record
// and replay. The environment says what it pretends:
//
//   EW_MOCK_CUDA_FAIL=cuMemAlloc_v2:3:2   the third call of cuMemAlloc_v2 answers 2; after an error that takes a real
//                                         context along, every later call answers the same. :0: means every call
//   EW_MOCK_CUDA_CC=90, _DRIVER=12040, _MEMORY=1000000000, _INTEGRATED=1, _DEVICES=0, _MULTIPROCESSORS=132
//   EW_MOCK_CUDA_HELD=30000000            of the memory, by the context
//   EW_MOCK_CUDA_VMM=0, _RESERVE=1000000  maps no memory; reserves no more addresses than that at once
//   EW_MOCK_CUDA_BREAK=few_i8_1           the first block of every launch of this kernel does nothing
//   EW_MOCK_CUDA_EARLY_US=-3              what a launch that may begin early adds to the time between two events
//   EW_MOCK_CUDA_CALLS=FILE               the calls and their numbers, written at the end

#include <dlfcn.h>
#include <ffi.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "emulate.h"

#define API __attribute__((visibility("default"))) int
#define GUARD ((size_t)4096)
#define FILL_BYTES ((size_t)16 << 20) // of fresh memory; more would only cost time
#define PARAMETERS_MAX 64
#define CALLS_MAX 128

enum { // CUresult
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_BINARY_FOR_GPU = 209, INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222, NOT_FOUND = 500,
    CLUSTER = 4,      // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    PROGRAMMATIC = 6, // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
};

// ---- what is pretended --------------------------------------------------------------------------

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static struct call {
    const char *name;
    unsigned long n;
} g_calls[CALLS_MAX];
static int g_lost; // the error that took the context along
static size_t g_used;
static long g_early; // kernels that ran and might have begun early

static long setting(const char *name, long otherwise)
{
    const char *text = getenv(name);

    return text ? atol(text) : otherwise;
}

__attribute__((destructor)) static void write_calls(void)
{
    const char *path = getenv("EW_MOCK_CUDA_CALLS");
    FILE *file = path ? fopen(path, "w") : NULL;

    for (int i = 0; file && i < CALLS_MAX && g_calls[i].name; i++)
        fprintf(file, "%s %lu\n", g_calls[i].name, g_calls[i].n);
    if (file)
        fclose(file);
}

static unsigned long count(const char *name)
{
    for (int i = 0; i < CALLS_MAX; i++) {
        if (!g_calls[i].name)
            g_calls[i].name = name;
        if (strcmp(g_calls[i].name, name) == 0)
            return ++g_calls[i].n;
    }
    abort(); // CALLS_MAX is too small
}

// After these a real context answers nothing else: ECC, illegal address, launch timeout, assertion and the like.
static bool is_sticky(int error)
{
    return error == 214 || error == 700 || error == 702 || (error >= 710 && error <= 720) || error == 999;
}

static int injected(const char *name)
{
    const char *text = getenv("EW_MOCK_CUDA_FAIL");
    unsigned long n = count(name), wanted;
    size_t length = strlen(name);
    int error;

    if (g_lost)
        return g_lost;
    if (!text || strncmp(text, name, length) || sscanf(text + length, ":%lu:%d", &wanted, &error) != 2)
        return OK;
    if (wanted && wanted != n)
        return OK;
    g_lost = is_sticky(error) ? error : OK;
    return error;
}

// A call is one critical section: loaders and steps may come from several threads.
static int enter(const char *name)
{
    int error;

    pthread_mutex_lock(&g_lock);
    error = injected(name);
    if (error)
        pthread_mutex_unlock(&g_lock);
    return error;
}

static int leave(int status)
{
    pthread_mutex_unlock(&g_lock);
    return status;
}

#define ENTER() \
    do { \
        int error_ = enter(__func__); \
                                      \
        if (error_) \
            return error_; \
    } while (0)

static void *checked(void *p)
{
    if (!p) {
        fprintf(stderr, "mock CUDA: out of memory\n");
        abort();
    }
    return p;
}

// ---- device -------------------------------------------------------------------------------------

API cuInit(unsigned flags)
{
    ENTER();
    return leave(flags ? INVALID_VALUE : OK);
}

API cuDriverGetVersion(int *version)
{
    ENTER();
    *version = (int)setting("EW_MOCK_CUDA_DRIVER", 11040);
    return leave(OK);
}

API cuGetErrorName(int error, const char **name)
{
    static const struct {
        int error;
        const char *name;
    } names[] = {
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {100, "CUDA_ERROR_NO_DEVICE"},
        {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
        {214, "CUDA_ERROR_ECC_UNCORRECTABLE"},
        {INVALID_PTX, "CUDA_ERROR_INVALID_PTX"},
        {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {719, "CUDA_ERROR_LAUNCH_FAILED"},
        {999, "CUDA_ERROR_UNKNOWN"},
    };

    *name = NULL;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        if (names[i].error == error)
            *name = names[i].name;
    }
    return *name ? OK : INVALID_VALUE;
}

API cuDeviceGetCount(int *n)
{
    ENTER();
    *n = (int)setting("EW_MOCK_CUDA_DEVICES", 1);
    return leave(OK);
}

API cuDeviceGet(int *device, int ordinal)
{
    ENTER();
    *device = ordinal;
    return leave(ordinal ? 101 : OK);
}

API cuDeviceGetName(char *name, int size, int device)
{
    ENTER();
    (void)device;
    snprintf(name, (size_t)size, "Emulated GPU");
    return leave(OK);
}

API cuDeviceGetAttribute(int *value, int attribute, int device)
{
    long cc = setting("EW_MOCK_CUDA_CC", 80);

    ENTER();
    (void)device;
    switch (attribute) {
    case 16: // multiprocessors
        *value = (int)setting("EW_MOCK_CUDA_MULTIPROCESSORS", 4);
        break;
    case 18:
        *value = (int)setting("EW_MOCK_CUDA_INTEGRATED", 0);
        break;
    case 75:
        *value = (int)(cc / 10);
        break;
    case 76:
        *value = (int)(cc % 10);
        break;
    case 97: // shared memory of a block, at most
        *value = 163 << 10;
        break;
    case 102: // virtual memory management
        *value = (int)setting("EW_MOCK_CUDA_VMM", 1);
        break;
    case 120: // clusters of blocks
        *value = cc >= 90;
        break;
    default:
        *value = 0;
    }
    return leave(OK);
}

static size_t total_memory(void)
{
    return (size_t)setting("EW_MOCK_CUDA_MEMORY", 8L << 30);
}

API cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    ENTER();
    (void)device;
    *bytes = total_memory();
    return leave(OK);
}

static int g_context;

API cuDevicePrimaryCtxRetain(void **context, int device)
{
    ENTER();
    (void)device;
    *context = &g_context;
    return leave(OK);
}

API cuDevicePrimaryCtxRelease_v2(int device)
{
    ENTER();
    (void)device;
    return leave(OK);
}

API cuCtxSetCurrent(void *context)
{
    ENTER();
    return leave(context && context != &g_context ? INVALID_VALUE : OK);
}

API cuCtxSynchronize(void)
{
    ENTER();
    return leave(OK);
}

// ---- memory -------------------------------------------------------------------------------------

static struct allocation {
    struct allocation *next;
    uint8_t *map, *data;
    size_t map_bytes, bytes;
} *g_allocations;

// Its end, up to the 256 bytes that addresses are aligned to, touches the guard page. Fresh memory is all NaN.
static int allocate(void **out, size_t bytes)
{
    size_t rounded = (bytes + 255) & ~(size_t)255, inner = (rounded + GUARD - 1) & ~(GUARD - 1);
    struct allocation *a;

    if (bytes == 0)
        return INVALID_VALUE;
    if (bytes > total_memory() - g_used)
        return OUT_OF_MEMORY;
    a = checked(calloc(1, sizeof(*a)));
    a->map_bytes = inner + 2 * GUARD;
    a->bytes = bytes;
    a->map = mmap(NULL, a->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->map == MAP_FAILED || mprotect(a->map + GUARD, inner, PROT_READ | PROT_WRITE)) {
        free(a);
        return OUT_OF_MEMORY;
    }
    a->data = a->map + GUARD + (inner - rounded);
    memset(a->data, 0xFF, bytes < FILL_BYTES ? bytes : FILL_BYTES);
    a->next = g_allocations;
    g_allocations = a;
    g_used += bytes;
    *out = a->data;
    return OK;
}

static int release(void *data)
{
    for (struct allocation **at = &g_allocations; *at; at = &(*at)->next) {
        struct allocation *a = *at;

        if (a->data != data)
            continue;
        *at = a->next;
        g_used -= a->bytes;
        munmap(a->map, a->map_bytes);
        free(a);
        return OK;
    }
    return INVALID_VALUE;
}

API cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    ENTER();
    *total_bytes = total_memory();
    *free_bytes = *total_bytes - g_used - (size_t)setting("EW_MOCK_CUDA_HELD", 0);
    return leave(OK);
}

API cuMemAlloc_v2(uint64_t *address, size_t bytes)
{
    void *data = NULL;
    int status;

    ENTER();
    status = allocate(&data, bytes);
    *address = (uint64_t)(uintptr_t)data;
    return leave(status);
}

API cuMemFree_v2(uint64_t address)
{
    ENTER();
    return leave(release((void *)(uintptr_t)address));
}

// ---- mapped memory ------------------------------------------------------------------------------

#define PART ((size_t)2 << 20) // every mapping's granularity

// Memory that was created, until it is neither held nor mapped.
struct part {
    size_t bytes;
    bool is_held, is_mapped;
};

static struct mapping {
    struct mapping *next;
    uint8_t *data;
    struct part *part;
} *g_mappings;

static void drop(struct part *part)
{
    if (part->is_held || part->is_mapped)
        return;
    g_used -= part->bytes;
    free(part);
}

API cuMemGetAllocationGranularity(size_t *bytes, const void *kind, int which)
{
    ENTER();
    (void)kind;
    (void)which;
    *bytes = PART;
    return leave(OK);
}

API cuMemAddressReserve(uint64_t *address, size_t bytes, size_t alignment, uint64_t wish, uint64_t flags)
{
    size_t most = (size_t)setting("EW_MOCK_CUDA_RESERVE", 1L << 40);
    void *map;

    ENTER();
    if (alignment || wish || flags || bytes == 0 || bytes % PART)
        return leave(INVALID_VALUE);
    map = bytes > most ? MAP_FAILED
                       : mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return leave(OUT_OF_MEMORY);
    *address = (uint64_t)(uintptr_t)map;
    return leave(OK);
}

API cuMemAddressFree(uint64_t address, size_t bytes)
{
    ENTER();
    return leave(munmap((void *)(uintptr_t)address, bytes) ? INVALID_VALUE : OK);
}

API cuMemCreate(uint64_t *handle, size_t bytes, const void *kind, uint64_t flags)
{
    struct part *part;

    ENTER();
    (void)kind;
    if (flags || bytes == 0 || bytes % PART)
        return leave(INVALID_VALUE);
    if (bytes > total_memory() - g_used)
        return leave(OUT_OF_MEMORY);
    part = checked(malloc(sizeof(*part)));
    *part = (struct part){.bytes = bytes, .is_held = true};
    g_used += bytes;
    *handle = (uint64_t)(uintptr_t)part;
    return leave(OK);
}

API cuMemRelease(uint64_t handle)
{
    struct part *part = (struct part *)(uintptr_t)handle;

    ENTER();
    part->is_held = false;
    drop(part);
    return leave(OK);
}

API cuMemMap(uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t flags)
{
    struct part *part = (struct part *)(uintptr_t)handle;
    struct mapping *mapping;

    ENTER();
    if (offset || flags || bytes != part->bytes || part->is_mapped)
        return leave(INVALID_VALUE);
    part->is_mapped = true;
    mapping = checked(malloc(sizeof(*mapping)));
    *mapping = (struct mapping){g_mappings, (uint8_t *)(uintptr_t)address, part};
    g_mappings = mapping;
    return leave(OK);
}

// Of what was mapped and nothing else.
API cuMemSetAccess(uint64_t address, size_t bytes, const void *access, size_t n)
{
    uint8_t *data = (uint8_t *)(uintptr_t)address;

    ENTER();
    (void)access;
    if (n != 1 || !g_mappings || g_mappings->data != data || g_mappings->part->bytes != bytes)
        return leave(INVALID_VALUE);
    if (mprotect(data, bytes, PROT_READ | PROT_WRITE))
        return leave(OUT_OF_MEMORY);
    memset(data, 0xFF, bytes < FILL_BYTES ? bytes : FILL_BYTES);
    return leave(OK);
}

API cuMemUnmap(uint64_t address, size_t bytes)
{
    uint8_t *data = (uint8_t *)(uintptr_t)address;
    size_t left = bytes;

    ENTER();
    for (struct mapping **at = &g_mappings; *at;) {
        struct mapping *mapping = *at;

        if (mapping->data < data || mapping->data >= data + bytes) {
            at = &mapping->next;
            continue;
        }
        *at = mapping->next;
        left -= mapping->part->bytes;
        mapping->part->is_mapped = false;
        drop(mapping->part);
        free(mapping);
    }
    mprotect(data, bytes, PROT_NONE);
    return leave(left ? INVALID_VALUE : OK);
}

API cuMemHostAlloc(void **data, size_t bytes, unsigned flags)
{
    ENTER();
    (void)flags;
    *data = malloc(bytes ? bytes : 1);
    return leave(*data ? OK : OUT_OF_MEMORY);
}

API cuMemFreeHost(void *data)
{
    ENTER();
    free(data);
    return leave(OK);
}

// ---- streams and graphs -------------------------------------------------------------------------

struct node {
    struct node *next;
    void (*run)(struct node *node);
    void *to;
    const void *from;
    size_t bytes;
    struct launch *launch;
};

struct graph {
    struct node *first, **last;
    int n_users; // the graph itself and what was instantiated from it
};

struct stream {
    struct graph *recorded;
};

static void do_or_record(struct stream *stream, struct node node)
{
    struct node *kept;

    if (!stream || !stream->recorded) {
        node.run(&node);
        return;
    }
    kept = checked(malloc(sizeof(*kept)));
    *kept = node;
    *stream->recorded->last = kept;
    stream->recorded->last = &kept->next;
}

static void copy_node(struct node *node)
{
    memmove(node->to, node->from, node->bytes);
}

static void fill_node(struct node *node)
{
    memset(node->to, (int)(uintptr_t)node->from, node->bytes);
}

static void copy(void *stream, uint64_t to, uint64_t from, size_t bytes)
{
    do_or_record(stream, (struct node){.run = copy_node, .to = (void *)(uintptr_t)to,
                                       .from = (const void *)(uintptr_t)from, .bytes = bytes});
}

API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes)
{
    ENTER();
    copy(NULL, to, (uintptr_t)from, bytes);
    return leave(OK);
}

API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes)
{
    ENTER();
    copy(NULL, (uintptr_t)to, from, bytes);
    return leave(OK);
}

API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream)
{
    ENTER();
    copy(stream, to, (uintptr_t)from, bytes);
    return leave(OK);
}

API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream)
{
    ENTER();
    copy(stream, (uintptr_t)to, from, bytes);
    return leave(OK);
}

API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream)
{
    ENTER();
    copy(stream, to, from, bytes);
    return leave(OK);
}

API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream)
{
    ENTER();
    do_or_record(stream, (struct node){.run = fill_node, .to = (void *)(uintptr_t)to,
                                       .from = (const void *)(uintptr_t)value, .bytes = bytes});
    return leave(OK);
}

API cuStreamCreate(void **stream, unsigned flags)
{
    ENTER();
    (void)flags;
    *stream = checked(calloc(1, sizeof(struct stream)));
    return leave(OK);
}

API cuStreamDestroy_v2(void *stream)
{
    ENTER();
    free(stream);
    return leave(OK);
}

API cuStreamSynchronize(void *stream)
{
    ENTER();
    (void)stream;
    return leave(OK);
}

API cuEventCreate(void **event, unsigned flags)
{
    ENTER();
    (void)flags;
    *event = checked(calloc(1, sizeof(long)));
    return leave(OK);
}

API cuEventDestroy_v2(void *event)
{
    ENTER();
    free(event);
    return leave(OK);
}

API cuEventRecord(void *event, void *stream)
{
    ENTER();
    (void)stream;
    *(long *)event = g_early;
    return leave(OK);
}

API cuEventQuery(void *event)
{
    ENTER();
    (void)event;
    return leave(OK);
}

API cuEventSynchronize(void *event)
{
    ENTER();
    (void)event;
    return leave(OK);
}

API cuEventElapsedTime(float *ms, void *from, void *to)
{
    ENTER();
    *ms = 1 + (float)((*(long *)to - *(long *)from) * setting("EW_MOCK_CUDA_EARLY_US", 0)) / 1000;
    return leave(OK);
}

API cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
    ENTER();
    (void)stream;
    (void)event;
    (void)flags;
    return leave(OK);
}

API cuStreamBeginCapture_v2(void *stream, int mode)
{
    struct stream *s = stream;

    ENTER();
    (void)mode;
    if (!s || s->recorded)
        return leave(INVALID_VALUE);
    s->recorded = checked(calloc(1, sizeof(*s->recorded)));
    s->recorded->last = &s->recorded->first;
    s->recorded->n_users = 1;
    return leave(OK);
}

API cuStreamEndCapture(void *stream, void **graph)
{
    struct stream *s = stream;

    ENTER();
    *graph = s->recorded;
    s->recorded = NULL;
    return leave(*graph ? OK : INVALID_VALUE);
}

API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags)
{
    ENTER();
    (void)flags;
    ((struct graph *)graph)->n_users++;
    *executable = graph;
    return leave(OK);
}

API cuGraphLaunch(void *executable, void *stream)
{
    ENTER();
    (void)stream;
    for (struct node *node = ((struct graph *)executable)->first; node; node = node->next)
        node->run(node);
    return leave(OK);
}

static void forget(struct graph *graph);

API cuGraphExecDestroy(void *executable)
{
    ENTER();
    forget(executable);
    return leave(OK);
}

API cuGraphDestroy(void *graph)
{
    ENTER();
    forget(graph);
    return leave(OK);
}

// ---- modules and kernels ------------------------------------------------------------------------

struct function {
    char name[64];
    void (*code)(void);
    unsigned n_parameters;
    ffi_type *types[PARAMETERS_MAX];
    size_t sizes[PARAMETERS_MAX];
    ffi_cif cif;
};

struct module {
    const char *text;
};

struct launch {
    const struct function *function;
    struct emu_grid grid;
    bool is_early; // it may begin before its predecessor has ended
    void *values[PARAMETERS_MAX];
    uint8_t bytes[]; // what the values point to
};

// Structs by value, of whole 8-byte words and more than two of them: those go through memory on every ABI.
static ffi_type *struct_type(size_t bytes)
{
    ffi_type *type = checked(calloc(1, sizeof(*type)));

    type->type = FFI_TYPE_STRUCT;
    type->elements = checked(calloc(bytes / 8 + 1, sizeof(*type->elements)));
    for (size_t i = 0; i < bytes / 8; i++)
        type->elements[i] = &ffi_type_uint64;
    return type;
}

// ".param .u64 .ptr .align 1 name_param_0" or ".param .align 8 .b8 name_param_1[48]".
static bool read_parameter(struct function *f, const char *line)
{
    static const struct {
        const char *name;
        ffi_type *type;
    } types[] = {
        {".u64", &ffi_type_uint64}, {".u32", &ffi_type_uint32}, {".f32", &ffi_type_float}, {".f64", &ffi_type_double},
        {".u16", &ffi_type_uint16}, {".u8", &ffi_type_uint8},   {".b32", &ffi_type_uint32}, {".b64", &ffi_type_uint64},
    };
    char word[16];
    size_t bytes;

    if (f->n_parameters == PARAMETERS_MAX)
        return false;
    if (sscanf(line, ".param .align %*d .b8 %*[^[][%zu]", &bytes) == 1) {
        if (bytes <= 16 || bytes % 8)
            return false;
        f->types[f->n_parameters] = struct_type(bytes);
        f->sizes[f->n_parameters++] = bytes;
        return true;
    }
    if (sscanf(line, ".param %15s", word) != 1)
        return false;
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        if (strcmp(word, types[i].name) == 0) {
            f->types[f->n_parameters] = types[i].type;
            f->sizes[f->n_parameters++] = types[i].type->size;
            return true;
        }
    }
    return false;
}

static bool read_parameters(struct function *f, const char *text)
{
    char entry[96];
    const char *at, *end;

    snprintf(entry, sizeof(entry), ".entry %s(", f->name);
    at = strstr(text, entry);
    end = at ? strchr(at, ')') : NULL;
    while (at && end && (at = strstr(at, ".param")) != NULL && at < end) {
        if (!read_parameter(f, at))
            return false;
        at += 6;
    }
    return end != NULL;
}

static void *find_code(const char *name)
{
    Dl_info self;
    void *library = dladdr((void *)find_code, &self) ? dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD) : NULL;

    return library ? dlsym(library, name) : NULL;
}

// PTX 7.n came with CUDA 11.n, PTX 8.n with 12.n.
static bool knows_ptx(int major, int minor)
{
    return (major + 4) * 1000 + minor * 10 <= setting("EW_MOCK_CUDA_DRIVER", 11040);
}

static int load_module(void **module, const char *text)
{
    int major = 0, minor = 0, target = 0;
    const char *version = strstr(text, ".version "), *sm = strstr(text, ".target sm_");
    struct module *m;

    if (!version || sscanf(version, ".version %d.%d", &major, &minor) != 2 || !sm ||
        sscanf(sm, ".target sm_%d", &target) != 1)
        return INVALID_PTX;
    if (target > setting("EW_MOCK_CUDA_CC", 80))
        return NO_BINARY_FOR_GPU;
    if (!knows_ptx(major, minor))
        return UNSUPPORTED_PTX_VERSION;
    m = checked(malloc(sizeof(*m)));
    m->text = checked(strdup(text));
    *module = m;
    return OK;
}

API cuModuleLoadDataEx(void **module, const void *image, unsigned n_options, int *options, void **values)
{
    ENTER();
    (void)n_options;
    (void)options;
    (void)values;
    return leave(load_module(module, image));
}

API cuModuleLoadData(void **module, const void *image)
{
    return cuModuleLoadDataEx(module, image, 0, NULL, NULL);
}

static int unload_module(struct module *module)
{
    free((char *)module->text);
    free(module);
    return OK;
}

API cuModuleUnload(void *module)
{
    ENTER();
    return leave(unload_module(module));
}

// Functions live as long as the program, as do the graphs that name them.
static int find_function(void **function, const struct module *module, const char *name)
{
    struct function *f = checked(calloc(1, sizeof(*f)));
    void *code = find_code(name);

    snprintf(f->name, sizeof(f->name), "%s", name);
    memcpy(&f->code, &code, sizeof(code));
    if (!code || !read_parameters(f, module->text) ||
        ffi_prep_cif(&f->cif, FFI_DEFAULT_ABI, f->n_parameters, &ffi_type_void, f->types) != FFI_OK) {
        fprintf(stderr, "mock CUDA: cannot call kernel %s\n", name);
        free(f);
        return NOT_FOUND;
    }
    *function = f;
    return OK;
}

API cuModuleGetFunction(void **function, void *module, const char *name)
{
    ENTER();
    return leave(find_function(function, module, name));
}

// A library is a module, and its kernels are functions: there is one context.
API cuLibraryLoadData(void **library, const void *image, int *options, void **values, unsigned n_options,
                      int *library_options, void **library_values, unsigned n_library_options)
{
    ENTER();
    (void)options;
    (void)values;
    (void)n_options;
    (void)library_options;
    (void)library_values;
    (void)n_library_options;
    return leave(load_module(library, image));
}

API cuLibraryUnload(void *library)
{
    ENTER();
    return leave(unload_module(library));
}

API cuLibraryGetKernel(void **kernel, void *library, const char *name)
{
    ENTER();
    return leave(find_function(kernel, library, name));
}

API cuKernelGetFunction(void **function, void *kernel)
{
    ENTER();
    *function = kernel;
    return leave(OK);
}

API cuFuncSetAttribute(void *function, int attribute, int value)
{
    ENTER();
    (void)function;
    (void)attribute;
    return leave(value > 163 << 10 ? INVALID_VALUE : OK);
}

static void call_kernel(void *ctx)
{
    struct launch *launch = ctx;
    void *values[PARAMETERS_MAX]; // ffi_call puts copies of structs in their places

    memcpy(values, launch->values, sizeof(values));
    ffi_call((ffi_cif *)&launch->function->cif, launch->function->code, NULL, values);
}

static void launch_node(struct node *node)
{
    const char *name = node->launch->function->name, *broken = getenv("EW_MOCK_CUDA_BREAK");

    g_early += node->launch->is_early;
    emu_run(name, &node->launch->grid, broken && strcmp(broken, name) == 0, call_kernel, node->launch);
}

static struct launch *make_launch(const struct function *f, const struct emu_grid *grid, void **arguments,
                                  bool is_early)
{
    size_t bytes = 0;
    struct launch *launch;

    for (unsigned i = 0; i < f->n_parameters; i++)
        bytes += (f->sizes[i] + 7) & ~(size_t)7;
    launch = checked(malloc(sizeof(*launch) + bytes));
    launch->function = f;
    launch->grid = *grid;
    launch->is_early = is_early;
    bytes = 0;
    for (unsigned i = 0; i < f->n_parameters; i++) {
        launch->values[i] = memcpy(launch->bytes + bytes, arguments[i], f->sizes[i]);
        bytes += (f->sizes[i] + 7) & ~(size_t)7;
    }
    return launch;
}

static int start(const struct function *f, const struct emu_grid *grid, void *stream, void **arguments, bool is_early)
{
    struct node node = {.run = launch_node};

    if (!grid->blocks[0] || !grid->blocks[1] || !grid->blocks[2] || grid->blocks[1] > 65535 ||
        grid->blocks[2] > 65535 || !grid->n_threads || grid->n_threads > 1024)
        return INVALID_VALUE;
    node.launch = make_launch(f, grid, arguments, is_early);
    do_or_record(stream, node);
    if (!stream || !((struct stream *)stream)->recorded)
        free(node.launch);
    return OK;
}

API cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments,
                   void **extra)
{
    struct emu_grid grid = {{grid_x, grid_y, grid_z}, block_x, shared_bytes, 1};

    ENTER();
    if (block_y != 1 || block_z != 1 || extra)
        return leave(INVALID_VALUE);
    return leave(start(function, &grid, stream, arguments, false));
}

struct launch_attribute { // CUlaunchAttribute
    int id;
    char pad[4];
    union {
        int allowed;
        unsigned dims[3];
        char room[64];
    } value;
};

struct launch_config { // CUlaunchConfig
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    const struct launch_attribute *attributes;
    unsigned n_attributes;
};

API cuLaunchKernelEx(const struct launch_config *config, void *function, void **arguments, void **extra)
{
    struct emu_grid grid = {{config->grid[0], config->grid[1], config->grid[2]}, config->block[0],
                            config->shared_bytes, 1};
    bool is_early = false, is_valid = config->block[1] == 1 && config->block[2] == 1 && !extra;

    ENTER();
    for (unsigned i = 0; i < config->n_attributes; i++) {
        const struct launch_attribute *attribute = &config->attributes[i];
        const unsigned *dims = attribute->value.dims;

        is_early |= attribute->id == PROGRAMMATIC && attribute->value.allowed;
        if (attribute->id != CLUSTER)
            continue;
        is_valid &= dims[0] == 1 && dims[1] == 1 && dims[2] > 0 && dims[2] <= 8 && config->grid[2] % dims[2] == 0;
        grid.cluster = dims[2];
    }
    if (!is_valid)
        return leave(INVALID_VALUE);
    return leave(start(function, &grid, config->stream, arguments, is_early));
}

// Of blocks that have a multiprocessor each.
API cuOccupancyMaxActiveClusters(int *n, void *function, const struct launch_config *config)
{
    int size = 1;

    ENTER();
    (void)function;
    for (unsigned i = 0; i < config->n_attributes; i++) {
        if (config->attributes[i].id == CLUSTER)
            size = (int)config->attributes[i].value.dims[2];
    }
    *n = (int)setting("EW_MOCK_CUDA_MULTIPROCESSORS", 4) / size;
    return leave(OK);
}

static void forget(struct graph *graph)
{
    if (--graph->n_users)
        return;
    for (struct node *node = graph->first, *next; node; node = next) {
        next = node->next;
        free(node->launch);
        free(node);
    }
    free(graph);
}
