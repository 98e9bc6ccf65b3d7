#include "model/quantize.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/pool.h"
#include "model/convert.h"

// Elements of one piece of work: small enough for a core's cache, large enough to hide the hand-over.
#define TASK_ELEMENTS 65536u
#define TASKS_PER_CHUNK 64u
#define COPY_BYTES ((uint64_t)16 << 20)
#define QUANTIZATION_VERSION 2              // of ggml's block formats: that of all files since 2023
#define METADATA_BYTES ((uint64_t)64 << 20) // room asked for besides the tensors

const char ew_quantize_types[] = "q8_0|q4_0|q4_k|q4_k_m|q6_k|f16|bf16|f32";

static const struct target {
    const char *name;
    enum ew_dtype dtype;
    uint32_t file_type; // general.file_type, from enum llama_ftype
    bool is_mix;        // the usual mix: more bits where errors hurt most
} g_targets[] = {
    {"f32", EW_DTYPE_F32, 0, false},     {"f16", EW_DTYPE_F16, 1, false},    {"bf16", EW_DTYPE_BF16, 32, false},
    {"q8_0", EW_DTYPE_Q8_0, 7, false},   {"q4_0", EW_DTYPE_Q4_0, 2, false},  {"q4_k", EW_DTYPE_Q4_K, 14, false},
    {"q4_k_m", EW_DTYPE_Q4_K, 15, true}, {"q6_k", EW_DTYPE_Q6_K, 18, false},
};

// ---- which type a tensor gets ----------------------------------------------------------------------------

// Small, and sensitive: they stay in f32, as other writers of GGUF keep them.
static const char *const g_kept_parts[] = {"_norm.",       "rope_f",      "ffn_gate_inp.", "position_embd.",
                                           "token_types.", "ssm_conv1d.", "attn_sinks."};

static bool is_kept(const struct ew_convert_tensor *tensor)
{
    uint32_t long_dims = 0;

    for (uint32_t i = 0; i < tensor->n_dims; i++)
        long_dims += tensor->shape[i] > 1;
    if (long_dims < 2 || !ew_str_ends(tensor->name, ".weight"))
        return true;
    for (size_t i = 0; i < EW_COUNT_OF(g_kept_parts); i++)
        if (ew_str_find(tensor->name, ew_str_of(g_kept_parts[i]), 0) >= 0)
            return true;
    return false;
}

