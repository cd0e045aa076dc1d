// Curves of small odd shapes against plain double sums on the host, for cuda_curve_bench.
#pragma once

#include <bit>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>

#include "tests/bench/cuda_curve_head.cuh"

namespace kvsim {

/// Results of one row at one count in double: error, recall and o' - o.
struct CurvePoint {
  double error = 0, recall = 0;
  std::vector<double> delta;
};

/// What a head holds, on the host.
struct HostHead {
  explicit HostHead(const CurveHead& head) : of(head), weights(head.weights.host()), exact(head.exact.host()) {}
  double weight(std::size_t token, std::size_t row) const { return static_cast<double>(weights[token * of.size.stride + row]); }

  /// The curve of a row in one order.
  std::vector<CurvePoint> curve(std::size_t row, const std::vector<TokenIndex>& order, const std::vector<std::uint32_t>& counts) const {
    const std::size_t dv = of.host.shape.value_dim, prompt = of.host.shape.prompt;
    std::vector<double> sum(dv);
    double held = 0;
    const auto add = [&](std::size_t token) {
      const double w = weight(token, row);
      held += w;
      for (std::size_t c = 0; c < dv; ++c) sum[c] += w * static_cast<double>(of.host.values(token, c));
    };
    for (std::size_t t = prompt; t < of.host.tokens(); ++t) add(t);
    std::vector<CurvePoint> out;
    std::size_t at = 0;
    for (const std::uint32_t count : counts) {
      for (; at < count && at < order.size(); ++at) add(order[at]);  // a row may see fewer
      CurvePoint point;
      point.recall = held;
      double square = 0, norm = 0;
      for (std::size_t c = 0; c < dv; ++c) {
        const auto o = static_cast<double>(exact[row * dv + c]);
        point.delta.push_back(sum[c] / held - o);
        square += point.delta.back() * point.delta.back();
        norm += o * o;
      }
      point.error = std::sqrt(norm > 0 ? square / norm : square);
      out.push_back(std::move(point));
    }
    return out;
  }

  const CurveHead& of;
  std::vector<float> weights, exact;
};

/// Largest differences seen; `good` once all lie within what two terms of a weight, and two of a value, allow.
struct Differences {
  double slack = 1;  // 2 where values have a second term, which rounds as well
  double error = 0, recall = 0, delta = 0;
  std::size_t nans = 0, compared = 0;
  void add(const CurvePoint& expected, float got_error, float got_recall) {
    ++compared;
    recall = std::max(recall, far(std::abs(static_cast<double>(got_recall) - expected.recall), 2e-5 * expected.recall + 1e-12));
    if (expected.recall < 1e-18 || std::isnan(got_error)) {
      nans += (expected.recall < 1e-18) != std::isnan(got_error);
    } else {
      error = std::max(error, far(std::abs(static_cast<double>(got_error) - expected.error), slack * (1e-5 + 1e-5 * expected.error)));
    }
  }
  void add_delta(double expected, float got) {
    delta = std::max(delta, far(std::abs(static_cast<double>(got) - expected), slack * (2e-5 + 2e-5 * std::abs(expected))));
  }
  bool good() const { return error <= 1 && recall <= 1 && delta <= 1 && nans == 0; }
  bool report(const char* what, const PeakyShape& shape, bool split) const {
    std::printf(
        "%-9s prompt %5zu rows %4zu dv %3zu%s: error %.2f recall %.2f delta %.2f of what is allowed, %zu of %zu NaN or bits differ%s\n",
        what, shape.prompt, shape.steps * shape.group, shape.value_dim, split ? " split" : "", error, recall, delta, nans, compared,
        good() ? "" : "  WRONG");
    return good();
  }

