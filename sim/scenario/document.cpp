// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/document.hpp"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <tuple>
#include <utility>

namespace iommu::scenario {

namespace {

constexpr std::size_t kMaxBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxDepth = 32;
constexpr std::size_t kMaxNodes = 100'000;
constexpr std::size_t kMaxKeys = 1'000;  // of one map; no object has so many
constexpr std::size_t kMaxLines = 50;    // of errors

// Stops yaml-cpp in the middle of an event.
struct Refused {
  Position at;
  std::string message;
};

std::size_t count_nodes(const Node& node) {
  std::size_t count = 1;
  for (const Node& item : node.items) count += count_nodes(item);
  for (const Entry& entry : node.entries) count += count_nodes(entry.value);
  return count;
}

std::size_t depth_of(const Node& node) {
  std::size_t deepest = 0;
  for (const Node& item : node.items) deepest = std::max(deepest, depth_of(item));
  for (const Entry& entry : node.entries) deepest = std::max(deepest, depth_of(entry.value));
  return deepest + 1;
}

// Builds the tree. Aliases are expanded by copying what they name, which is complete by then unless it is cyclic.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::size_t file) : file_(file) {}

  std::optional<Node> take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) throw Refused{position(mark), "a second document; a file holds one"};
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Node node;
    node.at = position(mark);
    finish(std::move(node), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) throw Refused{position(mark), "this alias is part of what it names"};
    budget(count_nodes(found->second), mark);
    if (open_.size() + depth_of(found->second) > kMaxDepth) throw Refused{position(mark), too_deep()};
    Node copy = found->second;
    copy.at = position(mark);
    finish(std::move(copy), YAML::NullAnchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    // "?": plain, "!": quoted; anything else was written by the user.
    if (tag != "?" && tag != "!" && !tag.empty())
      throw Refused{position(mark), "tags such as '" + tag + "' mean nothing here"};
    Node node = Node::scalar(value, position(mark));
    node.is_quoted = tag == "!";
    finish(std::move(node), anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Node::sequence(position(mark)), tag, anchor, mark);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Node::map(position(mark)), tag, anchor, mark);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    Node node;
    YAML::anchor_t anchor;
    std::optional<Node> key;
  };

  static std::string too_deep() { return "nested deeper than " + std::to_string(kMaxDepth) + " levels"; }
  [[nodiscard]] Position position(const YAML::Mark& mark) const { return {file_, mark.line + 1, mark.column + 1}; }
  void budget(std::size_t nodes, const YAML::Mark& mark) {
    nodes_ += nodes;
    if (nodes_ > kMaxNodes) throw Refused{position(mark), "more than " + std::to_string(kMaxNodes) + " values"};
  }
  void open(Node node, const std::string& tag, YAML::anchor_t anchor, const YAML::Mark& mark) {
    if (tag != "?" && tag != "!" && !tag.empty())
      throw Refused{position(mark), "tags such as '" + tag + "' mean nothing here"};
    if (open_.size() >= kMaxDepth) throw Refused{position(mark), too_deep()};
    open_.push_back({std::move(node), anchor, std::nullopt});
  }
  void close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    finish(std::move(done.node), done.anchor);
  }
  void finish(Node node, YAML::anchor_t anchor) {
    if (++nodes_ > kMaxNodes) throw Refused{node.at, "more than " + std::to_string(kMaxNodes) + " values"};
    if (anchor != YAML::NullAnchor) anchors_[anchor] = node;
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == Node::Kind::Sequence) {
      parent.node.items.push_back(std::move(node));
    } else if (parent.node.entries.size() == kMaxKeys) {
      throw Refused{node.at, "more than " + std::to_string(kMaxKeys) + " keys in one place"};
    } else if (!parent.key) {
      if (node.kind != Node::Kind::Scalar) throw Refused{node.at, "a key must be a word"};
      parent.key = std::move(node);
    } else {
      parent.node.entries.push_back({std::move(parent.key->text), parent.key->at, std::move(node)});
      parent.key.reset();
    }
  }

  std::size_t file_;
  std::size_t documents_ = 0;
  std::size_t nodes_ = 0;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, Node> anchors_;
  std::optional<Node> root_;
};

