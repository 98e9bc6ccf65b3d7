// The driver compiles the kernels that a program uses, side by side, while the weights are loaded.

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "kernel/cuda/cuda_backend.h"
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/cuda_ptx.h"
#include "platform/topology.h"

enum { DIMS_COUNT = 4, SHARED_COUNT = 3 };
static const uint32_t DIMS[DIMS_COUNT] = {64, 96, 128, 256}; // as in names of kernels
static const uint32_t SHARED[SHARED_COUNT] = {1, 4, 8};

struct part { // what is given to the driver at once
    enum ew_cuda_kernel kernel;
    size_t bytes;
};

struct ew_cuda_compile {
    struct ew_cuda_backend *backend;
    struct ew_cuda_device *device;
    struct ew_pool *pool;
    pthread_t thread;
    bool has_thread;
    bool is_used[EW_CUDA_MODULE_COUNT];
    struct ew_cuda_text texts[EW_CUDA_MODULE_COUNT];
    struct part parts[EW_CUDA_KERNEL_COUNT];
    uint32_t n_parts;
    _Atomic int rc; // of the first that failed
    struct ew_error error;
};

static void note(struct ew_cuda_compile *compile, int rc, const struct ew_error *err)
{
    int ok = 0;

    if (rc && atomic_compare_exchange_strong(&compile->rc, &ok, rc))
        compile->error = *err;
}

static void open_text(void *ctx, uint32_t module, uint32_t thread)
{
    struct ew_cuda_compile *compile = ctx;
    struct ew_error err;

    if (compile->is_used[module])
        note(compile, ew_cuda_text_open(compile->device, module, &compile->texts[module], &err), &err);
}

// Long texts take longest, and nothing is to wait for one that was begun last.
static int by_length(const void *a, const void *b)
{
    const struct part *x = a, *y = b;

    return x->bytes != y->bytes ? (x->bytes < y->bytes ? 1 : -1) : (int)x->kernel - (int)y->kernel;
}

static void list_parts(struct ew_cuda_compile *compile)
{
    for (int i = 0; i < EW_CUDA_KERNEL_COUNT; i++) {
        const char *text = compile->texts[ew_cuda_kernel_module(i)].text;

        if (text && ew_cuda_kernel_is_missing(compile->device, i))
            compile->parts[compile->n_parts++] =
                (struct part){i, ew_cuda_ptx_entry(text, ew_cuda_kernel_name(i)).len};
    }
    qsort(compile->parts, compile->n_parts, sizeof(compile->parts[0]), by_length);
}

static void load_part(void *ctx, uint32_t task, uint32_t thread)
{
    struct ew_cuda_compile *compile = ctx;
    enum ew_cuda_kernel kernel = compile->parts[task].kernel;
    struct ew_error err;
    int rc;

    if (atomic_load(&compile->rc))
        return;
    rc = ew_cuda_enter(compile->device, &err);
    if (rc == 0)
        rc = ew_cuda_kernel_load(compile->device, kernel, &compile->texts[ew_cuda_kernel_module(kernel)], &err);
    note(compile, rc, &err);
}

static void say_file(void *ctx, const char *file, uint32_t n_kernels, uint32_t n_all, double seconds)
{
    ew_log(EW_LOG_INFO, "kernels of %s, %u of %u, took the driver %.2f s", file, n_kernels, n_all, seconds);
}

static void *compile_all(void *ctx)
{
    struct ew_cuda_compile *compile = ctx;
    double started_s = ew_clock_s();
    struct ew_error err;

    ew_pool_run(compile->pool, open_text, compile, EW_CUDA_MODULE_COUNT);
    list_parts(compile);
    ew_pool_run(compile->pool, load_part, compile, compile->n_parts);
    for (int i = 0; i < EW_CUDA_MODULE_COUNT; i++)
        ew_cuda_text_close(&compile->texts[i]);
    if (compile->n_parts) {
        ew_cuda_loaded_files(compile->device, say_file, NULL);
        ew_log(EW_LOG_INFO, "%u kernels ready in %.2f s, by %u threads", compile->n_parts, ew_clock_s() - started_s,
               ew_pool_threads(compile->pool));
    }
    if (atomic_load(&compile->rc) == 0 && compile->backend->when_ready)
        note(compile, compile->backend->when_ready(compile->backend->ready_ctx, &err), &err);
    return NULL;
}

