// SPDX-License-Identifier: Apache-2.0
// The machinery of the schema: a key is declared once, with its type, range, default and documentation, and bound to
// the member it fills. From the same declaration come the strict reader, the writer of effective.yaml, the JSON Schema
// and the documentation. The declarations themselves are in schema.cpp and platform_schema.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/scenario/document.hpp"
#include "sim/scenario/quantity_text.hpp"
#include "sim/scenario/scenario.hpp"

namespace iommu::scenario {

// Describing keys
// ------------------------------------------------------------------------------------------------------

enum class ValueKind : std::uint8_t { Count, Flag, Text, Word, Quantity, Object };
enum class Need : std::uint8_t { Required, Defaulted, Optional };

struct ObjectInfo;

// What a value may be, for documentation and editors.
struct TypeInfo {
  ValueKind kind = ValueKind::Text;
  std::string summary;                 // "a size", "one of strict, lazy"
  std::string pattern;                 // Quantity and constrained Text: regular expression
  std::uint64_t minimum = 0;           // Count
  std::uint64_t maximum = 0;           // Count
  std::vector<std::string> words;      // Word
  const ObjectInfo* object = nullptr;  // Object
  bool is_list = false;                // a list of the above
  std::size_t minimum_items = 0;       // of the list
  bool is_row = false;                 // {value, source, mark} around the above
  bool is_family = false;              // Word out of the registry of families
  std::string shorthand_key;           // a scalar in place of the object stands for {shorthand_key: scalar}
};

struct KeyInfo {
  std::string name;
  TypeInfo type;
  Need need = Need::Required;
  std::string default_text;  // Defaulted: as the writer would write it
  std::string doc;
  std::string only_for;  // values of the object's first key for which this key exists, with ", "; empty: always
  // The same, one by one.
  [[nodiscard]] std::vector<std::string> kinds() const;
  // Whether it exists for a value of the first key.
  [[nodiscard]] bool is_for(const std::string& kind) const;
};

// An object's keys. The first one is the discriminator if others have `only_for`.
struct ObjectInfo {
  std::string name;  // "workload"
  std::string doc;
  std::vector<KeyInfo> keys;
  // What is given replaces parts of another object of the kind (platforms): nothing is then required, and a row may be
  // replaced by its bare value.
  bool is_overlay = false;
};

// Reading and writing values
// --------------------------------------------------------------------------------------------

struct Reader {
  Diagnostics& diagnostics;
  std::vector<std::string> families;  // names that `families:` may use
};

// How one type of value is read (nullopt after reporting) and written.
template <class U>
struct Type {
  TypeInfo info;
  std::function<std::optional<U>(Reader&, const Node&)> read;
  std::function<Node(const U&)> write;
};

template <class T>
struct Key {
  KeyInfo info;
  std::function<void(Reader&, const Node&, T&)> read;
  std::function<std::optional<Node>(const T&)> write;  // nullopt: an optional without value
};

template <class T>
struct ObjectSchema {
  ObjectInfo info;
  std::vector<Key<T>> keys;

