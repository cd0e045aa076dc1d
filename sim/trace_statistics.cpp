// Statistics of a recording that need no policy.
#include "sim/trace_statistics.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/error.h"
#include "kernels/replay.h"

namespace kvsim {
namespace {

struct Name {
  std::string_view name, meaning;
};
constexpr std::array<Name, kTraceStatistics> kNames{
    {{"query_similarity", "cosine of a query and the one `parameter` steps before"},
     {"top_overlap", "share of a query's top tokens that were top `parameter` steps before"},
     {"top_overlap_chance", "the same share for random sets"},
     {"persistence", "share of a query's important tokens that were important `parameter` steps before"},
     {"persistence_window",
      "share of a query's important tokens that any of the last `parameter` queries found important"},
     {"important_share", "share of all tokens that are important"},
     {"sink_mass", "attention on the first `parameter` tokens"},
     {"recent_mass", "attention on the newest `parameter` tokens"}}};

/// A running mean.
struct Mean {
  double sum = 0.0;
  std::uint64_t count = 0;
  void add(double value) {
    sum += value;
    ++count;
  }
};

/// What the statistics need to know of one step.
struct Step {
  std::size_t first = 0, last = 0;    // visible tokens [first, last)
  std::vector<bool> important;        // [last]
  std::vector<TokenIndex> by_weight;  // the heaviest tokens, heaviest first, ties to the earlier position
};

class HeadStatistics {
 public:
  HeadStatistics(MatrixView<const float> queries, MatrixView<const float> attention, std::uint64_t prompt,
                 std::uint32_t window, const StatisticsOptions& options)
      : queries_(queries), attention_(attention), prompt_(prompt), window_(window), options_(options) {
    for (const std::uint32_t lag : options.lags) {
      if (lag < queries.rows) lags_.push_back(lag);
    }
    const std::size_t longest = lags_.empty() ? 0 : lags_.back();
    for (std::size_t t = 0; t < queries.rows; ++t) steps_.push_back(look_at(t, options.top + longest));
  }

  std::vector<StatisticRow> rows() const {
    std::vector<StatisticRow> out;
    const auto put = [&out](TraceStatistic what, std::uint32_t parameter, const Mean& mean) {
      StatisticRow row;
      row.statistic = what;
      row.parameter = parameter;
      row.count = mean.count;
      if (mean.count > 0) row.mean = mean.sum / static_cast<double>(mean.count);
      out.push_back(row);
    };
    for (const std::uint32_t k : lags_) put(TraceStatistic::query_similarity, k, similarity(k));
    std::vector<Mean> chance;
    for (const std::uint32_t k : lags_)
      put(TraceStatistic::top_overlap, k, overlap(k, chance.emplace_back()));
    for (std::size_t i = 0; i < lags_.size(); ++i)
      put(TraceStatistic::top_overlap_chance, lags_[i], chance[i]);
    for (const std::uint32_t k : lags_) put(TraceStatistic::persistence, k, persistence(k, k));
    for (const std::uint32_t k : lags_) put(TraceStatistic::persistence_window, k, persistence(1, k));
    put(TraceStatistic::important_share, 0, share());
    for (const std::uint32_t n : options_.masses) put(TraceStatistic::sink_mass, n, mass(n, true));
    for (const std::uint32_t n : options_.masses) put(TraceStatistic::recent_mass, n, mass(n, false));
    return out;
  }

