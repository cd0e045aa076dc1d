// The digest of a trace: a 64-bit hash over all its numeric datasets, the same that the recorder computes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "traces/h5/file.h"

namespace kvsim {

/// Hashes datasets one after the other; the definition stands in traces/FORMAT.md ("Digest").
class Digest {
 public:
  /// Starts a dataset; those of a file come in bytewise order of their absolute paths.
  void begin(std::string_view path);
  /// Its raw little-endian bytes, in order, in pieces of any size.
  void add(std::span<const std::byte> bytes);
  void end();
  /// "kvd1:" and 16 hexadecimal digits.
  std::string text() const;

 private:
  static constexpr std::size_t kLanes = 64;
  static constexpr std::size_t kBlock = kLanes * sizeof(std::uint64_t);
  void mix(const std::byte* blocks, std::size_t count);
  void fold(std::uint64_t word);

  std::uint64_t state_ = 0xcbf29ce484222325ull;  // FNV-1a's offset basis
  std::array<std::uint64_t, kLanes> lanes_{};
  std::array<std::byte, kBlock> rest_{};
  std::size_t rest_size_ = 0;
  std::uint64_t length_ = 0;
};

/// The digest of everything in an open file. Reads every numeric dataset once; `on_bytes` hears how many were
/// hashed. Throws UserError when a dataset cannot be read.
std::string file_digest(const h5::File& file, const std::function<void(std::uint64_t)>& on_bytes = {});

/// Stands for the prompt of a trace: the digest of a file that held nothing but these ids, int32, as
/// /tokens/id.
std::string prompt_hash(std::span<const std::int32_t> prompt_ids);

}  // namespace kvsim
