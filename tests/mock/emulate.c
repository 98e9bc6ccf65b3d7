#include "emulate.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "kernel/cuda/ptx/machine.h"

#define THREADS_MAX 1024
#define ROUNDS_MAX 1000
#define POLLS_MAX 4 // before other blocks have their turn
#define BLOCKS_MAX 16 // that wait for each other
#define STACK_BYTES ((size_t)128 << 10)
#define SHARED_BYTES ((size_t)256 << 10)

enum state { STATE_RUNS, STATE_AT_WARP, STATE_AT_BLOCK, STATE_AT_CLUSTER, STATE_ENDED, STATE_POLLS };

struct fiber {
    struct emu_thread at; // the first member: emu_now points to it
    enum state state;
    jmp_buf here;
    bool has_stack;
};

struct emu_thread *emu_now;
uint8_t g_dynamic[SHARED_BYTES] __attribute__((aligned(128))); // kernels' `extern SHARED u8 g_dynamic[]`

struct block {
    struct fiber fibers[THREADS_MAX];
    struct emu_warp warps[THREADS_MAX / 32];
    uint8_t *shared; // what was in g_dynamic when it waited for the others
};

static struct block *g_blocks[BLOCKS_MAX];
static jmp_buf g_scheduler;
static void (*g_body)(void *ctx);
static void *g_ctx;

static void leave(enum state state)
{
    struct fiber *fiber = (struct fiber *)emu_now;

    fiber->state = state;
    if (_setjmp(fiber->here) == 0)
        _longjmp(g_scheduler, 1);
}

void emu_block_sync(void)
{
    leave(STATE_AT_BLOCK);
}

void emu_warp_sync(void)
{
    leave(STATE_AT_WARP);
}

void emu_others(void)
{
    leave(STATE_POLLS);
}

void emu_cluster_sync(void)
{
    leave(emu_now->n_cluster > 1 ? STATE_AT_CLUSTER : STATE_AT_BLOCK);
}

// A fiber lives as long as the program: what it runs changes from kernel to kernel.
static void fiber_main(void)
{
    for (;;) {
        g_body(g_ctx);
        leave(STATE_ENDED);
    }
}

static void give_stack(struct fiber *fiber)
{
    static ucontext_t first, back;
    void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (stack == MAP_FAILED || getcontext(&first)) {
        perror("mock CUDA: a stack");
        abort();
    }
    first.uc_stack.ss_sp = stack;
    first.uc_stack.ss_size = STACK_BYTES;
    first.uc_link = NULL;
    makecontext(&first, fiber_main, 0);
    fiber->has_stack = true;
    swapcontext(&back, &first);
}

static void resume(struct fiber *fiber)
{
    fiber->state = STATE_RUNS;
    emu_now = &fiber->at;
    if (_setjmp(g_scheduler))
        return;
    if (fiber->has_stack)
        _longjmp(fiber->here, 1);
    give_stack(fiber);
}

static const char *g_name; // of the kernel

static void refuse(uint32_t warp, const char *what)
{
    fprintf(stderr, "mock CUDA: kernel %s, warp %u: %s\n", g_name, warp, what);
    abort();
}

// Until all lanes of the warp are at the block's barrier or at their end, or some poll what others will do.
static void run_warp(struct block *block, uint32_t warp, uint32_t n_lanes)
{
    struct fiber *lanes = block->fibers + warp * 32;

    for (uint32_t i = 0; i < n_lanes; i++) {
        if (lanes[i].state == STATE_POLLS)
            lanes[i].state = STATE_RUNS;
    }
    for (;;) {
        uint32_t n[STATE_POLLS + 1] = {0};

        for (uint32_t i = 0; i < n_lanes; i++) {
            if (lanes[i].state == STATE_RUNS)
                resume(&lanes[i]);
            n[lanes[i].state]++;
        }
        if (n[STATE_AT_WARP] == 0 || n[STATE_POLLS])
            return;
        if (n[STATE_AT_WARP] != n_lanes)
            refuse(warp, "some lanes are at a warp-wide function, others elsewhere");
        for (uint32_t i = 0; i < n_lanes; i++)
            lanes[i].state = STATE_RUNS;
    }
}

static uint32_t count(const struct block *block, const struct emu_grid *grid, enum state state)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < grid->n_threads; i++)
        n += block->fibers[i].state == state;
    return n;
}

// Threads at the block's barrier go on once all are there.
static bool pass_barrier(struct block *block, const struct emu_grid *grid)
{
    if (count(block, grid, STATE_AT_BLOCK) != grid->n_threads)
        return false;
    for (uint32_t i = 0; i < grid->n_threads; i++)
        block->fibers[i].state = STATE_RUNS;
    return true;
}

// Until the block has ended (true), or polls and polls, or is at its cluster's barrier. Odd blocks run their warps
// backwards, so that an order that no barrier demands does not look as if one did.
static bool run_block(struct block *block, const struct emu_grid *grid, bool backwards)
{
    uint32_t n_warps = (grid->n_threads + 31) / 32, n_polls = 0;

    while (n_polls < POLLS_MAX) {
        for (uint32_t i = 0; i < n_warps; i++) {
            uint32_t warp = backwards ? n_warps - 1 - i : i, rest = grid->n_threads - warp * 32;

            run_warp(block, warp, rest < 32 ? rest : 32);
        }
        if (pass_barrier(block, grid))
            continue;
        if (count(block, grid, STATE_AT_CLUSTER) == grid->n_threads)
            return false;
        if (count(block, grid, STATE_POLLS) == 0) {
            if (count(block, grid, STATE_ENDED) != grid->n_threads)
                refuse(0, "some threads ended while others wait at the block's barrier");
            return true;
        }
        n_polls++;
    }
    return false;
}

