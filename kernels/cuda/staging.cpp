// Packing of matrices for their way to the device.
#include "kernels/cuda/staging.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace kvsim::cuda {
namespace {

/// Whether rows were of a type before they were packed, and of bfloat16.
struct Was {
  bool exact = true, bfloat16 = true;
};

bool is_bfloat16(std::span<const float> row) {
  std::uint32_t all = 0;
  for (const float x : row) all |= std::bit_cast<std::uint32_t>(x);
  return (all & 0xFFFFu) == 0;
}

Was pack_row(std::span<const float> from, Bf16* to) {
  for (std::size_t c = 0; c < from.size(); ++c)
    to[c].bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(from[c]) >> 16);
  const bool exact = is_bfloat16(from);
  return {exact, exact};
}

Was pack_row(std::span<const float> from, Fp16* to) {
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
  return {exact, is_bfloat16(from)};
}

Was pack_row(std::span<const float> from, float* to) {
  std::memcpy(to, from.data(), from.size_bytes());
  return {true, is_bfloat16(from)};
}

template <typename T>
Was pack_as(MatrixView<const float> from, Pinned<unsigned char>& to) {
  auto* const out = reinterpret_cast<T*>(to.fit(from.rows * from.cols * sizeof(T)));
  bool exact = true, bfloat16 = true;
#pragma omp parallel for schedule(static) reduction(&& : exact, bfloat16)
  for (std::size_t r = 0; r < from.rows; ++r) {
    const Was row = pack_row(from.row_span(r), out + r * from.cols);
    exact = exact && row.exact;
    bfloat16 = bfloat16 && row.bfloat16;
  }
  return {exact, bfloat16};
}

}  // namespace

void pack(MatrixView<const float> from, DType wanted, Parcel& to) {
  Was was{false, false};
  if (wanted == DType::bfloat16) was = pack_as<Bf16>(from, to.packed);
  if (wanted == DType::float16) was = pack_as<Fp16>(from, to.packed);
  to.type = was.exact ? wanted : DType::float32;
  if (!was.exact) was = pack_as<float>(from, to.packed);
  to.bfloat16 = was.bfloat16;
}

}  // namespace kvsim::cuda
