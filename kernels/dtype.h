// Sixteen-bit floating types as bits, and their fast conversion to and from float.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace kvsim {

/// Element types a trace may hold.
enum class DType : std::uint8_t { float16, bfloat16, float32 };

/// "float16", "bfloat16" or "float32".
constexpr std::string_view name_of(DType type) {
  return type == DType::float16 ? "float16" : type == DType::bfloat16 ? "bfloat16" : "float32";
}
constexpr std::size_t size_of(DType type) { return type == DType::float32 ? 4 : 2; }

struct Fp16 {
  std::uint16_t bits;
};
struct Bf16 {
  std::uint16_t bits;
};

/// Exact widening, vectorised; sizes must be equal.
void to_float(std::span<const Fp16> in, std::span<float> out);
void to_float(std::span<const Bf16> in, std::span<float> out);
/// Rounding to nearest even; overflow to infinity, NaN stays NaN.
void from_float(std::span<const float> in, std::span<Fp16> out);
void from_float(std::span<const float> in, std::span<Bf16> out);

/// Whether no element is NaN or infinite, vectorised.
bool all_finite(std::span<const float> values);

}  // namespace kvsim
