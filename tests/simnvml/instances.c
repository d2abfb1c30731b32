/* MIG instances and the lists of processes. */
#define _GNU_SOURCE
#include "gate.h"

/* ---- MIG ---------------------------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(handle h, uint32_t index, handle *out) {
    BEGIN(h, DEVICE);
    if (c.gpu->mig_mode == NONE)
        return done(NOT_SUPPORTED);
    if (index >= c.gpu->mig_max)
        return done(INVALID_ARGUMENT);
    if (index >= MAX_MIG || c.gpu->mig_mode == 0 || !c.gpu->mig[index].present)
        return done(NOT_FOUND);
    *out = &devices[c.slot][1 + index];
    return done(OK);
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle h, handle *out) {
    BEGIN(h, DEVICE_OR_MIG);
    if (c.mig == NULL)
        return done(INVALID_ARGUMENT);
    *out = &devices[c.slot][0];
    return done(OK);
}

EXPORT int nvmlDeviceIsMigDeviceHandle(handle h, uint32_t *out) {
    BEGIN(h, DEVICE_OR_MIG);
    return give(c.mig != NULL, out);
}

EXPORT int nvmlDeviceGetGpuInstanceId(handle h, uint32_t *out) {
    BEGIN(h, DEVICE_OR_MIG);
    return give(c.mig != NULL ? c.mig->gi : NONE, out);
}

EXPORT int nvmlDeviceGetComputeInstanceId(handle h, uint32_t *out) {
    BEGIN(h, DEVICE_OR_MIG);
    return give(c.mig != NULL ? c.mig->ci : NONE, out);
}

EXPORT int nvmlDeviceGetAttributes_v2(handle h, struct nvml_attributes *out) {
    BEGIN(h, DEVICE_OR_MIG);
    if (c.mig == NULL)
        return done(NOT_SUPPORTED);
    *out = (struct nvml_attributes){
        .multiprocessors = c.mig->multiprocessors,
        .copy_engines = c.mig->slices,
        .gi_slices = c.mig->slices,
        .ci_slices = c.mig->ci_slices,
        .memory_mib = c.mig->memory_mib,
    };
    return done(OK);
}

/* ---- processes ---------------------------------------------------------------------------------------------- */

/* Where there is something to return and no room for it the answer is INSUFFICIENT_SIZE, also to a size query. */
static int processes(const struct call *c, enum process_kind kind, uint32_t *count, struct nvml_process *out) {
    uint32_t found = 0, room = *count;

    for (int i = 0; i < c->gpu->process_count; i++) {
        const struct process *p = &c->gpu->processes[i];

        if (p->kind != kind || (c->mig != NULL && (p->gi != c->mig->gi || p->ci != c->mig->ci)))
            continue;
        if (out != NULL && found < room)
            out[found] = (struct nvml_process){p->pid, p->memory, p->gi, p->ci};
        found++;
    }
    *count = found;
    return found > (out == NULL ? 0 : room) ? INSUFFICIENT_SIZE : OK;
}

#define PROCESS_LIST(function, kind)                                               \
    EXPORT int function(handle h, uint32_t *count, struct nvml_process *out) {     \
        BEGIN(h, DEVICE_OR_MIG);                                                   \
        return done(count == NULL ? INVALID_ARGUMENT : processes(&c, kind, count, out)); \
    }

PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, MPS)

EXPORT int nvmlDeviceGetProcessUtilization(handle h, struct nvml_process_sample *out, uint32_t *count,
                                           uint64_t since_us) {
    BEGIN(h, DEVICE);
    uint64_t now = clock_us(CLOCK_REALTIME);
    uint32_t found = 0, room = *count;

    if (c.gpu->mig_mode == 1)
        return done(NOT_SUPPORTED);
    for (int i = 0; i < c.gpu->process_count && since_us < now; i++) {
        const struct process *p = &c.gpu->processes[i];

        if (p->sm_util == UINT32_MAX)
            continue;
        if (out != NULL && found < room)
            out[found] = (struct nvml_process_sample){p->pid, now, p->sm_util, p->memory_util, 0, 0};
        found++;
    }
    *count = found;
    if (found == 0)
        return done(NOT_FOUND);
    return done(found > (out == NULL ? 0 : room) ? INSUFFICIENT_SIZE : OK);
}
