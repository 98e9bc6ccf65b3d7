// Decode steps as graphs, one for each number of tokens, and another one where contexts are long. How early kernels may
// be started pays or costs by shape, type and GPU: blocks that wait beside those of the kernel before have their first
// weights there when their turn comes, but two of them also crowd on some multiprocessors while others have none. Where
// one product's blocks are so large that two do not fit, and the next one's so small that they fit beside, there is
// none of that; where products are long, memory is busier with the longest rings in all of them. (8 B q4_0 on an H200:
// 1.86 ms with the shortest rings, 1.57 with the longest, 1.43 with a fitting one behind the attention; q8_0 2.64, 2.35
// and 2.26, the last with the longest but behind the attention.) So each way is tried in turn in the first steps, and
// the fastest one stays. All of them compute the same.

#include "base/assert.h"
#include "base/buf.h"
#include "base/log.h"
#include "kernel/cuda/cuda_backend.h"

#include <math.h>

#define TEXT_MAX 1024
// How often each way is tried, how many more steps try the most promising ones, and how often any is tried at most. The
// shortest time counts, as others wait for what is not theirs.
#define TRIES 3
#define TRIES_MORE 24
#define TRIES_MAX 8

static uint32_t tokens_of(const struct ew_cuda_backend *backend, const struct ew_cuda_graph *graph)
{
    return (uint32_t)(graph - backend->graphs) % (EW_CUDA_GRAPH_TOKENS_MAX + 1);
}

// Lists the ways that differ; returns how many. Only products of one row have rings of several lengths.
static uint32_t list_ways(const struct ew_cuda_backend *backend, const struct ew_cuda_graph *graph,
                          enum ew_cuda_way list[EW_CUDA_WAY_COUNT])
{
    bool has_rings = tokens_of(backend, graph) == 1;
    uint32_t fitting = has_rings ? backend->fitting_places : 0, longest = has_rings ? backend->longest_places : 0;
    uint32_t n = 0;

    for (uint32_t way = 0; way < EW_CUDA_WAY_COUNT; way++) {
        uint32_t places = way % EW_CUDA_WAY_LONGEST;
        bool differs = !(places & ~fitting);

        if (way >= EW_CUDA_WAY_PRODUCTS_LATE)
            differs = true;
        else if (way >= EW_CUDA_WAY_LONGEST)
            differs = places & longest && !(places & ~(fitting | longest));
        if (differs)
            list[n++] = (enum ew_cuda_way)way;
    }
    return n;
}

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

static uint32_t tries_of(uint32_t n_ways)
{
    return EW_MIN(TRIES * n_ways + TRIES_MORE, TRIES_MAX * n_ways);
}

static bool is_trying(const struct ew_cuda_backend *backend, const struct ew_cuda_graph *graph)
{
    enum ew_cuda_way ways[EW_CUDA_WAY_COUNT];

    return graph->n_started < tries_of(list_ways(backend, graph, ways)) && can_compare(backend);
}

bool ew_cuda_graph_is_trying(const struct ew_cuda_backend *backend)
{
    const struct ew_cuda_flight *flight = &backend->flights[(backend->n_submitted - 1) % EW_CUDA_FLIGHTS];

    return backend->n_submitted > 0 && flight->graph && is_trying(backend, flight->graph);
}

// Of those that were not tried as often as any is to be.
static enum ew_cuda_way most_promising(const struct ew_cuda_graph *graph)
{
    enum ew_cuda_way best = EW_CUDA_WAY_EARLY;
    float ms = INFINITY;

    for (int i = 0; i < EW_CUDA_WAY_COUNT; i++) {
        if (graph->n_begun[i] < TRIES_MAX && graph->n_timed[i] && graph->ms[i] < ms) {
            best = (enum ew_cuda_way)i;
            ms = graph->ms[i];
        }
    }
    return best;
}

static enum ew_cuda_way next_to_try(const struct ew_cuda_backend *backend, const struct ew_cuda_graph *graph)
{
    enum ew_cuda_way ways[EW_CUDA_WAY_COUNT];
    uint32_t n_ways = list_ways(backend, graph, ways);

    return graph->n_started < TRIES * n_ways ? ways[graph->n_started % n_ways] : most_promising(graph);
}

// How the next step goes. Ways that lost are given up once no step that takes them is under way.
static enum ew_cuda_way choose(struct ew_cuda_backend *backend, struct ew_cuda_graph *graph, bool *is_timed)
{
    enum ew_cuda_way way = fastest(graph);

    *is_timed = is_trying(backend, graph);
    if (*is_timed) {
        way = next_to_try(backend, graph);
        graph->n_started++;
        graph->n_begun[way]++;
        return way;
    }
    for (int i = 0; i < EW_CUDA_WAY_COUNT; i++) {
        if (i == (int)way || !graph->ways[i] || graph->n_timed[i] < graph->n_begun[i] ||
            is_under_way(backend, graph, i))
            continue;
        (void)backend->device.driver.cuGraphExecDestroy(graph->ways[i]);
        graph->ways[i] = NULL;
    }
    return way;
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

static void append_way(enum ew_cuda_way way, struct ew_buf *text)
{
    static const char *const places[EW_CUDA_PLACE_COUNT] = {"before attention", "behind it", "of gates", "elsewhere"};
    uint32_t rings = way % EW_CUDA_WAY_LONGEST;

    if (way >= EW_CUDA_WAY_PRODUCTS_LATE) {
        ew_buf_printf(text, way == EW_CUDA_WAY_LATE ? "every kernel in its turn" : "products in their turn");
        return;
    }
    ew_buf_printf(text, "every kernel early%s",
                  !rings ? "" : way < EW_CUDA_WAY_LONGEST ? ", long rings" : ", longest rings");
    for (uint32_t i = 0; i < EW_CUDA_PLACE_COUNT; i++) {
        if (rings >> i & 1)
            ew_buf_printf(text, " %s%s", places[i], rings >> i > 1 ? "," : "");
    }
}

// The times are in the order of enum ew_cuda_way.
static void tell(const struct ew_cuda_backend *backend, const struct ew_cuda_graph *graph)
{
    enum ew_cuda_way ways[EW_CUDA_WAY_COUNT];
    uint32_t n_ways = list_ways(backend, graph, ways), n_timed = 0;
    bool is_far = graph - backend->graphs > EW_CUDA_GRAPH_TOKENS_MAX;
    struct ew_buf text;

    for (uint32_t i = 0; i < n_ways; i++)
        n_timed += graph->n_timed[ways[i]];
    if (n_timed < tries_of(n_ways))
        return;
    ew_buf_init(&text, TEXT_MAX);
    append_way(fastest(graph), &text);
    ew_buf_printf(&text, "; ms of the ways:");
    for (uint32_t i = 0; i < n_ways; i++)
        ew_buf_printf(&text, " %.3f", (double)graph->ms[ways[i]]);
    ew_log(EW_LOG_DEBUG, "steps of %u tokens%s: %.*s", tokens_of(backend, graph), is_far ? ", long contexts" : "",
           (int)text.len, (const char *)text.ptr);
    ew_buf_fini(&text);
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
