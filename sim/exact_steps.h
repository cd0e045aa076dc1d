// Exact attention of one KV head's decode queries, computed once for every policy.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/replay.h"
#include "kernels/view.h"
#include "policies/policy.h"
#include "traces/trace.h"

namespace kvsim {

/// Steps are handled in blocks of this many, so that sums have one order however the steps are cut into
/// chunks.
inline constexpr std::size_t kStepBlock = 16;

/// What the replay of a layer needs beside the tensors of a head.
struct LayerContext {
  LayerGeometry geometry;
  LogitRule rule;
  std::span<const float> inverse_frequency;
  RopeLayout rope_layout = RopeLayout::none;
  double attention_scaling = 1.0;
  std::size_t element_bytes = 4;  // of the trace's dtype: what a real cache would hold
  DType stored = DType::float32;  // the trace's dtype
  std::vector<std::pair<std::uint32_t, std::uint32_t>> evidence;  // half-open token ranges inside the prompt
  std::span<const float> residual_norm;  // [decode] of the residual stream after this layer, or empty
};

/// A range of decode steps [first, first + count).
struct StepRange {
  std::size_t first = 0;
  std::size_t count = 0;
};

/// Exact weights, outputs, ranks and needed sets of the decode queries of one KV head over a range of steps.
/// Rows are query head major: row = head_in_group * steps.count + (step - steps.first).
class ExactSteps {
 public:
  /// Threads share the work by row tiles; the result does not depend on them. `with_ranks` also orders every
  /// row. With a device everything is computed and stays there, and what is asked for below is fetched;
  /// throws DeviceError then.
  ExactSteps(const HeadBlock& block, const LayerContext& layer, StepRange steps, bool with_ranks,
             Device* device = nullptr);
  /// The head where it was computed; null on the CPU.
  DeviceHead* on_device() const { return device_head_.get(); }
  /// To be held by whoever calls on_device()'s functions while others may use the device too.
  std::unique_lock<std::mutex> lock_device() const { return std::unique_lock(device_->mutex()); }

  StepRange steps() const { return steps_; }
  std::size_t rows() const { return rows_; }
  std::span<const TokenIndex> position() const { return position_; }
  MatrixView<const float> queries() const { return queries_.view(); }
  /// Exact weights over prompt and decode tokens, [T + S, row stride].
  MatrixView<const float> weights() const;
  /// Elements between the rows of weights, ranks and outputs.
  std::size_t row_stride() const { return round_up(rows_, kRowPad); }
  /// Exact outputs, [dv, row stride].
  MatrixView<const float> outputs() const;
  bool wide_ranks() const { return !ranks32_.empty(); }
  MatrixView<const std::uint16_t> ranks16() const { return ranks16_.view(); }
  MatrixView<const std::uint32_t> ranks32() const { return ranks32_.view(); }
  std::span<const std::uint32_t> needed_total(std::size_t fraction) const;
  std::span<const std::uint32_t> needed_prompt(std::size_t fraction) const;
  /// First key that the row may see (0 without a sliding window).
  TokenIndex first_visible(std::size_t row) const { return first_visible_[row]; }
  /// The parts of CurveInput that belong to the head; order and counts are the caller's. Not with a device.
  CurveInput curve_input(const HeadBlock& block) const;
  /// Adds sum over this range's steps of the weights of query head `head` to sum[T].
  void add_prompt_sums(std::size_t head, std::span<double> sum) const;

  /// Bytes that an object of this shape holds on the CPU.
  static std::size_t bytes_needed(const LayerGeometry& geometry, std::size_t steps, bool with_ranks);

 private:
  template <typename Rank>
  void rank_all(const LayerContext& layer, Matrix<Rank>& ranks);
  void compute(const HeadBlock& block, const LayerContext& layer, bool with_ranks);
  /// Brings the small results of a device to the host, once.
  void fetch() const;

  StepRange steps_;
  std::size_t prompt_ = 0;
  std::size_t rows_ = 0;
  std::vector<TokenIndex> position_, first_visible_;
  Matrix<float> queries_, tail_output_;
  mutable Matrix<float> weights_, exact_;
  std::vector<float> tail_weight_;
  Matrix<std::uint16_t> ranks16_;
  Matrix<std::uint32_t> ranks32_;
  mutable std::array<std::vector<std::uint32_t>, kMassFractions.size()> needed_total_, needed_prompt_;
  std::unique_ptr<DeviceHead> device_head_;
  mutable std::once_flag fetched_, weights_fetched_;
  Device* device_ = nullptr;
};

}  // namespace kvsim
