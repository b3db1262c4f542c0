// SPDX-License-Identifier: Apache-2.0
// For fuzzers of a family's core: a unit in the hands of hostile software. Bytes edit tables, write registers and
// commands, ask for translations, and change memory and registers between two accesses of one walk. Whatever they do,
// every request ends within a bound and gets a fault of the specification or rights it asked for. The family adds its
// tables, its registers and its oracle.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <variant>

#include "sim/base/check.hpp"
#include "sim/base/fuzz_test_support.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/translation/core_test_support.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu::test {

class HostileSoftware {
 public:
  struct Unit {
    IommuCore& core;
    HostMemory& host;
    TestPort& port;  // its hook calls interfere()
  };
  struct Bounds {
    std::uint64_t accesses = 0;          // of a translation in peace
    std::uint64_t hostile_accesses = 0;  // of one under an adversary, where each mark may be tried again
    unsigned commands = 1U << 15;        // that a ring can hold
  };
  enum class Act : std::uint8_t { Edit, WriteRegister, WriteCommand, Interfere, RunCommands, Translate };

  HostileSoftware(FuzzInput bytes, Bounds bounds, std::span<const FaultRow> rows)
      : in(bytes), bounds_(bounds), rows_(rows) {}
  HostileSoftware(const HostileSoftware&) = delete;
  HostileSoftware& operator=(const HostileSoftware&) = delete;
  virtual ~HostileSoftware() = default;

  // Until the bytes are used up.
  void run() {
    while (!in.empty()) {
      const std::span<const Act> choice = acts();
      perform(choice[in.take(1) % choice.size()]);
      check_registers();
    }
  }

 protected:
  static constexpr std::array kEachActOnce{Act::Edit,      Act::WriteRegister, Act::WriteCommand,
                                           Act::Interfere, Act::RunCommands,   Act::Translate};

  virtual Unit unit() = 0;
  [[nodiscard]] virtual std::span<const Act> acts() const { return kEachActOnce; }
  virtual void edit() = 0;
  // A value that leads to some table, in place of `old`.
  virtual std::uint64_t pointer(std::uint64_t old) = 0;
  virtual void write_register() = 0;
  virtual void write_command() = 0;
  virtual void translate() = 0;
  // Further checks of a command's effect.
  virtual void applied(const CommandEffect& /*effect*/) {}
  virtual void check_registers() = 0;

  // Nobody changes anything between two accesses.
  [[nodiscard]] bool is_quiet() const { return adversary_steps_ == 0; }
  // For the port, between two accesses.
  void interfere() {
    if (is_quiet() || in.empty()) return;
    --adversary_steps_;
    if (in.take(1) % 4 == 0)
      write_register();
    else
      edit();
  }

  // One word of a table.
  void change(std::uint64_t at, std::uint64_t how) {
    HostMemory& host = unit().host;
    const std::uint64_t old = host.read64(Hpa(at));
    switch (how % 3) {
      case 0:
        host.write64(Hpa(at), old ^ 1ULL << in.take(1) % 64);
        break;
      case 1:
        host.write64(Hpa(at), pointer(old));
        break;
      default:
        host.write64(Hpa(at), in.take(8));
        break;
    }
  }

  virtual void run_commands() {
    auto [core, host, port] = unit();
    for (unsigned commands = 0; core.has_command(); ++commands) {
      SIM_CHECK(commands <= bounds_.commands, "a ring that nobody fills runs empty");
      const bool quiet = is_quiet();
      const auto command = core.fetch_command(port).run();
      if (!command) {
        SIM_CHECK(!quiet || !core.has_command(), "a failed fetch stops the ring");
        return;
      }
      SIM_CHECK(command->row != nullptr, "what is fetched is known");
      const CommandEffect effect = core.apply(*command);
      SIM_CHECK(!quiet || !effect.error, "what is fetched is valid");
      applied(effect);
      core.completed();
      if (effect.fence && effect.fence->interrupt) (void)core.fence_interrupt();
    }
  }

  // Any request; `base` where no flag says otherwise.
  TranslationRequest varied(TranslationRequest base, std::uint64_t flags) {
    base.access = (flags & 1) != 0 ? Access::Write : Access::Read;
    base.type = static_cast<AddressType>((flags >> 1 & 3) % 3);
    if ((flags & 8) != 0) base.pasid = Pasid(static_cast<std::uint32_t>(in.take(3) & 0xfffff));
    if ((flags & 16) != 0) base.requester = RequesterId(static_cast<std::uint16_t>(in.take(2)));
    if ((flags & 32) != 0) base.address = Iova(in.take(8));
    base.privileged = (flags & 64) != 0;
    base.execute = (flags & 128) != 0;
    return base;
  }
  // The core's answer, after the checks that hold for every family.
  TranslationResponse answer_to(const TranslationRequest& request) {
    auto [core, host, port] = unit();
    const std::uint64_t bound = is_quiet() ? bounds_.accesses : bounds_.hostile_accesses;
    port.reset_counts();
    const TranslationResponse response = core.translate(request, port).run();
    SIM_CHECK(port.accesses <= bound, "a translation is bounded");
    if (const auto* fault = std::get_if<Fault>(&response)) {
      SIM_CHECK(fault->row >= rows_.data() && fault->row < rows_.data() + rows_.size(),
                "a fault is one of the specification's");
      return response;
    }
    const auto& translation = std::get<Translation>(response);
    const bool asks = request.type == AddressType::TranslationRequest && request.execute;
    SIM_CHECK(!translation.executable || (asks && translation.allowed.read),
              "execution is granted to who asked for it");
    if (translation.is_bypass)
      SIM_CHECK(translation.address.value() == request.address.value(), "a bypass changes nothing");
    else
      SIM_CHECK(request.type != AddressType::Untranslated || translation.allowed.allow(request.access),
                "what is translated is allowed");
    return response;
  }

  FuzzInput in;

 private:
  void perform(Act act) {
    switch (act) {
      case Act::Edit:
        return edit();
      case Act::WriteRegister:
        return write_register();
      case Act::WriteCommand:
        return write_command();
      case Act::Interfere:
        adversary_steps_ = static_cast<unsigned>(in.take(1) % 32);
        return;
      case Act::RunCommands:
        return run_commands();
      case Act::Translate:
        return translate();
    }
  }

  Bounds bounds_;
  std::span<const FaultRow> rows_;
  unsigned adversary_steps_ = 0;
};

}  // namespace iommu::test
