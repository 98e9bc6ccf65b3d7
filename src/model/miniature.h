#pragma once
// A model of the same make in small, with random weights: a layer of each kind that the model has, types of weights,
// heads and everything else that kernels are chosen by as they are, widths cut short. What computes it right computes
// the model with the same kernels; self-tests run it.

#include "model/model.h"

#define EW_MINIATURE_LAYERS_MAX 12 // models with more kinds of layers are represented by their first ones

// Closed with ew_model_close, before the model that it was made from.
int ew_model_miniature(const struct ew_model *model, uint64_t seed, struct ew_model **out,
                       struct ew_error *err) EW_MUST_CHECK;
