/* What one GPU says about itself: identity, memory, load, heat, power, clocks, memory errors. */
#define _GNU_SOURCE
#include "gate.h"

#include <stdio.h>
#include <string.h>

/* ---- getters that give one value of the scenario ------------------------------------------------------------ */

#define TEXT_GETTER(function, member)                             \
    EXPORT int function(handle h, char *out, uint32_t size) {     \
        BEGIN(h, DEVICE);                                         \
        return give_text(c.gpu->member, out, size);               \
    }
#define GETTER(function, value)                                   \
    EXPORT int function(handle h, uint32_t *out) {                \
        BEGIN(h, DEVICE);                                         \
        return give(value, out);                                  \
    }
#define WIDE_GETTER(function, value)                              \
    EXPORT int function(handle h, uint64_t *out) {                \
        BEGIN(h, DEVICE);                                         \
        return give_wide(value, out);                             \
    }
#define PAIR_GETTER(function, first, second)                      \
    EXPORT int function(handle h, uint32_t *one, uint32_t *two) { \
        BEGIN(h, DEVICE);                                         \
        if (two == NULL || c.gpu->second == NONE)                 \
            return done(two == NULL ? INVALID_ARGUMENT : NOT_SUPPORTED); \
        *two = (uint32_t)c.gpu->second;                           \
        return give(c.gpu->first, one);                           \
    }

TEXT_GETTER(nvmlDeviceGetSerial, serial)
TEXT_GETTER(nvmlDeviceGetVbiosVersion, vbios)
TEXT_GETTER(nvmlDeviceGetInforomImageVersion, inforom)
TEXT_GETTER(nvmlDeviceGetBoardPartNumber, part_number)
GETTER(nvmlDeviceGetMinorNumber, c.gpu->minor)
GETTER(nvmlDeviceGetBrand, c.gpu->brand)
GETTER(nvmlDeviceGetArchitecture, c.gpu->architecture)
GETTER(nvmlDeviceGetPowerUsage, c.gpu->power_mw)
GETTER(nvmlDeviceGetPowerManagementLimit, c.gpu->power_limit_mw)
GETTER(nvmlDeviceGetEnforcedPowerLimit, c.gpu->power_enforced_mw)
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, c.gpu->power_default_mw)
GETTER(nvmlDeviceGetPowerState, c.gpu->pstate)
GETTER(nvmlDeviceGetPerformanceState, c.gpu->pstate)
GETTER(nvmlDeviceGetPersistenceMode, c.gpu->persistence)
GETTER(nvmlDeviceGetComputeMode, c.gpu->compute_mode)
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, c.gpu->pcie_generation)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, c.gpu->pcie_generation_max)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, c.gpu->pcie_width)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, c.gpu->pcie_width_max)
GETTER(nvmlDeviceGetPcieReplayCounter, replays(c.gpu))
GETTER(nvmlDeviceGetRetiredPagesPendingStatus, c.gpu->retired_pending)
GETTER(nvmlDeviceGetMaxMigDeviceCount, c.gpu->mig_max)
GETTER(nvmlDeviceGetNumaNodeId, c.gpu->numa_node)
WIDE_GETTER(nvmlDeviceGetTotalEnergyConsumption, energy_mj(c.gpu))
WIDE_GETTER(nvmlDeviceGetCurrentClocksEventReasons, c.gpu->clock_reasons)
WIDE_GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, c.gpu->clock_reasons)
WIDE_GETTER(nvmlDeviceGetSupportedEventTypes, c.gpu->event_types)
PAIR_GETTER(nvmlDeviceGetPowerManagementLimitConstraints, power_min_mw, power_max_mw)
PAIR_GETTER(nvmlDeviceGetCudaComputeCapability, cc_major, cc_minor)
PAIR_GETTER(nvmlDeviceGetEccMode, ecc_mode, ecc_pending)
PAIR_GETTER(nvmlDeviceGetMigMode, mig_mode, mig_pending)

/* ---- identity ----------------------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetIndex(handle h, uint32_t *out) {
    BEGIN(h, DEVICE_OR_MIG);
    return give(c.mig != NULL ? (uint64_t)(c.mig - c.gpu->mig) : index_of(c.scenario, c.slot), out);
}

EXPORT int nvmlDeviceGetName(handle h, char *out, uint32_t size) {
    char name[3 * TEXT];
    BEGIN(h, DEVICE_OR_MIG);

    if (c.mig == NULL)
        return give_text(c.gpu->name, out, size);
    snprintf(name, sizeof name, "%s MIG %s", c.gpu->name, c.mig->profile);
    return give_text(name, out, size);
}

EXPORT int nvmlDeviceGetUUID(handle h, char *out, uint32_t size) {
    BEGIN(h, DEVICE_OR_MIG);
    return give_text(c.mig != NULL ? c.mig->uuid : c.gpu->uuid, out, size);
}

EXPORT int nvmlDeviceGetGspFirmwareVersion(handle h, char *out) {
    BEGIN(h, DEVICE);
    return give_text(c.gpu->firmware, out, 64); /* the size of the caller's buffer is part of the interface */
}

