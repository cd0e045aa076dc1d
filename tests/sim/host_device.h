// A device that is the CPU itself: what crosses the interface of kernels/backend.h must be all that a replay
// needs.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/error.h"
#include "kernels/removal.h"

namespace kvsim::test {

template <typename T>
Matrix<T> copy_of(MatrixView<const T> from, std::size_t pad = 1) {
  Matrix<T> out(from.rows, from.cols, pad);
  for (std::size_t r = 0; r < from.rows; ++r) std::copy_n(from.row(r), from.cols, out.row(r));
  return out;
}

/// A call of a device: a second one at the same time is a missing lock.
class OneCall {
 public:
  explicit OneCall(std::atomic<int>& calls) : calls_(calls) {
    KVSIM_CHECK(calls_++ == 0, "a device is called by two threads at once");
  }
  ~OneCall() { --calls_; }
  OneCall(const OneCall&) = delete;
  OneCall& operator=(const OneCall&) = delete;

 private:
  std::atomic<int>& calls_;
};

class HostHead final : public DeviceHead {
 public:
  HostHead(const HeadInput& in, std::atomic<int>& calls)
      : keys_(copy_of(in.keys)),
        values_(copy_of(in.values)),
        queries_(copy_of(in.queries)),
        position_(in.position.begin(), in.position.end()),
        prompt_(in.prompt),
        rule_(in.rule),
        ranked_(in.ranks),
        calls_(calls) {
    const std::size_t rows = queries_.rows(), tokens = keys_.rows(), dv = values_.cols();
    weights_ = Matrix<float>(tokens, rows, kRowPad);
    Matrix<float> prompt_output(dv, rows, kRowPad);
    tail_ = Matrix<float>(dv, rows, kRowPad);
    exact_ = Matrix<float>(dv, rows, kRowPad);
    tail_weight_.assign(weights_.stride(), 0.0f);
    attention_weights(keys_.view(), queries_.view(), position_, rule_, 0, rows, weights_.view());
    attention_outputs(weights_.view(), values_.view(), 0, prompt_, 0, rows, prompt_output.view(), {});
    attention_outputs(weights_.view(), values_.view(), prompt_, tokens, 0, rows, tail_.view(), tail_weight_);
    results_.output = Matrix<float>(rows, dv);
    for (std::size_t c = 0; c < dv; ++c)
      for (std::size_t row = 0; row < rows; ++row)
        results_.output(row, c) = exact_(c, row) = prompt_output(c, row) + tail_(c, row);
    if (!ranked_) return;
    ranks_ = Matrix<std::uint32_t>(prompt_, rows, kRowPad);
    RankOutput<std::uint32_t> out{ranks_.view(), {}, {}};
    for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
      results_.needed_total[c].assign(weights_.stride(), 0);
      results_.needed_prompt[c].assign(weights_.stride(), 0);
      out.needed_total[c] = results_.needed_total[c];
      out.needed_prompt[c] = results_.needed_prompt[c];
    }
    rank_rows(weights_.view(), prompt_, position_, rule_.window, 0, rows, out);
  }

  const HeadExact& exact() const override { return results_; }

  CurveResults curves(std::span<const Ranking> rankings, bool deltas) override {
    const OneCall call(calls_);
    KVSIM_CHECK(ranked_ && !rankings.empty(), "{} rankings", rankings.size());
    CurveResults out = prepare(rankings.size(), rankings.front().counts.size(), deltas);
    for (std::size_t r = 0; r < rankings.size(); ++r) {
      const Ranking& ranking = rankings[r];
      KVSIM_CHECK(ranking.counts.size() == out.counts, "{} counts instead of {}", ranking.counts.size(),
                  out.counts);
      const std::size_t begin = ranking.row_begin / kRowPad * kRowPad, end = ranking.row_end;
      CurveInput in = input();
      in.order = ranking.order;
      in.counts = ranking.counts;
      Matrix<float> error(out.counts, end - begin, kRowPad), recall(out.counts, end - begin, kRowPad);
      Matrix<float> delta(deltas ? out.counts * out.value_dim : 0, out.stride);
      curve_pass(in, begin, end,
                 {error.view(), recall.view(), deltas ? delta.data() : nullptr, out.value_dim * out.stride});
      std::array<Matrix<std::uint32_t>, 1 + kMassFractions.size()> counted;
      std::vector<OverlapQuery> queries;
      Matrix<std::uint32_t> limits(out.counts, queries_.rows(), kRowPad);
      for (std::size_t b = 0; b < out.counts; ++b)
        std::fill_n(limits.row(b), limits.stride(), ranking.counts[b]);
      const auto needed = [&](std::size_t c) {
        return std::span<const std::uint32_t>(results_.needed_prompt[c]);
      };
      for (std::size_t c = 0; c < counted.size(); ++c) {
        counted[c] = Matrix<std::uint32_t>(out.counts, end - begin, kRowPad);
        const MatrixView<const std::uint32_t> own =
            ranking.limits.empty() ? MatrixView<const std::uint32_t>(limits.view()) : ranking.limits;
        queries.push_back({c == 0
                               ? own
                               : MatrixView<const std::uint32_t>{needed(c - 1).data(), 1,
                                                                 needed(c - 1).size(), needed(c - 1).size()},
                           counted[c].view()});
      }
      overlap_counts(MatrixView<const std::uint32_t>(ranks_.view()), ranking.order, ranking.counts, queries,
                     begin, end);
      for (std::size_t b = 0; b < out.counts; ++b)
        for (std::size_t row = ranking.row_begin; row < end; ++row) {
          error_[out.at(r, b) + row] = error(b, row - begin);
          recall_[out.at(r, b) + row] = recall(b, row - begin);
          agree_[out.at(r, b) + row] = counted[0](b, row - begin);
          for (std::size_t c = 0; c < kMassFractions.size(); ++c)
            found_[out.found_at(c, r, b) + row] = counted[1 + c](b, row - begin);
        }
      std::copy_n(delta.data(), delta.rows() * delta.stride(),
                  delta_.data() + r * out.counts * out.value_dim * out.stride);
    }
    return out;
  }

