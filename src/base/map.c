#include "base/map.h"

#include <string.h>
#include <sys/random.h>
#include <threads.h>

#include "base/alloc.h"

struct ew_map_slot {
    struct ew_str key; // ptr NULL: free
    uint64_t hash;
    uint32_t value;
};

struct ew_imap_slot {
    uint64_t key;
    uint32_t value;
    bool used;
};

static uint64_t g_seed;
static once_flag g_seed_once = ONCE_FLAG_INIT;

static void make_seed(void)
{
    if (getrandom(&g_seed, sizeof(g_seed), GRND_NONBLOCK) != sizeof(g_seed))
        g_seed = (uintptr_t)&g_seed * 0x9E3779B97F4A7C15u; // early boot: the address is all there is
}

static uint64_t process_seed(void)
{
    call_once(&g_seed_once, make_seed);
    return g_seed;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

uint64_t ew_hash_bytes(const void *bytes, size_t len, uint64_t seed)
{
    const unsigned char *at = bytes;
    uint64_t hash = seed ^ len * 0x9E3779B97F4A7C15u, word;

    for (; len >= 8; len -= 8, at += 8) {
        memcpy(&word, at, 8);
        hash = mix(hash ^ word) + seed;
    }
    word = 0;
    if (len)
        memcpy(&word, at, len);
    return mix(hash ^ word);
}

static size_t slots_for(size_t expected)
{
    size_t n = 16;

    while (n < expected + expected / 2 && n <= SIZE_MAX / 4)
        n *= 2;
    return n;
}

int ew_map_init(struct ew_map *map, size_t expected)
{
    *map = (struct ew_map){.n_slots = slots_for(expected)};
    map->slots = ew_alloc_array(map->n_slots, sizeof(*map->slots));
    return map->slots ? EW_OK : EW_ERR_MEMORY;
}

void ew_map_fini(struct ew_map *map)
{
    ew_free(map->slots);
    *map = (struct ew_map){0};
}

static struct ew_map_slot *find(const struct ew_map *map, struct ew_str key, uint64_t hash)
{
    for (size_t i = hash & (map->n_slots - 1);; i = (i + 1) & (map->n_slots - 1)) {
        struct ew_map_slot *slot = &map->slots[i];

        if (!slot->key.ptr || (slot->hash == hash && ew_str_eq(slot->key, key)))
            return slot;
    }
}

static int grow(struct ew_map *map)
{
    struct ew_map bigger;

    if (ew_map_init(&bigger, map->n_slots * 4 / 3) != EW_OK)
        return EW_ERR_MEMORY;
    for (size_t i = 0; i < map->n_slots; i++)
        if (map->slots[i].key.ptr)
            *find(&bigger, map->slots[i].key, map->slots[i].hash) = map->slots[i];
    bigger.count = map->count;
    ew_map_fini(map);
    *map = bigger;
    return EW_OK;
}

int ew_map_put(struct ew_map *map, struct ew_str key, uint32_t value, bool *replaced)
{
    uint64_t hash;
    struct ew_map_slot *slot;

    if (map->count * 3 >= map->n_slots * 2 && grow(map) != EW_OK)
        return EW_ERR_MEMORY;
    if (!key.ptr)
        key.ptr = "";
    hash = ew_hash_bytes(key.ptr, key.len, process_seed());
    slot = find(map, key, hash);
    if (replaced)
        *replaced = slot->key.ptr != NULL;
    if (!slot->key.ptr)
        map->count++;
    *slot = (struct ew_map_slot){key, hash, value};
    return EW_OK;
}

bool ew_map_get(const struct ew_map *map, struct ew_str key, uint32_t *value)
{
    struct ew_map_slot *slot;

    if (map->count == 0)
        return false;
    slot = find(map, key, ew_hash_bytes(key.ptr, key.len, process_seed()));
    if (!slot->key.ptr)
        return false;
    *value = slot->value;
    return true;
}

int ew_imap_init(struct ew_imap *map, size_t expected)
{
    *map = (struct ew_imap){.n_slots = slots_for(expected)};
    map->slots = ew_alloc_array(map->n_slots, sizeof(*map->slots));
    return map->slots ? EW_OK : EW_ERR_MEMORY;
}

void ew_imap_fini(struct ew_imap *map)
{
    ew_free(map->slots);
    *map = (struct ew_imap){0};
}

static struct ew_imap_slot *ifind(const struct ew_imap *map, uint64_t key)
{
    for (size_t i = mix(key ^ process_seed()) & (map->n_slots - 1);; i = (i + 1) & (map->n_slots - 1))
        if (!map->slots[i].used || map->slots[i].key == key)
            return &map->slots[i];
}

static int igrow(struct ew_imap *map)
{
    struct ew_imap bigger;

    if (ew_imap_init(&bigger, map->n_slots * 4 / 3) != EW_OK)
        return EW_ERR_MEMORY;
    for (size_t i = 0; i < map->n_slots; i++)
        if (map->slots[i].used)
            *ifind(&bigger, map->slots[i].key) = map->slots[i];
    bigger.count = map->count;
    ew_imap_fini(map);
    *map = bigger;
    return EW_OK;
}

int ew_imap_put(struct ew_imap *map, uint64_t key, uint32_t value)
{
    struct ew_imap_slot *slot;

    if (map->count * 3 >= map->n_slots * 2 && igrow(map) != EW_OK)
        return EW_ERR_MEMORY;
    slot = ifind(map, key);
    if (!slot->used)
        map->count++;
    *slot = (struct ew_imap_slot){key, value, true};
    return EW_OK;
}

bool ew_imap_get(const struct ew_imap *map, uint64_t key, uint32_t *value)
{
    struct ew_imap_slot *slot;

    if (map->count == 0)
        return false;
    slot = ifind(map, key);
    if (slot->used)
        *value = slot->value;
    return slot->used;
}