void fill_pci(struct nvml_pci *out, const char *bus_id) {
    struct address a = {0, 0, 0};

    read_address(bus_id, &a);
    memset(out, 0, sizeof *out);
    out->domain = a.domain;
    out->bus = a.bus;
    out->device = a.device;
    snprintf(out->bus_id, sizeof out->bus_id, "%08X:%02X:%02X.0", a.domain, a.bus & 0xff, a.device & 0xff);
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%04X:%02X:%02X.0", a.domain & 0xffff, a.bus & 0xff,
             a.device & 0xff);
}

EXPORT int nvmlDeviceGetPciInfo_v3(handle h, struct nvml_pci *out) {
    BEGIN(h, DEVICE);
    fill_pci(out, c.gpu->bus_id);
    out->device_id = (uint32_t)c.gpu->pci_device_id;
    out->subsystem_id = (uint32_t)c.gpu->pci_subsystem_id;
    return done(OK);
}

/* ---- memory and load ---------------------------------------------------------------------------------------- */

static struct nvml_memory_v2 memory_of(const struct call *c) {
    struct nvml_memory_v2 m = {0, c->gpu->memory_total, c->gpu->memory_reserved, 0, c->gpu->memory_used};

    if (c->mig != NULL) {
        m.total = c->mig->memory_mib << 20;
        m.reserved = m.used = 0;
        for (int i = 0; i < c->gpu->process_count; i++)
            if (c->gpu->processes[i].gi == c->mig->gi && c->gpu->processes[i].memory != NONE)
                m.used += c->gpu->processes[i].memory;
    }
    if (m.reserved == NONE)
        m.reserved = 0;
    m.free = m.total > m.reserved + m.used ? m.total - m.reserved - m.used : 0;
    return m;
}

