// Vector arithmetic shared by the CPU kernels: fused multiply-add on every target, and exponentials of our
// own.

#if defined(KVSIM_KERNELS_CPU_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSIM_KERNELS_CPU_LANES_INL_H_
#undef KVSIM_KERNELS_CPU_LANES_INL_H_
#else
#define KVSIM_KERNELS_CPU_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// a * b + c with one rounding, also where the target has no such instruction.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V fused(D d, V a, V b, V c) {
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
  using T = hn::TFromD<D>;
  HWY_ALIGN T x[HWY_LANES(T)], y[HWY_LANES(T)], z[HWY_LANES(T)];
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, z);
#else
  (void)d;
  return hn::MulAdd(a, b, c);
#endif
}

/// x = n ln2 + r with |r| <= ln2 / 2 (Cody and Waite's two-part constant; exact products, so no fused
/// operation).
template <class D, class V = hn::Vec<D>>
HWY_INLINE void reduce_exponent(D d, V x, V& n, V& r, V& shifted) {
  const V magic =
      hn::Set(d, 0x1.8p52);  // adding it rounds to an integer, which then stands in the low mantissa bits
  shifted = hn::Add(hn::Mul(x, hn::Set(d, 0x1.71547652b82fep0)), magic);
  n = hn::Sub(shifted, magic);
  r = hn::Sub(hn::Sub(x, hn::Mul(n, hn::Set(d, 0x1.62e42fee00000p-1))),
              hn::Mul(n, hn::Set(d, 0x1.a39ef35793c76p-33)));
}

/// exp(x) in double for x <= 700, to about one unit in the last place; below -700 it is 0. No fused
/// operation: the same bits as `exp_plain` of exponential.h.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_double(D d, V x) {
  const V lowest = hn::Set(d, -700.0);
  const auto tiny = hn::Lt(x, lowest);
  V n, r, shifted;
  reduce_exponent(d, hn::Max(x, lowest), n, r, shifted);
  V p = hn::Set(d, 1.0 / 6227020800.0);
  constexpr double kInverseFactorials[] = {1.0 / 479001600.0,
                                           1.0 / 39916800.0,
                                           1.0 / 3628800.0,
                                           1.0 / 362880.0,
                                           1.0 / 40320.0,
                                           1.0 / 5040.0,
                                           1.0 / 720.0,
                                           1.0 / 120.0,
                                           1.0 / 24.0,
                                           1.0 / 6.0,
                                           0.5,
                                           1.0,
                                           1.0};
  for (const double term : kInverseFactorials) p = hn::Add(hn::Mul(p, r), hn::Set(d, term));
  const hn::RebindToSigned<D> di;
  const auto power = hn::ShiftLeft<52>(hn::Add(hn::BitCast(di, shifted), hn::Set(di, 1023)));
  return hn::IfThenZeroElse(tiny, hn::Mul(p, hn::BitCast(d, power)));
}

/// exp(x) in float of a double x <= 0, to about one unit in the last place of float; results below the
/// smallest normal float are 0.
template <class D, class V = hn::Vec<D>, class DF = hn::Rebind<float, D>>
HWY_INLINE hn::Vec<DF> exp_float(D d, V x) {
  const DF df;
  const hn::Rebind<std::int32_t, D> di;
  const V lowest = hn::Set(d, -87.3);
  const auto tiny = hn::Lt(x, lowest);
  V n, r, shifted;
  reduce_exponent(d, hn::Max(x, lowest), n, r, shifted);
  const auto rf = hn::DemoteTo(df, r);
  auto p = hn::Set(df, 1.0f / 5040.0f);
  constexpr float kInverseFactorials[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f,
                                          0.5f,          1.0f,          1.0f};
  for (const float term : kInverseFactorials) p = fused(df, p, rf, hn::Set(df, term));
  const auto exponent =
      hn::DemoteTo(di, hn::IfThenElse(tiny, hn::Set(d, -127.0), n));  // biased 0: the factor is 0
  const auto power = hn::ShiftLeft<23>(hn::Add(exponent, hn::Set(di, 127)));
  return hn::Mul(p, hn::BitCast(df, power));
}

/// tanh(x) with an absolute error of about 1e-16 (what a soft cap needs).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V tanh_double(D d, V x) {
  const V one = hn::Set(d, 1.0);
  const V e = exp_double(d, hn::Mul(hn::Set(d, -2.0), hn::Abs(x)));
  return hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
