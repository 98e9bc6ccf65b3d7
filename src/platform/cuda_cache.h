#pragma once
// Where the NVIDIA driver keeps the kernels that it compiled. By itself it takes $HOME/.nv/ComputeCache, which
// a container often cannot write; so we give it a folder of our own, and see to it that nobody else can put kernels
// there.

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum ew_cuda_cache_kind {
    EW_CUDA_CACHE_ASKED, // the user named it
    EW_CUDA_CACHE_USUAL, // the first of the usual places that will do
    EW_CUDA_CACHE_LEFT,  // the environment tells the driver already
    EW_CUDA_CACHE_NONE,  // no place will do: every start compiles anew
};

struct ew_cuda_cache {
    enum ew_cuda_cache_kind kind;
    char path[1024]; // ASKED and USUAL
    char why[400];   // LEFT: the variable; NONE: what is wrong with the places
};

// asked: a directory, or NULL for EDGEWISE_CACHE and, where that is not set, a usual place. It is not made yet.
// EW_ERR_IO where the asked one will not do.
int ew_cuda_cache_find(const char *asked, struct ew_cuda_cache *out, struct ew_error *err) EW_MUST_CHECK;
// Makes it and tells the driver through the environment, which it reads when it starts: before the first call of it,
// and while there is one thread.
int ew_cuda_cache_use(const struct ew_cuda_cache *cache, struct ew_error *err) EW_MUST_CHECK;