// Layers at both ends and every third between: llama.cpp's rule, found by measuring perplexities.
static bool is_important_layer(const struct ew_convert_tensor *tensor, uint32_t n_layers)
{
    uint32_t layer, eighth = n_layers / 8;

    if (!ew_convert_layer(tensor->name, &layer))
        return false;
    return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

static enum ew_dtype mixed_type(const struct ew_convert_tensor *tensor, uint32_t n_layers, bool has_head)
{
    struct ew_str name = tensor->name;

    if (ew_str_is(name, "output.weight") || (!has_head && ew_str_is(name, "token_embd.weight")))
        return EW_DTYPE_Q6_K;
    if (ew_str_ends(name, "attn_qkv.weight"))
        return EW_DTYPE_Q5_K;
    if (ew_str_ends(name, "attn_v.weight") || ew_str_ends(name, "ffn_down.weight") ||
        ew_str_ends(name, "ffn_down_exps.weight"))
        return is_important_layer(tensor, n_layers) ? EW_DTYPE_Q6_K : EW_DTYPE_Q4_K;
    return EW_DTYPE_Q4_K;
}

// The nearest type whose blocks divide the rows.
static enum ew_dtype fallback(enum ew_dtype wanted, uint64_t cols)
{
    enum ew_dtype small = wanted == EW_DTYPE_Q4_K   ? EW_DTYPE_Q5_0
                          : wanted == EW_DTYPE_Q5_K ? EW_DTYPE_Q5_1
                                                    : EW_DTYPE_Q8_0;

    if (cols % ew_dtype_info(wanted)->block_elements == 0)
        return wanted;
    return cols % ew_dtype_info(small)->block_elements == 0 ? small : EW_DTYPE_F16;
}

// ---- one run ---------------------------------------------------------------------------------------------

struct choice {
    enum ew_dtype to;
    bool fell_back;
    uint64_t bytes;
};

struct stats {            // of one task
    double error, square; // sums of squares
    double max_error;
    uint64_t n_not_finite;
};

struct run {
    const struct ew_quantize_options *options;
    const struct target *target;
    struct ew_convert convert;
    struct choice *choices; // [n_tensors]
    struct ew_gguf_writer *w;
    struct ew_pool *pool;
    float *scratch; // 2 * scratch_elements for each thread: values, and what they decode to
    size_t scratch_elements;
    unsigned char *encoded; // a chunk as it goes out
    struct ew_progress progress;
    uint64_t done; // bytes of the input
    struct ew_error *err;
};

static bool has_tensor(const struct ew_convert *convert, const char *name)
{
    for (uint32_t i = 0; i < convert->n_tensors; i++)
        if (ew_str_is(convert->tensors[i].name, name))
            return true;
    return false;
}

static uint32_t count_layers(const struct ew_convert *convert)
{
    uint32_t layer, most = 0;

    for (uint32_t i = 0; i < convert->n_tensors; i++)
        if (ew_convert_layer(convert->tensors[i].name, &layer))
            most = EW_MAX(most, layer + 1);
    return most;
}

static int choose(struct run *run)
{
    uint32_t n_layers = count_layers(&run->convert);
    bool has_head = has_tensor(&run->convert, "output.weight");

    run->choices = ew_alloc_array(run->convert.n_tensors + 1, sizeof(*run->choices));
    if (!run->choices)
        return ew_fail_memory(run->err, run->convert.n_tensors * sizeof(*run->choices), "the list of types");
    for (uint32_t i = 0; i < run->convert.n_tensors; i++) {
        const struct ew_convert_tensor *tensor = &run->convert.tensors[i];
        struct choice *choice = &run->choices[i];
        enum ew_dtype wanted = EW_DTYPE_F32;

        if (!ew_dtype_info(tensor->dtype)->decode)
            wanted = tensor->dtype; // whole numbers: a table, not weights
        else if (!is_kept(tensor))
            wanted = run->target->is_mix ? mixed_type(tensor, n_layers, has_head) : run->target->dtype;
        choice->to = fallback(wanted, tensor->cols);
        choice->fell_back = choice->to != wanted;
        choice->bytes = tensor->rows * ew_dtype_row_bytes(choice->to, tensor->cols);
    }
    return EW_OK;
}

// ---- data ------------------------------------------------------------------------------------------------

struct chunk {
    struct run *run;
    const struct ew_convert_tensor *tensor;
    enum ew_dtype to;
    uint64_t row, n_rows; // of the whole chunk
    uint64_t task_rows, row_bytes;
    struct stats stats[TASKS_PER_CHUNK];
};

static void measure(struct stats *stats, const float *values, const float *decoded, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double error = (double)decoded[i] - (double)values[i];

        if (!isfinite(values[i])) {
            stats->n_not_finite++;
            continue;
        }
        stats->square += (double)values[i] * (double)values[i];
        stats->error += error * error;
        stats->max_error = fabs(error) > stats->max_error ? fabs(error) : stats->max_error;
    }
}

