// SPDX-License-Identifier: Apache-2.0
// The TLM-2.0 boundary: an IOMMU that a foreign SystemC platform binds between a device and memory.
//
//   device.initiator ──► IommuTlm.target    generic payload, address = IOVA, with a DmaExtension
//                        IommuTlm.initiator ──► memory     a payload of its own, address = host address
//
// Base protocol, four phases, on both sides: BEGIN_REQ is answered with END_REQ as soon as the IOMMU has room for the
// request (so a device that must wait is held by the request exclusion rule), BEGIN_RESP follows when memory has
// answered or the IOMMU has refused (TLM_ADDRESS_ERROR_RESPONSE), one response at a time until its END_RESP. A request
// outside the interface's rules is answered with TLM_COMMAND_ERROR_RESPONSE, TLM_BURST_ERROR_RESPONSE or
// TLM_GENERIC_ERROR_RESPONSE. Payloads need a memory manager, as the base protocol demands of nb_transport; data and
// byte enables are the device's own and are passed on by pointer. b_transport translates at once, without time: use it
// for loosely timed software models only.
#pragma once

#include <systemc>
#include <tlm>

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "sim/tlm/engine.hpp"
#include "sim/tlm/iommu_unit.hpp"

namespace iommu {

// Who issues a DMA. Mandatory on every payload; missing: TLM_GENERIC_ERROR_RESPONSE.
//   requester  set by the device, not changed: PCI bus/device/function
//   pasid      set by the device, not changed; absent: a request without PASID
//   type       set by the device, not changed: Untranslated, or Translated (the address is a host address already)
struct DmaExtension : tlm::tlm_extension<DmaExtension> {
  RequesterId requester;
  std::optional<Pasid> pasid;
  AddressType type = AddressType::Untranslated;

  tlm::tlm_extension_base* clone() const override;
  void copy_from(const tlm::tlm_extension_base& other) override;
};

class IommuTlm final : public sc_core::sc_module,
                       private tlm::tlm_fw_transport_if<>,
                       private tlm::tlm_bw_transport_if<> {
 public:
  tlm::tlm_target_socket<> target;
  tlm::tlm_initiator_socket<> initiator;

  // The engine's calendar is the unit's. From now on the engine takes every step at the kernel's time.
  IommuTlm(const sc_core::sc_module_name& name, Engine& engine, IommuUnit& unit);
  ~IommuTlm() override;

  // Transactions accepted and not yet answered with END_RESP.
  [[nodiscard]] std::size_t in_flight() const { return in_flight_; }

 private:
  struct Transaction;
  class Manager;

  // Towards the device.
  tlm::tlm_sync_enum nb_transport_fw(tlm::tlm_generic_payload& payload, tlm::tlm_phase& phase,
                                     sc_core::sc_time& delay) override;
  void b_transport(tlm::tlm_generic_payload& payload, sc_core::sc_time& delay) override;
  bool get_direct_mem_ptr(tlm::tlm_generic_payload&, tlm::tlm_dmi&) override { return false; }
  unsigned int transport_dbg(tlm::tlm_generic_payload& payload) override;
  // Towards memory.
  tlm::tlm_sync_enum nb_transport_bw(tlm::tlm_generic_payload& payload, tlm::tlm_phase& phase,
                                     sc_core::sc_time& delay) override;
  void invalidate_direct_mem_ptr(sc_dt::uint64, sc_dt::uint64) override {}

  void arrive(std::uint64_t transaction);
  void accept(Transaction& transaction);
  void accept_waiting(std::uint64_t);
  void translated(std::uint64_t transaction);
  void forward_next();
  void request_ended(std::uint64_t);
  void memory_responds(std::uint64_t transaction);
  void end_memory_response(Transaction& transaction);
  void queue_response(Transaction& transaction);
  void respond_next();
  void response_ended(std::uint64_t transaction);

  Transaction& acquire();
  void recycle(Transaction& transaction);
  [[nodiscard]] static tlm::tlm_response_status check(const tlm::tlm_generic_payload& payload);
  [[nodiscard]] static TranslationRequest request_of(const tlm::tlm_generic_payload& payload);

  Engine& engine_;
  IommuUnit& unit_;
  std::unique_ptr<Manager> manager_;
  std::vector<std::unique_ptr<Transaction>> transactions_;
  std::vector<Transaction*> free_;
  Transaction* accepting_ = nullptr;     // between the device's BEGIN_REQ and our END_REQ
  std::deque<Transaction*> to_forward_;  // translated, waiting for the request phase towards memory
  Transaction* forwarding_ = nullptr;    // between our BEGIN_REQ and memory's END_REQ
  std::deque<Transaction*> to_answer_;
  Transaction* answering_ = nullptr;  // between our BEGIN_RESP and the device's END_RESP
  std::size_t in_flight_ = 0;
};

}  // namespace iommu
