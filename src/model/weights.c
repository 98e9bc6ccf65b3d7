#include "model/weights.h"

#include <math.h>
#include <stdio.h>

#include "base/assert.h"
#include "base/log.h"
#include "format/mapfile.h"

// Bytes of a weight that lie in equal parts at several places: row r begins r * row_bytes into their concatenation.
struct parts {
    uint32_t count;
    uint64_t part_bytes, row_bytes;
    const unsigned char *at[];
};

static int read_mapped(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                       struct ew_error *err)
{
    (void)err;
    memcpy(dst, (const unsigned char *)source->mapped + row * source->arg[0], n_rows * source->arg[0]);
    return 0;
}

static void release_mapped(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows)
{
    ew_mapfile_dont_need_at((const unsigned char *)source->mapped + row * source->arg[0], n_rows * source->arg[0]);
}

static int read_parts(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                      struct ew_error *err)
{
    const struct parts *parts = source->ctx;
    uint64_t from = row * parts->row_bytes, left = n_rows * parts->row_bytes;
    unsigned char *out = dst;

    (void)err;
    while (left) {
        uint64_t inside = from % parts->part_bytes, n = EW_MIN(parts->part_bytes - inside, left);

        memcpy(out, parts->at[from / parts->part_bytes] + inside, n);
        out += n;
        from += n;
        left -= n;
    }
    return 0;
}

// The same from parts that have to be decoded.
struct sources {
    uint64_t rows, row_bytes; // rows: of each part
    struct ew_weight_source at[];
};

static int read_sources(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                        struct ew_error *err)
{
    const struct sources *sources = source->ctx;
    unsigned char *out = dst;
    int rc = 0;

    while (n_rows && rc == 0) {
        const struct ew_weight_source *part = &sources->at[row / sources->rows];
        uint64_t in_part = row % sources->rows, n = EW_MIN(n_rows, sources->rows - in_part);

        rc = part->read(part, in_part, n, out, err);
        out += n * sources->row_bytes;
        row += n;
        n_rows -= n;
    }
    return rc;
}

// Rows of a matrix, or elements of a vector, that stand in groups at a distance from each other.
struct grouped {
    const unsigned char *first;
    uint64_t unit_bytes, units_per_row; // of a row or element; elements of the vector, or 1
    uint64_t group_units, stride_bytes; // of a group; from one group to the next
};

static int read_grouped(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                        struct ew_error *err)
{
    const struct grouped *grouped = source->ctx;
    uint64_t begin = row * grouped->units_per_row, end = begin + n_rows * grouped->units_per_row;
    unsigned char *out = dst;

    (void)err;
    for (uint64_t i = begin; i < end; i++, out += grouped->unit_bytes)
        memcpy(out,
               grouped->first + i / grouped->group_units * grouped->stride_bytes +
                   i % grouped->group_units * grouped->unit_bytes,
               grouped->unit_bytes);
    return 0;
}

// The matrices of heads, out of a whole where those of a head begin at row `first` of each `stride` rows. What lies in
// blocks is decoded.
struct heads {
    struct ew_weight_source whole;
    uint64_t whole_cols, stride, first;
    uint64_t rows, cols; // of one head as wanted
    bool is_transposed;  // in the whole
};

// A row of the whole goes to its place among the wanted ones: as row, or as `column` of rows [row, row + n_rows).
static void put_head_row(const struct heads *heads, enum ew_dtype dtype, const float *values, uint64_t row,
                         uint64_t n_rows, uint64_t column, unsigned char *out)
{
    const struct ew_dtype_info *info = ew_dtype_info(dtype);

    if (!heads->is_transposed) {
        info->encode(values, NULL, out, heads->cols);
        return;
    }
    for (uint64_t i = 0; i < n_rows; i++)
        info->encode(values + row + i, NULL, out + (i * heads->cols + column) * info->block_bytes, 1);
}

// Rows [row, row + n_rows) of one head.
static int read_head(const struct ew_weight_source *source, uint64_t head, uint64_t row, uint64_t n_rows,
                     unsigned char *rows, float *values, unsigned char *out, struct ew_error *err)
{
    const struct heads *heads = source->ctx;
    uint64_t first = head * heads->stride + heads->first, row_bytes = ew_dtype_row_bytes(source->dtype, heads->cols);
    uint64_t n = heads->is_transposed ? heads->cols : n_rows;
    int rc = 0;

    for (uint64_t i = 0; i < n && rc == 0; i++) {
        uint64_t from = first + (heads->is_transposed ? i : row + i);

        rc = heads->whole.read(&heads->whole, from, 1, rows, err);
        if (rc)
            break;
        ew_dtype_info(heads->whole.dtype)->decode(rows, values, heads->whole_cols);
        put_head_row(heads, source->dtype, values, row, n_rows, i, heads->is_transposed ? out : out + i * row_bytes);
    }
    return rc;
}

