#pragma once
// Rotary embedding: from its configuration, as files carry it, to frequencies.
//
// Sources of the formulas: Su et al., RoFormer (2021); linear and dynamic NTK scaling as transformers defines them;
// Peng et al., YaRN (2023), section 3; Llama 3.1's reference code; Ding et al., LongRoPE (2024), with Phi-3's
// attention factor. Where a paper and transformers (modeling_rope_utils) differ, transformers is right: models are
// published against it.

#include "model/shape.h"
#include "model/value.h"

// Sets shape->ropes from config.json: `rope_parameters` (flat, or an object for each kind of layer) or
// `rope_scaling`. The shape's common fields must have been read.
int ew_rope_from_config(struct ew_shape *shape, const struct ew_json *config, struct ew_error *err) EW_MUST_CHECK;
// The same from GGUF keys and the tensors rope_freqs, rope_factors_long and rope_factors_short.
int ew_rope_from_gguf(struct ew_shape *shape, const struct ew_gguf *gguf, struct ew_error *err) EW_MUST_CHECK;
// Derives n_dims and the original context, then checks ranges and lengths.
int ew_rope_finish(struct ew_shape *shape, struct ew_error *err) EW_MUST_CHECK;

// Frequencies into the arena. The shape must be finished.
int ew_rope_build(struct ew_arena *arena, const struct ew_rope_shape *shape, enum ew_rope_kind kind,
                  struct ew_rope *out, struct ew_error *err) EW_MUST_CHECK;
// What YaRN multiplies the scores of attention over latents with (DeepSeek's mscale_all_dim, for queries and keys).
float ew_rope_latent_factor(const struct ew_rope_shape *shape);
// What cos and sin are multiplied by.
double ew_rope_attention_factor(const struct ew_rope_shape *shape);
