// Attention over latents: which kernel takes it.

#include "kernel/cuda/cuda_backend.h"

// Of attention_latent_16 (ptx/latent.c): queries and keys of f16 in rows of KEY_MAX + 8, shares, maxima of warps.
#define SHARED_BYTES (((EW_CUDA_LATENT_HEADS + 64) * (EW_CUDA_LATENT_MAX + EW_CUDA_LATENT_REST_MAX + 8) + \
                       EW_CUDA_LATENT_HEADS * (64 + 8)) * 2 + 8 * EW_CUDA_LATENT_HEADS * 4)
#define STEP 8 // elements of f16 that the tensor cores' kernel copies at once

static bool has_latents(const struct ew_program *program)
{
    for (uint32_t i = 0; i < program->n_groups; i++)
        if (program->groups[i].kind == EW_CACHE_LATENT)
            return true;
    return false;
}

// The reference, f32 caches, and GPUs whose blocks have less shared memory than any known one.
static bool is_plain(const struct ew_cuda_backend *backend)
{
    return backend->config.kernels == EW_KERNELS_REFERENCE || backend->limits.kv == EW_KV_F32 ||
           backend->device.shared_bytes_max < SHARED_BYTES;
}

int ew_cuda_latent_init(struct ew_cuda_backend *backend, struct ew_error *err)
{
    int rc = 0;

    if (has_latents(backend->program))
        rc = ew_cuda_device_load_module(&backend->device, EW_CUDA_LATENT, err);
    if (rc || !has_latents(backend->program) || is_plain(backend))
        return rc;
    return ew_cuda_allow_shared(&backend->device, EW_CUDA_ATTENTION_LATENT_16, SHARED_BYTES, err);
}

enum ew_cuda_kernel ew_cuda_latent_kernel(const struct ew_cuda_backend *backend, const struct ew_op *op,
                                          uint32_t *shared_bytes)
{
    const struct ew_cuda_cache *cache = &backend->caches[op->attention.group];
    bool plain = is_plain(backend) || cache->k_dim % STEP || cache->v_dim % STEP;

    *shared_bytes = plain ? 0 : SHARED_BYTES;
    return plain ? EW_CUDA_ATTENTION_LATENT : EW_CUDA_ATTENTION_LATENT_16;
}
