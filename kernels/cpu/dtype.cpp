// Conversion between 16-bit and 32-bit floats with the widest instructions the machine has.
#include "kernels/dtype.h"

#include <algorithm>

#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/dtype.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
using I32 = hn::RebindToSigned<F32>;
using U16 = hn::Rebind<std::uint16_t, F32>;

// AVX2 brings conversion instructions for half floats (F16C); before it Highway emulates them without
// infinities.
constexpr bool kHalfInstructions = HWY_ARCH_X86 != 0 && HWY_TARGET <= HWY_AVX2;

struct WidenHalf {
  template <class V>
  HWY_INLINE hn::Vec<F32> operator()(V bits) const {
    const F32 f32;
    if constexpr (kHalfInstructions)
      return hn::PromoteTo(f32, hn::BitCast(hn::Rebind<hwy::float16_t, F32>(), bits));
    const U32 u32;
    const auto wide = hn::PromoteTo(u32, bits);
    const auto magnitude = hn::And(wide, hn::Set(u32, 0x7FFFu));
    // Shifted into place the exponent is 112 too small; the product mends it, for subnormal numbers too.
    const auto scaled = hn::Mul(hn::BitCast(f32, hn::ShiftLeft<13>(magnitude)), hn::Set(f32, 0x1p112f));
    const auto special = hn::Gt(magnitude, hn::Set(u32, 0x7BFFu));  // infinity or NaN
    const auto exponent = hn::IfThenElseZero(special, hn::Set(u32, 0x7F800000u));
    const auto sign = hn::ShiftLeft<16>(hn::And(wide, hn::Set(u32, 0x8000u)));
    return hn::BitCast(f32, hn::Or(hn::Or(hn::BitCast(u32, scaled), exponent), sign));
  }
};

struct WidenBfloat {
  template <class V>
  HWY_INLINE hn::Vec<F32> operator()(V bits) const {
    return hn::BitCast(F32(), hn::ShiftLeft<16>(hn::PromoteTo(U32(), bits)));
  }
};

struct NarrowHalf {
  template <class V>
  HWY_INLINE hn::Vec<U16> operator()(V value) const {
    if constexpr (kHalfInstructions) {
      return hn::BitCast(U16(), hn::DemoteTo(hn::Rebind<hwy::float16_t, F32>(), value));
    }
    const F32 f32;
    const U32 u32;
    const auto all = hn::BitCast(u32, value);
    const auto bits = hn::And(all, hn::Set(u32, 0x7FFFFFFFu));
    const auto sign = hn::ShiftRight<16>(hn::Xor(all, bits));
    // Normal results: rebias the exponent and round to nearest even on bit 13.
    const auto odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(u32, 1u));
    const auto rounded = hn::Add(hn::Add(bits, hn::Set(u32, 0xC8000FFFu)), odd);
    // Subnormal results: adding 0.5 leaves the rounded mantissa in the low bits.
    const auto magic = hn::Set(u32, 126u << 23);
    const auto small =
        hn::Sub(hn::BitCast(u32, hn::Add(hn::BitCast(f32, bits), hn::BitCast(f32, magic))), magic);
    const auto is_nan = hn::Gt(bits, hn::Set(u32, 0x7F800000u));
    const auto special = hn::IfThenElse(is_nan, hn::Set(u32, 0x7E00u), hn::Set(u32, 0x7C00u));
    auto half = hn::IfThenElse(hn::Lt(bits, hn::Set(u32, 113u << 23)), small, hn::ShiftRight<13>(rounded));
    half = hn::IfThenElse(hn::Lt(bits, hn::Set(u32, 143u << 23)), half, special);
    return hn::DemoteTo(U16(), hn::BitCast(I32(), hn::Or(half, sign)));
  }
};

