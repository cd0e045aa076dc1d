// Size checks that the replay kernels share.
#pragma once

#include <algorithm>

#include "kernels/error.h"
#include "kernels/replay.h"

namespace kvsim {

inline void check_tile(std::size_t row_begin, std::size_t row_end, std::size_t stride) {
  KVSIM_CHECK(row_begin % kRowPad == 0 && row_begin <= row_end, "rows {}..{}", row_begin, row_end);
  KVSIM_CHECK(stride % kRowPad == 0 && row_end <= stride, "row {} of a stride of {}", row_end, stride);
}

inline void check_curve(const CurveInput& in, std::size_t row_begin, std::size_t row_end,
                        const CurveOutput& out) {
  check_tile(row_begin, row_end, in.weights.stride);
  KVSIM_CHECK(std::is_sorted(in.counts.begin(), in.counts.end()), "the {} counts do not ascend",
              in.counts.size());
  KVSIM_CHECK(in.values.rows >= in.weights.rows, "{} values for {} tokens", in.values.rows, in.weights.rows);
  KVSIM_CHECK(in.tail_output.rows == in.values.cols && row_end <= in.tail_output.stride,
              "tail output is {} x {}", in.tail_output.rows, in.tail_output.stride);
  KVSIM_CHECK(in.exact.rows == in.values.cols && row_end <= in.exact.stride, "exact output is {} x {}",
              in.exact.rows, in.exact.stride);
  KVSIM_CHECK(in.tail_weight.size() >= row_end, "{} tail weights for row {}", in.tail_weight.size(), row_end);
  const std::size_t rows = row_end - row_begin;
  KVSIM_CHECK(out.error.rows >= in.counts.size() && out.error.stride >= rows, "errors are {} x {}",
              out.error.rows, out.error.stride);
  KVSIM_CHECK(out.recall.rows >= in.counts.size() && out.recall.stride >= rows, "recalls are {} x {}",
              out.recall.rows, out.recall.stride);
  KVSIM_CHECK(out.delta == nullptr ||
                  (in.exact.stride % kRowPad == 0 && out.delta_stride >= in.values.cols * in.exact.stride),
              "differences are {} apart", out.delta_stride);
}

}  // namespace kvsim
