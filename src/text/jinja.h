#pragma once
// The Jinja subset that chat templates use, with limits on steps, depth and output. Semantics are those of Jinja2's
// sandbox as transformers configures it (trim_blocks, lstrip_blocks, loop controls, tojson, strftime_now,
// raise_exception, generation blocks).

#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/str.h"
#include "format/json.h"

struct ew_jinja; // a compiled template, immutable

struct ew_jinja_limits {
    uint64_t steps_max;   // 0: EW_JINJA_STEPS_DEFAULT
    uint32_t depth_max;   // 0: default
    size_t output_max;    // 0: default
    size_t memory_max;    // 0: default
};

int ew_jinja_compile(struct ew_str source, struct ew_jinja **out, struct ew_error *err) EW_MUST_CHECK; // line in err
void ew_jinja_free(struct ew_jinja *tmpl);

struct ew_jinja_vars {
    const struct ew_json *object;   // each member becomes a variable (messages, tools, add_generation_prompt, ...)
    const char *bos_token, *eos_token; // NULL: undefined
    const char *now;                // "YYYY-MM-DD HH:MM:SS" for strftime_now; NULL: the local time
};

// raise_exception ends with EW_ERR_UNSUPPORTED and the template's own message as err->message (nothing added).
int ew_jinja_render(const struct ew_jinja *tmpl, const struct ew_jinja_vars *vars, const struct ew_jinja_limits *limits,
                    struct ew_buf *out, struct ew_error *err) EW_MUST_CHECK;