EXPORT int nvmlDeviceGetMemoryInfo(handle h, struct nvml_memory *out) {
    BEGIN(h, DEVICE_OR_MIG);
    struct nvml_memory_v2 m = memory_of(&c);

    if (m.total == NONE || m.used == NONE)
        return done(NOT_SUPPORTED);
    *out = (struct nvml_memory){m.total, m.free, m.total - m.free}; /* the old form counts the reserve as used */
    return done(OK);
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(handle h, struct nvml_memory_v2 *out) {
    BEGIN(h, DEVICE_OR_MIG);
    struct nvml_memory_v2 m = memory_of(&c);

    if (out->version != (2u << 24 | sizeof *out))
        return done(VERSION_MISMATCH);
    if (m.total == NONE || m.used == NONE)
        return done(NOT_SUPPORTED);
    m.version = out->version;
    *out = m;
    return done(OK);
}

EXPORT int nvmlDeviceGetBAR1MemoryInfo(handle h, struct nvml_bar1 *out) {
    BEGIN(h, DEVICE);
    if (c.gpu->bar1_total == NONE || c.gpu->bar1_used == NONE)
        return done(NOT_SUPPORTED);
    *out = (struct nvml_bar1){c.gpu->bar1_total, c.gpu->bar1_total - c.gpu->bar1_used, c.gpu->bar1_used};
    return done(OK);
}

EXPORT int nvmlDeviceGetUtilizationRates(handle h, struct nvml_utilization *out) {
    BEGIN(h, DEVICE);
    if (c.gpu->gpu_util == NONE || c.gpu->memory_util == NONE || c.gpu->mig_mode == 1)
        return done(NOT_SUPPORTED); /* with MIG on, NVML has no figure for the whole GPU */
    *out = (struct nvml_utilization){(uint32_t)c.gpu->gpu_util, (uint32_t)c.gpu->memory_util};
    return done(OK);
}

static int give_sampled(uint64_t value, uint32_t *out, uint32_t *period_us) {
    *period_us = 167000;
    return give(value, out);
}

EXPORT int nvmlDeviceGetEncoderUtilization(handle h, uint32_t *out, uint32_t *period_us) {
    BEGIN(h, DEVICE);
    return give_sampled(c.gpu->encoder_util, out, period_us);
}

EXPORT int nvmlDeviceGetDecoderUtilization(handle h, uint32_t *out, uint32_t *period_us) {
    BEGIN(h, DEVICE);
    return give_sampled(c.gpu->decoder_util, out, period_us);
}

/* ---- heat, power, clocks ------------------------------------------------------------------------------------ */

EXPORT int nvmlDeviceGetTemperature(handle h, uint32_t sensor, uint32_t *out) {
    BEGIN(h, DEVICE);
    return sensor == 0 ? give(c.gpu->temperature, out) : done(INVALID_ARGUMENT);
}

EXPORT int nvmlDeviceGetTemperatureV(handle h, struct nvml_temperature *out) {
    BEGIN(h, DEVICE);
    if (out->version != (1u << 24 | sizeof *out))
        return done(VERSION_MISMATCH);
    return out->sensor == 0 ? give(c.gpu->temperature, (uint32_t *)&out->celsius) : done(INVALID_ARGUMENT);
}

EXPORT int nvmlDeviceGetMarginTemperature(handle h, struct nvml_margin *out) {
    BEGIN(h, DEVICE);
    if (out->version != (1u << 24 | sizeof *out))
        return done(VERSION_MISMATCH);
    if (c.gpu->temperature == NONE || c.gpu->slowdown_temperature == NONE)
        return done(NOT_SUPPORTED);
    out->celsius = (int32_t)c.gpu->slowdown_temperature - (int32_t)c.gpu->temperature;
    return done(OK);
}

EXPORT int nvmlDeviceGetTemperatureThreshold(handle h, uint32_t threshold, uint32_t *out) {
    BEGIN(h, DEVICE);
    const uint64_t values[] = {c.gpu->shutdown_temperature, c.gpu->slowdown_temperature,
                               c.gpu->memory_max_temperature, c.gpu->gpu_max_temperature};

    if (threshold >= 8)
        return done(INVALID_ARGUMENT);
    return give(threshold < 4 ? values[threshold] : NONE, out); /* the acoustic ones: no data centre GPU has them */
}

EXPORT int nvmlDeviceGetClockInfo(handle h, uint32_t type, uint32_t *out) {
    BEGIN(h, DEVICE);
    const uint64_t clocks[] = {c.gpu->graphics_clock, c.gpu->sm_clock, c.gpu->memory_clock, c.gpu->video_clock};

    return type < 4 ? give(clocks[type], out) : done(INVALID_ARGUMENT);
}

EXPORT int nvmlDeviceGetMaxClockInfo(handle h, uint32_t type, uint32_t *out) {
    BEGIN(h, DEVICE);
    const uint64_t clocks[] = {c.gpu->graphics_clock_max, c.gpu->sm_clock_max, c.gpu->memory_clock_max,
                               c.gpu->video_clock_max};

    return type < 4 ? give(clocks[type], out) : done(INVALID_ARGUMENT);
}

/* Application clocks are those of graphics (the SMs' are the same) and of memory. */
EXPORT int nvmlDeviceGetApplicationsClock(handle h, uint32_t type, uint32_t *out) {
    BEGIN(h, DEVICE);
    return type > 2 ? done(INVALID_ARGUMENT) : give(type == 2 ? c.gpu->app_memory_clock : c.gpu->app_graphics_clock, out);
}

EXPORT int nvmlDeviceGetDefaultApplicationsClock(handle h, uint32_t type, uint32_t *out) {
    BEGIN(h, DEVICE);
    return type > 2 ? done(INVALID_ARGUMENT)
                    : give(type == 2 ? c.gpu->app_memory_default : c.gpu->app_graphics_default, out);
}

EXPORT int nvmlDeviceGetViolationStatus(handle h, uint32_t policy, struct nvml_violation *out) {
    BEGIN(h, DEVICE);
    uint64_t ns = policy == 0 ? slowed_by_power_ns(c.gpu) : policy == 1 ? slowed_by_heat_ns(c.gpu) : NONE;

    if (ns == NONE)
        return done(policy < 12 ? NOT_SUPPORTED : INVALID_ARGUMENT);
    *out = (struct nvml_violation){clock_us(CLOCK_REALTIME), ns};
    return done(OK);
}

/* ---- memory errors ------------------------------------------------------------------------------------------ */

uint64_t ecc_total(const struct gpu *g, uint32_t type, uint32_t counter_type) {
    if (type == CORRECTED)
        return counter_type == VOLATILE ? g->ecc_corrected_volatile : g->ecc_corrected_aggregate;
    return counter_type == VOLATILE ? g->ecc_uncorrected_volatile : g->ecc_uncorrected_aggregate;
}

static uint64_t ecc_sram(const struct gpu *g, uint32_t type, uint32_t counter_type) {
    if (type == CORRECTED)
        return counter_type == VOLATILE ? g->sram_corrected_volatile : g->sram_corrected_aggregate;
    return counter_type == VOLATILE ? g->sram_uncorrected_volatile : g->sram_uncorrected_aggregate;
}

EXPORT int nvmlDeviceGetTotalEccErrors(handle h, uint32_t type, uint32_t counter_type, uint64_t *out) {
    BEGIN(h, DEVICE);
    if (type > UNCORRECTED || counter_type > AGGREGATE)
        return done(INVALID_ARGUMENT);
    return give_wide(c.gpu->ecc_mode == 1 ? ecc_total(c.gpu, type, counter_type) : NONE, out);
}

/* The scenario knows totals and the part in SRAM; all the rest was in device memory. */
EXPORT int nvmlDeviceGetMemoryErrorCounter(handle h, uint32_t type, uint32_t counter_type, uint32_t location,
                                           uint64_t *out) {
    BEGIN(h, DEVICE);
    if (type > UNCORRECTED || counter_type > AGGREGATE || location >= 8)
        return done(INVALID_ARGUMENT);
    uint64_t total = ecc_total(c.gpu, type, counter_type), sram = ecc_sram(c.gpu, type, counter_type);

    if (c.gpu->ecc_mode != 1 || total == NONE)
        return done(NOT_SUPPORTED);
    if (location == 7)
        return give_wide(sram, out);
    return give_wide(location != 2 ? 0 : sram == NONE || sram > total ? total : total - sram, out);
}

EXPORT int nvmlDeviceGetSramEccErrorStatus(handle h, struct nvml_sram *out) {
    BEGIN(h, DEVICE);
    const struct gpu *g = c.gpu;

    if (out->version != (1u << 24 | sizeof *out))
        return done(VERSION_MISMATCH);
    if (g->ecc_mode != 1 || g->sram_threshold == NONE || g->sram_uncorrected_volatile == NONE)
        return done(NOT_SUPPORTED);
    *out = (struct nvml_sram){
        .version = out->version,
        .aggregate_secded = g->sram_uncorrected_aggregate,
        .aggregate_corrected = g->sram_corrected_aggregate,
        .volatile_secded = g->sram_uncorrected_volatile,
        .volatile_corrected = g->sram_corrected_volatile,
        .buckets = {g->sram_uncorrected_aggregate},
        .threshold_exceeded = g->sram_threshold == 1,
    };
    return done(OK);
}

EXPORT int nvmlDeviceGetRemappedRows(handle h, uint32_t *corrected, uint32_t *uncorrected, uint32_t *pending,
                                     uint32_t *failure) {
    BEGIN(h, DEVICE);
    if (c.gpu->remapped_correctable == NONE || c.gpu->remapped_uncorrectable == NONE ||
        c.gpu->remapped_pending == NONE)
        return done(NOT_SUPPORTED);
    *corrected = (uint32_t)c.gpu->remapped_correctable;
    *uncorrected = (uint32_t)c.gpu->remapped_uncorrectable;
    *pending = (uint32_t)c.gpu->remapped_pending;
    return give(c.gpu->remapped_failure, failure);
}

/* 640 banks, as an H100 has; each row remapped took a spare from a bank of its own, of `remap_exhausted` the last. */
EXPORT int nvmlDeviceGetRowRemapperHistogram(handle h, struct nvml_histogram *out) {
    BEGIN(h, DEVICE);
    if (c.gpu->remapped_correctable == NONE || c.gpu->remapped_uncorrectable == NONE)
        return done(NOT_SUPPORTED);
    uint32_t used = (uint32_t)(c.gpu->remapped_correctable + c.gpu->remapped_uncorrectable);

    uint32_t exhausted = c.gpu->remap_exhausted == NONE ? 0 : (uint32_t)c.gpu->remap_exhausted;

    *out = (struct nvml_histogram){used > 640 ? 0 : 640 - used, used, 0, 0, exhausted};
    return done(OK);
}

int retired_pages(const struct gpu *g, uint32_t cause, uint32_t *count, uint64_t *addresses, uint64_t *times) {
    uint32_t found = 0, room = *count;

    if (g->retired_pending == NONE)
        return NOT_SUPPORTED;
    for (int i = 0; i < g->page_count; i++) {
        if (g->pages[i].cause != cause)
            continue;
        if (addresses != NULL && found < room) {
            addresses[found] = g->pages[i].address;
            if (times != NULL)
                times[found] = g->pages[i].timestamp;
        }
        found++;
    }
    *count = found;
    return found > (addresses == NULL ? 0 : room) ? INSUFFICIENT_SIZE : OK;
}

EXPORT int nvmlDeviceGetRetiredPages(handle h, uint32_t cause, uint32_t *count, uint64_t *addresses) {
    BEGIN(h, DEVICE);
    return done(retired_pages(c.gpu, cause, count, addresses, NULL));
}

EXPORT int nvmlDeviceGetRetiredPages_v2(handle h, uint32_t cause, uint32_t *count, uint64_t *addresses,
                                        uint64_t *times) {
    BEGIN(h, DEVICE);
    return done(retired_pages(c.gpu, cause, count, addresses, times));
}
