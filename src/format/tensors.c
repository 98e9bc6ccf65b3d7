#include "format/tensors.h"

#include <stdlib.h>

#include "base/alloc.h"
#include "base/utf8.h"

const struct ew_tensor *ew_tensors_find(const struct ew_tensors *set, struct ew_str name)
{
    uint32_t at;

    return ew_map_get(&set->by_name, name, &at) && at < set->count ? &set->list[at] : NULL;
}

int ew_tensors_need(const struct ew_tensors *set, struct ew_str name, const struct ew_tensor **out,
                    struct ew_error *err)
{
    uint32_t at;

    *out = NULL;
    if (!ew_map_get(&set->by_name, name, &at))
        return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " is missing from the model", EW_STR_ARG(name));
    if (at >= set->count)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "tensor " EW_STR_FMT " %s", EW_STR_ARG(name),
                       set->refused[at - set->count].why);
    *out = &set->list[at];
    return EW_OK;
}

int ew_tensor_name_check(struct ew_str name, size_t max, struct ew_error *err)
{
    if (name.len == 0)
        return ew_fail(err, EW_ERR_FORMAT, "a name is empty");
    if (name.len > max)
        return ew_fail(err, EW_ERR_LIMIT, "a name of %zu bytes is longer than the %zu allowed", name.len, max);
    for (size_t i = 0; i < name.len; i++)
        if ((unsigned char)name.ptr[i] < 0x20 || name.ptr[i] == 0x7F)
            return ew_fail(err, EW_ERR_FORMAT, "a name holds a control character");
    if (!ew_utf8_valid(name.ptr, name.len))
        return ew_fail(err, EW_ERR_FORMAT, "a name is not UTF-8");
    return EW_OK;
}

bool ew_tensor_size(enum ew_dtype dtype, uint32_t n_dims, const uint64_t *shape, uint64_t *bytes)
{
    uint64_t total, rows = 1;

    *bytes = 0;
    for (uint32_t i = 0; i < n_dims; i++)
        if (shape[i] == 0)
            return true;
    for (uint32_t i = 0; i + 1 < n_dims; i++)
        if (__builtin_mul_overflow(rows, shape[i], &rows))
            return false;
    total = ew_dtype_row_bytes(dtype, n_dims ? shape[n_dims - 1] : 1);
    if (total == 0 || __builtin_mul_overflow(total, rows, &total) || total > INT64_MAX)
        return false;
    *bytes = total;
    return true;
}

static int by_place(const void *a, const void *b)
{
    const struct ew_tensor *x = *(struct ew_tensor *const *)a, *y = *(struct ew_tensor *const *)b;

    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int check_overlap(const struct ew_tensors *set, struct ew_error *err)
{
    const struct ew_tensor **sorted = ew_alloc_array(set->count, sizeof(*sorted));
    int code = EW_OK;

    if (!sorted)
        return ew_fail_memory(err, set->count * sizeof(*sorted), "the list of tensors");
    for (uint64_t i = 0; i < set->count; i++)
        sorted[i] = &set->list[i];
    qsort(sorted, set->count, sizeof(*sorted), by_place);
    for (uint64_t i = 1; i < set->count && code == EW_OK; i++) // every tensor lies in one mapping, so addresses compare
        if (sorted[i - 1]->data + sorted[i - 1]->bytes > sorted[i]->data)
            code = ew_fail(err, EW_ERR_FORMAT, "tensors " EW_STR_FMT " and " EW_STR_FMT " overlap",
                           EW_STR_ARG(sorted[i - 1]->name), EW_STR_ARG(sorted[i]->name));
    ew_free(sorted);
    return code;
}

// The refused ones have the numbers after those of the list.
static int index_names(struct ew_tensors *set, struct ew_error *err)
{
    uint64_t count = set->count + set->n_refused;
    bool repeated = false;

    if (count > UINT32_MAX || ew_map_init(&set->by_name, count) != EW_OK)
        return ew_fail_memory(err, count * sizeof(struct ew_tensor), "the index of tensors");
    for (uint64_t i = 0; i < count; i++) {
        struct ew_str name = i < set->count ? set->list[i].name : set->refused[i - set->count].name;

        if (ew_map_put(&set->by_name, name, (uint32_t)i, &repeated) != EW_OK)
            return ew_fail_memory(err, count * sizeof(struct ew_tensor), "the index of tensors");
        if (repeated)
            return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " is there twice", EW_STR_ARG(name));
    }
    return EW_OK;
}

int ew_tensors_index(struct ew_tensors *set, struct ew_error *err)
{
    int code = index_names(set, err);

    if (code == EW_OK)
        code = check_overlap(set, err);
    if (code != EW_OK)
        return code;
    set->bytes = 0;
    for (uint64_t i = 0; i < set->count; i++)
        set->bytes += set->list[i].bytes; // cannot overflow: tensors that do not overlap fit in the address space
    return EW_OK;
}

void ew_tensors_fini(struct ew_tensors *set)
{
    ew_map_fini(&set->by_name);
}