// Kernels whose choice would depend on the number of rows.
static bool is_inexact(enum ew_cuda_module module)
{
    return module == EW_CUDA_FEW || module == EW_CUDA_VECTOR || module == EW_CUDA_DECODE ||
           module == EW_CUDA_CHOSEN || module == EW_CUDA_GEMM || module == EW_CUDA_WGMMA ||
           module == EW_CUDA_WGMMA_CODED ||
           module == EW_CUDA_WGMMA_F8_MODULE || module == EW_CUDA_GEMM_F8_MODULE;
}

static bool is_used(const struct ew_cuda_backend *backend, enum ew_cuda_module module)
{
    static const enum ew_cuda_module flash[] = {
        [EW_KV_F32] = EW_CUDA_MODULE_COUNT, [EW_KV_F16] = EW_CUDA_FLASH_F16,
        [EW_KV_F8] = EW_CUDA_FLASH_F8,      [EW_KV_I8] = EW_CUDA_FLASH_I8,
    };
    const struct ew_program *program = backend->program;
    bool latent = false, experts = false, states = false;

    for (uint32_t i = 0; i < program->n_groups; i++)
        latent |= program->groups[i].kind == EW_CACHE_LATENT;
    for (uint32_t i = 0; i < program->n_ops; i++) {
        latent |= program->ops[i].kind == EW_OP_HEADS;
        experts |= program->ops[i].kind == EW_OP_ROUTE || program->ops[i].kind == EW_OP_EXPERTS;
        states |= program->ops[i].kind == EW_OP_PICK || program->ops[i].kind == EW_OP_SCAN;
    }
    if (backend->config.deterministic && is_inexact(module))
        return false;
    if (module == EW_CUDA_LATENT)
        return latent;
    if (module == EW_CUDA_STATE)
        return states;
    if (module == EW_CUDA_EXPERTS || module == EW_CUDA_CHOSEN)
        return experts;
    return module < EW_CUDA_FLASH_F16 || module == flash[backend->kv_sized];
}

// ---- which kernels ------------------------------------------------------------------------------

// What a program has. A kernel that turns out to be used all the same is loaded when it is started.
struct needs {
    bool layouts[EW_CUDA_LAYOUT_COUNT]; // of matrices of products
    bool dims[DIMS_COUNT];              // of heads, rounded up
    bool shared[SHARED_COUNT];          // heads of queries that share a KV head, rounded up
    bool experts;
    enum ew_kv_dtype kv;
};

static uint32_t round_up(const uint32_t *sizes, uint32_t n_sizes, uint32_t n)
{
    uint32_t at = 0;

    while (at + 1 < n_sizes && sizes[at] < n)
        at++;
    return at;
}

static struct needs find_needs(const struct ew_cuda_backend *backend)
{
    bool reference = backend->config.kernels == EW_KERNELS_REFERENCE, exact;
    struct needs needs = {.kv = backend->kv_sized};

