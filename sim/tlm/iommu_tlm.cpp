// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/iommu_tlm.hpp"

#include <algorithm>
#include <span>
#include <utility>

namespace iommu {

namespace {

constexpr const char* kReport = "iommu_tlm";
constexpr std::uint32_t kPasidBits = 20;

void report(const char* message) { SC_REPORT_ERROR(kReport, message); }

// What the generic payload and its extension must look like before there is anything to translate.
tlm::tlm_response_status check(const tlm::tlm_generic_payload& payload) {
  const auto* extension = payload.get_extension<DmaExtension>();
  if (extension == nullptr || payload.get_data_ptr() == nullptr) return tlm::TLM_GENERIC_ERROR_RESPONSE;
  if (extension->type != AddressType::Untranslated && extension->type != AddressType::Translated)
    return tlm::TLM_GENERIC_ERROR_RESPONSE;
  if (extension->pasid && extension->pasid->value() >> kPasidBits != 0) return tlm::TLM_GENERIC_ERROR_RESPONSE;
  if (!payload.is_read() && !payload.is_write()) return tlm::TLM_COMMAND_ERROR_RESPONSE;
  const std::uint64_t length = payload.get_data_length();
  if (length == 0 || Iova(payload.get_address()).offset_in(kPageLg2) + length > kPageSize.value() ||
      payload.get_streaming_width() < length)
    return tlm::TLM_BURST_ERROR_RESPONSE;
  if (payload.get_byte_enable_ptr() != nullptr && payload.get_byte_enable_length() == 0)
    return tlm::TLM_BYTE_ENABLE_ERROR_RESPONSE;
  return tlm::TLM_OK_RESPONSE;
}

TranslationRequest request_of(const tlm::tlm_generic_payload& payload) {
  const auto* extension = payload.get_extension<DmaExtension>();
  return {.requester = extension->requester,
          .pasid = extension->pasid,
          .address = Iova(payload.get_address()),
          .length = Bytes(payload.get_data_length()),
          .access = payload.is_write() ? Access::Write : Access::Read,
          .type = extension->type,
          .privileged = false};
}

// The same transfer at another address.
void copy_transfer(const tlm::tlm_generic_payload& from, Hpa address, tlm::tlm_generic_payload& to) {
  to.set_command(from.get_command());
  to.set_address(address.value());
  to.set_data_ptr(from.get_data_ptr());
  to.set_data_length(from.get_data_length());
  to.set_streaming_width(from.get_streaming_width());
  to.set_byte_enable_ptr(from.get_byte_enable_ptr());
  to.set_byte_enable_length(from.get_byte_enable_length());
  to.set_dmi_allowed(false);
  to.set_response_status(tlm::TLM_INCOMPLETE_RESPONSE);
}

void read_as_zero(tlm::tlm_generic_payload& payload) {
  if (!payload.is_read()) return;
  const std::span data(payload.get_data_ptr(), payload.get_data_length());
  const std::span enables(payload.get_byte_enable_ptr(), payload.get_byte_enable_length());
  for (std::size_t i = 0; i < data.size(); ++i)
    if (enables.data() == nullptr || enables[i % enables.size()] == TLM_BYTE_ENABLED) data[i] = 0;
}

tlm::tlm_response_status refuse(const Fault& fault, tlm::tlm_generic_payload& payload) {
  // There is nobody here to hold a stalled transaction until software resumes it: it is terminated.
  if (fault.termination != Termination::ReadsZero || fault.stall) return tlm::TLM_ADDRESS_ERROR_RESPONSE;
  read_as_zero(payload);
  return tlm::TLM_OK_RESPONSE;
}

tlm::tlm_response_status served(const tlm::tlm_generic_payload& payload) {
  const tlm::tlm_response_status status = payload.get_response_status();
  return status == tlm::TLM_INCOMPLETE_RESPONSE ? tlm::TLM_GENERIC_ERROR_RESPONSE : status;
}

// Memory as a debugger sees it: marks that a walk would leave are dropped.
class PeekPort final : public MemoryPort {
 public:
  explicit PeekPort(MemoryPort& memory) : memory_(memory) {}
  bool begin(MemoryAccess& access) override {
    // A compare-exchange that finds what it expected keeps `expected` as what was found.
    return access.op != MemoryOp::Read || memory_.begin(access);
  }

