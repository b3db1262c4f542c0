// SPDX-License-Identifier: Apache-2.0
// The TLM-2.0 boundary: an IOMMU that a foreign SystemC platform binds between a device and memory.
//
//   device.initiator ──► IommuTlm.target    generic payload, address = IOVA, with a DmaExtension
//                        IommuTlm.initiator ──► memory     a payload of its own, address = host address
//
//   Engine engine("engine");                                  // before any other module of ours
//   MemorySystem tables(engine.calendar(), host_memory, {});  // what the walkers read
//   IommuUnit unit(engine.calendar(), core, tables.add_port("iommu"), parameters, mmio, seed);
//   ImmediateMemoryPort at_once(host_memory);
//   IommuTlm iommu("iommu", engine, unit, at_once);
//   device.initiator.bind(iommu.target);
//   iommu.initiator.bind(memory.target);
//   sc_start(…);                                              // or engine.run_until(…)
//
//   payload.set_extension(&dma_extension);                    // dma_extension.requester = RequesterId::bdf(1, 0, 0)
//
// nb_transport, both sides: the base protocol [IEEE 1666-2011 §15.2], every timing annotation honoured.
//   device  BEGIN_REQ is answered with END_REQ once the IOMMU has room for the request: so a device that must wait is
//           held by the request exclusion rule. BEGIN_RESP follows when memory has answered or the IOMMU has refused,
//           one response at a time until its END_RESP, which the device may also return at once.
//   memory  may answer BEGIN_REQ with any transition that the base protocol permits, early completion included. Its
//           BEGIN_RESP is completed at once (TLM_COMPLETED): every transaction has a place for its response.
// b_transport translates at once, without time and without the caches: for loosely timed software models only.
// transport_dbg translates without leaving a trace: no fault is recorded, no table entry is marked. No DMI: a pointer
// would outlive the translation that it came through.
//
// Data and byte enables are the device's own and are passed on by pointer; extensions are not passed on. Responses:
//   memory's own                    the request was translated and memory served or refused it
//   TLM_ADDRESS_ERROR_RESPONSE      a translation fault, which the IOMMU has recorded for software
//   TLM_OK_RESPONSE, data zero      a fault for which software asked that reads give zero and writes vanish
//   TLM_COMMAND_ERROR_RESPONSE      neither read nor write
//   TLM_BURST_ERROR_RESPONSE        no data, across a 4 KiB boundary, or a streaming width below the length
//   TLM_BYTE_ENABLE_ERROR_RESPONSE  byte enables of no length
//   TLM_GENERIC_ERROR_RESPONSE      no DmaExtension or one outside its rules, no data pointer, memory left the response
//                                   incomplete
// A partner that breaks the protocol itself is reported with SC_REPORT_ERROR and message type "iommu_tlm".
//
// Calls of one time take effect in a fixed order, so results do not depend on the order in which the kernel runs
// processes.
#pragma once

#include <systemc>
#include <tlm>

#include <memory>
#include <optional>
#include <queue>
#include <tuple>
#include <vector>

#include "sim/tlm/engine.hpp"
#include "sim/tlm/iommu_unit.hpp"

namespace iommu {

// Who issues a DMA. Mandatory on every payload, owned by the device.
//   requester  set by the device, not changed: PCI bus/device/function
//   pasid      set by the device, not changed: 20 bits; absent: a request without PASID
//   type       set by the device, not changed: Untranslated, or Translated (the address is a host address already)
struct DmaExtension : tlm::tlm_extension<DmaExtension> {
  RequesterId requester;
  std::optional<Pasid> pasid;
  AddressType type = AddressType::Untranslated;

