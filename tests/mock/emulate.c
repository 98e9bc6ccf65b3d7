#include "emulate.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "kernel/cuda/ptx/machine.h"

#define THREADS_MAX 1024
#define STACK_BYTES ((size_t)128 << 10)
#define SHARED_BYTES ((size_t)256 << 10)

enum state { STATE_RUNS, STATE_AT_WARP, STATE_AT_BLOCK, STATE_ENDED };

struct fiber {
    struct emu_thread at;
    enum state state;
    jmp_buf here;
    bool has_stack;
};

struct emu_thread *emu_now;
uint8_t g_dynamic[SHARED_BYTES] __attribute__((aligned(128))); // kernels' `extern SHARED u8 g_dynamic[]`

static struct fiber g_fibers[THREADS_MAX];
static struct emu_warp g_warps[THREADS_MAX / 32];
static jmp_buf g_scheduler;
static void (*g_body)(void *ctx);
static void *g_ctx;

static void leave(enum state state)
{
    struct fiber *fiber = &g_fibers[emu_now->thread];

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

static void refuse(const char *name, uint32_t warp, const char *what)
{
    fprintf(stderr, "mock CUDA: kernel %s, warp %u: %s\n", name, warp, what);
    abort();
}

// Until all lanes of the warp are at the block's barrier or at their end.
static void run_warp(const char *name, uint32_t warp, uint32_t n_lanes)
{
    struct fiber *lanes = g_fibers + warp * 32;

    for (;;) {
        uint32_t n[STATE_ENDED + 1] = {0};

        for (uint32_t i = 0; i < n_lanes; i++) {
            if (lanes[i].state == STATE_RUNS)
                resume(&lanes[i]);
            n[lanes[i].state]++;
        }
        if (n[STATE_AT_WARP] == 0)
            return;
        if (n[STATE_AT_WARP] != n_lanes)
            refuse(name, warp, "some lanes are at a warp-wide function, others elsewhere");
        for (uint32_t i = 0; i < n_lanes; i++)
            lanes[i].state = STATE_RUNS;
    }
}

// Odd blocks run their warps backwards, so that an order that no barrier demands does not look as if one did.
static void run_block(const char *name, const struct emu_grid *grid, bool backwards)
{
    uint32_t n_warps = (grid->n_threads + 31) / 32, n_ended;

    do {
        n_ended = 0;
        for (uint32_t i = 0; i < n_warps; i++) {
            uint32_t warp = backwards ? n_warps - 1 - i : i, rest = grid->n_threads - warp * 32;

            run_warp(name, warp, rest < 32 ? rest : 32);
        }
        for (uint32_t i = 0; i < grid->n_threads; i++) {
            if (g_fibers[i].state == STATE_ENDED)
                n_ended++;
            else
                g_fibers[i].state = STATE_RUNS;
        }
    } while (n_ended == 0);
    if (n_ended != grid->n_threads)
        refuse(name, 0, "some threads ended while others wait at the block's barrier");
}

static void begin_block(const struct emu_grid *grid, uint32_t x, uint32_t y, uint32_t z)
{
    for (uint32_t i = 0; i < grid->n_threads; i++) {
        g_fibers[i].state = STATE_RUNS;
        g_fibers[i].at = (struct emu_thread){
            .thread = i, .n_threads = grid->n_threads, .block = {x, y, z}, .warp = &g_warps[i / 32],
            .n_blocks = {grid->blocks[0], grid->blocks[1], grid->blocks[2]},
        };
    }
}

void emu_run(const char *name, const struct emu_grid *grid, bool without_first, void (*body)(void *ctx), void *ctx)
{
    if (grid->n_threads > THREADS_MAX)
        refuse(name, 0, "more than 1024 threads");
    g_body = body;
    g_ctx = ctx;
    for (uint32_t z = 0; z < grid->blocks[2]; z++)
        for (uint32_t y = 0; y < grid->blocks[1]; y++)
            for (uint32_t x = 0; x < grid->blocks[0]; x++) {
                if (without_first && x + y + z == 0)
                    continue;
                begin_block(grid, x, y, z);
                run_block(name, grid, (x + y + z) % 2);
            }
}
