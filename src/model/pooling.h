#pragma once
// How a model makes one vector of a text, from its own files: sentence-transformers' modules beside a checkpoint, the
// keys of a GGUF file, or what the family's models usually do.

#include "model/shape.h"

// kind NONE: the model writes text. A decoder that pools is changed into one: it keeps no caches and has no head.
int ew_pooling_read(const struct ew_modelfile *file, struct ew_shape *shape, struct ew_pooling *pooling,
                    struct ew_error *err) EW_MUST_CHECK;
// The prompt of this name; false where the model has none. An empty name gives the default one, which may be empty.
bool ew_pooling_prompt(const struct ew_pooling *pooling, struct ew_str name, struct ew_str *text);

// Of models that score. Whether a pair of texts has one score; the score; the share of each label [width] (of a single
// one the probability), and a label's name, which may be empty.
bool ew_pooling_scores(const struct ew_pooling *pooling);
double ew_pooling_score(const struct ew_pooling *pooling, const float *vector);
void ew_pooling_shares(const struct ew_pooling *pooling, const float *vector, double *out);
struct ew_str ew_pooling_label(const struct ew_model *model, uint32_t i);

// EW_ERR_UNSUPPORTED for models that make vectors, where text is to be written.
int ew_pooling_needs_text(const struct ew_model *model, struct ew_error *err) EW_MUST_CHECK;

// Pools rows of hidden states [n_rows, width] of one text into out [width]: the only row of CLS and LAST, the mean of
// all; normalised where the model does so.
void ew_pool_rows(const struct ew_pooling *pooling, const float *rows, uint32_t n_rows, float *out);
// Cuts a vector to its first n elements (Matryoshka embeddings), and makes its length 1 again where the model does.
void ew_pool_cut(const struct ew_pooling *pooling, float *vector, uint32_t n);