static int read_heads(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                      struct ew_error *err)
{
    const struct heads *heads = source->ctx;
    uint64_t whole_bytes = ew_dtype_row_bytes(heads->whole.dtype, heads->whole_cols);
    unsigned char *rows = ew_alloc(whole_bytes + heads->whole_cols * sizeof(float) + sizeof(float)), *out = dst;
    float *values;
    int rc = 0;

    if (!rows)
        return ew_fail_memory(err, whole_bytes, "the rows being loaded");
    values = (float *)(rows + (whole_bytes + sizeof(float) - 1) / sizeof(float) * sizeof(float));
    while (n_rows && rc == 0) {
        uint64_t n = EW_MIN(n_rows, heads->rows - row % heads->rows);

        rc = read_head(source, row / heads->rows, row % heads->rows, n, rows, values, out, err);
        out += n * ew_dtype_row_bytes(source->dtype, heads->cols);
        row += n;
        n_rows -= n;
    }
    ew_free(rows);
    return rc;
}

// Elements at regular distances, all in bytes: of each part (expert) some rows, of each row `cols` elements.
struct strided {
    const unsigned char *first;
    uint64_t size, cols, rows_per_part;
    uint64_t part_stride, row_stride, col_stride;
};

static int read_strided(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                        struct ew_error *err)
{
    const struct strided *s = source->ctx;
    unsigned char *out = dst;

    (void)err;
    for (uint64_t i = row; i < row + n_rows; i++, out += s->cols * s->size) {
        const unsigned char *from = s->first + i / s->rows_per_part * s->part_stride +
                                    i % s->rows_per_part * s->row_stride;

        if (s->col_stride == s->size) {
            memcpy(out, from, s->cols * s->size);
            continue;
        }
        for (uint64_t c = 0; c < s->cols; c++)
            memcpy(out + c * s->size, from + c * s->col_stride, s->size);
    }
    return 0;
}

// Rates of decay whose logarithms the file has: arg holds the elements of a row, and ctx where they are.
static int read_log_decay(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                          struct ew_error *err)
{
    const struct ew_tensor *tensor = source->ctx;
    uint64_t n = source->arg[0], size = ew_dtype_row_bytes(tensor->dtype, 1);
    float *out = dst;

    (void)err;
    ew_dtype_info(tensor->dtype)->decode(tensor->data + row * n * size, out, n_rows * n);
    for (uint64_t i = 0; i < n_rows * n; i++)
        out[i] = -expf(out[i]);
    return 0;
}

static void release_parts(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows)
{
    const struct parts *parts = source->ctx;
    uint64_t from = row * parts->row_bytes, left = n_rows * parts->row_bytes;

    while (left) {
        uint64_t inside = from % parts->part_bytes, n = EW_MIN(parts->part_bytes - inside, left);

        ew_mapfile_dont_need_at(parts->at[from / parts->part_bytes] + inside, n);
        from += n;
        left -= n;
    }
}

static void shape_text(const struct ew_tensor *tensor, char *out, size_t size)
{
    size_t len = (size_t)snprintf(out, size, "[");

    for (uint32_t i = 0; i < tensor->n_dims && len < size; i++)
        len += (size_t)snprintf(out + len, size - len, "%s%llu", i ? ", " : "", (unsigned long long)tensor->shape[i]);
    if (len < size)
        snprintf(out + len, size - len, "]");
}

static int fail_shape(const struct ew_tensor *tensor, const struct ew_weight_want *want, uint64_t rows, uint64_t cols,
                      struct ew_error *err)
{
    char found[96];

    shape_text(tensor, found, sizeof(found));
    if (want->is_matrix)
        return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " is %s where the configuration asks for [%llu, %llu]",
                       EW_STR_ARG(tensor->name), found, (unsigned long long)rows, (unsigned long long)cols);
    return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " is %s where the configuration asks for [%llu]",
                   EW_STR_ARG(tensor->name), found, (unsigned long long)cols);
}

// Matrices have two dimensions; vectors have any that multiply to their length.
static bool shape_fits(const struct ew_tensor *tensor, bool is_matrix, uint64_t rows, uint64_t cols)
{
    uint64_t elements = 1;

    if (is_matrix)
        return tensor->n_dims == 2 && tensor->shape[0] == rows && tensor->shape[1] == cols;
    for (uint32_t i = 0; i < tensor->n_dims; i++)
        if (__builtin_mul_overflow(elements, tensor->shape[i], &elements))
            return false;
    return elements == cols;
}

