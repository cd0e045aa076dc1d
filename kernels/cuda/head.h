// A loaded KV head on a GPU.
#pragma once

#include <optional>

#include "kernels/cuda/context.h"

namespace kvsim::cuda {

class CudaHead final : public DeviceHead {
 public:
  CudaHead(Context& context, const HeadInput& head);
  ~CudaHead() override;

  const HeadExact& exact() const override;
  CurveResults curves(std::span<const Ranking> rankings, bool deltas) override;
  CurveResults own_order(std::span<const std::uint32_t> counts, bool deltas) override;
  void add_prompt_sums(std::size_t begin, std::size_t end, std::span<double> sum) override;
  void add_removal_squares(std::size_t begin, std::size_t end, std::span<double> squares) override;
  Matrix<float> weights() override;
  Matrix<std::uint32_t> ranks() override;
  Matrix<float> attention(MatrixView<const float> queries, std::span<const TokenIndex> position) override;
  void attention_sums(MatrixView<const float> queries, std::span<const TokenIndex> position,
                      std::span<const RowRange> ranges, MatrixView<double> sums) override;

  /// Bytes that a head keeps.
  static std::size_t bytes(const DeviceShape& shape);

 private:
  void unpack(const HeadInput& head);
  void compute_exact();
  void compute_ranks();
  bool wide() const { return static_cast<std::size_t>(size_.prompt) > kNarrowRanks; }
  /// Leaves weights of the queries in the context's memory; what that holds is returned.
  Sizes attend(MatrixView<const float> queries, std::span<const TokenIndex> position);
  template <typename Launch>
  void through_sums(std::span<double> sum, const Launch& launch);
  void check_rows(std::size_t begin, std::size_t end, std::size_t rows, std::size_t tokens) const;

  Context& context_;
  Sizes size_;
  Rule rule_;
  DType stored_;
  bool ranked_;
  bool split_values_ = false;
  Buffer<float> keys_, values_, weights_, exact_, tail_, tail_weight_;
  Buffer<double> norm_;
  Buffer<__nv_bfloat16> high_, low_, value_high_, value_low_;
  Buffer<unsigned char> ranks_;
  Buffer<std::uint32_t> needed_total_, needed_prompt_;
  mutable std::optional<HeadExact> host_;
  friend class Measurement;
};

}  // namespace kvsim::cuda
