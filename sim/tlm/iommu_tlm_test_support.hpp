// SPDX-License-Identifier: Apache-2.0
// Foreign SystemC modules around an IommuTlm: an approximately timed device and memory that use every transition which
// the base protocol leaves to them, and a platform that puts a checker on both sides.
#pragma once

#include <systemc>
#include <tlm>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "sim/base/rng.hpp"
#include "sim/tlm/iommu_tlm.hpp"
#include "sim/tlm/test_machine.hpp"
#include "sim/tlm/tlm_protocol_checker_test_support.hpp"

namespace iommu::testing_core {

// How a device ends a response.
enum class ResponseEnd : std::uint8_t { Later, LaterAnnotated, Updated, Completed };
// How a memory moves a request on.
enum class MemoryReply : std::uint8_t {
  FourPhases,
  NoEndRequest,
  UpdatedEndRequest,
  UpdatedResponse,
  Completed,
  ResponseBeforeEndRequest,  // breaks the protocol: BEGIN_RESP takes effect before the annotated END_REQ
};

// One DMA of the device: what it asks and what came of it.
struct Dma {
  std::uint64_t address = 0;
  std::vector<unsigned char> data = std::vector<unsigned char>(4);
  std::vector<unsigned char> enables;
  tlm::tlm_command command = tlm::TLM_READ_COMMAND;
  RequesterId requester = Machine::kNic;
  bool has_extension = true;
  AddressType type = AddressType::Untranslated;
  std::optional<Pasid> pasid{};
  unsigned streaming_width = ~0U;
  Picoseconds gap{};    // before the request
  Picoseconds delay{};  // annotated to it
  ResponseEnd end = ResponseEnd::Completed;

  tlm::tlm_response_status status = tlm::TLM_INCOMPLETE_RESPONSE;
  sc_core::sc_time requested;
  sc_core::sc_time taken;
  sc_core::sc_time answered;

  void fill(tlm::tlm_generic_payload& payload) {
    payload.set_command(command);
    payload.set_address(address);
    payload.set_data_ptr(data.data());
    payload.set_data_length(static_cast<unsigned>(data.size()));
    payload.set_streaming_width(std::min(streaming_width, static_cast<unsigned>(data.size())));
    payload.set_byte_enable_ptr(enables.empty() ? nullptr : enables.data());
    payload.set_byte_enable_length(static_cast<unsigned>(enables.size()));
    payload.set_response_status(tlm::TLM_INCOMPLETE_RESPONSE);
    payload.set_dmi_allowed(false);
    if (!has_extension) return;
    auto extension = std::make_unique<DmaExtension>();
    extension->requester = requester;
    extension->pasid = pasid;
    extension->type = type;
    payload.set_extension(extension.release());  // destroyed with the payload
  }
};

inline sc_core::sc_time sc(Picoseconds t) { return sc_core::sc_time(static_cast<double>(t.value()), sc_core::SC_PS); }
// Lets `deltas` delta cycles pass: whoever is to run later at this time.
inline void yield_for(unsigned deltas) {
  for (unsigned i = 0; i < deltas; ++i) sc_core::wait(sc_core::SC_ZERO_TIME);
}

// Counts what it gives out and gets back.
class CountingManager final : public tlm::tlm_mm_interface {
 public:
  tlm::tlm_generic_payload& make() {
    ++live_;
    return *std::make_unique<tlm::tlm_generic_payload>(this).release();
  }
  void free(tlm::tlm_generic_payload* payload) override {
    --live_;
    const std::unique_ptr<tlm::tlm_generic_payload> owner(payload);
  }
  [[nodiscard]] int live() const { return live_; }

 private:
  int live_ = 0;
};

// Whether this process has run SC_THREADs, as foreign modules do: LeakSanitizer cannot look at their stacks.
inline bool has_threads = false;

class Device final : public sc_core::sc_module, private tlm::tlm_bw_transport_if<> {
 public:
  tlm::tlm_initiator_socket<> initiator;
  std::vector<Dma> jobs;
  unsigned request_deltas = 0;   // the process that requests lets so many delta cycles pass before it acts
  unsigned response_deltas = 0;  // the one that ends responses