static int check_type(const struct ew_binder *binder, const struct ew_tensor *tensor, bool is_matrix,
                      struct ew_error *err)
{
    const struct ew_dtype_info *info = ew_dtype_info(tensor->dtype);

    if (tensor->dtype == EW_DTYPE_F8_E4M3 && binder->quantised.method != EW_QUANTISED_NOT)
        return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " is in fp8 and its scales are missing",
                       EW_STR_ARG(tensor->name));
    if (!info->decode)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "tensor " EW_STR_FMT " has the type %s, which no weight can have",
                       EW_STR_ARG(tensor->name), info->name);
    if (!is_matrix && info->block_elements != 1)
        return ew_fail(err, EW_ERR_UNSUPPORTED,
                       "tensor " EW_STR_FMT " has the type %s where a vector needs a plain one",
                       EW_STR_ARG(tensor->name), info->name);
    return 0;
}

static void mark_used(struct ew_binder *binder, const struct ew_tensor *tensor, bool is_matrix)
{
    size_t index = (size_t)(tensor - binder->tensors->list);

    if (binder->used[index])
        return;
    binder->used[index] = true;
    binder->used_bytes += tensor->bytes;
    if (is_matrix)
        binder->type_bytes[tensor->dtype] += tensor->bytes;
}

// "blk.3.attn_q.bias" -> the file's name of blk.3.attn_q and ".bias"; everything else has ".weight". A table may also
// give the whole name for a canonical one with its suffix.
static bool file_name(const struct ew_binder *binder, const char *canonical, uint32_t part, uint32_t choice, char *out,
                      size_t size)
{
    struct ew_str name = ew_str_of(canonical);
    const char *suffix = ew_str_ends(name, ".bias") ? ".bias" : ".weight";
    char stem[128];
    size_t len;

    snprintf(stem, sizeof(stem), "%s%s", canonical, suffix[1] == 'b' ? "" : suffix);
    if (choice == 0 && ew_family_tensor(binder->family, binder->format, stem, part, 0, out, size))
        return true;
    snprintf(stem, sizeof(stem), "%.*s", (int)(name.len - (suffix[1] == 'b' ? 5 : 0)), canonical);
    if (!ew_family_tensor(binder->family, binder->format, stem, part, choice, out, size))
        return false;
    len = strlen(out);
    if (len + strlen(suffix) >= size)
        return false;
    memcpy(out + len, suffix, strlen(suffix) + 1);
    return true;
}

// The name as it stands in this very file.
static bool rooted_name(const struct ew_binder *binder, const char *canonical, uint32_t part, char *out, size_t size)
{
    char name[256];

    return file_name(binder, canonical, part, 0, name, sizeof(name)) &&
           ew_family_rooted_name(binder->root, ew_str_of(name), out, size);
}

static int fail_missing_part(const struct ew_binder *binder, const struct ew_weight_want *want, uint32_t part,
                             struct ew_error *err)
{
    char name[256];

    return ew_fail(err, EW_ERR_FORMAT, "tensor %s, of which %s is made with others, is missing",
                   rooted_name(binder, want->name, part, name, sizeof(name)) ? name : "of a part", want->name);
}

static const struct ew_tensor *find_tensor(const struct ew_binder *binder, const char *canonical, uint32_t head)
{
    const struct ew_tensor *tensor = NULL;
    char name[256];

    for (uint32_t i = 0; !tensor && file_name(binder, canonical, head, i, name, sizeof(name)); i++)
        tensor = ew_family_find_rooted(binder->root, binder->tensors, ew_str_of(name));
    return tensor;
}

// Rows [first, first + n) of a tensor that has whole_rows; a vector counts its elements as rows.
static int bind_slice(struct ew_binder *binder, const struct ew_weight_want *want, const struct ew_tensor *tensor,
                      uint64_t first, uint64_t whole_rows, struct ew_weight_source *out, struct ew_error *err)
{
    uint64_t row_bytes, rows = want->is_matrix ? whole_rows : 1, cols = want->is_matrix ? want->cols : whole_rows;
    int rc;

    if (!shape_fits(tensor, want->is_matrix, rows, cols))
        return fail_shape(tensor, want, rows, cols, err);
    rc = check_type(binder, tensor, want->is_matrix, err);
    if (rc)
        return rc;
    row_bytes = ew_dtype_row_bytes(tensor->dtype, want->cols);
    if (!row_bytes)
        return ew_fail(err, EW_ERR_FORMAT,
                       "tensor " EW_STR_FMT " has rows of %llu elements, which blocks of %s do not divide",
                       EW_STR_ARG(tensor->name), (unsigned long long)want->cols, ew_dtype_name(tensor->dtype));
    mark_used(binder, tensor, want->is_matrix);
    *out = (struct ew_weight_source){
        .dtype = tensor->dtype, .read = read_mapped, .release = release_mapped, .arg = {row_bytes}};
    out->mapped = tensor->data + first * (want->is_matrix ? row_bytes : ew_dtype_row_bytes(tensor->dtype, 1));
    return 0;
}

