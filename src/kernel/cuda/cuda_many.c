// Fused steps (cuda_fuse.c) with many rows of activations, on the tier of sm_90a: norms leave 16 or 8 bits, gates are
// made of both products where they stand, residuals are added as results are written.

#include "base/assert.h"
#include "kernel/cuda/cuda_prefill.h"
#include "kernel/cuda/f8_job.h"
#include "kernel/cuda/wcoded_job.h"

#define NORM_THREADS 256
#define MANY_ROWS 33      // from which on,
#define MANY_ROWS_SOME 65 // where the kernels of ptx/some.c decode what is read

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

static uint32_t stride_of(const struct ew_cuda_backend *backend, uint32_t buffer)
{
    return buffer == EW_CPU_NO_BUFFER ? 0 : backend->plan.buffers[buffer].width;
}

static uint64_t address_of(const struct ew_cuda_backend *backend, uint32_t buffer)
{
    return buffer == EW_CPU_NO_BUFFER ? 0 : backend->work.buffers[buffer];
}

// The activation's form in ptx/wgmma.c.
static bool gate_form(const struct ew_vector_job *job, float *linear, float *cubic)
{
    if (job->limit > 0 || job->alpha > 0)
        return false;
    if (job->act == EW_ACT_SILU) {
        *linear = 1;
        *cubic = 0;
        return true;
    }
    *linear = 1.5957691216f; // 2 sqrt(2 / pi)
    *cubic = 0.0713548162726f; // and 0.044715 times that
    return job->act == EW_ACT_GELU_TANH;
}

static struct ew_cuda_product product_of(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused,
                                         uint32_t i, uint32_t n_rows)
{
    const struct ew_vector_job *job = &fused->job;
    uint32_t out = fused->out == EW_CPU_NO_BUFFER ? fused->outs[i] : fused->out;

    return (struct ew_cuda_product){
        .matrix = &backend->matrices[fused->weights[i]],
        .in = job->norm == EW_VECTOR_PLAIN ? job->x : job->normed,
        .out = address_of(backend, out),
        .bias = job->parts[i].bias,
        .in_stride = stride_of(backend, fused->x),
        .out_stride = stride_of(backend, out),
        .n_rows = n_rows,
        .residual = address_of(backend, fused->residual),
        .residual_stride = stride_of(backend, fused->residual),
        .y_scale = job->y_scale,
        .residual_scale = job->residual_scale,
    };
}

// Whether a product goes through ptx/wgmma_coded.c, which takes its activations in another order than others do.
static bool is_coded(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t i,
                     uint32_t n_rows)
{
    struct ew_cuda_product product = product_of(backend, fused, i, n_rows);

    return ew_cuda_wcoded_takes(backend, &product);
}

static uint32_t least_rows(enum ew_cuda_layout layout)
{
    return layout >= EW_CUDA_I8 && layout <= EW_CUDA_F8 ? MANY_ROWS_SOME : MANY_ROWS;
}

bool ew_cuda_many_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows)
{
    const struct ew_vector_job *job = &fused->job;
    enum ew_cuda_layout as = ew_cuda_operand_of(&backend->matrices[fused->weights[0]], n_rows);
    float linear, cubic;
    bool coded;

    if (!fused->count || job->cols % EW_WCODED_COLS_MULTIPLE || !backend->work.has_maps ||
        backend->plan.buffers[fused->x].rows != EW_CPU_ROWS_TOKENS)
        return false;
    coded = is_coded(backend, fused, 0, n_rows);
    if (!coded && n_rows < least_rows(job->layout))
        return false;
    for (uint32_t i = 0; i < EW_VECTOR_PARTS_MAX && job->parts[i].rows; i++) {
        const struct ew_cuda_matrix *m = &backend->matrices[fused->weights[i]];

        if (ew_cuda_operand_of(m, n_rows) != as || is_coded(backend, fused, i, n_rows) != coded ||
            (as != EW_CUDA_F8 && !ew_cuda_wgmma_takes(backend, m)))
            return false;
    }
    if (job->is_glu && (!fused->is_narrow || job->rows % (as == EW_CUDA_F8 ? EW_F8_GROUP : 64) ||
                        !gate_form(job, &linear, &cubic)))
        return false;
    // The norm reads and writes 16 bytes at a time.
    return (stride_of(backend, fused->x) | stride_of(backend, fused->normed)) % 4 == 0;
}

