// Container images, judged by name and files: FROM lines of Dockerfiles, image lines of compose files, unpacked root
// file systems. What a tag does not tell stays unknown; nothing is pulled.

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "doctor/scan_internal.h"
#include "format/mapfile.h"
#include "platform/sysfile.h"

#define TEXT_BYTES_MAX ((size_t)1 << 20)
#define ARGS_MAX 32 // ARG lines with a default, and stages, kept of one Dockerfile
#define REFERENCE_MAX 512

// ---- what a reference tells ----

// NVIDIA's framework images: the first release with each CUDA version (framework containers support matrix).
static const struct {
    uint32_t release, cuda;
} g_ngc[] = {{2304, 1210}, {2308, 1220}, {2311, 1230}, {2403, 1240}, {2406, 1250},
             {2408, 1260}, {2501, 1280}, {2504, 1290}, {2508, 1300}};

static uint32_t ngc_cuda(uint32_t release)
{
    uint32_t cuda = 0;

    for (size_t i = 0; i < EW_COUNT_OF(g_ngc); i++)
        if (release >= g_ngc[i].release)
            cuda = g_ngc[i].cuda;
    return cuda;
}

// "r36.4.0" somewhere in the tag, at the start of a word.
static void read_l4t(struct ew_scan_image *image, const char *tag)
{
    for (const char *at = tag; (at = strchr(at, 'r')); at++) {
        size_t len = strspn(at + 1, "0123456789.");

        if ((at > tag && isalnum((unsigned char)at[-1])) || len < 4 || at[3] != '.')
            continue;
        snprintf(image->l4t, sizeof(image->l4t), "%.*s", (int)EW_MIN(len, sizeof(image->l4t) - 1), at + 1);
        image->l4t_major = (uint32_t)strtoul(at + 1, NULL, 10);
        return;
    }
}

// "cu128", "cuda12.8" or "cuda-12.8" in a tag.
static uint32_t cuda_of_tag(const char *tag)
{
    const char *at = strstr(tag, "cu1");
    unsigned major, minor;

    if (at && isdigit((unsigned char)at[3]) && isdigit((unsigned char)at[4]))
        return (uint32_t)((at[2] - '0') * 1000 + (at[3] - '0') * 100 + (at[4] - '0') * 10);
    at = strstr(tag, "cuda");
    if (at && sscanf(at + 4 + (at[4] == '-'), "%2u.%1u", &major, &minor) == 2)
        return major * 100 + minor * 10;
    return 0;
}

static bool has_part(const char *name, const char *part)
{
    const char *at = strstr(name, part);

    return at && (at == name || at[-1] == '/');
}

// "nvcr.io/nvidia/cuda:12.8.1-base-ubuntu22.04", "nvcr.io/nvidia/pytorch:25.01-py3-igpu", "dustynv/vllm:r36.4.0".
void ew__image_read_reference(struct ew_scan_image *image, const char *reference)
{
    char name[REFERENCE_MAX], *tag;
    unsigned major, minor;

    snprintf(name, sizeof(name), "%s", reference);
    tag = strrchr(name, ':');
    if (!tag || strchr(tag, '/'))
        return; // no tag: "latest" says nothing
    *tag++ = '\0';
    image->igpu = strstr(tag, "-igpu") != NULL;
    read_l4t(image, tag);
    image->cuda = cuda_of_tag(tag);
    if ((has_part(name, "nvidia/cuda") || has_part(name, "l4t-cuda")) && sscanf(tag, "%2u.%1u", &major, &minor) == 2) {
        image->cuda = major * 100 + minor * 10;
        image->require_cuda = has_part(name, "nvidia/cuda") ? image->cuda : 0; // these set NVIDIA_REQUIRE_CUDA
    } else if (strstr(name, "nvcr.io/nvidia/") && sscanf(tag, "%2u.%2u-", &major, &minor) == 2 && major >= 20 &&
               minor >= 1 && minor <= 12) {
        image->ngc_release = major * 100 + minor;
        image->cuda = ngc_cuda(image->ngc_release);
    }
    if (has_part(name, "l4t-") || strncmp(name, "dustynv/", 8) == 0 || image->igpu)
        snprintf(image->arch, sizeof(image->arch), "aarch64"); // made for Jetson only
}

static void read_platform(struct ew_scan_image *image, const char *platform)
{
    if (strncmp(platform, "linux/amd64", 11) == 0)
        snprintf(image->arch, sizeof(image->arch), "x86_64");
    else if (strncmp(platform, "linux/arm64", 11) == 0)
        snprintf(image->arch, sizeof(image->arch), "aarch64");
}

// ---- Dockerfiles ----

struct docker_args {
    char names[ARGS_MAX][64], values[ARGS_MAX][REFERENCE_MAX];
    uint32_t count;
    char stages[ARGS_MAX][64];
    uint32_t n_stages;
};