// The same from a whole that is stored in groups; elements of a vector count as rows again.
static int bind_grouped(struct ew_binder *binder, const struct ew_weight_want *want, const struct ew_tensor *tensor,
                        struct ew_weight_source *out, struct ew_error *err)
{
    struct grouped *grouped = ew_arena_alloc(binder->arena, sizeof(*grouped));
    int rc = bind_slice(binder, want, tensor, want->group_first, want->whole_rows, out, err);

    if (rc)
        return rc;
    if (!grouped)
        return ew_fail_memory(err, sizeof(*grouped), "the place of a weight");
    grouped->first = out->mapped;
    grouped->unit_bytes = want->is_matrix ? out->arg[0] : ew_dtype_row_bytes(tensor->dtype, 1);
    grouped->units_per_row = want->is_matrix ? 1 : want->cols;
    grouped->group_units = want->group_rows;
    grouped->stride_bytes = want->whole_rows / want->n_groups * grouped->unit_bytes;
    *out = (struct ew_weight_source){.dtype = tensor->dtype, .read = read_grouped, .ctx = grouped};
    return 0;
}

static int set_strided(struct ew_binder *binder, const struct ew_tensor *tensor, const struct strided *strided,
                       struct ew_weight_source *out, struct ew_error *err)
{
    struct strided *copy = ew_arena_alloc(binder->arena, sizeof(*copy));

    if (!copy)
        return ew_fail_memory(err, sizeof(*copy), "the place of a weight");
    *copy = *strided;
    *out = (struct ew_weight_source){.dtype = tensor->dtype, .read = read_strided, .ctx = copy};
    return 0;
}

// A part of a matrix [cols, whole_rows].
static int bind_transposed(struct ew_binder *binder, const struct ew_weight_want *want, const struct ew_tensor *tensor,
                           uint64_t first, uint64_t whole_rows, struct ew_weight_source *out, struct ew_error *err)
{
    uint64_t size = ew_dtype_row_bytes(tensor->dtype, 1);
    struct strided strided = {.first = tensor->data + first * size,
                              .size = size,
                              .cols = want->cols,
                              .rows_per_part = want->rows,
                              .row_stride = size,
                              .col_stride = whole_rows * size};
    int rc;

    if (!shape_fits(tensor, true, want->cols, whole_rows))
        return fail_shape(tensor, want, want->cols, whole_rows, err);
    rc = check_type(binder, tensor, false, err); // elements, not blocks of them
    if (rc)
        return rc;
    mark_used(binder, tensor, true);
    return set_strided(binder, tensor, &strided, out, err);
}

// A weight, or the part of a tensor that it is, in whichever way the file stores it.
static int bind(struct ew_binder *binder, const struct ew_weight_want *want, const struct ew_tensor *tensor,
                bool is_part, struct ew_weight_source *out, struct ew_error *err)
{
    uint64_t first = is_part ? want->first_row : 0, rows = want->is_matrix ? want->rows : want->cols;
    bool in_layer = ew_str_starts(ew_str_of(want->name), "blk.");
    int rc;

    if (is_part)
        rows = want->whole_rows;
    if (is_part && want->n_groups > 1 && (binder->storage & EW_FAMILY_GROUPED_QKV))
        return bind_grouped(binder, want, tensor, out, err);
    if (want->is_matrix && in_layer && (binder->storage & EW_FAMILY_TRANSPOSED))
        return bind_transposed(binder, want, tensor, first, rows, out, err);
    rc = bind_slice(binder, want, tensor, first, rows, out, err);
    if (!rc && (binder->storage & EW_FAMILY_LOG_DECAY) && ew_str_ends(ew_str_of(want->name), ".ssm_a"))
        *out = (struct ew_weight_source){
            .dtype = EW_DTYPE_F32, .read = read_log_decay, .ctx = tensor, .arg = {want->cols}};
    return rc;
}

// One head's part of a vector whose heads are tensors of their own.
static int bind_head(struct ew_binder *binder, const struct ew_weight_want *want, uint32_t head,
                     struct ew_weight_source *out, struct ew_error *err)
{
    const struct ew_tensor *tensor = find_tensor(binder, want->name, head);
    struct ew_weight_want part = {.name = want->name, .rows = 1, .cols = want->cols / want->n_heads};

