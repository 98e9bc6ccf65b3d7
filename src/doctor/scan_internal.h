#pragma once
// What the passes of a scan share; nobody outside scan*.c needs it.

#include "doctor/scan.h"

// Notes a file; NULL where memory ran out (scan->failed).
struct ew_scan_file *ew__scan_add(struct ew_scan *scan, struct ew_str path, enum ew_scan_kind kind);
int ew__scan_walk(struct ew_scan *scan, const char *path, struct ew_error *err) EW_MUST_CHECK;

// The second pass, one file. Strings go to `arena`, which the caller then merges; `target` is the GPU to judge for.
void ew__scan_read(struct ew_scan_file *file, struct ew_arena *arena, struct ew_gpu_target target);
struct ew_str ew__scan_base_name(struct ew_str path);
// Tags, and name and version where they are not known yet, of "NAME-VERSION-PYTHON-ABI-PLATFORM.whl"; views into it.
void ew__scan_read_wheel_name(struct ew_scan_file *file, struct ew_str name);
// Members of a wheel that are libraries are handed to `on_member`.
void ew__scan_read_wheel(struct ew_scan_file *file, struct ew_arena *arena, struct ew_gpu_target target,
                         void (*on_member)(void *ctx, const struct ew_scan_file *member), void *ctx);
void ew__scan_read_bytes(struct ew_scan_file *file, struct ew_arena *arena, struct ew_gpu_target target,
                         const unsigned char *bytes, uint64_t size);
// "Name: x", "Requires-Python: >=3.9" and so on.
void ew__scan_read_metadata(struct ew_scan_file *file, struct ew_arena *arena, struct ew_str text);

struct ew_str ew__scan_keep(struct ew_scan *scan, struct ew_str text); // a copy in the scan's arena

// scan_image.c
void ew__image_read_reference(struct ew_scan_image *image, const char *reference); // "nvcr.io/nvidia/cuda:12.8.1-base"
void ew__scan_read_recipe(struct ew_scan *scan, struct ew_str path, bool compose); // adds images and requests
bool ew__is_root_fs(const char *dir);
void ew__scan_add_root_fs(struct ew_scan *scan, const char *dir);

// The third pass: facts of each file over the machine's, rules applied.
void ew__scan_judge(struct ew_scan *scan, struct ew_findings *findings);
