// SPDX-License-Identifier: Apache-2.0
// Lines of a text file that may be compressed: a name that ends in ".zst" is decompressed as it is read, so memory use
// does not grow with the file. The file is hostile input; what is wrong with it is a message, never a crash.
#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace iommu {

class TextLines {
 public:
  static constexpr std::size_t kLongestLine = 4096;
  static constexpr std::uint64_t kLargestText = 4ULL << 30;  // decompressed: beyond that it is a decompression bomb

  explicit TextLines(const std::string& path);
  ~TextLines();
  TextLines(const TextLines&) = delete;
  TextLines& operator=(const TextLines&) = delete;

  // The next line without its end, valid until the next call; nullopt at the end, or when problem() says so.
  std::optional<std::string_view> next();
  // Of the line that next() gave last, from 1.
  [[nodiscard]] std::uint64_t number() const { return number_; }
  // Why there are no more lines; empty when the file simply ended.
  [[nodiscard]] const std::string& problem() const { return problem_; }

 private:
  struct Decompressor;
  // Appends more text; false at the end or on a problem.
  bool read_more();
  bool read_compressed();
  bool fail(std::string message);

  std::ifstream file_;
  std::unique_ptr<Decompressor> decompressor_;
  std::vector<char> input_;
  std::string text_;
  std::size_t position_ = 0;
  std::uint64_t read_ = 0;
  std::uint64_t number_ = 0;
  bool ended_ = false;
  std::string problem_;
};

}  // namespace iommu
