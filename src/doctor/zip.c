#include "doctor/zip.h"

#include <string.h>
#include <zlib.h>

#include "base/alloc.h"
#include "base/assert.h"

#define END_SIZE 22 // end of central directory record without its comment
#define COMMENT_MAX 65535
#define ENTRY_SIZE 46 // central directory entry without name, extra field and comment
#define LOCAL_SIZE 30
#define LOCATOR64_SIZE 20
#define END64_SIZE 56
#define EXTRA_ZIP64 0x0001

static uint16_t u16(const unsigned char *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t u32(const unsigned char *at)
{
    return (uint32_t)u16(at) | (uint32_t)u16(at + 2) << 16;
}

static uint64_t u64(const unsigned char *at)
{
    return (uint64_t)u32(at) | (uint64_t)u32(at + 4) << 32;
}

// The zip64 end record, where the locator before the ordinary one points at one.
static void read_end64(struct ew_zip *zip, uint64_t end)
{
    const unsigned char *locator = zip->bytes + end - LOCATOR64_SIZE, *record;
    uint64_t at, size;

    if (end < LOCATOR64_SIZE || u32(locator) != 0x07064b50)
        return;
    at = u64(locator + 8);
    if (at > zip->size - END64_SIZE || zip->size < END64_SIZE || u32(zip->bytes + at) != 0x06064b50)
        return;
    record = zip->bytes + at;
    zip->count = u64(record + 32);
    size = u64(record + 40);
    zip->directory = u64(record + 48);
    zip->directory_end = size <= UINT64_MAX - zip->directory ? zip->directory + size : UINT64_MAX;
}

int ew_zip_open(struct ew_zip *zip, const unsigned char *bytes, uint64_t size, struct ew_error *err)
{
    uint64_t at, lowest;

    *zip = (struct ew_zip){.bytes = bytes, .size = size};
    if (size < END_SIZE)
        return ew_fail(err, EW_ERR_FORMAT, "too short for a zip archive");
    lowest = size - END_SIZE > COMMENT_MAX ? size - END_SIZE - COMMENT_MAX : 0;
    for (at = size - END_SIZE; u32(bytes + at) != 0x06054b50; at--)
        if (at == lowest)
            return ew_fail(err, EW_ERR_FORMAT, "no zip archive, or a truncated one: its directory is missing");
    zip->count = u16(bytes + at + 10);
    zip->directory = u32(bytes + at + 16);
    zip->directory_end = zip->directory + u32(bytes + at + 12);
    read_end64(zip, at);
    if (zip->directory > zip->directory_end || zip->directory_end > size)
        return ew_fail(err, EW_ERR_FORMAT, "the archive's directory lies outside the file: it is truncated");
    return EW_OK;
}

// Sizes and offset that did not fit 32 bits stand in an extra field, in this order, only those that did not fit.
static void read_extra64(struct ew_zip_member *member, const unsigned char *extra, uint64_t len,
                         const unsigned char *entry)
{
    uint64_t *const fields[] = {&member->uncompressed, &member->compressed, &member->header};
    const uint32_t stored[] = {u32(entry + 24), u32(entry + 20), u32(entry + 42)};
    uint64_t at = 0, field;

    while (len - at >= 4 && u16(extra + at) != EXTRA_ZIP64) {
        uint64_t skip = 4 + (uint64_t)u16(extra + at + 2);

        if (skip > len - at)
            return;
        at += skip;
    }
    if (len - at < 4)
        return;
    field = at + 4;
    for (size_t i = 0; i < EW_COUNT_OF(fields); i++)
        if (stored[i] == UINT32_MAX && field <= len && len - field >= 8) {
            *fields[i] = u64(extra + field);
            field += 8;
        }
}

int ew_zip_next(const struct ew_zip *zip, uint64_t *cursor, struct ew_zip_member *member, struct ew_error *err)
{
    uint64_t at = zip->directory + *cursor, name_len, extra_len, comment_len;
    const unsigned char *entry = zip->bytes + at;

    if (at == zip->directory_end)
        return 0;
    if (zip->directory_end - at < ENTRY_SIZE || u32(entry) != 0x02014b50)
        return ew_fail(err, EW_ERR_FORMAT, "the archive's directory is damaged");
    name_len = u16(entry + 28);
    extra_len = u16(entry + 30);
    comment_len = u16(entry + 32);
    if (zip->directory_end - at - ENTRY_SIZE < name_len + extra_len + comment_len)
        return ew_fail(err, EW_ERR_FORMAT, "the archive's directory is damaged");
    *member = (struct ew_zip_member){
        .name = {(const char *)entry + ENTRY_SIZE, name_len},
        .method = u16(entry + 10),
        .compressed = u32(entry + 20),
        .uncompressed = u32(entry + 24),
        .header = u32(entry + 42),
    };
    read_extra64(member, entry + ENTRY_SIZE + name_len, extra_len, entry);
    *cursor += ENTRY_SIZE + name_len + extra_len + comment_len;
    return 1;
}

static int find_data(const struct ew_zip *zip, const struct ew_zip_member *member, uint64_t *data, struct ew_error *err)
{
    const unsigned char *local;
    uint64_t skip;

    if (member->header > zip->size || zip->size - member->header < LOCAL_SIZE)
        return ew_fail(err, EW_ERR_FORMAT, "member " EW_STR_FMT " is damaged", EW_STR_ARG(member->name));
    local = zip->bytes + member->header;
    if (u32(local) != 0x04034b50)
        return ew_fail(err, EW_ERR_FORMAT, "member " EW_STR_FMT " is damaged", EW_STR_ARG(member->name));
    skip = LOCAL_SIZE + (uint64_t)u16(local + 26) + u16(local + 28);
    if (skip > zip->size - member->header || member->compressed > zip->size - member->header - skip)
        return ew_fail(err, EW_ERR_FORMAT, "member " EW_STR_FMT " reaches past the end of the archive",
                       EW_STR_ARG(member->name));
    *data = member->header + skip;
    return EW_OK;
}

// Inflates in pieces: zlib counts in 32 bits.
static int inflate_member(const unsigned char *in, uint64_t in_len, unsigned char *out, uint64_t out_len)
{
    z_stream stream = {0};
    int status = inflateInit2(&stream, -MAX_WBITS); // raw deflate, as zip has it
    uint64_t in_left = in_len, out_left = out_len;

    if (status != Z_OK)
        return status;
    stream.next_in = (unsigned char *)in;
    stream.next_out = out;
    while (status == Z_OK) {
        uint32_t in_part = (uint32_t)EW_MIN(in_left, (uint64_t)1 << 30),
                 out_part = (uint32_t)EW_MIN(out_left, (uint64_t)1 << 30);

        stream.avail_in = in_part;
        stream.avail_out = out_part;
        status = inflate(&stream, Z_NO_FLUSH);
        in_left -= in_part - stream.avail_in;
        out_left -= out_part - stream.avail_out;
        if (status == Z_OK && in_part == stream.avail_in && out_part == stream.avail_out)
            status = Z_BUF_ERROR; // no progress: the data ends early
    }
    inflateEnd(&stream);
    return status == Z_STREAM_END && out_left == 0 ? Z_OK : Z_DATA_ERROR;
}

int ew_zip_read(const struct ew_zip *zip, const struct ew_zip_member *member, uint64_t max, unsigned char **out,
                uint64_t *len, struct ew_error *err)
{
    uint64_t data = 0;
    int code = find_data(zip, member, &data, err);

    if (code != EW_OK)
        return code;
    if (member->uncompressed > max)
        return ew_fail(err, EW_ERR_LIMIT, "member " EW_STR_FMT " has %llu bytes, more than is looked at",
                       EW_STR_ARG(member->name), (unsigned long long)member->uncompressed);
    if (member->method != 0 && member->method != 8)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "member " EW_STR_FMT " is compressed by method %u",
                       EW_STR_ARG(member->name), member->method);
    if (member->method == 8 && member->uncompressed / 1100 > member->compressed) // deflate reaches 1032:1 at most
        return ew_fail(err, EW_ERR_FORMAT, "member " EW_STR_FMT " claims an impossible size", EW_STR_ARG(member->name));
    *out = ew_alloc(member->uncompressed + 1);
    if (!*out)
        return ew_fail_memory(err, member->uncompressed, "a member of an archive");
    *len = member->uncompressed;
    if (member->method == 8 && inflate_member(zip->bytes + data, member->compressed, *out, *len) == Z_OK)
        return EW_OK;
    if (member->method == 0 && member->compressed == member->uncompressed) {
        memcpy(*out, zip->bytes + data, *len);
        return EW_OK;
    }
    ew_free(*out);
    return ew_fail(err, EW_ERR_FORMAT, "member " EW_STR_FMT " is damaged", EW_STR_ARG(member->name));
}
