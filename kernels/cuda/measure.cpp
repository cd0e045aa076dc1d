// Curves and overlaps of rankings on a loaded head.
#include "kernels/cuda/measure.h"

#include <algorithm>

#include "kernels/cuda/curve.h"
#include "kernels/error.h"

namespace kvsim::cuda {
namespace {

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
