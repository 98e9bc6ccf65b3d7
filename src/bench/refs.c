#include "bench/refs.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#define REFS_BYTES_MAX ((size_t)4 << 30)

static const struct ew_tensor *find(const struct ew_safetensors *st, const char *stem, uint32_t index)
{
    char name[64];

    snprintf(name, sizeof(name), "%s_%u", stem, index);
    return ew_tensors_find(&st->tensors, ew_str_of(name));
}

static int read_i64(struct ew_refs *refs, const struct ew_tensor *tensor, int32_t **out, uint32_t *count,
                    struct ew_error *err)
{
    uint64_t n = tensor->bytes / sizeof(int64_t);

    if (tensor->dtype != EW_DTYPE_I64 || tensor->n_dims != 1 || n == 0 || n > INT32_MAX)
        return ew_fail(err, EW_ERR_FORMAT, EW_STR_FMT " must be a list of int64", EW_STR_ARG(tensor->name));
    *out = ew_arena_array(&refs->arena, n, sizeof(**out));
    if (!*out)
        return ew_fail_memory(err, n * sizeof(**out), "a reference");
    for (uint64_t i = 0; i < n; i++) {
        int64_t id;

        memcpy(&id, tensor->data + i * sizeof(id), sizeof(id)); // unaligned
        if (id < 0 || id >= refs->n_vocab)
            return ew_fail(err, EW_ERR_FORMAT, EW_STR_FMT " holds %lld and the vocabulary has %u",
                           EW_STR_ARG(tensor->name), (long long)id, refs->n_vocab);
        (*out)[i] = (int32_t)id;
    }
    *count = (uint32_t)n;
    return 0;
}

static int read_f32(struct ew_refs *refs, const struct ew_tensor *tensor, uint64_t rows, uint64_t cols, float **out,
                    struct ew_error *err)
{
    if (tensor->dtype != EW_DTYPE_F32 || tensor->bytes != rows * cols * sizeof(float))
        return ew_fail(err, EW_ERR_FORMAT, EW_STR_FMT " must hold %llu x %llu float32", EW_STR_ARG(tensor->name),
                       (unsigned long long)rows, (unsigned long long)cols);
    *out = ew_arena_alloc(&refs->arena, tensor->bytes);
    if (!*out)
        return ew_fail_memory(err, tensor->bytes, "a reference");
    memcpy(*out, tensor->data, tensor->bytes);
    return 0;
}

static int read_vectors(struct ew_refs *refs, const struct ew_safetensors *st, uint32_t index, struct ew_error *err)
{
    const struct ew_tensor *ids = find(st, "input_ids", index), *hidden = find(st, "last_hidden_state", index),
                           *vector = find(st, "embedding", index);
    struct ew_ref *ref = &refs->list[index];
    int rc;

    if (!ids || !vector)
        return ew_fail(err, EW_ERR_FORMAT, "last_hidden_state_%u has no input_ids_%u or embedding_%u", index, index,
                       index);
    rc = read_i64(refs, ids, &ref->ids, &ref->n_ids, err);
    if (rc == 0)
        rc = read_f32(refs, hidden, ref->n_ids, refs->width, &ref->hidden, err);
    if (rc == 0)
        rc = read_f32(refs, vector, 1, refs->n_vector, &ref->vector, err);
    return rc;
}

static int read_ref(struct ew_refs *refs, const struct ew_safetensors *st, uint32_t index, struct ew_error *err)
{
    const struct ew_tensor *ids = find(st, "input_ids", index), *logits = find(st, "logits", index);
    const struct ew_tensor *greedy = find(st, "greedy", index), *margin = find(st, "greedy_margin", index);
    struct ew_ref *ref = &refs->list[index];
    int rc;

    if (!ids)
        return ew_fail(err, EW_ERR_FORMAT, "logits_%u has no input_ids_%u", index, index);
    rc = read_i64(refs, ids, &ref->ids, &ref->n_ids, err);
    if (rc == 0)
        rc = read_f32(refs, logits, ref->n_ids, refs->n_vocab, &ref->logits, err);
    if (rc == 0 && greedy && margin)
        rc = read_i64(refs, greedy, &ref->greedy, &ref->n_greedy, err);
    if (rc == 0 && ref->n_greedy)
        rc = read_f32(refs, margin, 1, ref->n_greedy, &ref->margin, err);
    return rc;
}

int ew_refs_open(struct ew_refs *refs, const char *path, const struct ew_model *model, struct ew_error *err)
{
    bool pools = model->pooling.kind != EW_POOLING_NONE;
    const char *stem = pools ? "last_hidden_state" : "logits";
    struct ew_safetensors st;
    int rc;

    *refs = (struct ew_refs){.n_vocab = model->program.n_vocab};
    if (pools) {
        refs->width = model->program.width;
        refs->n_vector = model->pooling.width;
    }
    if (model->pooling.in_program)
        return ew_fail(err, EW_ERR_UNSUPPORTED,
                       "%s leads from hidden states to something else, with which no reference can be compared",
                       model->path);
    ew_arena_init(&refs->arena, REFS_BYTES_MAX);
    rc = ew_safetensors_open(&st, path, err);
    if (rc < 0)
        return rc;
    for (; rc == 0 && refs->count < EW_REFS_MAX && find(&st, stem, refs->count); refs->count += rc == 0)
        rc = (pools ? read_vectors : read_ref)(refs, &st, refs->count, err);
    if (rc == 0 && refs->count == 0)
        rc = ew_fail(err, EW_ERR_UNSUPPORTED,
                     "%s holds no %s_0, and other references are not compared for this kind of model", path, stem);
    else if (rc < 0)
        ew_fail_in(err, rc, "%s", path);
    ew_safetensors_close(&st);
    if (rc < 0)
        ew_refs_close(refs);
    return rc;
}

void ew_refs_close(struct ew_refs *refs)
{
    ew_arena_fini(&refs->arena);
    *refs = (struct ew_refs){0};
}