  ObjectSchema(std::string name, std::string doc, std::vector<Key<T>> all)
      : info{std::move(name), std::move(doc), {}}, keys(std::move(all)) {
    for (const Key<T>& key : keys) info.keys.push_back(key.info);
  }
};

// Members
// -----------------------------------------------------------------------------------------------------------------

template <class... Members>
struct At;
template <class A, class M>
struct At<M A::*> {
  M A::* member;
  M& operator()(A& object) const { return object.*member; }
  const M& operator()(const A& object) const { return object.*member; }
};
template <class A, class M, class... Rest>
struct At<M A::*, Rest...> {
  M A::* member;
  At<Rest...> rest;
  auto& operator()(A& object) const { return rest(object.*member); }
  const auto& operator()(const A& object) const { return rest(object.*member); }
};
// at(&A::b, &B::c): the member c of the member b.
template <class A, class M>
At<M A::*> at(M A::* member) {
  return {member};
}
template <class A, class M, class... Rest>
auto at(M A::* member, Rest... rest) {
  return At<M A::*, Rest...>{member, at(rest...)};
}

// Types
// -------------------------------------------------------------------------------------------------------------------

// Reports that a node is not what was expected.
void report_mismatch(Reader& reader, const Node& node, const std::string& expected);
// The node's text, or nullopt after reporting that it is no scalar.
[[nodiscard]] std::optional<std::string> scalar_text(Reader& reader, const Node& node, const std::string& expected);
void report_unknown_word(Reader& reader, const Node& node, const TypeInfo& info);

struct CountRange {
  std::uint64_t minimum = 0;
  std::uint64_t maximum = 0;
  enum class Shape : std::uint8_t { Any, PowerOfTwo } shape = Shape::Any;
};
[[nodiscard]] Type<std::uint64_t> count_type(CountRange range);
[[nodiscard]] Type<bool> flag_type();
[[nodiscard]] Type<std::string> text_type(std::string summary);
// A name that reports and other keys use: letters, digits, '_', '-', '.'.
[[nodiscard]] Type<std::string> name_type(std::string summary);
[[nodiscard]] Type<Picoseconds> time_type(Picoseconds minimum, Picoseconds maximum);
[[nodiscard]] Type<Bytes> size_type(Bytes minimum, Bytes maximum);
[[nodiscard]] Type<BitsPerSecond> rate_type();
[[nodiscard]] Type<Hertz> frequency_type();

template <class E>
using Words = std::vector<std::pair<std::string, E>>;

template <class E>
Type<E> word_type(Words<E> words) {
  Type<E> type;
  type.info.kind = ValueKind::Word;
  for (const auto& [name, value] : words) {
    type.info.summary += (type.info.words.empty() ? "one of " : ", ") + name;
    type.info.words.push_back(name);
  }
  type.read = [words, info = type.info](Reader& reader, const Node& node) -> std::optional<E> {
    const auto text = scalar_text(reader, node, info.summary);
    if (!text) return std::nullopt;
    for (const auto& [name, value] : words)
      if (name == *text) return value;
    report_unknown_word(reader, node, info);
    return std::nullopt;
  };
  type.write = [words](const E& wanted) {
    for (const auto& [name, value] : words)
      if (value == wanted) return Node::scalar(name);
    return Node{};
  };
  return type;
}

// A size out of a few, such as page sizes.
[[nodiscard]] Type<Bytes> size_choice_type(const std::vector<Bytes>& choices);

template <class U>
Type<std::optional<U>> optional_type(Type<U> inner) {
  Type<std::optional<U>> type;
  type.info = inner.info;
  type.read = [inner](Reader& reader, const Node& node) -> std::optional<std::optional<U>> {
    const auto value = inner.read(reader, node);
    if (!value) return std::nullopt;
    return std::optional<std::optional<U>>(std::in_place, *value);
  };
  type.write = [inner](const std::optional<U>& value) { return value ? inner.write(*value) : Node{}; };
  return type;
}

template <class U>
Type<std::vector<U>> list_type(Type<U> item, std::size_t minimum) {
  Type<std::vector<U>> type;
  type.info = item.info;
  type.info.is_list = true;
  type.info.minimum_items = minimum;
  type.info.summary = "list of " + item.info.summary;
  type.read = [item, minimum](Reader& reader, const Node& node) -> std::optional<std::vector<U>> {
    if (node.kind != Node::Kind::Sequence) {
      report_mismatch(reader, node, "a list of " + item.info.summary);
      return std::nullopt;
    }
    if (node.items.size() < minimum) report_mismatch(reader, node, "at least " + std::to_string(minimum) + " entries");
    std::vector<U> values;
    for (const Node& n : node.items)
      if (auto value = item.read(reader, n)) values.push_back(std::move(*value));
    return values;
  };
  type.write = [item](const std::vector<U>& values) {
    Node list = Node::sequence();
    for (const U& value : values) list.items.push_back(item.write(value));
    return list;
  };
  return type;
}

// The value, source and mark of a platform number; nullopt after reporting.
struct RowParts {
  const Node* value = nullptr;
  std::string source;
  Mark mark = Mark::Guess;
};
[[nodiscard]] std::optional<RowParts> read_row_parts(Reader& reader, const Node& node);
[[nodiscard]] Node write_row(Node value, const std::string& source, Mark mark);

template <class U>
Type<Row<U>> row_type(Type<U> inner) {
  Type<Row<U>> type;
  type.info = inner.info;
  type.info.is_row = true;
  type.read = [inner](Reader& reader, const Node& node) -> std::optional<Row<U>> {
    const auto parts = read_row_parts(reader, node);
    if (!parts) return std::nullopt;
    const auto value = inner.read(reader, *parts->value);
    if (!value) return std::nullopt;
    return Row<U>{.value = *value, .text = inner.write(*value).text, .source = parts->source, .mark = parts->mark};
  };
  type.write = [inner](const Row<U>& row) { return write_row(inner.write(row.value), row.source, row.mark); };
  return type;
}

// Objects
// -----------------------------------------------------------------------------------------------------------------

// Checks a map's keys against an object: unknown, repeated, missing, or belonging to another kind. False when it is no
// map.
[[nodiscard]] bool check_keys(Reader& reader, const Node& node, const ObjectInfo& info);
// Whether a key exists for this node, given the value of the object's first key.
[[nodiscard]] bool applies(const KeyInfo& key, const Node& node, const ObjectInfo& info);

template <class T>
std::optional<T> read_object(Reader& reader, const Node& node, const ObjectSchema<T>& schema) {
  if (!check_keys(reader, node, schema.info)) return std::nullopt;
  T object{};
  for (const Key<T>& key : schema.keys) {
    const Node* value = node.find(key.info.name);
    if (value != nullptr && applies(key.info, node, schema.info)) key.read(reader, *value, object);
  }
  return object;
}

template <class T>
Node write_object(const T& object, const ObjectSchema<T>& schema) {
  Node map = Node::map();
  for (const Key<T>& key : schema.keys) {
    if (!applies(key.info, map, schema.info)) continue;
    if (auto value = key.write(object)) map.add(key.info.name, std::move(*value));
  }
  return map;
}

// `shorthand_key`: a scalar in place of the object stands for an object with this key alone.
template <class T>
Type<T> object_type(const ObjectSchema<T>& schema, std::string shorthand_key = {}) {
  Type<T> type;
  type.info.kind = ValueKind::Object;
  type.info.object = &schema.info;
  type.info.summary = schema.info.name;
  type.info.shorthand_key = shorthand_key;
  type.read = [&schema, shorthand_key](Reader& reader, const Node& node) {
    if (node.kind != Node::Kind::Scalar || shorthand_key.empty()) return read_object(reader, node, schema);
    Node map = Node::map(node.at);
    map.add(shorthand_key, node);
    return read_object(reader, map, schema);
  };
  type.write = [&schema](const T& object) { return write_object(object, schema); };
  return type;
}

// Declares the keys of T. What a default is stands in one place, the member's initialiser.
template <class T>
struct Keys {
  template <class Access, class U>
  static Key<T> required(std::string name, Access access, Type<U> type, std::string doc, std::string only_for = {}) {
    return make(std::move(name), access, std::move(type), Need::Required, std::move(doc), std::move(only_for));
  }
  template <class Access, class U>
  static Key<T> defaulted(std::string name, Access access, Type<U> type, std::string doc, std::string only_for = {}) {
    return make(std::move(name), access, std::move(type), Need::Defaulted, std::move(doc), std::move(only_for));
  }
  // The member is a std::optional.
  template <class Access, class U>
  static Key<T> optional(std::string name, Access access, Type<U> type, std::string doc, std::string only_for = {}) {
    return make(std::move(name), access, optional_type(std::move(type)), Need::Optional, std::move(doc),
                std::move(only_for));
  }

 private:
  template <class Access, class U>
  static Key<T> make(std::string name, Access access, Type<U> type, Need need, std::string doc, std::string only_for) {
    Key<T> key;
    key.info = {std::move(name), type.info, need, {}, std::move(doc), std::move(only_for)};
    if (need == Need::Defaulted) key.info.default_text = one_line(type.write(access(std::as_const(initial()))));
    key.read = [access, type](Reader& reader, const Node& node, T& object) {
      if (auto value = type.read(reader, node)) access(object) = std::move(*value);
    };
    key.write = [access, type](const T& object) -> std::optional<Node> {
      Node node = type.write(access(object));
      if (node.kind == Node::Kind::Null) return std::nullopt;
      return node;
    };
    return key;
  }
  static T& initial() {
    static T kInitial{};
    return kInitial;
  }
};

}  // namespace iommu::scenario