static const char *value_of(const struct docker_args *args, const char *name, size_t len)
{
    for (uint32_t i = args->count; i > 0; i--)
        if (strlen(args->names[i - 1]) == len && memcmp(args->names[i - 1], name, len) == 0)
            return args->values[i - 1];
    return NULL;
}

// Replaces $NAME, ${NAME} and ${NAME:-default}; false where a name has no value.
static bool expand(const struct docker_args *args, const char *text, char *out, size_t size)
{
    size_t len = 0;

    while (*text && len + 1 < size) {
        bool braced = text[0] == '$' && text[1] == '{';
        const char *name = text + 1 + braced, *value, *end;
        size_t name_len = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");

        if (text[0] != '$') {
            out[len++] = *text++;
            continue;
        }
        value = value_of(args, name, name_len);
        end = braced ? strchr(name, '}') : name + name_len;
        if (!end)
            return false;
        if (value)
            len += (size_t)snprintf(out + len, size - len, "%s", value);
        else if (braced && strncmp(name + name_len, ":-", 2) == 0)
            len += (size_t)snprintf(out + len, size - len, "%.*s", (int)(end - name - (ptrdiff_t)name_len - 2),
                                    name + name_len + 2);
        else
            return false;
        text = end + braced;
    }
    out[EW_MIN(len, size - 1)] = '\0';
    return len < size;
}

static void add_image(struct ew_scan *scan, struct ew_str path, const char *reference, const char *platform)
{
    struct ew_scan_file *file = ew__scan_add(scan, path, EW_SCAN_IMAGE);

    if (!file)
        return;
    file->image = ew_arena_alloc(&scan->arena, sizeof(*file->image));
    if (!file->image) {
        scan->failed = true;
        return;
    }
    snprintf(file->image->name, sizeof(file->image->name), "%s", reference);
    ew__image_read_reference(file->image, reference);
    read_platform(file->image, platform);
}

// "[--platform=P] REFERENCE [AS STAGE]"
static void read_from(struct ew_scan *scan, struct ew_str path, char *line, struct docker_args *args)
{
    char *rest, *word = strtok_r(line, " \t", &rest), platform[64] = "", reference[REFERENCE_MAX];
    bool stage = false;

    for (; word && strncmp(word, "--", 2) == 0; word = strtok_r(NULL, " \t", &rest))
        if (strncmp(word, "--platform=", 11) == 0)
            snprintf(platform, sizeof(platform), "%s", word + 11);
    if (!word)
        return;
    for (uint32_t i = 0; i < args->n_stages; i++)
        stage |= strcasecmp(args->stages[i], word) == 0;
    if (!stage && strcmp(word, "scratch") != 0 && expand(args, word, reference, sizeof(reference)))
        add_image(scan, path, reference, platform);
    word = strtok_r(NULL, " \t", &rest);
    if (word && strcasecmp(word, "as") == 0 && (word = strtok_r(NULL, " \t", &rest)) && args->n_stages < ARGS_MAX)
        snprintf(args->stages[args->n_stages++], sizeof(args->stages[0]), "%s", word);
}

static void read_arg(char *line, struct docker_args *args)
{
    char *equals = strchr(line, '='), *value;
    size_t len;

    if (!equals || args->count == ARGS_MAX)
        return;
    *equals = '\0';
    value = equals + 1 + (equals[1] == '"' || equals[1] == '\'');
    len = strcspn(value, "\"' \t");
    snprintf(args->names[args->count], sizeof(args->names[0]), "%s", line);
    snprintf(args->values[args->count++], sizeof(args->values[0]), "%.*s", (int)EW_MIN(len, REFERENCE_MAX - 1u), value);
}

static void read_dockerfile_line(struct ew_scan *scan, struct ew_str path, char *line, struct docker_args *args)
{
    if (strncasecmp(line, "FROM ", 5) == 0)
        read_from(scan, path, line + 5, args);
    else if (strncasecmp(line, "ARG ", 4) == 0)
        read_arg(line + 4 + strspn(line + 4, " \t"), args);
}

// Compose: "image: REFERENCE". Substitutions with defaults expand, others are not known.
static void read_compose_line(struct ew_scan *scan, struct ew_str path, char *line, struct docker_args *args)
{
    char reference[REFERENCE_MAX];

    line += line[0] == '-' ? 1 + strspn(line + 1, " ") : 0;
    if (strncmp(line, "image:", 6) != 0)
        return;
    line += 6 + strspn(line + 6, " \t\"'");
    line[strcspn(line, " \t\"'#")] = '\0';
    if (line[0] && expand(args, line, reference, sizeof(reference)))
        add_image(scan, path, reference, "");
}

// ---- what an engine is asked for ----

// Options of inference servers in command lines, with the fact that each sets.
static const struct ew_scan_option g_options[] = {
    {"--gpu-memory-utilization", "cfg_util", false},
    {"--max-num-seqs", "cfg_seqs", false},
    {"--tensor-parallel-size", "cfg_tp", false},
    {"--quantization", "cfg_quant", true},
    {"--kv-cache-dtype", "cfg_kv", true},
};

