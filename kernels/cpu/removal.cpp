// Squared changes of outputs by removed tokens: distances in register tiles of tokens x rows.
#include "kernels/removal.h"

#include <algorithm>

#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/removal.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr std::size_t kLanes = HWY_LANES(float);
/// Tokens that share the loads of the outputs, and whose sums, each one chain of additions, run side by side.
inline constexpr std::size_t kTokens = HWY_MAX_BYTES >= 64 ? 4 : 2;

struct RemovalInput {
  MatrixView<const float> weights, values, outputs;
};

/// The term of one row: the squared distance times the square of a / (1 - a). Multiplications and additions
/// stay apart everywhere, so that scalar and vector rows agree.
HWY_INLINE double term(float weight, float squared) {
  const double a = static_cast<double>(weight);
  const double share = a / std::max(1.0 - a, kLeastRest);
  return share * share * static_cast<double>(squared);
}

/// kCount tokens from `token` on, kVecs vectors of rows from `row` on.
template <std::size_t kCount, std::size_t kVecs>
HWY_INLINE void tile(const RemovalInput& in, std::size_t token, std::size_t row,
                     double* HWY_RESTRICT squares) {
  const hn::ScalableTag<float> df;
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> dh;
  using V = hn::Vec<decltype(df)>;
  V squared[kCount][kVecs];
  for (std::size_t t = 0; t < kCount; ++t)
    for (std::size_t i = 0; i < kVecs; ++i) squared[t][i] = hn::Zero(df);
  const float* value[kCount];
  for (std::size_t t = 0; t < kCount; ++t) value[t] = in.values.row(token + t);
  for (std::size_t c = 0; c < in.values.cols; ++c) {
    const float* at = in.outputs.row(c) + row;
    V output[kVecs];
#pragma GCC unroll 4
    for (std::size_t i = 0; i < kVecs; ++i) output[i] = hn::LoadU(df, at + i * kLanes);
#pragma GCC unroll 4
    for (std::size_t t = 0; t < kCount; ++t) {
      const V v = hn::Set(df, value[t][c]);
#pragma GCC unroll 4
      for (std::size_t i = 0; i < kVecs; ++i) {
        const V difference = hn::Sub(v, output[i]);
        squared[t][i] = hn::Add(squared[t][i], hn::Mul(difference, difference));
      }
    }
  }
  constexpr std::size_t kRows = kVecs * kLanes, kHalf = HWY_LANES(double);
  HWY_ALIGN float distances[kCount][kRows];
  HWY_ALIGN double terms[kCount][kRows];
  for (std::size_t t = 0; t < kCount; ++t) {
    for (std::size_t i = 0; i < kVecs; ++i) hn::Store(squared[t][i], df, distances[t] + i * kLanes);
    const float* weight = in.weights.row(token + t) + row;
    for (std::size_t r = 0; r < kRows; r += kHalf) {
      const auto a = hn::PromoteTo(d, hn::LoadU(dh, weight + r));
      const auto share = hn::Div(a, hn::Max(hn::Sub(hn::Set(d, 1.0), a), hn::Set(d, kLeastRest)));
      const auto distance = hn::PromoteTo(d, hn::Load(dh, distances[t] + r));
      hn::Store(hn::Mul(hn::Mul(share, share), distance), d, terms[t] + r);
    }
  }
  double sum[kCount];
  for (std::size_t t = 0; t < kCount; ++t) sum[t] = squares[token + t];
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (std::size_t t = 0; t < kCount; ++t) sum[t] += terms[t][r];
  }
  for (std::size_t t = 0; t < kCount; ++t) squares[token + t] = sum[t];
}

template <std::size_t kVecs>
HWY_NOINLINE void strip(const RemovalInput& in, std::size_t row, std::span<double> squares) {
  std::size_t token = 0;
  for (; token + kTokens <= squares.size(); token += kTokens)
    tile<kTokens, kVecs>(in, token, row, squares.data());
  for (; token < squares.size(); ++token) tile<1, kVecs>(in, token, row, squares.data());
}

void one_row(const RemovalInput& in, std::size_t row, std::span<double> squares) {
  for (std::size_t token = 0; token < squares.size(); ++token) {
    float squared = 0.0f;
    for (std::size_t c = 0; c < in.values.cols; ++c) {
      const float difference = in.values(token, c) - in.outputs(c, row);
      squared += difference * difference;
    }
    squares[token] += term(in.weights(token, row), squared);
  }
}

void removal_squares_path(MatrixView<const float> weights, MatrixView<const float> values,
                          MatrixView<const float> outputs, std::size_t begin, std::size_t end,
                          std::span<double> squares) {
  const RemovalInput in{weights, values, outputs};
  constexpr std::size_t kWide = 4;
  for (; begin + kWide * kLanes <= end; begin += kWide * kLanes) strip<kWide>(in, begin, squares);
  for (; begin + kLanes <= end; begin += kLanes) strip<1>(in, begin, squares);
  for (; begin < end; ++begin) one_row(in, begin, squares);
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvsim {

HWY_EXPORT(removal_squares_path);

void removal_squares(MatrixView<const float> weights, MatrixView<const float> values,
                     MatrixView<const float> outputs, std::size_t begin, std::size_t end,
                     std::span<double> squares) {
  KVSIM_CHECK(values.rows >= squares.size() && weights.rows >= squares.size() && outputs.rows == values.cols,
              "removal costs of {} tokens from {} values of size {}", squares.size(), values.rows,
              values.cols);
  KVSIM_CHECK(begin <= end && end <= weights.stride && end <= outputs.stride,
              "rows {}..{} of {} weights, {} outputs", begin, end, weights.stride, outputs.stride);
  HWY_DYNAMIC_DISPATCH(removal_squares_path)(weights, values, outputs, begin, end, squares);
}

}  // namespace kvsim
#endif  // HWY_ONCE