  explicit Device(const sc_core::sc_module_name& name) : sc_module(name), initiator("initiator") {
    has_threads = true;
    initiator.bind(*this);
    sc_core::sc_spawn([this] { request(); }, "request");
    sc_core::sc_spawn([this] { end_responses(); }, "end_responses");
  }
  [[nodiscard]] int live_payloads() const { return manager_.live(); }
  // Without the protocol: a payload as request() would make it.
  tlm::tlm_generic_payload& make(Dma& job) {
    tlm::tlm_generic_payload& payload = manager_.make();
    job.fill(payload);
    payload.acquire();
    job_of_[&payload] = &job;
    return payload;
  }
  void drop(tlm::tlm_generic_payload& payload) {
    job_of_.erase(&payload);
    payload.release();
  }

 private:
  void request() {
    for (Dma& job : jobs) {
      sc_core::wait(sc(job.gap));
      while (is_requesting_) sc_core::wait(request_ended_);
      yield_for(request_deltas);
      tlm::tlm_generic_payload& payload = make(job);
      is_requesting_ = true;
      tlm::tlm_phase phase = tlm::BEGIN_REQ;
      sc_core::sc_time delay = sc(job.delay);
      job.requested = sc_core::sc_time_stamp() + delay;
      sc_assert(initiator->nb_transport_fw(payload, phase, delay) == tlm::TLM_ACCEPTED);
    }
  }
  tlm::tlm_sync_enum nb_transport_bw(tlm::tlm_generic_payload& payload, tlm::tlm_phase& phase,
                                     sc_core::sc_time& delay) override {
    Dma& job = *job_of_.at(&payload);
    if (phase == tlm::END_REQ) {
      job.taken = sc_core::sc_time_stamp() + delay;
      is_requesting_ = false;
      request_ended_.notify(delay);
      return tlm::TLM_ACCEPTED;
    }
    job.answered = sc_core::sc_time_stamp() + delay;
    job.status = payload.get_response_status();
    switch (job.end) {
      case ResponseEnd::Later:
      case ResponseEnd::LaterAnnotated:
        answered_ = &payload;
        response_.notify(delay + sc(10_ns));
        return tlm::TLM_ACCEPTED;
      case ResponseEnd::Updated:
        phase = tlm::END_RESP;
        delay += sc(5_ns);
        drop(payload);
        return tlm::TLM_UPDATED;
      case ResponseEnd::Completed:
        drop(payload);
        return tlm::TLM_COMPLETED;
    }
    return tlm::TLM_ACCEPTED;
  }
  void end_responses() {
    while (true) {
      sc_core::wait(response_);
      yield_for(response_deltas);
      tlm::tlm_generic_payload& payload = *std::exchange(answered_, nullptr);
      tlm::tlm_phase phase = tlm::END_RESP;
      sc_core::sc_time delay = job_of_.at(&payload)->end == ResponseEnd::Later ? sc_core::SC_ZERO_TIME : sc(15_ns);
      (void)initiator->nb_transport_fw(payload, phase, delay);
      drop(payload);
    }
  }
  void invalidate_direct_mem_ptr(sc_dt::uint64, sc_dt::uint64) override {}

  CountingManager manager_;
  std::map<tlm::tlm_generic_payload*, Dma*> job_of_;
  bool is_requesting_ = false;
  sc_core::sc_event request_ended_;
  sc_core::sc_event response_;
  tlm::tlm_generic_payload* answered_ = nullptr;
};

class Memory final : public sc_core::sc_module, private tlm::tlm_fw_transport_if<> {
 public:
  tlm::tlm_target_socket<> target;
  std::vector<MemoryReply> replies{MemoryReply::FourPhases};  // taken in turn
  Picoseconds request_time = 10_ns;                           // BEGIN_REQ to END_REQ
  Picoseconds latency = 40_ns;                                // END_REQ to BEGIN_RESP
  std::uint64_t latency_steps = 1;                            // the latency is drawn from 1 … so many times `latency`
  std::uint64_t size = 1ULL << 40;                            // beyond it: TLM_ADDRESS_ERROR_RESPONSE
  unsigned deltas = 0;

