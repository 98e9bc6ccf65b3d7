// Archives: every member that the directory names can be asked for, and none gives more than allowed.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/alloc.h"
#include "doctor/zip.h"

#define MEMBER_MAX 65536
#define MEMBERS_MAX 64 // read of one input, for speed

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_zip_member member;
    uint64_t cursor = 0, len;
    unsigned char *bytes;
    struct ew_error err;
    struct ew_zip zip;

    if (ew_zip_open(&zip, data, size, &err) != EW_OK)
        return 0;
    for (uint32_t i = 0; i < MEMBERS_MAX && ew_zip_next(&zip, &cursor, &member, &err) > 0; i++)
        if (ew_zip_read(&zip, &member, MEMBER_MAX, &bytes, &len, &err) == EW_OK) {
            EW_ASSERT(len <= MEMBER_MAX);
            ew_free(bytes);
        }
    return 0;
}
