/* What the two halves of the stand-in library share: the scenario as read from its text (scenario.c), and the
 * structures that NVML's callers pass in (simnvml.c). Every layout of the second kind is NVML's own ABI. */
#ifndef SIMNVML_H
#define SIMNVML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MAX_GPUS = 16,
    MAX_LINKS = 18,
    MAX_MIG = 8,
    MAX_PROCESSES = 64,
    MAX_PAGES = 64,
    MAX_FAULTS = 128,
    MAX_EVENTS = 512,
    TEXT = 96,
};

/* A number the scenario does not give: the getter that would read it answers NOT_SUPPORTED. */
#define NONE UINT64_MAX
#define NO_INSTANCE UINT32_MAX

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    RESET_REQUIRED = 16,
    MEMORY = 20,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999,
};

/* ---- the scenario ------------------------------------------------------------------------------------------- */

/* Each name is a key of the text format (`gpu.<n>.<name> <value>`) and a member of struct gpu. */
#define TEXT_KEYS(X) X(uuid) X(name) X(serial) X(bus_id) X(vbios) X(inforom) X(part_number) X(firmware)
#define NUMBER_KEYS(X) \
    X(minor) X(brand) X(architecture) X(cc_major) X(cc_minor) X(pci_device_id) X(pci_subsystem_id) \
    X(memory_total) X(memory_reserved) X(memory_used) X(bar1_total) X(bar1_used) \
    X(gpu_util) X(memory_util) X(encoder_util) X(decoder_util) \
    X(temperature) X(memory_temperature) X(shutdown_temperature) X(slowdown_temperature) \
    X(memory_max_temperature) X(gpu_max_temperature) \
    X(power_mw) X(power_limit_mw) X(power_enforced_mw) X(power_min_mw) X(power_max_mw) X(power_default_mw) \
    X(since_ns) X(energy_mj) X(pcie_replay) X(pcie_replay_rate) X(pcie_tx_kib) X(pcie_rx_kib) \
    X(pcie_tx_bytes) X(pcie_rx_bytes) X(nvlink_kib_rate) X(nvlink_kib) X(violation_power_ns) X(violation_thermal_ns) \
    X(graphics_clock) X(sm_clock) X(memory_clock) X(video_clock) \
    X(graphics_clock_max) X(sm_clock_max) X(memory_clock_max) X(video_clock_max) \
    X(app_graphics_clock) X(app_memory_clock) X(app_graphics_default) X(app_memory_default) \
    X(clock_reasons) X(pstate) X(persistence) X(compute_mode) X(ecc_mode) X(ecc_pending) \
    X(ecc_corrected_volatile) X(ecc_corrected_aggregate) X(ecc_uncorrected_volatile) X(ecc_uncorrected_aggregate) \
    X(sram_corrected_volatile) X(sram_corrected_aggregate) X(sram_uncorrected_volatile) \
    X(sram_uncorrected_aggregate) X(sram_threshold) \
    X(remapped_correctable) X(remapped_uncorrectable) X(remapped_pending) X(remapped_failure) X(remap_exhausted) \
    X(retired_pending) \
    X(pcie_generation) X(pcie_generation_max) X(pcie_width) X(pcie_width_max) \
    X(nvlink_version) X(nvlink_count) X(nvlink_speed) X(mig_mode) X(mig_pending) X(mig_max) \
    X(recovery_action) X(reset_status) X(drain_and_reset_status) \
    X(fabric_state) X(fabric_status) X(fabric_clique) X(fabric_health) X(fabric_summary) \
    X(numa_node) X(cpu_first) X(cpu_count) X(pcie_switch) X(host_bridge) X(event_types)

enum gpu_state { PRESENT, LOST, NEEDS_RESET, ABSENT };
enum link_type { LINK_TO_GPU = 0, LINK_TO_SWITCH = 2 };
enum link_error { LINK_REPLAY, LINK_RECOVERY, LINK_CRC_FLIT, LINK_CRC_DATA, LINK_ECC_DATA, LINK_ERRORS };
enum process_kind { COMPUTE, GRAPHICS, MPS };
enum misdeed { RETURNS, HANGS, DSTATE, CRASHES, IS_LATE };

struct link {
    bool present, active;
    enum link_type type;
    char remote[TEXT];
    uint64_t errors[LINK_ERRORS];
};

struct process {
    enum process_kind kind;
    uint32_t pid, gi, ci, sm_util, memory_util;
    uint64_t memory;
};

struct mig {
    bool present;
    uint32_t gi, ci, slices, ci_slices, multiprocessors;
    uint64_t memory_mib;
    char uuid[TEXT], profile[TEXT];
};

