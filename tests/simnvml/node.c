/* Starting, stopping, versions, and the ways from a name to a handle. */
#define _GNU_SOURCE
#include "gate.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* ---- library and node --------------------------------------------------------------------------------------- */

static int control = -1; /* /dev/nvidiactl: open for as long as there are users, as the real library has it */

static int initialise(const char *name) {
    struct call c;
    int rc = open_gate(name, -1, BEFORE_INIT, &c);

    if (rc != OK)
        return rc;
    if (users++ == 0 && c.scenario->control[0] != '\0')
        control = open(c.scenario->control, O_PATH | O_CLOEXEC); /* the node may be a real one, without a driver */
    return done(OK);
}

EXPORT int nvmlInitWithFlags(uint32_t flags) {
    (void)flags;
    return initialise(__func__);
}
EXPORT int nvmlInit_v2(void) { return initialise(__func__); }
EXPORT int nvmlInit(void) { return initialise(__func__); }

EXPORT int nvmlShutdown(void) {
    BEGIN_NODE();
    if (--users == 0 && control >= 0) {
        close(control);
        control = -1;
    }
    return done(OK);
}

EXPORT const char *nvmlErrorString(int code) {
    static const char *const words[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power",
        "Driver Not Loaded", "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found",
        "Function Not Found", "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "GPU access blocked by the operating system", "Driver/library version mismatch",
        "In use by another client", "Insufficient Memory", "No data", "vGPU ECC not supported",
        "Insufficient resources", "Frequency not supported", "Argument version mismatch", "Deprecated",
        "Not Ready", "GPU not found", "Invalid state",
    };

    return code >= 0 && (size_t)code < sizeof words / sizeof words[0] ? words[code] : "Unknown Error";
}

EXPORT int nvmlSystemGetDriverVersion(char *out, uint32_t size) {
    BEGIN_NODE();
    return give_text(c.scenario->driver, out, size);
}

EXPORT int nvmlSystemGetNVMLVersion(char *out, uint32_t size) {
    BEGIN_NODE();
    return give_text(c.scenario->nvml, out, size);
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(uint32_t *out) {
    BEGIN_NODE();
    return give(c.scenario->cuda, out);
}
EXPORT int nvmlSystemGetCudaDriverVersion(uint32_t *out) {
    BEGIN_NODE();
    return give(c.scenario->cuda, out);
}

/* ---- from a name to a handle -------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetCount_v2(uint32_t *out) {
    BEGIN_NODE();
    return give(index_of(c.scenario, c.scenario->gpu_count), out);
}

/* A lookup passes the gate twice: as a call about no GPU, then as one about the GPU it found. */
static int give_handle(const char *name, int slot, int mig, handle *out) {
    struct call c;
    handle h = &devices[slot][1 + mig];
    int rc;

    drop_lock();
    rc = begin(name, h, DEVICE_OR_MIG | OWN_FAULTS_ONLY, &c);
    if (rc != OK)
        return rc;
    *out = h;
    return done(OK);
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(uint32_t index, handle *out) {
    BEGIN_NODE();
    for (int slot = 0; slot < c.scenario->gpu_count; slot++)
        if (c.scenario->gpus[slot].state != ABSENT && index_of(c.scenario, slot) == index)
            return give_handle(__func__, slot, -1, out);
    return done(INVALID_ARGUMENT);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, handle *out) {
    BEGIN_NODE();
    for (int slot = 0; slot < c.scenario->gpu_count; slot++) {
        const struct gpu *g = &c.scenario->gpus[slot];

        if (g->state == ABSENT)
            continue;
        if (strcmp(g->uuid, uuid) == 0)
            return give_handle(__func__, slot, -1, out);
        for (int i = 0; i < MAX_MIG; i++)
            if (g->mig[i].present && strcmp(g->mig[i].uuid, uuid) == 0)
                return give_handle(__func__, slot, i, out);
    }
    return done(NOT_FOUND);
}

EXPORT int nvmlDeviceGetHandleBySerial(const char *serial, handle *out) {
    BEGIN_NODE();
    for (int slot = 0; slot < c.scenario->gpu_count; slot++)
        if (c.scenario->gpus[slot].state != ABSENT && strcmp(c.scenario->gpus[slot].serial, serial) == 0)
            return give_handle(__func__, slot, -1, out);
    return done(NOT_FOUND);
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, handle *out) {
    struct address wanted, a;
    BEGIN_NODE();

    if (!read_address(bus_id, &wanted))
        return done(INVALID_ARGUMENT);
    for (int slot = 0; slot < c.scenario->gpu_count; slot++)
        if (c.scenario->gpus[slot].state != ABSENT && read_address(c.scenario->gpus[slot].bus_id, &a) &&
            memcmp(&a, &wanted, sizeof a) == 0)
            return give_handle(__func__, slot, -1, out);
    return done(NOT_FOUND);
}
