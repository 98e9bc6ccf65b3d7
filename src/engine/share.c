#include "engine/share.h"

#include "base/assert.h"

static uint32_t find(struct ew_shares *shares, uint64_t client)
{
    uint32_t unused = 0;

    for (uint32_t i = 1; i < shares->count; i++) {
        if (shares->list[i].client == client)
            return i;
        if (shares->list[i].n_jobs == 0 && (!unused || shares->list[i].served < shares->list[unused].served))
            unused = i;
    }
    if (shares->count < EW_SHARES_MAX)
        unused = shares->count++;
    if (unused)
        shares->list[unused] = (struct ew_share){.client = client};
    return unused;
}

static double least_active(const struct ew_shares *shares)
{
    double least = -1;

    for (uint32_t i = 0; i < shares->count; i++)
        if (shares->list[i].n_jobs && (least < 0 || shares->list[i].served < least))
            least = shares->list[i].served;
    return least;
}

uint32_t ew_shares_enter(struct ew_shares *shares, uint64_t client)
{
    uint32_t index;

    shares->count = EW_MAX(shares->count, 1u);
    index = client ? find(shares, client) : 0;
    if (shares->list[index].n_jobs == 0)
        shares->list[index].served = EW_MAX(shares->list[index].served, least_active(shares));
    shares->list[index].n_jobs++;
    return index;
}

void ew_shares_leave(struct ew_shares *shares, uint32_t index)
{
    EW_ASSERT(shares->list[index].n_jobs > 0);
    shares->list[index].n_jobs--;
}
