// The options that commands share, and the table of commands.

#include "cli/cli.h"

const struct ew_opt ew_opts_common[] = {
    {"json", 0, EW_OPT_FLAG, NULL, "machine-readable result on standard output"},
    {"verbose", 'v', EW_OPT_FLAG, NULL, "say what is being done, on standard error"},
    {"debug", 0, EW_OPT_FLAG, NULL, "say more"},
    {"help", 'h', EW_OPT_FLAG, NULL, "this text"},
    EW_OPT_END,
};

const struct ew_opt ew_opts_model[] = {
    {"model", 'm', EW_OPT_STRING, "MODEL", "a .gguf file, a Hugging Face directory, demo, or synthetic:SHAPE:TYPE"},
    EW_OPT_END,
};

const struct ew_opt ew_opts_engine[] = {
    {"backend", 0, EW_OPT_CHOICE, "NAME", "where to compute; default auto", "auto|cpu|cuda"},
    {"threads", 't', EW_OPT_INT, "N", "CPU threads; default one a physical core", NULL, 1, 1024},
    {"memory-budget", 0, EW_OPT_BYTES, "SIZE", "never use more; default what is available"},
    {"reserve", 0, EW_OPT_BYTES, "SIZE", "leave this much free for others; default 0"},
    {"kv", 0, EW_OPT_CHOICE, "TYPE", "type of the caches; default f16", "f32|f16|fp8|int8"},
    {"kv-block", 0, EW_OPT_INT, "N", "tokens of a cache block; default 16", NULL, 1, 4096},
    {"ctx", 'c', EW_OPT_INT, "N", "context in tokens; default the model's, as far as memory allows", NULL, 1, 16777216},
    {"chunk", 0, EW_OPT_INT, "N", "prompt tokens of one step; default 512, 2048 on large GPUs", NULL, 1, 65536},
    {"cpu-max", 0, EW_OPT_CHOICE, "ISA", "use no newer instruction set",
     "reference|avx2|avx512|avx512-vnni|avx512-vbmi|amx|neon|dotprod|i8mm"},
    {"kernels", 0, EW_OPT_CHOICE, "SET", "reference: plain C, f32 activations; default auto", "auto|reference"},
    {"deterministic", 0, EW_OPT_FLAG, NULL, "the same bits also across chunking and reuse; may cost speed"},
    {"cache", 0, EW_OPT_STRING, "DIR", "keep compiled GPU kernels there; default EDGEWISE_CACHE or ~/.cache/edgewise"},
    {"no-self-test", 0, EW_OPT_FLAG, NULL, "start without comparing the GPU's kernels with plain C first"},
    EW_OPT_END,
};

// A command is one line here and one in the table, both sorted, and lives in cmd_NAME.c.
extern const struct ew_command ew_cmd_bench_embed, ew_cmd_bench_kernels, ew_cmd_bench_load, ew_cmd_bench_speed;
extern const struct ew_command ew_cmd_chat;
extern const struct ew_command ew_cmd_doctor, ew_cmd_doctor_power, ew_cmd_doctor_rules, ew_cmd_doctor_scan;
extern const struct ew_command ew_cmd_embed;
extern const struct ew_command ew_cmd_eval_logits, ew_cmd_eval_perplexity, ew_cmd_eval_self;
extern const struct ew_command ew_cmd_plan, ew_cmd_profiles;
extern const struct ew_command ew_cmd_quantize;
extern const struct ew_command ew_cmd_run;
extern const struct ew_command ew_cmd_serve;
extern const struct ew_command ew_cmd_template;
extern const struct ew_command ew_cmd_tokenize;
extern const struct ew_command ew_cmd_version;

// clang-format off: one a line, so that two new commands do not meet
const struct ew_command *const ew_commands[] = {
    &ew_cmd_bench_embed,
    &ew_cmd_bench_kernels,
    &ew_cmd_bench_load,
    &ew_cmd_bench_speed,
    &ew_cmd_chat,
    &ew_cmd_doctor_power,
    &ew_cmd_doctor_rules, // verbs before the plain command, which would take them for arguments
    &ew_cmd_doctor_scan,
    &ew_cmd_doctor,
    &ew_cmd_embed,
    &ew_cmd_eval_logits,
    &ew_cmd_eval_perplexity,
    &ew_cmd_eval_self,
    &ew_cmd_plan,
    &ew_cmd_profiles,
    &ew_cmd_quantize,
    &ew_cmd_run,
    &ew_cmd_serve,
    &ew_cmd_template,
    &ew_cmd_tokenize,
    &ew_cmd_version,
    NULL,
};
// clang-format on
