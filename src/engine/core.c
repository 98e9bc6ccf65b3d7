#include "engine/core.h"

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/prove.h"
#include "platform/memory.h"

#define GIVE_BACK_BYTES ((uint64_t)256 << 20) // that are read before the kernel is told to drop them

struct loading {
    struct ew_progress progress;
    const struct ew_modelfile *file; // whose pages are not to stay in the kernel's cache; NULL: they may
    uint64_t given_back;
    bool is_shown;
};

static bool on_progress(void *ctx, uint64_t done, uint64_t total)
{
    struct loading *loading = ctx;

    if (loading->file && (done - loading->given_back >= GIVE_BACK_BYTES || done == total)) {
        ew_modelfile_give_back(loading->file);
        loading->given_back = done;
    }
    loading->progress.total = total;
    if (loading->is_shown)
        ew_progress_update(&loading->progress, done);
    return true;
}

// A file that the kernel can keep with ease is there for the next start. One that would push out what others need, or
// on a GPU without memory of its own the weights themselves, is given back while it is read.
static const struct ew_modelfile *file_to_give_back(const struct ew_model *model)
{
    struct ew_memory memory;

    if (model->is_synthetic || ew_memory_read(NULL, &memory, NULL) < 0 ||
        ew_modelfile_bytes(&model->file) <= memory.available_bytes / 2)
        return NULL;
    ew_log(EW_LOG_INFO, "the model's file is more than half of the memory that is left: it does not stay in the cache");
    return &model->file;
}

// Caches have not taken the memory yet.
static int prove(void *ctx, struct ew_error *err)
{
    struct ew_core *core = ctx;

    return ew_prove_or_refuse(core->backend, core->model, &core->config, err);
}

static int load(struct ew_core *core, struct ew_error *err)
{
    struct loading loading = {.file = file_to_give_back(core->model), .is_shown = core->config.show_progress};
    double started_s = ew_clock_s();
    int rc;

    if (core->config.self_test && core->backend->ops->when_ready)
        core->backend->ops->when_ready(core->backend, prove, core);
    ew_progress_begin(&loading.progress, "loading", core->fit.need.weight_bytes);
    rc = core->backend->ops->load(core->backend, &core->model->program, on_progress, &loading, err);
    if (loading.is_shown)
        ew_progress_end(&loading.progress);
    if (rc == 0)
        rc = core->backend->ops->prepare(core->backend, &core->fit.limits, err);
    core->load_s = ew_clock_s() - started_s;
    return rc;
}

static int init_sequences(struct ew_core *core, struct ew_error *err)
{
    core->seqs = ew_alloc_array(core->fit.n_resident, sizeof(*core->seqs));
    if (!core->seqs)
        return ew_fail_memory(err, core->fit.n_resident * sizeof(*core->seqs), "the sequences");
    for (uint32_t i = 0; i < core->fit.n_resident; i++) {
        int rc = ew_sequence_init(&core->seqs[i], &core->cache, core->fit.limits.context_max, err);

        if (rc < 0)
            return rc;
    }
    return 0;
}

int ew_core_init(struct ew_core *core, const struct ew_model *model, const struct ew_engine_config *config,
                 uint32_t n_logits_max, struct ew_error *err)
{
    struct ew_backend *backend;
    int rc = ew_backend_create_for(config->backend ? config->backend : "auto", &config->device, &model->program,
                                   config->kv, &backend, err);

    *core = (struct ew_core){0};
    return rc ? rc : ew_core_init_on(core, model, config, backend, n_logits_max, err);
}

int ew_core_init_on(struct ew_core *core, const struct ew_model *model, const struct ew_engine_config *config,
                    struct ew_backend *backend, uint32_t n_logits_max, struct ew_error *err)
{
    const struct ew_fit *fit = &core->fit;
    int rc;

    *core = (struct ew_core){
        .model = model, .config = ew_engine_config_complete(config, model, backend), .backend = backend};
    rc = ew_fit(model, backend, &core->config, n_logits_max, &core->fit, err);
    if (rc == 0)
        rc = load(core, err);
    if (rc == 0)
        rc = ew_cache_init(&core->cache, &model->program, fit->n_blocks, fit->limits.block_tokens, err);
    if (rc == 0)
        rc = init_sequences(core, err);
    if (rc == 0 && core->config.reuse)
        rc = ew_prefix_create(&core->cache, fit->limits.context_max, &core->prefix, err);
    if (rc == 0)
        rc = ew_step_init(&core->step, core->backend, &model->program, &fit->limits, err);
    if (rc < 0)
        ew_core_fini(core);
    return rc;
}

void ew_core_fini(struct ew_core *core)
{
    ew_step_fini(&core->step);
    for (uint32_t i = 0; core->seqs && i < core->fit.n_resident; i++)
        ew_sequence_fini(&core->seqs[i]);
    ew_free(core->seqs);
    ew_prefix_destroy(core->prefix);
    ew_cache_fini(&core->cache);
    ew_backend_destroy(core->backend);
    *core = (struct ew_core){0};
}
