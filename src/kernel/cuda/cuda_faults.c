// What a driver's status means to people: the cause and the remedy. Names and numbers: CUresult of the driver API
// reference.

#include "base/assert.h"
#include "kernel/cuda/cuda_device.h"

#define RESET "Restart edgewise; if it comes back, look for Xid in dmesg, reset the GPU or the machine"
#define UPDATE "Install a newer NVIDIA driver, or use --backend cpu"
#define REPORT "Run edgewise bench kernels --backend cuda and report what it says; --backend cpu works meanwhile"
#define WHOLE "Install the driver whole; in a container, use one with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
#define DOCTOR "Run edgewise doctor, or use --backend cpu"

static const struct fault {
    int status, code;
    const char *cause, *remedy;
} FAULTS[] = {
    {1, EW_ERR_DEVICE, "it takes this call for a mistake of ours", REPORT},
    {2, EW_ERR_MEMORY, "the GPU has too little memory left",
     "Use a smaller --ctx or --memory-budget, or end what else uses the GPU"},
    {3, EW_ERR_DEVICE, "it was not started", DOCTOR},
    {4, EW_ERR_DEVICE, "it is shutting down", "Restart edgewise"},
    {34, EW_ERR_DEVICE, "libcuda.so.1 is the toolkit's stub, not the driver's library",
     "Take the folder named stubs out of LD_LIBRARY_PATH"},
    {36, EW_ERR_UNSUPPORTED, "a newer driver is needed for this call", UPDATE},
    {46, EW_ERR_DEVICE, "another process holds the GPU for itself, or its compute mode forbids new ones",
     "End that process, or run nvidia-smi -c DEFAULT"},
    {100, EW_ERR_DEVICE, "it sees no GPU",
     "Check CUDA_VISIBLE_DEVICES; start a container with --gpus all or --runtime nvidia; run edgewise doctor"},
    {101, EW_ERR_DEVICE, "there is no such GPU", "Check CUDA_VISIBLE_DEVICES"},
    {102, EW_ERR_DEVICE, "the GPU has no licence for computing",
     "Give the virtual machine a vGPU licence for computing, or use --backend cpu"},
    {200, EW_ERR_DEVICE, "the module of kernels is damaged", "Reinstall edgewise"},
    {201, EW_ERR_DEVICE, "the GPU's context is gone", RESET},
    {205, EW_ERR_DEVICE, "it could not map memory", RESET},
    {209, EW_ERR_UNSUPPORTED, "it has no way to run these kernels on this GPU", UPDATE},
    {214, EW_ERR_DEVICE, "the GPU's memory has an error that ECC cannot correct",
     "Restart edgewise; look at nvidia-smi -q -d ECC,ROW_REMAPPER, and reset or replace the GPU where it comes back"},
    {218, EW_ERR_UNSUPPORTED, "its compiler refuses the kernels", UPDATE},
    {220, EW_ERR_DEVICE, "NVLink failed", RESET},
    {221, EW_ERR_DEVICE, "its compiler, libnvidia-ptxjitcompiler.so.1, is missing", WHOLE},
    {222, EW_ERR_UNSUPPORTED, "it is older than the kernels' PTX", UPDATE},
    {223, EW_ERR_DEVICE, "compiling kernels is switched off", "Unset CUDA_DISABLE_PTX_JIT"},
    {224, EW_ERR_UNSUPPORTED, "the GPU cannot be shared out that way", UPDATE},
    {226, EW_ERR_DEVICE, "the GPU's memory failed, and it contained the damage", RESET},
    {302, EW_ERR_DEVICE, "a library that it needs is missing or another version's", WHOLE},
    {303, EW_ERR_DEVICE, "a library that it needs does not start", WHOLE},
    {304, EW_ERR_DEVICE, "the operating system refused it",
     "Check the permissions of /dev/nvidia*, and run edgewise doctor"},
    {400, EW_ERR_DEVICE, "it takes this call for a mistake of ours", REPORT},
    {401, EW_ERR_DEVICE, "it is not in a state for this call", RESET},
    {500, EW_ERR_DEVICE, "something it was asked for is not there", "Reinstall edgewise"},
    {700, EW_ERR_DEVICE, "a kernel used memory that is not its own", REPORT},
    {701, EW_ERR_DEVICE, "a kernel needs more registers or shared memory than this GPU has", REPORT},
    {702, EW_ERR_DEVICE, "a kernel ran longer than the display's watchdog allows",
     "Use a GPU without a display, a smaller --chunk, or switch the watchdog off (Interactive in xorg.conf)"},
    {709, EW_ERR_DEVICE, "the GPU's context is gone", RESET},
    {710, EW_ERR_DEVICE, "a kernel gave up", REPORT},
    {712, EW_ERR_DEVICE, "it takes this call for a mistake of ours", REPORT},
    {713, EW_ERR_DEVICE, "it takes this call for a mistake of ours", REPORT},
    {714, EW_ERR_DEVICE, "the GPU's call stack failed", RESET},
    {715, EW_ERR_DEVICE, "a kernel has an instruction that this GPU lacks", REPORT},
    {716, EW_ERR_DEVICE, "a kernel used an address that is not aligned", REPORT},
    {717, EW_ERR_DEVICE, "a kernel used an address of another kind of memory", REPORT},
    {718, EW_ERR_DEVICE, "a kernel left its code", REPORT},
    {719, EW_ERR_DEVICE, "a kernel died; the GPU may have been lost (Xid)", RESET},
    {720, EW_ERR_DEVICE, "a kernel has more blocks than this GPU can run at once", REPORT},
    {721, EW_ERR_DEVICE, "a kernel left memory of its own behind", REPORT},
    {800, EW_ERR_DEVICE, "this process may not do that",
     "Run it as a user who may use the GPU; in a container, start it with --gpus all"},
    {801, EW_ERR_DEVICE, "this GPU or driver cannot do that", UPDATE},
    {802, EW_ERR_DEVICE, "the GPUs are not ready: their fabric manager does not run",
     "Start nvidia-fabricmanager, whose version must be the driver's"},
    {803, EW_ERR_DEVICE, "its library and its kernel module have different versions",
     "Restart the machine after the driver's update; in a container, do not carry a libcuda.so.1 of its own"},
    {804, EW_ERR_DEVICE, "a compatibility library is in use that this GPU does not support",
     "Take cuda-compat out of LD_LIBRARY_PATH"},
    {805, EW_ERR_DEVICE, "the MPS server does not answer", "Restart nvidia-cuda-mps-control"},
    {806, EW_ERR_DEVICE, "the MPS server failed", "Restart nvidia-cuda-mps-control"},
    {807, EW_ERR_DEVICE, "the MPS server is not ready", "Try again in a moment, or restart nvidia-cuda-mps-control"},
    {808, EW_ERR_DEVICE, "the MPS server has no room for another client", "End another process that uses the GPU"},
    {809, EW_ERR_DEVICE, "the MPS server has no room for another connection", "End another process that uses the GPU"},
    {810, EW_ERR_DEVICE, "the MPS server ended this process's part", "Restart edgewise"},
    {900, EW_ERR_DEVICE, "it cannot record this step", REPORT},
    {901, EW_ERR_DEVICE, "it gave up recording a step", REPORT},
    {912, EW_ERR_DEVICE, "this GPU cannot group blocks that way", REPORT},
    {916, EW_ERR_DEVICE, "the GPU's keys must change before it goes on", RESET},
    {999, EW_ERR_DEVICE, "it does not know why; often the GPU was lost (Xid) or the machine slept", RESET},
};

static const struct fault *find(int status)
{
    static const struct fault unknown = {0, EW_ERR_DEVICE, "it gives no further reason", DOCTOR};

    for (size_t i = 0; i < EW_COUNT_OF(FAULTS); i++) {
        if (FAULTS[i].status == status)
            return &FAULTS[i];
    }
    return &unknown;
}

int ew_cuda_check(const struct ew_cuda_device *device, int status, const char *what, struct ew_error *err)
{
    const struct fault *fault;
    char name[96];

    if (status == EW_CUDA_SUCCESS)
        return 0;
    fault = find(status);
    ew_cuda_error_name(&device->driver, status, name, sizeof(name));
    ew_fail(err, fault->code, "%s failed: the NVIDIA driver answers %s: %s", what, name, fault->cause);
    return ew_remedy(err, fault->code, "%s", fault->remedy);
}