    if (!tensor)
        return fail_missing_part(binder, want, head, err);
    return bind_slice(binder, &part, tensor, 0, part.cols, out, err);
}

static int bind_heads(struct ew_binder *binder, const struct ew_weight_want *want, struct ew_weight_source *out,
                      struct ew_error *err)
{
    struct parts *parts = ew_arena_alloc(binder->arena, sizeof(*parts) + want->n_heads * sizeof(parts->at[0]));
    struct ew_weight_source first = {0};

    if (!parts)
        return ew_fail_memory(err, want->n_heads * sizeof(parts->at[0]), "the parts of a weight");
    for (uint32_t i = 0; i < want->n_heads; i++) {
        struct ew_weight_source source;
        int rc = bind_head(binder, want, i, &source, err);

        if (rc)
            return rc;
        if (i == 0)
            first = source;
        if (source.dtype != first.dtype)
            return ew_fail(err, EW_ERR_UNSUPPORTED, "the parts of %s have different types", want->name);
        parts->at[i] = source.mapped;
    }
    parts->count = want->n_heads;
    parts->part_bytes = first.arg[0];
    parts->row_bytes = parts->part_bytes * parts->count;
    *out = (struct ew_weight_source){.dtype = first.dtype, .read = read_parts, .ctx = parts};
    return 0;
}

// One expert's matrix, where experts are tensors of their own.
static int bind_expert(struct ew_binder *binder, const struct ew_weight_want *want, uint32_t expert,
                       struct ew_weight_source *out, struct ew_error *err)
{
    const struct ew_tensor *tensor = find_tensor(binder, want->name, expert);
    struct ew_weight_want one = {
        .name = want->name, .rows = want->rows / want->n_experts, .cols = want->cols, .is_matrix = want->is_matrix};

    if (!tensor)
        return fail_missing_part(binder, want, expert, err);
    return bind_slice(binder, &one, tensor, 0, one.is_matrix ? one.rows : one.cols, out, err);
}

static int bind_experts(struct ew_binder *binder, const struct ew_weight_want *want, struct ew_weight_source *out,
                        struct ew_error *err)
{
    struct parts *parts = ew_arena_alloc(binder->arena, sizeof(*parts) + want->n_experts * sizeof(parts->at[0]));
    struct ew_weight_source first = {0};

    if (!parts)
        return ew_fail_memory(err, want->n_experts * sizeof(parts->at[0]), "the parts of a weight");
    for (uint32_t i = 0; i < want->n_experts; i++) {
        struct ew_weight_source source;
        int rc = bind_expert(binder, want, i, &source, err);

        if (rc)
            return rc;
        if (i == 0)
            first = source;
        if (source.dtype != first.dtype)
            return ew_fail(err, EW_ERR_UNSUPPORTED, "the experts of %s have different types", want->name);
        parts->at[i] = source.mapped;
    }
    parts->count = want->n_experts;
    parts->row_bytes = first.arg[0];
    parts->part_bytes = want->rows / want->n_experts * parts->row_bytes;
    *out = (struct ew_weight_source){.dtype = first.dtype, .read = read_parts, .release = release_parts, .ctx = parts};
    return 0;
}

// Whether the tensor is [n_experts, rows, cols] (or [.., cols, rows]), a vector [n_experts, rows].
static bool is_stack_of(const struct ew_tensor *tensor, const struct ew_weight_want *want, uint64_t rows,
                        bool transposed)
{
    if (tensor->n_dims != (want->is_matrix ? 3 : 2) || tensor->shape[0] != want->n_experts)
        return false;
    if (!want->is_matrix)
        return tensor->shape[1] == rows;
    return tensor->shape[transposed ? 2 : 1] == rows && tensor->shape[transposed ? 1 : 2] == want->cols;
}

