// Distributions as bytes.
#include "analysis/packed_distribution.h"

#include <algorithm>
#include <bit>

namespace kvsim {
namespace {

constexpr std::size_t kMostOfInteger = 10;  // bytes

std::uint8_t* put_integer(std::uint64_t value, std::uint8_t* to) {
  for (; value >= 0x80; value >>= 7) *to++ = static_cast<std::uint8_t>(value | 0x80);
  *to++ = static_cast<std::uint8_t>(value);
  return to;
}

bool get_integer(std::span<const std::uint8_t>& bytes, std::uint64_t& value) {
  value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (bytes.empty()) return false;
    const std::uint64_t byte = bytes.front();
    bytes = bytes.subspan(1);
    value |= (byte & 0x7F) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

std::uint8_t* put_double(double value, std::uint8_t* to) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  for (unsigned shift = 0; shift < 64; shift += 8) *to++ = static_cast<std::uint8_t>(bits >> shift);
  return to;
}

bool get_double(std::span<const std::uint8_t>& bytes, double& value) {
  if (bytes.size() < 8) return false;
  std::uint64_t bits = 0;
  for (unsigned i = 0; i < 8; ++i) bits |= static_cast<std::uint64_t>(bytes[i]) << (8 * i);
  bytes = bytes.subspan(8);
  value = std::bit_cast<double>(bits);
  return true;
}

/// Small differences of either sign become small unsigned numbers.
std::uint64_t fold_sign(std::int64_t value) {
  return static_cast<std::uint64_t>(value) << 1 ^ static_cast<std::uint64_t>(value >> 63);
}
std::int64_t unfold_sign(std::uint64_t value) {
  return static_cast<std::int64_t>(value >> 1) ^ -static_cast<std::int64_t>(value & 1);
}

/// Reads one distribution: exact(count, sum, min, max) where it holds anything, then bin(number, many) for
/// every bin.
template <typename Exact, typename Bin>
bool unpack_with(std::span<const std::uint8_t>& bytes, std::uint64_t& count, const Exact& exact,
                 const Bin& add_bin) {
  if (!get_integer(bytes, count)) return false;
  if (count == 0) return true;
  double sum = 0, min = 0, max = 0;
  std::uint64_t bins = 0;
  if (!get_double(bytes, sum) || !get_double(bytes, min) || !get_double(bytes, max) ||
      !get_integer(bytes, bins) || bins > bytes.size()) {
    return false;
  }
  exact(sum, min, max, bins);
  std::int64_t last = 0;
  std::uint64_t total = 0;
  for (std::uint64_t i = 0; i < bins; ++i) {
    std::uint64_t step = 0, many = 0;
    if (!get_integer(bytes, step) || !get_integer(bytes, many)) return false;
    last += unfold_sign(step);
    if (last != static_cast<std::int32_t>(last)) return false;
    add_bin(static_cast<std::int32_t>(last), many);
    total += many;
  }
  return total == count;
}

}  // namespace

void pack(const Distribution& distribution, std::vector<std::uint8_t>& out) {
  thread_local std::vector<std::uint8_t> buffer;
  buffer.resize(
      std::max(buffer.size(), (2 + 2 * distribution.bins.size()) * kMostOfInteger + 3 * sizeof(double)));
  std::uint8_t* to = put_integer(distribution.count, buffer.data());
  if (distribution.count > 0) {
    for (const double value : {distribution.sum, distribution.min, distribution.max})
      to = put_double(value, to);
    to = put_integer(distribution.bins.size(), to);
    std::int64_t last = 0;
    for (const auto& [bin, many] : distribution.bins) {
      to = put_integer(many, put_integer(fold_sign(bin - last), to));
      last = bin;
    }
  }
  out.insert(out.end(), buffer.data(), to);
}

bool unpack(std::span<const std::uint8_t>& bytes, Distribution& out) {
  out = {};
  return unpack_with(
      bytes, out.count,
      [&](double sum, double min, double max, std::uint64_t bins) {
        out.sum = sum;
        out.min = min;
        out.max = max;
        out.bins.reserve(bins);
      },
      [&](std::int32_t bin, std::uint64_t many) { out.bins.emplace_back(bin, many); });
}

bool unpack(std::span<const std::uint8_t>& bytes, DistributionSum& out) {
  std::uint64_t count = 0;
  return unpack_with(
      bytes, count,
      [&](double sum, double min, double max, std::uint64_t) { out.add_exact(count, sum, min, max); },
      [&](std::int32_t bin, std::uint64_t many) { out.add_bin(bin, many); });
}

}  // namespace kvsim
