// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/guest_queue.hpp"

#include <algorithm>

#include "models/smmuv3/core.hpp"

namespace iommu::smmuv3 {

namespace at = queue_offset;

namespace {

constexpr unsigned kWordBytes = 4, kWordBits = 32;

template <const auto& kLayout>
constexpr std::uint32_t values_of() {
  return static_cast<std::uint32_t>(kLayout.mask_of(FieldKind::Value));
}

// Half of a 64-bit register, by the offset's bit 2.
std::uint32_t half(std::uint64_t value, std::uint64_t offset) {
  return static_cast<std::uint32_t>(value >> (offset % 8 * 8));
}
std::uint64_t with_half(std::uint64_t value, std::uint64_t offset, std::uint32_t part, std::uint64_t mask) {
  const unsigned shift = static_cast<unsigned>(offset % 8 * 8);
  return (value & ~(std::uint64_t{0xffffffff} << shift)) | ((std::uint64_t{part} << shift) & mask);
}

std::span<std::uint64_t> words_of(Command& command) { return std::span(command.words).first(2); }

}  // namespace

class GuestQueues::Queue final : public CommandQueue {
 public:
  Queue(GuestQueues& block, std::size_t number) : block_(block), number_(number) {}
  [[nodiscard]] bool has_command() const override { return block_.has_command(number_); }
  Task<std::optional<Command>> fetch_command(MemoryPort& memory) override {
    return block_.fetch_command(number_, memory);
  }
  CommandEffect apply(const Command& command) override { return block_.core_.apply(command); }
  void completed() override { block_.completed(number_); }

