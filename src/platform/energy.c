#include "platform/energy.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "platform/nvml.h"
#include "platform/rails.h"
#include "platform/sysfile.h"

#define COUNTERS_MAX 32
#define SAMPLE_S 0.1
#define FRESH_S 0.01  // readings younger than this are not repeated
#define WINDOW_S 1.0  // over which the power is averaged

enum kind { KIND_RAIL, KIND_GPU_COUNTER, KIND_GPU_POWER, KIND_RAPL };

// One thing that is read: a counter of joules, or a power that is integrated over the time between readings.
struct counter {
    enum kind kind;
    ew_nvml_device gpu;
    struct ew_rail rail;
    uint32_t package;  // of RAPL: intel-rapl:N
    double range;      // where the counter wraps around, in joules; 0: never
    double last;       // joules or watts
    unsigned long long held_ns; // of a GPU, by its power limit, when the meter was opened
};

struct ew_energy {
    char root[256];
    struct ew_nvml nvml;
    struct counter counters[COUNTERS_MAX];
    uint32_t n_counters;
    const char *source;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t closes;
    // Under the lock.
    bool closing;
    double joules, read_s;           // the sum, and when it was last brought up to date
    double mark_joules, mark_s, watts; // where the current window began; the mean of the last whole one
};

static bool read_rapl(const struct ew_energy *energy, uint32_t package, const char *file, double *joules)
{
    char text[64];
    uint64_t uj;

    if (ew_sysfile_readf(energy->root, text, sizeof(text), "/sys/class/powercap/intel-rapl:%u/%s", package, file) <=
            0 ||
        !ew_sysfile_number(text, &uj))
        return false;
    *joules = (double)uj / 1e6;
    return true;
}

static bool read_counter(const struct ew_energy *energy, const struct counter *counter, double *value)
{
    unsigned long long mj;
    unsigned mw;

    switch (counter->kind) {
    case KIND_RAIL:
        if (!ew_rail_read_mw(energy->root, &counter->rail, value))
            return false;
        *value /= 1000;
        return true;
    case KIND_GPU_COUNTER:
        if (energy->nvml.nvmlDeviceGetTotalEnergyConsumption(counter->gpu, &mj) != EW_NVML_SUCCESS)
            return false;
        *value = (double)mj / 1000;
        return true;
    case KIND_GPU_POWER:
        if (energy->nvml.nvmlDeviceGetPowerUsage(counter->gpu, &mw) != EW_NVML_SUCCESS)
            return false;
        *value = mw / 1000.0;
        return true;
    case KIND_RAPL:
        return read_rapl(energy, counter->package, "energy_uj", value);
    }
    return false;
}

static bool is_power(const struct counter *counter)
{
    return counter->kind == KIND_RAIL || counter->kind == KIND_GPU_POWER;
}

// What was used between two readings. One that fails, or a counter that was reset, adds nothing.
static double advance(const struct ew_energy *energy, struct counter *counter, double passed_s)
{
    double value, used;

    if (!read_counter(energy, counter, &value))
        return 0;
    if (is_power(counter))
        used = (value + counter->last) / 2 * passed_s;
    else
        used = value >= counter->last ? value - counter->last : value - counter->last + counter->range;
    counter->last = value;
    return EW_MAX(used, 0);
}

static void update(struct ew_energy *energy)
{
    double now_s = ew_clock_s(), passed_s = now_s - energy->read_s;

    if (passed_s < FRESH_S)
        return;
    for (uint32_t i = 0; i < energy->n_counters; i++)
        energy->joules += advance(energy, &energy->counters[i], passed_s);
    energy->read_s = now_s;
    if (now_s - energy->mark_s >= WINDOW_S || energy->watts == 0) {
        energy->watts = (energy->joules - energy->mark_joules) / (now_s - energy->mark_s);
        if (now_s - energy->mark_s >= WINDOW_S) {
            energy->mark_joules = energy->joules;
            energy->mark_s = now_s;
        }
    }
}

static void *sample(void *ctx)
{
    struct ew_energy *energy = ctx;

    pthread_mutex_lock(&energy->lock);
    while (!energy->closing) {
        struct timespec until;

        update(energy);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += (long)(SAMPLE_S * 1e9);
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&energy->closes, &energy->lock, &until);
    }
    pthread_mutex_unlock(&energy->lock);
    return NULL;
}

// False where the driver does not say.
static bool read_held(const struct ew_energy *energy, const struct counter *counter, unsigned long long *ns)
{
    struct ew_nvml_violation time;

    if ((counter->kind != KIND_GPU_COUNTER && counter->kind != KIND_GPU_POWER) ||
        !energy->nvml.nvmlDeviceGetViolationStatus ||
        energy->nvml.nvmlDeviceGetViolationStatus(counter->gpu, EW_NVML_VIOLATION_POWER, &time) != EW_NVML_SUCCESS)
        return false;
    *ns = time.violation_ns;
    return true;
}

// ---- finding what there is ----

// Keeps the counter if it can be read now.
static bool add(struct ew_energy *energy, struct counter counter)
{
    if (energy->n_counters == COUNTERS_MAX || !read_counter(energy, &counter, &counter.last))
        return false;
    (void)read_held(energy, &counter, &counter.held_ns);
    energy->counters[energy->n_counters++] = counter;
    return true;
}