// All experts in one tensor, whose rows they are, or part of.
static int bind_stack(struct ew_binder *binder, const struct ew_weight_want *want, const struct ew_tensor *tensor,
                      bool is_part, struct ew_weight_source *out, struct ew_error *err)
{
    uint64_t own = want->is_matrix ? want->rows / want->n_experts : want->cols, rows = is_part ? want->whole_rows : own;
    bool transposed = want->is_matrix && (binder->storage & EW_FAMILY_TRANSPOSED_EXPERTS);
    bool paired = is_part && (binder->storage & EW_FAMILY_PAIRED_EXPERTS), by_elements = transposed || !want->is_matrix;
    uint64_t size = ew_dtype_row_bytes(tensor->dtype, by_elements ? 1 : want->cols), step = paired ? rows / own : 1;
    uint64_t first = paired ? want->group_first : is_part ? want->first_row : 0;
    struct strided strided = {.first = tensor->data + first * size, .size = size, .cols = 1, .rows_per_part = own};
    int rc;

    if (!is_stack_of(tensor, want, rows, transposed))
        return fail_shape(tensor, want, rows, want->cols, err);
    rc = check_type(binder, tensor, want->is_matrix && !transposed, err);
    if (rc)
        return rc;
    if (!size)
        return ew_fail(err, EW_ERR_FORMAT,
                       "tensor " EW_STR_FMT " has rows of %llu elements, which blocks of %s do not divide",
                       EW_STR_ARG(tensor->name), (unsigned long long)want->cols, ew_dtype_name(tensor->dtype));
    mark_used(binder, tensor, want->is_matrix);
    strided.part_stride = rows * size * (transposed ? want->cols : 1);
    strided.row_stride = step * size;
    strided.col_stride = size;
    if (transposed) {
        strided.cols = want->cols;
        strided.col_stride = rows * size;
    } else if (!want->is_matrix) {
        strided.cols = own;
        strided.rows_per_part = 1;
        strided.col_stride = step * size;
    }
    if (!is_part && !transposed) { // the bytes as they are
        *out = (struct ew_weight_source){.dtype = tensor->dtype, .read = read_mapped, .mapped = tensor->data};
        out->arg[0] = want->is_matrix ? size : own * size;
        out->release = release_mapped;
        return 0;
    }
    return set_strided(binder, tensor, &strided, out, err);
}

// The first of these suffixes under which there is a tensor beside the weight.
static const struct ew_tensor *find_beside(struct ew_binder *binder, const char *stem, const char *const *suffixes)
{
    const struct ew_tensor *tensor = NULL;
    char name[256];

    for (; *suffixes && !tensor; suffixes++) {
        int len = snprintf(name, sizeof(name), "%s%s", stem, *suffixes);

        if (len > 0 && (size_t)len < sizeof(name))
            tensor = ew_family_find_rooted(binder->root, binder->tensors, ew_str_of(name));
    }
    if (tensor)
        mark_used(binder, tensor, false);
    return tensor;
}

static bool is_plain(enum ew_dtype dtype)
{
    return dtype == EW_DTYPE_F32 || dtype == EW_DTYPE_F16 || dtype == EW_DTYPE_BF16;
}

// Where a weight has no scales it must be a plain one.
static int check_codes(struct ew_binder *binder, const char *canonical, struct ew_error *err)
{
    const struct ew_quantised_names *names = ew_quantised_names(binder->quantised.method);
    const struct ew_tensor *codes;
    char name[256];

    if (binder->quantised.method == EW_QUANTISED_NOT || !file_name(binder, canonical, 0, 0, name, sizeof(name)))
        return 0;
    if (ew_str_ends(ew_str_of(name), ".weight"))
        name[strlen(name) - strlen(".weight")] = '\0';
    codes = find_beside(binder, name, names->codes);
    if (!codes || is_plain(codes->dtype))
        return 0;
    return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " holds codes in %s, and the scales beside it are missing",
                   EW_STR_ARG(codes->name), ew_dtype_name(codes->dtype));
}

static bool find_parts(struct ew_binder *binder, const char *canonical, uint32_t expert,
                       struct ew_quantised_parts *parts)
{
    const struct ew_quantised_names *names = ew_quantised_names(binder->quantised.method);
    const struct ew_tensor *multiplied, *divided;
    struct ew_str stem;
    char name[256];

    *parts = (struct ew_quantised_parts){0};
    if (!canonical || !file_name(binder, canonical, expert, 0, name, sizeof(name)))
        return false;
    stem = ew_str_of(name);
    if (ew_str_ends(stem, ".weight"))
        name[stem.len - strlen(".weight")] = '\0';
    parts->scales = find_beside(binder, name, names->scales);
    parts->codes = parts->scales ? find_beside(binder, name, names->codes) : NULL;
    if (!parts->codes)
        return false;
    parts->zeros = find_beside(binder, name, names->zeros);
    parts->order = find_beside(binder, name, names->order);
    multiplied = find_beside(binder, name, names->multiplied);
    divided = multiplied ? NULL : find_beside(binder, name, names->divided);
    parts->global = multiplied ? multiplied : divided;
    parts->divides = divided != NULL;
    return true;
}

// One expert's matrix, where experts are quantised as matrices of their own.
static int bind_quantised_expert(struct ew_binder *binder, const struct ew_weight_want *want, uint32_t expert,
                                 struct ew_weight_source *out, struct ew_error *err)
{
    uint64_t rows = want->rows / want->n_experts;
    struct ew_quantised_want part = {
        .name = want->name, .rows = rows, .cols = want->cols, .whole_rows = rows, .step = 1, .n_parts = 1};
    struct ew_quantised_parts parts;
    int rc;