// Where `text` stops being printable UTF-8; nullopt when it does not.
std::optional<Position> first_bad_character(const std::string& text, std::size_t file) {
  Position at{file, 1, 1};
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80                   ? 1
                               : lead >= 0xc2 && lead < 0xe0 ? 2
                               : lead >= 0xe0 && lead < 0xf0 ? 3
                               : lead >= 0xf0 && lead < 0xf5 ? 4
                                                             : 0;
    if (length == 0 || i + length > text.size()) return at;
    if (lead < 0x20 && lead != '\n' && lead != '\t' && lead != '\r') return at;
    if (lead == 0x7f) return at;
    for (std::size_t k = 1; k < length; ++k)
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0U) != 0x80U) return at;
    if (lead == '\n') {
      ++at.line;
      at.column = 0;
    }
    ++at.column;
    i += length;
  }
  return std::nullopt;
}

}  // namespace

const Node* Node::find(std::string_view key) const {
  for (const Entry& entry : entries)
    if (entry.key == key) return &entry.value;
  return nullptr;
}

Node* Node::find(std::string_view key) {
  for (Entry& entry : entries)
    if (entry.key == key) return &entry.value;
  return nullptr;
}

Node& Node::add(std::string key, Node value) {
  entries.push_back({std::move(key), value.at, std::move(value)});
  return entries.back().value;
}

Node Node::scalar(std::string text, Position at) {
  Node node;
  node.kind = Kind::Scalar;
  node.text = std::move(text);
  node.at = at;
  return node;
}
Node Node::map(Position at) {
  Node node;
  node.kind = Kind::Map;
  node.at = at;
  return node;
}
Node Node::sequence(Position at) {
  Node node;
  node.kind = Kind::Sequence;
  node.at = at;
  return node;
}

std::size_t Diagnostics::add_file(std::string display_name) {
  files_.push_back(std::move(display_name));
  return files_.size() - 1;
}

void Diagnostics::error(Position at, std::string message) { errors_.push_back({at, std::move(message)}); }

