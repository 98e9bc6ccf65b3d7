// The driver compiles the modules of kernels that a program uses, on several threads, while the weights are loaded.

#include <pthread.h>
#include <signal.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "kernel/cuda/cuda_backend.h"
#include "platform/topology.h"

struct ew_cuda_compile {
    struct ew_cuda_device *device;
    struct ew_pool *pool;
    pthread_t thread;
    bool has_thread;
    enum ew_cuda_module modules[EW_CUDA_MODULE_COUNT];
    uint32_t n_modules;
    int rc[EW_CUDA_MODULE_COUNT];
    struct ew_error errors[EW_CUDA_MODULE_COUNT];
};

static void compile_one(void *ctx, uint32_t task, uint32_t thread)
{
    struct ew_cuda_compile *compile = ctx;
    struct ew_error *err = &compile->errors[task];

    compile->rc[task] = ew_cuda_enter(compile->device, err);
    if (compile->rc[task] == 0)
        compile->rc[task] = ew_cuda_device_load_module(compile->device, compile->modules[task], err);
}

static void *compile_all(void *ctx)
{
    struct ew_cuda_compile *compile = ctx;
    double started_s = ew_clock_s();

    ew_pool_run(compile->pool, compile_one, compile, compile->n_modules);
    ew_log(EW_LOG_INFO, "%u modules of kernels ready in %.2f s", compile->n_modules, ew_clock_s() - started_s);
    return NULL;
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
    if (module == EW_CUDA_LATENT)
        return latent;
    if (module == EW_CUDA_STATE)
        return states;
    if (module == EW_CUDA_EXPERTS || module == EW_CUDA_CHOSEN)
        return experts;
    return module < EW_CUDA_FLASH_F16 || module == flash[backend->kv_sized];
}

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
    compile->device = &backend->device;
    for (int i = 0; i < EW_CUDA_MODULE_COUNT; i++) {
        if (is_used(backend, i))
            compile->modules[compile->n_modules++] = i;
    }
    ew_topology_read(NULL, &topology);
    rc = ew_pool_create(EW_MIN(topology.n_usable, compile->n_modules), "ew-compile", &compile->pool, err);
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
    int rc = 0;

    if (compile->has_thread)
        pthread_join(compile->thread, NULL);
    for (uint32_t i = 0; i < compile->n_modules && rc == 0; i++) {
        rc = compile->rc[i];
        if (rc && err)
            *err = compile->errors[i];
    }
    ew_pool_destroy(compile->pool);
    ew_free(compile);
    return rc;
}
