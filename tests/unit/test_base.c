// base: what everything else stands on.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/half.h"
#include "base/map.h"
#include "base/rng.h"
#include "base/str.h"
#include "base/utf8.h"

static void arena_respects_its_limit(void **state)
{
    struct ew_arena arena;

    (void)state;
    ew_arena_init(&arena, 1000);
    assert_non_null(ew_arena_alloc(&arena, 500));
    assert_null(ew_arena_alloc(&arena, 600));
    assert_null(ew_arena_array(&arena, SIZE_MAX / 2, 4));
    assert_non_null(ew_arena_alloc(&arena, 400));
    ew_arena_fini(&arena);
}

static void injected_allocation_failure_strikes_once(void **state)
{
    void *ptr;

    (void)state;
    ew_alloc_fail_at(2);
    ptr = ew_alloc(10);
    assert_non_null(ptr);
    assert_null(ew_alloc(10));
    ew_free(ptr);
    ptr = ew_alloc(10);
    assert_non_null(ptr);
    ew_free(ptr);
}

static void buf_stops_at_its_maximum(void **state)
{
    struct ew_buf buf;

    (void)state;
    ew_buf_init(&buf, 10);
    ew_buf_append(&buf, "0123456789", 10);
    assert_true(ew_buf_ok(&buf));
    assert_string_equal(buf.ptr, "0123456789");
    ew_buf_append_char(&buf, 'x');
    assert_false(ew_buf_ok(&buf));
    ew_buf_reset(&buf);
    ew_buf_append_json(&buf, EW_STR("a\"\n\xff"));
    assert_string_equal(buf.ptr, "\"a\\\"\\n\xEF\xBF\xBD\"");
    ew_buf_fini(&buf);
}

static void maps_grow_and_find(void **state)
{
    struct ew_imap imap;
    struct ew_map map;
    static char keys[5000][8];
    uint32_t value;

    (void)state;
    assert_int_equal(ew_map_init(&map, 0), 0);
    assert_int_equal(ew_imap_init(&imap, 0), 0);
    for (uint32_t i = 0; i < 5000; i++) {
        snprintf(keys[i], sizeof(keys[i]), "k%u", i);
        assert_int_equal(ew_map_put(&map, ew_str_of(keys[i]), i, NULL), 0);
        assert_int_equal(ew_imap_put(&imap, i * 977ull, i), 0);
    }
    for (uint32_t i = 0; i < 5000; i++) {
        assert_true(ew_map_get(&map, ew_str_of(keys[i]), &value) && value == i);
        assert_true(ew_imap_get(&imap, i * 977ull, &value) && value == i);
    }
    assert_false(ew_map_get(&map, EW_STR("absent"), &value));
    assert_false(ew_imap_get(&imap, 1, &value));
    ew_map_fini(&map);
    ew_imap_fini(&imap);
}

static void numbers_are_read_whole(void **state)
{
    uint64_t u;
    int64_t i;

    (void)state;
    assert_true(ew_str_to_u64(EW_STR("18446744073709551615"), &u) && u == UINT64_MAX);
    assert_false(ew_str_to_u64(EW_STR("18446744073709551616"), &u));
    assert_false(ew_str_to_u64(EW_STR("5x"), &u));
    assert_true(ew_str_to_i64(EW_STR("-9223372036854775808"), &i) && i == INT64_MIN);
    assert_true(ew_str_to_bytes(EW_STR("1.5G"), &u) && u == 3ull << 29);
    assert_true(ew_str_to_bytes(EW_STR("64KiB"), &u) && u == 65536);
    assert_false(ew_str_to_bytes(EW_STR("64X"), &u));
}

static void utf8_follows_rfc_3629(void **state)
{
    uint32_t c;

    (void)state;
    assert_int_equal(ew_utf8_decode("\xF0\x9F\x98\x80", 4, &c), 4);
    assert_int_equal(c, 0x1F600);
    assert_int_equal(ew_utf8_decode("\xC0\x80", 2, &c), 0);         // overlong
    assert_int_equal(ew_utf8_decode("\xED\xA0\x80", 3, &c), 0);     // surrogate
    assert_int_equal(ew_utf8_decode("\xF4\x90\x80\x80", 4, &c), 0); // past U+10FFFF
    assert_int_equal(ew_utf8_complete_prefix("ab\xE2\x82", 4), 2);
    assert_int_equal(ew_utf8_complete_prefix("ab\xE2\x82\xAC", 5), 5);
    assert_int_equal(ew_utf8_complete_prefix("ab\xE2z", 4), 4);
    for (uint32_t i = 0; i < 0x110000; i++) {
        char bytes[4];
        size_t len;

        if (i >= 0xD800 && i <= 0xDFFF)
            continue;
        len = ew_utf8_encode(i, bytes);
        assert_true(ew_utf8_decode(bytes, len, &c) == len && c == i);
    }
}

static void halves_round_trip_and_round_to_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = ew_f32_of_f16((uint16_t)h), b = ew_f32_of_bf16((uint16_t)h);

        if (!isnan(f))
            assert_int_equal(ew_f16_of_f32(f), h);
        if (!isnan(b))
            assert_int_equal(ew_bf16_of_f32(b), h);
    }
    for (uint32_t e = 0; e < 256; e++)
        if ((e & 0x7F) != 0x7F)
            assert_int_equal(ew_e4m3_of_f32(ew_f32_of_e4m3((uint8_t)e)), e);
    assert_int_equal(ew_f16_of_f32(65520.0f), 0x7C00);
    assert_int_equal(ew_f16_of_f32(65519.0f), 0x7BFF);
    assert_int_equal(ew_f16_of_f32(0x1p-25f), 0);
    assert_int_equal(ew_e4m3_of_f32(1e9f), 0x7E);
#if defined(__FLT16_MAX__)
    for (uint64_t i = 0; i < 2000000; i++) {
        float f = ew_f32_of_bits((uint32_t)(i * 2654435761u));
        _Float16 want = (_Float16)f;
        uint16_t bits;

        memcpy(&bits, &want, 2);
        if (!isnan(f))
            assert_int_equal(ew_f16_of_f32(f), bits);
    }
#endif
}

static void random_numbers_depend_on_the_key_alone(void **state)
{
    struct ew_rng a = ew_rng_at(7, 100), b = ew_rng_at(7, 100), c = ew_rng_at(7, 101);
    double sum = 0;

    (void)state;
    assert_int_equal(ew_rng_u32(&a), ew_rng_u32(&b));
    assert_int_not_equal(ew_rng_u32(&a), ew_rng_u32(&c));
    for (int i = 0; i < 100000; i++)
        sum += ew_rng_unit(&a);
    assert_true(fabs(sum / 100000 - 0.5) < 0.01);
    // Known answer: Philox4x32-10 of counter 0, key 0 (Random123's kat_vectors) begins 6627e8d5.
    a = ew_rng_at(0, 0);
    ew_rng_u32(&a), ew_rng_u32(&a), ew_rng_u32(&a);
    assert_int_equal(ew_rng_u32(&a), 0x6627e8d5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arena_respects_its_limit),
        cmocka_unit_test(injected_allocation_failure_strikes_once),
        cmocka_unit_test(buf_stops_at_its_maximum),
        cmocka_unit_test(maps_grow_and_find),
        cmocka_unit_test(numbers_are_read_whole),
        cmocka_unit_test(utf8_follows_rfc_3629),
        cmocka_unit_test(halves_round_trip_and_round_to_even),
        cmocka_unit_test(random_numbers_depend_on_the_key_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
