#include "kernel/cuda/ptx/flash.h"

DEFINE_OF(KV_I8, i8)
