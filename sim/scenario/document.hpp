// SPDX-License-Identifier: Apache-2.0
// A YAML file as a tree of nodes that know where they stand, and the list of what is wrong with it. The only user of
// yaml-cpp. Whatever a file holds, reading it ends with a tree or with a line that says why not: size, depth and the
// expansion of aliases are bounded.
#pragma once

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace iommu::scenario {

// Line and column count from 1; line 0: the file as a whole.
struct Position {
  std::size_t file = 0;  // index into Diagnostics::files()
  int line = 0;
  int column = 0;
};

struct Entry;

struct Node {
  enum class Kind : std::uint8_t { Null, Scalar, Sequence, Map };
  Kind kind = Kind::Null;
  Position at;
  std::string text;            // Scalar
  bool is_quoted = false;      // Scalar: written in quotes, so never a number
  std::vector<Node> items;     // Sequence
  std::vector<Entry> entries;  // Map, in file order; keys may repeat until somebody checks

  [[nodiscard]] const Node* find(std::string_view key) const;
  [[nodiscard]] Node* find(std::string_view key);
  // Appends an entry, for trees that are built to be written.
  Node& add(std::string key, Node value);

  [[nodiscard]] static Node scalar(std::string text, Position at = {});
  [[nodiscard]] static Node map(Position at = {});
  [[nodiscard]] static Node sequence(Position at = {});
};

struct Entry {
  std::string key;
  Position at;  // of the key
  Node value;
};

// What is wrong, in the order in which it was found; nothing stops at the first error.
class Diagnostics {
 public:
  std::size_t add_file(std::string display_name);
  // `message` says what is wrong and what was expected.
  void error(Position at, std::string message);
  [[nodiscard]] bool is_clean() const { return errors_.empty(); }
  // "file:line:column: message", in file order, duplicates (from several variations) once.
  [[nodiscard]] std::vector<std::string> lines() const;

 private:
  struct Error {
    Position at;
    std::string message;
  };
  std::vector<std::string> files_;
  std::vector<Error> errors_;
};

// A scenario that cannot be used; what() holds all lines.
class ScenarioError : public std::runtime_error {
 public:
  explicit ScenarioError(std::vector<std::string> lines);
  [[nodiscard]] const std::vector<std::string>& lines() const { return lines_; }

 private:
  std::vector<std::string> lines_;
};

// The one document of `text`; nullopt after reporting why there is none.
[[nodiscard]] std::optional<Node> parse_document(const std::string& text, std::size_t file, Diagnostics& diagnostics);

// YAML that parse_document() reads back to an equal tree.
[[nodiscard]] std::string write_document(const Node& root);

// A value in one line, as write_document() would write it inside brackets.
[[nodiscard]] std::string one_line(const Node& node);

// Paths as in `devices[0].workload.window`.
struct PathStep {
  std::string key;  // empty for an index
  std::optional<std::size_t> index;
};
[[nodiscard]] std::optional<std::vector<PathStep>> parse_path(std::string_view path);
// The node at a path, or the deepest one on the way.
[[nodiscard]] const Node& deepest_at(const Node& root, std::string_view path);

}  // namespace iommu::scenario
