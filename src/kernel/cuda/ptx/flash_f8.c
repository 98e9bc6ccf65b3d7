#include "kernel/cuda/ptx/flash.h"

DEFINE_OF(KV_F8, f8)
