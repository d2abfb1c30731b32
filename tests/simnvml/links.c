/* How GPUs are connected: PCIe, NVLink, topology, peer access, fabric, affinity. */
#define _GNU_SOURCE
#include "gate.h"

#include <string.h>

EXPORT int nvmlDeviceGetPcieThroughput(handle h, uint32_t direction, uint32_t *out) {
    BEGIN(h, DEVICE);
    if (direction > 1)
        return done(INVALID_ARGUMENT);
    return give(direction == 0 ? c.gpu->pcie_tx_kib : c.gpu->pcie_rx_kib, out);
}

/* NULL, with the code to answer through `rc`, where the GPU has no such link. */
static const struct link *link_of(const struct gpu *g, uint32_t index, int *rc) {
    *rc = g->nvlink_count == NONE || g->nvlink_count == 0 ? NOT_SUPPORTED : INVALID_ARGUMENT;
    return index < MAX_LINKS && g->links[index].present ? &g->links[index] : NULL;
}

#define BEGIN_LINK(h, index)                                  \
    BEGIN(h, DEVICE);                                         \
    const struct link *link = link_of(c.gpu, index, &rc);     \
    if (link == NULL)                                         \
        return done(rc)

EXPORT int nvmlDeviceGetNvLinkState(handle h, uint32_t index, uint32_t *out) {
    BEGIN_LINK(h, index);
    return give(link->active, out);
}

EXPORT int nvmlDeviceGetNvLinkVersion(handle h, uint32_t index, uint32_t *out) {
    BEGIN_LINK(h, index);
    return give(c.gpu->nvlink_version, out);
}

EXPORT int nvmlDeviceGetNvLinkCapability(handle h, uint32_t index, uint32_t capability, uint32_t *out) {
    BEGIN_LINK(h, index);
    if (capability >= 6)
        return done(INVALID_ARGUMENT);
    return give(capability != 4, out); /* all but the SLI bridge */
}

EXPORT int nvmlDeviceGetNvLinkErrorCounter(handle h, uint32_t index, uint32_t error, uint64_t *out) {
    BEGIN_LINK(h, index);
    return error < LINK_ERRORS ? give_wide(link->errors[error], out) : done(INVALID_ARGUMENT);
}

EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(handle h, uint32_t index, struct nvml_pci *out) {
    BEGIN_LINK(h, index);
    if (!link->active)
        return done(NOT_SUPPORTED);
    fill_pci(out, link->remote);
    return done(OK);
}

EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(handle h, uint32_t index, uint32_t *out) {
    BEGIN_LINK(h, index);
    return give(link->active ? (uint64_t)link->type : 0xff, out);
}

/* NVML's levels: 10 one switch, 30 one host bridge, 40 one NUMA node, 50 the interconnect between nodes. */
static uint32_t ancestor(const struct gpu *a, const struct gpu *b) {
    if (a->pcie_switch != NONE && a->pcie_switch == b->pcie_switch)
        return 10;
    if (a->host_bridge != NONE && a->host_bridge == b->host_bridge)
        return 30;
    return a->numa_node == b->numa_node ? 40 : 50;
}

static bool nvlinked(const struct gpu *a, const struct gpu *b) {
    struct address to, target;
    bool a_switched = false, b_switched = false;

    for (int i = 0; i < MAX_LINKS; i++) {
        a_switched |= a->links[i].active && a->links[i].type == LINK_TO_SWITCH;
        b_switched |= b->links[i].active && b->links[i].type == LINK_TO_SWITCH;
        if (a->links[i].active && a->links[i].type == LINK_TO_GPU && read_address(a->links[i].remote, &to) &&
            read_address(b->bus_id, &target) && memcmp(&to, &target, sizeof to) == 0)
            return true;
    }
    return a_switched && b_switched;
}

/* The second GPU of a call about two. */
static const struct gpu *other_of(const struct call *c, handle h, int *rc) {
    int mig = -1, slot = slot_of(h, &mig);

    *rc = INVALID_ARGUMENT;
    if (slot < 0 || slot >= c->scenario->gpu_count || mig >= 0)
        return NULL;
    *rc = condition(&c->scenario->gpus[slot]);
    return *rc == OK ? &c->scenario->gpus[slot] : NULL;
}

EXPORT int nvmlDeviceGetTopologyCommonAncestor(handle h, handle h2, uint32_t *out) {
    BEGIN(h, DEVICE);
    const struct gpu *other = other_of(&c, h2, &rc);

    if (other == NULL)
        return done(rc);
    return give(other == c.gpu ? 0 : ancestor(c.gpu, other), out);
}