static struct block *begin_block(uint32_t slot, const struct emu_grid *grid, uint32_t x, uint32_t y, uint32_t z)
{
    struct block *block = g_blocks[slot];

    memset(g_dynamic, 0xFF, grid->shared_bytes); // what others left there is no kernel's to use: NaN
    if (!block)
        block = g_blocks[slot] = calloc(1, sizeof(*block));
    if (!block) {
        perror("mock CUDA: a block");
        abort();
    }
    for (uint32_t i = 0; i < grid->n_threads; i++) {
        block->fibers[i].state = STATE_RUNS;
        block->fibers[i].at = (struct emu_thread){
            .thread = i, .n_threads = grid->n_threads, .block = {x, y, z}, .warp = &block->warps[i / 32],
            .n_blocks = {grid->blocks[0], grid->blocks[1], grid->blocks[2]}, .n_cluster = grid->cluster,
        };
    }
    return block;
}

static void keep_shared(struct block *block, const struct emu_grid *grid)
{
    if (!block->shared)
        block->shared = malloc(SHARED_BYTES);
    if (!block->shared) {
        perror("mock CUDA: shared memory");
        abort();
    }
    memcpy(block->shared, g_dynamic, grid->shared_bytes);
}

// Fibers that are in the middle of a kernel begin anew, on other stacks.
static void abandon(uint32_t n_blocks)
{
    for (uint32_t i = 0; i < n_blocks; i++) {
        for (uint32_t j = 0; j < THREADS_MAX; j++)
            g_blocks[i]->fibers[j].has_stack = false;
    }
}

// Block `first`, in slot 0, waits for those behind it: all run by turns from here on. Only dynamic shared memory is
// kept for each: nothing else may live while blocks wait for each other.
static void run_together(const struct emu_grid *grid, uint32_t first, bool without_first)
{
    uint32_t n = grid->blocks[0] - first, n_left = n;
    bool has_ended[BLOCKS_MAX] = {false};

    if (n > BLOCKS_MAX || grid->blocks[1] != 1 || grid->blocks[2] != 1)
        refuse(0, "a block waits for others that need not be there");
    for (uint32_t i = 0; i < n; i++) {
        if (i)
            begin_block(i, grid, first + i, 0, 0);
        keep_shared(g_blocks[i], grid);
    }
    for (uint32_t round = 0; n_left; round++) {
        if (round == ROUNDS_MAX && without_first) { // it is what they wait for
            abandon(n);
            return;
        }
        if (round == ROUNDS_MAX)
            refuse(0, "blocks wait for each other in vain");
        for (uint32_t i = 0; i < n; i++) {
            if (has_ended[i])
                continue;
            memcpy(g_dynamic, g_blocks[i]->shared, grid->shared_bytes);
            has_ended[i] = run_block(g_blocks[i], grid, (first + i) % 2);
            keep_shared(g_blocks[i], grid);
            n_left -= has_ended[i];
        }
    }
}

void *emu_cluster_at(void *p, uint32_t rank)
{
    size_t at = (size_t)((uint8_t *)p - g_dynamic);

    return rank == emu_now->block[2] % emu_now->n_cluster ? p : g_blocks[rank]->shared + at;
}

// A block whose threads are all at the cluster's barrier goes on once the others are there, or at their end.
static void run_cluster(const struct emu_grid *grid, uint32_t x, uint32_t y, uint32_t z)
{
    bool has_ended[BLOCKS_MAX] = {false};
    uint32_t n_left = grid->cluster;

    for (uint32_t i = 0; i < grid->cluster; i++)
        keep_shared(begin_block(i, grid, x, y, z + i), grid);
    while (n_left) {
        for (uint32_t i = 0; i < grid->cluster; i++) {
            struct block *block = g_blocks[i];

            if (has_ended[i])
                continue;
            for (uint32_t t = 0; t < grid->n_threads; t++) {
                if (block->fibers[t].state == STATE_AT_CLUSTER)
                    block->fibers[t].state = STATE_RUNS;
            }
            memcpy(g_dynamic, block->shared, grid->shared_bytes);
            has_ended[i] = run_block(block, grid, (x + y + z + i) % 2);
            if (!has_ended[i] && count(block, grid, STATE_AT_CLUSTER) != grid->n_threads)
                refuse(0, "a block of a cluster waits for others by other means");
            keep_shared(block, grid);
            n_left -= has_ended[i];
        }
    }
}

void emu_run(const char *name, const struct emu_grid *grid, bool without_first, void (*body)(void *ctx), void *ctx)
{
    g_name = name;
    g_body = body;
    g_ctx = ctx;
    if (grid->n_threads > THREADS_MAX)
        refuse(0, "more than 1024 threads");
    if (grid->shared_bytes > SHARED_BYTES)
        refuse(0, "more shared memory than a block can have");
    for (uint32_t z = 0; z < grid->blocks[2]; z += grid->cluster)
        for (uint32_t y = 0; y < grid->blocks[1]; y++)
            for (uint32_t x = 0; x < grid->blocks[0]; x++) {
                if (without_first && x + y + z == 0)
                    continue;
                if (grid->cluster > 1) {
                    run_cluster(grid, x, y, z);
                    continue;
                }
                if (!run_block(begin_block(0, grid, x, y, z), grid, (x + y + z) % 2)) {
                    run_together(grid, x, without_first);
                    return;
                }
            }
}
