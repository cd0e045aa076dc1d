// One call of curves: how its rankings are described to the device, and what is launched for them.
#pragma once

#include <span>
#include <vector>

#include "kernels/cuda/head.h"

namespace kvsim::cuda {

/// Elements between counts of results: whole sectors of memory.
inline std::size_t result_stride(const Sizes& size) {
  return padded(static_cast<std::size_t>(size.rows), kResultPad);
}

/// One call of curves.
class Measurement {
 public:
  Measurement(CudaHead& head, std::span<const Ranking> rankings, bool deltas)
      : head_(head),
        context_(head.context_),
        space_(head.context_.measure),
        size_(head.size_),
        rankings_(rankings),
        deltas_(deltas),
        counts_(rankings[0].counts.size()),
        stride_(result_stride(head.size_)),
        cells_(rankings.size() * counts_ * stride_) {}

  CurveResults run();

 private:
  /// Rankings that are counted together: those of the same counts, or one with limits of its own.
  struct Group {
    std::vector<std::size_t> members;
    std::vector<OverlapRanking> on_device;
    std::vector<std::uint32_t> limits;  // [count][rows]
  };
  void check_rankings() const;
  void group_rankings();
  void describe();
  void count_overlaps();
  template <typename Rank>
  void count(const Rank* ranks, std::size_t first, std::size_t groups);
  void launch();
  template <typename T>
  T* at(std::size_t words) const {
    return reinterpret_cast<T*>(space_.words.get() + words);
  }

  CudaHead& head_;
  Context& context_;
  MeasureSpace& space_;
  const Sizes size_;
  std::span<const Ranking> rankings_;
  bool deltas_;
  std::size_t counts_, stride_, cells_;
  std::vector<Group> groups_;
  std::size_t curve_rankings_at_ = 0, groups_at_ = 0;
};

}  // namespace kvsim::cuda
