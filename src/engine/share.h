#pragma once
// Fair sharing between clients: each has a count of the tokens that were computed for it, and of those with waiting
// requests the one with the least goes first. A client that comes back starts no lower than the least of the active
// ones, so that idleness cannot be saved up (the virtual token counter of Sheng et al., "Fairness in serving large
// language models", OSDI 2024). Engine thread only.

#include <stdint.h>

#define EW_SHARES_MAX 256 // clients with requests at once; those beyond count as one

struct ew_share {
    uint64_t client;
    double served;   // tokens
    uint32_t n_jobs; // waiting and running; 0: the entry may be given to another client
};

struct ew_shares {
    struct ew_share list[EW_SHARES_MAX]; // [0] is client 0's
    uint32_t count;
};

// A request of this client arrives: returns its entry's index, which stays valid until the leave that belongs to it.
uint32_t ew_shares_enter(struct ew_shares *shares, uint64_t client);
void ew_shares_leave(struct ew_shares *shares, uint32_t index);
