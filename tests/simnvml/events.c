/* Event sets: XIDs and recovery actions, each delivered once to each set that asked for it. */
#define _GNU_SOURCE
#include "gate.h"

#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

struct event_set {
    uint64_t seen;                /* the sequence number of the last event looked at */
    uint64_t wanted[MAX_GPUS];    /* event types registered for each GPU */
    int watch;                    /* readable when the scenario may have been replaced, or -1 */
};

EXPORT int nvmlEventSetCreate(struct event_set **out) {
    BEGIN_NODE();
    struct event_set *set = calloc(1, sizeof *set);

    if (set == NULL)
        return done(MEMORY);
    for (int i = 0; i < c.scenario->event_count; i++)
        if (c.scenario->events[i].sequence > set->seen)
            set->seen = c.scenario->events[i].sequence;
    set->watch = scenario_watch();
    *out = set;
    return done(OK);
}

EXPORT int nvmlEventSetFree(struct event_set *set) {
    BEGIN_NODE();
    if (set != NULL && set->watch >= 0)
        close(set->watch);
    free(set);
    return done(OK);
}

EXPORT int nvmlDeviceRegisterEvents(handle h, uint64_t types, struct event_set *set) {
    BEGIN(h, DEVICE);
    if (set == NULL)
        return done(INVALID_ARGUMENT);
    if (c.gpu->event_types == NONE || (types & ~c.gpu->event_types) != 0)
        return done(NOT_SUPPORTED);
    set->wanted[c.slot] |= types;
    return done(OK);
}

/* The next event the set asked for; those of other GPUs and types are passed over for good. */
static const struct event *next_event(const struct scenario *s, struct event_set *set) {
    for (;;) {
        const struct event *next = NULL;

        for (int i = 0; i < s->event_count; i++)
            if (s->events[i].sequence > set->seen && (next == NULL || s->events[i].sequence < next->sequence))
                next = &s->events[i];
        if (next == NULL)
            return NULL;
        set->seen = next->sequence;
        if ((set->wanted[next->gpu] & next->type) != 0)
            return next;
    }
}

/* Waits until the scenario is replaced, and no longer than this: the library may be shut down meanwhile, and a file
 * can be written in ways that are not watched. */
enum { GLANCE_MS = 100, GLANCE_UNWATCHED_MS = 10 };

static void wait_for_change(int watch, uint64_t left_us) {
    uint64_t most = watch < 0 ? GLANCE_UNWATCHED_MS : GLANCE_MS, left = left_us / 1000 + 1;
    struct pollfd changed = {watch, POLLIN, 0};
    char seen[4096];

    poll(&changed, 1, (int)(left < most ? left : most)); /* a negative descriptor is passed over */
    while (watch >= 0 && read(watch, seen, sizeof seen) > 0)
        ;
}

EXPORT int nvmlEventSetWait_v2(struct event_set *set, struct nvml_event *out, uint32_t timeout_ms) {
    uint64_t end = clock_us(CLOCK_MONOTONIC) + timeout_ms * 1000ull;
    BEGIN_NODE();

    for (;;) {
        const struct event *e = next_event(scenario_now(), set);
        uint64_t now = clock_us(CLOCK_MONOTONIC), left = end > now ? end - now : 0;

        if (e != NULL) {
            *out = (struct nvml_event){&devices[e->gpu][0], e->type, e->data, e->gi, e->ci};
            return done(OK);
        }
        if (left == 0)
            return done(TIMEOUT);
        drop_lock();
        wait_for_change(set->watch, left);
        take_lock();
        if (users == 0)
            return done(UNINITIALIZED);
    }
}
