// What policies may know of a KV head, computed in double from dense queries, keys and values: the reference
// for tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/philox.h"
#include "policies/policy.h"

namespace kvsim::test {

/// Dense tensors of one layer, in double. Decode queries stand at prompt, prompt + 1, ...; keys and values
/// cover them too.
struct DenseLayer {
  LayerGeometry geometry;
  std::vector<std::vector<std::vector<double>>> q, k, v;  // [query heads | KV heads][prompt + decode][d | dv]
  std::vector<float> inverse_frequency;
  Rope::Layout layout = Rope::Layout::none;
  double attention_scaling = 1.0;
  std::uint32_t stats_sinks = 4;
  bool queries_before_rope =
      false;  // q is taken as it is for the statistics; otherwise it must not be asked for them
  std::map<std::string, std::vector<std::vector<std::vector<double>>>> lookahead;  // pass -> [query heads][n][d]
  std::map<std::string, std::vector<std::vector<float>>> second_pass;              // statistic -> [query heads][prompt]
  std::vector<std::vector<std::vector<double>>> output_projection;                 // [query heads][dv][hidden]
  std::vector<std::uint32_t> budgets;                                              // of the run, ascending

  using Element = std::function<double(std::size_t head, std::size_t token, std::size_t channel)>;
  void fill(const Element& query, const Element& key, const Element& value) {
    const std::size_t tokens = geometry.prompt + geometry.decode;
    const auto make = [&](std::size_t heads, std::size_t dim, const Element& element) {
      std::vector<std::vector<std::vector<double>>> out(heads);
      for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t t = 0; t < tokens; ++t) {
          out[h].emplace_back();
          for (std::size_t c = 0; c < dim; ++c) out[h][t].push_back(element(h, t, c));
        }
      }
      return out;
    };
    q = make(geometry.kv_heads * geometry.group, geometry.key_dim, query);
    k = make(geometry.kv_heads, geometry.key_dim, key);
    v = make(geometry.kv_heads, geometry.value_dim, value);
  }
};

/// A layer with peaky random attention: some keys draw much more than others.
inline DenseLayer random_layer(std::size_t prompt, std::size_t kv_heads, std::size_t group,
                               std::uint64_t seed, std::size_t decode = 6, std::size_t dim = 8) {
  DenseLayer layer;
  layer.geometry.prompt = prompt;
  layer.geometry.decode = decode;
  layer.geometry.kv_heads = kv_heads;
  layer.geometry.group = group;
  layer.geometry.key_dim = layer.geometry.value_dim = dim;
  layer.geometry.softmax_scale = 1.0 / std::sqrt(static_cast<double>(dim));
  layer.geometry.model_layers = 4;
  layer.geometry.recorded_layers = {0, 1, 2, 3};
  layer.geometry.layer = 1;
  layer.geometry.trace_digest = seed;
  layer.queries_before_rope = true;
  const auto noise = [seed](std::uint64_t kind, double size) {
    return [=](std::size_t h, std::size_t t, std::size_t c) {
      Philox numbers(seed, stream_of(kind, h, t, c));
      return size * (2 * numbers.next_double() - 1);
    };
  };
  layer.fill(noise(1, 4.0), noise(2, 2.0), noise(3, 1.0));
  return layer;
}

/// HeadFeatures of one KV head of a DenseLayer. What `visible` does not name, or a larger window than
/// `window`, is NaN, so that a policy that reads what it did not declare is found out.
class DenseFeatures final : public HeadFeatures {
 public:
  explicit DenseFeatures(const DenseLayer& layer, std::uint32_t kv_head,
                         Need visible = Need(std::numeric_limits<std::uint32_t>::max()),
                         std::uint32_t window = std::numeric_limits<std::uint32_t>::max())
      : layer_(layer), kv_head_(kv_head), visible_(visible), window_(window) {
    const LayerGeometry& g = layer.geometry;
    keys_ = matrix(layer.k[kv_head], g.key_dim, has(visible, Need::keys));
    values_ = matrix(layer.v[kv_head], g.value_dim, has(visible, Need::values));
    for (std::size_t h = 0; h < g.group; ++h) {
      std::vector<std::vector<double>> rows;
      for (std::size_t p = 0; p < g.prompt + g.decode; ++p) rows.push_back(softmax(layer.q[kv_head * g.group + h][p], p + 1));
      attention_.push_back(std::move(rows));
    }
  }

