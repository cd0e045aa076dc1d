// A file or standard input as bytes or lines, decompressed on the way where it is gzip or zstd.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace kvsim {

/// Reads forward only, in bounded memory. "-" is standard input.
class ByteStream {
 public:
  /// Throws UserError when the file cannot be opened.
  explicit ByteStream(const std::string& path);
  ByteStream(ByteStream&&) noexcept;
  ByteStream& operator=(ByteStream&&) noexcept;
  ~ByteStream();

  const std::string& path() const { return path_; }
  /// "", "gzip" or "zstd".
  const std::string& compression() const { return compression_; }
  /// Up to `size` bytes; fewer only at the end. Throws UserError on damaged compressed data.
  std::size_t read(char* out, std::size_t size);
  /// The next line without its end; false at the end of the input.
  bool line(std::string& out);
  /// Number of lines returned so far.
  std::uint64_t line_number() const { return line_number_; }
  /// The next bytes without taking them: up to `size`, fewer at the end.
  std::string peek(std::size_t size);

 private:
  struct Impl;
  bool fill();

  std::string path_, compression_;
  std::unique_ptr<Impl> impl_;
  std::string buffer_;
  std::size_t at_ = 0;
  std::uint64_t line_number_ = 0;
};

}  // namespace kvsim
