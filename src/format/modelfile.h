#pragma once
// What `--model` names, opened: a GGUF file or a Hugging Face directory, behind one view. Nothing is interpreted here beyond
// finding and checking the parts; families and tokenisers read what they need from `gguf` or from the JSON trees.

#include "base/alloc.h"
#include "base/error.h"
#include "format/gguf.h"
#include "format/json.h"
#include "format/safetensors.h"

enum ew_modelfile_kind { EW_MODELFILE_GGUF, EW_MODELFILE_HF };

struct ew_modelfile {
    enum ew_modelfile_kind kind;
    char *path;
    const struct ew_tensors *tensors;        // of whichever it is
    struct ew_gguf gguf;                     // GGUF
    struct ew_safetensors safetensors;       // HF
    struct ew_arena arena;                   // the trees below
    const struct ew_json *config;            // HF: config.json, never NULL
    const struct ew_json *generation_config; // HF, or NULL
    const struct ew_json *tokenizer;         // HF: tokenizer.json, or NULL
    const struct ew_json *tokenizer_config;  // HF, or NULL
    struct ew_str chat_template;             // chat_template.jinja or tokenizer_config's (default), GGUF tokenizer.chat_template; ptr NULL where none
};

// `demo` resolves to the bundled model (see ew_modelfile_resolve). With need_weights false, a directory without safetensors and a
// vocabulary-only GGUF are accepted.
int ew_modelfile_open(struct ew_modelfile *file, const char *model, bool need_weights, struct ew_error *err) EW_MUST_CHECK;
void ew_modelfile_close(struct ew_modelfile *file);
// The path that `model` stands for: itself, or for "demo" the first of EDGEWISE_DEMO, models/demo.gguf beside the executable's
// build tree, the installed one (EW_DATADIR). The caller frees.
int ew_modelfile_resolve(const char *model, char **path, struct ew_error *err) EW_MUST_CHECK;
