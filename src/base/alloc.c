#include "base/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES_MIN 16384 // small enough for a config file, large enough that chunk headers do not matter

struct ew_arena_chunk {
    struct ew_arena_chunk *next;
    size_t used, size;
    _Alignas(16) unsigned char data[];
};

static _Atomic uint64_t g_alloc_count;
static _Atomic uint64_t g_fail_at; // absolute count; 0: never

static bool may_allocate(void)
{
    uint64_t n = atomic_fetch_add_explicit(&g_alloc_count, 1, memory_order_relaxed) + 1;

    return n != atomic_load_explicit(&g_fail_at, memory_order_relaxed);
}

void ew_alloc_fail_at(uint64_t n)
{
    atomic_store(&g_fail_at, n ? atomic_load(&g_alloc_count) + n : 0);
}

uint64_t ew_alloc_count(void)
{
    return atomic_load_explicit(&g_alloc_count, memory_order_relaxed);
}

bool ew_mul_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

bool ew_add_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

void *ew_alloc(size_t bytes)
{
    return may_allocate() ? calloc(1, bytes ? bytes : 1) : NULL;
}

void *ew_alloc_array(size_t count, size_t size)
{
    size_t bytes;

    return ew_mul_size(count, size, &bytes) ? ew_alloc(bytes) : NULL;
}

void *ew_alloc_aligned(size_t bytes)
{
    size_t rounded;
    void *ptr;

    if (!ew_add_size(bytes ? bytes : 1, 63, &rounded) || !may_allocate())
        return NULL;
    rounded &= ~(size_t)63;
    ptr = aligned_alloc(64, rounded);
    if (ptr)
        memset(ptr, 0, rounded);
    return ptr;
}

void *ew_realloc_array(void *ptr, size_t count, size_t size)
{
    size_t bytes;

    if (!ew_mul_size(count, size, &bytes) || !may_allocate())
        return NULL;
    return realloc(ptr, bytes ? bytes : 1);
}

char *ew_strdup(const char *text)
{
    size_t len = strlen(text) + 1;
    char *copy = ew_alloc(len);

    if (copy)
        memcpy(copy, text, len);
    return copy;
}

void ew_free(void *ptr)
{
    free(ptr);
}

void ew_arena_init(struct ew_arena *arena, size_t limit)
{
    *arena = (struct ew_arena){.limit = limit};
}

void ew_arena_fini(struct ew_arena *arena)
{
    struct ew_arena_chunk *chunk = arena->chunks, *next;

    for (; chunk; chunk = next) {
        next = chunk->next;
        ew_free(chunk);
    }
    arena->chunks = NULL;
    arena->used = 0;
}

void ew_arena_reset(struct ew_arena *arena)
{
    ew_arena_fini(arena);
}

static struct ew_arena_chunk *add_chunk(struct ew_arena *arena, size_t bytes)
{
    // Chunks double with the arena, so that n small requests cost O(log n) allocations.
    size_t size = arena->used > CHUNK_BYTES_MIN ? arena->used : CHUNK_BYTES_MIN, total;
    struct ew_arena_chunk *chunk;

    if (size > ((size_t)4 << 20))
        size = (size_t)4 << 20;
    if (size < bytes)
        size = bytes;
    if (!ew_add_size(size, sizeof(*chunk), &total))
        return NULL;
    chunk = ew_alloc(total);
    if (!chunk)
        return NULL;
    chunk->size = size;
    chunk->next = arena->chunks;
    arena->chunks = chunk;
    return chunk;
}

void *ew_arena_alloc(struct ew_arena *arena, size_t bytes)
{
    struct ew_arena_chunk *chunk = arena->chunks;
    size_t rounded, after;
    void *ptr;

    if (!ew_add_size(bytes ? bytes : 1, 15, &rounded))
        return NULL;
    rounded &= ~(size_t)15;
    if (!ew_add_size(arena->used, rounded, &after) || after > arena->limit)
        return NULL;
    if (!chunk || chunk->size - chunk->used < rounded)
        chunk = add_chunk(arena, rounded);
    if (!chunk)
        return NULL;
    ptr = chunk->data + chunk->used;
    chunk->used += rounded;
    arena->used = after;
    return ptr;
}

void *ew_arena_array(struct ew_arena *arena, size_t count, size_t size)
{
    size_t bytes;

    return ew_mul_size(count, size, &bytes) ? ew_arena_alloc(arena, bytes) : NULL;
}

char *ew_arena_copy(struct ew_arena *arena, const char *text, size_t len)
{
    size_t total;
    char *copy;

    if (!ew_add_size(len, 1, &total))
        return NULL;
    copy = ew_arena_alloc(arena, total);
    if (copy && len)
        memcpy(copy, text, len);
    return copy;
}