 private:
  MemoryPort& memory_;
};

}  // namespace

tlm::tlm_extension_base* DmaExtension::clone() const {
  auto copy = std::make_unique<DmaExtension>();
  copy->copy_from(*this);
  return copy.release();
}

void DmaExtension::copy_from(const tlm::tlm_extension_base& other) {
  const auto& from = dynamic_cast<const DmaExtension&>(other);
  requester = from.requester;
  pasid = from.pasid;
  type = from.type;
}

// A transaction from BEGIN_REQ to END_RESP. Its address is the argument of calendar events.
struct IommuTlm::Transaction {
  enum class Memory : std::uint8_t {
    None,
    Requested,     // our BEGIN_REQ
    Taken,         // END_REQ, or BEGIN_RESP in its place, is known
    Answered,      // BEGIN_RESP is known
    AnsweredLong,  // the same, and memory wants an END_RESP
  };
  UnitRequest request;
  tlm::tlm_generic_payload* payload = nullptr;    // the device's
  tlm::tlm_generic_payload* to_memory = nullptr;  // ours
  std::uint64_t sequence = 0;
  Picoseconds taken_at;  // when memory's END_REQ takes effect
  Memory memory = Memory::None;
  bool is_begun = false;           // its BEGIN_REQ has taken effect
  bool is_response_taken = false;  // its END_RESP is known
  tlm::tlm_response_status status = tlm::TLM_INCOMPLETE_RESPONSE;
  InFlightTracker::Ticket ticket = 0;
};

// Payloads towards memory. They live on while memory holds on to them, transactions do not.
class IommuTlm::Manager final : public tlm::tlm_mm_interface {
 public:
  struct Owner final : tlm::tlm_extension<Owner> {
    Transaction* transaction = nullptr;
    [[nodiscard]] tlm::tlm_extension_base* clone() const override { return nullptr; }  // not for copies
    void copy_from(const tlm::tlm_extension_base&) override {}
    void free() override {}  // lives with its payload
  };

  tlm::tlm_generic_payload& acquire(Transaction& transaction) {
    if (free_.empty()) {
      payloads_.push_back(std::make_unique<Payload>(this));
      free_.push_back(&payloads_.back()->payload);
    }
    tlm::tlm_generic_payload& payload = *free_.back();
    free_.pop_back();
    payload.acquire();
    payload.get_extension<Owner>()->transaction = &transaction;
    return payload;
  }
  void release(tlm::tlm_generic_payload& payload) {
    payload.get_extension<Owner>()->transaction = nullptr;
    payload.release();
  }
  // The transaction that a payload coming from memory belongs to; null when it is none of ours or over.
  static Transaction* transaction_of(const tlm::tlm_generic_payload& payload) {
    const auto* owner = payload.get_extension<Owner>();
    return owner != nullptr ? owner->transaction : nullptr;
  }
  void free(tlm::tlm_generic_payload* payload) override {
    payload->reset();  // drops what memory has attached
    free_.push_back(payload);
  }
  [[nodiscard]] std::size_t in_use() const { return payloads_.size() - free_.size(); }

