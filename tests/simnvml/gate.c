/* The gate every call passes (lock, initialised, scenario, faults, handle) and what all calls share. */
#define _GNU_SOURCE
#include "gate.h"

#include "faults.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct device devices[MAX_GPUS][1 + MAX_MIG];
int users;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void take_lock(void) { pthread_mutex_lock(&lock); }
void drop_lock(void) { pthread_mutex_unlock(&lock); }

/* A process that forks while another thread waits for events must not leave its child a lock that nobody holds. */
__attribute__((constructor)) static void survive_fork(void) { pthread_atfork(take_lock, drop_lock, drop_lock); }

int done(int rc) {
    drop_lock();
    return rc;
}

uint64_t clock_us(clockid_t id) {
    struct timespec t;

    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int open_gate(const char *name, int slot, int flags, struct call *c) {
    struct misdeeds m;

    take_lock();
    if ((flags & BEFORE_INIT) == 0 && users == 0)
        return done(UNINITIALIZED);
    c->scenario = scenario_now();
    if (!c->scenario->readable)
        return done(UNKNOWN);
    if (c->scenario->fault_count == 0)
        return OK;
    m = misdeeds_of(c->scenario, name, slot, (flags & OWN_FAULTS_ONLY) != 0);
    if (!m.any && m.late_us == 0)
        return OK;
    drop_lock();
    int rc = misbehave(&m);
    if (rc != OK)
        return rc;
    take_lock();
    c->scenario = scenario_now();
    return c->scenario->readable ? OK : done(UNKNOWN);
}

int condition(const struct gpu *g) {
    return g->state == PRESENT ? OK : g->state == NEEDS_RESET ? RESET_REQUIRED : GPU_IS_LOST;
}

int slot_of(handle h, int *mig) {
    uintptr_t offset = (uintptr_t)h - (uintptr_t)&devices[0][0];

    if (h == NULL || offset >= sizeof devices)
        return -1;
    *mig = (int)(offset % sizeof devices[0]) - 1;
    return (int)(offset / sizeof devices[0]);
}

int begin(const char *name, handle h, int flags, struct call *c) {
    int mig = -1, rc;

    c->slot = slot_of(h, &mig);
    rc = open_gate(name, c->slot, flags, c);
    if (rc != OK)
        return rc;
    if (c->slot < 0 || c->slot >= c->scenario->gpu_count)
        return done(INVALID_ARGUMENT);
    c->gpu = &c->scenario->gpus[c->slot];
    c->mig = mig < 0 ? NULL : &c->gpu->mig[mig];
    rc = condition(c->gpu);
    if (rc == OK && c->mig != NULL && !c->mig->present)
        rc = NOT_FOUND;
    if (rc == OK && c->mig != NULL && (flags & DEVICE_OR_MIG) == 0)
        rc = NOT_SUPPORTED;
    return rc == OK ? OK : done(rc);
}

int give(uint64_t value, uint32_t *out) {
    if (out == NULL)
        return done(INVALID_ARGUMENT);
    if (value == NONE)
        return done(NOT_SUPPORTED);
    *out = (uint32_t)value;
    return done(OK);
}

int give_wide(uint64_t value, uint64_t *out) {
    if (out == NULL)
        return done(INVALID_ARGUMENT);
    if (value == NONE)
        return done(NOT_SUPPORTED);
    *out = value;
    return done(OK);
}

int give_text(const char *value, char *out, uint32_t size) {
    if (out == NULL)
        return done(INVALID_ARGUMENT);
    if (value[0] == '\0' || strcmp(value, "none") == 0)
        return done(NOT_SUPPORTED);
    if (strlen(value) >= size)
        return done(INSUFFICIENT_SIZE);
    strcpy(out, value);
    return done(OK);
}

/* Counters: a base, and what has come on top since `since_ns` of the monotonic clock. */
static uint64_t elapsed_us(const struct gpu *g) {
    uint64_t now = clock_us(CLOCK_MONOTONIC), since = g->since_ns / 1000;

    return g->since_ns == NONE || since > now ? 0 : now - since;
}

uint64_t counter(const struct gpu *g, uint64_t base, uint64_t rate, uint64_t microseconds_per_unit) {
    if (base == NONE || rate == NONE)
        return base;
    return base + rate * elapsed_us(g) / microseconds_per_unit;
}

uint64_t energy_mj(const struct gpu *g) { return counter(g, g->energy_mj, g->power_mw, 1000000); }

uint64_t replays(const struct gpu *g) { return counter(g, g->pcie_replay, g->pcie_replay_rate, 1000000); }

/* Nanoseconds with one of `reasons` among the clock event reasons. */
uint64_t slowed_ns(const struct gpu *g, uint64_t base, uint64_t reasons) {
    bool now = g->clock_reasons != NONE && (g->clock_reasons & reasons) != 0;

    return counter(g, base, now ? 1000 : 0, 1);
}

uint64_t slowed_by_power_ns(const struct gpu *g) { return slowed_ns(g, g->violation_power_ns, 0x4 | 0x80); }
uint64_t slowed_by_heat_ns(const struct gpu *g) { return slowed_ns(g, g->violation_thermal_ns, 0x20 | 0x40); }

uint32_t index_of(const struct scenario *s, int slot) {
    uint32_t index = 0;

    for (int i = 0; i < slot; i++)
        index += s->gpus[i].state != ABSENT;
    return index;
}

bool read_address(const char *text, struct address *a) {
    return sscanf(text, "%" SCNx32 ":%" SCNx32 ":%" SCNx32, &a->domain, &a->bus, &a->device) == 3;
}
