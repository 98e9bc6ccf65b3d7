#include "doctor/tar_write.h"

#include <string.h>

#define BLOCK 512

struct header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[6], version[2],
        user[32], group[32], major[8], minor[8], prefix[155], pad[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "layout of a tar header");

static int add_header(FILE *to, const char *path, size_t size, char type, struct ew_error *err)
{
    struct header header = {.type = type, .magic = "ustar", .version = {'0', '0'}};
    const unsigned char *bytes = (const unsigned char *)&header;
    unsigned sum = 0;

    if (strlen(path) >= sizeof(header.name))
        return ew_fail(err, EW_ERR_LIMIT, "the path %s is too long for the archive", path);
    memcpy(header.name, path, strlen(path));
    snprintf(header.mode, sizeof(header.mode), "%07o", type == '5' ? 0755u : 0644u);
    snprintf(header.uid, sizeof(header.uid), "%07o", 0u);
    snprintf(header.gid, sizeof(header.gid), "%07o", 0u);
    snprintf(header.size, sizeof(header.size), "%011llo", (unsigned long long)size & 077777777777ull);
    snprintf(header.mtime, sizeof(header.mtime), "%011o", 0u); // the same machine gives the same archive
    memset(header.checksum, ' ', sizeof(header.checksum));
    for (size_t i = 0; i < sizeof(header); i++)
        sum += bytes[i];
    snprintf(header.checksum, sizeof(header.checksum), "%06o", sum & 0777777u); // its NUL and the blank end the field
    fwrite(&header, sizeof(header), 1, to);
    return EW_OK;
}

int ew_tar_add(FILE *to, const char *path, struct ew_str content, struct ew_error *err)
{
    static const char zeros[BLOCK];
    int code = add_header(to, path, content.len, '0', err);

    if (code != EW_OK)
        return code;
    fwrite(content.ptr, 1, content.len, to);
    fwrite(zeros, 1, (BLOCK - content.len % BLOCK) % BLOCK, to);
    return EW_OK;
}

int ew_tar_add_dir(FILE *to, const char *path, struct ew_error *err)
{
    return add_header(to, path, 0, '5', err);
}

void ew_tar_finish(FILE *to)
{
    static const char zeros[2 * BLOCK];

    fwrite(zeros, 1, sizeof(zeros), to);
}
