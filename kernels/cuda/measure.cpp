// Curves and overlaps of rankings on a loaded head.
#include <algorithm>
#include <array>
#include <numeric>
#include <unordered_map>

#include "kernels/cuda/curve.h"
#include "kernels/cuda/head.h"
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

/// Elements between counts of results: whole sectors of memory.
std::size_t result_stride(const Sizes& size) {
  return padded(static_cast<std::size_t>(size.rows), kResultPad);
}

/// Brings errors and recalls (and `changes` elements of deltas) to the host, and waits for everything.
void fetch_curves(Context& context, std::size_t cells, std::size_t changes) {
  MeasureSpace& space = context.measure;
  context.curved.hold(context.downloads);
  download(space.host_error.fit(cells), space.error.get(), cells, context.downloads);
  download(space.host_recall.fit(cells), space.recall.get(), cells, context.downloads);
  if (changes > 0) download(space.host_delta.fit(changes), space.delta.get(), changes, context.downloads);
  context.downloaded.record(context.downloads);
  context.downloaded.wait();
}

CurveResults results(std::size_t rankings, std::size_t counts, const Sizes& size, bool deltas,
                     const MeasureSpace& space) {
  CurveResults out;
  out.rankings = rankings;
  out.counts = counts;
  out.stride = result_stride(size);
  out.value_dim = static_cast<std::size_t>(size.value_dim);
  out.error = space.host_error.get();
  out.recall = space.host_recall.get();
  out.delta = deltas ? space.host_delta.get() : nullptr;
  return out;
}

}  // namespace

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
  space_.words.fit(words.size());
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
  upload(space_.words.get(), space_.host_words.get(), words.size(), context_.stream);
}

/// Overlaps of some groups: one, or several of one ranking each.
template <typename Rank>
void Measurement::count(const Rank* ranks, std::size_t first, std::size_t groups) {
  const OverlapCall call{
      space_.segments.get(),     space_.packed.get(),      space_.agree.get(), space_.found.get(), cells_,
      static_cast<int>(stride_), static_cast<int>(counts_)};
  const auto* const on_device = at<const OverlapGroup>(groups_at_) + first;
  const cudaStream_t stream = context_.stream.get();
  for (std::size_t b = 0; b < counts_; b += static_cast<std::size_t>(kWindowBudgets)) {
    const Window window{static_cast<int>(b),
                        static_cast<int>(std::min(counts_ - b, static_cast<std::size_t>(kWindowBudgets)))};
    launch_pack(ranks, head_.needed_prompt_.get(), on_device, static_cast<int>(groups), window, size_,
                space_.packed.get(), stream);
    const auto rankings = static_cast<int>(groups_[first].members.size());
    if (rankings == 1) {
      launch_lone_overlaps(call, on_device, static_cast<int>(groups), window, size_, stream);
    } else {
      launch_overlap(call, on_device, rankings, window, size_, stream);
    }
  }
}

void Measurement::count_overlaps() {
  space_.agree.fit(cells_);
  space_.found.fit(kFractions * cells_);
  const auto lone = static_cast<std::size_t>(
      std::ranges::count_if(groups_, [](const Group& group) { return group.members.size() == 1; }));
  const std::size_t together = std::clamp<std::size_t>(lone, 1, kLoneGroups);
  std::size_t lines = 0;
  for (const Group& group : groups_) lines = std::max(lines, segment_lines(group.members.size()));
  const auto line = static_cast<std::size_t>(size_.rank_stride);
  space_.segments.fit(lines * line);
  space_.packed.fit(together * static_cast<std::size_t>(size_.rows) * line);
  check(cudaMemsetAsync(space_.agree.get(), 0, cells_ * sizeof(std::uint32_t), context_.stream.get()),
        "cudaMemsetAsync");
  check(cudaMemsetAsync(space_.found.get(), 0, kFractions * cells_ * sizeof(std::uint32_t),
                        context_.stream.get()),
        "cudaMemsetAsync");
  for (std::size_t first = 0, groups = 0; first < groups_.size(); first += groups) {
    groups = first < lone ? std::min(together, lone - first) : 1;
    if (head_.wide()) {
      count(reinterpret_cast<const std::uint32_t*>(head_.ranks_.get()), first, groups);
    } else {
      count(reinterpret_cast<const std::uint16_t*>(head_.ranks_.get()), first, groups);
    }
  }
}

