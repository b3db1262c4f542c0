// SPDX-License-Identifier: Apache-2.0
#include "sim/pcie/text_lines.hpp"

#include <zstd.h>

#include <filesystem>
#include <system_error>
#include <utility>

namespace iommu {

namespace {
constexpr std::size_t kChunk = 1 << 16;
}  // namespace

struct TextLines::Decompressor {
  ZSTD_DStream* stream = ZSTD_createDStream();
  ZSTD_inBuffer in{};
  bool frame_open = false;  // a frame has begun and not ended
  bool any = false;
  Decompressor() = default;
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;
  ~Decompressor() { ZSTD_freeDStream(stream); }
};

TextLines::TextLines(const std::string& path) : input_(kChunk) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (error || status.type() == std::filesystem::file_type::not_found) {
    fail("there is no such file");
  } else if (std::filesystem::is_directory(status)) {
    fail("is a directory");
  } else {
    file_.open(path, std::ios::binary);
    if (!file_) fail("cannot be read");
  }
  if (path.ends_with(".zst")) decompressor_ = std::make_unique<Decompressor>();
}

TextLines::~TextLines() = default;

bool TextLines::fail(std::string message) {
  problem_ = std::move(message);
  ended_ = true;
  return false;
}

bool TextLines::read_more() {
  if (ended_) return false;
  text_.erase(0, position_);
  position_ = 0;
  const std::size_t before = text_.size();
  if (decompressor_ != nullptr) {
    if (!read_compressed()) return false;
  } else {
    file_.read(input_.data(), static_cast<std::streamsize>(input_.size()));
    text_.append(input_.data(), static_cast<std::size_t>(file_.gcount()));
    if (file_.gcount() == 0) {
      ended_ = true;
      return file_.bad() ? fail("cannot be read") : false;
    }
  }
  read_ += text_.size() - before;
  return read_ <= kLargestText || fail("is larger than 4 GiB when decompressed");
}

bool TextLines::read_compressed() {
  Decompressor& d = *decompressor_;
  std::vector<char> output(ZSTD_DStreamOutSize());
  ZSTD_outBuffer out{output.data(), output.size(), 0};
  while (out.pos == 0) {
    if (d.in.pos == d.in.size) {
      file_.read(input_.data(), static_cast<std::streamsize>(input_.size()));
      d.in = {input_.data(), static_cast<std::size_t>(file_.gcount()), 0};
      if (d.in.size == 0) {
        ended_ = true;
        if (!d.any) return fail("is empty");
        return d.frame_open ? fail("is truncated: its last zstd frame does not end") : false;
      }
    }
    const std::size_t rest = ZSTD_decompressStream(d.stream, &out, &d.in);
    if (ZSTD_isError(rest) != 0) return fail(std::string("is not valid zstd: ") + ZSTD_getErrorName(rest));
    d.any = true;
    d.frame_open = rest != 0;
  }
  text_.append(output.data(), out.pos);
  return true;
}

std::optional<std::string_view> TextLines::next() {
  std::size_t searched = position_;
  for (;;) {
    const std::size_t end = text_.find('\n', searched);
    if (end != std::string::npos) {
      std::string_view line(text_.data() + position_, end - position_);
      position_ = end + 1;
      ++number_;
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.size() <= kLongestLine) return line;
      fail("a line is longer than 4096 bytes");
      return std::nullopt;
    }
    if (text_.size() - position_ > kLongestLine) {
      ++number_;
      fail("a line is longer than 4096 bytes");
      return std::nullopt;
    }
    const std::size_t pending = text_.size() - position_;
    if (!read_more()) break;
    searched = position_ + pending;
  }
  if (!problem_.empty() || position_ == text_.size()) return std::nullopt;
  ++number_;
  const std::string_view last(text_.data() + position_, text_.size() - position_);  // a last line without its end
  position_ = text_.size();
  return last;
}

}  // namespace iommu
