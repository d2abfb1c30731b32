/* What every exported call does first and last. A call is written as BEGIN, its own lines, and `return done(rc)` or
 * one of the `give` functions, which end it too. */
#ifndef SIMNVML_GATE_H
#define SIMNVML_GATE_H

#include "simnvml.h"

#include <time.h>

#define EXPORT __attribute__((visibility("default")))

/* What `open_gate` and `begin` are to heed. */
enum {
    DEVICE = 0,
    DEVICE_OR_MIG = 1,      /* a MIG instance's handle is welcome too */
    BEFORE_INIT = 2,        /* the library need not be initialised */
    OWN_FAULTS_ONLY = 4,    /* the faults of all GPUs have had their turn in this call */
};

/* What an nvmlDevice_t points to: never the contents, only the place in `devices` says which device it is. */
struct device {
    char place;
};
typedef struct device *handle;

/* A call in progress: it holds the lock, and what it points to is good until `done`. */
struct call {
    const struct scenario *scenario;
    const struct gpu *gpu;
    const struct mig *mig; /* NULL: the whole GPU */
    int slot;
};

struct address {
    uint32_t domain, bus, device;
};

extern struct device devices[MAX_GPUS][1 + MAX_MIG]; /* [slot][0] the GPU, [slot][1 + n] its MIG instance n */
extern int users;                                    /* nvmlInit calls without their nvmlShutdown */

void take_lock(void);
void drop_lock(void);
uint64_t clock_us(clockid_t id);

/* Leaves with the lock held if OK, without it otherwise. `slot` is -1 for a call about no GPU. */
int open_gate(const char *name, int slot, int flags, struct call *c);
int begin(const char *name, handle h, int flags, struct call *c);
int done(int rc);

#define BEGIN(h, flags)                              \
    struct call c;                                   \
    int rc = begin(__func__, h, flags, &c);          \
    if (rc != OK)                                    \
        return rc
#define BEGIN_NODE()                                 \
    struct call c;                                   \
    int rc = open_gate(__func__, -1, DEVICE, &c);    \
    if (rc != OK)                                    \
        return rc

/* Each ends the call: NONE and the empty text are NOT_SUPPORTED. */
int give(uint64_t value, uint32_t *out);
int give_wide(uint64_t value, uint64_t *out);
int give_text(const char *value, char *out, uint32_t size);

/* What a call about this GPU is answered because of the GPU's own state; OK if it is well. */
int condition(const struct gpu *g);

/* -1 if the pointer is none of ours; otherwise its GPU, and its MIG instance or -1 through `mig`. */
int slot_of(handle h, int *mig);

/* The number of GPUs enumerated before `slot`: NVML's index of that slot. */
uint32_t index_of(const struct scenario *s, int slot);

/* Any of the usual spellings: 4 or 8 digits of domain, either case, the function left out. */
bool read_address(const char *text, struct address *a);

/* Counters now. `counter` is for those that have no function of their own. */
uint64_t counter(const struct gpu *g, uint64_t base, uint64_t rate, uint64_t microseconds_per_unit);
uint64_t energy_mj(const struct gpu *g);
uint64_t replays(const struct gpu *g);
uint64_t slowed_ns(const struct gpu *g, uint64_t base, uint64_t reasons);
uint64_t slowed_by_power_ns(const struct gpu *g);
uint64_t slowed_by_heat_ns(const struct gpu *g);

/* Parts of answers that field values give too (device.c). */
enum { CORRECTED, UNCORRECTED, VOLATILE = 0, AGGREGATE };
uint64_t ecc_total(const struct gpu *g, uint32_t type, uint32_t counter_type);
int retired_pages(const struct gpu *g, uint32_t cause, uint32_t *count, uint64_t *addresses, uint64_t *times);

/* Fills the address part of a PCI description from a bus id. */
void fill_pci(struct nvml_pci *out, const char *bus_id);

#endif
