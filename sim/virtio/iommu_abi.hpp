// SPDX-License-Identifier: Apache-2.0
// The virtio-iommu device's interface, as its driver sees it. [VIRTIO 1.3 §5.13, device-types/iommu/description.tex]
//
// Requests have a part that the device reads and a part that it writes; the structures here are those parts. Fields are
// little-endian with the natural alignment that is asserted here.
//
// A driver's own page tables are no part of the standard: [table] is the header of the proposal, uapi/linux/
// virtio_iommu.h v0.12, for whose requests the device half is public in [gunyah-hypervisor,
// virtio_iommu_process_request].
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace iommu::virtio {

inline constexpr std::uint32_t kIommuDeviceId = 23;
inline constexpr std::uint32_t kRequestQueue = 0;
inline constexpr std::uint32_t kEventQueue = 1;
inline constexpr std::size_t kIommuQueues = 2;

// Feature bits.
inline constexpr unsigned kFeatureInputRange = 0;
inline constexpr unsigned kFeatureDomainRange = 1;
inline constexpr unsigned kFeatureMapUnmap = 2;
inline constexpr unsigned kFeatureProbe = 4;
inline constexpr unsigned kFeatureMmio = 5;
inline constexpr unsigned kFeatureBypassConfig = 6;
inline constexpr unsigned kFeatureAttachTable = 7;  // [table]

struct IommuConfig {
  std::uint64_t page_size_mask = 0;
  std::uint64_t input_start = 0;
  std::uint64_t input_end = 0;
  std::uint32_t domain_start = 0;
  std::uint32_t domain_end = 0;
  std::uint32_t probe_size = 0;
  std::uint8_t bypass = 0;  // the only field that a driver writes
  std::array<std::uint8_t, 3> reserved{};
};
static_assert(sizeof(IommuConfig) == 40 && offsetof(IommuConfig, input_start) == 8 &&
              offsetof(IommuConfig, input_end) == 16 && offsetof(IommuConfig, domain_start) == 24 &&
              offsetof(IommuConfig, domain_end) == 28 && offsetof(IommuConfig, probe_size) == 32 &&
              offsetof(IommuConfig, bypass) == 36);

enum class RequestType : std::uint8_t {
  Attach = 1,
  Detach = 2,
  Map = 3,
  Unmap = 4,
  Probe = 5,
  AttachTable = 6,
  Invalidate = 7
};
inline constexpr std::size_t kRequestTypes = 8;          // 0 is none
inline constexpr std::size_t kFirstProposedRequest = 6;  // from here on [table]

enum class RequestStatus : std::uint8_t {
  Ok = 0,
  IoError = 1,
  Unsupported = 2,
  DeviceError = 3,
  Invalid = 4,
  Range = 5,
  NoEntry = 6,
  Fault = 7,
  NoMemory = 8,
};

struct RequestHead {
  std::uint8_t type = 0;
  std::array<std::uint8_t, 3> reserved{};
};
static_assert(sizeof(RequestHead) == 4);

struct RequestTail {
  std::uint8_t status = 0;
  std::array<std::uint8_t, 3> reserved{};
};
static_assert(sizeof(RequestTail) == 4);

inline constexpr std::uint32_t kAttachBypass = 1U << 0;
struct AttachRequest {
  RequestHead head{static_cast<std::uint8_t>(RequestType::Attach)};
  std::uint32_t domain = 0;
  std::uint32_t endpoint = 0;
  std::uint32_t flags = 0;
  std::uint32_t reserved = 0;
};
static_assert(sizeof(AttachRequest) == 20 && offsetof(AttachRequest, domain) == 4 &&
              offsetof(AttachRequest, endpoint) == 8 && offsetof(AttachRequest, flags) == 12);

struct DetachRequest {
  RequestHead head{static_cast<std::uint8_t>(RequestType::Detach)};
  std::uint32_t domain = 0;
  std::uint32_t endpoint = 0;
  std::array<std::uint32_t, 2> reserved{};
};
static_assert(sizeof(DetachRequest) == 20 && offsetof(DetachRequest, endpoint) == 8);

inline constexpr std::uint32_t kMapRead = 1U << 0;
inline constexpr std::uint32_t kMapWrite = 1U << 1;
inline constexpr std::uint32_t kMapMmio = 1U << 2;
// The tail follows at 36, so the structure must not be padded to a multiple of 8.
struct MapRequest {
  RequestHead head{static_cast<std::uint8_t>(RequestType::Map)};
  std::uint32_t domain = 0;
  std::uint64_t virt_start = 0;
  std::uint64_t virt_end = 0;  // inclusive
  std::uint64_t phys_start = 0;
  std::uint32_t flags = 0;
  std::uint32_t tail = 0;  // of the whole request; the device writes it
};
static_assert(sizeof(MapRequest) == 40 && offsetof(MapRequest, virt_start) == 8 &&
              offsetof(MapRequest, virt_end) == 16 && offsetof(MapRequest, phys_start) == 24 &&
              offsetof(MapRequest, flags) == 32 && offsetof(MapRequest, tail) == 36);

struct UnmapRequest {
  RequestHead head{static_cast<std::uint8_t>(RequestType::Unmap)};
  std::uint32_t domain = 0;
  std::uint64_t virt_start = 0;
  std::uint64_t virt_end = 0;  // inclusive
  std::uint32_t reserved = 0;
  std::uint32_t tail = 0;  // as in MapRequest
};
static_assert(sizeof(UnmapRequest) == 32 && offsetof(UnmapRequest, virt_start) == 8 &&
              offsetof(UnmapRequest, virt_end) == 16 && offsetof(UnmapRequest, reserved) == 24 &&
              offsetof(UnmapRequest, tail) == 28);

struct ProbeRequest {
  RequestHead head{static_cast<std::uint8_t>(RequestType::Probe)};
  std::uint32_t endpoint = 0;
  std::array<std::uint8_t, 64> reserved{};
};
static_assert(sizeof(ProbeRequest) == 72 && offsetof(ProbeRequest, endpoint) == 4);

// Tables of the driver's own for an endpoint. `format` says what the words are: those of a device table entry, or of
// PageTableWords. [table: virtio_iommu_req_attach_table, virtio_iommu_req_attach_table_arm_smmu3]
struct AttachTableRequest {
  RequestHead head{static_cast<std::uint8_t>(RequestType::AttachTable)};
  std::uint32_t domain = 0;
  std::uint32_t endpoint = 0;
  std::uint8_t format = 0;
  std::array<std::uint8_t, 3> reserved{};
  std::array<std::uint64_t, 13> words{};
  std::uint32_t reserved1 = 0;
  std::uint32_t tail = 0;  // as in MapRequest
};
static_assert(sizeof(AttachTableRequest) == 128 && offsetof(AttachTableRequest, endpoint) == 8 &&
              offsetof(AttachTableRequest, format) == 12 && offsetof(AttachTableRequest, words) == 16 &&
              offsetof(AttachTableRequest, tail) == 124);
// ASSUMPTION(virtio-005): the proposal lays out no format that names a page table; this one is what Linux takes for
// VT-d. [linux include/uapi/linux/iommufd.h, iommu_hwpt_vtd_s1]
struct PageTableWords {
  std::uint64_t flags = 0;
  std::uint64_t address = 0;
  std::uint64_t width = 0;  // of input addresses, in bits
};
static_assert(sizeof(PageTableWords) == 24);

enum class InvalidateScope : std::uint8_t { Domain = 1, Pasid = 2, Address = 3 };
inline constexpr std::uint8_t kInvalidatePasidCache = 1U << 0;
inline constexpr std::uint8_t kInvalidateTlb = 1U << 1;
inline constexpr std::uint16_t kInvalidateLeaf = 1U << 0;
inline constexpr std::uint16_t kInvalidateByPasid = 1U << 1;
inline constexpr std::uint16_t kInvalidateById = 1U << 2;
inline constexpr std::uint16_t kInvalidateGlobal = 1U << 3;
struct InvalidateRequest {  // [table: virtio_iommu_req_invalidate]
  RequestHead head{static_cast<std::uint8_t>(RequestType::Invalidate)};
  std::uint8_t scope = 0;
  std::uint8_t caches = 0;
  std::uint16_t flags = 0;
  std::uint32_t domain = 0;
  std::uint32_t pasid = 0;
  std::uint64_t id = 0;  // of the address space, as the tables say
  std::uint64_t address = 0;
  std::uint64_t pages = 0;
  std::uint8_t page_lg2 = 0;
  std::array<std::uint8_t, 19> reserved{};
  std::uint32_t tail = 0;  // as in MapRequest
};
static_assert(sizeof(InvalidateRequest) == 64 && offsetof(InvalidateRequest, domain) == 8 &&
              offsetof(InvalidateRequest, id) == 16 && offsetof(InvalidateRequest, pages) == 32 &&
              offsetof(InvalidateRequest, page_lg2) == 40 && offsetof(InvalidateRequest, tail) == 60);

// Bytes that the device reads of a request.
template <class Request>
inline constexpr std::size_t kReadable = sizeof(Request);
template <>
inline constexpr std::size_t kReadable<MapRequest> = offsetof(MapRequest, tail);
template <>
inline constexpr std::size_t kReadable<UnmapRequest> = offsetof(UnmapRequest, tail);
template <>
inline constexpr std::size_t kReadable<AttachTableRequest> = offsetof(AttachTableRequest, tail);
template <>
inline constexpr std::size_t kReadable<InvalidateRequest> = offsetof(InvalidateRequest, tail);

// Properties in the answer to a PROBE.
inline constexpr std::uint16_t kPropertyTypeMask = 0xfff;
inline constexpr std::uint16_t kPropertyReservedMemory = 1;
enum class ReservedMemory : std::uint8_t { Reserved = 0, Msi = 1 };
struct PropertyHead {
  std::uint16_t type = 0;
  std::uint16_t length = 0;  // of the value that follows
};
static_assert(sizeof(PropertyHead) == 4);
struct ReservedMemoryProperty {
  PropertyHead head{kPropertyReservedMemory, 20};
  std::uint8_t subtype = 0;
  std::array<std::uint8_t, 3> reserved{};
  std::uint64_t start = 0;
  std::uint64_t end = 0;  // inclusive
};
static_assert(sizeof(ReservedMemoryProperty) == 24 && offsetof(ReservedMemoryProperty, subtype) == 4 &&
              offsetof(ReservedMemoryProperty, start) == 8 && offsetof(ReservedMemoryProperty, end) == 16);
// What hardware there is, so that a driver can write its tables: a head whose type is the family's, and words.
// [table: virtio_iommu_probe_hw_arm_smmu3]
struct HardwareProperty {
  PropertyHead head{};
  std::uint32_t reserved = 0;
};
static_assert(sizeof(HardwareProperty) == 8);

enum class FaultReason : std::uint8_t { Unknown = 0, Domain = 1, Mapping = 2 };
inline constexpr std::uint32_t kFaultRead = 1U << 0;
inline constexpr std::uint32_t kFaultWrite = 1U << 1;
inline constexpr std::uint32_t kFaultAddress = 1U << 8;
struct FaultRecord {
  std::uint8_t reason = 0;
  std::array<std::uint8_t, 3> reserved{};
  std::uint32_t flags = 0;
  std::uint32_t endpoint = 0;
  std::uint32_t reserved1 = 0;
  std::uint64_t address = 0;
};
static_assert(sizeof(FaultRecord) == 24 && offsetof(FaultRecord, flags) == 4 && offsetof(FaultRecord, endpoint) == 8 &&
              offsetof(FaultRecord, address) == 16);

}  // namespace iommu::virtio
