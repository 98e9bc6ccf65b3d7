#!/usr/bin/env bash
# What the program needs from the machine it runs on: tools/abi_check.sh [BINARY]
# Prints "pass: ...", "fail: ..." or "skip: ..." a check; exit status 1 if one failed.
set -euo pipefail

binary=${1:-build/edgewise}
glibc_floor=2.34 # Rocky 9; Ubuntu 22.04 and JetPack 6 have 2.35
glibc_host_max=2.36 # Debian 12: against a newer one, the system's static libraries (libuv's strtol) need more than the floor
size_max=$((10 * 1000 * 1000))
failed=0

report() { # report STATUS TEXT
    echo "$1: $2"
    [ "$1" != fail ] || failed=1
}

check_libraries() {
    local needed extra

    needed=$(readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    extra=$(grep -vE '^(libc|libm|libpthread|ld-linux[^/]*)\.so\.[0-9]+$' <<< "$needed" | tr '\n' ' ' || true)
    if [ -n "$extra" ]; then
        report fail "dynamic libraries beyond libc and libm: $extra"
    else
        report pass "dynamic libraries: $(tr '\n' ' ' <<< "$needed")"
    fi
}

is_at_most() { [ "$(printf '%s\n' "$1" "$2" | sort -V | tail -n 1)" = "$2" ]; }

check_glibc() {
    local highest host

    host=$(getconf GNU_LIBC_VERSION | grep -oE '[0-9.]+')
    highest=$(readelf -V --wide "$binary" | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
    if is_at_most "$highest" "$glibc_floor"; then
        report pass "needs glibc $highest (at most $glibc_floor)"
    elif ! is_at_most "$host" "$glibc_host_max"; then
        report skip "needs glibc $highest, more than $glibc_floor, as it was built with $host: programs for others are built with $glibc_host_max or older"
    else
        report fail "needs glibc $highest, more than $glibc_floor: $(readelf --dyn-syms --wide "$binary" |
            grep -oE "[A-Za-z0-9_]+@GLIBC_$highest" | sort -u | tr '\n' ' ')"
    fi
}

check_stack() {
    if readelf -lW "$binary" | grep GNU_STACK | grep -q RWE; then
        report fail "the stack is executable"
    else
        report pass "the stack is not executable"
    fi
}

check_size() {
    local strip=strip stripped size

    if readelf -h "$binary" | grep -q AArch64 && [ "$(uname -m)" != aarch64 ]; then
        strip=aarch64-linux-gnu-strip
    fi
    stripped=$(mktemp)
    "$strip" -o "$stripped" "$binary"
    size=$(stat -c %s "$stripped")
    rm -f "$stripped"
    if [ "$size" -lt "$size_max" ]; then
        report pass "stripped size: $size bytes (less than $size_max)"
    else
        report fail "stripped size: $size bytes, $size_max or more"
    fi
}

check_libraries
check_glibc
check_stack
check_size
exit $failed
