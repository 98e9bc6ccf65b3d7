#include "text/merge.h"

#include "base/alloc.h"

#define SYMBOLS_MAX (UINT32_MAX - 2) // an index must differ from EW_MERGE_END and EW_MERGE_DEAD

void ew_merge_fini(struct ew_merge *merge)
{
    ew_free(merge->symbols);
    ew_free(merge->heap);
    *merge = (struct ew_merge){0};
}

void ew_merge_reset(struct ew_merge *merge, struct ew_str word)
{
    merge->count = 0;
    merge->heap_count = 0;
    merge->text = word.ptr;
    merge->text_len = word.len;
}

static int grow(void **items, size_t *cap, size_t size, struct ew_error *err)
{
    size_t bigger = *cap ? *cap + *cap / 2 : 64;
    void *moved = ew_realloc_array(*items, bigger, size);

    if (!moved)
        return ew_fail_memory(err, bigger * size, "the symbols of a long word");
    *items = moved;
    *cap = bigger;
    return EW_OK;
}

int ew_merge_push(struct ew_merge *merge, int32_t id, size_t at, struct ew_error *err)
{
    uint32_t index = (uint32_t)merge->count;
    int code;

    if (merge->count >= SYMBOLS_MAX || at > UINT32_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "a word of more than 4 GiB cannot be tokenised");
    if (merge->count == merge->cap) {
        code = grow((void **)&merge->symbols, &merge->cap, sizeof(*merge->symbols), err);
        if (code != EW_OK)
            return code;
    }
    merge->symbols[index] = (struct ew_merge_symbol){id, (uint32_t)at, index ? index - 1 : EW_MERGE_END, EW_MERGE_END};
    if (index)
        merge->symbols[index - 1].next = index;
    merge->count++;
    return EW_OK;
}

static void sift_down(uint64_t *heap, size_t count, size_t at)
{
    uint64_t item = heap[at];

    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= item)
            break;
        heap[at] = heap[child];
    }
    heap[at] = item;
}

static void sift_up(uint64_t *heap, size_t at)
{
    uint64_t item = heap[at];

    for (; at > 0 && heap[(at - 1) / 2] > item; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = item;
}

static uint64_t pop(struct ew_merge *merge)
{
    uint64_t top = merge->heap[0];

    merge->heap[0] = merge->heap[--merge->heap_count];
    if (merge->heap_count)
        sift_down(merge->heap, merge->heap_count, 0);
    return top;
}

struct runner {
    struct ew_merge *merge;
    ew_merge_rank_fn *rank;
    const void *model;
};

// Puts the pair that begins at `left` at the end of the heap's array, unordered, where it merges at all.
static int append_pair(struct runner *run, uint32_t left, bool *added, struct ew_error *err)
{
    struct ew_merge *merge = run->merge;
    uint32_t rank, right = merge->symbols[left].next;
    int32_t id;
    int code;

    *added = false;
    if (right == EW_MERGE_END || !run->rank(run->model, merge, left, right, &rank, &id))
        return EW_OK;
    if (merge->heap_count == merge->heap_cap) {
        code = grow((void **)&merge->heap, &merge->heap_cap, sizeof(*merge->heap), err);
        if (code != EW_OK)
            return code;
    }
    merge->heap[merge->heap_count++] = (uint64_t)rank << 32 | left;
    *added = true;
    return EW_OK;
}

static int add_pair(struct runner *run, uint32_t left, struct ew_error *err)
{
    bool added;
    int code = append_pair(run, left, &added, err);

    if (code == EW_OK && added)
        sift_up(run->merge->heap, run->merge->heap_count - 1);
    return code;
}

static int fill_heap(struct runner *run, struct ew_error *err)
{
    struct ew_merge *merge = run->merge;
    bool added;

    for (size_t i = 0; i + 1 < merge->count; i++) {
        int code = append_pair(run, (uint32_t)i, &added, err);

        if (code != EW_OK)
            return code;
    }
    for (size_t i = merge->heap_count / 2; i-- > 0;)
        sift_down(merge->heap, merge->heap_count, i);
    return EW_OK;
}

// Takes the pair of one heap entry, unless a neighbour has changed since it was put there: then its rank differs.
static int take(struct runner *run, uint64_t entry, struct ew_error *err)
{
    struct ew_merge *merge = run->merge;
    struct ew_merge_symbol *symbols = merge->symbols;
    uint32_t left = (uint32_t)entry, right = symbols[left].next, rank;
    int32_t id;
    int code = EW_OK;

    if (symbols[left].prev == EW_MERGE_DEAD || right == EW_MERGE_END ||
        !run->rank(run->model, merge, left, right, &rank, &id) || rank != entry >> 32)
        return EW_OK;
    symbols[left].id = id;
    symbols[left].next = symbols[right].next;
    symbols[right].prev = EW_MERGE_DEAD;
    if (symbols[left].next != EW_MERGE_END)
        symbols[symbols[left].next].prev = left;
    if (symbols[left].prev != EW_MERGE_END)
        code = add_pair(run, symbols[left].prev, err);
    return code == EW_OK ? add_pair(run, left, err) : code;
}

int ew_merge_run(struct ew_merge *merge, ew_merge_rank_fn *rank, const void *model, struct ew_error *err)
{
    struct runner run = {merge, rank, model};
    int code = fill_heap(&run, err);

    while (code == EW_OK && merge->heap_count)
        code = take(&run, pop(merge), err);
    return code;
}
