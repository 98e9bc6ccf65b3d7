#include "engine/fit.h"

#include "base/assert.h"
#include "base/log.h"
#include "engine/prefix.h"
#include "platform/memory.h"

#define STEP_TOKENS_USUAL 512u
#define CONTEXT_UNKNOWN 4096u   // for models whose file does not say what context they were trained with
#define TEXT_TOKENS_USUAL 8192u // models that read longer texts do so where a longer context is asked for
#define STATES_KEPT 2u     // by the prefix tree, for each context that there is room for: of a prompt and of an end
#define CONTEXT_LEAST 256u // a shorter one is only taken where it is asked for

// Texts are computed whole: a step takes the longest one.
static void complete_for_texts(struct ew_engine_config *c, const struct ew_model *model)
{
    uint32_t trained = model->shape.context_trained, usual = model->pooling.n_tokens_usual;

    if (!c->context_max)
        c->context_max = EW_MIN(trained ? trained : CONTEXT_UNKNOWN, usual ? usual : TEXT_TOKENS_USUAL);
    c->max_num_tokens = EW_MAX(c->max_num_tokens, c->context_max);
    c->max_sessions = c->max_batch_size;
    c->whole_prompts = true;
    c->reuse = false;
}

struct ew_engine_config ew_engine_config_complete(const struct ew_engine_config *config, const struct ew_model *model,
                                                  const struct ew_backend *backend)
{
    struct ew_engine_config c = *config;
    uint32_t usual = backend->ops->step_tokens ? backend->ops->step_tokens(backend) : STEP_TOKENS_USUAL;

    c.block_tokens = c.block_tokens ? c.block_tokens : 16;
    c.max_batch_size = c.max_batch_size ? c.max_batch_size : 8;
    c.max_sessions = EW_MAX(c.max_sessions, c.max_batch_size); // every sequence of a step is resident
    c.max_num_tokens = c.max_num_tokens ? c.max_num_tokens : EW_MAX(usual, c.chunk);
    c.max_num_tokens = EW_MAX(c.max_num_tokens, c.max_batch_size);
    if (model->pooling.kind != EW_POOLING_NONE)
        complete_for_texts(&c, model);
    c.chunk = c.chunk && !c.whole_prompts ? EW_MIN(c.chunk, c.max_num_tokens) : c.max_num_tokens;
    c.cache_fraction = c.cache_fraction > 0 ? c.cache_fraction : 1;
    return c;
}

// What this process could have if it were alone.
static uint64_t total_bytes(const struct ew_memory *memory)
{
    return memory->cgroup_limit_bytes ? EW_MIN(memory->cgroup_limit_bytes, memory->total_bytes) : memory->total_bytes;
}

// A device with memory of its own is asked what it has left.
static int read_memory(const struct ew_backend *backend, struct ew_memory *memory, struct ew_error *err)
{
    if (!backend->ops->free_bytes)
        return ew_memory_read(NULL, memory, err);
    *memory = (struct ew_memory){0};
    return backend->ops->free_bytes(backend, &memory->available_bytes, &memory->total_bytes, err);
}

// What the driver holds is gone already from what a device has left, but counts as the process's own.
static int read_budget(const struct ew_backend *backend, const struct ew_engine_config *config, struct ew_fit *fit,
                       struct ew_error *err)
{
    uint64_t *budget = &fit->budget_bytes;
    struct ew_memory memory;
    int rc;

    fit->held_bytes = backend->ops->held_bytes ? backend->ops->held_bytes(backend) : 0;
    *budget = config->memory_budget;
    if (*budget == 0) {
        rc = read_memory(backend, &memory, err);
        if (rc < 0)
            return rc;
        *budget = memory.available_bytes + fit->held_bytes;
        if (config->memory_utilization > 0 && total_bytes(&memory) > 0)
            *budget = EW_MIN(*budget, (uint64_t)(config->memory_utilization * (double)total_bytes(&memory)));
    }
    if (config->reserve >= *budget) {
        ew_fail(err, EW_ERR_MEMORY, "the reserve of %llu MiB leaves nothing of the %llu MiB there are",
                (unsigned long long)config->reserve >> 20, (unsigned long long)*budget >> 20);
        return ew_remedy(err, EW_ERR_MEMORY, "Lower --reserve or raise --memory-budget");
    }
    *budget -= config->reserve;
    return 0;
}