  CurveResults own_order(std::span<const std::uint32_t> counts, bool deltas) override {
    const OneCall call(calls_);
    CurveResults out = prepare(1, counts.size(), deltas);
    CurveInput in = input();
    std::vector<TokenIndex> order(prompt_);  // only its length is read
    in.order = order;
    in.counts = counts;
    const MatrixView<float> error{error_.data(), counts.size(), queries_.rows(), out.stride},
        recall{recall_.data(), counts.size(), queries_.rows(), out.stride};
    own_order_curve(in, MatrixView<const std::uint32_t>(ranks_.view()), 0, queries_.rows(),
                    {error, recall, deltas ? delta_.data() : nullptr, out.value_dim * out.stride});
    return out;
  }

  void add_prompt_sums(std::size_t begin, std::size_t end, std::span<double> sum) override {
    std::vector<double> part(sum.size());
    for (std::size_t row = begin; row < end; row += kRowPad) {
      column_sums(weights_.view().rows_from(0, prompt_), row, std::min(end, row + kRowPad), part);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
  }
  void add_removal_squares(std::size_t begin, std::size_t end, std::span<double> squares) override {
    removal_squares(weights_.view().rows_from(0, prompt_), values_.view().rows_from(0, prompt_),
                    exact_.view(), begin, end, squares);
  }
  Matrix<float> weights() override {
    const OneCall call(calls_);
    return copy_of(MatrixView<const float>(weights_.view()), kRowPad);
  }
  Matrix<std::uint32_t> ranks() override {
    return copy_of(MatrixView<const std::uint32_t>(ranks_.view()), kRowPad);
  }

  Matrix<float> attention(MatrixView<const float> queries, std::span<const TokenIndex> position) override {
    const OneCall call(calls_);
    return attend(queries, position);
  }
  void attention_sums(MatrixView<const float> queries, std::span<const TokenIndex> position,
                      std::span<const RowRange> ranges, MatrixView<double> sums) override {
    const OneCall call(calls_);
    const Matrix<float> weights = attend(queries, position);
    for (std::size_t i = 0; i < ranges.size(); ++i)
      column_sums(weights.view(), ranges[i].begin, ranges[i].end, sums.row_span(i));
  }

 private:
  Matrix<float> attend(MatrixView<const float> queries, std::span<const TokenIndex> position) const {
    Matrix<float> weights(prompt_, queries.rows, kRowPad);
    attention_weights(keys_.view().rows_from(0, prompt_), queries, position, rule_, 0, queries.rows,
                      weights.view());
    return weights;
  }
  CurveInput input() const {
    CurveInput in;
    in.weights = weights_.view().rows_from(0, prompt_);
    in.values = values_.view().rows_from(0, prompt_);
    in.tail_output = tail_.view();
    in.tail_weight = tail_weight_;
    in.exact = exact_.view();
    return in;
  }
  CurveResults prepare(std::size_t rankings, std::size_t counts, bool deltas) {
    CurveResults out;
    out.rankings = rankings;
    out.counts = counts;
    out.stride = weights_.stride();
    out.value_dim = values_.cols();
    const std::size_t cells = rankings * counts * out.stride;
    error_.assign(cells, 0.0f);
    recall_.assign(cells, 0.0f);
    agree_.assign(cells, 0);
    found_.assign(kMassFractions.size() * cells, 0);
    delta_.assign(deltas ? cells * out.value_dim : 0, 0.0f);
    out.error = error_.data();
    out.recall = recall_.data();
    out.agree = agree_.data();
    out.found = found_.data();
    out.delta = deltas ? delta_.data() : nullptr;
    return out;
  }

  Matrix<float> keys_, values_, queries_, weights_, exact_, tail_;
  std::vector<float> tail_weight_;
  std::vector<TokenIndex> position_;
  Matrix<std::uint32_t> ranks_;
  std::size_t prompt_;
  LogitRule rule_;
  bool ranked_;
  std::atomic<int>& calls_;
  HeadExact results_;
  std::vector<float> error_, recall_, delta_;
  std::vector<std::uint32_t> agree_, found_;
};

/// Counts the heads that it loads. `memory` and `head` bytes are what planning is told.
class HostDevice final : public Device {
 public:
  explicit HostDevice(std::size_t memory = std::size_t{1} << 40, std::size_t bytes_per_row = 0)
      : memory_(memory), bytes_per_row_(bytes_per_row) {}
  std::unique_ptr<DeviceHead> load(const HeadInput& head) override {
    ++loads;
    const OneCall call(calls_);
    return std::make_unique<HostHead>(head, calls_);
  }
  std::size_t head_bytes(const DeviceShape& shape) const override { return bytes_per_row_ * shape.rows; }
  std::size_t work_bytes(const DeviceShape& shape) const override { return bytes_per_row_ * shape.rows; }
  DeviceLimits limits() const override { return {most_rows, 256}; }
  std::size_t memory() const override { return memory_; }
  std::string name() const override { return "host"; }
  std::size_t loads = 0, most_rows = 1 << 20;

 private:
  std::atomic<int> calls_ = 0;
  std::size_t memory_, bytes_per_row_;
};

}  // namespace kvsim::test