std::vector<std::string> Diagnostics::lines() const {
  // A multimap keeps the order of equal keys: errors of one place stay as they were found.
  std::multimap<std::tuple<std::size_t, int, int>, const Error*> sorted;
  for (const Error& e : errors_) sorted.emplace(std::tuple(e.at.file, e.at.line, e.at.column), &e);
  std::vector<std::string> lines;
  std::set<std::string> seen;
  for (const auto& [place, e] : sorted) {
    std::string line = e->at.file < files_.size() ? files_[e->at.file] : "scenario";
    if (e->at.line > 0) line += ":" + std::to_string(e->at.line) + ":" + std::to_string(e->at.column);
    line += ": " + e->message;
    if (!seen.insert(line).second) continue;
    if (lines.size() == kMaxLines) {
      lines.push_back("... and more");
      break;
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

namespace {
std::string join_lines(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& line : lines) all += (all.empty() ? "" : "\n") + line;
  return all;
}
}  // namespace

ScenarioError::ScenarioError(std::vector<std::string> lines)
    : std::runtime_error(join_lines(lines)), lines_(std::move(lines)) {}

std::optional<Node> parse_document(const std::string& text, std::size_t file, Diagnostics& diagnostics) {
  if (text.size() > kMaxBytes) {
    diagnostics.error({file}, "larger than 1 MiB, which no scenario is");
    return std::nullopt;
  }
  if (const auto bad = first_bad_character(text, file)) {
    diagnostics.error(*bad, "not a text file in UTF-8");
    return std::nullopt;
  }
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    TreeBuilder builder(file);
    while (parser.HandleNextDocument(builder)) {
    }
    std::optional<Node> root = builder.take();
    if (root && root->kind == Node::Kind::Map) return root;
    diagnostics.error(root ? root->at : Position{file},
                      root && root->kind != Node::Kind::Null ? "expected keys and values" : "the file is empty");
  } catch (const Refused& refused) {
    diagnostics.error(refused.at, refused.message);
  } catch (const YAML::Exception& e) {
    const bool has_place = !e.mark.is_null();
    diagnostics.error(has_place ? Position{file, e.mark.line + 1, e.mark.column + 1} : Position{file},
                      "not valid YAML: " + e.msg);
  }
  return std::nullopt;
}

namespace {

// Quotes unless the text is a plain word or quantity that YAML reads back as the same scalar.
std::string quoted_if_needed(const std::string& text) {
  const auto is_safe = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
           c == '/' || c == ' ' || c == '(' || c == ')' || c == '+' || c == '-';
  };
  const bool starts_plain =
      !text.empty() && text.front() != ' ' && text.front() != '-' && text.front() != '.' && text.back() != ' ';
  const bool is_null_word = text == "null" || text == "Null" || text == "NULL";
  if (starts_plain && !is_null_word && std::ranges::all_of(text, is_safe)) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else if (c == '\r') {
      quoted += "\\r";
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

bool is_flat(const Node& node) {
  const auto is_leaf = [](const Node& n) { return n.items.empty() && n.entries.empty(); };
  return std::ranges::all_of(node.items, is_leaf) &&
         std::ranges::all_of(node.entries, [&](const Entry& e) { return is_leaf(e.value); });
}

std::string flow(const Node& node) {
  std::string out;
  switch (node.kind) {
    case Node::Kind::Null:
      return "~";
    case Node::Kind::Scalar:
      return quoted_if_needed(node.text);
    case Node::Kind::Sequence:
      for (const Node& item : node.items) out += (out.empty() ? "" : ", ") + flow(item);
      return "[" + out + "]";
    case Node::Kind::Map:
      for (const Entry& e : node.entries)
        out += (out.empty() ? "" : ", ") + quoted_if_needed(e.key) + ": " + flow(e.value);
      return "{" + out + "}";
  }
  return out;
}

void write_block(const Node& node, std::size_t indent, std::string& out);

// A value after "key:" or "-": in one line when it has no structure below it, else on the next lines.
void write_value(const Node& node, std::size_t indent, std::string& out) {
  constexpr std::size_t kLineLength = 110;
  if (node.kind != Node::Kind::Map && node.kind != Node::Kind::Sequence) {
    out += " " + flow(node) + "\n";
    return;
  }
  if (is_flat(node)) {
    if (const std::string line = flow(node);
        line.size() + indent <= kLineLength || node.kind == Node::Kind::Sequence || node.entries.empty()) {
      out += " " + line + "\n";
      return;
    }
  }
  out += "\n";
  write_block(node, indent, out);
}

void write_block(const Node& node, std::size_t indent, std::string& out) {
  const std::string margin(indent, ' ');
  for (const Entry& e : node.entries) {
    out += margin + quoted_if_needed(e.key) + ":";
    write_value(e.value, indent + 2, out);
  }
  for (const Node& item : node.items) {
    if (item.kind == Node::Kind::Map && !is_flat(item)) {
      std::string block;
      write_block(item, indent + 2, block);
      out += margin + "- " + block.substr(indent + 2);
    } else {
      out += margin + "-";
      write_value(item, indent + 2, out);
    }
  }
}

}  // namespace

std::string one_line(const Node& node) { return flow(node); }

std::string write_document(const Node& root) {
  std::string out;
  write_block(root, 0, out);
  return out;
}

std::optional<std::vector<PathStep>> parse_path(std::string_view path) {
  std::vector<PathStep> steps;
  while (!path.empty()) {
    if (path.front() == '[') {
      const std::size_t end = path.find(']');
      if (end == std::string_view::npos || end < 2 || end > 6 || steps.empty()) return std::nullopt;
      std::size_t index = 0;
      for (const char c : path.substr(1, end - 1)) {
        if (c < '0' || c > '9') return std::nullopt;
        index = index * 10 + static_cast<std::size_t>(c - '0');
      }
      steps.push_back({{}, index});
      path.remove_prefix(end + 1);
    } else {
      if (!steps.empty()) {
        if (path.front() != '.') return std::nullopt;
        path.remove_prefix(1);
      }
      const std::size_t end = std::min(path.find_first_of(".["), path.size());
      if (end == 0) return std::nullopt;
      steps.push_back({std::string(path.substr(0, end)), std::nullopt});
      path.remove_prefix(end);
    }
  }
  if (steps.empty()) return std::nullopt;
  return steps;
}

const Node& deepest_at(const Node& root, std::string_view path) {
  const Node* node = &root;
  for (const PathStep& step : parse_path(path).value_or(std::vector<PathStep>{})) {
    const Node* next = nullptr;
    if (step.index) {
      if (*step.index < node->items.size()) next = &node->items[*step.index];
    } else {
      next = node->find(step.key);
    }
    if (next == nullptr) break;
    node = next;
  }
  return *node;
}

}  // namespace iommu::scenario
