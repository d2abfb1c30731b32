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