 private:
  Step look_at(std::size_t t, std::size_t heaviest) const {
    Step step;
    step.last = prompt_ + t + 1;
    step.first = window_ == 0 || step.last <= window_ ? 0 : step.last - window_;
    std::vector<float> weight(step.last);
    for (std::size_t i = step.first; i < step.last; ++i) weight[i] = attention_(i, t);
    const double even = 1.0 / static_cast<double>(step.last - step.first);
    step.important.resize(step.last);
    for (std::size_t i = step.first; i < step.last; ++i)
      step.important[i] = static_cast<double>(weight[i]) >= even;
    std::vector<TokenIndex> order(step.last - step.first);
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<TokenIndex>(step.first + i);
    const std::size_t count = std::min(heaviest, order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                      [&weight](TokenIndex a, TokenIndex b) {
                        return weight[a] != weight[b] ? weight[a] > weight[b] : a < b;
                      });
    order.resize(count);
    order.shrink_to_fit();
    step.by_weight = std::move(order);
    return step;
  }

  Mean similarity(std::uint32_t lag) const {
    Mean mean;
    for (std::size_t t = lag; t < queries_.rows; ++t) {
      const auto a = queries_.row_span(t), b = queries_.row_span(t - lag);
      double ab = 0.0, aa = 0.0, bb = 0.0;
      for (std::size_t c = 0; c < a.size(); ++c) {
        ab += static_cast<double>(a[c]) * static_cast<double>(b[c]);
        aa += static_cast<double>(a[c]) * static_cast<double>(a[c]);
        bb += static_cast<double>(b[c]) * static_cast<double>(b[c]);
      }
      if (aa > 0.0 && bb > 0.0) mean.add(ab / std::sqrt(aa * bb));
    }
    return mean;
  }

  /// The `top` heaviest tokens of a step inside [first, last), ascending. The step's list is long enough: at
  /// most a lag's tokens lie outside.
  std::vector<TokenIndex> top_within(const Step& step, std::size_t first, std::size_t last) const {
    std::vector<TokenIndex> top;
    for (const TokenIndex i : step.by_weight) {
      if (i >= first && i < last) top.push_back(i);
      if (top.size() == options_.top) break;
    }
    std::sort(top.begin(), top.end());
    return top;
  }

  Mean overlap(std::uint32_t lag, Mean& chance) const {
    Mean mean;
    for (std::size_t t = lag; t < steps_.size(); ++t) {
      const Step &now = steps_[t], &before = steps_[t - lag];
      const std::size_t first = now.first, last = before.last;
      if (last <= first + options_.top) continue;  // everything would be in both sets
      const auto a = top_within(now, first, last), b = top_within(before, first, last);
      std::vector<TokenIndex> both;
      std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
      mean.add(static_cast<double>(both.size()) / static_cast<double>(options_.top));
      chance.add(static_cast<double>(options_.top) / static_cast<double>(last - first));
    }
    return mean;
  }

  /// Of the tokens important at step t that were seen `far` steps before, those important at any of the steps
  /// t - far to t - near.
  Mean persistence(std::uint32_t near, std::uint32_t far) const {
    Mean mean;
    for (std::size_t t = far; t < steps_.size(); ++t) {
      const Step& now = steps_[t];
      const std::size_t last = steps_[t - far].last;
      std::uint64_t important = 0, persistent = 0;
      for (std::size_t i = now.first; i < last; ++i) {
        if (!now.important[i]) continue;
        ++important;
        std::size_t back = near;
        while (back <= far && !steps_[t - back].important[i]) ++back;
        persistent += back <= far ? 1 : 0;
      }
      if (important > 0) mean.add(static_cast<double>(persistent) / static_cast<double>(important));
    }
    return mean;
  }

  Mean share() const {
    Mean mean;
    for (const Step& step : steps_) {
      const auto important = std::count(step.important.begin(), step.important.end(), true);
      mean.add(static_cast<double>(important) / static_cast<double>(step.last - step.first));
    }
    return mean;
  }

  Mean mass(std::uint32_t tokens, bool first) const {
    Mean mean;
    for (std::size_t t = 0; t < steps_.size(); ++t) {
      const std::size_t end = steps_[t].last, count = std::min<std::size_t>(tokens, end);
      double sum = 0.0;
      for (std::size_t i = first ? 0 : end - count; i < (first ? count : end); ++i)
        sum += static_cast<double>(attention_(i, t));
      mean.add(sum);
    }
    return mean;
  }