static void encode_task(void *ctx, uint32_t task, uint32_t thread)
{
    struct chunk *chunk = ctx;
    const struct ew_dtype_info *info = ew_dtype_info(chunk->to);
    uint64_t first = task * chunk->task_rows, n_rows = EW_MIN(chunk->task_rows, chunk->n_rows - first);
    size_t n = (size_t)(n_rows * chunk->tensor->cols);
    float *values = chunk->run->scratch + 2 * chunk->run->scratch_elements * thread, *decoded = values + n;
    unsigned char *out = chunk->run->encoded + first * chunk->row_bytes;

    ew_convert_read(chunk->tensor, chunk->row + first, n_rows, values);
    info->encode(values, NULL, out, n);
    info->decode(out, decoded, n);
    chunk->stats[task] = (struct stats){0};
    measure(&chunk->stats[task], values, decoded, n);
}

static bool is_interrupted(const struct run *run)
{
    return run->options->interrupted && run->options->interrupted();
}

static int cancelled(const struct run *run)
{
    return ew_fail(run->err, EW_ERR_CANCELLED, "quantising was interrupted; %s was not written", run->options->out);
}

static void advance(struct run *run, uint64_t bytes)
{
    run->done += bytes;
    ew_progress_update(&run->progress, run->done);
}

static uint64_t task_rows(const struct ew_convert_tensor *tensor)
{
    return EW_MAX((uint64_t)1, TASK_ELEMENTS / EW_MAX((uint64_t)1, tensor->cols));
}

static int encode_tensor(struct run *run, const struct ew_convert_tensor *tensor, enum ew_dtype to, struct stats *sum)
{
    struct chunk chunk = {.run = run,
                          .tensor = tensor,
                          .to = to,
                          .task_rows = task_rows(tensor),
                          .row_bytes = ew_dtype_row_bytes(to, tensor->cols)};
    uint64_t rows_max = chunk.task_rows * TASKS_PER_CHUNK;
    int code = EW_OK;

    for (; chunk.row < tensor->rows && code == EW_OK; chunk.row += chunk.n_rows) {
        uint32_t n_tasks;

        if (is_interrupted(run))
            return cancelled(run);
        chunk.n_rows = EW_MIN(rows_max, tensor->rows - chunk.row);
        n_tasks = (uint32_t)((chunk.n_rows + chunk.task_rows - 1) / chunk.task_rows);
        ew_pool_run(run->pool, encode_task, &chunk, n_tasks);
        for (uint32_t i = 0; i < n_tasks; i++) { // in this order on every machine
            sum->error += chunk.stats[i].error;
            sum->square += chunk.stats[i].square;
            sum->max_error = fmax(sum->max_error, chunk.stats[i].max_error);
            sum->n_not_finite += chunk.stats[i].n_not_finite;
        }
        code = ew_gguf_write_data(run->w, run->encoded, chunk.n_rows * chunk.row_bytes, run->err);
        advance(run, chunk.n_rows * ew_dtype_row_bytes(tensor->dtype, tensor->cols));
    }
    return code;
}

static int copy_tensor(struct run *run, const struct ew_tensor *from)
{
    int code = EW_OK;

    for (uint64_t at = 0; at < from->bytes && code == EW_OK; at += COPY_BYTES) {
        uint64_t len = EW_MIN(COPY_BYTES, from->bytes - at);

        if (is_interrupted(run))
            return cancelled(run);
        code = ew_gguf_write_data(run->w, from->data + at, len, run->err);
        advance(run, len);
    }
    return code;
}

// What was read stays in the page cache only as long as somebody else wants it.
static void forget_input(const struct run *run, const struct ew_convert_tensor *tensor)
{
    for (uint32_t i = 0; i < tensor->n_parts; i++) {
        const struct ew_mapfile *map = ew_modelfile_map(&run->convert.file, tensor->parts[i]->file);

        ew_mapfile_dont_need(map, (uint64_t)(tensor->parts[i]->data - map->data), tensor->parts[i]->bytes);
    }
}

