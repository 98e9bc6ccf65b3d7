#pragma once
// Zip archives (wheels), read from memory: the central directory, and one member at a time inflated within a bound.
// Source: PKWARE APPNOTE 6.3, sections 4.3 to 4.5; methods stored and deflated; zip64 where its extra field is present.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

struct ew_zip {
    const unsigned char *bytes;
    uint64_t size;
    uint64_t directory, directory_end; // of the central directory
    uint64_t count;                    // members, as the archive says
};

struct ew_zip_member {
    struct ew_str name;
    uint16_t method;                   // 0 stored, 8 deflated
    uint64_t compressed, uncompressed; // bytes, as the archive says
    uint64_t header;                   // offset of the local header
};

int ew_zip_open(struct ew_zip *zip, const unsigned char *bytes, uint64_t size, struct ew_error *err) EW_MUST_CHECK;
// Walks the directory: *cursor starts at 0. 1: a member; 0: the end; negative: an ew_code.
int ew_zip_next(const struct ew_zip *zip, uint64_t *cursor, struct ew_zip_member *member,
                struct ew_error *err) EW_MUST_CHECK;
// The member's bytes in memory of its own (ew_free). Refused past max; the archive's word on sizes is checked.
int ew_zip_read(const struct ew_zip *zip, const struct ew_zip_member *member, uint64_t max, unsigned char **out,
                uint64_t *len, struct ew_error *err) EW_MUST_CHECK;
