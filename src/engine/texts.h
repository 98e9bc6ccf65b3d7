#pragma once
// Steps of models that make vectors: whole texts, packed by tokens without padding, pooled as the model does. Requests
// go in the order of engine/schedule.h, without caches to wait for. Engine thread only, but for made and check.

#include "engine/schedule.h"

bool ew_texts_made(const struct ew_engine *engine); // whether the engine's model makes vectors
// EW_ERR_LIMIT where a text of so many tokens is too long.
int ew_texts_check(const struct ew_engine *engine, uint32_t n_ids, struct ew_error *err) EW_MUST_CHECK;
void ew_texts_begin(struct ew_engine *engine); // plans and builds the next step; engine->n_work 0: there is none
int ew_texts_complete(struct ew_engine *engine, struct ew_error *err) EW_MUST_CHECK;
// The rows of a text that the program is asked for.
enum ew_rows ew_texts_rows(const struct ew_pooling *pooling);
