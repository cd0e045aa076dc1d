// A file as a range of bytes that are read where they are wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace kvsim::convert {

/// An open file. Move-only.
class FileBytes {
 public:
  /// Throws UserError when the file cannot be opened.
  explicit FileBytes(const std::string& path);
  FileBytes(FileBytes&& other) noexcept;
  FileBytes& operator=(FileBytes&&) = delete;
  ~FileBytes();

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  /// Reads exactly out.size() bytes at `offset`. Throws UserError when they are not all there.
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  std::string read_text(std::uint64_t offset, std::uint64_t size) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

/// An unsigned little-endian number of `width` bytes at `at` of a buffer; the caller has checked the size.
std::uint64_t little_endian(const std::string& bytes, std::size_t at, std::size_t width);

}  // namespace kvsim::convert
