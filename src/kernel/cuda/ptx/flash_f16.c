#include "kernel/cuda/ptx/flash.h"

DEFINE_OF(KV_F16, f16)