static int launch_norm(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows,
                       enum ew_cuda_layout as, bool is_mixed, struct ew_error *err)
{
    const struct ew_vector_job *job = &fused->job;
    struct ew_cuda_narrow *to = &backend->work.narrow;
    struct ew_cuda_grid grid = {n_rows, 1, 1, NORM_THREADS, 0};
    struct ew_norm_job norm = {.in = job->x,
                               .weight = job->norm_weight,
                               .bias = job->norm_bias,
                               .normed = job->normed,
                               .order = job->order,
                               .in_stride = stride_of(backend, fused->x),
                               .normed_stride = stride_of(backend, fused->normed),
                               .cols = job->cols,
                               .eps = job->eps,
                               .weight_offset = job->norm_offset,
                               .is_layer = job->norm == EW_VECTOR_LAYER};
    struct ew_codes_job codes;

    *to = (struct ew_cuda_narrow){job->normed, job->order, job->cols, n_rows, as, to->turn ^ 1, is_mixed};
    if (as == EW_CUDA_F8) {
        codes = ew_cuda_f8_codes(backend, to->turn, job->cols, n_rows);
        return ew_cuda_launch(&backend->device, EW_CUDA_NORM_F8, grid, ARGUMENTS(&codes, &norm), err);
    }
    return ew_cuda_launch(&backend->device,
                          is_mixed             ? EW_CUDA_NORM_MIXED
                          : as == EW_CUDA_BF16 ? EW_CUDA_NORM_BF16
                                               : EW_CUDA_NORM_F16,
                          grid, ARGUMENTS(&backend->work.x16[to->turn], &norm), err);
}

// In one launch: those of one input have one layout.
static int coded_products(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows,
                          struct ew_error *err)
{
    struct ew_cuda_product products[EW_VECTOR_PARTS_MAX];
    uint32_t n = 0;
    int rc;

    for (; n < EW_VECTOR_PARTS_MAX && fused->job.parts[n].rows; n++)
        products[n] = product_of(backend, fused, n, n_rows);
    rc = ew_cuda_wcoded_products(backend, products, n, err);
    for (uint32_t i = 0; i < n; i++)
        ew_cuda_prefill_wrote(backend, products[i].out);
    return rc;
}

static int gated(struct ew_cuda_backend *backend, const struct ew_cuda_gate *gate, bool coded, enum ew_cuda_layout as,
                 struct ew_error *err)
{
    if (coded)
        return ew_cuda_wcoded_gate(backend, gate, gate->gate.out, err);
    return as == EW_CUDA_F8 ? ew_cuda_f8_gate(backend, gate, gate->gate.out, err)
                            : ew_cuda_wgmma_gate(backend, gate, gate->gate.out, err);
}

int ew_cuda_many(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows,
                 struct ew_error *err)
{
    const struct ew_vector_job *job = &fused->job;
    struct ew_cuda_gate gate = {product_of(backend, fused, 0, n_rows), product_of(backend, fused, 1, n_rows), 0, 0};
    enum ew_cuda_layout as = ew_cuda_operand_of(gate.gate.matrix, n_rows);
    bool coded = is_coded(backend, fused, 0, n_rows);
    int rc;

    if (job->norm != EW_VECTOR_PLAIN)
        rc = launch_norm(backend, fused, n_rows, as, coded, err);
    else
        rc = ew_cuda_prefill_narrow(backend, &gate.gate, as, err);
    if (rc == 0 && job->is_glu && gate_form(job, &gate.linear, &gate.cubic))
        return gated(backend, &gate, coded, as, err);
    if (rc == 0 && coded)
        return coded_products(backend, fused, n_rows, err);
    for (uint32_t i = 0; i < EW_VECTOR_PARTS_MAX && job->parts[i].rows && rc == 0; i++) {
        struct ew_cuda_product product = product_of(backend, fused, i, n_rows);

        rc = ew_cuda_prefill_product(backend, &product, err);
        ew_cuda_prefill_wrote(backend, product.out);
    }
    return rc;
}
