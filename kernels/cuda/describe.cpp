// How the rankings of a call are grouped and described to the device.
#include <algorithm>
#include <array>
#include <numeric>
#include <unordered_map>

#include "kernels/cuda/curve.h"
#include "kernels/cuda/measure.h"
#include "kernels/error.h"

namespace kvsim::cuda {
namespace {

/// Arrays that travel to the device in one piece, each at a multiple of 16 bytes.
class Words {
 public:
  template <typename T>
  std::size_t add(const T* from, std::size_t count) {
    const std::size_t at = size_;
    parts_.push_back({reinterpret_cast<const unsigned char*>(from), count * sizeof(T), at});
    size_ += (count * sizeof(T) + 15) / 16 * 4;
    return at;
  }
  /// Where a part will lie once all are known.
  std::size_t size() const { return size_; }
  void write(std::uint32_t* to) const {
#pragma omp parallel for schedule(dynamic)
    for (std::size_t i = 0; i < parts_.size(); ++i)
      std::copy_n(parts_[i].from, parts_[i].bytes, reinterpret_cast<unsigned char*>(to + parts_[i].at));
  }

 private:
  struct Part {
    const unsigned char* from;
    std::size_t bytes, at;
  };
  std::vector<Part> parts_;
  std::size_t size_ = 0;
};

}  // namespace

void Measurement::check_rankings() const {
  const auto prompt = static_cast<std::size_t>(size_.prompt), rows = static_cast<std::size_t>(size_.rows);
  for (const Ranking& ranking : rankings_) {
    KVSIM_CHECK(ranking.counts.size() == counts_ &&
                    std::is_sorted(ranking.counts.begin(), ranking.counts.end()) &&
                    ranking.counts.back() <= ranking.order.size() && ranking.order.size() <= prompt &&
                    !ranking.order.empty(),
                "a ranking has {} counts up to {} of {} tokens", ranking.counts.size(), ranking.counts.back(),
                ranking.order.size());
    KVSIM_CHECK(ranking.row_begin < ranking.row_end && ranking.row_end <= rows, "rows {} to {} of {}",
                ranking.row_begin, ranking.row_end, rows);
    KVSIM_CHECK(
        ranking.limits.empty() || (ranking.limits.rows == counts_ && ranking.limits.cols >= ranking.row_end),
        "limits are {} x {}", ranking.limits.rows, ranking.limits.cols);
  }
}

void Measurement::group_rankings() {
  std::vector<std::size_t> order(rankings_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  // Rankings of the same rows lie side by side, so that tiles of rankings that no one asks for are left out.
  std::ranges::stable_sort(
      order, {}, [&](std::size_t r) { return std::pair(rankings_[r].row_begin, rankings_[r].row_end); });
  for (const std::size_t r : order) {
    const Ranking& ranking = rankings_[r];
    const auto shares = [&](const Group& group) {
      const Ranking& first = rankings_[group.members[0]];
      return first.limits.empty() && ranking.limits.empty() &&
             std::ranges::equal(first.counts, ranking.counts);
    };
    const auto found = std::ranges::find_if(groups_, shares);
    Group& group = found != groups_.end() ? *found : groups_.emplace_back();
    group.members.push_back(r);
    if (ranking.limits.empty()) continue;
    const auto rows = static_cast<std::size_t>(size_.rows);
    group.limits.assign(counts_ * rows, 0);
    for (std::size_t b = 0; b < counts_; ++b)
      std::copy_n(ranking.limits.row(b), std::min(rows, ranking.limits.cols),
                  group.limits.begin() + static_cast<std::ptrdiff_t>(b * rows));
  }
  std::ranges::stable_partition(
      groups_, [](const Group& group) { return group.members.size() == 1; });  // lone ones side by side
}

/// Uploads everything that describes the rankings.
void Measurement::describe() {
  Words words;
  std::unordered_map<const TokenIndex*, std::size_t> order_at;
  std::vector<std::size_t> step_at{0};
  std::vector<CurveStep> steps;
  for (const Ranking& ranking : rankings_) {
    if (!order_at.contains(ranking.order.data()))
      order_at[ranking.order.data()] = words.add(ranking.order.data(), ranking.order.size());
    append_steps(ranking.counts, steps);
    step_at.push_back(steps.size());
  }
  const std::size_t steps_at = words.add(steps.data(), steps.size());
  std::vector<OverlapGroup> groups(groups_.size());
  std::vector<std::array<std::size_t, 3>> parts_at;  // counts, limits, rankings of every group
  for (Group& group : groups_) {
    const std::size_t counts_at = words.add(rankings_[group.members[0]].counts.data(), counts_);
    const std::size_t limits_at =
        group.limits.empty() ? counts_at : words.add(group.limits.data(), group.limits.size());
    group.on_device.resize(group.members.size());
    parts_at.push_back({counts_at, limits_at, words.add(group.on_device.data(), group.on_device.size())});
  }
  groups_at_ = words.add(groups.data(), groups.size());
  std::vector<RankingOnDevice> curves(rankings_.size());
  curve_rankings_at_ = words.add(curves.data(), curves.size());
  const bool grows = words.size() > space_.words.size();
  space_.words.fit(words.size());
  if (grows) context_.stream.wait();  // memory is handed out in the order of that stream
  for (std::size_t r = 0; r < rankings_.size(); ++r) {
    const Ranking& ranking = rankings_[r];
    curves[r] = {at<const std::uint32_t>(order_at[ranking.order.data()]),
                 at<const CurveStep>(steps_at) + step_at[r],
                 static_cast<std::uint32_t>(step_at[r + 1] - step_at[r]),
                 static_cast<std::uint32_t>(ranking.order.size()),
                 static_cast<std::uint32_t>(ranking.row_begin),
                 static_cast<std::uint32_t>(ranking.row_end)};
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    Group& group = groups_[g];
    const bool own = !group.limits.empty();
    groups[g] = {at<const std::uint32_t>(parts_at[g][0]),
                 at<const std::uint32_t>(parts_at[g][1]),
                 own ? static_cast<std::uint32_t>(size_.rows) : 1u,
                 own ? 1u : 0u,
                 at<const OverlapRanking>(parts_at[g][2]),
                 static_cast<std::uint32_t>(group.members.size()),
                 static_cast<std::uint32_t>(size_.rows),
                 0};
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      const Ranking& ranking = rankings_[group.members[i]];
      group.on_device[i] = {at<const std::uint32_t>(order_at[ranking.order.data()]),
                            static_cast<std::uint32_t>(ranking.row_begin),
                            static_cast<std::uint32_t>(ranking.row_end),
                            static_cast<std::uint32_t>(group.members[i])};
      groups[g].row_begin = std::min(groups[g].row_begin, group.on_device[i].row_begin);
      groups[g].row_end = std::max(groups[g].row_end, group.on_device[i].row_end);
    }
  }
  words.write(space_.host_words.fit(words.size()));
  // Beside what still runs: the last call that read these words has ended.
  upload(space_.words.get(), space_.host_words.get(), words.size(), context_.uploads);
  context_.described.record(context_.uploads);
  context_.described.hold(context_.stream);
}

}  // namespace kvsim::cuda
