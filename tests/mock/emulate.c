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

// ---- fibers -------------------------------------------------------------------------------------

// Where a fiber goes on. Kernels meet at every warp-wide function, so most of an emulated GPU's time would be spent in
// setjmp and longjmp: where we know how, a dozen instructions of our own do the same.
#ifdef __x86_64__

struct context {
    void *stack; // what the ABI has a function keep lies there
};

void emu_switch(struct context *from, struct context *to);
__asm__(".text\n"
        ".type emu_switch, @function\n"
        "emu_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq (%rsi), %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size emu_switch, . - emu_switch\n");

// The first switch to it returns into main, at the stack's end as after a call.
static void context_make(struct context *context, uint8_t *stack, void (*main)(void))
{
    void **top = (void **)(stack + STACK_BYTES) - 8;

    memcpy(&top[6], &main, sizeof(main));
    context->stack = top;
}

#else

struct context {
    jmp_buf here;
};

static void emu_switch(struct context *from, struct context *to)
{
    if (_setjmp(from->here) == 0)
        _longjmp(to->here, 1);
}

static struct context *g_made, g_maker;
static void (*g_made_main)(void);

static void context_main(void)
{
    emu_switch(g_made, &g_maker);
    g_made_main();
}

static void context_make(struct context *context, uint8_t *stack, void (*main)(void))
{
    static ucontext_t first, back;

    if (getcontext(&first)) {
        perror("mock CUDA: a stack");
        abort();
    }
    first.uc_stack.ss_sp = stack;
    first.uc_stack.ss_size = STACK_BYTES;
    first.uc_link = NULL;
    makecontext(&first, context_main, 0);
    g_made = context;
    g_made_main = main;
    if (_setjmp(g_maker.here) == 0)
        swapcontext(&back, &first);
}

#endif

struct fiber {
    struct emu_thread at; // the first member: emu_now points to it
    struct context here;
    bool has_stack;
};

struct emu_thread *emu_now;
uint8_t g_dynamic[SHARED_BYTES] __attribute__((aligned(128))); // kernels' `extern SHARED u8 g_dynamic[]`

struct block {
    uint8_t states[THREADS_MAX]; // enum state
    struct fiber fibers[THREADS_MAX];
    struct emu_warp warps[THREADS_MAX / 32];
    uint8_t *shared; // what was in g_dynamic when it waited for the others
};

static struct block *g_blocks[BLOCKS_MAX];
static struct context g_scheduler;
static void (*g_body)(void *ctx);
static void *g_ctx;

// The warp that runs.
static struct fiber *g_lanes;
static uint8_t *g_states;
static uint32_t g_n_lanes;

// From lane `first` on the first one that is not held up; n_lanes if none.
static uint32_t next_lane(uint32_t first)
{
    while (first < g_n_lanes && g_states[first] != STATE_RUNS)
        first++;
    return first;
}

static struct context *enter(uint32_t lane)
{
    if (lane == g_n_lanes)
        return &g_scheduler;
    emu_now = &g_lanes[lane].at;
    return &g_lanes[lane].here;
}

// On to the next lane, and behind the last one to the scheduler.
static void leave(enum state state)
{
    struct fiber *fiber = (struct fiber *)emu_now;
    uint32_t lane = fiber->at.thread % 32;

    g_states[lane] = (uint8_t)state;
    emu_switch(&fiber->here, enter(next_lane(lane + 1)));
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
    void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (stack == MAP_FAILED) {
        perror("mock CUDA: a stack");
        abort();
    }
    context_make(&fiber->here, stack, fiber_main);
    fiber->has_stack = true;
}

static const char *g_name; // of the kernel

static void refuse(uint32_t warp, const char *what)
{
    fprintf(stderr, "mock CUDA: kernel %s, warp %u: %s\n", g_name, warp, what);
    abort();
}

static uint32_t count(const uint8_t *states, uint32_t n_states, enum state state)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_states; i++)
        n += states[i] == state;
    return n;
}

static void set(uint8_t *states, uint32_t n_states, enum state from, enum state to)
{
    for (uint32_t i = 0; i < n_states; i++)
        states[i] = (uint8_t)(states[i] == from ? to : states[i]);
}

// Until all lanes of the warp are at the block's barrier or at their end, or some poll what others will do.
static void run_warp(struct block *block, uint32_t warp, uint32_t n_lanes)
{
    g_lanes = block->fibers + warp * 32;
    g_states = block->states + warp * 32;
    g_n_lanes = n_lanes;
    set(g_states, n_lanes, STATE_POLLS, STATE_RUNS);
    for (;;) {
        uint32_t first = next_lane(0), n_waiting;

        if (first < n_lanes)
            emu_switch(&g_scheduler, enter(first));
        n_waiting = count(g_states, n_lanes, STATE_AT_WARP);
        if (n_waiting == 0 || count(g_states, n_lanes, STATE_POLLS))
            return;
        if (n_waiting != n_lanes)
            refuse(warp, "some lanes are at a warp-wide function, others elsewhere");
        memset(g_states, STATE_RUNS, n_lanes);
    }
}

// Threads at the block's barrier go on once all are there.
static bool pass_barrier(struct block *block, const struct emu_grid *grid)
{
    if (count(block->states, grid->n_threads, STATE_AT_BLOCK) != grid->n_threads)
        return false;
    memset(block->states, STATE_RUNS, grid->n_threads);
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
        if (count(block->states, grid->n_threads, STATE_AT_CLUSTER) == grid->n_threads)
            return false;
        if (count(block->states, grid->n_threads, STATE_POLLS) == 0) {
            if (count(block->states, grid->n_threads, STATE_ENDED) != grid->n_threads)
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
    memset(block->states, STATE_RUNS, grid->n_threads);
    for (uint32_t i = 0; i < grid->n_threads; i++) {
        if (!block->fibers[i].has_stack)
            give_stack(&block->fibers[i]);
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
            set(block->states, grid->n_threads, STATE_AT_CLUSTER, STATE_RUNS);
            memcpy(g_dynamic, block->shared, grid->shared_bytes);
            has_ended[i] = run_block(block, grid, (x + y + z + i) % 2);
            if (!has_ended[i] && count(block->states, grid->n_threads, STATE_AT_CLUSTER) != grid->n_threads)
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