  const LayerGeometry& geometry() const override { return layer_.geometry; }
  std::uint32_t kv_head() const override { return kv_head_; }
  MatrixView<const float> keys() const override { return keys_.view(); }
  MatrixView<const float> values() const override { return values_.view(); }
  Rope rope() const override { return {layer_.layout, layer_.inverse_frequency, layer_.attention_scaling}; }

  std::span<const float> window_mean(std::uint32_t window, std::size_t h) const override {
    const std::size_t prompt = layer_.geometry.prompt;
    if (window == 0 || window > prompt)
      throw std::logic_error("a window that the prompt does not have was asked for");
    const bool shown = has(visible_, Need::window_queries) && window <= window_;
    return keep({0, window, h}, shown, [&](std::size_t t) {
      double sum = 0;
      for (std::size_t p = prompt - window; p < prompt; ++p) sum += attention_[h][p][t];
      return sum / window;
    });
  }
  std::span<const float> attention_sum(std::size_t h) const override {
    return keep({1, 0, h}, has(visible_, Need::prompt_attention),
                [&](std::size_t t) { return column_sum(h, t); });
  }
  std::span<const float> attention_mean_over_visible(std::size_t h) const override {
    return keep({2, 0, h}, has(visible_, Need::prompt_attention), [&](std::size_t t) {
      return column_sum(h, t) / static_cast<double>(layer_.geometry.prompt - t);
    });
  }
  std::span<const float> decode_mean(std::size_t h) const override {
    const LayerGeometry& g = layer_.geometry;
    return keep({3, 0, h}, has(visible_, Need::decode_queries), [&](std::size_t t) {
      double sum = 0;
      for (std::size_t s = 0; s < g.decode; ++s) sum += attention_[h][g.prompt + s][t];
      return g.decode == 0 ? 0.0 : sum / static_cast<double>(g.decode);
    });
  }
  MatrixView<const float> queries(const QueryRows& rows, std::size_t h) const override {
    return set(0, rows, h, layer_.geometry.key_dim, [&](Matrix<float>& out, const std::vector<Row>& of) {
      for (std::size_t i = 0; i < of.size(); ++i)
        for (std::size_t c = 0; c < out.cols(); ++c) out(i, c) = narrow((*of[i].query)[c]);
    });
  }
  MatrixView<const float> attention(const QueryRows& rows, std::size_t h) const override {
    const std::size_t n = count(rows);
    return set(1, rows, h, n, [&](Matrix<float>& out, const std::vector<Row>& of) {
      out = Matrix<float>(layer_.geometry.prompt, n);
      for (std::size_t i = 0; i < n; ++i) {
        const std::vector<double> weights = softmax(*of[i].query, of[i].sees);
        for (std::size_t t = 0; t < out.rows(); ++t) out(t, i) = narrow(weights[t]);
      }
    });
  }
  MatrixView<const float> outputs(const QueryRows& rows, std::size_t h) const override {
    return set(2, rows, h, layer_.geometry.value_dim, [&](Matrix<float>& out, const std::vector<Row>& of) {
      for (std::size_t i = 0; i < of.size(); ++i) {
        const std::vector<double> weights = softmax(*of[i].query, of[i].sees);
        for (std::size_t c = 0; c < out.cols(); ++c) {
          double sum = 0;
          for (std::size_t t = 0; t < of[i].sees; ++t) sum += weights[t] * layer_.v[kv_head_][t][c];
          out(i, c) = narrow(sum);
        }
      }
    });
  }
  MatrixView<const float> prompt_queries(std::size_t h) const override {
    const auto all = static_cast<std::uint32_t>(layer_.geometry.prompt);
    return queries({.source = QueryRows::Source::prompt, .count = all}, h);
  }
  /// One query a tile.
  void each_prompt_tile(std::size_t h, const std::function<void(const PromptTile&)>& visit) const override {
    if (!has(visible_, Need::all_queries)) throw std::logic_error("undeclared: all prompt queries");
    for (std::size_t p = 0; p < layer_.geometry.prompt; ++p) {
      Matrix<float> weights(p + 1, 1);
      for (std::size_t t = 0; t <= p; ++t) weights(t, 0) = narrow(attention_[h][p][t]);
      visit({p, 1, prompt_queries(h).rows_from(p, 1), weights.view()});
    }
  }
  MatrixView<const float> output_projection(std::size_t h) const override {
    if (!has(visible_, Need::output_projection)) throw std::logic_error("undeclared: output projection");
    const auto& rows = layer_.output_projection.at(kv_head_ * layer_.geometry.group + h);
    auto& out = sets_[{3, {}, h}];
    if (out.empty()) {
      out = Matrix<float>(rows.size(), rows.at(0).size());
      for (std::size_t c = 0; c < out.rows(); ++c)
        for (std::size_t m = 0; m < out.cols(); ++m) out(c, m) = narrow(rows[c][m]);
    }
    return out.view();
  }
  std::span<const float> second_pass(const std::string& statistic, std::size_t h) const override {
    if (!has(visible_, Need::second_pass)) throw std::logic_error("undeclared: second pass");
    return layer_.second_pass.at(statistic).at(kv_head_ * layer_.geometry.group + h);
  }
  std::span<const std::uint32_t> budgets() const override { return layer_.budgets; }