    if (!find_parts(binder, want->name, expert, &parts))
        return fail_missing_part(binder, want, expert, err);
    rc = ew_quantised_bind(&binder->quantised, &parts, &part, binder->arena, out, err);
    if (rc == 0)
        binder->type_bytes[out->dtype] += parts.codes->bytes;
    return rc;
}

static int bind_quantised_experts(struct ew_binder *binder, const struct ew_weight_want *want,
                                  struct ew_weight_source *out, struct ew_error *err)
{
    struct sources *sources = ew_arena_alloc(binder->arena,
                                             sizeof(*sources) + want->n_experts * sizeof(sources->at[0]));
    int rc = 0;

    if (!sources)
        return ew_fail_memory(err, want->n_experts * sizeof(sources->at[0]), "the parts of a weight");
    sources->rows = want->rows / want->n_experts;
    for (uint32_t i = 0; i < want->n_experts && rc == 0; i++) {
        rc = bind_quantised_expert(binder, want, i, &sources->at[i], err);
        if (rc == 0 && sources->at[i].dtype != sources->at[0].dtype)
            rc = ew_fail(err, EW_ERR_UNSUPPORTED, "the experts of %s have different types", want->name);
    }
    if (rc)
        return rc;
    sources->row_bytes = ew_dtype_row_bytes(sources->at[0].dtype, want->cols);
    *out = (struct ew_weight_source){.dtype = sources->at[0].dtype, .read = read_sources, .ctx = sources};
    return 0;
}

// A matrix of a quantised checkpoint. *found false: this one is not quantised.
static int bind_quantised(struct ew_binder *binder, const struct ew_weight_want *want, bool *found,
                          struct ew_weight_source *out, struct ew_error *err)
{
    uint32_t n_parts = EW_MAX(1, want->n_experts);
    struct ew_quantised_want part = {.name = want->name,
                                     .rows = want->rows,
                                     .cols = want->cols,
                                     .whole_rows = want->rows / n_parts,
                                     .step = 1,
                                     .n_parts = n_parts};
    struct ew_quantised_parts parts;
    int rc;

    *found = want->is_matrix && binder->quantised.method != EW_QUANTISED_NOT;
    if (*found && want->n_experts && ew_family_is_stack(binder->family, binder->format, want->name)) {
        *found = find_parts(binder, want->name, 0, &parts);
        return *found ? bind_quantised_experts(binder, want, out, err) : 0;
    }
    *found = *found && (!want->n_experts || binder->quantised.method == EW_QUANTISED_MXFP4);
    if (*found && find_parts(binder, want->whole, 0, &parts)) {
        bool paired = want->n_experts && (binder->storage & EW_FAMILY_PAIRED_EXPERTS);

        part.whole_rows = want->whole_rows;
        part.first = paired ? want->group_first : want->first_row;
        part.step = paired ? want->whole_rows / (want->rows / n_parts) : 1;
    } else if (*found) {
        *found = find_parts(binder, want->name, 0, &parts);
    }
    if (!*found)
        return want->is_matrix && !want->n_experts ? check_codes(binder, want->name, err) : 0;
    rc = ew_quantised_bind(&binder->quantised, &parts, &part, binder->arena, out, err);
    if (rc == 0)
        binder->type_bytes[out->dtype] += parts.codes->bytes;
    return rc;
}

static int fail_missing(const struct ew_binder *binder, const struct ew_weight_want *want, struct ew_error *err)
{
    char own[256], whole[256];
    bool has_own = rooted_name(binder, want->name, 0, own, sizeof(own));
    bool has_whole = want->whole && rooted_name(binder, want->whole, 0, whole, sizeof(whole));
    const struct ew_tensor *tensor;

    if (has_own && ew_tensors_need(binder->tensors, ew_str_of(own), &tensor, err) == EW_ERR_UNSUPPORTED)
        return EW_ERR_UNSUPPORTED; // it is there, in a form that the reader had to refuse
    if (has_own && has_whole)
        return ew_fail(err, EW_ERR_FORMAT, "tensor %s is missing, and so is %s, of which it could be a part", own,
                       whole);
    return ew_fail(err, EW_ERR_FORMAT, "tensor %s is missing", has_own ? own : has_whole ? whole : want->name);
}

static int find_weight(void *ctx, const struct ew_weight_want *want, struct ew_weight_source *out,
                       struct ew_error *err);

