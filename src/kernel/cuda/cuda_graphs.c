// Decode steps as graphs, one for each number of tokens, and another one where contexts are long. How early kernels may
// be started pays or costs by shape, type and GPU: blocks that wait beside those of the kernel before have their first
// weights there when their turn comes, but they also crowd on some multiprocessors. (8 B q8_0 on an H200: 307 tok/s
// with all of them started early, 341 without the products, 334 without any.) Longer rings of weights keep two
// products' blocks apart. So each way is tried in turn in the first steps, and the fastest one stays. All of them
// compute the same.

#include "base/assert.h"
#include "base/log.h"
#include "kernel/cuda/cuda_backend.h"

#include <stdio.h>

#define TRIES 5 // of each way; the shortest counts, as others wait for what is not theirs

static const char *const WAYS[EW_CUDA_WAY_COUNT] = {
    [EW_CUDA_WAY_EARLY] = "every kernel started early",
    [EW_CUDA_WAY_DEEP] = "every kernel started early, products with long rings",
    [EW_CUDA_WAY_PRODUCTS_LATE] = "products started in their turn",
    [EW_CUDA_WAY_LATE] = "every kernel started in its turn",
};

static bool is_under_way(const struct ew_cuda_backend *backend, const struct ew_cuda_graph *graph, int way)
{
    for (uint32_t i = backend->n_waited; i != backend->n_submitted; i++) {
        const struct ew_cuda_flight *flight = &backend->flights[i % EW_CUDA_FLIGHTS];

        if (flight->graph == graph && (int)flight->way == way)
            return true;
    }
    return false;
}

static enum ew_cuda_way fastest(const struct ew_cuda_graph *graph)
{
    enum ew_cuda_way best = EW_CUDA_WAY_EARLY;

    for (int i = 1; i < EW_CUDA_WAY_COUNT; i++) {
        if (graph->n_timed[i] && graph->ms[i] < graph->ms[best])
            best = (enum ew_cuda_way)i;
    }
    return best;
}

static uint32_t index_of(const struct ew_batch *batch)
{
    return batch->n_tokens + (ew_cuda_attend_is_far(batch) ? EW_CUDA_GRAPH_TOKENS_MAX + 1 : 0);
}

enum ew_cuda_way ew_cuda_graph_way(const struct ew_cuda_backend *backend, const struct ew_batch *batch)
{
    return fastest(&backend->graphs[index_of(batch)]);
}

static bool can_compare(const struct ew_cuda_backend *backend)
{
    const struct ew_cuda_device *device = &backend->device;

    for (int i = 0; i < EW_CUDA_KERNEL_COUNT; i++) {
        if (device->waits_itself[i])
            return device->driver.cuEventElapsedTime != NULL;
    }
    return false;
}

static bool is_trying(const struct ew_cuda_backend *backend, const struct ew_cuda_graph *graph)
{
    return graph->n_started < TRIES * EW_CUDA_WAY_COUNT && can_compare(backend);
}

bool ew_cuda_graph_is_trying(const struct ew_cuda_backend *backend)
{
    const struct ew_cuda_flight *flight = &backend->flights[(backend->n_submitted - 1) % EW_CUDA_FLIGHTS];

    return backend->n_submitted > 0 && flight->graph && is_trying(backend, flight->graph);
}

// How the next step goes. Ways that lost are given up once no step that takes them is under way.
static enum ew_cuda_way choose(struct ew_cuda_backend *backend, struct ew_cuda_graph *graph, bool *is_timed)
{
    enum ew_cuda_way best = fastest(graph);

    *is_timed = is_trying(backend, graph);
    if (*is_timed)
        return (enum ew_cuda_way)(graph->n_started++ % EW_CUDA_WAY_COUNT);
    for (int i = 0; i < EW_CUDA_WAY_COUNT; i++) {
        if (i == (int)best || !graph->ways[i] || graph->n_timed[i] < TRIES || is_under_way(backend, graph, i))
            continue;
        (void)backend->device.driver.cuGraphExecDestroy(graph->ways[i]);
        graph->ways[i] = NULL;
    }
    return best;
}

static int record(struct ew_cuda_backend *backend, const struct ew_batch *batch, enum ew_cuda_way way, void **out,
                  struct ew_error *err)
{
    const struct ew_cuda_device *device = &backend->device;
    void *graph = NULL;
    int rc = ew_cuda_check(device,
                           device->driver.cuStreamBeginCapture_v2(device->stream, EW_CUDA_CAPTURE_RELAXED),
                           "recording a step", err), status;

