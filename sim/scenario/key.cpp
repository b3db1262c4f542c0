// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/key.hpp"

#include <bit>

#include "sim/scenario/nearest.hpp"

namespace iommu::scenario {

namespace {

std::string describe(const Node& node) {
  switch (node.kind) {
    case Node::Kind::Null:
      return "nothing";
    case Node::Kind::Scalar:
      return "'" + node.text.substr(0, 40) + "'";
    case Node::Kind::Sequence:
      return "a list";
    case Node::Kind::Map:
      return "keys and values";
  }
  return {};
}

// One type for every quantity; U is constructed from the value in base units.
template <class U>
Type<U> quantity_type(const Dimension& dimension, std::uint64_t minimum, std::uint64_t maximum) {
  Type<U> type;
  type.info.kind = ValueKind::Quantity;
  type.info.summary = std::string(dimension.what);
  type.info.pattern = quantity_pattern(dimension);
  if (minimum != 0 || maximum != ~0ULL)
    type.info.summary += " from " + format_quantity(minimum, dimension) + " to " + format_quantity(maximum, dimension);
  type.read = [&dimension, minimum, maximum, summary = type.info.summary](Reader& reader,
                                                                          const Node& node) -> std::optional<U> {
    const auto text = scalar_text(reader, node, summary + " such as '" + std::string(dimension.example) + "'");
    if (!text) return std::nullopt;
    const ParsedQuantity parsed = parse_quantity(*text, dimension);
    if (const auto* problem = std::get_if<std::string>(&parsed)) {
      reader.diagnostics.error(node.at, *problem);
      return std::nullopt;
    }
    const std::uint64_t value = std::get<std::uint64_t>(parsed);
    if (value < minimum || value > maximum) {
      reader.diagnostics.error(node.at, "'" + *text + "' is out of range; expected " + summary);
      return std::nullopt;
    }
    return U(static_cast<typename U::rep>(value));
  };
  type.write = [&dimension](const U& value) {
    return Node::scalar(format_quantity(static_cast<std::uint64_t>(value.value()), dimension));
  };
  return type;
}

std::vector<std::string> names_of_applicable_keys(const Node& node, const ObjectInfo& info) {
  std::vector<std::string> names;
  for (const KeyInfo& key : info.keys)
    if (applies(key, node, info)) names.push_back(key.name);
  return names;
}

void check_one_key(Reader& reader, const Node& node, const Entry& entry, const ObjectInfo& info) {
  const auto found = std::ranges::find(info.keys, entry.key, &KeyInfo::name);
  if (found == info.keys.end()) {
    reader.diagnostics.error(entry.at, "unknown key '" + entry.key.substr(0, 60) + "' in " + info.name +
                                           did_you_mean(entry.key, names_of_applicable_keys(node, info)));
  } else if (!applies(*found, node, info)) {
    reader.diagnostics.error(entry.at, "key '" + entry.key + "' belongs to " + info.keys.front().name + ": " +
                                           found->only_for + " and has no effect here");
  }
}

}  // namespace

void report_mismatch(Reader& reader, const Node& node, const std::string& expected) {
  reader.diagnostics.error(node.at, "found " + describe(node) + "; expected " + expected);
}

std::optional<std::string> scalar_text(Reader& reader, const Node& node, const std::string& expected) {
  if (node.kind == Node::Kind::Scalar) return node.text;
  report_mismatch(reader, node, expected);
  return std::nullopt;
}

void report_unknown_word(Reader& reader, const Node& node, const TypeInfo& info) {
  reader.diagnostics.error(
      node.at, "found " + describe(node) + "; expected " + info.summary + did_you_mean(node.text, info.words));
}

Type<std::uint64_t> count_type(CountRange range) {
  Type<std::uint64_t> type;
  const bool needs_power = range.shape == CountRange::Shape::PowerOfTwo;
  type.info.kind = ValueKind::Count;
  type.info.minimum = range.minimum;
  type.info.maximum = range.maximum;
  type.info.summary = std::string(needs_power ? "a power of two" : "a number") + " from " +
                      std::to_string(range.minimum) + " to " + std::to_string(range.maximum);
  type.read = [range, needs_power, info = type.info](Reader& reader, const Node& node) -> std::optional<std::uint64_t> {
    constexpr std::size_t kMaxDigits = 19;
    const bool is_number = node.kind == Node::Kind::Scalar && !node.is_quoted && !node.text.empty() &&
                           node.text.size() <= kMaxDigits &&
                           std::ranges::all_of(node.text, [](char c) { return c >= '0' && c <= '9'; });
    const std::uint64_t value = is_number ? std::stoull(node.text) : 0;
    const bool fits = is_number && value >= range.minimum && value <= range.maximum;
    if (fits && (!needs_power || std::has_single_bit(value))) return value;
    report_mismatch(reader, node, info.summary);
    return std::nullopt;
  };
  type.write = [](const std::uint64_t& value) { return Node::scalar(std::to_string(value)); };
  return type;
}

Type<bool> flag_type() {
  Type<bool> type;
  type.info.kind = ValueKind::Flag;
  type.info.summary = "true or false";
  type.read = [](Reader& reader, const Node& node) -> std::optional<bool> {
    if (node.kind == Node::Kind::Scalar && !node.is_quoted && (node.text == "true" || node.text == "false"))
      return node.text == "true";
    report_mismatch(reader, node, "true or false");
    return std::nullopt;
  };
  type.write = [](const bool& value) { return Node::scalar(value ? "true" : "false"); };
  return type;
}

Type<std::string> text_type(std::string summary) {
  Type<std::string> type;
  type.info.kind = ValueKind::Text;
  type.info.summary = std::move(summary);
  type.read = [info = type.info](Reader& reader, const Node& node) { return scalar_text(reader, node, info.summary); };
  // An empty text is one that nobody gave.
  type.write = [](const std::string& value) { return value.empty() ? Node{} : Node::scalar(value); };
  return type;
}

Type<std::string> name_type(std::string summary) {
  Type<std::string> type = text_type(std::move(summary));
  type.info.pattern = "^[A-Za-z0-9_.-]{1,60}$";
  type.read = [info = type.info](Reader& reader, const Node& node) -> std::optional<std::string> {
    const auto text = scalar_text(reader, node, info.summary);
    if (!text) return std::nullopt;
    constexpr std::size_t kMaxName = 60;
    const auto is_allowed = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
             c == '.';
    };
    if (!text->empty() && text->size() <= kMaxName && text->front() != '.' && std::ranges::all_of(*text, is_allowed))
      return text;
    report_mismatch(reader, node, info.summary + " of letters, digits, '_', '-' and '.'");
    return std::nullopt;
  };
  return type;
}