// A matrix of each head: a stack in the file, or rows of a matrix that holds several of them.
static int bind_head_matrices(struct ew_binder *binder, const struct ew_weight_want *want,
                              struct ew_weight_source *out, struct ew_error *err)
{
    const struct ew_tensor *tensor = find_tensor(binder, want->name, 0);
    struct heads *heads = ew_arena_alloc(binder->arena, sizeof(*heads));
    int rc;

    if (!heads)
        return ew_fail_memory(err, sizeof(*heads), "the place of a weight");
    *heads = (struct heads){.rows = want->rows / want->n_heads, .cols = want->cols};
    if (tensor) {
        struct ew_weight_want stack = {.name = want->name,
                                       .rows = want->rows,
                                       .cols = want->cols,
                                       .n_experts = want->n_heads,
                                       .is_matrix = true};

        heads->stride = heads->rows;
        heads->whole_cols = heads->cols;
        rc = bind_stack(binder, &stack, tensor, false, &heads->whole, err);
    } else {
        struct ew_weight_want whole = {.name = want->whole, .rows = want->whole_rows, .is_matrix = true};

        heads->is_transposed = want->is_transposed;
        heads->stride = want->whole_rows / want->n_heads;
        heads->first = want->group_first;
        whole.cols = heads->whole_cols = want->is_transposed ? heads->rows : heads->cols;
        rc = find_weight(binder, &whole, &heads->whole, err);
    }
    if (rc)
        return rc;
    *out = (struct ew_weight_source){.dtype = EW_DTYPE_F16, .read = read_heads, .ctx = heads};
    if (is_plain(heads->whole.dtype))
        out->dtype = heads->whole.dtype;
    if (tensor && is_plain(heads->whole.dtype)) // the bytes as they are
        *out = heads->whole;
    return 0;
}

static int find_weight(void *ctx, const struct ew_weight_want *want, struct ew_weight_source *out, struct ew_error *err)
{
    struct ew_binder *binder = ctx;
    const struct ew_tensor *tensor;
    bool found;
    int rc;

    if (want->is_matrix && want->n_heads)
        return bind_head_matrices(binder, want, out, err);
    rc = bind_quantised(binder, want, &found, out, err);
    if (found || rc)
        return rc;
    // The fused tensor first: GGUF calls Phi-3's gate and up together what elsewhere is up alone.
    tensor = want->whole ? find_tensor(binder, want->whole, 0) : NULL;
    if (tensor)
        return want->n_experts ? bind_stack(binder, want, tensor, true, out, err)
                               : bind(binder, want, tensor, true, out, err);
    if (want->n_experts && ew_family_is_stack(binder->family, binder->format, want->name))
        return bind_experts(binder, want, out, err);
    if (want->n_heads && ew_family_is_stack(binder->family, binder->format, want->name))
        return bind_heads(binder, want, out, err);
    tensor = find_tensor(binder, want->name, 0);
    if (!tensor)
        return fail_missing(binder, want, err);
    return want->n_experts ? bind_stack(binder, want, tensor, false, out, err)
                           : bind(binder, want, tensor, false, out, err);
}

int ew_binder_init(struct ew_binder *binder, const struct ew_family *family, enum ew_family_format format,
                   const struct ew_tensors *tensors, struct ew_arena *arena, struct ew_error *err)
{
    *binder = (struct ew_binder){.family = family, .format = format, .tensors = tensors, .arena = arena};
    binder->storage = ew_family_storage(family, format);
    binder->root = ew_family_root(family, format, tensors);
    binder->used = ew_alloc_array(tensors->count, sizeof(*binder->used));
    return binder->used ? 0 : ew_fail_memory(err, tensors->count, "the list of tensors in use");
}

void ew_binder_fini(struct ew_binder *binder)
{
    ew_free(binder->used);
    binder->used = NULL;
}

struct ew_weight_finder ew_binder_finder(struct ew_binder *binder)
{
    return (struct ew_weight_finder){.find = find_weight, .ctx = binder};
}

void ew_binder_log_unused(const struct ew_binder *binder)
{
    for (uint64_t i = 0; i < binder->tensors->count && ew_log_enabled(EW_LOG_DEBUG); i++)
        if (!binder->used[i])
            ew_log(EW_LOG_DEBUG, "tensor " EW_STR_FMT " is not used", EW_STR_ARG(binder->tensors->list[i].name));
}

enum ew_dtype ew_binder_main_type(const struct ew_binder *binder)
{
    int best = EW_DTYPE_F32;

    for (int i = 0; i < EW_DTYPE_COUNT; i++)
        if (binder->type_bytes[i] > binder->type_bytes[best])
            best = i;
    return (enum ew_dtype)best;
}
