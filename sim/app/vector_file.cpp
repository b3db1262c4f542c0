// SPDX-License-Identifier: Apache-2.0
#include "sim/app/vector_file.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

namespace iommu {

namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormat = "qemu-oracle-1";
constexpr std::size_t kMaxLine = 64U << 20;
constexpr std::size_t kMaxItems = 1U << 20;
constexpr unsigned kHexDigits = 16;
constexpr int kDmaBytes = 4;

// Where and why a record is not what the format says. Never leaves this file.
struct Bad {
  std::string what;
};

const Json& member(const Json& object, const char* key) {
  if (!object.is_object()) throw Bad{fmt::format("expected an object with '{}'", key)};
  const auto found = object.find(key);
  if (found == object.end()) throw Bad{fmt::format("'{}' is missing", key)};
  return *found;
}
const std::string& text(const Json& value, const char* what) {
  if (!value.is_string()) throw Bad{fmt::format("'{}' is not a string", what)};
  return value.get_ref<const std::string&>();
}
const Json& list(const Json& value, const char* what) {
  if (!value.is_array()) throw Bad{fmt::format("'{}' is not a list", what)};
  if (value.size() > kMaxItems) throw Bad{fmt::format("'{}' has {} items", what, value.size())};
  return value;
}
const Json& tuple(const Json& value, std::size_t size, const char* what) {
  if (!value.is_array() || value.size() != size)
    throw Bad{fmt::format("an item of '{}' is not a list of {}", what, size)};
  return value;
}
std::uint64_t number(const Json& value, const char* what) {
  if (!value.is_string()) throw Bad{fmt::format("'{}' is not a hexadecimal string", what)};
  const auto& digits = value.get_ref<const std::string&>();
  std::uint64_t result = 0;
  const char* end = digits.data() + digits.size();
  const bool prefixed = digits.size() > 2 && digits[0] == '0' && digits[1] == 'x' && digits.size() <= 2 + kHexDigits;
  const auto parsed = std::from_chars(digits.data() + (prefixed ? 2 : 0), end, result, 16);
  if (!prefixed || parsed.ec != std::errc() || parsed.ptr != end)
    throw Bad{fmt::format("'{}' in '{}' is not a hexadecimal number", digits.substr(0, 2 + kHexDigits), what)};
  return result;
}
std::uint64_t integer(const Json& value, std::uint64_t limit, const char* what) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > limit)
    throw Bad{fmt::format("'{}' is not an integer from 0 to {}", what, limit)};
  return value.get<std::uint64_t>();
}

VectorRegion region(std::uint64_t base, std::uint64_t bytes, std::uint64_t flat, const char* what) {
  if (base + bytes < base) throw Bad{fmt::format("a region of '{}' wraps around", what)};
  return {base, bytes, flat};
}

std::vector<VectorRegisterAccess> registers(const Json& value, const char* what) {
  std::vector<VectorRegisterAccess> result;
  for (const Json& item : list(value, what)) {
    tuple(item, 4, what);
    VectorRegisterAccess access;
    const std::string& kind = text(item[0], what);
    if (kind != "w" && kind != "r") throw Bad{fmt::format("'{}' in '{}' is neither 'r' nor 'w'", kind, what)};
    access.kind = kind == "w" ? VectorRegisterAccess::Kind::Write : VectorRegisterAccess::Kind::Read;
    access.offset = number(item[1], what);
    access.bytes = static_cast<unsigned>(integer(item[2], 8, what));
    if (access.bytes != 4 && access.bytes != 8)
      throw Bad{fmt::format("an access in '{}' is not of 4 or 8 bytes", what)};
    access.value = number(item[3], what);
    result.push_back(access);
  }
  return result;
}

std::vector<VectorWord> words(const Json& value, const char* what) {
  std::vector<VectorWord> result;
  for (const Json& item : list(value, what)) {
    tuple(item, 2, what);
    const std::uint64_t address = number(item[0], what);
    if (address % 8 != 0) throw Bad{fmt::format("an address of '{}' is not a multiple of 8", what)};
    result.emplace_back(address, number(item[1], what));
  }
  return result;
}

VectorOutcome outcome(const Json& access, const VectorFamily& family) {
  VectorOutcome result;
  const std::string& name = text(member(access, "outcome"), "outcome");
  if (name == "translated") {
    result.result = VectorResult::Translated;
    result.output = number(member(access, "pa"), "pa");
  } else if (name == "fault") {
    result.result = VectorResult::Fault;
    const Json& records = list(member(member(access, "fault"), "records"), "records");
    if (records.empty()) throw Bad{"a fault without record"};
    std::vector<std::uint64_t> raw;
    for (const Json& word : list(records[0], "records")) raw.push_back(number(word, "records"));
    const auto fault = family.read_record(raw);
    if (!fault) throw Bad{"'records' holds no fault"};
    result.reason = fault->first;
    result.fault = fault->second;
  } else if (name == "blocked") {
    result.result = VectorResult::Blocked;
  } else if (name == "msi") {
    result.result = VectorResult::Interrupt;
  } else if (name == "unknown") {
    result.result = VectorResult::Unknown;
  } else {
    throw Bad{fmt::format("unknown outcome '{}'", name.substr(0, 32))};
  }
  return result;
}

