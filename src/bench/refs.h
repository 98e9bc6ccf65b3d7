#pragma once
// The reference results of a fixture (design: sections 2 and 8): token ids, logits of every position, greedy
// continuations.

#include "format/safetensors.h"
#include "model/model.h"

#define EW_REFS_MAX 8

struct ew_ref {               // of one sequence; the arrays live in the set's arena
    uint32_t n_ids, n_greedy; // n_greedy 0: none given
    int32_t *ids;             // [n_ids]
    float *logits;            // [n_ids, n_vocab]
    int32_t *greedy;          // [n_greedy]
    float *margin;            // [n_greedy] how far the best logit was above the second
    float *hidden;            // [n_ids, width] of models that make vectors, which have no logits ...
    float *vector;            // [n_vector] ... and what is pooled of it
};

struct ew_refs {
    uint32_t count, n_vocab;
    uint32_t width, n_vector; // 0: the references are logits
    struct ew_ref list[EW_REFS_MAX];
    struct ew_arena arena;
};

// EW_ERR_UNSUPPORTED where the file has not what this model computes, EW_ERR_FORMAT where shapes or ids do not fit each
// other or the model.
int ew_refs_open(struct ew_refs *refs, const char *path, const struct ew_model *model,
                 struct ew_error *err) EW_MUST_CHECK;
void ew_refs_close(struct ew_refs *refs);