    if (rc)
        return rc;
    backend->device.way = way;
    rc = ew_cuda_step_launch(backend, batch, err);
    backend->device.way = EW_CUDA_WAY_EARLY;
    status = device->driver.cuStreamEndCapture(device->stream, &graph); // also after a failure: the stream records on
    if (rc == 0)
        rc = ew_cuda_check(device, status, "recording a step", err);
    if (rc == 0)
        rc = ew_cuda_check(device, device->driver.cuGraphInstantiateWithFlags(out, graph, 0),
                           "making a graph of a step", err);
    if (graph)
        (void)device->driver.cuGraphDestroy(graph);
    return rc;
}

static void tell(const struct ew_cuda_backend *backend, const struct ew_cuda_graph *graph)
{
    uint32_t at = (uint32_t)(graph - backend->graphs);
    char times[16 * EW_CUDA_WAY_COUNT] = "";
    size_t length = 0;

    for (int i = 0; i < EW_CUDA_WAY_COUNT; i++) {
        if (graph->n_timed[i] < TRIES)
            return;
        length += (size_t)snprintf(times + length, sizeof(times) - length, " %.3f", (double)graph->ms[i]);
    }
    ew_log(EW_LOG_DEBUG, "steps of %u tokens%s: %s; ms of the ways:%s", at % (EW_CUDA_GRAPH_TOKENS_MAX + 1),
           at > EW_CUDA_GRAPH_TOKENS_MAX ? ", long contexts" : "", WAYS[fastest(graph)], times);
}

// What the flight's last step took, if that was to be known: it has ended, since the flight is free again.
static int learn(struct ew_cuda_backend *backend, struct ew_cuda_flight *flight, struct ew_error *err)
{
    struct ew_cuda_graph *graph = flight->graph;
    float ms = 0;
    int rc;

    if (!flight->is_timed)
        return 0;
    flight->is_timed = false;
    rc = ew_cuda_check(&backend->device,
                       backend->device.driver.cuEventElapsedTime(&ms, flight->began, flight->ended), "timing a step",
                       err);
    if (rc)
        return rc;
    if (graph->n_timed[flight->way] == 0 || ms < graph->ms[flight->way])
        graph->ms[flight->way] = ms;
    graph->n_timed[flight->way]++;
    tell(backend, graph);
    return 0;
}

static int stamp(const struct ew_cuda_device *device, void **event, struct ew_error *err)
{
    int rc = 0;

    if (!*event)
        rc = ew_cuda_check(device, device->driver.cuEventCreate(event, 0), "making an event", err);
    return rc ? rc : ew_cuda_check(device, device->driver.cuEventRecord(*event, device->stream), "timing a step", err);
}

int ew_cuda_graph_start(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_cuda_flight *flight,
                        struct ew_error *err)
{
    const struct ew_cuda_device *device = &backend->device;
    struct ew_cuda_graph *graph = &backend->graphs[index_of(batch)];
    bool is_timed;
    int rc = learn(backend, flight, err);

    if (rc)
        return rc;
    flight->graph = graph;
    flight->way = choose(backend, graph, &is_timed);
    if (!graph->ways[flight->way])
        rc = record(backend, batch, flight->way, &graph->ways[flight->way], err);
    if (rc == 0 && is_timed)
        rc = stamp(device, &flight->began, err);
    if (rc == 0)
        rc = ew_cuda_check(device, device->driver.cuGraphLaunch(graph->ways[flight->way], device->stream),
                           "starting a step", err);
    if (rc == 0 && is_timed)
        rc = stamp(device, &flight->ended, err);
    flight->is_timed = rc == 0 && is_timed;
    return rc;
}

void ew_cuda_graphs_fini(struct ew_cuda_backend *backend)
{
    const struct ew_cuda_driver *driver = &backend->device.driver;

    for (uint32_t i = 0; i < EW_COUNT_OF(backend->graphs); i++) {
        for (int k = 0; k < EW_CUDA_WAY_COUNT; k++) {
            if (backend->graphs[i].ways[k])
                (void)driver->cuGraphExecDestroy(backend->graphs[i].ways[k]);
        }
    }
    for (int i = 0; i < EW_CUDA_FLIGHTS; i++) {
        if (backend->flights[i].began)
            (void)driver->cuEventDestroy_v2(backend->flights[i].began);
        if (backend->flights[i].ended)
            (void)driver->cuEventDestroy_v2(backend->flights[i].ended);
    }
}
