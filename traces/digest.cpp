// Hashing the numeric datasets of a file.
#include "traces/digest.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace kvsim {
namespace {

constexpr std::uint64_t kFnvPrime = 0x100000001b3ull;
constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ull;  // 2^64 / golden ratio, splitmix64's increment
constexpr std::uint64_t kFactor = 0x9FB21C651E98DF25ull;  // rrmxmx's multiplier
constexpr int kTurn = 29;
constexpr std::size_t kPiece = std::size_t{1} << 22;

}  // namespace

void Digest::fold(std::uint64_t word) { state_ = std::rotl(state_ ^ word, kTurn) * kFactor; }

void Digest::begin(std::string_view path) {
  for (const char c : path) state_ = (state_ ^ static_cast<unsigned char>(c)) * kFnvPrime;
  for (std::size_t j = 0; j < kLanes; ++j) lanes_[j] = state_ + j * kGolden;
  rest_size_ = 0;
  length_ = 0;
}

void Digest::mix(const std::byte* blocks, std::size_t count) {
  std::array<std::uint64_t, kLanes> lanes = lanes_;
  for (std::size_t b = 0; b < count; ++b) {
    std::array<std::uint64_t, kLanes> words;
    std::memcpy(words.data(), blocks + b * kBlock, kBlock);
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] = std::rotl(lanes[j] ^ words[j], kTurn) * kFactor;
  }
  lanes_ = lanes;
}

void Digest::add(std::span<const std::byte> bytes) {
  length_ += bytes.size();
  if (rest_size_ > 0) {
    const std::size_t taken = std::min(kBlock - rest_size_, bytes.size());
    std::copy_n(bytes.begin(), taken, rest_.begin() + static_cast<std::ptrdiff_t>(rest_size_));
    rest_size_ += taken;
    bytes = bytes.subspan(taken);
    if (rest_size_ < kBlock) return;
    mix(rest_.data(), 1);
    rest_size_ = 0;
  }
  const std::size_t whole = bytes.size() / kBlock;
  mix(bytes.data(), whole);
  bytes = bytes.subspan(whole * kBlock);
  std::copy(bytes.begin(), bytes.end(), rest_.begin());
  rest_size_ = bytes.size();
}

void Digest::end() {
  if (rest_size_ > 0) {
    std::fill(rest_.begin() + static_cast<std::ptrdiff_t>(rest_size_), rest_.end(), std::byte{0});
    mix(rest_.data(), 1);
  }
  for (const std::uint64_t lane : lanes_) fold(lane);
  fold(length_);
}

std::string Digest::text() const { return fmt::format("kvd1:{:016x}", state_); }

std::string file_digest(const h5::File& file, const std::function<void(std::uint64_t)>& on_bytes) {
  Digest digest;
  for (const std::string& path : file.all_datasets()) {
    const h5::Dataset dataset = file.dataset(path);
    if (!h5::is_numeric(dataset.element())) continue;
    digest.begin(path);
    dataset.stream_raw(kPiece, [&](std::span<const std::byte> piece) {
      digest.add(piece);
      if (on_bytes) on_bytes(piece.size());
    });
    digest.end();
  }
  return digest.text();
}

std::string prompt_hash(std::span<const std::int32_t> prompt_ids) {
  Digest digest;
  digest.begin("/tokens/id");
  digest.add(std::as_bytes(prompt_ids));
  digest.end();
  return digest.text();
}

}  // namespace kvsim