 private:
  struct Payload {
    explicit Payload(Manager* manager) : payload(manager) { payload.set_extension(&owner); }
    Owner owner;
    tlm::tlm_generic_payload payload;
  };
  std::vector<std::unique_ptr<Payload>> payloads_;
  std::vector<tlm::tlm_generic_payload*> free_;
};

IommuTlm::IommuTlm(const sc_core::sc_module_name& name, Engine& engine, IommuUnit& unit, MemoryPort& at_once,
                   std::uint32_t outstanding)
    : sc_core::sc_module(name),
      target("target"),
      initiator("initiator"),
      engine_(engine),
      unit_(unit),
      at_once_(at_once),
      outstanding_(outstanding),
      manager_(std::make_unique<Manager>()) {
  SIM_CHECK(outstanding > 0, "a boundary must allow at least one transaction");
  target.bind(*this);
  initiator.bind(*this);
  engine.require_kernel_time();
}

IommuTlm::~IommuTlm() = default;

std::size_t IommuTlm::payloads_in_use() const { return manager_->in_use(); }

IommuTlm::Transaction& IommuTlm::acquire() {
  if (free_.empty()) {
    transactions_.push_back(std::make_unique<Transaction>());
    free_.push_back(transactions_.back().get());
  }
  Transaction& transaction = *free_.back();
  free_.pop_back();
  transaction = {};
  transaction.sequence = next_sequence_++;
  return transaction;
}

// Calls from outside ------------------------------------------------------------------------------------------------

// Foreign calls only leave a note: what they mean is decided in the calendar, when their annotated time has come.
void IommuTlm::post(Event event, Transaction& transaction, const sc_core::sc_time& delay) {
  Calendar& calendar = engine_.enter();
  Picoseconds when = engine_.from_sc_time(sc_core::sc_time_stamp() + delay);
  if (event == Event::MemoryTook) transaction.taken_at = when;
  if (event == Event::MemoryAnswered) when = std::max(when, transaction.taken_at);
  incoming_.push({when, event, transaction.sequence, &transaction});
  calendar.call_at<&IommuTlm::take_in>(when, this);
}

void IommuTlm::take_in(std::uint64_t) {
  while (!incoming_.empty() && incoming_.top().when <= engine_.calendar().now()) {
    const Incoming next = incoming_.top();
    incoming_.pop();
    handle(next.event, *next.transaction);
  }
}

void IommuTlm::handle(Event event, Transaction& transaction) {
  switch (event) {
    case Event::MemoryTook:
      return request_taken(transaction);
    case Event::MemoryAnswered:
      return answered(transaction);
    case Event::DeviceTookResponse:
      return response_taken(transaction);
    case Event::DeviceRequests:
      transaction.is_begun = true;
      return accept(0);
  }
}

tlm::tlm_sync_enum IommuTlm::nb_transport_fw(tlm::tlm_generic_payload& payload, tlm::tlm_phase& phase,
                                             sc_core::sc_time& delay) {
  if (phase == tlm::BEGIN_REQ) {
    begin(payload, delay);
    return tlm::TLM_ACCEPTED;
  }
  if (phase == tlm::END_RESP) {
    if (answering_ == nullptr || answering_->payload != &payload || answering_->is_response_taken) {
      report("the device sends END_RESP without a response to end");
      return tlm::TLM_ACCEPTED;
    }
    answering_->is_response_taken = true;
    post(Event::DeviceTookResponse, *answering_, delay);
    return tlm::TLM_COMPLETED;
  }
  if (phase == tlm::END_REQ || phase == tlm::BEGIN_RESP || phase == tlm::UNINITIALIZED_PHASE)
    report("the device sends a phase that is not an initiator's");
  return tlm::TLM_ACCEPTED;  // other phases are somebody's extension, and ignorable
}

tlm::tlm_sync_enum IommuTlm::nb_transport_bw(tlm::tlm_generic_payload& payload, tlm::tlm_phase& phase,
                                             sc_core::sc_time& delay) {
  if (phase == tlm::BEGIN_REQ || phase == tlm::END_RESP || phase == tlm::UNINITIALIZED_PHASE) {
    report("memory sends a phase that is not a target's");
    return tlm::TLM_ACCEPTED;
  }
  if (phase != tlm::END_REQ && phase != tlm::BEGIN_RESP) return tlm::TLM_ACCEPTED;
  using Memory = Transaction::Memory;
  Transaction* transaction = Manager::transaction_of(payload);
  if (transaction == nullptr || transaction->memory >= (phase == tlm::END_REQ ? Memory::Taken : Memory::Answered)) {
    report("memory answers a transaction that is not open, or twice");
    return tlm::TLM_ACCEPTED;
  }
  if (phase == tlm::END_REQ) {
    transaction->memory = Memory::Taken;
    post(Event::MemoryTook, *transaction, delay);
    return tlm::TLM_ACCEPTED;
  }
  memory_replied(*transaction, tlm::TLM_COMPLETED, phase, delay);
  return tlm::TLM_COMPLETED;
}

bool IommuTlm::get_direct_mem_ptr(tlm::tlm_generic_payload&, tlm::tlm_dmi& dmi) {
  dmi.init();  // denied for all addresses
  return false;
}

// The device's side in ----------------------------------------------------------------------------------------------

void IommuTlm::begin(tlm::tlm_generic_payload& payload, const sc_core::sc_time& delay) {
  if (requesting_ != nullptr) return report("the device sends BEGIN_REQ before the END_REQ of its last request");
  if (!payload.has_mm()) return report("the device's payload has no memory manager");
  Transaction& transaction = acquire();
  payload.acquire();
  transaction.payload = &payload;
  requesting_ = &transaction;
  post(Event::DeviceRequests, transaction, delay);
}

// Ends the request phase if there is room; asked again whenever there may be.
void IommuTlm::accept(std::uint64_t is_space_call) {
  if (is_space_call != 0) waits_for_space_ = false;
  if (requesting_ == nullptr || !requesting_->is_begun || in_flight_ == outstanding_) return;
  if (!unit_.can_accept()) {
    if (!std::exchange(waits_for_space_, true))
      unit_.on_space([](void* self, std::uint64_t argument) { static_cast<IommuTlm*>(self)->accept(argument); }, this,
                     1);
    return;
  }
  Transaction& transaction = *std::exchange(requesting_, nullptr);
  ++in_flight_;
  tlm::tlm_phase phase = tlm::END_REQ;
  sc_core::sc_time delay = sc_core::SC_ZERO_TIME;
  if (target->nb_transport_bw(*transaction.payload, phase, delay) != tlm::TLM_ACCEPTED)
    report("the device answers END_REQ with another phase");
  const tlm::tlm_response_status status = check(*transaction.payload);
  if (status != tlm::TLM_OK_RESPONSE) return queue_response(transaction, status);
  transaction.request.translation = request_of(*transaction.payload);
  transaction.request.on_done<&IommuTlm::translated>(this, reinterpret_cast<std::uint64_t>(&transaction));
  unit_.submit(transaction.request);
}

void IommuTlm::translated(std::uint64_t argument) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): calendar arguments are integers
  Transaction& transaction = *reinterpret_cast<Transaction*>(argument);
  if (const auto* fault = std::get_if<Fault>(&transaction.request.response))
    return queue_response(transaction, refuse(*fault, *transaction.payload));
  transaction.ticket = unit_.in_flight().enter();
  to_forward_.push(&transaction);
  forward_next();
}

