#pragma once
// Which tokens begin and end a text, and how the model's makers sample: from generation_config, then config, then the
// tokenizer's metadata. What is absent or makes no sense is left out; nothing here can fail.

#include "model/model.h"

void ew_tokens_read(const struct ew_modelfile *file, uint32_t n_vocab, struct ew_model_tokens *tokens);
void ew_sampling_read(const struct ew_modelfile *file, struct ew_sampling_defaults *sampling);
void ew_sampling_none(struct ew_sampling_defaults *sampling); // nothing given
