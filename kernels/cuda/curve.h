// The curve kernels of the backend: one pass over a ranking, and every row's own order. Launches on a stream, device pointers only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/kernels.h"

namespace kvsim::cuda {

/// Cuts an order into steps that end at every count (ascending, repeats allowed) and appends them; the last step has a snapshot.
inline void append_steps(std::span<const std::uint32_t> counts, std::vector<CurveStep>& steps) {
  std::uint32_t at = 0;
  for (std::size_t b = 0; b < counts.size();) {
    const std::uint32_t count = counts[b];
    std::uint16_t snapshots = 0;
    for (; b < counts.size() && counts[b] == count; ++b) ++snapshots;
    for (; count - at > kStepTokens; at += kStepTokens) steps.push_back({at, static_cast<std::uint16_t>(kStepTokens), 0});
    steps.push_back({at, static_cast<std::uint16_t>(count - at), snapshots});
    at = count;
  }
}

/// One pass over rankings of the loaded head. Results lie at the rows of the head; rows out of a ranking's range are not written.
struct CurveCall {
  const RankingOnDevice* rankings;
  const __nv_bfloat16 *weight_high, *weight_low;  // [prompt][stride]
  const __nv_bfloat16 *value_high, *value_low;    // [prompt][padded value_dim]; value_low null where values are bfloat16
  const float *exact, *tail;                      // [rows][value_dim]
  const float* tail_weight;                       // [rows]
  const double* norm;                             // [rows], squared
  float *error, *recall;                          // [ranking][count][result_stride]; error NaN: recall below kRecallFloor
  float* delta;                                   // [ranking][count][value_dim][result_stride]: o' - o, without meaning where the
                                                  // error is NaN; null: not asked for
  int stride, result_stride, value_dim, counts;
};
/// `most_rows` = rows of the ranking that has most. On the fastest units that the current device has.
void launch_curves(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream);

/// Its two ways: products of warps (compute capability 8.0 and later) and of warpgroups (9.0 alone).
void launch_warp_curves(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream);
bool has_hopper_products();
void launch_hopper_curves(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream);

/// The curve where every row keeps its own best: what own_order_curve of kernels/replay.h computes, for all rows.
template <typename Rank>
struct OwnOrderArguments {
  const Rank* ranks;                              // [rows][rank_stride]; the largest Rank = not visible
  const __nv_bfloat16 *weight_high, *weight_low;  // [prompt][stride]
  const __nv_bfloat16 *value_high, *value_low;    // [prompt][padded value_dim]; value_low null where values are bfloat16
  const float *exact, *tail;                      // [rows][value_dim]
  const float* tail_weight;                       // [rows]
  const double* norm;                             // [rows], squared
  const std::uint32_t* counts;                    // [count] on the device, ascending, repeats and 0 allowed
  float *error, *recall;                          // [count][result_stride]
  float* delta;                                   // [count][value_dim][result_stride]: o' - o; null: not asked for
  int prompt, rows, stride, rank_stride, result_stride, value_dim, count;
};
/// Bytes of scratch that launch_own_order needs; `most` = the largest count. Prompt, rows, stride and value_dim of `size` matter.
std::size_t own_order_bytes(const Sizes& size, std::size_t count, std::uint32_t most);
template <typename Rank>
void launch_own_order(const OwnOrderArguments<Rank>& arguments, std::uint32_t most, void* scratch, cudaStream_t stream);

/// Its two ways. Walking every row's order serves any GPU, and any number of counts at the same price; Hopper's products cost
/// by the count and are faster for few.
std::size_t walk_order_bytes(std::size_t rows, std::uint32_t most);
template <typename Rank>
void launch_walk_order(const OwnOrderArguments<Rank>& arguments, std::uint32_t most, void* scratch, cudaStream_t stream);
bool masked_order_pays(std::size_t count);
std::size_t masked_order_bytes(const Sizes& size, std::size_t count);
template <typename Rank>
void launch_masked_order(const OwnOrderArguments<Rank>& arguments, void* scratch, cudaStream_t stream);

}  // namespace kvsim::cuda
