#include "text/charsmap.h"

#include "base/utf8.h"

static uint32_t read_u32(const unsigned char *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

int ew_charsmap_parse(struct ew_charsmap *map, struct ew_str blob, struct ew_error *err)
{
    uint32_t bytes;

    *map = (struct ew_charsmap){0};
    if (blob.len == 0)
        return EW_OK;
    if (blob.len < 4)
        return ew_fail(err, EW_ERR_FORMAT, "the precompiled normalisation map has only %zu bytes", blob.len);
    bytes = read_u32((const unsigned char *)blob.ptr);
    if (bytes % 4 != 0 || bytes > blob.len - 4)
        return ew_fail(err, EW_ERR_FORMAT, "the precompiled normalisation map claims a trie of %u bytes in %zu", bytes,
                       blob.len);
    map->units = (const unsigned char *)blob.ptr + 4;
    map->unit_count = bytes / 4;
    map->replacements = (struct ew_str){blob.ptr + 4 + bytes, blob.len - 4 - bytes};
    if (!ew_utf8_valid(map->replacements.ptr, map->replacements.len))
        return ew_fail(err, EW_ERR_FORMAT, "the precompiled normalisation map has replacements that are not UTF-8");
    return EW_OK;
}

// The fields of a unit, as darts-clone packs them.
static uint32_t unit_offset(uint32_t unit)
{
    return (unit >> 10) << ((unit & 1u << 9) >> 6);
}

static bool unit_has_leaf(uint32_t unit)
{
    return unit >> 8 & 1;
}

static uint32_t unit_label(uint32_t unit)
{
    return unit & (1u << 31 | 0xFF);
}

static bool read_unit(const struct ew_charsmap *map, uint32_t index, uint32_t *unit)
{
    if (index >= map->unit_count)
        return false;
    *unit = read_u32(map->units + (size_t)index * 4);
    return true;
}

static bool replacement_at(const struct ew_charsmap *map, uint32_t offset, struct ew_str *out)
{
    const char *from = map->replacements.ptr + offset, *nul;

    if (offset >= map->replacements.len || ((unsigned char)*from & 0xC0) == 0x80)
        return false;
    nul = memchr(from, '\0', map->replacements.len - offset);
    *out = (struct ew_str){from, nul ? (size_t)(nul - from) : map->replacements.len - offset};
    return true;
}

size_t ew_charsmap_find(const struct ew_charsmap *map, struct ew_str text, bool shortest, struct ew_str *replacement)
{
    uint32_t node = 0, unit, value;
    size_t found = 0;

    if (!read_unit(map, node, &unit))
        return 0;
    node ^= unit_offset(unit);
    for (size_t i = 0; i < text.len && text.ptr[i] && !(shortest && found); i++) {
        node ^= (unsigned char)text.ptr[i];
        if (!read_unit(map, node, &unit) || unit_label(unit) != (unsigned char)text.ptr[i])
            break;
        node ^= unit_offset(unit);
        if (i + 1 < text.len && ((unsigned char)text.ptr[i + 1] & 0xC0) == 0x80)
            continue; // a key that ends within a character would leave half of it behind
        if (unit_has_leaf(unit) && read_unit(map, node, &value) && replacement_at(map, value & 0x7FFFFFFF, replacement))
            found = i + 1;
    }
    return found;
}
