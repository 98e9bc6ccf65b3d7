#include "doctor/library_index.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "platform/sysfile.h"

#define INDEX_ARENA_MAX ((size_t)32 << 20) // a desktop has about 5,000 libraries
#define CONF_BYTES_MAX 65536
#define LIST_BYTES_MAX ((size_t)4 << 20)
#define CONF_FILES_MAX 200

// Built into ld.so of the distributions in question, and what NVIDIA's packages add by files in /etc/ld.so.conf.d,
// which a container's image may lack although the runtime mounts the libraries.
static const char *const g_dirs[] = {
    "/lib",
    "/usr/lib",
    "/lib64",
    "/usr/lib64",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu/nvidia",
    "/usr/lib/aarch64-linux-gnu/tegra",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
    "/opt/nvidia/l4t-gpu-libs/nvgpu",
    "/opt/nvidia/l4t-gpu-libs/openrm",
};

static bool grow(struct ew_library_index *index)
{
    struct ew_str *grown;

    if (index->count < index->cap)
        return true;
    grown = ew_realloc_array(index->list, (size_t)index->cap * 2 + 1024, sizeof(*grown));
    if (!grown)
        return false;
    index->list = grown;
    index->cap = index->cap * 2 + 1024;
    return true;
}

static void add_name(struct ew_library_index *index, struct ew_str name)
{
    uint32_t known;
    char *copy;

    if (ew_map_get(&index->names, name, &known))
        return;
    copy = ew_arena_copy(&index->arena, name.ptr, name.len);
    if (!copy || !grow(index) ||
        ew_map_put(&index->names, (struct ew_str){copy, name.len}, index->count, NULL) != EW_OK) {
        index->failed = true;
        return;
    }
    index->list[index->count++] = (struct ew_str){copy, name.len};
}

static void add_dir(struct ew_library_index *index, const char *root, struct ew_str path)
{
    struct dirent *entry;
    char full[4096];
    DIR *dir;

    snprintf(full, sizeof(full), "%s%.*s", root ? root : "", (int)EW_MIN(path.len, sizeof(full) - 1), path.ptr);
    dir = opendir(full);
    if (!dir)
        return;
    while (!index->failed && (entry = readdir(dir)))
        if (strstr(entry->d_name, ".so")) {
            index->known = true;
            add_name(index, ew_str_of(entry->d_name));
        }
    closedir(dir);
}

// Lines of directories; "include" lines are met by reading all of /etc/ld.so.conf.d.
static void add_conf(struct ew_library_index *index, const char *root, const char *path)
{
    char *text = ew_alloc(CONF_BYTES_MAX);

    if (text && ew_sysfile_read(root, path, text, CONF_BYTES_MAX) > 0)
        for (char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
            size_t len = strcspn(line, " \t\r\n#");

            if (line[0] == '/')
                add_dir(index, root, (struct ew_str){line, len});
        }
    index->failed |= !text;
    ew_free(text);
}

static void add_conf_dir(struct ew_library_index *index, const char *root)
{
    struct dirent *entry;
    char path[4096];
    DIR *dir;

    snprintf(path, sizeof(path), "%s/etc/ld.so.conf.d", root ? root : "");
    dir = opendir(path);
    for (uint32_t n = 0; dir && n < CONF_FILES_MAX && (entry = readdir(dir)); n++)
        if (ew_str_ends(ew_str_of(entry->d_name), ".conf")) {
            snprintf(path, sizeof(path), "/etc/ld.so.conf.d/%s", entry->d_name);
            add_conf(index, root, path);
        }
    if (dir)
        closedir(dir);
}

static void add_environment(struct ew_library_index *index)
{
    const char *path = getenv("LD_LIBRARY_PATH");

    while (path && *path) {
        size_t len = strcspn(path, ":");

        if (path[0] == '/')
            add_dir(index, NULL, (struct ew_str){path, len});
        path += len + (path[len] == ':');
    }
}

