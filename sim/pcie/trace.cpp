// SPDX-License-Identifier: Apache-2.0
#include "sim/pcie/trace.hpp"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>

#include "sim/pcie/text_lines.hpp"
#include "sim/pcie/trace_builder.hpp"

namespace iommu {

TraceError::TraceError(std::string_view file, std::uint64_t line, std::string_view message)
    : std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + std::string(message)),
      file_(file),
      line_(line),
      message_(message) {}

namespace {

constexpr std::size_t kColumns = 8;
enum Column : std::size_t { kTime, kEvent, kRequester, kDomain, kAddress, kSize, kPermissions, kExtra };

// Events that say nothing about the driver's operations or the device's DMA.
constexpr std::array<std::string_view, 9> kOtherEvents{"reg", "ctx_fetch", "attach",  "detach",      "fault",
                                                       "msi", "dev_cmd",   "dev_cpl", "dev_doorbell"};

struct ClassName {
  std::string_view name;
  TraceDmaClass kind;
};
constexpr std::array kClassNames{ClassName{"sq", TraceDmaClass::SubmissionQueue},
                                 ClassName{"cq", TraceDmaClass::CompletionQueue},
                                 ClassName{"data", TraceDmaClass::Data},
                                 ClassName{"prplist", TraceDmaClass::PrpList},
                                 ClassName{"dbbuf", TraceDmaClass::ShadowDoorbell},
                                 ClassName{"rxbuf", TraceDmaClass::ReceiveBuffer}};

std::string_view first_word(std::string_view extra) { return extra.substr(0, extra.find(';')); }

// The value of `key=` in an extra column.
std::optional<std::string_view> value_of(std::string_view extra, std::string_view key) {
  for (;;) {
    const std::string_view word = first_word(extra);
    if (word.size() > key.size() && word.starts_with(key) && word[key.size()] == '=')
      return word.substr(key.size() + 1);
    if (word.size() == extra.size()) return std::nullopt;
    extra.remove_prefix(word.size() + 1);
  }
}

TraceDmaClass class_of(std::string_view extra) {
  for (;;) {
    const std::string_view word = first_word(extra);
    for (const ClassName& row : kClassNames)
      if (word == row.name) return row.kind;
    if (word.size() == extra.size()) return TraceDmaClass::Other;
    extra.remove_prefix(word.size() + 1);
  }
}

constexpr std::uint64_t kDescriptorAlignment = 16;

Access assumed_access(TraceDmaClass kind, std::optional<Permissions> page, Iova address) {
  switch (kind) {
    case TraceDmaClass::SubmissionQueue:
    case TraceDmaClass::PrpList:
      return Access::Read;
    case TraceDmaClass::CompletionQueue:
    case TraceDmaClass::ReceiveBuffer:
    case TraceDmaClass::Data:
      return Access::Write;
    case TraceDmaClass::ShadowDoorbell:
    case TraceDmaClass::Other:
      break;
  }
  if (page && page->read != page->write) return page->read ? Access::Read : Access::Write;
  return address.value() % kDescriptorAlignment == 0 ? Access::Read : Access::Write;
}

class Reader {
 public:
  Reader(const std::string& path, const TraceOptions& options)
      : name_(std::filesystem::path(path).filename().string()), options_(options), lines_(path) {}

  Trace read() {
    while (const auto line = lines_.next()) {
      if (line->empty()) continue;
      if (line->front() == '#')
        comment(*line);
      else
        event(*line);
    }
    if (!lines_.problem().empty()) throw TraceError(name_, lines_.number(), lines_.problem());
    Trace trace = builder_.finish();
    if (trace.dmas.empty()) throw TraceError(name_, lines_.number(), "the trace holds no DMA of a mapped device");
    trace.name = title_.empty() ? name_ : title_;
    trace.requester = *requester_;
    trace.recorded = recorded_;
    trace.dropped = dropped_;
    trace.unsized_dmas = unsized_;
    return trace;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { throw TraceError(name_, lines_.number(), message); }
  void accept(const TraceBuilder::Problem& problem) const {
    if (!problem.empty()) fail(problem);
  }

  void comment(std::string_view line) {
    constexpr std::string_view kHeader = "# iommu-trace ";
    if (!line.starts_with(kHeader)) return;
    line.remove_prefix(kHeader.size());
    if (!line.starts_with("v1 ")) fail("the trace format version is not v1");
    const auto name = line.find("name=");
    if (name != std::string_view::npos) title_ = line.substr(name + 5, line.find(' ', name) - name - 5);
  }

  void split(std::string_view line) {
    for (std::size_t c = 0; c + 1 < kColumns; ++c) {
      const auto comma = line.find(',');
      if (comma == std::string_view::npos) fail("has fewer than 8 columns");
      columns_[c] = line.substr(0, comma);
      line.remove_prefix(comma + 1);
    }
    columns_[kExtra] = line;
  }

  std::uint64_t number(std::string_view text, int base, std::string_view what) const {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc{} || end != text.data() + text.size() || text.empty())
      fail("the " + std::string(what) + " '" + std::string(text) + "' is not a number of 64 bits");
    return value;
  }
  Iova address() const { return Iova(number(columns_[kAddress], 16, "address")); }
  Bytes size() const { return Bytes(number(columns_[kSize], 10, "size")); }

