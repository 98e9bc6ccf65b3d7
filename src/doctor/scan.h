#pragma once
// Judging files without running them: shared objects, wheels, site-packages, root file systems, TensorRT plans,
// requirement lists, Dockerfiles and compose files.
//
// Three passes: walk the paths and note what is worth reading; read those in parallel (ELF headers, GPU code, wheel
// metadata); then, with every library of the tree known, follow each file's needs and apply the rules. Memory grows
// with the number of files, not with their size.

#include "doctor/doctor.h"
#include "doctor/elf_file.h"
#include "doctor/fatbin.h"

enum ew_scan_kind {
    EW_SCAN_LIBRARY,      // ELF, or bare GPU code
    EW_SCAN_WHEEL,        // a .whl archive
    EW_SCAN_PACKAGE,      // an installed package: DIR.dist-info/METADATA
    EW_SCAN_REQUIREMENTS, // requirements.txt, pyproject.toml
    EW_SCAN_PLAN,         // a serialized TensorRT engine
    EW_SCAN_RECIPE,       // a Dockerfile
    EW_SCAN_COMPOSE,      // a compose file
    EW_SCAN_IMAGE,        // an image that a recipe names, or an unpacked root file system
    EW_SCAN_REQUEST,      // what a recipe's command line asks of an inference server
};

struct ew_scan_image { // 0 and "": not told
    char name[512];
    char arch[16], l4t[16];
    uint32_t l4t_major, cuda, require_cuda, ngc_release;
    bool igpu;
};

struct ew_scan_option {
    const char *option, *fact;
    bool text; // a word, not a number
};
#define EW_SCAN_OPTIONS_MAX 5

#define EW_SCAN_NEEDS_MAX 96 // DT_NEEDED entries kept of one file; libtorch has 20

// What reading one file (or one member of a wheel) yields.
struct ew_scan_file {
    struct ew_str path; // in messages; members of wheels as "x.whl!/member"
    enum ew_scan_kind kind;
    bool alias; // a link to another name in the same folder: found by its name, judged by the other
    bool unreadable;
    struct ew_str error; // why, or why it was taken for damaged
    // ELF
    bool is_elf;
    uint16_t machine;
    struct ew_str soname, runpath;
    struct ew_str *needed;
    uint32_t n_needed;
    struct ew_str glibc, glibcxx, cxxabi; // newest version needed of each, empty: none
    struct ew_str cuda_versions;          // newest "libcudart.so.N" version needed, empty: none
    bool musl;
    // GPU code
    bool has_gpu_code;
    struct ew_gpu_verdict verdict;
    double *sms, *a_sms, *f_sms; // distinct SMs of native code, of 'a' and of 'f' code
    uint32_t n_sms, n_a_sms, n_f_sms;
    struct ew_image *images; // [n_images] distinct kinds, with their counts
    uint32_t n_images;
    uint32_t toolkit;
    // Package, wheel, requirement, plan
    struct ew_str package, version, requires_python, platform_tag, abi_tag, python_tag, plan_version;
    struct ew_str requires_torch; // the oldest PyTorch it accepts, empty: it does not ask
    uint32_t package_cuda;        // 12, 13; 0: none said
    bool pure;
    struct ew_scan_image *image;
    const struct ew_scan_option *options[EW_SCAN_OPTIONS_MAX]; // [n_options] with option_values
    struct ew_str option_values[EW_SCAN_OPTIONS_MAX];
    uint32_t n_options;
    uint32_t ptxas_cuda; // a ptxas program: the CUDA version it is of; 0: none
};

struct ew_scan {
    const struct ew_doctor *doctor;
    struct ew_arena arena;   // of paths
    struct ew_arena *arenas; // [n_arenas] of what the threads read
    uint32_t n_arenas;
    struct ew_scan_file *files;
    uint32_t count, cap;
    struct ew_str image_root; // a root file system among the paths: its libraries count, not the machine's
    bool failed;              // memory ran out
};

// Findings go to `findings`. n_threads 0: one a core. Paths that do not exist are an error; unreadable files are
// counted and said.
int ew_scan_run(struct ew_scan *scan, const struct ew_doctor *doctor, const char *const *paths, uint32_t n_paths,
                uint32_t n_threads, struct ew_findings *findings, struct ew_error *err) EW_MUST_CHECK;
// What each library holds, one JSON object a line, by path: needed libraries, versions, GPU code.
void ew_scan_inventory(const struct ew_scan *scan, struct ew_buf *out);
void ew_scan_fini(struct ew_scan *scan);
