#include "platform/gpu_test.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "platform/cuda_driver.h"
#include "platform/driver_child.h"

#define TIME_LIMIT_S 20.0
#define BYTES ((size_t)64 << 20)
#define WORDS (BYTES / 4)
#define BLOCK 256
#define TRIPS 20

// data[i] += 1. By hand, because the modules that the build makes belong to a layer above; the same floor of PTX 7.4
// and sm_80, so that what this proves holds for them.
static const char g_ptx[] = ".version 7.4\n"
                            ".target sm_80\n"
                            ".address_size 64\n"
                            ".visible .entry add_one(.param .u64 data, .param .u32 count)\n"
                            "{\n"
                            "    .reg .pred %p<2>;\n"
                            "    .reg .b32 %r<7>;\n"
                            "    .reg .b64 %rd<5>;\n"
                            "    ld.param.u64 %rd1, [data];\n"
                            "    ld.param.u32 %r1, [count];\n"
                            "    mov.u32 %r2, %ctaid.x;\n"
                            "    mov.u32 %r3, %ntid.x;\n"
                            "    mov.u32 %r4, %tid.x;\n"
                            "    mad.lo.u32 %r5, %r2, %r3, %r4;\n"
                            "    setp.ge.u32 %p1, %r5, %r1;\n"
                            "    @%p1 bra done;\n"
                            "    cvta.to.global.u64 %rd2, %rd1;\n"
                            "    mul.wide.u32 %rd3, %r5, 4;\n"
                            "    add.u64 %rd4, %rd2, %rd3;\n"
                            "    ld.global.u32 %r6, [%rd4];\n"
                            "    add.u32 %r6, %r6, 1;\n"
                            "    st.global.u32 [%rd4], %r6;\n"
                            "done:\n"
                            "    ret;\n"
                            "}\n";

struct test {
    struct ew_cuda_driver cuda;
    void *context, *module, *function;
    uint64_t data;
    uint32_t *host; // [WORDS]
};

static int launch(struct test *t, uint32_t count)
{
    void *arguments[] = {&t->data, &count};
    int status = t->cuda.cuLaunchKernel(t->function, (count + BLOCK - 1) / BLOCK, 1, 1, BLOCK, 1, 1, 0, NULL,
                                        arguments, NULL);

    return status ? status : t->cuda.cuCtxSynchronize();
}

static int there_and_back(struct test *t, uint32_t count, double *copy_s)
{
    double started_s = ew_clock_s();
    int status = t->cuda.cuMemcpyHtoD_v2(t->data, t->host, (size_t)count * 4);

    *copy_s = ew_clock_s() - started_s;
    status = status ? status : launch(t, count);
    return status ? status : t->cuda.cuMemcpyDtoH_v2(t->host, t->data, (size_t)count * 4);
}

static int prepare(struct test *t, int *count)
{
    int device, status = t->cuda.cuInit(0);

    status = status ? status : t->cuda.cuDeviceGetCount(count);
    if (status || *count == 0)
        return status;
    status = t->cuda.cuDeviceGet(&device, 0);
    status = status ? status : t->cuda.cuDevicePrimaryCtxRetain(&t->context, device);
    status = status ? status : t->cuda.cuCtxSetCurrent(t->context);
    status = status ? status : t->cuda.cuModuleLoadData(&t->module, g_ptx);
    status = status ? status : t->cuda.cuModuleGetFunction(&t->function, t->module, "add_one");
    return status ? status : t->cuda.cuMemAlloc_v2(&t->data, BYTES);
}

// The whole buffer, checked word by word; then a few words, timed.
static int run(struct test *t, FILE *to)
{
    uint32_t wrong = 0;
    double copy_s = 0, best_s = 1e9, started_s;
    int status;

    for (uint32_t i = 0; i < WORDS; i++)
        t->host[i] = i * 2654435761u;
    status = there_and_back(t, WORDS, &copy_s); // the first pass also pins and maps
    status = status ? status : there_and_back(t, WORDS, &copy_s);
    for (uint32_t i = 0; i < WORDS && status == 0; i++)
        wrong += t->host[i] != i * 2654435761u + 2;
    if (status)
        return status;
    ew_say_number(to, "gpu_copy_gbs", (double)(long long)((double)BYTES / copy_s / 1e8) / 10);
    for (int i = 0; i < TRIPS && status == 0; i++) {
        double unused;

        started_s = ew_clock_s();
        status = there_and_back(t, 16, &unused);
        best_s = EW_MIN(best_s, ew_clock_s() - started_s);
    }
    ew_say_number(to, "gpu_round_trip_ms", (double)(long long)(best_s * 1e6) / 1e3);
    if (wrong)
        fprintf(to, "gpu_test_error=s:%u of %zu words came back wrong\n", wrong, WORDS);
    fprintf(to, "gpu_test_ok=b:%d\n", status == 0 && wrong == 0);
    return status;
}

static void say(FILE *to)
{
    struct test t = {0};
    int status, count = 0;
    char name[96];

    if (ew_cuda_driver_open(&t.cuda, NULL) != EW_OK)
        return;
    t.host = ew_alloc(BYTES); // of the child, which ends with it
    status = t.host ? prepare(&t, &count) : 2; // CUDA_ERROR_OUT_OF_MEMORY
    if (status == 0 && count > 0)
        status = run(&t, to);
    if (status == 0 || status == 100) // CUDA_ERROR_NO_DEVICE: nothing to test
        return;
    ew_cuda_error_name(&t.cuda, status, name, sizeof(name));
    ew_say_text(to, "gpu_test_error", name);
    fprintf(to, "gpu_test_ok=b:0\n");
}

void ew_gpu_test(struct ew_facts *facts)
{
    char *text = ew_alloc(EW_DRIVER_REPORT_BYTES_MAX);

    if (!text) {
        facts->failed = true;
        return;
    }
    if (!ew_driver_ask(say, TIME_LIMIT_S, text, EW_DRIVER_REPORT_BYTES_MAX)) {
        ew_facts_set_bool(facts, "gpu_test_ok", false, "measured");
        ew_facts_set_str(facts, "gpu_test_error", EW_STR("the driver did not answer in time"), "measured");
    }
    ew_facts_parse_lines(facts, text, "measured");
    ew_free(text);
}