// Takes "--max-num-seqs 8", "--max-num-seqs=8" and "--max-num-seqs", "8".
static void read_options(struct ew_scan *scan, struct ew_str path, const char *text)
{
    struct ew_scan_file *file = NULL;

    for (size_t i = 0; i < EW_COUNT_OF(g_options); i++) {
        const char *at = strstr(text, g_options[i].option);
        size_t len;

        if (!at)
            continue;
        at += strlen(g_options[i].option);
        at += strspn(at, " \t\n\\\"',=-");
        len = strspn(at, "0123456789.abcdefghijklmnopqrstuvwxyz_");
        if (!len)
            continue;
        file = file ? file : ew__scan_add(scan, path, EW_SCAN_REQUEST);
        if (!file || file->n_options == EW_SCAN_OPTIONS_MAX)
            return;
        file->options[file->n_options] = &g_options[i];
        file->option_values[file->n_options++] = ew__scan_keep(scan, (struct ew_str){at, len});
    }
}

void ew__scan_read_recipe(struct ew_scan *scan, struct ew_str path, bool compose)
{
    struct docker_args *args = ew_alloc(sizeof(*args));
    char name[4096], *text = NULL, *rest;
    size_t len;

    snprintf(name, sizeof(name), "%.*s", (int)EW_MIN(path.len, sizeof(name) - 1), path.ptr);
    if (!args || ew_file_read(name, TEXT_BYTES_MAX, &text, &len, NULL) != EW_OK)
        goto out;
    read_options(scan, path, text); // before the text is cut into lines
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        line += strspn(line, " \t");
        line[strcspn(line, "\r")] = '\0';
        if (compose)
            read_compose_line(scan, path, line, args);
        else
            read_dockerfile_line(scan, path, line, args);
    }
out:
    ew_free(text);
    ew_free(args);
}

// ---- unpacked root file systems ----

static bool exists(const char *root, const char *path)
{
    char full[4096];

    snprintf(full, sizeof(full), "%s%s", root, path);
    return access(full, F_OK) == 0;
}

bool ew__is_root_fs(const char *dir)
{
    return exists(dir, "/etc/os-release") || exists(dir, "/usr/lib/os-release");
}

// An OCI bundle keeps the image's environment in config.json beside the root file system; a captured one may keep
// /etc/environment.
static void read_environment(struct ew_scan_image *image, const char *root)
{
    static const char *const files[] = {"/../config.json", "/etc/environment"};
    char *text = ew_alloc(TEXT_BYTES_MAX);
    unsigned major, minor;

    for (size_t i = 0; text && i < EW_COUNT_OF(files); i++) {
        const char *at;

        if (ew_sysfile_read(root, files[i], text, TEXT_BYTES_MAX) <= 0)
            continue;
        at = strstr(text, "NVIDIA_REQUIRE_CUDA=");
        at = at ? strstr(at, "cuda>=") : NULL;
        if (at && sscanf(at, "cuda>=%2u.%1u", &major, &minor) == 2)
            image->require_cuda = major * 100 + minor * 10;
        at = strstr(text, "CUDA_VERSION=");
        if (at && sscanf(at, "CUDA_VERSION=%2u.%1u", &major, &minor) == 2)
            image->cuda = major * 100 + minor * 10;
    }
    ew_free(text);
}

void ew__scan_add_root_fs(struct ew_scan *scan, const char *dir)
{
    char text[512];
    struct ew_scan_image *image;
    unsigned major, minor;
    const char *at;

    add_image(scan, ew_str_of(dir), dir, "");
    if (scan->failed)
        return;
    image = scan->files[scan->count - 1].image;
    read_environment(image, dir);
    if (ew_sysfile_read(dir, "/usr/local/cuda/version.json", text, sizeof(text)) > 0 &&
        (at = strstr(text, "\"version\"")) && sscanf(at, "\"version\" : \"%2u.%1u", &major, &minor) == 2)
        image->cuda = major * 100 + minor * 10;
    if (ew_sysfile_read(dir, "/etc/nv_tegra_release", text, sizeof(text)) > 0 && sscanf(text, "# R%2u", &major) == 1) {
        image->l4t_major = major;
        at = strstr(text, "REVISION: ");
        snprintf(image->l4t, sizeof(image->l4t), "%u.%.*s", major, at ? (int)strspn(at + 10, "0123456789.") : 0,
                 at ? at + 10 : "");
    }
    if (exists(dir, "/lib/ld-linux-aarch64.so.1") || exists(dir, "/usr/lib/ld-linux-aarch64.so.1"))
        snprintf(image->arch, sizeof(image->arch), "aarch64");
    else if (exists(dir, "/lib64/ld-linux-x86-64.so.2") || exists(dir, "/usr/lib64/ld-linux-x86-64.so.2"))
        snprintf(image->arch, sizeof(image->arch), "x86_64");
    scan->image_root = ew__scan_keep(scan, ew_str_of(dir));
}
