#pragma once
// What `--model` names, opened: a GGUF file or a Hugging Face directory, behind one view. Nothing is interpreted
// here beyond finding and checking the parts; families and tokenisers read what they need from `gguf` or from
// the JSON trees.
//
// Accepted are: a .gguf file (any file of a split one), a directory with config.json, a .safetensors file (its
// directory is meant), a directory with one GGUF model and no config.json, and `demo`.

#include "base/alloc.h"
#include "base/error.h"
#include "format/gguf.h"
#include "format/json.h"
#include "format/safetensors.h"

#define EW_DENSE_MAX 4 // modules behind the Pooling module

enum ew_modelfile_kind { EW_MODELFILE_GGUF, EW_MODELFILE_HF };

// Holds pointers into itself: it must stay where it was opened.
struct ew_modelfile {
    enum ew_modelfile_kind kind;
    char *path;
    const struct ew_tensors *tensors;        // of whichever it is; none of a directory without need_weights
    struct ew_gguf gguf;                     // GGUF
    struct ew_safetensors safetensors;       // HF
    struct ew_arena arena;                   // the trees below, but for tokenizer, and the templates
    struct ew_arena tokenizer_arena;
    const struct ew_json *config;            // HF: config.json, never NULL
    const struct ew_json *generation_config; // HF, or NULL
    const struct ew_json *tokenizer;         // HF: tokenizer.json, or NULL
    const struct ew_json *tokenizer_config;  // HF, or NULL
    // What sentence-transformers adds to models that make vectors, each NULL where it is absent: modules.json (a list),
    // the config.json of its Pooling module, config_sentence_transformers.json and sentence_bert_config.json.
    const struct ew_json *modules, *pooling, *sentence_config, *sentence_limits;
    // The configurations of its Dense modules in their order, whose tensors stand among the others with "dense_2.",
    // "dense_3." and so on before their names; and of its LogitScore module, or NULL.
    const struct ew_json *dense[EW_DENSE_MAX], *logit_score;
    uint32_t n_dense;
    bool is_ranker; // HF: the front matter of README.md says so ("pipeline_tag: text-ranking")
    // chat_template.jinja, or tokenizer_config's (of several the one named "default"), or chat_template.json's;
    // GGUF tokenizer.chat_template. ptr is NULL where there is none.
    struct ew_str chat_template;
    // The one named "tool_use", for conversations with tools: from [additional_]chat_templates/,
    // tokenizer_config's list, or GGUF tokenizer.chat_template.tool_use. ptr is NULL where there is none, which
    // is usual: chat_template serves both then.
    struct ew_str chat_template_tools;
};

// `demo` resolves to the bundled model (see ew_modelfile_resolve). With need_weights false, a directory without
// safetensors and a vocabulary-only GGUF are accepted.
int ew_modelfile_open(struct ew_modelfile *file, const char *model, bool need_weights, struct ew_error *err)
    EW_MUST_CHECK;
void ew_modelfile_close(struct ew_modelfile *file); // also of a zero-filled one, and harmless after a failed open
// Frees the tree `tokenizer`, which takes several times the size of its file, once nothing points into it any more.
void ew_modelfile_drop_tokenizer(struct ew_modelfile *file);
// The mapping that holds the tensors whose `file` is the given index.
const struct ew_mapfile *ew_modelfile_map(const struct ew_modelfile *file, uint32_t index);
uint64_t ew_modelfile_bytes(const struct ew_modelfile *file); // of all its mappings
// What the kernel keeps of them and nobody has mapped any more goes back to the system.
void ew_modelfile_give_back(const struct ew_modelfile *file);
// The path that `model` stands for: itself, or for "demo" the environment's EDGEWISE_DEMO, or else the first
// that exists of ../models/demo.gguf (a build tree) and ../share/edgewise/models/demo.gguf (a moved
// installation), both seen from the executable's directory, and EW_DATADIR/models/demo.gguf. The caller frees.
int ew_modelfile_resolve(const char *model, char **path, struct ew_error *err) EW_MUST_CHECK;
