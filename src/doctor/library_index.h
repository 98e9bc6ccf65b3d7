#pragma once
// The names of the shared libraries that a machine's dynamic linker would find by itself.

#include "base/alloc.h"
#include "base/map.h"
#include "base/str.h"
#include "platform/facts.h"

struct ew_library_index {
    struct ew_arena arena;
    struct ew_map names; // name to its place in list
    struct ew_str *list; // [count] in the order found
    uint32_t count, cap;
    bool known;  // some library directory, or a captured list of them, could be read
    bool failed; // memory ran out
};

// Reads the directories built into the linker, those of /etc/ld.so.conf and its .d files, the linker's cache,
// LD_LIBRARY_PATH (of this machine only) and, of a captured tree, the list /.edgewise/libraries.
void ew_library_index_read(struct ew_library_index *index, const char *root);
// The list that a profile gives as the fact `libraries`, and what every distribution has; not known without that fact.
void ew_library_index_of_facts(struct ew_library_index *index, const struct ew_facts *facts);
// Adds the names in the bytes of an ld.so.cache; anything malformed adds nothing.
void ew_library_index_add_cache(struct ew_library_index *index, const char *bytes, size_t size);
// Adds the driver's libraries of another index: a container runtime mounts them from the machine.
void ew_library_index_add_driver(struct ew_library_index *index, const struct ew_library_index *machine);
void ew_library_index_fini(struct ew_library_index *index);
bool ew_library_index_has(const struct ew_library_index *index, struct ew_str name);