static bool find_rails(struct ew_energy *energy)
{
    struct ew_rail rails[EW_RAILS_MAX];
    uint32_t count = ew_rails_find(energy->root, rails);
    bool has_total = false, found = false;

    for (uint32_t i = 0; i < count; i++)
        has_total |= rails[i].is_total;
    for (uint32_t i = 0; i < count; i++)
        if (rails[i].is_total || !has_total)
            found |= add(energy, (struct counter){.kind = KIND_RAIL, .rail = rails[i]});
    return found;
}

static bool find_gpus(struct ew_energy *energy)
{
    struct ew_nvml *nvml = &energy->nvml;
    ew_nvml_device gpu;
    unsigned count = 0;
    bool found = false;

    if (energy->root[0] || ew_nvml_open(nvml, NULL) != EW_OK)
        return false;
    if (nvml->nvmlDeviceGetCount_v2(&count) != EW_NVML_SUCCESS)
        count = 0;
    for (unsigned i = 0; i < EW_MIN(count, COUNTERS_MAX); i++) {
        if (nvml->nvmlDeviceGetHandleByIndex_v2(i, &gpu) != EW_NVML_SUCCESS)
            continue;
        if ((nvml->nvmlDeviceGetTotalEnergyConsumption &&
             add(energy, (struct counter){.kind = KIND_GPU_COUNTER, .gpu = gpu})) ||
            (nvml->nvmlDeviceGetPowerUsage && add(energy, (struct counter){.kind = KIND_GPU_POWER, .gpu = gpu})))
            found = true;
    }
    return found;
}

// Packages are intel-rapl:0, :1, ... (AMD's too) and are named package-N; another entry there may be the platform's.
static bool find_packages(struct ew_energy *energy)
{
    bool found = false;

    for (uint32_t i = 0; i < 16; i++) {
        struct counter counter = {.kind = KIND_RAPL, .package = i};
        char name[32];

        if (ew_sysfile_readf(energy->root, name, sizeof(name), "/sys/class/powercap/intel-rapl:%u/name", i) > 0 &&
            strncmp(name, "package-", 8) == 0 && read_rapl(energy, i, "max_energy_range_uj", &counter.range))
            found |= add(energy, counter);
    }
    return found;
}

static void find(struct ew_energy *energy, bool on_gpu)
{
    bool gpus;

    if (find_rails(energy)) {
        energy->source = "rails";
        return;
    }
    gpus = on_gpu && find_gpus(energy);
    if (on_gpu && !gpus)
        return; // the CPU's share alone would pass for the whole
    if (find_packages(energy))
        energy->source = gpus ? "NVML and RAPL" : "RAPL";
    else if (gpus)
        energy->source = "NVML";
}

static int start(struct ew_energy *energy, struct ew_error *err)
{
    pthread_condattr_t attributes;
    sigset_t all, before;
    int status;

    energy->read_s = energy->mark_s = ew_clock_s();
    pthread_mutex_init(&energy->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&energy->closes, &attributes);
    pthread_condattr_destroy(&attributes);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); // signals belong to the threads of the program
    status = pthread_create(&energy->thread, NULL, sample, energy);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status == 0)
        return EW_OK;
    pthread_cond_destroy(&energy->closes);
    pthread_mutex_destroy(&energy->lock);
    return ew_fail(err, EW_ERR_LIMIT, "the energy meter's thread does not start: %s", strerror(status));
}

int ew_energy_open(const char *root, bool on_gpu, struct ew_energy **out, struct ew_error *err)
{
    struct ew_energy *energy = ew_alloc(sizeof(*energy));
    int code = EW_OK;

    *out = NULL;
    if (!energy)
        return ew_fail_memory(err, sizeof(*energy), "the energy meter");
    if (root && strlen(root) < sizeof(energy->root))
        memcpy(energy->root, root, strlen(root));
    find(energy, on_gpu);
    if (energy->source)
        code = start(energy, err);
    if (code == EW_OK && energy->source) {
        *out = energy;
        return EW_OK;
    }
    ew_nvml_close(&energy->nvml);
    ew_free(energy);
    return code;
}

void ew_energy_close(struct ew_energy *energy)
{
    if (!energy)
        return;
    pthread_mutex_lock(&energy->lock);
    energy->closing = true;
    pthread_cond_signal(&energy->closes);
    pthread_mutex_unlock(&energy->lock);
    pthread_join(energy->thread, NULL);
    pthread_cond_destroy(&energy->closes);
    pthread_mutex_destroy(&energy->lock);
    ew_nvml_close(&energy->nvml);
    ew_free(energy);
}

double ew_energy_joules(struct ew_energy *energy)
{
    double joules;

    if (!energy)
        return 0;
    pthread_mutex_lock(&energy->lock);
    update(energy);
    joules = energy->joules;
    pthread_mutex_unlock(&energy->lock);
    return joules;
}

double ew_energy_watts(struct ew_energy *energy)
{
    double watts;

    if (!energy)
        return 0;
    pthread_mutex_lock(&energy->lock);
    update(energy);
    watts = energy->watts;
    pthread_mutex_unlock(&energy->lock);
    return watts;
}

double ew_energy_held_s(struct ew_energy *energy)
{
    double held_s = -1;

    for (uint32_t i = 0; energy && i < energy->n_counters; i++) {
        const struct counter *counter = &energy->counters[i];
        unsigned long long ns;

        if (read_held(energy, counter, &ns))
            held_s = EW_MAX(held_s, (double)(ns - EW_MIN(ns, counter->held_ns)) / 1e9);
    }
    return held_s;
}

const char *ew_energy_source(const struct ew_energy *energy)
{
    return energy ? energy->source : NULL;
}