/* The count alone is answered with success: this is the one list of NVML that pynvml expects so. */
EXPORT int nvmlDeviceGetTopologyNearestGpus(handle h, uint32_t level, uint32_t *count, handle *out) {
    BEGIN(h, DEVICE);
    uint32_t found = 0;

    for (int slot = 0; slot < c.scenario->gpu_count; slot++) {
        const struct gpu *other = &c.scenario->gpus[slot];

        if (other == c.gpu || other->state == ABSENT || ancestor(c.gpu, other) != level)
            continue;
        if (out != NULL && found < *count)
            out[found] = &devices[slot][0];
        found++;
    }
    if (out == NULL || found < *count)
        *count = found;
    return done(OK);
}

/* Reads, writes and atomics go over NVLink or within one NUMA node. */
EXPORT int nvmlDeviceGetP2PStatus(handle h, handle h2, uint32_t what, uint32_t *out) {
    enum { P2P_NVLINK = 2, P2P_PCI = 4, P2P_OK = 0, P2P_CHIPSET_NOT_SUPPORTED = 1, P2P_NOT_SUPPORTED = 5 };
    BEGIN(h, DEVICE);
    const struct gpu *other = other_of(&c, h2, &rc);

    if (other == NULL || other == c.gpu || what > P2P_PCI)
        return done(other == NULL ? rc : INVALID_ARGUMENT);
    bool linked = nvlinked(c.gpu, other), near = ancestor(c.gpu, other) <= 40;

    if (what == P2P_NVLINK)
        return give(linked ? P2P_OK : P2P_NOT_SUPPORTED, out);
    return give(near || (linked && what != P2P_PCI) ? P2P_OK : P2P_CHIPSET_NOT_SUPPORTED, out);
}

static int fabric(const struct gpu *g, struct nvml_fabric *out) {
    memset(out, 0, sizeof *out);
    if (g->fabric_state == NONE)
        return NOT_SUPPORTED;
    out->state = (uint32_t)g->fabric_state;
    out->status = g->fabric_status == NONE ? OK : (uint32_t)g->fabric_status;
    out->clique = g->fabric_clique == NONE ? 0 : (uint32_t)g->fabric_clique;
    return OK;
}

EXPORT int nvmlDeviceGetGpuFabricInfo(handle h, struct nvml_fabric *out) {
    BEGIN(h, DEVICE);
    return done(fabric(c.gpu, out));
}

EXPORT int nvmlDeviceGetGpuFabricInfoV(handle h, struct nvml_fabric_v *out) {
    BEGIN(h, DEVICE);
    struct nvml_fabric f;

    if (out->version != (2u << 24 | offsetof(struct nvml_fabric_v, summary)) &&
        out->version != (3u << 24 | sizeof *out))
        return done(VERSION_MISMATCH);
    rc = fabric(c.gpu, &f);
    if (rc != OK)
        return done(rc);
    memcpy(out->cluster, f.cluster, sizeof out->cluster);
    out->status = f.status;
    out->clique = f.clique;
    out->state = f.state;
    out->health = c.gpu->fabric_health == NONE ? 0 : (uint32_t)c.gpu->fabric_health;
    if (out->version >> 24 == 3)
        out->summary = c.gpu->fabric_summary == NONE ? 0 : (uint8_t)c.gpu->fabric_summary;
    return done(OK);
}

/* The mask of CPUs or NUMA nodes from `first` on, in 64-bit words as on every 64-bit Linux. */
static int give_mask(uint64_t first, uint64_t count, uint32_t size, uint64_t *out) {
    if (first == NONE || count == NONE)
        return done(NOT_SUPPORTED);
    memset(out, 0, size * sizeof *out);
    for (uint64_t bit = first; bit < first + count; bit++) {
        if (bit / 64 >= size)
            return done(INSUFFICIENT_SIZE);
        out[bit / 64] |= 1ull << bit % 64;
    }
    return done(OK);
}

EXPORT int nvmlDeviceGetCpuAffinity(handle h, uint32_t size, uint64_t *out) {
    BEGIN(h, DEVICE);
    return give_mask(c.gpu->cpu_first, c.gpu->cpu_count, size, out);
}

EXPORT int nvmlDeviceGetCpuAffinityWithinScope(handle h, uint32_t size, uint64_t *out, uint32_t scope) {
    BEGIN(h, DEVICE);
    return scope > 1 ? done(INVALID_ARGUMENT) : give_mask(c.gpu->cpu_first, c.gpu->cpu_count, size, out);
}

EXPORT int nvmlDeviceGetMemoryAffinity(handle h, uint32_t size, uint64_t *out, uint32_t scope) {
    BEGIN(h, DEVICE);
    return scope > 1 ? done(INVALID_ARGUMENT) : give_mask(c.gpu->numa_node, 1, size, out);
}