void Measurement::launch() {
  std::size_t most_rows = 0;
  for (const Ranking& ranking : rankings_)
    most_rows = std::max(most_rows, ranking.row_end - ranking.row_begin);
  const CurveCall call{
      at<const RankingOnDevice>(curve_rankings_at_),
      head_.high_.get(),
      head_.low_.get(),
      head_.value_high_.get(),
      head_.split_values_ ? head_.value_low_.get() : nullptr,
      head_.exact_.get(),
      head_.tail_.get(),
      head_.tail_weight_.get(),
      head_.norm_.get(),
      space_.error.fit(cells_),
      space_.recall.fit(cells_),
      deltas_ ? space_.delta.fit(cells_ * static_cast<std::size_t>(size_.value_dim)) : nullptr,
      size_.stride,
      static_cast<int>(stride_),
      size_.value_dim,
      static_cast<int>(counts_)};
  launch_curves(call, static_cast<int>(rankings_.size()), static_cast<int>(most_rows), context_.stream.get());
}

CurveResults Measurement::run() {
  check_rankings();
  context_.measure_start.record(context_.stream);
  group_rankings();
  describe();
  count_overlaps();
  context_.counted.record(context_.stream);
  context_.counted.hold(context_.downloads);
  download(space_.host_agree.fit(cells_), space_.agree.get(), cells_,
           context_.downloads);  // while the curves are computed
  download(space_.host_found.fit(kFractions * cells_), space_.found.get(), kFractions * cells_,
           context_.downloads);
  launch();
  context_.curved.record(context_.stream);
  fetch_curves(context_, cells_, deltas_ ? cells_ * static_cast<std::size_t>(size_.value_dim) : 0);
  CurveResults out = results(rankings_.size(), counts_, size_, deltas_, space_);
  out.agree = space_.host_agree.get();
  out.found = space_.host_found.get();
  return out;
}

CurveResults CudaHead::curves(std::span<const Ranking> rankings, bool deltas) {
  const OnDevice on(context_.index);
  KVSIM_CHECK(ranked_, "curves of a head that was loaded without ranks");
  KVSIM_CHECK(!rankings.empty() && !rankings[0].counts.empty(), "no rankings or no counts");
  return Measurement(*this, rankings, deltas).run();
}

CurveResults CudaHead::own_order(std::span<const std::uint32_t> counts, bool deltas) {
  const OnDevice on(context_.index);
  KVSIM_CHECK(ranked_ && !counts.empty() && std::is_sorted(counts.begin(), counts.end()) &&
                  counts.back() <= static_cast<std::uint32_t>(size_.prompt),
              "an order of its own for {} counts", counts.size());
  MeasureSpace& space = context_.measure;
  const std::size_t cells = counts.size() * result_stride(size_),
                    changes = deltas ? cells * static_cast<std::size_t>(size_.value_dim) : 0;
  std::ranges::copy(counts, space.host_words.fit(counts.size()));
  upload(space.words.fit(counts.size()), space.host_words.get(), counts.size(), context_.stream);
  void* const scratch = space.own_order.fit(own_order_bytes(size_, counts.size(), counts.back()));
  const auto launch = [&]<typename Rank>(const Rank* ranks) {
    const OwnOrderArguments<Rank> arguments{ranks,
                                            high_.get(),
                                            low_.get(),
                                            value_high_.get(),
                                            split_values_ ? value_low_.get() : nullptr,
                                            exact_.get(),
                                            tail_.get(),
                                            tail_weight_.get(),
                                            norm_.get(),
                                            space.words.get(),
                                            space.error.fit(cells),
                                            space.recall.fit(cells),
                                            deltas ? space.delta.fit(changes) : nullptr,
                                            size_.prompt,
                                            size_.rows,
                                            size_.stride,
                                            size_.rank_stride,
                                            static_cast<int>(result_stride(size_)),
                                            size_.value_dim,
                                            static_cast<int>(counts.size())};
    launch_own_order(arguments, counts.back(), scratch, context_.stream.get());
  };
  if (wide()) {
    launch(reinterpret_cast<const std::uint32_t*>(ranks_.get()));
  } else {
    launch(reinterpret_cast<const std::uint16_t*>(ranks_.get()));
  }
  context_.curved.record(context_.stream);
  fetch_curves(context_, cells, changes);
  return results(1, counts.size(), size_, deltas, space);
}

}  // namespace kvsim::cuda
