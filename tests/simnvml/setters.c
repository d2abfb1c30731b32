/* Setters write to the scenario file, where every process and the test see what was set. */
#define _GNU_SOURCE
#include "gate.h"

#include <inttypes.h>
#include <stdio.h>

static int set_value(const struct call *c, const char *key, uint64_t value) {
    char line[3 * TEXT];

    snprintf(line, sizeof line, "gpu.%d.%s %" PRIu64 "\n", c->slot, key, value);
    return scenario_append(line) ? OK : UNKNOWN;
}

EXPORT int nvmlDeviceSetPersistenceMode(handle h, uint32_t mode) {
    BEGIN(h, DEVICE);
    return mode > 1 ? done(INVALID_ARGUMENT) : done(set_value(&c, "persistence", mode));
}

EXPORT int nvmlDeviceSetComputeMode(handle h, uint32_t mode) {
    BEGIN(h, DEVICE);
    return mode > 3 ? done(INVALID_ARGUMENT) : done(set_value(&c, "compute_mode", mode));
}

EXPORT int nvmlDeviceSetPowerManagementLimit(handle h, uint32_t mw) {
    BEGIN(h, DEVICE);
    if (c.gpu->power_min_mw == NONE || c.gpu->power_max_mw == NONE)
        return done(NOT_SUPPORTED);
    if (mw < c.gpu->power_min_mw || mw > c.gpu->power_max_mw)
        return done(INVALID_ARGUMENT);
    rc = set_value(&c, "power_limit_mw", mw);
    return done(rc == OK ? set_value(&c, "power_enforced_mw", mw) : rc);
}

static int set_application_clocks(const struct call *c, uint64_t memory, uint64_t graphics) {
    int rc;

    if (c->gpu->app_memory_default == NONE || c->gpu->app_graphics_default == NONE)
        return NOT_SUPPORTED;
    rc = set_value(c, "app_memory_clock", memory);
    return rc == OK ? set_value(c, "app_graphics_clock", graphics) : rc;
}

EXPORT int nvmlDeviceSetApplicationsClocks(handle h, uint32_t memory, uint32_t graphics) {
    BEGIN(h, DEVICE);
    if (memory > c.gpu->memory_clock_max || graphics > c.gpu->graphics_clock_max)
        return done(INVALID_ARGUMENT);
    return done(set_application_clocks(&c, memory, graphics));
}

EXPORT int nvmlDeviceResetApplicationsClocks(handle h) {
    BEGIN(h, DEVICE);
    return done(set_application_clocks(&c, c.gpu->app_memory_default, c.gpu->app_graphics_default));
}
