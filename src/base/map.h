#pragma once
// Open-addressing hash maps from byte strings or integers to uint32_t. Keys of the string map are borrowed: they must
// outlive it. The hash is seeded per process, so that hostile keys cannot be made to collide.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

struct ew_map {
    struct ew_map_slot *slots;
    size_t n_slots, count; // n_slots is a power of two
};

// Room for `expected` keys without growing. Returns EW_ERR_MEMORY on failure.
int ew_map_init(struct ew_map *map, size_t expected) EW_MUST_CHECK;
void ew_map_fini(struct ew_map *map);
// Sets the key's value, replacing an earlier one; *replaced (may be NULL) tells. EW_ERR_MEMORY where it cannot grow.
int ew_map_put(struct ew_map *map, struct ew_str key, uint32_t value, bool *replaced) EW_MUST_CHECK;
bool ew_map_get(const struct ew_map *map, struct ew_str key, uint32_t *value);

// The same with 64-bit keys.
struct ew_imap {
    struct ew_imap_slot *slots;
    size_t n_slots, count;
};

int ew_imap_init(struct ew_imap *map, size_t expected) EW_MUST_CHECK;
void ew_imap_fini(struct ew_imap *map);
int ew_imap_put(struct ew_imap *map, uint64_t key, uint32_t value) EW_MUST_CHECK;
bool ew_imap_get(const struct ew_imap *map, uint64_t key, uint32_t *value);

uint64_t ew_hash_bytes(const void *bytes, size_t len, uint64_t seed);