 private:
  GuestQueues& block_;
  std::size_t number_;
};

GuestQueues::GuestQueues(Core& core, std::uint32_t parameters, QueueView view)
    : core_(core),
      parameters_(parameters),
      view_(view),
      config_(static_cast<std::uint32_t>(kCmdqvConfigReset)),
      vintfs_(std::size_t{1} << get<kCmdqvParam, "CMDQV_NUM_VI_LOG2">(parameters)),
      vcmdqs_(std::size_t{1} << get<kCmdqvParam, "CMDQV_NUM_CMDQ_LOG2">(parameters)) {
  for (std::size_t i = 0; i < vcmdqs_.size(); ++i) {
    storage_.push_back(std::make_unique<Queue>(*this, i));
    queues_.push_back(storage_.back().get());
  }
}

GuestQueues::~GuestQueues() = default;

// Commands ------------------------------------------------------------------------------------------------------------

// Null: it is nobody's, and sends nothing.
const GuestQueues::Vintf* GuestQueues::owner_of(const Vcmdq& queue) const {
  const std::uint64_t vintf = get<kCmdqAlloc, "VIRT_INTF_INDX">(queue.alloc);
  if (get<kCmdqAlloc, "ALLOC">(queue.alloc) == 0 || vintf >= vintfs_.size()) return nullptr;
  return &vintfs_[vintf];
}

RingIndices GuestQueues::ring_of(const Vcmdq& queue) const {
  const auto lg2 = std::min(kLargestQueueLg2, static_cast<unsigned>(get<kVcmdqBase, "LOG2SIZE">(queue.base)));
  RingIndices ring{.format = {.entries = 1U << lg2, .entry_bytes = kCommandBytes, .full = FullRule::WrapBit}};
  const std::uint64_t inside = bits_between(0, lg2 + 1);
  ring.tail = static_cast<std::uint32_t>(get<kVcmdqProd, "WR">(queue.prod) & inside);
  ring.head = static_cast<std::uint32_t>(get<kVcmdqCons, "RD">(queue.cons) & inside);
  if (queue.is_syncing) ring.head = ring.next(ring.head);
  return ring;
}

Hpa GuestQueues::address_of(const Vcmdq& queue, const RingIndices& ring) {
  const std::uint64_t bytes = std::uint64_t{ring.format.entries} * kCommandBytes;
  return Hpa((queue.base & mask_of<kVcmdqBase, "ADDR"> & ~(bytes - 1)) + ring.offset(ring.head));
}

bool GuestQueues::has_error(const Vcmdq& queue) {
  return ((queue.gerror ^ queue.gerrorn) & mask_of<kVcmdqGerror, "CMDQ_ERR">) != 0;
}

bool GuestQueues::has_command(std::size_t number) const {
  const Vcmdq& queue = vcmdqs_[number];
  const Vintf* owner = owner_of(queue);
  if (owner == nullptr || get<kCmdqvConfig, "CMDQV_EN">(config_) == 0 ||
      get<kVintfConfig, "ENABLE">(owner->config) == 0 || get<kVcmdqConfig, "CMDQ_EN">(queue.config) == 0 ||
      has_error(queue))
    return false;
  const RingIndices ring = ring_of(queue);
  return !ring.is_empty() && ring.occupancy() <= ring.format.entries;  // smmuv3-003
}

void GuestQueues::stop(Vcmdq& queue, std::uint64_t error) {
  queue.is_under_way = false;
  queue.cons = static_cast<std::uint32_t>(with<kVcmdqCons, "ERR">(queue.cons, error));
  if (!has_error(queue)) queue.gerror ^= static_cast<std::uint32_t>(mask_of<kVcmdqGerror, "CMDQ_ERR">);
}

Task<std::optional<Command>> GuestQueues::fetch_command(std::size_t number, MemoryPort& memory) {
  std::optional<Command> none;
  completed(number);
  if (!has_command(number)) co_return none;
  const Vcmdq before = vcmdqs_[number];
  vcmdqs_[number].is_under_way = true;
  const RingIndices ring = ring_of(before);
  const auto block = co_await memory.read_block<2>(address_of(before, ring), AccessKind::Command);
  Vcmdq& queue = vcmdqs_[number];
  // Its owner may have switched it off, or moved it, while the command was on its way.
  if (!has_command(number) || queue.base != before.base || queue.cons != before.cons) {
    queue.is_under_way = false;
    co_return none;
  }
  Command command;
  command.bytes = kCommandBytes;
  std::copy(block.words.begin(), block.words.end(), command.words.begin());
  const std::uint64_t error = block.failed ? static_cast<std::uint64_t>(CommandError::Abort) : admit(queue, command);
  if (error != 0) {
    stop(queue, error);
    co_return none;
  }
  command.row = Core::command_row(command);
  queue.is_syncing = command.row->opcode == kCmdSync;
  if (!queue.is_syncing)
    queue.cons = static_cast<std::uint32_t>(with<kVcmdqCons, "RD">(queue.cons, ring.next(ring.head)));
  std::optional<Command> fetched = command;
  co_return fetched;
}

void GuestQueues::completed(std::size_t number) {
  Vcmdq& queue = vcmdqs_[number];
  queue.is_under_way = false;
  if (!queue.is_syncing) return;
  const std::uint32_t head = ring_of(queue).head;
  queue.is_syncing = false;
  queue.cons = static_cast<std::uint32_t>(with<kVcmdqCons, "RD">(queue.cons, head));
}

// The error that a command is; 0: none, and it is as the SMMU gets it.
std::uint64_t GuestQueues::admit(const Vcmdq& queue, Command& command) const {
  constexpr auto kIllegal = static_cast<std::uint64_t>(CommandError::Illegal);
  const Vintf& owner = *owner_of(queue);
  const auto words = words_of(command);
  const auto opcode = static_cast<Opcode>(get<kCommand, "OP">(words));
  if (opcode == kCmdSync && static_cast<SyncSignal>(get<kSync, "CS">(words)) != kVcmdqSignal) return kIllegal;
  if (get<kVintfConfig, "HYP_OWN">(owner.config) == 0 && opcode != kCmdSync) {
    if (std::ranges::find(kGuestOpcodes, opcode) == kGuestOpcodes.end()) return kIllegal;
    if (opcode == kCmdAtcInv) {
      if (!exchange_stream(owner, command)) return kCerrorIllegalAccess;
    } else {
      put<kTlbi, "VMID">(words, get<kVintfConfig, "VMID">(owner.config));
    }
  }
  return static_cast<std::uint64_t>(core_.validate(command));
}

// False: the owner has no such stream.
bool GuestQueues::exchange_stream(const Vintf& owner, Command& command) const {
  const auto words = words_of(command);
  const std::uint64_t stream = get<kAtcInv, "StreamID">(words);
  for (std::size_t i = 0; i < kMostSids; ++i) {
    if (get<kSidMatch, "ENABLE">(owner.match[i]) == 0 || get<kSidMatch, "VIRT_SID">(owner.match[i]) != stream) continue;
    put<kAtcInv, "StreamID">(words, get<kSidReplace, "PHYS_SID">(owner.replace[i]));
    return true;
  }
  return false;
}

// Registers -----------------------------------------------------------------------------------------------------------

// The VCMDQ that a VINTF knows by a number of its own.
std::optional<std::size_t> GuestQueues::logical(std::size_t vintf, std::uint64_t lvcmdq) const {
  for (std::size_t i = 0; i < vcmdqs_.size(); ++i)
    if (owner_of(vcmdqs_[i]) == &vintfs_[vintf] && get<kCmdqAlloc, "LVCMDQ">(vcmdqs_[i].alloc) == lvcmdq) return i;
  return std::nullopt;
}

// What is in no window is nothing: a VINTF's numbers without a VCMDQ among it. [cmdqv-qemu: "unallocated logical slots
// where the hardware silently drops them"]
std::optional<GuestQueues::Place> GuestQueues::place_of(std::uint64_t offset) const {
  const std::uint64_t in_page = offset % at::kPageBytes;
  const std::uint64_t number = in_page / at::kVcmdqStride;
  Place place{.at = in_page % at::kVcmdqStride};
  if (offset < at::kVintfPages) {
    place.is_page1 = offset >= at::kVcmdqPage1;
    place.queue = number;
    return number < vcmdqs_.size() ? std::optional(place) : std::nullopt;
  }
  const std::uint64_t page = (offset - at::kVintfPages) / at::kPageBytes;
  if (page / 2 >= vintfs_.size()) return std::nullopt;
  const auto queue = logical(page / 2, number);
  if (!queue) return std::nullopt;
  place.is_page1 = page % 2 != 0;
  place.queue = *queue;
  return place;
}

// A bit for each queue with an error: by a VINTF's own numbers, or of all.
std::uint32_t GuestQueues::error_map(std::optional<std::size_t> vintf, std::size_t word) const {
  std::uint32_t map = 0;
  for (std::size_t i = 0; i < vcmdqs_.size(); ++i) {
    if (!has_error(vcmdqs_[i]) || (vintf && owner_of(vcmdqs_[i]) != &vintfs_[*vintf])) continue;
    const std::uint64_t bit = vintf ? get<kCmdqAlloc, "LVCMDQ">(vcmdqs_[i].alloc) : i;
    if (bit / kWordBits == word) map |= 1U << bit % kWordBits;
  }
  return map;
}

std::uint64_t GuestQueues::read(std::uint64_t offset, unsigned bytes) const {
  if ((bytes != kWordBytes && bytes != 2 * kWordBytes) || offset % bytes != 0) return 0;
  const std::uint64_t low = read32(offset);
  return bytes == kWordBytes ? low : low | std::uint64_t{read32(offset + kWordBytes)} << kWordBits;
}

std::uint32_t GuestQueues::read32(std::uint64_t offset) const {
  if (offset < at::kVcmdqPage0) return read_configuration(offset);
  const auto place = place_of(offset);
  return place ? read_queue(*place) : 0;
}

std::uint32_t GuestQueues::read_configuration(std::uint64_t offset) const {
  if (offset >= at::kVintfs) {
    const std::uint64_t number = (offset - at::kVintfs) / at::kVintfStride;
    return number < vintfs_.size() ? read_vintf(number, (offset - at::kVintfs) % at::kVintfStride) : 0;
  }
  if (offset >= at::kCmdqAlloc) {
    const std::uint64_t number = (offset - at::kCmdqAlloc) / kWordBytes;
    return number < vcmdqs_.size() ? vcmdqs_[number].alloc : 0;
  }
  switch (offset) {
    case at::kConfig:
      return config_;
    case at::kParam:
      return parameters_;
    case at::kStatus:
      return static_cast<std::uint32_t>(
          pack<kCmdqvStatus>({{"CMDQV_ENABLED", get<kCmdqvConfig, "CMDQV_EN">(config_)}}));
    case at::kVintfInterruptMask:
    case at::kVintfInterruptMask + kWordBytes:
      return static_cast<std::uint32_t>(interrupt_mask_ >> (offset - at::kVintfInterruptMask) * 8);
    default:
      break;
  }
  constexpr std::size_t kVintfWords = kMostVintfs / kWordBits, kCmdqWords = kMostVcmdqs / kWordBits;
  if (offset >= at::kCmdqErrorMap && offset < at::kCmdqErrorMap + kCmdqWords * kWordBytes)
    return error_map(std::nullopt, (offset - at::kCmdqErrorMap) / kWordBytes);
  if (offset < at::kVintfErrorMap || offset >= at::kVintfErrorMap + kVintfWords * kWordBytes) return 0;
  std::uint32_t map = 0;
  const std::size_t first = (offset - at::kVintfErrorMap) / kWordBytes * kWordBits;
  for (std::size_t i = first; i < std::min<std::size_t>(vintfs_.size(), first + kWordBits); ++i)
    for (std::size_t word = 0; word < kCmdqWords; ++word)
      if (error_map(i, word) != 0) map |= 1U << (i - first);
  return map;
}

std::uint32_t GuestQueues::read_vintf(std::size_t number, std::uint64_t offset) const {
  const Vintf& vintf = vintfs_[number];
  constexpr std::size_t kMapWords = kMostVcmdqs / kWordBits;
  if (offset == at::kVintfConfig) return vintf.config;
  if (offset >= at::kSidMatch && offset < at::kSidMatch + kMostSids * kWordBytes)
    return vintf.match[(offset - at::kSidMatch) / kWordBytes];
  if (offset >= at::kSidReplace && offset < at::kSidReplace + kMostSids * kWordBytes)
    return vintf.replace[(offset - at::kSidReplace) / kWordBytes];
  if (offset >= at::kLvcmdqErrorMap && offset < at::kLvcmdqErrorMap + kMapWords * kWordBytes)
    return error_map(number, (offset - at::kLvcmdqErrorMap) / kWordBytes);
  if (offset != at::kVintfStatus) return 0;
  std::uint64_t queues = 0, enabled = get<kVintfConfig, "ENABLE">(vintf.config), error = 0;
  for (const Vcmdq& queue : vcmdqs_) {
    if (owner_of(queue) != &vintf) continue;
    ++queues;
    if (queue.is_under_way) enabled = 1;  // smmuv3-010
    if (has_error(queue)) error = kVcmdqError;
  }
  return static_cast<std::uint32_t>(
      pack<kVintfStatus>({{"ENABLE_OK", enabled}, {"STATUS", error}, {"VI_NUM_LVCMDQ", queues}}));
}

std::uint32_t GuestQueues::read_queue(const Place& place) const {
  const Vcmdq& queue = vcmdqs_[place.queue];
  if (place.is_page1) {
    if (place.at / 8 == at::kBase / 8) return half(queue.base, place.at);
    return place.at / 8 == at::kConsBase / 8 ? half(queue.cons_base, place.at) : 0;
  }
  switch (place.at) {
    case at::kCons:
      return queue.cons;
    case at::kProd:
      return queue.prod;
    case at::kVcmdqConfig:
      return queue.config;
    case at::kVcmdqStatus: {
      const bool enabled = get<kVcmdqConfig, "CMDQ_EN">(queue.config) != 0 || queue.is_under_way;
      return static_cast<std::uint32_t>(pack<kVcmdqStatus>({{"CMDQ_EN_OK", enabled ? 1U : 0U}}));
    }
    case at::kGerror:
      return queue.gerror;
    case at::kGerrorn:
      return queue.gerrorn;
    default:
      return 0;
  }
}

void GuestQueues::write(std::uint64_t offset, unsigned bytes, std::uint64_t value, RegisterEffect& effect) {
  if ((bytes != kWordBytes && bytes != 2 * kWordBytes) || offset % bytes != 0) return;
  for (unsigned done = 0; done < bytes; done += kWordBytes)
    write32(offset + done, static_cast<std::uint32_t>(value >> done * 8), effect);
}

void GuestQueues::write32(std::uint64_t offset, std::uint32_t value, RegisterEffect& effect) {
  if (offset >= at::kVcmdqPage0) {
    if (const auto place = place_of(offset)) write_queue(*place, value, effect);
    return;
  }
  write_configuration(offset, value);
  for (std::size_t i = 0; i < vcmdqs_.size(); ++i) tell_pending(effect, i);
}

void GuestQueues::tell_pending(RegisterEffect& effect, std::size_t number) const {
  const auto queue = static_cast<std::uint32_t>(number);
  if (has_command(number) && std::ranges::find(effect.further_queues, queue) == effect.further_queues.end())
    effect.further_queues.push_back(queue);
}

void GuestQueues::write_configuration(std::uint64_t offset, std::uint32_t value) {
  if (offset >= at::kVintfs) {
    const std::uint64_t number = (offset - at::kVintfs) / at::kVintfStride;
    if (number < vintfs_.size()) write_vintf(vintfs_[number], (offset - at::kVintfs) % at::kVintfStride, value);
  } else if (offset >= at::kCmdqAlloc) {
    const std::uint64_t number = (offset - at::kCmdqAlloc) / kWordBytes;
    if (number >= vcmdqs_.size() || get<kVcmdqConfig, "CMDQ_EN">(vcmdqs_[number].config) != 0) return;  // smmuv3-009
    vcmdqs_[number].alloc = value & values_of<kCmdqAlloc>();
  } else if (offset == at::kConfig) {
    config_ = value & values_of<kCmdqvConfig>();
  } else if (offset == at::kVintfInterruptMask || offset == at::kVintfInterruptMask + kWordBytes) {
    const unsigned shift = static_cast<unsigned>(offset - at::kVintfInterruptMask) * 8;
    interrupt_mask_ = (interrupt_mask_ & ~(std::uint64_t{0xffffffff} << shift)) | std::uint64_t{value} << shift;
  }
}

void GuestQueues::write_vintf(Vintf& vintf, std::uint64_t offset, std::uint32_t value) {
  if (offset == at::kVintfConfig) {
    const bool is_fixed = get<kVintfConfig, "ENABLE">(vintf.config) != 0;  // smmuv3-009
    std::uint64_t config = value & values_of<kVintfConfig>();
    if (is_fixed) config = with<kVintfConfig, "ENABLE">(vintf.config, get<kVintfConfig, "ENABLE">(value));
    if (view_ == QueueView::Guest) config = with<kVintfConfig, "HYP_OWN">(config, 0);
    vintf.config = static_cast<std::uint32_t>(config);
  } else if (offset >= at::kSidMatch && offset < at::kSidMatch + kMostSids * kWordBytes) {
    vintf.match[(offset - at::kSidMatch) / kWordBytes] = value & values_of<kSidMatch>();
  } else if (offset >= at::kSidReplace && offset < at::kSidReplace + kMostSids * kWordBytes) {
    vintf.replace[(offset - at::kSidReplace) / kWordBytes] = value & values_of<kSidReplace>();
  }
}

void GuestQueues::write_queue(const Place& place, std::uint32_t value, RegisterEffect& effect) {
  Vcmdq& queue = vcmdqs_[place.queue];
  const bool is_fixed = get<kVcmdqConfig, "CMDQ_EN">(queue.config) != 0;  // smmuv3-009
  if (place.is_page1) {
    if (is_fixed) return;
    if (place.at / 8 == at::kConsBase / 8)
      queue.cons_base = with_half(queue.cons_base, place.at, value, kVcmdqConsBase.mask_of(FieldKind::Value));
    if (place.at / 8 != at::kBase / 8) return;
    queue.base = with_half(queue.base, place.at, value, kVcmdqBase.mask_of(FieldKind::Value));
    if (owner_of(queue) == nullptr) return;
    const auto ring = static_cast<std::uint32_t>(get<kCmdqAlloc, "LVCMDQ">(queue.alloc));
    effect.placement = RingPlacement{.ring = ring,
                                     .base = Hpa(queue.base & mask_of<kVcmdqBase, "ADDR">),
                                     .entries = queue.base == 0 ? 0 : ring_of(queue).format.entries};
    return;
  }
  switch (place.at) {
    case at::kCons:
      if (is_fixed) return;
      queue.cons = value & values_of<kVcmdqCons>();
      queue.is_syncing = false;  // what is still under way is no command of this ring any more
      break;
    case at::kProd:
      queue.prod = value & values_of<kVcmdqProd>();
      break;
    case at::kVcmdqConfig:
      queue.config = value & values_of<kVcmdqConfig>();
      break;
    case at::kGerrorn:
      queue.gerrorn = value & values_of<kVcmdqGerror>();
      break;
    default:
      return;
  }
  tell_pending(effect, place.queue);
}

}  // namespace iommu::smmuv3