  std::optional<Permissions> permissions() const {
    const std::string_view text = columns_[kPermissions];
    if (text.empty()) return std::nullopt;
    if (text == "R") return kReadOnly;
    if (text == "W") return kWriteOnly;
    if (text == "RW") return kReadWrite;
    fail("the permissions '" + std::string(text) + "' are none of R, W, RW");
  }

  RequesterId requester() const {
    const std::string_view text = columns_[kRequester];
    if (text.size() != 7 || text[2] != ':' || text[5] != '.') fail("the requester is not of the form bb:dd.f");
    const auto bus = number(text.substr(0, 2), 16, "bus");
    const auto device = number(text.substr(3, 2), 16, "device");
    const auto function = number(text.substr(6), 16, "function");
    if (device > 31 || function > 7) fail("the requester has a device above 1f or a function above 7");
    return RequesterId::bdf(static_cast<unsigned>(bus), static_cast<unsigned>(device), static_cast<unsigned>(function));
  }

  void event(std::string_view line) {
    split(line);
    const std::uint64_t time = number(columns_[kTime], 10, "time");
    if (time < time_) fail("is earlier than the line before it");
    time_ = time;
    const std::string_view name = columns_[kEvent];
    if (name == "map")
      map();
    else if (name == "unmap")
      accept(builder_.unmap(address(), size()));
    else if (name.starts_with("dma_"))
      dma(name);
    else if (name.starts_with("inval_"))
      invalidation(name);
    else if (std::find(kOtherEvents.begin(), kOtherEvents.end(), name) == kOtherEvents.end())
      fail("unknown event '" + std::string(name) + "'");
  }

  void map() {
    const auto physical = value_of(columns_[kExtra], "pa");
    if (!physical) fail("a map without its physical address (pa=)");
    accept(builder_.map(lines_.number(), address(), size(), Gpa(number(*physical, 16, "physical address")),
                        permissions()));
  }

  void dma(std::string_view name) {
    const RequesterId who = requester();
    if (requester_.value_or(who) != who) fail("DMA of a second device; a trace is of one");
    requester_ = who;
    const TraceDmaClass kind = class_of(columns_[kExtra]);
    const std::optional<Permissions> page = permissions();
    const Iova where = address();
    Access access = Access::Read;
    if (name == "dma_write")
      access = Access::Write;
    else if (name == "dma_rw")
      access = assumed_access(kind, page, where);
    else if (name != "dma_read")
      fail("unknown event '" + std::string(name) + "'");
    const auto room = builder_.mapped_from(where);
    if (!room) fail("DMA to " + std::string(columns_[kAddress]) + ", which is not mapped");
    Bytes length;
    if (!columns_[kSize].empty()) {
      length = size();
    } else {
      ++unsized_;
      const bool is_packet = kind == TraceDmaClass::Other && access == Access::Read && page == kReadOnly;
      length = std::min(*room, is_packet ? options_.unsized_read : options_.unsized_dma);
    }
    if (std::find(options_.drop.begin(), options_.drop.end(), kind) != options_.drop.end())
      ++dropped_[static_cast<std::size_t>(kind)];
    else
      accept(builder_.dma(where, length, access, kind, page));
  }

  void invalidation(std::string_view name) {
    if (name == "inval_iotlb") return iotlb_invalidation(first_word(columns_[kExtra]));
    if (name == "inval_devtlb")
      ++recorded_.device_tlb;
    else if (name == "inval_context")
      ++recorded_.context;
    else if (name == "inval_iec")
      ++recorded_.interrupt_entry;
    else if (name == "inval_wait")
      ++recorded_.fence;
    else if (name == "inval_kick")
      ++recorded_.kick;
    else
      fail("unknown event '" + std::string(name) + "'");
  }
  void iotlb_invalidation(std::string_view scope) {
    if (scope.starts_with("page"))
      ++recorded_.iotlb_page;
    else if (scope == "domain" || scope == "asid")
      ++recorded_.iotlb_domain;
    else if (scope == "global" || scope.starts_with("all"))
      ++recorded_.iotlb_global;
    else
      fail("unknown scope '" + std::string(scope) + "' of an IOTLB invalidation");
  }

  std::string name_;
  const TraceOptions& options_;
  TextLines lines_;
  TraceBuilder builder_;
  std::array<std::string_view, kColumns> columns_{};
  std::uint64_t time_ = 0;
  std::string title_;
  std::optional<RequesterId> requester_;
  RecordedInvalidations recorded_;
  std::array<std::uint64_t, kTraceDmaClasses> dropped_{};
  std::uint64_t unsized_ = 0;
};

}  // namespace

Trace read_trace(const std::string& path, const TraceOptions& options) { return Reader(path, options).read(); }

}  // namespace iommu
