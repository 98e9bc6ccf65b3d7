#pragma once
// From a device profile to the engine's configuration.

#include "engine/engine.h"
#include "format/profile.h"

// "f32", "f16", "fp8", "int8".
int ew_kv_dtype_find(const char *name, enum ew_kv_dtype *out, struct ew_error *err) EW_MUST_CHECK;

// Fills what config leaves at 0 from the profile's `serve:` section and targets; what is set (by the command line)
// stays. The type of the caches is the profile's unless kv_is_given, the context at most what the model was trained
// with. EW_ERR_USAGE names a value that makes no sense.
int ew_settings_apply(const struct ew_profile *profile, const struct ew_model *model, bool kv_is_given,
                      struct ew_engine_config *config, struct ew_error *err) EW_MUST_CHECK;
