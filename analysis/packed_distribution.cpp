// Distributions as bytes.
#include "analysis/packed_distribution.h"

#include <bit>

namespace kvsim {
namespace {

void put_integer(std::uint64_t value, std::vector<std::uint8_t>& out) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<std::uint8_t>(value | 0x80));
  out.push_back(static_cast<std::uint8_t>(value));
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

void put_double(double value, std::vector<std::uint8_t>& out) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  for (unsigned shift = 0; shift < 64; shift += 8) out.push_back(static_cast<std::uint8_t>(bits >> shift));
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

}  // namespace

void pack(const Distribution& distribution, std::vector<std::uint8_t>& out) {
  put_integer(distribution.count, out);
  if (distribution.count == 0) return;
  put_double(distribution.sum, out);
  put_double(distribution.min, out);
  put_double(distribution.max, out);
  put_integer(distribution.bins.size(), out);
  std::int64_t last = 0;
  for (const auto& [bin, many] : distribution.bins) {
    put_integer(fold_sign(bin - last), out);
    put_integer(many, out);
    last = bin;
  }
}

bool unpack(std::span<const std::uint8_t>& bytes, Distribution& out) {
  out = {};
  if (!get_integer(bytes, out.count)) return false;
  if (out.count == 0) return true;
  std::uint64_t bins = 0;
  if (!get_double(bytes, out.sum) || !get_double(bytes, out.min) || !get_double(bytes, out.max) ||
      !get_integer(bytes, bins) || bins > bytes.size()) {
    return false;
  }
  out.bins.reserve(bins);
  std::int64_t last = 0;
  std::uint64_t total = 0;
  for (std::uint64_t i = 0; i < bins; ++i) {
    std::uint64_t step = 0, many = 0;
    if (!get_integer(bytes, step) || !get_integer(bytes, many)) return false;
    last += unfold_sign(step);
    if (last != static_cast<std::int32_t>(last)) return false;
    out.bins.emplace_back(static_cast<std::int32_t>(last), many);
    total += many;
  }
  return total == out.count;
}

}  // namespace kvsim
