// Philox 4x32-10: random numbers that are a pure function of (seed, stream, counter).
#pragma once

#include <array>
#include <cstdint>

namespace kvsim {

/// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Ten rounds, checked against its known answers.
/// Equal (seed, stream) give equal numbers on every machine, whoever computes them and in whatever order.
class Philox {
 public:
  using Block = std::array<std::uint32_t, 4>;

  Philox(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

  /// The four words with number `counter` of this stream.
  Block block(std::uint64_t counter) const {
    return rounds({static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
                   static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
                  static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32));
  }

  std::uint32_t next_u32() {
    if (used_ == 4) {
      buffer_ = block(counter_++);
      used_ = 0;
    }
    return buffer_[used_++];
  }
  std::uint64_t next_u64() {
    const std::uint64_t low = next_u32();
    return low | static_cast<std::uint64_t>(next_u32()) << 32;
  }
  /// Uniform in [0, 1), a multiple of 2^-53.
  double next_double() { return static_cast<double>(next_u64() >> 11) * 0x1.0p-53; }
  /// Uniform in {0, ..., bound - 1} without bias; bound > 0.
  std::uint32_t next_below(std::uint32_t bound) {
    const std::uint32_t reject = static_cast<std::uint32_t>(-bound) % bound;
    for (;;) {
      const std::uint64_t product = static_cast<std::uint64_t>(next_u32()) * bound;
      if (static_cast<std::uint32_t>(product) >= reject) return static_cast<std::uint32_t>(product >> 32);
    }
  }

  /// The raw function, for tests against published answers.
  static Block rounds(Block c, std::uint32_t key0, std::uint32_t key1) {
    for (int i = 0; i < 10; ++i) {
      const std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53u) * c[0];
      const std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57u) * c[2];
      c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key0, static_cast<std::uint32_t>(p1),
           static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key1, static_cast<std::uint32_t>(p0)};
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    return c;
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t counter_ = 0;
  Block buffer_{};
  unsigned used_ = 4;
};

/// Mixes words into one 64-bit stream number (splitmix64 finaliser per word), e.g. (trace digest, layer, head).
template <typename... Words>
constexpr std::uint64_t stream_of(Words... words) {
  std::uint64_t h = 0x9E3779B97F4A7C15ull;
  const auto mix = [&h](std::uint64_t w) {
    h ^= w;
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ull;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBull;
    h ^= h >> 31;
    h += 0x9E3779B97F4A7C15ull;
  };
  (mix(static_cast<std::uint64_t>(words)), ...);
  return h;
}

}  // namespace kvsim