struct NarrowBfloat {
  template <class V>
  HWY_INLINE hn::Vec<U16> operator()(V value) const {
    const U32 u32;
    const auto bits = hn::BitCast(u32, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u32, 1u));
    const auto rounded = hn::Add(hn::Add(bits, hn::Set(u32, 0x7FFFu)), odd);
    const auto is_nan = hn::Gt(hn::And(bits, hn::Set(u32, 0x7FFFFFFFu)), hn::Set(u32, 0x7F800000u));
    const auto quiet = hn::Or(bits, hn::Set(u32, 0x00400000u));
    const auto result = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
    return hn::DemoteTo(U16(), hn::BitCast(I32(), result));
  }
};

/// Applies `op` to `count` elements; the last, partial vector goes through a buffer.
template <class In, class Out, class D, class Op>
HWY_INLINE void transform(D d, const In* HWY_RESTRICT in, Out* HWY_RESTRICT out, std::size_t count, Op op) {
  const hn::Rebind<Out, D> to;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(op(hn::LoadU(d, in + i)), to, out + i);
  if (i == count) return;
  HWY_ALIGN In source[hn::MaxLanes(d)] = {};
  HWY_ALIGN Out result[hn::MaxLanes(d)];
  std::copy(in + i, in + count, source);
  hn::Store(op(hn::Load(d, source)), to, result);
  std::copy(result, result + (count - i), out + i);
}

void widen_half(const std::uint16_t* in, float* out, std::size_t count) {
  transform(U16(), in, out, count, WidenHalf());
}
void widen_bfloat(const std::uint16_t* in, float* out, std::size_t count) {
  transform(U16(), in, out, count, WidenBfloat());
}
void narrow_half(const float* in, std::uint16_t* out, std::size_t count) {
  transform(F32(), in, out, count, NarrowHalf());
}
void narrow_bfloat(const float* in, std::uint16_t* out, std::size_t count) {
  transform(F32(), in, out, count, NarrowBfloat());
}

bool finite(const float* in, std::size_t count) {
  const F32 f32;
  const std::size_t lanes = hn::Lanes(f32);
  // x * 0 is 0 for finite x and NaN otherwise, and NaN survives every sum.
  const auto zero = hn::Zero(f32);
  auto a = zero, b = zero;
  std::size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    a = hn::MulAdd(hn::LoadU(f32, in + i), zero, a);
    b = hn::MulAdd(hn::LoadU(f32, in + i + lanes), zero, b);
  }
  bool good = hn::AllTrue(f32, hn::Eq(hn::Add(a, b), zero));
  for (; i < count; ++i) good = good && in[i] * 0.0f == 0.0f;
  return good;
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvsim {
namespace {
HWY_EXPORT(widen_half);
HWY_EXPORT(widen_bfloat);
HWY_EXPORT(narrow_half);
HWY_EXPORT(narrow_bfloat);
HWY_EXPORT(finite);

static_assert(sizeof(Fp16) == 2 && sizeof(Bf16) == 2);

void check_sizes(std::size_t in, std::size_t out) {
  KVSIM_CHECK(in == out, "converting {} values to {}", in, out);
}

}  // namespace

void to_float(std::span<const Fp16> in, std::span<float> out) {
  check_sizes(in.size(), out.size());
  if (in.empty()) return;
  HWY_DYNAMIC_DISPATCH(widen_half)(&in.data()->bits, out.data(), in.size());
}

void to_float(std::span<const Bf16> in, std::span<float> out) {
  check_sizes(in.size(), out.size());
  if (in.empty()) return;
  HWY_DYNAMIC_DISPATCH(widen_bfloat)(&in.data()->bits, out.data(), in.size());
}

void from_float(std::span<const float> in, std::span<Fp16> out) {
  check_sizes(in.size(), out.size());
  if (in.empty()) return;
  HWY_DYNAMIC_DISPATCH(narrow_half)(in.data(), &out.data()->bits, in.size());
}

void from_float(std::span<const float> in, std::span<Bf16> out) {
  check_sizes(in.size(), out.size());
  if (in.empty()) return;
  HWY_DYNAMIC_DISPATCH(narrow_bfloat)(in.data(), &out.data()->bits, in.size());
}

bool all_finite(std::span<const float> values) {
  return HWY_DYNAMIC_DISPATCH(finite)(values.data(), values.size());
}

}  // namespace kvsim
#endif