static void report(const struct run *run, const struct ew_convert_tensor *tensor, const struct choice *choice,
                   const struct stats *stats)
{
    struct ew_quantize_tensor result = {
        .name = tensor->name,
        .n_dims = tensor->n_dims,
        .shape = tensor->shape,
        .from = tensor->dtype,
        .to = choice->to,
        .fell_back = choice->fell_back,
        .bytes = choice->bytes,
        .max_error = stats->max_error,
        .n_not_finite = stats->n_not_finite,
        .rms_error = stats->square > 0 ? sqrt(stats->error / stats->square) : 0,
    };

    if (run->options->on_tensor)
        run->options->on_tensor(run->options->ctx, &result);
}

static int write_tensors(struct run *run, struct ew_quantize_summary *summary)
{
    int code = EW_OK;

    for (uint32_t i = 0; i < run->convert.n_tensors && code == EW_OK; i++) {
        const struct ew_convert_tensor *tensor = &run->convert.tensors[i];
        const struct choice *choice = &run->choices[i];
        struct stats stats = {0};

        code = tensor->dtype == choice->to && ew_convert_is_verbatim(tensor)
                   ? copy_tensor(run, tensor->parts[0])
                   : encode_tensor(run, tensor, choice->to, &stats);
        if (code != EW_OK)
            break;
        report(run, tensor, choice, &stats);
        forget_input(run, tensor);
        summary->n_tensors++;
        summary->n_fell_back += choice->fell_back;
        summary->n_not_finite += stats.n_not_finite;
        summary->bytes_in += tensor->rows * ew_dtype_row_bytes(tensor->dtype, tensor->cols);
        summary->bytes_out += choice->bytes;
    }
    return code;
}

// ---- around it -------------------------------------------------------------------------------------------

static int check_output(const struct ew_quantize_options *options, struct ew_error *err)
{
    struct stat info;

    if (stat(options->out, &info) != 0 || options->overwrite)
        return EW_OK;
    ew_fail(err, EW_ERR_USAGE, "%s is there already", options->out);
    return ew_remedy(err, EW_ERR_USAGE, "choose another name, or overwrite it with --force");
}

static int check_space(const struct run *run)
{
    uint64_t needed = METADATA_BYTES, available;
    struct statvfs fs;
    char dir[4096];
    const char *slash = strrchr(run->options->out, '/');

    for (uint32_t i = 0; i < run->convert.n_tensors; i++)
        needed += run->choices[i].bytes;
    snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - run->options->out + 1) : 1,
             slash ? run->options->out : ".");
    if (statvfs(dir, &fs) != 0)
        return ew_fail_errno(run->err, EW_ERR_IO, "cannot write to the directory %s", dir);
    available = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (available >= needed)
        return EW_OK;
    ew_fail(run->err, EW_ERR_IO, "%s needs %.1f GB and its file system has %.1f GB left", run->options->out,
            (double)needed / 1e9, (double)available / 1e9);
    return ew_remedy(run->err, EW_ERR_IO, "free space there, or write elsewhere");
}

static int allocate(struct run *run)
{
    uint32_t n_threads = run->options->n_threads ? run->options->n_threads : 1;
    size_t chunk_bytes = 0;

    for (uint32_t i = 0; i < run->convert.n_tensors; i++) {
        const struct ew_convert_tensor *tensor = &run->convert.tensors[i];
        uint64_t rows = task_rows(tensor), row_bytes = ew_dtype_row_bytes(run->choices[i].to, tensor->cols);

        run->scratch_elements = EW_MAX(run->scratch_elements, (size_t)(rows * tensor->cols));
        chunk_bytes = EW_MAX(chunk_bytes, (size_t)(EW_MIN(rows * TASKS_PER_CHUNK, tensor->rows) * row_bytes));
    }
    run->scratch = ew_alloc_array(run->scratch_elements * 2, sizeof(float) * n_threads);
    run->encoded = ew_alloc_aligned(chunk_bytes + 1);
    if (!run->scratch || !run->encoded)
        return ew_fail_memory(run->err, chunk_bytes, "blocks of rows");
    return ew_pool_create(n_threads, "quantize", &run->pool, run->err);
}

