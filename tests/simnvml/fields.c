/* nvmlDeviceGetFieldValues: the numbers of the fields are NVML's own. */
#define _GNU_SOURCE
#include "gate.h"

enum { AS_UNSIGNED = 1, AS_WIDE = 3 };

static uint64_t link_error_sum(const struct gpu *g, uint32_t scope, enum link_error error) {
    uint64_t sum = 0;

    if (g->nvlink_count == NONE || g->nvlink_count == 0)
        return NONE;
    for (uint32_t i = 0; i < MAX_LINKS; i++)
        if (g->links[i].present && (scope == UINT32_MAX || scope == i))
            sum += g->links[i].errors[error];
    return sum;
}

static uint64_t link_attribute(const struct gpu *g, uint32_t scope, uint64_t value) {
    return scope < MAX_LINKS && g->links[scope].present ? value : NONE;
}

static uint64_t ecc_value(const struct gpu *g, uint32_t type, uint32_t counter_type) {
    return g->ecc_mode == 1 ? ecc_total(g, type, counter_type) : NONE;
}

static uint64_t pages_by_cause(const struct gpu *g, uint32_t cause) {
    uint32_t count = 0;
    int rc = retired_pages(g, cause, &count, NULL, NULL);

    return rc == NOT_SUPPORTED ? NONE : count;
}

/* What NVML's field `id` is, NONE where this GPU or this library has no such value. */
static uint64_t field_value(const struct gpu *g, uint32_t id, uint32_t scope, uint32_t *type) {
    *type = AS_WIDE;
    switch (id) { /* the wide ones: counters */
    case 3: return ecc_value(g, CORRECTED, VOLATILE);
    case 4: return ecc_value(g, UNCORRECTED, VOLATILE);
    case 5: return ecc_value(g, CORRECTED, AGGREGATE);
    case 6: return ecc_value(g, UNCORRECTED, AGGREGATE);
    case 38: return link_error_sum(g, UINT32_MAX, LINK_CRC_FLIT);
    case 45: return link_error_sum(g, UINT32_MAX, LINK_CRC_DATA);
    case 52: return link_error_sum(g, UINT32_MAX, LINK_REPLAY);
    case 59: return link_error_sum(g, UINT32_MAX, LINK_RECOVERY);
    case 74: return slowed_by_power_ns(g);
    case 75: return slowed_by_heat_ns(g);
    case 83: case 191: return energy_mj(g);
    case 138: case 139: case 140: case 141: return counter(g, g->nvlink_kib, g->nvlink_kib_rate, 1000000);
    case 160: return link_error_sum(g, UINT32_MAX, LINK_ECC_DATA);
    case 161: return link_error_sum(g, scope, LINK_REPLAY);
    case 162: return link_error_sum(g, scope, LINK_RECOVERY);
    case 163: return link_error_sum(g, scope, LINK_CRC_DATA);
    case 197: return counter(g, g->pcie_tx_bytes, g->pcie_tx_kib, 977); /* 1 KiB a second: 1 byte in 977 us */
    case 198: return counter(g, g->pcie_rx_bytes, g->pcie_rx_kib, 977);
    case 269: return slowed_ns(g, g->violation_thermal_ns, 0x20);
    case 270: return slowed_ns(g, g->violation_thermal_ns, 0x40);
    case 271: return slowed_ns(g, g->violation_power_ns, 0x80);
    default: break;
    }
    *type = AS_UNSIGNED;
    switch (id) {
    case 1: return g->ecc_mode;
    case 2: return g->ecc_pending;
    case 29: return pages_by_cause(g, 0);
    case 30: return pages_by_cause(g, 1);
    case 31: return g->retired_pending;
    case 82: return g->memory_temperature;
    case 90: return g->nvlink_speed;
    case 91: return g->nvlink_count;
    case 94: return replays(g);
    case 142: return g->remapped_correctable;
    case 143: return g->remapped_uncorrectable;
    case 144: return g->remapped_pending;
    case 145: return g->remapped_failure;
    case 164: return link_attribute(g, scope, g->nvlink_speed);
    case 165: return link_attribute(g, scope, scope < MAX_LINKS && g->links[scope].active);
    case 166: return link_attribute(g, scope, g->nvlink_version);
    case 185: case 186: return g->power_mw;
    case 187: return g->power_min_mw;
    case 188: return g->power_max_mw;
    case 189: return g->power_default_mw;
    case 190: return g->power_enforced_mw;
    case 192: return g->power_limit_mw;
    case 226: return g->reset_status;
    case 227: return g->drain_and_reset_status;
    case 230: return g->recovery_action;
    default: return NONE;
    }
}

EXPORT int nvmlDeviceGetFieldValues(handle h, int32_t count, struct nvml_field *fields) {
    BEGIN(h, DEVICE);
    if (count <= 0 || fields == NULL)
        return done(INVALID_ARGUMENT);
    for (int32_t i = 0; i < count; i++) {
        struct nvml_field *f = &fields[i];
        uint64_t value = field_value(c.gpu, f->id, f->scope, &f->value_type);

        f->time_us = (int64_t)clock_us(CLOCK_REALTIME);
        f->latency_us = 0;
        f->rc = value == NONE ? NOT_SUPPORTED : OK;
        f->value.ull = value == NONE ? 0 : value;
    }
    return done(OK);
}