// Memory's side -----------------------------------------------------------------------------------------------------

void IommuTlm::forward_next() {
  if (forwarding_ != nullptr || to_forward_.is_empty()) return;
  Transaction& transaction = *to_forward_.pop();
  forwarding_ = &transaction;
  transaction.to_memory = &manager_->acquire(transaction);
  transaction.memory = Transaction::Memory::Requested;
  copy_transfer(*transaction.payload, std::get<Translation>(transaction.request.response).address,
                *transaction.to_memory);
  tlm::tlm_phase phase = tlm::BEGIN_REQ;
  sc_core::sc_time delay = sc_core::SC_ZERO_TIME;
  const tlm::tlm_sync_enum reply = initiator->nb_transport_fw(*transaction.to_memory, phase, delay);
  if (reply != tlm::TLM_ACCEPTED) memory_replied(transaction, reply, phase, delay);
}

// Memory has moved the transaction on: by what it returned, or by calling BEGIN_RESP, which we complete.
void IommuTlm::memory_replied(Transaction& transaction, tlm::tlm_sync_enum reply, const tlm::tlm_phase& phase,
                              const sc_core::sc_time& delay) {
  using Memory = Transaction::Memory;
  const bool is_complete = reply == tlm::TLM_COMPLETED;
  if (!is_complete && phase != tlm::END_REQ && phase != tlm::BEGIN_RESP)
    return report("memory answers BEGIN_REQ with a phase that is not a target's");
  // A response ends the request, where END_REQ has not done so.
  if (transaction.memory == Memory::Requested) post(Event::MemoryTook, transaction, delay);
  transaction.memory = Memory::Taken;
  if (!is_complete && phase == tlm::END_REQ) return;
  transaction.memory = is_complete ? Memory::Answered : Memory::AnsweredLong;
  post(Event::MemoryAnswered, transaction, delay);
}

void IommuTlm::request_taken(Transaction& transaction) {
  SIM_CHECK(forwarding_ == &transaction, "a request ends that is not the one under way");
  forwarding_ = nullptr;
  forward_next();
}

void IommuTlm::answered(Transaction& transaction) {
  if (transaction.memory == Transaction::Memory::AnsweredLong) end_memory_response(transaction);
  const tlm::tlm_response_status status = served(*transaction.to_memory);
  manager_->release(*std::exchange(transaction.to_memory, nullptr));
  unit_.in_flight().leave(transaction.ticket);
  queue_response(transaction, status);
}

