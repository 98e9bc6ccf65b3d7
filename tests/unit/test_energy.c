// The energy meter on captured trees: rails that are integrated, counters that wrap around, and boxes without either.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "platform/energy.h"

// Writes a file of a captured tree, making its directories.
static void put(const char *root, const char *path, const char *text)
{
    char full[512];
    FILE *file;

    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(full, 0777);
        *slash = '/';
    }
    file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int make_root(void **state)
{
    static char root[256];
    const char *base = getenv("TMPDIR");

    snprintf(root, sizeof(root), "%s/ew-test-XXXXXX", base ? base : "/tmp");
    *state = mkdtemp(root);
    return *state ? 0 : -1;
}

static int remove_root(void **state)
{
    char command[600];

    snprintf(command, sizeof(command), "rm -rf '%s'", (char *)*state);
    return system(command);
}

static void wait_ms(long ms)
{
    struct timespec nap = {ms / 1000, ms % 1000 * 1000000};

    nanosleep(&nap, NULL);
}

static struct ew_energy *open_meter(const char *root, bool on_gpu)
{
    struct ew_energy *energy;
    struct ew_error err;

    assert_int_equal(ew_energy_open(root, on_gpu, &energy, &err), 0);
    return energy;
}

static void a_total_rail_is_integrated_alone(void **state)
{
    struct ew_energy *energy;
    struct timespec from, to;
    double joules, passed_s;

    put(*state, "/sys/class/hwmon/hwmon2/name", "ina3221\n");
    put(*state, "/sys/class/hwmon/hwmon2/in1_label", "VDD_IN\n");
    put(*state, "/sys/class/hwmon/hwmon2/in1_input", "5000\n");
    put(*state, "/sys/class/hwmon/hwmon2/curr1_input", "2000\n");
    put(*state, "/sys/class/hwmon/hwmon2/in2_label", "VDD_CPU_GPU_CV\n");
    put(*state, "/sys/class/hwmon/hwmon2/in2_input", "5000\n");
    put(*state, "/sys/class/hwmon/hwmon2/curr2_input", "1000\n");
    clock_gettime(CLOCK_MONOTONIC, &from);
    energy = open_meter(*state, true); // rails measure the GPU too
    wait_ms(250);
    joules = ew_energy_joules(energy);
    clock_gettime(CLOCK_MONOTONIC, &to);
    passed_s = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
    assert_string_equal(ew_energy_source(energy), "rails");
    assert_true(joules > 2.3 && joules <= 10 * passed_s + 0.01);
    assert_true(ew_energy_watts(energy) > 9.9 && ew_energy_watts(energy) < 10.1);
    ew_energy_close(energy);
}

static void counters_wrap_around(void **state)
{
    struct ew_energy *energy;

    put(*state, "/sys/class/powercap/intel-rapl:0/name", "package-0\n");
    put(*state, "/sys/class/powercap/intel-rapl:0/energy_uj", "990000000\n");
    put(*state, "/sys/class/powercap/intel-rapl:0/max_energy_range_uj", "1000000000\n");
    put(*state, "/sys/class/powercap/intel-rapl:1/name", "psys\n");
    put(*state, "/sys/class/powercap/intel-rapl:1/energy_uj", "5\n");
    put(*state, "/sys/class/powercap/intel-rapl:1/max_energy_range_uj", "1000000000\n");
    energy = open_meter(*state, false);
    assert_string_equal(ew_energy_source(energy), "RAPL");
    // A reader may see the file while it is being written, empty: the next reading has what was missed.
    put(*state, "/sys/class/powercap/intel-rapl:0/energy_uj", "5000000\n");
    put(*state, "/sys/class/powercap/intel-rapl:1/energy_uj", "900000000\n");
    wait_ms(30);
    assert_true(ew_energy_joules(energy) > 14.99 && ew_energy_joules(energy) < 15.01);
    put(*state, "/sys/class/powercap/intel-rapl:0/energy_uj", "7000000\n");
    wait_ms(30);
    assert_true(ew_energy_joules(energy) > 16.99 && ew_energy_joules(energy) < 17.01);
    ew_energy_close(energy);
}

static void without_sensors_there_is_no_meter(void **state)
{
    struct ew_energy *energy;

    put(*state, "/sys/class/powercap/intel-rapl:0/name", "package-0\n"); // the counter itself is for root alone
    energy = open_meter(*state, false);
    assert_null(energy);
    assert_null(open_meter(*state, true));
    assert_null(ew_energy_source(energy));
    assert_true(ew_energy_joules(energy) == 0 && ew_energy_watts(energy) == 0);
    ew_energy_close(energy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_total_rail_is_integrated_alone, make_root, remove_root),
        cmocka_unit_test_setup_teardown(counters_wrap_around, make_root, remove_root),
        cmocka_unit_test_setup_teardown(without_sensors_there_is_no_meter, make_root, remove_root),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