struct page {
    uint32_t cause;
    uint64_t address, timestamp;
};

struct gpu {
#define X(key) char key[TEXT];
    TEXT_KEYS(X)
#undef X
#define X(key) uint64_t key;
    NUMBER_KEYS(X)
#undef X
    enum gpu_state state;
    struct link links[MAX_LINKS];
    struct mig mig[MAX_MIG];
    struct process processes[MAX_PROCESSES];
    struct page pages[MAX_PAGES];
    int process_count, page_count;
};

struct fault {
    int gpu; /* -1: whatever the GPU */
    char call[TEXT];
    enum misdeed misdeed;
    uint64_t value; /* the return code, or microseconds */
};

struct event {
    uint64_t sequence, type, data;
    int gpu;
    uint32_t gi, ci;
};

struct scenario {
    bool readable;
    char driver[TEXT], nvml[TEXT], dstate_file[4096], control[4096];
    uint64_t cuda, dstate_seconds;
    int gpu_count, fault_count, event_count;
    struct gpu gpus[MAX_GPUS];
    struct fault faults[MAX_FAULTS];
    struct event events[MAX_EVENTS];
};

/* The scenario as the file has it now, read again if the file was replaced. The caller holds the library's lock and
 * the pointer is good until it lets go. Never NULL; `readable` is false where there was never a file that parsed. */
const struct scenario *scenario_now(void);

/* A descriptor that is readable when a file has been renamed into the scenario's directory; -1 where that cannot be. */
int scenario_watch(void);

/* Adds one line to the scenario file, as the setters do; false if that failed. */
bool scenario_append(const char *line);

/* ---- NVML's structures -------------------------------------------------------------------------------------- */

struct nvml_pci {
    char bus_id_legacy[16];
    uint32_t domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
struct nvml_memory { uint64_t total, free, used; };
struct nvml_memory_v2 { uint32_t version; uint64_t total, reserved, free, used; };
struct nvml_bar1 { uint64_t total, free, used; };
struct nvml_utilization { uint32_t gpu, memory; };
struct nvml_temperature { uint32_t version, sensor; int32_t celsius; };
struct nvml_margin { uint32_t version; int32_t celsius; };
struct nvml_violation { uint64_t reference_us, violation_ns; };
struct nvml_process { uint32_t pid; uint64_t memory; uint32_t gi, ci; };
struct nvml_process_sample { uint32_t pid; uint64_t time_us; uint32_t sm, memory, encoder, decoder; };
struct nvml_event { void *device; uint64_t type, data; uint32_t gi, ci; };
struct nvml_attributes {
    uint32_t multiprocessors, copy_engines, decoders, encoders, jpeg, ofa, gi_slices, ci_slices;
    uint64_t memory_mib;
};
struct nvml_field {
    uint32_t id, scope;
    int64_t time_us, latency_us;
    uint32_t value_type, rc;
    union { double d; uint32_t u; uint64_t ull; int64_t sll; } value;
};
struct nvml_fabric { uint8_t cluster[16]; uint32_t status, clique, state; };
struct nvml_fabric_v { /* version 2 ends before `summary` */
    uint32_t version;
    uint8_t cluster[16];
    uint32_t status, clique, state, health;
    uint8_t summary;
};
struct nvml_sram {
    uint32_t version;
    uint64_t aggregate_parity, aggregate_secded, aggregate_corrected, volatile_parity, volatile_secded, volatile_corrected;
    uint64_t buckets[5]; /* aggregate, uncorrected: L2, SM, PCIe, micro-controllers, other */
    uint32_t threshold_exceeded;
};
struct nvml_histogram { uint32_t max, high, partial, low, none; };

_Static_assert(sizeof(struct nvml_pci) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(struct nvml_memory_v2) == 0x28, "nvmlMemory_v2_t");
_Static_assert(sizeof(struct nvml_process) == 24, "nvmlProcessInfo_t");
_Static_assert(sizeof(struct nvml_process_sample) == 32, "nvmlProcessUtilizationSample_t");
_Static_assert(sizeof(struct nvml_field) == 40, "nvmlFieldValue_t");
_Static_assert(sizeof(struct nvml_event) == 32, "nvmlEventData_t");
_Static_assert(sizeof(struct nvml_fabric_v) == 0x28, "nvmlGpuFabricInfo_v3_t");
_Static_assert(sizeof(struct nvml_sram) == 104, "nvmlEccSramErrorStatus_t");
_Static_assert(sizeof(struct nvml_attributes) == 40, "nvmlDeviceAttributes_t");

#endif