VectorAccess access(const Json& value, const VectorFamily& family) {
  VectorAccess result;
  result.request.requester = RequesterId(static_cast<std::uint16_t>(integer(member(value, "rid"), 0xffff, "rid")));
  result.request.address = Iova(number(member(value, "iova"), "iova"));
  const Json& is_write = member(value, "is_write");
  if (!is_write.is_boolean()) throw Bad{"'is_write' is not a boolean"};
  result.request.access = is_write.get<bool>() ? Access::Write : Access::Read;
  if (integer(member(value, "len"), kDmaBytes, "len") != kDmaBytes) throw Bad{"'len' is not 4"};
  result.request.length = Bytes(kDmaBytes);
  result.before = registers(member(value, "pre"), "pre");
  result.recorded = outcome(value, family);
  return result;
}

void read_environment(const Json& env, VectorRecord& record) {
  const std::string& version = text(member(env, "qemu"), "qemu");
  const auto parsed = std::from_chars(version.data(), version.data() + version.size(), record.recorder_major);
  if (parsed.ec != std::errc()) throw Bad{"'qemu' is not a version"};
  record.variant = text(member(env, "variant"), "variant");
  const Json& id_registers = member(env, "id_regs");
  if (!id_registers.is_object()) throw Bad{"'id_regs' is not an object"};
  for (const auto& [name, value] : id_registers.items()) record.id_registers[name] = number(value, "id_regs");
  for (const Json& item : list(member(env, "ram"), "ram")) {
    tuple(item, 2, "ram");
    record.ram.push_back(region(number(item[0], "ram"), number(item[1], "ram"), 0, "ram"));
  }
  for (const Json& item : list(member(env, "pools"), "pools")) {
    tuple(item, 3, "pools");
    record.pools.push_back(
        region(number(item[0], "pools"), number(item[1], "pools"), number(item[2], "pools"), "pools"));
  }
}

VectorFileRecord parse(const Json& line, std::span<const VectorFamily* const> families) {
  if (text(member(line, "format"), "format") != kFormat) throw Bad{fmt::format("'format' is not {}", kFormat)};
  VectorFileRecord result;
  VectorRecord& record = result.record;
  record.id = text(member(line, "id"), "id");
  record.family = text(member(line, "family"), "family");
  for (const VectorFamily* family : families)
    if (family->name == record.family) result.family = family;
  if (result.family == nullptr) throw Bad{fmt::format("no model of family '{}'", record.family.substr(0, 32))};
  read_environment(member(line, "env"), record);
  for (const Json& note : list(member(line, "notes"), "notes"))
    record.notes.append(record.notes.empty() ? "" : "; ").append(text(note, "notes"));
  for (const Json& item : list(member(line, "zero_fill"), "zero_fill")) {
    tuple(item, 2, "zero_fill");
    record.zeroed.push_back(
        region(number(item[0], "zero_fill"), integer(item[1], 1ULL << 32, "zero_fill"), 0, "zero_fill"));
  }
  record.words = words(member(line, "mem"), "mem");
  record.words_after = words(member(line, "mem_after"), "mem_after");
  record.setup = registers(member(line, "regs"), "regs");
  for (const Json& item : list(member(line, "accesses"), "accesses"))
    record.accesses.push_back(access(item, *result.family));
  return result;
}

}  // namespace

VectorFile::VectorFile(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
  constexpr unsigned kBuffer = 1U << 18;
  if (file_) gzbuffer(file_.get(), kBuffer);
}

VectorFile::Line VectorFile::read_line(std::string& line, std::string& why) {
  std::array<char, 1U << 16> chunk{};
  line.clear();
  for (;;) {
    if (gzgets(file_.get(), chunk.data(), static_cast<int>(chunk.size())) == nullptr) {
      int code = Z_OK;
      const char* message = gzerror(file_.get(), &code);
      if (code != Z_OK && code != Z_STREAM_END) {
        why = code == Z_BUF_ERROR ? "compressed data ends early" : fmt::format("cannot be decompressed ({})", message);
        return Line::Failed;
      }
      return line.empty() ? Line::End : Line::Read;
    }
    line += chunk.data();
    if (line.size() > kMaxLine) {
      why = "line is longer than 64 MiB";
      return Line::Failed;
    }
    if (!line.empty() && line.back() == '\n') return Line::Read;
  }
}

VectorFileNext VectorFile::next(std::span<const VectorFamily* const> families) {
  if (!file_) return VectorFileError{path_, 0, "cannot be opened"};
  std::string line, why;
  const Line got = read_line(line, why);
  if (got == Line::End) return VectorFileEnd{};
  ++number_;
  if (got == Line::Failed) return VectorFileError{path_, number_, why};
  const Json json = Json::parse(line, nullptr, false);
  if (json.is_discarded()) return VectorFileError{path_, number_, "is not JSON"};
  try {
    return parse(json, families);
  } catch (const Bad& bad) {
    return VectorFileError{path_, number_, bad.what};
  }
}

}  // namespace iommu