// Learned absolute positions end with their table; everything else can be computed for any position.
static uint32_t context_hard_max(const struct ew_program *program)
{
    uint64_t max = UINT32_MAX / 2;

    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if (op->kind == EW_OP_POSITION && !op->position.by_segment)
            max = EW_MIN(max, program->weights[op->weight].rows - (uint64_t)EW_MAX(op->position.first, 0));
    }
    return (uint32_t)max;
}

static int choose_context(const struct ew_model *model, const struct ew_engine_config *config, uint32_t *context,
                          struct ew_error *err)
{
    uint32_t hard = context_hard_max(&model->program), trained = model->shape.context_trained;

    if (config->context_max > hard)
        return ew_fail(err, EW_ERR_USAGE, "a context of %u is asked for and the model has learned positions for %u",
                       config->context_max, hard);
    if (trained && config->context_max > trained)
        ew_log(EW_LOG_WARN, "the context of %u is longer than the %u the model was trained with: answers may get worse",
               config->context_max, trained);
    *context = config->context_max ? config->context_max : EW_MIN(trained ? trained : CONTEXT_UNKNOWN, hard);
    return 0;
}

static uint32_t blocks_per_sequence(const struct ew_model *model, const struct ew_engine_config *config, uint32_t group,
                                    uint32_t context)
{
    return ew_cache_blocks_needed(&model->program.groups[group], context, EW_MIN(config->chunk, context),
                                  config->contiguous ? context : config->block_tokens);
}

// The bytes of the engine's own lists, of which only those that grow with the context count.
static uint64_t host_bytes(const struct ew_model *model, const struct ew_engine_config *config,
                           const struct ew_fit *fit, uint32_t context)
{
    uint64_t table = 0, pools = 0;

    for (uint32_t g = 0; g < model->program.n_groups; g++) {
        table += ew_cache_table_length(&model->program.groups[g], context, fit->limits.block_tokens) * sizeof(int32_t);
        pools += fit->n_blocks[g] * (uint64_t)EW_CACHE_BLOCK_HOST_BYTES;
    }
    if (config->reuse)
        pools += ew_prefix_host_bytes(model->program.groups, model->program.n_groups, fit->n_blocks,
                                      fit->limits.block_tokens, context);
    return fit->n_resident * (table + context * sizeof(int32_t)) + pools + model->program.n_vocab * 32ull;
}

// Sizes everything for this context and this many whole contexts' worth of blocks, in hundredths. Groups whose share
// does not grow with the context get what every resident sequence needs.
static int size_for(const struct ew_model *model, struct ew_backend *backend, const struct ew_engine_config *config,
                    uint32_t context, uint32_t percent, struct ew_fit *fit, struct ew_error *err)
{
    fit->limits.context_max = context;
    fit->limits.n_blocks = fit->n_blocks;
    fit->limits.block_tokens = config->contiguous ? context : config->block_tokens;
    for (uint32_t g = 0; g < model->program.n_groups; g++) {
        uint64_t each = blocks_per_sequence(model, config, g, context), all = each * fit->n_resident, some = all;
        enum ew_cache_kind kind = model->program.groups[g].kind;

        if (kind == EW_CACHE_FULL || kind == EW_CACHE_LATENT || kind == EW_CACHE_CROSS)
            some = (each * percent + 99) / 100;
        some = EW_MIN(some, all);
        if (kind == EW_CACHE_STATE && config->reuse)
            some += STATES_KEPT * ((percent + 99) / 100);
        if (some > INT32_MAX)
            return ew_fail(err, EW_ERR_LIMIT,
                           "a context of %u for %u sequences needs more cache blocks than can be counted", context,
                           fit->n_resident);
        fit->n_blocks[g] = (uint32_t)some;
    }
    fit->host_bytes = host_bytes(model, config, fit, context);
    return ew_model_size(model, backend, &fit->limits, &fit->need, err);
}

static bool fits(const struct ew_engine_config *config, const struct ew_fit *fit)
{
    uint64_t fixed = fit->need.weight_bytes + fit->need.workspace_bytes + fit->held_bytes;
    uint64_t left = fit->budget_bytes > fixed ? fit->budget_bytes - fixed : 0;

    return fit->need.cache_bytes + fit->host_bytes <= (uint64_t)(config->cache_fraction * (double)left);
}

