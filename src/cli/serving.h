#pragma once
// What `serve` serves: from its model options to the API's configuration.

#include "cli/cli.h"
#include "format/profile.h"
#include "server/api.h"

extern const struct ew_opt ew_opts_serving[]; // -m M[=ALIAS], --profile, sizes, limits

struct ew_serving {
    struct ew_model *model;
    struct ew_modelfile tok_file; // --tokenizer; else zero, and the model's file has the vocabulary
    struct ew_tokenizer *tok;    // NULL: the model has none
    struct ew_chat_format *chat; // NULL: none
    struct ew_pair_format *pairs; // NULL: none
    struct ew_profiles profiles;
    const struct ew_profile *profile; // NULL: none was asked for
    char *model_path, *model_id;
    struct ew_api_config config; // the caller adds service.wake and the version
};

// Opens the model (headers only; ew_api_create loads it). Several -m are refused.
int ew_serving_open(struct ew_serving *serving, const struct ew_args *args, struct ew_error *err) EW_MUST_CHECK;
void ew_serving_close(struct ew_serving *serving); // after ew_api_destroy
// Tells a person what is served and with which settings.
void ew_serving_report(const struct ew_serving *serving, const struct ew_api *api, FILE *to);