  Memory(const sc_core::sc_module_name& name, std::uint64_t seed) : sc_module(name), target("target"), rng_(seed) {
    target.bind(*this);
    sc_core::sc_spawn([this] { act(); }, "act");
  }
  // What a byte holds until it is written.
  static unsigned char pattern(std::uint64_t address) {
    return static_cast<unsigned char>((address >> 12) * 31 + address);
  }
  [[nodiscard]] unsigned char& byte(std::uint64_t address) {
    return bytes_.try_emplace(address, pattern(address)).first->second;
  }
  [[nodiscard]] std::uint64_t served() const { return served_; }

 private:
  enum class Action : std::uint8_t { EndRequest, Respond };
  using Due = std::tuple<sc_core::sc_time, std::uint64_t, Action, tlm::tlm_generic_payload*>;

  tlm::tlm_sync_enum nb_transport_fw(tlm::tlm_generic_payload& payload, tlm::tlm_phase& phase,
                                     sc_core::sc_time& delay) override {
    if (phase == tlm::END_RESP) {
      end_response(payload, delay);
      return tlm::TLM_COMPLETED;
    }
    MemoryReply reply = replies[sequence_ % replies.size()];
    const sc_core::sc_time service = sc(latency) * static_cast<double>(1 + rng_.below(latency_steps));
    if (reply == MemoryReply::UpdatedResponse && (responding_ != nullptr || !due_.empty()))
      reply = MemoryReply::FourPhases;  // another response may come first
    payload.acquire();
    ++sequence_;
    switch (reply) {
      case MemoryReply::FourPhases:
        schedule(delay + sc(request_time), Action::EndRequest, payload);
        schedule(delay + sc(request_time) + service, Action::Respond, payload);
        return tlm::TLM_ACCEPTED;
      case MemoryReply::NoEndRequest:
        schedule(delay + service, Action::Respond, payload);
        return tlm::TLM_ACCEPTED;
      case MemoryReply::UpdatedEndRequest:
        phase = tlm::END_REQ;
        delay += sc(request_time);
        schedule(delay + service, Action::Respond, payload);
        return tlm::TLM_UPDATED;
      case MemoryReply::ResponseBeforeEndRequest:
        phase = tlm::END_REQ;
        schedule(delay, Action::Respond, payload);
        delay += sc(request_time);
        return tlm::TLM_UPDATED;
      case MemoryReply::UpdatedResponse:
        phase = tlm::BEGIN_RESP;
        delay += service;
        serve(payload);
        responding_ = &payload;
        return tlm::TLM_UPDATED;
      case MemoryReply::Completed:
        delay += service;
        serve(payload);
        payload.release();
        return tlm::TLM_COMPLETED;
    }
    return tlm::TLM_ACCEPTED;
  }
  void schedule(const sc_core::sc_time& after, Action action, tlm::tlm_generic_payload& payload) {
    due_.emplace(sc_core::sc_time_stamp() + after, sequence_, action, &payload);
    wake_.notify(sc_core::SC_ZERO_TIME);
  }
  // Does what is due, in order of time and arrival, whoever else runs at that time.
  void act() {
    while (true) {
      if (due_.empty() || (is_blocked() && std::get<Action>(*due_.begin()) == Action::Respond)) {
        sc_core::wait(wake_);
        continue;
      }
      const sc_core::sc_time when = std::get<sc_core::sc_time>(*due_.begin());
      if (when > sc_core::sc_time_stamp()) {
        sc_core::wait(when - sc_core::sc_time_stamp(), wake_);
        continue;
      }
      yield_for(deltas);
      const auto [time, sequence, action, payload] = *due_.begin();
      due_.erase(due_.begin());
      if (action == Action::EndRequest)
        end_request(*payload);
      else
        respond(*payload);
    }
  }
  [[nodiscard]] bool is_blocked() const { return responding_ != nullptr; }
  void end_request(tlm::tlm_generic_payload& payload) {
    tlm::tlm_phase phase = tlm::END_REQ;
    sc_core::sc_time delay = sc_core::SC_ZERO_TIME;
    sc_assert(target->nb_transport_bw(payload, phase, delay) == tlm::TLM_ACCEPTED);
  }
  void respond(tlm::tlm_generic_payload& payload) {
    serve(payload);
    responding_ = &payload;
    tlm::tlm_phase phase = tlm::BEGIN_RESP;
    sc_core::sc_time delay = sc_core::SC_ZERO_TIME;
    if (target->nb_transport_bw(payload, phase, delay) != tlm::TLM_ACCEPTED) end_response(payload, delay);
  }
  void end_response(tlm::tlm_generic_payload& payload, const sc_core::sc_time&) {
    sc_assert(responding_ == &payload);
    responding_ = nullptr;
    payload.release();
    wake_.notify(sc_core::SC_ZERO_TIME);
  }
  void serve(tlm::tlm_generic_payload& payload) {
    ++served_;
    if (payload.get_address() >= size) return payload.set_response_status(tlm::TLM_ADDRESS_ERROR_RESPONSE);
    const unsigned char* enables = payload.get_byte_enable_ptr();
    for (unsigned i = 0; i < payload.get_data_length(); ++i) {
      if (enables != nullptr && enables[i % payload.get_byte_enable_length()] != TLM_BYTE_ENABLED) continue;
      unsigned char& stored = byte(payload.get_address() + i);
      if (payload.is_write())
        stored = payload.get_data_ptr()[i];
      else
        payload.get_data_ptr()[i] = stored;
    }
    payload.set_response_status(tlm::TLM_OK_RESPONSE);
  }
  void b_transport(tlm::tlm_generic_payload& payload, sc_core::sc_time& delay) override {
    serve(payload);
    delay += sc(latency);
  }
  unsigned transport_dbg(tlm::tlm_generic_payload& payload) override {
    serve(payload);
    return payload.is_response_ok() ? payload.get_data_length() : 0;
  }
  bool get_direct_mem_ptr(tlm::tlm_generic_payload&, tlm::tlm_dmi&) override { return false; }

