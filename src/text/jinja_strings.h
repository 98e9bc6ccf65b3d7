#pragma once
// String operations that methods and filters share.

#include "text/jinja_text.h"
#include "text/jinja_value.h"

// jinja_methods_str.c
struct ew_jj_value ew_jj_strip(struct ew_jj_run *run, struct ew_jj_value self, struct ew_jj_value chars, bool left,
                               bool right);
struct ew_jj_value ew_jj_splitlines(struct ew_jj_run *run, struct ew_jj_value self, bool keep_ends);
struct ew_jj_value ew_jj_replace(struct ew_jj_run *run, struct ew_jj_value self, struct ew_str old, struct ew_str new,
                                 int64_t max); // max < 0: all

// jinja_methods_case.c
struct ew_jj_value ew_jj_all_cased(struct ew_jj_run *run, struct ew_jj_value self, enum ew_jj_case to);
struct ew_jj_value ew_jj_capitalize(struct ew_jj_run *run, struct ew_jj_value self);
bool ew_jj_has_case(struct ew_str s, enum ew_jj_case which); // str.isupper, str.islower
enum ew_jj_align { EW_JJ_LEFT, EW_JJ_RIGHT, EW_JJ_CENTER };
struct ew_jj_value ew_jj_pad(struct ew_jj_run *run, struct ew_jj_value self, int64_t width, struct ew_str fill,
                             enum ew_jj_align align);
