#pragma once
// Model families: YAML tables (data/families, docs/families.md) read once per ew_families_load, checked strictly.
//
// A family says, for each file format, how to recognise it, what its constants are, which keys fill which fields of
// the shape (model/field.h), which tensors' presence does, and what the tensors are called. It inherits what it
// does not say.

#include "base/alloc.h"
#include "base/error.h"
#include "format/tensors.h"
#include "format/yaml_tree.h"
#include "model/shape.h"

#define EW_FAMILIES_MAX 128
#define EW_FAMILY_CHAIN_MAX 8 // of `extends`

enum ew_family_format { EW_FAMILY_HF, EW_FAMILY_GGUF, EW_FAMILY_FORMATS };

// What a table says for one format; NULL where it says nothing.
struct ew_family_side {
    const struct ew_yaml *model_types;   // HF: list
    const struct ew_yaml *architectures; // list
    const struct ew_yaml *shape;         // field: constant
    const struct ew_yaml *keys;          // field: key, or list of keys of which the first present one counts
    const struct ew_yaml *present;       // field: tensors, any of which makes it true
    const struct ew_yaml *absent;        // field: tensors, whose absence makes it true
    const struct ew_yaml *tensors;       // canonical name: name in the file, or list of which the first present counts
    const struct ew_yaml *refuse;        // key: the value with which edgewise cannot compute the model
    const struct ew_yaml *roots;         // list of maps, each of beginnings of names to what may stand in their place
    const struct ew_yaml *storage;       // list of how the file lays its matrices out, see enum ew_family_storage
};

// Where files differ from one matrix a weight, rows being outputs.
enum ew_family_storage {
    EW_FAMILY_GROUPED_QKV = 1, // attn_qkv holds, for each KV head, the rows of its queries, of its key and of its value
    EW_FAMILY_TRANSPOSED = 2,  // matrices of layers are [inputs, outputs]
    EW_FAMILY_TRANSPOSED_EXPERTS = 4, // the same of stacks of experts
    EW_FAMILY_PAIRED_EXPERTS = 8,     // ffn_gate_up_exps has gate and up row beside row, not one after the other
    EW_FAMILY_LOG_DECAY = 16,         // ssm_a holds ln(-a)
};

// For what tables cannot say: changes the shape once everything was read and its layers were derived.
typedef void (*ew_family_hook)(struct ew_shape *shape);

struct ew_family {
    const char *name;
    const char *file;              // of data/, for messages
    const struct ew_yaml *extends; // names the parent, or NULL
    const struct ew_family *parent;
    bool is_abstract;            // only there to be extended
    const struct ew_yaml *shape; // constants for both formats
    struct ew_family_side sides[EW_FAMILY_FORMATS];
    ew_family_hook hook;
};

struct ew_families {
    struct ew_arena arena;
    uint32_t count;
    struct ew_family list[EW_FAMILIES_MAX];
};

// Reads every compiled-in families/*.yaml; a wrong table is named with its line.
int ew_families_load(struct ew_families *families, struct ew_error *err) EW_MUST_CHECK;
// The same from tables that the caller has (ended by path NULL).
struct ew_data_file;
int ew_families_parse(struct ew_families *families, const struct ew_data_file *files,
                      struct ew_error *err) EW_MUST_CHECK;
void ew_families_free(struct ew_families *families);

// By what the file calls itself; NULL where no family claims it.
const struct ew_family *ew_family_of_model_type(const struct ew_families *families, struct ew_str model_type);
const struct ew_family *ew_family_of_architecture(const struct ew_families *families, enum ew_family_format format,
                                                  struct ew_str architecture);
bool ew_family_has_architecture(const struct ew_family *family, enum ew_family_format format,
                                struct ew_str architecture);

// What the family or the nearest ancestor maps `field` to (a scalar or list), or NULL.
const struct ew_yaml *ew_family_key(const struct ew_family *family, enum ew_family_format format, const char *field);
// What it says that `field` is in one format, whatever the model; NULL where it says nothing.
const struct ew_yaml *ew_family_constant(const struct ew_family *family, enum ew_family_format format,
                                         const char *field);
// The file's name of a canonical tensor name without suffix ("blk.3.attn_q" -> "model.layers.3.self_attn.q_proj").
// Components N, H and X of the table stand for layer, head and expert numbers; `part` is only used where the name has
// an H or X.
// False where the family has no such tensor (any more) in this format, or the name is longer than size.
// `choice` counts the alternatives that the table lists.
bool ew_family_tensor(const struct ew_family *family, enum ew_family_format format, const char *canonical,
                      uint32_t part, uint32_t choice, char *out, size_t size);
// Checkpoints of models with towers hold the language model under another root. Which of the family's roots these
// tensors stand under: a map of beginnings, or NULL for the names as they are in the table.
const struct ew_yaml *ew_family_root(const struct ew_family *family, enum ew_family_format format,
                                     const struct ew_tensors *tensors);
// A name of the table as it stands under that root; false where it is longer than size.
bool ew_family_rooted_name(const struct ew_yaml *root_or_null, struct ew_str name, char *out, size_t size);
// Whether the tensor is there, under that root.
const struct ew_tensor *ew_family_find_rooted(const struct ew_yaml *root_or_null, const struct ew_tensors *tensors,
                                              struct ew_str name);
// The flags of the nearest family that says anything.
uint32_t ew_family_storage(const struct ew_family *family, enum ew_family_format format);
// Whether that name has an H or X: the tensor is a stack of one a head or expert.
bool ew_family_is_stack(const struct ew_family *family, enum ew_family_format format, const char *canonical);