  QueryStats query_stats(std::size_t h) const override {
    if (!layer_.queries_before_rope)
      throw std::logic_error("this layer has no queries before the rotary embedding");
    if (stats_.find(h) == stats_.end()) stats_[h] = compute_stats(h);
    const Stats& stats = *stats_[h];
    return {stats.mean, stats.covariance.view(), layer_.stats_sinks};
  }

 private:
  struct Stats {
    std::vector<float> mean;
    Matrix<float> covariance;
  };
  struct Key {
    int kind;
    std::uint32_t window;
    std::size_t head;
    friend auto operator<=>(const Key&, const Key&) = default;
  };
  struct SetKey {
    int kind;
    QueryRows rows;
    std::size_t head;
    friend auto operator<=>(const SetKey&, const SetKey&) = default;
  };
  /// One query of a set and how many tokens it sees.
  struct Row {
    const std::vector<double>* query;
    std::size_t sees;
  };
  static constexpr float kHidden = std::numeric_limits<float>::quiet_NaN();
  static float narrow(double x) { return static_cast<float>(x); }

  std::vector<Row> rows_of(const QueryRows& rows, std::size_t h) const {
    using Source = QueryRows::Source;
    const std::size_t prompt = layer_.geometry.prompt, head = kv_head_ * layer_.geometry.group + h, n = count(rows);
    std::vector<Row> out;
    for (std::size_t i = 0; i < n; ++i) {
      switch (rows.source) {
        case Source::window:
          out.push_back({&layer_.q[head][prompt - n + i], prompt - n + i + 1 - rows.behind});
          break;
        case Source::prompt:
          out.push_back({&layer_.q[head][rows.first + i], rows.first + i + 1});
          break;
        case Source::oracle:
          out.push_back({&layer_.q[head][prompt + i], prompt + i + 1});
          break;
        case Source::lookahead:
          out.push_back({&layer_.lookahead.at(rows.pass)[head][i], rows.staircase ? prompt - n + i + 1 : prompt});
          break;
      }
    }
    return out;
  }
  /// `fill` on a matrix of the set's rows, or NaN where the need was not declared.
  template <typename Fill>
  MatrixView<const float> set(int kind, const QueryRows& rows, std::size_t h, std::size_t cols, const Fill& fill) const {
    using Source = QueryRows::Source;
    const Need need = rows.source == Source::window      ? Need::window_queries
                      : rows.source == Source::prompt    ? Need::all_queries
                      : rows.source == Source::lookahead ? Need::lookahead
                                                         : Need::decode_queries;
    if (!has(visible_, need) || (kind == 2 && !has(visible_, Need::values)) ||
        (rows.source == Source::window && rows.count > window_))
      throw std::logic_error("undeclared query rows");
    auto& out = sets_[{kind, rows, h}];
    if (out.empty()) {
      out = Matrix<float>(count(rows), cols);
      fill(out, rows_of(rows, h));
    }
    return out.view();
  }