// The greatest value in [low, high) that fits, where low is known to; leaves fit sized for it. by_context: the value
// is the context of the one sequence that there is room for, otherwise hundredths of contexts.
static int search(const struct ew_model *model, struct ew_backend *backend, const struct ew_engine_config *config,
                  bool by_context, uint32_t context, uint32_t low, uint32_t high, struct ew_fit *fit,
                  struct ew_error *err)
{
    int rc;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        rc = size_for(model, backend, config, by_context ? middle : context, by_context ? 100 : middle, fit, err);
        if (rc < 0)
            return rc;
        if (fits(config, fit))
            low = middle;
        else
            high = middle;
    }
    return size_for(model, backend, config, by_context ? low : context, by_context ? 100 : low, fit, err);
}

static int refuse(const struct ew_model *model, const struct ew_engine_config *config, const struct ew_fit *fit,
                  struct ew_error *err)
{
    const double mib = 1 << 20;
    uint64_t others = fit->host_bytes + fit->held_bytes;

    ew_fail(err, EW_ERR_MEMORY,
            "%s needs %.0f MiB (weights %.0f, caches %.0f for a context of %u, workspace%s %.0f) and the "
            "memory budget is %.0f MiB",
            model->path, (double)(fit->need.total_bytes + others) / mib, (double)fit->need.weight_bytes / mib,
            (double)fit->need.cache_bytes / mib, fit->limits.context_max, fit->held_bytes ? " and driver" : "",
            (double)(fit->need.workspace_bytes + others) / mib, (double)fit->budget_bytes / mib);
    if (fit->need.weight_bytes + fit->held_bytes >= fit->budget_bytes)
        return ew_remedy(err, EW_ERR_MEMORY,
                         "Use a smaller model or a smaller type of weights, or raise --memory-budget");
    return ew_remedy(err, EW_ERR_MEMORY,
                     config->context_max ? "Lower --ctx or --chunk, use --kv fp8, or raise --memory-budget"
                                         : "Lower --chunk, use --kv fp8, or raise --memory-budget");
}

// In order of preference: the whole context for every resident sequence; for fewer than all; a shorter context for one.
static int shrink_to_fit(const struct ew_model *model, struct ew_backend *backend,
                         const struct ew_engine_config *config, uint32_t context, struct ew_fit *fit,
                         struct ew_error *err)
{
    uint32_t least = config->context_max ? context : EW_MIN(CONTEXT_LEAST, context);
    int rc = size_for(model, backend, config, context, 100 * fit->n_resident, fit, err);

    if (rc < 0 || fits(config, fit))
        return rc;
    rc = size_for(model, backend, config, context, 100, fit, err);
    if (rc < 0)
        return rc;
    if (fits(config, fit))
        return search(model, backend, config, false, context, 100, 100 * fit->n_resident, fit, err);
    rc = size_for(model, backend, config, least, 100, fit, err);
    if (rc < 0)
        return rc;
    return fits(config, fit) ? search(model, backend, config, true, context, least, context, fit, err)
                             : refuse(model, config, fit, err);
}

// Rows of results of a step: one a sequence, or all of which a mean is made.
static uint32_t rows_max(const struct ew_model *model, const struct ew_engine_config *config)
{
    bool has_all = model->pooling.kind == EW_POOLING_MEAN && !model->pooling.in_program;

    return has_all ? config->max_num_tokens : config->max_batch_size;
}

int ew_fit(const struct ew_model *model, struct ew_backend *backend, const struct ew_engine_config *config,
           uint32_t n_logits_max, struct ew_fit *fit, struct ew_error *err)
{
    uint32_t context = 0;
    int rc;

    *fit = (struct ew_fit){
        .n_resident = config->max_sessions,
        .limits =
            {
                .n_tokens_max = config->max_num_tokens,
                .n_seqs_max = config->max_batch_size,
                .n_logits_max = n_logits_max ? n_logits_max : rows_max(model, config),
                .block_tokens = config->block_tokens,
                .kv = config->kv,
            },
    };
    rc = choose_context(model, config, &context, err);
    if (rc == 0)
        rc = read_budget(backend, config, fit, err);
    if (rc == 0)
        rc = shrink_to_fit(model, backend, config, context, fit, err);
    return rc;
}