  [[nodiscard]] tlm::tlm_extension_base* clone() const override;
  void copy_from(const tlm::tlm_extension_base& other) override;
};

class IommuTlm final : public sc_core::sc_module,
                       private tlm::tlm_fw_transport_if<>,
                       private tlm::tlm_bw_transport_if<> {
 public:
  tlm::tlm_target_socket<> target;
  tlm::tlm_initiator_socket<> initiator;

  // The engine's calendar is the unit's; from now on the engine takes every step at the kernel's time. `at_once` is the
  // memory that the unit's walkers read, without time: for b_transport and transport_dbg. `outstanding`, 1 …:
  // transactions between END_REQ and END_RESP.
  IommuTlm(const sc_core::sc_module_name& name, Engine& engine, IommuUnit& unit, MemoryPort& at_once,
           std::uint32_t outstanding = 64);
  ~IommuTlm() override;

  // Transactions accepted and not yet answered with END_RESP.
  [[nodiscard]] std::size_t in_flight() const { return in_flight_; }
  // Payloads towards memory that memory or the IOMMU still hold.
  [[nodiscard]] std::size_t payloads_in_use() const;

 private:
  struct Transaction;
  class Manager;
  // What a call from outside means, in the order in which calls of one time take effect.
  enum class Event : std::uint8_t { MemoryTook, MemoryAnswered, DeviceTookResponse, DeviceRequests };
  struct Incoming {
    Picoseconds when;
    Event event = Event::MemoryTook;
    std::uint64_t sequence = 0;  // of the transaction
    Transaction* transaction = nullptr;
    // The greatest of a queue is its earliest.
    bool operator<(const Incoming& other) const {
      return std::tie(when, event, sequence) > std::tie(other.when, other.event, other.sequence);
    }
  };

  // Towards the device.
  tlm::tlm_sync_enum nb_transport_fw(tlm::tlm_generic_payload& payload, tlm::tlm_phase& phase,
                                     sc_core::sc_time& delay) override;
  void b_transport(tlm::tlm_generic_payload& payload, sc_core::sc_time& delay) override;
  bool get_direct_mem_ptr(tlm::tlm_generic_payload& payload, tlm::tlm_dmi& dmi) override;
  unsigned int transport_dbg(tlm::tlm_generic_payload& payload) override;
  // Towards memory.
  tlm::tlm_sync_enum nb_transport_bw(tlm::tlm_generic_payload& payload, tlm::tlm_phase& phase,
                                     sc_core::sc_time& delay) override;
  void invalidate_direct_mem_ptr(sc_dt::uint64, sc_dt::uint64) override {}

  void post(Event event, Transaction& transaction, const sc_core::sc_time& delay);
  void take_in(std::uint64_t);
  void handle(Event event, Transaction& transaction);

  // The way of a transaction, in order.
  void begin(tlm::tlm_generic_payload& payload, const sc_core::sc_time& delay);
  void accept(std::uint64_t);
  void translated(std::uint64_t transaction);
  void forward_next();
  void memory_replied(Transaction& transaction, tlm::tlm_sync_enum reply, const tlm::tlm_phase& phase,
                      const sc_core::sc_time& delay);
  void request_taken(Transaction& transaction);
  void answered(Transaction& transaction);
  void end_memory_response(Transaction& transaction);
  void queue_response(Transaction& transaction, tlm::tlm_response_status status);
  void respond_next();
  void response_taken(Transaction& transaction);

  Transaction& acquire();
  [[nodiscard]] TranslationResponse translate_at_once(const TranslationRequest& request);

  Engine& engine_;
  IommuUnit& unit_;
  MemoryPort& at_once_;
  std::uint32_t outstanding_;
  std::unique_ptr<Manager> manager_;
  std::vector<std::unique_ptr<Transaction>> transactions_;
  std::vector<Transaction*> free_;
  std::uint64_t next_sequence_ = 0;
  std::priority_queue<Incoming> incoming_;
  Transaction* requesting_ = nullptr;  // between the device's BEGIN_REQ and our END_REQ
  bool waits_for_space_ = false;
  Fifo<Transaction*> to_forward_;      // translated, waiting for the request phase towards memory
  Transaction* forwarding_ = nullptr;  // between our BEGIN_REQ and memory's END_REQ
  Fifo<Transaction*> to_answer_;       // waiting for the response phase towards the device
  Transaction* answering_ = nullptr;   // between our BEGIN_RESP and the device's END_RESP
  std::size_t in_flight_ = 0;
};

}  // namespace iommu
