#pragma once
// Runs a kernel that was compiled for the CPU: every block in turn, a fiber for each of its threads. Where one waits
// for others, they run by turns, as do the blocks of a cluster.

#include <stdbool.h>
#include <stdint.h>

struct emu_grid {
    uint32_t blocks[3], n_threads;
    uint32_t shared_bytes; // that the launch asks for
    uint32_t cluster;      // blocks along z
};

// `body` is the kernel with its arguments; without_first leaves the first block out. Ends the program with a sentence
// where threads wait for each other in vain.
void emu_run(const char *name, const struct emu_grid *grid, bool without_first, void (*body)(void *ctx), void *ctx);
