// SPDX-License-Identifier: Apache-2.0
// A checker of the TLM-2.0 base protocol [IEEE 1666-2011 §15.2], for tests: bound between an initiator and a target, it
// passes every call on unchanged and writes down each rule that is broken, and by which side's call.
//
//   initiator ──► checker.target   checker.initiator ──► target
//
// Checked: request and response exclusion, order and direction of phases, permitted returns, annotated times that never
// go backwards, memory manager and reference counts, response status, attributes and data that a target may not change.
// One thing is stricter than the standard, which lets an interconnect rewrite the address on its way: here it stays.
#pragma once

#include <systemc>
#include <tlm>

#include <map>
#include <string>
#include <vector>

namespace iommu {

class TlmProtocolChecker final : public sc_core::sc_module,
                                 private tlm::tlm_fw_transport_if<>,
                                 private tlm::tlm_bw_transport_if<> {
 public:
  using Payload = tlm::tlm_generic_payload;
  // A phase as it took effect, annotated time included.
  struct Step {
    const Payload* payload = nullptr;
    tlm::tlm_phase phase;
    sc_core::sc_time time;
  };

  tlm::tlm_target_socket<> target;
  tlm::tlm_initiator_socket<> initiator;

  explicit TlmProtocolChecker(const sc_core::sc_module_name& name)
      : sc_module(name), target("target"), initiator("initiator") {
    target.bind(*this);
    initiator.bind(*this);
  }

  [[nodiscard]] const std::vector<std::string>& violations() const { return violations_; }
  // Transactions begun and not over.
  [[nodiscard]] std::size_t open() const { return open_.size(); }
  [[nodiscard]] const std::vector<Step>& steps() const { return steps_; }
  [[nodiscard]] std::uint64_t blocking_calls() const { return blocking_calls_; }

 private:
  enum class Side : std::uint8_t { Initiator, Target };
  struct Snapshot {
    explicit Snapshot(const Payload& p)
        : command(p.get_command()),
          address(p.get_address()),
          data(p.get_data_ptr()),
          length(p.get_data_length()),
          streaming_width(p.get_streaming_width()),
          byte_enable(p.get_byte_enable_ptr()),
          byte_enable_length(p.get_byte_enable_length()) {
      if (p.is_write() && data != nullptr) written.assign(data, data + length);
      if (byte_enable != nullptr) enables.assign(byte_enable, byte_enable + byte_enable_length);
    }
    friend bool operator==(const Snapshot&, const Snapshot&) = default;
    tlm::tlm_command command;
    sc_dt::uint64 address;
    unsigned char* data;
    unsigned length;
    unsigned streaming_width;
    unsigned char* byte_enable;
    unsigned byte_enable_length;
    std::vector<unsigned char> written;
    std::vector<unsigned char> enables;
  };
  struct Open {
    Snapshot at_begin;
    tlm::tlm_phase phase;
    sc_core::sc_time time;
    tlm::tlm_response_status status = tlm::TLM_INCOMPLETE_RESPONSE;
  };

  void violation(const std::string& what) { violations_.push_back(sc_core::sc_time_stamp().to_string() + ": " + what); }
  void expect(bool holds, const char* rule) {
    if (!holds) violation(rule);
  }

  tlm::tlm_sync_enum nb_transport_fw(Payload& payload, tlm::tlm_phase& phase, sc_core::sc_time& delay) override {
    return pass_on(payload, phase, delay, Side::Initiator,
                   [&] { return initiator->nb_transport_fw(payload, phase, delay); });
  }
  tlm::tlm_sync_enum nb_transport_bw(Payload& payload, tlm::tlm_phase& phase, sc_core::sc_time& delay) override {
    return pass_on(payload, phase, delay, Side::Target, [&] { return target->nb_transport_bw(payload, phase, delay); });
  }
  template <class Call>
  tlm::tlm_sync_enum pass_on(Payload& payload, tlm::tlm_phase& phase, sc_core::sc_time& delay, Side caller,
                             Call&& call) {
    expect(payload.has_mm(), "nb_transport without a memory manager");
    expect(!payload.has_mm() || payload.get_ref_count() > 0, "nb_transport of a payload that nobody has acquired");
    const tlm::tlm_phase sent = phase;
    const sc_core::sc_time sent_delay = delay;
    move_on(payload, phase, delay, caller);
    const tlm::tlm_sync_enum reply = call();
    const Side callee = caller == Side::Initiator ? Side::Target : Side::Initiator;
    expect(delay >= sent_delay, "the callee shortens the annotated delay");
    switch (reply) {
      case tlm::TLM_ACCEPTED:
        expect(phase == sent && delay == sent_delay, "TLM_ACCEPTED with phase or delay changed");
        break;
      case tlm::TLM_UPDATED:
        expect(phase != sent, "TLM_UPDATED with the phase unchanged");
        move_on(payload, phase, delay, callee);
        break;
      case tlm::TLM_COMPLETED:
        complete(payload, sent, delay);
        break;
    }
    return reply;
  }

  // One side takes the transaction to `phase`.
  void move_on(Payload& payload, const tlm::tlm_phase& phase, const sc_core::sc_time& delay, Side side) {
    const bool is_initiators = phase == tlm::BEGIN_REQ || phase == tlm::END_RESP;
    if (!is_initiators && phase != tlm::END_REQ && phase != tlm::BEGIN_RESP) return violation("unknown phase");
    expect(is_initiators == (side == Side::Initiator), "phase sent by the wrong side");
    if (phase == tlm::BEGIN_REQ) return open_request(payload, delay);
    const auto found = open_.find(&payload);
    if (found == open_.end()) return violation("phase of a transaction that is not open");
    Open& open = found->second;
    check_contents(payload, open);
    note(payload, open, phase, delay);
    if (phase == tlm::END_REQ) {
      expect(open.phase == tlm::BEGIN_REQ, "END_REQ does not follow BEGIN_REQ");
      end_request(payload);
    } else if (phase == tlm::BEGIN_RESP) {
      expect(open.phase == tlm::BEGIN_REQ || open.phase == tlm::END_REQ, "BEGIN_RESP does not follow the request");
      expect(responding_ == nullptr, "response exclusion: BEGIN_RESP before the END_RESP of another transaction");
      end_request(payload);
      responding_ = &payload;
      check_response(payload, open);
    } else {
      expect(open.phase == tlm::BEGIN_RESP, "END_RESP does not follow BEGIN_RESP");
      close(payload);
      return;
    }
    open.phase = phase;
  }
  void open_request(Payload& payload, const sc_core::sc_time& delay) {
    expect(requesting_ == nullptr, "request exclusion: BEGIN_REQ before the END_REQ of another transaction");
    expect(!open_.contains(&payload), "BEGIN_REQ of a transaction that is not over");
    expect(payload.get_response_status() == tlm::TLM_INCOMPLETE_RESPONSE, "BEGIN_REQ with a response status");
    requesting_ = &payload;
    open_.erase(&payload);
    Open& open = open_.emplace(&payload, Open{Snapshot(payload), tlm::BEGIN_REQ, sc_core::SC_ZERO_TIME}).first->second;
    note(payload, open, tlm::BEGIN_REQ, delay);
  }
  void end_request(const Payload& payload) {
    if (requesting_ == &payload) requesting_ = nullptr;
  }
  void close(Payload& payload) {
    end_request(payload);
    if (responding_ == &payload) responding_ = nullptr;
    open_.erase(&payload);
  }
  void note(const Payload& payload, Open& open, const tlm::tlm_phase& phase, const sc_core::sc_time& delay) {
    const sc_core::sc_time time = sc_core::sc_time_stamp() + delay;
    expect(time >= open.time, "annotated time goes backwards");
    open.time = time;
    steps_.push_back({&payload, phase, time});
  }
  void check_contents(const Payload& payload, const Open& open) {
    expect(Snapshot(payload) == open.at_begin, "attributes, write data or byte enables have changed");
    if (open.phase == tlm::BEGIN_RESP)
      expect(payload.get_response_status() == open.status, "the response status changes after BEGIN_RESP");
  }
  void check_response(const Payload& payload, Open& open) {
    open.status = payload.get_response_status();
    expect(open.status != tlm::TLM_INCOMPLETE_RESPONSE, "a response without a response status");
  }
  // The callee has returned TLM_COMPLETED to `phase`.
  void complete(Payload& payload, const tlm::tlm_phase& phase, const sc_core::sc_time& delay) {
    if (phase == tlm::END_RESP) return;  // it is over already
    expect(phase != tlm::END_REQ, "TLM_COMPLETED returned to END_REQ");
    const auto found = open_.find(&payload);
    if (found == open_.end()) return violation("TLM_COMPLETED of a transaction that is not open");
    check_contents(payload, found->second);
    if (phase == tlm::BEGIN_REQ) {
      check_response(payload, found->second);
      note(payload, found->second, tlm::BEGIN_RESP, delay);
    }
    note(payload, found->second, tlm::END_RESP, delay);
    close(payload);
  }

  void b_transport(Payload& payload, sc_core::sc_time& delay) override {
    ++blocking_calls_;
    const Snapshot before(payload);
    const sc_core::sc_time end = sc_core::sc_time_stamp() + delay;
    expect(payload.get_response_status() == tlm::TLM_INCOMPLETE_RESPONSE, "b_transport with a response status");
    initiator->b_transport(payload, delay);
    expect(Snapshot(payload) == before, "b_transport changes attributes, write data or byte enables");
    expect(payload.get_response_status() != tlm::TLM_INCOMPLETE_RESPONSE, "b_transport leaves no response status");
    expect(sc_core::sc_time_stamp() + delay >= end, "b_transport goes back in time");
  }
  unsigned transport_dbg(Payload& payload) override {
    const Snapshot before(payload);
    const unsigned bytes = initiator->transport_dbg(payload);
    expect(Snapshot(payload) == before, "transport_dbg changes attributes or write data");
    expect(bytes <= payload.get_data_length(), "transport_dbg returns more than was asked for");
    return bytes;
  }
  bool get_direct_mem_ptr(Payload& payload, tlm::tlm_dmi& dmi) override {
    return initiator->get_direct_mem_ptr(payload, dmi);
  }
  void invalidate_direct_mem_ptr(sc_dt::uint64 first, sc_dt::uint64 last) override {
    target->invalidate_direct_mem_ptr(first, last);
  }

  std::map<const Payload*, Open> open_;
  const Payload* requesting_ = nullptr;
  const Payload* responding_ = nullptr;
  std::vector<Step> steps_;
  std::vector<std::string> violations_;
  std::uint64_t blocking_calls_ = 0;
};

}  // namespace iommu