 private:
  static double far(double difference, double allowed) { return std::isnan(difference) ? 1e30 : difference / allowed; }
};

struct CheckShape {
  PeakyShape shape;
  bool split = false;
};
inline std::vector<CheckShape> check_shapes() {
  return {{{.prompt = 300, .steps = 24, .group = 2, .head_dim = 32, .value_dim = 32, .half = true}},
          {{.prompt = 1000, .steps = 49, .group = 7, .head_dim = 64, .value_dim = 64, .seed = 2, .half = true}},
          {{.prompt = 1700, .steps = 33, .group = 10, .head_dim = 80, .value_dim = 80, .seed = 3}, true},
          {{.prompt = 5000, .steps = 64, .group = 5, .head_dim = 128, .value_dim = 128, .reach = 60, .seed = 4, .half = true}},
          {{.prompt = 333, .steps = 100, .group = 3, .head_dim = 32, .value_dim = 256, .seed = 5, .half = true}},
          {{.prompt = 700, .steps = 20, .group = 7, .head_dim = 32, .value_dim = 201, .seed = 6}, true},
          {{.prompt = 517, .steps = 37, .group = 9, .head_dim = 48, .value_dim = 57, .seed = 7}, true},
          {{.prompt = 400, .steps = 16, .group = 9, .head_dim = 64, .value_dim = 128, .reach = 100, .seed = 8}, true},
          {{.prompt = 1, .steps = 1, .group = 1, .seed = 9, .half = true}}};
}
inline std::vector<std::uint32_t> odd_counts(std::uint32_t prompt) {
  std::vector<std::uint32_t> counts{0, 0, 1, 1, 7, 15, 16, 17, 31, 32, 33, 64, 100, prompt / 2, prompt - 1, prompt, prompt};
  for (std::uint32_t& count : counts) count = std::min(count, prompt);
  std::sort(counts.begin(), counts.end());
  return counts;
}

using LaunchCurves = std::function<void(const cuda::CurveCall&, int rankings, int most_rows, cudaStream_t)>;

/// Whether curves agree with the host's, with and without deltas.
inline bool check_curves(const LaunchCurves& launch, const char* name) {
  const cuda::Stream stream;
  bool good = true;
  for (const CheckShape& of : check_shapes()) {
    const CurveHead head(of.shape, of.split, stream);
    const HostHead host(head);
    const auto counts = odd_counts(static_cast<std::uint32_t>(of.shape.prompt));
    const int steps = static_cast<int>(of.shape.steps), rows = head.rows();
    RankingSet rankings;
    for (const std::uint64_t seed : {1, 2}) rankings.add(shuffled(of.shape.prompt, seed), counts, 0, rows);
    rankings.add(shuffled(of.shape.prompt, 2), counts, rows - steps, rows);
    rankings.add(shuffled(of.shape.prompt, 2), counts, 0, steps);
    CurveRun with(head, rankings, true), without(head, rankings, false);
    for (CurveRun* run : {&with, &without}) launch(run->call, static_cast<int>(rankings.items.size()), rankings.most_rows(), stream.get());
    stream.wait();
    const auto error = without.error.host(), recall = without.recall.host(), same_error = with.error.host(), delta = with.delta.host();
    const std::size_t stride = static_cast<std::size_t>(head.result_stride);
    Differences differences{.slack = of.split ? 2.0 : 1.0};
    for (std::size_t r = 0; r < rankings.items.size(); ++r) {
      const RankingSet::Item& item = rankings.items[r];
      for (int row = item.row_begin; row < item.row_end; row += 1 + rows / 64) {
        const auto expected = host.curve(static_cast<std::size_t>(row), item.order, counts);
        for (std::size_t b = 0; b < counts.size(); ++b) {
          const std::size_t at = (r * counts.size() + b) * stride + static_cast<std::size_t>(row);
          differences.add(expected[b], error[at], recall[at]);
          if (std::bit_cast<std::uint32_t>(error[at]) != std::bit_cast<std::uint32_t>(same_error[at])) differences.nans += 1000;
          if (std::isnan(error[at])) continue;
          for (std::size_t c = 0; c < of.shape.value_dim; ++c)
            differences.add_delta(expected[b].delta[c],
                                  delta[((r * counts.size() + b) * of.shape.value_dim + c) * stride + static_cast<std::size_t>(row)]);
          // The same rows in another call: the same bits.
          if (r == 2 || r == 3) {
            const std::size_t same = (counts.size() + b) * stride + static_cast<std::size_t>(row);
            if (error[at] != error[same] || recall[at] != recall[same]) differences.nans += 1000;
          }
        }
      }
    }
    // Many rankings take other tiles; what a row gives must not depend on that.
    for (const int copies : {16, 20}) {
      RankingSet many;
      for (int i = 0; i < copies; ++i)
        for (const RankingSet::Item& item : rankings.items) many.add(item.order, counts, item.row_begin, item.row_end);
      CurveRun run(head, many, true);
      launch(run.call, static_cast<int>(many.items.size()), many.most_rows(), stream.get());
      stream.wait();
      const auto again = run.error.host(), again_delta = run.delta.host();
      const std::size_t base = again.size() / static_cast<std::size_t>(copies), last = again.size() - base;
      for (std::size_t i = 0; i < again.size(); ++i)
        differences.nans += std::bit_cast<std::uint32_t>(again[i]) != std::bit_cast<std::uint32_t>(error[i % base]);
      const std::size_t dv = of.shape.value_dim;
      for (std::size_t i = 0; i < base * dv; ++i)
        differences.nans += std::bit_cast<std::uint32_t>(again_delta[last * dv + i]) != std::bit_cast<std::uint32_t>(delta[i]);
    }
    good = differences.report(name, of.shape, of.split) && good;
  }
  return good;
}

/// Every row's tokens by weight, largest first; with `holes` every fifth is not visible.
inline std::vector<std::vector<TokenIndex>> own_orders(const HostHead& host, bool holes) {
  std::vector<std::vector<TokenIndex>> orders;
  for (std::size_t row = 0; row < host.of.host.rows(); ++row) {
    std::vector<TokenIndex> order;
    for (std::size_t t = 0; t < host.of.host.shape.prompt; ++t)
      if (!holes || (t + row) % 5 != 0) order.push_back(static_cast<TokenIndex>(t));
    std::vector<float> weight(host.of.host.shape.prompt);
    for (const TokenIndex t : order) weight[t] = host.weights[static_cast<std::size_t>(t) * host.of.size.stride + row];
    std::stable_sort(order.begin(), order.end(), [&](TokenIndex a, TokenIndex b) { return weight[a] > weight[b]; });
    orders.push_back(std::move(order));
  }
  return orders;
}

/// Own orders on the device as ranks, and the results: NaN before the launch.
template <typename Rank>
struct OwnOrder {
  OwnOrder(const CurveHead& head, const std::vector<std::vector<TokenIndex>>& orders, const std::vector<std::uint32_t>& of_counts,
           bool deltas)
      : counts(of_counts),
        cells(of_counts.size() * static_cast<std::size_t>(head.result_stride)),
        error(cells),
        recall(cells),
        most(of_counts.back()) {
    const std::size_t rank_stride = (head.host.shape.prompt + 63) / 64 * 64;
    std::vector<Rank> places(orders.size() * rank_stride, static_cast<Rank>(-1));
    for (std::size_t row = 0; row < orders.size(); ++row)
      for (std::size_t i = 0; i < orders[row].size(); ++i) places[row * rank_stride + orders[row][i]] = static_cast<Rank>(i);
    ranks = OnGpu<Rank>(places);
    if (deltas) delta = OnGpu<float>(cells * head.host.shape.value_dim);
    for (OnGpu<float>* of : {&error, &recall, &delta}) of->poison();
    scratch = OnGpu<unsigned char>(
        std::max(cuda::walk_order_bytes(head.host.rows(), most), cuda::masked_order_bytes(head.size, of_counts.size())));
    scratch.poison();
    arguments = {ranks.get(),
                 head.high.get(),
                 head.low.get(),
                 head.value_high.get(),
                 head.value_low.get(),
                 head.exact.get(),
                 head.tail.get(),
                 head.tail_weight.get(),
                 head.norm.get(),
                 counts.get(),
                 error.get(),
                 recall.get(),
                 delta.get(),
                 head.size.prompt,
                 head.size.rows,
                 head.size.stride,
                 static_cast<int>(rank_stride),
                 head.result_stride,
                 head.size.value_dim,
                 static_cast<int>(of_counts.size())};
  }
  OnGpu<Rank> ranks;
  OnGpu<std::uint32_t> counts;
  std::size_t cells;
  OnGpu<float> error, recall, delta;
  std::uint32_t most;
  OnGpu<unsigned char> scratch;
  cuda::OwnOrderArguments<Rank> arguments{};
};

/// Whether a row's own best agree with the host's.
template <typename Rank, typename Launch>
bool check_own_order(const Launch& launch, const char* name) {
  const cuda::Stream stream;
  bool good = true;
  for (const CheckShape& of : check_shapes()) {
    const CurveHead head(of.shape, of.split, stream);
    const HostHead host(head);
    const auto counts = odd_counts(static_cast<std::uint32_t>(of.shape.prompt));
    const auto orders = own_orders(host, sizeof(Rank) == 4);
    OwnOrder<Rank> own(head, orders, counts, true);
    launch(own, stream);
    stream.wait();
    const auto error = own.error.host(), recall = own.recall.host(), delta = own.delta.host();
    const std::size_t stride = static_cast<std::size_t>(head.result_stride);
    Differences differences{.slack = of.split ? 2.0 : 1.0};
    for (std::size_t row = 0; row < orders.size(); row += 1 + orders.size() / 64) {
      const auto expected = host.curve(row, orders[row], counts);
      for (std::size_t b = 0; b < counts.size(); ++b) {
        differences.add(expected[b], error[b * stride + row], recall[b * stride + row]);
        if (std::isnan(error[b * stride + row])) continue;
        for (std::size_t c = 0; c < of.shape.value_dim; ++c)
          differences.add_delta(expected[b].delta[c], delta[(b * of.shape.value_dim + c) * stride + row]);
      }
    }
    good = differences.report(name, of.shape, of.split) && good;
  }
  return good;
}

}  // namespace kvsim