void IommuTlm::end_memory_response(Transaction& transaction) {
  tlm::tlm_phase phase = tlm::END_RESP;
  sc_core::sc_time delay = sc_core::SC_ZERO_TIME;
  if (initiator->nb_transport_fw(*transaction.to_memory, phase, delay) == tlm::TLM_UPDATED)
    report("memory answers END_RESP with another phase");
}

// The device's side out ---------------------------------------------------------------------------------------------

void IommuTlm::queue_response(Transaction& transaction, tlm::tlm_response_status status) {
  transaction.status = status;
  to_answer_.push(&transaction);
  respond_next();
}

void IommuTlm::respond_next() {
  if (answering_ != nullptr || to_answer_.is_empty()) return;
  Transaction& transaction = *to_answer_.pop();
  answering_ = &transaction;
  transaction.payload->set_response_status(transaction.status);
  tlm::tlm_phase phase = tlm::BEGIN_RESP;
  sc_core::sc_time delay = sc_core::SC_ZERO_TIME;
  const tlm::tlm_sync_enum reply = target->nb_transport_bw(*transaction.payload, phase, delay);
  if (reply == tlm::TLM_ACCEPTED) return;
  if (transaction.is_response_taken || (reply == tlm::TLM_UPDATED && phase != tlm::END_RESP))
    return report("the device answers BEGIN_RESP with another phase than END_RESP, or twice");
  transaction.is_response_taken = true;
  post(Event::DeviceTookResponse, transaction, delay);
}

void IommuTlm::response_taken(Transaction& transaction) {
  SIM_CHECK(answering_ == &transaction, "a response ends that is not the one under way");
  answering_ = nullptr;
  std::exchange(transaction.payload, nullptr)->release();
  free_.push_back(&transaction);
  --in_flight_;
  respond_next();
  accept(0);
}

// Without time ------------------------------------------------------------------------------------------------------

TranslationResponse IommuTlm::translate_at_once(const TranslationRequest& request) {
  TranslationResponse response = unit_.core().translate(request, at_once_).run();
  if (const auto* fault = std::get_if<Fault>(&response)) {
    (void)engine_.enter();  // recording may raise an interrupt, which takes time
    unit_.record(*fault);
  }
  return response;
}

void IommuTlm::b_transport(tlm::tlm_generic_payload& payload, sc_core::sc_time& delay) {
  const tlm::tlm_response_status status = check(payload);
  if (status != tlm::TLM_OK_RESPONSE) return payload.set_response_status(status);
  const TranslationResponse response = translate_at_once(request_of(payload));
  if (const auto* fault = std::get_if<Fault>(&response)) return payload.set_response_status(refuse(*fault, payload));
  tlm::tlm_generic_payload to_memory;
  copy_transfer(payload, std::get<Translation>(response).address, to_memory);
  initiator->b_transport(to_memory, delay);
  payload.set_response_status(served(to_memory));
}

// May cross pages: each is looked up for itself, up to the first that is not mapped.
unsigned int IommuTlm::transport_dbg(tlm::tlm_generic_payload& payload) {
  if (payload.get_extension<DmaExtension>() == nullptr || !(payload.is_read() || payload.is_write())) return 0;
  PeekPort peek(at_once_);
  const std::span data(payload.get_data_ptr(), payload.get_data_length());
  unsigned done = 0;
  while (done < payload.get_data_length()) {
    TranslationRequest request = request_of(payload);
    request.address = request.address + Bytes(done);
    const std::uint64_t left_in_page = kPageSize.value() - request.address.offset_in(kPageLg2);
    const auto length = static_cast<unsigned>(std::min<std::uint64_t>(payload.get_data_length() - done, left_in_page));
    request.length = Bytes(length);
    const TranslationResponse response = unit_.core().translate(request, peek).run();
    if (const auto* fault = std::get_if<Fault>(&response); fault != nullptr && fault->stall)
      unit_.core().withdraw_stall(*fault->stall);
    const auto* translation = std::get_if<Translation>(&response);
    if (translation == nullptr) break;
    tlm::tlm_generic_payload part;
    copy_transfer(payload, translation->address, part);
    part.set_byte_enable_ptr(nullptr);
    part.set_data_ptr(data.subspan(done).data());
    part.set_data_length(length);
    part.set_streaming_width(length);
    const unsigned served_bytes = std::min(initiator->transport_dbg(part), length);
    done += served_bytes;
    if (served_bytes < length) break;
  }
  return done;
}

}  // namespace iommu