  MatrixView<const float> queries_, attention_;
  std::uint64_t prompt_;
  std::uint32_t window_;
  const StatisticsOptions& options_;
  std::vector<std::uint32_t> lags_;
  std::vector<Step> steps_;
};

void check_options(const StatisticsOptions& options) {
  const auto ascending = [](const std::vector<std::uint32_t>& values) {
    return std::adjacent_find(values.begin(), values.end(), std::greater_equal<>()) == values.end();
  };
  if (!ascending(options.lags) || (!options.lags.empty() && options.lags.front() == 0))
    throw UserError("lags: found {}, expected ascending numbers above 0", fmt::join(options.lags, ","));
  if (!ascending(options.masses) || (!options.masses.empty() && options.masses.front() == 0))
    throw UserError("masses: found {}, expected ascending numbers above 0", fmt::join(options.masses, ","));
  if (options.top == 0) throw UserError("top: found 0, expected at least 1");
}

/// Exact attention of one query head's decode queries, [tokens, S] token-major.
Matrix<float> exact_attention(const HeadBlock& block, MatrixView<const float> queries, const TraceInfo& info,
                              const LayerInfo& layer) {
  std::vector<TokenIndex> position(queries.rows);
  for (std::size_t t = 0; t < position.size(); ++t)
    position[t] = static_cast<TokenIndex>(info.prompt_len + t);
  Matrix<float> attention(info.tokens(), round_up(queries.rows, kRowPad), kRowPad);
  const LogitRule rule{layer.softmax_scale, layer.logit_softcap, layer.sliding_window};
  for (std::size_t begin = 0; begin < queries.rows; begin += kRowTile) {
    attention_weights(block.key.view(), queries, position, rule, begin,
                      std::min(begin + kRowTile, queries.rows), attention.view());
  }
  return attention;
}

}  // namespace

std::string_view name_of(TraceStatistic statistic) {
  return kNames[static_cast<std::size_t>(statistic)].name;
}
std::string_view meaning_of(TraceStatistic statistic) {
  return kNames[static_cast<std::size_t>(statistic)].meaning;
}

std::vector<StatisticRow> head_statistics(MatrixView<const float> queries, MatrixView<const float> attention,
                                          std::uint64_t prompt, std::uint32_t window,
                                          const StatisticsOptions& options) {
  check_options(options);
  return HeadStatistics(queries, attention, prompt, window, options).rows();
}

std::vector<StatisticRow> layer_statistics(const TraceReader& reader, std::size_t layer_ordinal,
                                           const StatisticsOptions& options) {
  check_options(options);
  const TraceInfo& info = reader.info();
  const LayerInfo& layer = info.layers[layer_ordinal];
  std::vector<HeadBlock> blocks;
  for (std::uint32_t h = 0; h < info.num_kv_heads; ++h)
    blocks.push_back(reader.read_head(layer_ordinal, h, {}));
  std::vector<std::vector<StatisticRow>> heads(info.num_query_heads);
#pragma omp parallel for schedule(dynamic)
  for (std::size_t h = 0; h < heads.size(); ++h) {
    const HeadBlock& block = blocks[h / info.group()];
    const auto queries = block.query.view().rows_from(h % info.group() * info.decode_len, info.decode_len);
    const Matrix<float> attention = exact_attention(block, queries, info, layer);
    heads[h] =
        HeadStatistics(queries, attention.view(), info.prompt_len, layer.sliding_window, options).rows();
  }
  std::vector<StatisticRow> out;
  for (std::size_t h = 0; h < heads.size(); ++h) {
    for (StatisticRow& row : heads[h]) {
      row.layer = layer.index;
      row.query_head = static_cast<std::uint32_t>(h);
      out.push_back(row);
    }
  }
  return out;
}

}  // namespace kvsim
