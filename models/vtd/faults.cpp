// SPDX-License-Identifier: Apache-2.0
// Primary fault recording. [§7.3]
#include "models/vtd/core.hpp"
#include "models/vtd/register_rows.hpp"

namespace iommu::vtd {

std::size_t Core::fault_record_row(unsigned index) const { return kFixedRegisters + 2 * std::size_t{index}; }

namespace {

constexpr std::uint64_t kStatusMask = mask_of<kFsts, "PFO"> | mask_of<kFsts, "PPF"> | mask_of<kFsts, "IQE"> |
                                      mask_of<kFsts, "ICE"> | mask_of<kFsts, "ITE">;

// Address bits beyond MGAW are reserved in a record. [FRCD_REG.FI]
std::array<std::uint64_t, 2> encode(const Fault& fault, unsigned max_input_bits) {
  return pack_record<kFrcd>({
      {"FI", (fault.address.value() & bits_between(0, max_input_bits)) >> kPageLg2},
      {"SID", fault.requester.value()},
      {"PRIV", fault.pasid && fault.privileged ? 1U : 0U},
      {"PP", fault.pasid ? 1U : 0U},
      {"FR", fault.row->code},
      {"PV", fault.pasid ? fault.pasid->value() & bits_between(0, field_of<kFrcd, "PV">.width()) : 0},
      {"AT", static_cast<std::uint64_t>(fault.type)},
      {"T1", fault.access == Access::Read ? 1U : 0U},
      {"F", 1},
  });
}

bool is_pending(std::uint64_t high) { return (high & mask_of<kFrcd, "F">) != 0; }
std::uint64_t source_of(std::uint64_t high) { return high & mask_of<kFrcd, "SID">; }

}  // namespace

std::optional<InterruptMessage> Core::record(const Fault& fault) {
  if (fault.suppressed && fault.row->qualified) return std::nullopt;
  std::uint64_t status = reg(kRegFsts);
  if (get<kFsts, "PFO">(status) != 0) return std::nullopt;  // nothing is recorded until software clears the overflow
  const std::array<std::uint64_t, 2> words = encode(fault, capabilities_.max_input_bits);
  // Faults of a source that has one pending are compressed into it.
  for (unsigned i = 0; i < capabilities_.fault_records; ++i) {
    const std::uint64_t high = reg(fault_record_row(i) + 1);
    if (is_pending(high) && source_of(high) == source_of(words[1])) return std::nullopt;
  }
  const std::size_t row = fault_record_row(next_fault_);
  if (is_pending(reg(row + 1))) {
    registers_.set(kRegFsts, with<kFsts, "PFO">(status, 1));
    return std::nullopt;
  }
  registers_.set(row, words[0]);
  registers_.set(row + 1, words[1]);
  const bool was_quiet = (status & kStatusMask) == 0;
  if (get<kFsts, "PPF">(status) == 0) status = with<kFsts, "FRI">(status, next_fault_);
  registers_.set(kRegFsts, with<kFsts, "PPF">(status, 1));
  next_fault_ = (next_fault_ + 1) % capabilities_.fault_records;
  // A condition that is pending already has raised its event.
  return was_quiet ? raise(Event::Fault) : std::nullopt;
}

// PPF is the OR of all F bits.
void Core::refresh_pending_fault() {
  bool pending = false;
  for (unsigned i = 0; i < capabilities_.fault_records && !pending; ++i)
    pending = is_pending(reg(fault_record_row(i) + 1));
  registers_.set(kRegFsts, with<kFsts, "PPF">(reg(kRegFsts), pending ? 1 : 0));
  if ((reg(kRegFsts) & kStatusMask) == 0) registers_.set(kRegFectl, with<kEventControl, "IP">(reg(kRegFectl), 0));
}

void Core::after_fault_status_change(std::uint64_t before, RegisterEffect& effect) {
  const bool resumes = get<kFsts, "IQE">(before) != 0 && get<kFsts, "IQE">(reg(kRegFsts)) == 0;
  if (resumes) registers_.set(kRegIqercd, with<kIqercd, "IQEI">(reg(kRegIqercd), 0));
  refresh_pending_fault();
  if (resumes) effect.commands_pending = has_command();
}

}  // namespace iommu::vtd