    for (uint32_t i = 0; i < backend->program->n_ops; i++) {
        const struct ew_op *op = &backend->program->ops[i];

        needs.experts |= op->kind == EW_OP_EXPERTS;
        if (op->kind == EW_OP_LINEAR || op->kind == EW_OP_EXPERTS) {
            enum ew_cuda_layout layout = ew_cuda_layout_of(backend->program, op->weight, reference, &exact);

            needs.layouts[layout] = true;
            if (backend->config.deterministic && layout > EW_CUDA_F8) // decoded, in steps of any size
                needs.layouts[EW_CUDA_F16] = true;
        }
        if (op->kind != EW_OP_ATTENTION)
            continue;
        needs.dims[round_up(DIMS, DIMS_COUNT, op->attention.head_dim)] = true;
        needs.dims[round_up(DIMS, DIMS_COUNT, op->attention.v_dim)] = true;
        needs.shared[round_up(SHARED, SHARED_COUNT, op->attention.n_heads / op->attention.n_kv_heads)] = true;
    }
    return needs;
}

// Whether the name has that word between underscores, or at its end.
static bool has_word(const char *name, const char *word)
{
    size_t len = strlen(word);

    for (const char *at = strchr(name, '_'); at; at = strchr(at + 1, '_')) {
        if (strncmp(at + 1, word, len) == 0 && (at[1 + len] == '_' || at[1 + len] == 0))
            return true;
    }
    return false;
}

// "some_u4_min_16" is for u4_min. EW_CUDA_LAYOUT_COUNT: no layout is named.
static int layout_in(const char *name)
{
    int found = EW_CUDA_LAYOUT_COUNT;

    for (int i = 0; i < EW_CUDA_LAYOUT_COUNT; i++) {
        const char *word = ew_cuda_layout_name(i);

        if (has_word(name, word) &&
            (found == EW_CUDA_LAYOUT_COUNT || strlen(word) > strlen(ew_cuda_layout_name(found))))
            found = i;
    }
    return found;
}

static bool module_has(enum ew_cuda_module module, int layout)
{
    for (int i = 0; i < EW_CUDA_KERNEL_COUNT; i++) {
        if (ew_cuda_kernel_module(i) == module && layout_in(ew_cuda_kernel_name(i)) == layout)
            return true;
    }
    return false;
}

// "few_table_16_1" serves all tables that have scales for 16 columns.
static bool serves_table(const struct needs *needs, const char *name)
{
    bool is_halved = has_word(name, "table_16"), is_needed = false;

    for (int i = EW_CUDA_IQ4; i < EW_CUDA_U5; i++)
        is_needed |= needs->layouts[i] && (i >= EW_CUDA_IQ1_16) == is_halved;
    return is_needed;
}

// Kernels for u4 serve u4_min, too, in modules that have none for it alone.
static bool serves_layout(const struct needs *needs, enum ew_cuda_module module, const char *name)
{
    int layout = layout_in(name);
    size_t len;

    if (has_word(name, "table"))
        return serves_table(needs, name);
    if (layout == EW_CUDA_LAYOUT_COUNT || needs->layouts[layout])
        return true;
    len = strlen(ew_cuda_layout_name(layout));
    for (int i = 0; i < EW_CUDA_LAYOUT_COUNT; i++) {
        const char *longer = ew_cuda_layout_name(i);

        if (needs->layouts[i] && strncmp(longer, ew_cuda_layout_name(layout), len) == 0 && longer[len] == '_' &&
            !module_has(module, i))
            return true;
    }
    return false;
}

// Operands of large products are in bf16 where the matrix is, else in f16.
static bool serves_operand(const struct needs *needs, const char *name)
{
    if (has_word(name, "bf16"))
        return needs->layouts[EW_CUDA_BF16];
    for (int i = 0; i < EW_CUDA_LAYOUT_COUNT; i++) {
        if (needs->layouts[i] && i != EW_CUDA_BF16 && i != EW_CUDA_F32)
            return true;
    }
    return false;
}

static bool serves_size(const bool *needed, const uint32_t *sizes, uint32_t n_sizes, const char *name)
{
    char word[12];

    for (uint32_t i = 0; i < n_sizes; i++) {
        snprintf(word, sizeof(word), "%u", sizes[i]);
        if (has_word(name, word))
            return needed[i];
    }
    return true;
}