static int write_header(struct run *run)
{
    int code = ew_convert_write_metadata(&run->convert, run->options->pre_name, run->w, run->err);

    if (code == EW_OK)
        code = ew_gguf_write_u32(run->w, "general.file_type", run->target->file_type, run->err);
    if (code == EW_OK)
        code = ew_gguf_write_u32(run->w, "general.quantization_version", QUANTIZATION_VERSION, run->err);
    for (uint32_t i = 0; i < run->convert.n_tensors && code == EW_OK; i++) {
        const struct ew_convert_tensor *tensor = &run->convert.tensors[i];

        code = ew_gguf_declare_tensor(run->w, tensor->name, run->choices[i].to, tensor->n_dims, tensor->shape,
                                      run->err);
    }
    ew_modelfile_drop_tokenizer(&run->convert.file);
    return code;
}

static uint64_t input_bytes(const struct run *run)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < run->convert.n_tensors; i++)
        bytes += run->convert.tensors[i].rows *
                 ew_dtype_row_bytes(run->convert.tensors[i].dtype, run->convert.tensors[i].cols);
    return bytes;
}

// Writes to `path` and reads it back; on success it is complete and describes the same model.
static int write_file(struct run *run, const char *path, struct ew_quantize_summary *summary)
{
    int code = ew_gguf_writer_create(path, &run->w, run->err);

    if (code != EW_OK)
        return code;
    ew_progress_begin(&run->progress, "quantising", input_bytes(run));
    code = write_header(run);
    if (code == EW_OK)
        code = write_tensors(run, summary);
    ew_progress_end(&run->progress);
    if (code != EW_OK) {
        ew_gguf_writer_abandon(run->w);
        return code;
    }
    code = ew_gguf_writer_finish(run->w, run->err);
    if (code == EW_OK)
        code = ew_convert_check(&run->convert, path, run->err);
    if (code != EW_OK)
        unlink(path);
    return code;
}

// The file gets its name only once it was read back: what cannot be loaded again must not take a good model's
// place.
static int write_and_check(struct run *run, struct ew_quantize_summary *summary)
{
    char path[4096];
    int len = snprintf(path, sizeof(path), "%s.unchecked", run->options->out), code;

    if (len < 0 || (size_t)len >= sizeof(path))
        return ew_fail(run->err, EW_ERR_LIMIT, "the path %.200s... is too long", run->options->out);
    code = write_file(run, path, summary);
    if (code == EW_OK && rename(path, run->options->out) != 0) {
        code = ew_fail_errno(run->err, EW_ERR_IO, "cannot rename %s to %s", path, run->options->out);
        unlink(path);
    }
    return code;
}

static const struct target *find_target(const char *name)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_targets); i++)
        if (strcmp(g_targets[i].name, name) == 0)
            return &g_targets[i];
    return NULL;
}

int ew_quantize(const struct ew_quantize_options *options, struct ew_quantize_summary *summary, struct ew_error *err)
{
    struct run run = {.options = options, .target = find_target(options->type), .err = err};
    int code;

    *summary = (struct ew_quantize_summary){0};
    if (!run.target) {
        ew_fail(err, EW_ERR_USAGE, "quantize does not know the type \"%s\"", options->type);
        return ew_remedy(err, EW_ERR_USAGE, "use one of %s", ew_quantize_types);
    }
    code = check_output(options, err);
    if (code == EW_OK)
        code = ew_convert_open(&run.convert, options->in, err);
    if (code != EW_OK)
        return code;
    code = choose(&run);
    if (code == EW_OK)
        code = check_space(&run);
    if (code == EW_OK)
        code = allocate(&run);
    if (code == EW_OK)
        code = write_and_check(&run, summary);
    ew_pool_destroy(run.pool);
    ew_free(run.encoded);
    ew_free(run.scratch);
    ew_free(run.choices);
    ew_convert_close(&run.convert);
    return code;
}
