#pragma once
// Counted allocation and arenas.
//
// Every heap allocation of the program goes through here, so that tests can count them, cap them and make the n-th
// fail.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// All return NULL when memory is short, when count * size overflows, or when the injected failure strikes. Zero-filled.
void *ew_alloc(size_t bytes);
void *ew_alloc_array(size_t count, size_t size);
// 64-byte aligned, zero-filled; for tensors and anything that SIMD code reads. Free with ew_free.
void *ew_alloc_aligned(size_t bytes);
// Not zero-filled beyond the old size. On failure the old block stays.
void *ew_realloc_array(void *ptr, size_t count, size_t size);
char *ew_strdup(const char *text);
void ew_free(void *ptr);

uint64_t ew_alloc_count(void);            // allocations since the start, for "nothing is allocated in the steady state"
void ew_alloc_fail_at(uint64_t n);        // the n-th allocation from now fails (0: none); also EW_ALLOC_FAIL_AT

bool ew_mul_size(size_t a, size_t b, size_t *out); // false on overflow
bool ew_add_size(size_t a, size_t b, size_t *out);

// An arena gives memory that is freed all at once. It never moves what it gave. Not thread safe.
struct ew_arena_chunk;
struct ew_arena {
    struct ew_arena_chunk *chunks; // newest first
    size_t used;                   // bytes handed out
    size_t limit;                  // hard maximum of `used`; a larger request gives NULL
};

void ew_arena_init(struct ew_arena *arena, size_t limit);
void ew_arena_fini(struct ew_arena *arena);
void ew_arena_reset(struct ew_arena *arena); // forgets everything given, keeps the limit
void *ew_arena_alloc(struct ew_arena *arena, size_t bytes);             // 16-byte aligned, zero-filled, or NULL
void *ew_arena_array(struct ew_arena *arena, size_t count, size_t size);
char *ew_arena_copy(struct ew_arena *arena, const char *text, size_t len); // NUL is added