static void add_captured(struct ew_library_index *index, const char *root)
{
    char *text = ew_alloc(LIST_BYTES_MAX);

    if (text && ew_sysfile_read(root, "/.edgewise/libraries", text, LIST_BYTES_MAX) > 0) {
        index->known = true;
        for (char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
            add_name(index, (struct ew_str){line, strcspn(line, "\n")});
    }
    index->failed |= !text;
    ew_free(text);
}

// ---- the linker's cache ----

// glibc's cache: a header of 48 bytes (magic, number of entries, size of the strings), then entries of 24 bytes (flags,
// offset of the name, offset of the path, ...), then the strings; offsets count from the header. Before it there may
// be an older table, whose entries have 12 bytes behind a header of 16. Source: glibc, sysdeps/generic/dl-cache.h.
#define CACHE_MAGIC "glibc-ld.so.cache1.1"
#define CACHE_OLD_MAGIC "ld.so-1.7.0"
#define CACHE_HEADER 48
#define CACHE_ENTRY 24
#define CACHE_ENTRIES_MAX 100000u

static uint32_t word_at(const char *bytes, size_t at)
{
    uint32_t word;

    memcpy(&word, bytes + at, sizeof(word)); // of this machine's byte order, as the linker writes it
    return word;
}

static void add_cache_entries(struct ew_library_index *index, const char *table, size_t size)
{
    uint32_t count = word_at(table, strlen(CACHE_MAGIC));

    if (count > CACHE_ENTRIES_MAX || CACHE_HEADER + (size_t)count * CACHE_ENTRY > size)
        return;
    for (uint32_t i = 0; i < count && !index->failed; i++) {
        size_t name = word_at(table, CACHE_HEADER + (size_t)i * CACHE_ENTRY + 4);

        if (name < size && memchr(table + name, '\0', size - name))
            add_name(index, ew_str_of(table + name));
    }
    index->known |= count > 0;
}

void ew_library_index_add_cache(struct ew_library_index *index, const char *bytes, size_t size)
{
    size_t at = 0;

    if (size >= 16 && memcmp(bytes, CACHE_OLD_MAGIC, strlen(CACHE_OLD_MAGIC)) == 0)
        at = ((16 + (size_t)word_at(bytes, 12) * 12) + 7) & ~(size_t)7;
    if (at <= size && size - at >= CACHE_HEADER && memcmp(bytes + at, CACHE_MAGIC, strlen(CACHE_MAGIC)) == 0)
        add_cache_entries(index, bytes + at, size - at);
}

static void add_cache(struct ew_library_index *index, const char *root)
{
    char *bytes = ew_alloc(LIST_BYTES_MAX);
    ptrdiff_t size = bytes ? ew_sysfile_read(root, "/etc/ld.so.cache", bytes, LIST_BYTES_MAX) : -1;

    if (size > 0)
        ew_library_index_add_cache(index, bytes, (size_t)size);
    index->failed |= !bytes;
    ew_free(bytes);
}

// ---- all together ----

static void init(struct ew_library_index *index)
{
    *index = (struct ew_library_index){0};
    ew_arena_init(&index->arena, INDEX_ARENA_MAX);
    index->failed = ew_map_init(&index->names, 4096) != EW_OK;
}

void ew_library_index_of_facts(struct ew_library_index *index, const struct ew_facts *facts)
{
    static const char *const always[] = {
        "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6",      "libm.so.6",       "libdl.so.2",
        "libpthread.so.0",      "librt.so.1",            "libutil.so.1",   "libresolv.so.2",  "libgcc_s.so.1",
        "libstdc++.so.6",       "libgomp.so.1",          "libz.so.1",      "libcuda.so.1",    "libnvidia-ml.so.1",
        "libcrypt.so.1",        "libuuid.so.1",          "libatomic.so.1", "libexpat.so.1",   "libffi.so.8",
        "libssl.so.3",          "libcrypto.so.3",        "libbz2.so.1.0",  "liblzma.so.5",    "libsqlite3.so.0",
        "libncursesw.so.6",     "libreadline.so.8",      "libtinfo.so.6",  "libnuma.so.1",    "libelf.so.1",
    };
    const struct ew_fact *libraries = ew_facts_get(facts, EW_STR("libraries"));

    init(index);
    if (index->failed || !libraries || libraries->type != EW_FACT_STRINGS)
        return;
    index->known = true;
    for (size_t i = 0; i < EW_COUNT_OF(always); i++)
        add_name(index, ew_str_of(always[i]));
    for (uint32_t i = 0; i < libraries->count; i++)
        add_name(index, libraries->texts[i]);
}

void ew_library_index_read(struct ew_library_index *index, const char *root)
{
    init(index);
    if (index->failed)
        return;
    for (size_t i = 0; i < EW_COUNT_OF(g_dirs); i++)
        add_dir(index, root, ew_str_of(g_dirs[i]));
    add_conf(index, root, "/etc/ld.so.conf");
    add_conf_dir(index, root);
    add_cache(index, root);
    if (root && root[0])
        add_captured(index, root);
    else
        add_environment(index);
}

void ew_library_index_add_driver(struct ew_library_index *index, const struct ew_library_index *machine)
{
    static const char *const names[] = {"libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1",
                                        "libnvidia-nvvm.so.4", "libcudadebugger.so.1"};

    for (size_t i = 0; i < EW_COUNT_OF(names); i++)
        if (ew_library_index_has(machine, ew_str_of(names[i])))
            add_name(index, ew_str_of(names[i]));
}

void ew_library_index_fini(struct ew_library_index *index)
{
    ew_map_fini(&index->names);
    ew_free(index->list);
    ew_arena_fini(&index->arena);
}

bool ew_library_index_has(const struct ew_library_index *index, struct ew_str name)
{
    uint32_t value;

    return ew_map_get(&index->names, name, &value);
}
