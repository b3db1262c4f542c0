// SPDX-License-Identifier: Apache-2.0
// The checker itself: a clean conversation leaves no note, and each broken rule leaves its own. A checker that cannot
// complain would make iommu_tlm_test worthless.
#include "sim/tlm/tlm_protocol_checker_test_support.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <memory>

namespace iommu {
namespace {

#define REQUIRE_FRESH_PROCESS() \
  if (sc_core::sc_get_status() != sc_core::SC_ELABORATION) GTEST_SKIP() << "one elaboration per process"

using tlm::tlm_generic_payload;

class Manager final : public tlm::tlm_mm_interface {
 public:
  void free(tlm_generic_payload*) override {}
};

// Both partners of the checker, driven by hand.
class Partners final : public sc_core::sc_module,
                       private tlm::tlm_fw_transport_if<>,
                       private tlm::tlm_bw_transport_if<> {
 public:
  using Reply = std::function<tlm::tlm_sync_enum(tlm_generic_payload&, tlm::tlm_phase&, sc_core::sc_time&)>;
  Reply target_reply = [](tlm_generic_payload&, tlm::tlm_phase&, sc_core::sc_time&) { return tlm::TLM_ACCEPTED; };
  Reply initiator_reply = target_reply;

  explicit Partners(const sc_core::sc_module_name& name) : sc_module(name) {
    initiator_.bind(static_cast<tlm::tlm_bw_transport_if<>&>(*this));
    target_.bind(static_cast<tlm::tlm_fw_transport_if<>&>(*this));
    initiator_.bind(checker.target);
    checker.initiator.bind(target_);
    sc_core::sc_start(sc_core::SC_ZERO_TIME);
    for (tlm_generic_payload* p : {&a, &b}) {
      p->set_mm(&manager_);
      p->acquire();
      p->set_write();
      p->set_address(0x1000);
      p->set_data_ptr(data.data());
      p->set_data_length(static_cast<unsigned>(data.size()));
      p->set_streaming_width(static_cast<unsigned>(data.size()));
    }
  }
  void forward(tlm_generic_payload& payload, tlm::tlm_phase phase, double delay_ns = 0) {
    sc_core::sc_time delay(delay_ns, sc_core::SC_NS);
    (void)initiator_->nb_transport_fw(payload, phase, delay);
  }
  void backward(tlm_generic_payload& payload, tlm::tlm_phase phase, double delay_ns = 0) {
    sc_core::sc_time delay(delay_ns, sc_core::SC_NS);
    (void)target_->nb_transport_bw(payload, phase, delay);
  }
  void respond(tlm_generic_payload& payload) {
    payload.set_response_status(tlm::TLM_OK_RESPONSE);
    backward(payload, tlm::BEGIN_RESP);
  }
  // The one note that was left.
  [[nodiscard]] std::string only() const {
    return checker.violations().size() == 1 ? checker.violations().front().substr(5)
                                            : std::to_string(checker.violations().size()) + " notes";
  }

  TlmProtocolChecker checker{"checker"};
  std::array<unsigned char, 8> data{};
  tlm_generic_payload a;
  tlm_generic_payload b;

 private:
  tlm::tlm_sync_enum nb_transport_fw(tlm_generic_payload& p, tlm::tlm_phase& phase, sc_core::sc_time& delay) override {
    return target_reply(p, phase, delay);
  }
  tlm::tlm_sync_enum nb_transport_bw(tlm_generic_payload& p, tlm::tlm_phase& phase, sc_core::sc_time& delay) override {
    return initiator_reply(p, phase, delay);
  }
  void b_transport(tlm_generic_payload& p, sc_core::sc_time&) override { p.set_address(0); }
  bool get_direct_mem_ptr(tlm_generic_payload&, tlm::tlm_dmi&) override { return false; }
  unsigned transport_dbg(tlm_generic_payload& p) override { return p.get_data_length() + 1; }
  void invalidate_direct_mem_ptr(sc_dt::uint64, sc_dt::uint64) override {}

  Manager manager_;
  tlm::tlm_initiator_socket<> initiator_{"initiator"};
  tlm::tlm_target_socket<> target_{"target"};
};

struct Case {
  const char* name;
  const char* note;  // empty: none
  void (*play)(Partners&);
};

const Case kCases[] = {
    {"FourPhasesOfTwoOverlappingTransactions", "",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ, 5);
       p.backward(p.a, tlm::END_REQ, 5);
       p.forward(p.b, tlm::BEGIN_REQ);
       p.respond(p.b);
       p.forward(p.b, tlm::END_RESP, 3);
       p.a.set_response_status(tlm::TLM_OK_RESPONSE);
       p.backward(p.a, tlm::BEGIN_RESP, 7);
       p.forward(p.a, tlm::END_RESP, 9);
     }},
    {"UpdatedAndCompletedReturns", "",
     [](Partners& p) {
       p.target_reply = [](tlm_generic_payload& t, tlm::tlm_phase& phase, sc_core::sc_time& delay) {
         t.set_response_status(tlm::TLM_OK_RESPONSE);
         delay += sc_core::sc_time(4, sc_core::SC_NS);
         if (phase == tlm::END_RESP) return tlm::TLM_COMPLETED;
         phase = tlm::BEGIN_RESP;
         return tlm::TLM_UPDATED;
       };
       p.forward(p.a, tlm::BEGIN_REQ);
       p.forward(p.a, tlm::END_RESP, 6);
       p.target_reply = [](tlm_generic_payload& t, tlm::tlm_phase&, sc_core::sc_time&) {
         t.set_response_status(tlm::TLM_ADDRESS_ERROR_RESPONSE);
         return tlm::TLM_COMPLETED;
       };
       p.forward(p.b, tlm::BEGIN_REQ);
     }},
    {"RequestExclusion", "request exclusion: BEGIN_REQ before the END_REQ of another transaction",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ);
       p.forward(p.b, tlm::BEGIN_REQ);
     }},
    {"ResponseExclusion", "response exclusion: BEGIN_RESP before the END_RESP of another transaction",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ);
       p.backward(p.a, tlm::END_REQ);
       p.forward(p.b, tlm::BEGIN_REQ);
       p.respond(p.a);
       p.respond(p.b);
     }},
    {"DoubleEndRequest", "END_REQ does not follow BEGIN_REQ",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ);
       p.backward(p.a, tlm::END_REQ);
       p.backward(p.a, tlm::END_REQ);
     }},
    {"EndOfResponseThatNeverBegan", "END_RESP does not follow BEGIN_RESP",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ);
       p.forward(p.a, tlm::END_RESP);
     }},
    {"ResponseWithoutRequest", "phase of a transaction that is not open", [](Partners& p) { p.respond(p.a); }},
    {"ResponseWithoutStatus", "a response without a response status",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ);
       p.backward(p.a, tlm::BEGIN_RESP);
     }},
    {"StatusChangesLate", "the response status changes after BEGIN_RESP",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ);
       p.respond(p.a);
       p.a.set_response_status(tlm::TLM_BURST_ERROR_RESPONSE);
       p.forward(p.a, tlm::END_RESP);
     }},
    {"TargetChangesWriteData", "attributes, write data or byte enables have changed",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ);
       p.data[3] ^= 1;
       p.respond(p.a);
       p.data[3] ^= 1;
     }},
    {"TimeGoesBackwards", "annotated time goes backwards",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ, 10);
       p.backward(p.a, tlm::END_REQ, 9);
     }},
    {"AcceptedWithDelay", "TLM_ACCEPTED with phase or delay changed",
     [](Partners& p) {
       p.target_reply = [](tlm_generic_payload&, tlm::tlm_phase&, sc_core::sc_time& delay) {
         delay += sc_core::sc_time(1, sc_core::SC_NS);
         return tlm::TLM_ACCEPTED;
       };
       p.forward(p.a, tlm::BEGIN_REQ);
     }},
    {"NoMemoryManager", "nb_transport without a memory manager",
     [](Partners& p) {
       p.a.set_mm(nullptr);
       p.forward(p.a, tlm::BEGIN_REQ);
     }},
    {"WrongSide", "phase sent by the wrong side",
     [](Partners& p) {
       p.forward(p.a, tlm::BEGIN_REQ);
       p.forward(p.a, tlm::END_REQ);
     }},
};

class TlmProtocolCheckerNotes : public testing::TestWithParam<Case> {};

// Kills: a rule that is not checked, and a rule that a correct conversation breaks.
TEST_P(TlmProtocolCheckerNotes, ExactlyTheRuleThatIsBroken) {
  REQUIRE_FRESH_PROCESS();
  Partners partners("partners");
  GetParam().play(partners);
  if (*GetParam().note == '\0')
    EXPECT_EQ(partners.checker.violations(), std::vector<std::string>{});
  else
    EXPECT_EQ(partners.only(), GetParam().note);
}
INSTANTIATE_TEST_SUITE_P(, TlmProtocolCheckerNotes, testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace iommu
