// Packing of matrices for their way to the device.
#include "kernels/cuda/staging.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace kvsim::cuda {
namespace {

/// A row as bfloat16; whether it was one before.
bool pack_row(std::span<const float> from, Bf16* to) {
  std::uint32_t all = 0;
  for (std::size_t c = 0; c < from.size(); ++c) {
    const auto bits = std::bit_cast<std::uint32_t>(from[c]);
    to[c].bits = static_cast<std::uint16_t>(bits >> 16);
    all |= bits;
  }
  return (all & 0xFFFFu) == 0;
}

bool pack_row(std::span<const float> from, Fp16* to) {
  constexpr std::size_t kPart = 256;
  float back[kPart];
  bool exact = true;
  for (std::size_t c = 0; c < from.size(); c += kPart) {
    const std::span part = from.subspan(c, std::min(kPart, from.size() - c));
    const std::span packed(to + c, part.size());
    from_float(part, packed);
    to_float(std::span<const Fp16>(packed), std::span(back, part.size()));
    exact = exact && std::memcmp(back, part.data(), part.size_bytes()) == 0;
  }
  return exact;
}

bool pack_row(std::span<const float> from, float* to) {
  std::memcpy(to, from.data(), from.size_bytes());
  return true;
}

template <typename T>
bool pack_as(MatrixView<const float> from, Pinned<unsigned char>& to) {
  auto* const out = reinterpret_cast<T*>(to.fit(from.rows * from.cols * sizeof(T)));
  bool exact = true;
#pragma omp parallel for schedule(static) reduction(&& : exact)
  for (std::size_t r = 0; r < from.rows; ++r) {
    const bool row_exact = pack_row(from.row_span(r), out + r * from.cols);
    exact = exact && row_exact;
  }
  return exact;
}

}  // namespace

DType pack(MatrixView<const float> from, DType wanted, Pinned<unsigned char>& to) {
  if (wanted == DType::bfloat16 && pack_as<Bf16>(from, to)) return wanted;
  if (wanted == DType::float16 && pack_as<Fp16>(from, to)) return wanted;
  pack_as<float>(from, to);
  return DType::float32;
}

}  // namespace kvsim::cuda
