// SPDX-License-Identifier: Apache-2.0
// Reading vector files: one JSON object a line, plain or gzip. Files are hostile input: every limit and type is
// checked.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>

#include "sim/app/check_vectors.hpp"
#include "sim/translation/vectors.hpp"

namespace iommu {

struct VectorFileEnd {};
struct VectorFileRecord {
  VectorRecord record;
  const VectorFamily* family = nullptr;
};
using VectorFileNext = std::variant<VectorFileRecord, VectorFileEnd, VectorFileError>;

class VectorFile {
 public:
  explicit VectorFile(const std::string& path);
  VectorFileNext next(std::span<const VectorFamily* const> families);

 private:
  enum class Line : std::uint8_t { Read, End, Failed };
  Line read_line(std::string& line, std::string& why);

  struct Close {
    void operator()(gzFile_s* file) const { gzclose(file); }
  };
  std::string path_;
  std::unique_ptr<gzFile_s, Close> file_;
  std::uint64_t number_ = 0;
};

}  // namespace iommu