  Rng rng_;
  std::map<std::uint64_t, unsigned char> bytes_;
  std::set<Due> due_;
  std::uint64_t sequence_ = 0;
  std::uint64_t served_ = 0;
  tlm::tlm_generic_payload* responding_ = nullptr;
  sc_core::sc_event wake_;
};

// Device, IOMMU and memory, a checker on each side. Tables lie in host memory, DMA goes to the foreign one.
struct Platform {
  explicit Platform(const IommuParameters& parameters = {}, std::uint32_t outstanding = 64, std::uint64_t seed = 1)
      : memory("memory", seed), device("device") {
    unit = std::make_unique<IommuUnit>(engine.calendar(), core, table_memory.add_port("iommu"), parameters,
                                       MmioParameters{}, 1);
    iommu = std::make_unique<IommuTlm>("iommu", engine, *unit, at_once, outstanding);
    device.initiator.bind(upstream.target);
    upstream.initiator.bind(iommu->target);
    iommu->initiator.bind(downstream.target);
    downstream.initiator.bind(memory.target);
    root = tables.allocate();
    core.ring = tables.allocate();
    tables.attach(core, Machine::kNic, ContextKind::Stage2, Hpa(), root, Machine::kDomain);
  }
  Platform(const Platform&) = delete;
  Platform& operator=(const Platform&) = delete;
  ~Platform() { engine.calendar().clear(); }

  [[nodiscard]] std::vector<std::string> violations() const {
    std::vector<std::string> all;
    for (const auto& v : upstream.violations()) all.push_back("device side, " + v);
    for (const auto& v : downstream.violations()) all.push_back("memory side, " + v);
    return all;
  }
  // Nothing is left open or held on any side.
  [[nodiscard]] bool is_at_rest() const {
    return upstream.open() == 0 && downstream.open() == 0 && iommu->in_flight() == 0 && iommu->payloads_in_use() == 0 &&
           device.live_payloads() == 0 && unit->in_flight().in_flight() == 0;
  }

  Engine engine{"engine"};
  HostMemory host{64_GiB};
  MemorySystem table_memory{engine.calendar(), host, flat_memory()};
  ImmediateMemoryPort at_once{host};
  Core core;
  Tables tables{host};
  Hpa root;
  TlmProtocolChecker upstream{"upstream"};
  TlmProtocolChecker downstream{"downstream"};
  Memory memory;
  Device device;
  std::unique_ptr<IommuUnit> unit;
  std::unique_ptr<IommuTlm> iommu;
};

}  // namespace iommu::testing_core