  Matrix<float> matrix(const std::vector<std::vector<double>>& rows, std::size_t dim, bool shown) const {
    Matrix<float> out(layer_.geometry.prompt, dim);
    for (std::size_t t = 0; t < out.rows(); ++t) {
      for (std::size_t c = 0; c < dim; ++c) out(t, c) = shown ? static_cast<float>(rows[t][c]) : kHidden;
    }
    return out;
  }
  template <typename Value>
  std::span<const float> keep(const Key& key, bool shown, Value value) const {
    auto& row = rows_[key];
    if (row.empty()) {
      for (std::size_t t = 0; t < layer_.geometry.prompt; ++t)
        row.push_back(shown ? static_cast<float>(value(t)) : kHidden);
    }
    return row;
  }
  /// Softmax of a query over the first `sees` tokens, over all tokens.
  std::vector<double> softmax(const std::vector<double>& query, std::size_t sees) const {
    const LayerGeometry& g = layer_.geometry;
    std::vector<double> row(g.prompt + g.decode, 0.0);
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::size_t t = 0; t < sees; ++t) {
      double dot = 0;
      for (std::size_t c = 0; c < g.key_dim; ++c) dot += query[c] * layer_.k[kv_head_][t][c];
      largest = std::max(largest, row[t] = dot * g.softmax_scale);
    }
    for (std::size_t t = 0; t < sees; ++t) sum += row[t] = std::exp(row[t] - largest);
    for (double& a : row) a /= sum;
    return row;
  }
  double column_sum(std::size_t h, std::size_t t) const {
    double sum = 0;
    for (std::size_t p = t; p < layer_.geometry.prompt; ++p) sum += attention_[h][p][t];
    return sum;
  }
  std::unique_ptr<Stats> compute_stats(std::size_t h) const {
    const LayerGeometry& g = layer_.geometry;
    const auto& rows = layer_.q[kv_head_ * g.group + h];
    const std::size_t first = std::min<std::size_t>(layer_.stats_sinks, g.prompt);
    const auto n = static_cast<double>(g.prompt - first);
    auto out =
        std::make_unique<Stats>(Stats{std::vector<float>(g.key_dim), Matrix<float>(g.key_dim, g.key_dim)});
    std::vector<double> mean(g.key_dim, 0.0);
    for (std::size_t p = first; p < g.prompt; ++p) {
      for (std::size_t c = 0; c < g.key_dim; ++c) mean[c] += rows[p][c] / n;
    }
    const bool shown = has(visible_, Need::query_stats);
    for (std::size_t a = 0; a < g.key_dim; ++a) {
      out->mean[a] = shown ? static_cast<float>(mean[a]) : kHidden;
      for (std::size_t b = 0; b < g.key_dim; ++b) {
        double sum = 0;
        for (std::size_t p = first; p < g.prompt; ++p) sum += (rows[p][a] - mean[a]) * (rows[p][b] - mean[b]);
        out->covariance(a, b) = shown ? static_cast<float>(sum / n) : kHidden;
      }
    }
    return out;
  }

  const DenseLayer& layer_;
  std::uint32_t kv_head_;
  Need visible_;
  std::uint32_t window_;
  Matrix<float> keys_, values_;
  std::vector<std::vector<std::vector<double>>> attention_;  // [group][position][token]
  mutable std::map<Key, std::vector<float>> rows_;
  mutable std::map<SetKey, Matrix<float>> sets_;
  mutable std::map<std::size_t, std::unique_ptr<Stats>> stats_;
};

/// Scores of all KV heads of a layer by a policy, joined, as the engine does it. With `strict` everything
/// that the policy does not declare is NaN.
inline LayerScores score_layer(const Policy& policy, const DenseLayer& layer, bool strict = false) {
  const LayerGeometry& g = layer.geometry;
  const std::size_t per_head = policy.unit() == Unit::query ? g.group : 1;
  LayerScores scores{policy.unit(), std::vector<UnitScores>(g.kv_heads * per_head)};
  for (std::uint32_t h = 0; h < g.kv_heads; ++h) {
    const std::span<UnitScores> out = std::span(scores.units).subspan(h * per_head, per_head);
    if (strict) {
      policy.score(DenseFeatures(layer, h, policy.needs(), policy.window()), out);
    } else {
      policy.score(DenseFeatures(layer, h), out);
    }
  }
  policy.join(g, scores);
  return scores;
}

/// Kept counts of every unit at a budget.
inline std::vector<std::uint32_t> allocate(const Policy& policy, const DenseLayer& layer,
                                           const LayerRanking& ranking, std::uint32_t budget) {
  std::vector<std::uint32_t> kept(ranking.order.size());
  policy.allocate(layer.geometry, ranking, budget, kept);
  return kept;
}

/// Kept positions of one unit at a budget, ascending.
inline std::vector<TokenIndex> kept_tokens(const LayerRanking& ranking, std::size_t unit,
                                           std::uint32_t count) {
  std::vector<TokenIndex> out(ranking.order[unit].begin(), ranking.order[unit].begin() + count);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace kvsim::test