static bool serves_cache(const struct needs *needs, const char *name)
{
    static const char *const words[] = {[EW_KV_F16] = "f16", [EW_KV_F8] = "f8", [EW_KV_I8] = "i8"};

    return needs->kv != EW_KV_F32 && has_word(name, words[needs->kv]);
}

static bool is_wanted(const struct needs *needs, enum ew_cuda_module module, const char *name)
{
    switch (module) {
    case EW_CUDA_LINEAR:
    case EW_CUDA_SOME:
    case EW_CUDA_FEW:
    case EW_CUDA_WGMMA_CODED:
    case EW_CUDA_WGMMA_F8_MODULE:
    case EW_CUDA_GEMM_F8_MODULE:
    case EW_CUDA_EXPERTS:
    case EW_CUDA_CHOSEN:
        return serves_layout(needs, module, name);
    case EW_CUDA_VECTOR:
        return serves_layout(needs, module, name) && (needs->experts || !has_word(name, "scored"));
    case EW_CUDA_GEMM:
    case EW_CUDA_WGMMA:
        return serves_operand(needs, name);
    case EW_CUDA_EXPAND:
        return strncmp(name, "expand", 6) == 0 || has_word(name, "f8")
                   ? serves_layout(needs, module, name) : serves_operand(needs, name);
    case EW_CUDA_DECODE:
        return serves_cache(needs, name) && serves_size(needs->dims, DIMS, DIMS_COUNT, name);
    case EW_CUDA_FLASH_F16:
    case EW_CUDA_FLASH_F8:
    case EW_CUDA_FLASH_I8:
        return serves_size(needs->dims, DIMS, DIMS_COUNT, name);
    case EW_CUDA_ATTENTION:
        return serves_size(needs->shared, SHARED, SHARED_COUNT, name);
    default:
        return true;
    }
}

static void choose_kernels(struct ew_cuda_backend *backend)
{
    struct needs needs = find_needs(backend);

    for (int i = 0; i < EW_CUDA_KERNEL_COUNT; i++)
        backend->device.unwanted[i] = !is_wanted(&needs, ew_cuda_kernel_module(i), ew_cuda_kernel_name(i));
}

// ---- all ----------------------------------------------------------------------------------------

static int start_thread(struct ew_cuda_compile *compile)
{
    sigset_t all, old;
    int failed;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    failed = pthread_create(&compile->thread, NULL, compile_all, compile);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed;
}

int ew_cuda_compile_begin(struct ew_cuda_backend *backend, struct ew_cuda_compile **out, struct ew_error *err)
{
    struct ew_cuda_compile *compile = ew_alloc(sizeof(*compile));
    struct ew_topology topology;
    int rc;

    if (!compile)
        return ew_fail_memory(err, sizeof(*compile), "the modules of kernels");
    compile->backend = backend;
    compile->device = &backend->device;
    choose_kernels(backend);
    for (int i = 0; i < EW_CUDA_KERNEL_COUNT; i++) {
        enum ew_cuda_module module = ew_cuda_kernel_module(i);

        compile->is_used[module] |= ew_cuda_kernel_is_missing(compile->device, i) && is_used(backend, module);
    }
    ew_topology_read(NULL, &topology);
    rc = ew_pool_create(EW_MIN(topology.n_usable, EW_CUDA_KERNEL_COUNT), "ew-compile", &compile->pool, err);
    if (rc) {
        ew_free(compile);
        return rc;
    }
    compile->has_thread = start_thread(compile) == 0;
    if (!compile->has_thread)
        compile_all(compile);
    *out = compile;
    return 0;
}

int ew_cuda_compile_end(struct ew_cuda_compile *compile, struct ew_error *err)
{
    int rc;

    if (compile->has_thread)
        pthread_join(compile->thread, NULL);
    rc = atomic_load(&compile->rc);
    if (rc && err)
        *err = compile->error;
    ew_pool_destroy(compile->pool);
    ew_free(compile);
    return rc;
}