Type<Picoseconds> time_type(Picoseconds minimum, Picoseconds maximum) {
  return quantity_type<Picoseconds>(time_dimension(), static_cast<std::uint64_t>(minimum.value()),
                                    static_cast<std::uint64_t>(maximum.value()));
}
Type<Bytes> size_type(Bytes minimum, Bytes maximum) {
  return quantity_type<Bytes>(size_dimension(), minimum.value(), maximum.value());
}
Type<BitsPerSecond> rate_type() {
  // 1 kb/s is a packet of 1500 bytes every 12 s; 100 Tb/s is beyond any link of the next decade.
  return quantity_type<BitsPerSecond>(rate_dimension(), 1'000, 100'000'000'000'000);
}
Type<Hertz> frequency_type() { return quantity_type<Hertz>(frequency_dimension(), 1'000'000, 100'000'000'000); }

Type<Bytes> size_choice_type(const std::vector<Bytes>& choices) {
  Words<Bytes> words;
  for (const Bytes choice : choices) words.emplace_back(format_quantity(choice.value(), size_dimension()), choice);
  Type<Bytes> type = word_type<Bytes>(words);
  // "4KiB" and "4096 B" mean the same, so the text is read as a size and the words serve documentation.
  type.info.kind = ValueKind::Quantity;
  type.info.pattern = quantity_pattern(size_dimension());
  type.read = [choices, info = type.info](Reader& reader, const Node& node) -> std::optional<Bytes> {
    const auto text = scalar_text(reader, node, info.summary);
    if (!text) return std::nullopt;
    const ParsedQuantity parsed = parse_quantity(*text, size_dimension());
    if (const auto* problem = std::get_if<std::string>(&parsed)) {
      reader.diagnostics.error(node.at, *problem);
      return std::nullopt;
    }
    const Bytes value(std::get<std::uint64_t>(parsed));
    if (std::ranges::find(choices, value) != choices.end()) return value;
    report_mismatch(reader, node, info.summary);
    return std::nullopt;
  };
  return type;
}

std::optional<RowParts> read_row_parts(Reader& reader, const Node& node) {
  static const ObjectInfo kRow{"a platform number",
                               "A value, where it comes from, and how far to trust that.",
                               {{"value", {}, Need::Required, {}, {}, {}},
                                {"source", {}, Need::Required, {}, {}, {}},
                                {"mark", {}, Need::Required, {}, {}, {}}}};
  static const Type<Mark> kMark = word_type<Mark>(
      {{"found", Mark::Found}, {"derived", Mark::Derived}, {"memory", Mark::Memory}, {"guess", Mark::Guess}});
  if (node.kind != Node::Kind::Map) {
    report_mismatch(reader, node, "{value: …, source: …, mark: found|derived|memory|guess}");
    return std::nullopt;
  }
  if (!check_keys(reader, node, kRow)) return std::nullopt;
  const Node* value = node.find("value");
  const Node* source = node.find("source");
  const Node* mark = node.find("mark");
  if (value == nullptr || source == nullptr || mark == nullptr) return std::nullopt;
  const auto source_text = scalar_text(reader, *source, "where the number comes from");
  const auto mark_value = kMark.read(reader, *mark);
  if (!source_text || !mark_value) return std::nullopt;
  return RowParts{value, *source_text, *mark_value};
}

Node write_row(Node value, const std::string& source, Mark mark) {
  Node row = Node::map();
  row.add("value", std::move(value));
  row.add("source", Node::scalar(source));
  row.add("mark", Node::scalar(std::string(to_string(mark))));
  return row;
}

std::vector<std::string> KeyInfo::kinds() const {
  constexpr std::string_view kBetween = ", ";
  std::vector<std::string> all;
  for (std::size_t at = 0; at < only_for.size();) {
    const std::size_t end = std::min(only_for.find(kBetween, at), only_for.size());
    all.push_back(only_for.substr(at, end - at));
    at = end + kBetween.size();
  }
  return all;
}

bool KeyInfo::is_for(const std::string& kind) const {
  const std::vector<std::string> all = kinds();
  return all.empty() || std::ranges::find(all, kind) != all.end();
}

bool applies(const KeyInfo& key, const Node& node, const ObjectInfo& info) {
  if (key.only_for.empty()) return true;
  const Node* kind = node.find(info.keys.front().name);
  return kind != nullptr && key.is_for(kind->text);
}

bool check_keys(Reader& reader, const Node& node, const ObjectInfo& info) {
  if (node.kind != Node::Kind::Map) {
    report_mismatch(reader, node, "the keys of " + info.name);
    return false;
  }
  for (std::size_t i = 0; i < node.entries.size(); ++i) {
    const Entry& entry = node.entries[i];
    const Node* first = node.find(entry.key);
    if (first != &entry.value) {
      reader.diagnostics.error(entry.at, "key '" + entry.key.substr(0, 60) + "' is given twice; first in line " +
                                             std::to_string(first->at.line));
      continue;
    }
    check_one_key(reader, node, entry, info);
  }
  for (const KeyInfo& key : info.keys)
    if (key.need == Need::Required && applies(key, node, info) && node.find(key.name) == nullptr)
      reader.diagnostics.error(
          node.at, "key '" + key.name + "' is missing in " + info.name + (key.doc.empty() ? "" : " (" + key.doc + ")"));
  return true;
}

}  // namespace iommu::scenario
