// The parts that scores are made of, and their application in a given order; named policies are presets of
// them.
#include "policies/recipe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"

namespace kvsim {
namespace {

using Rows = std::vector<std::vector<double>>;

std::vector<double> widened(std::span<const float> row, double factor) {
  std::vector<double> out(row.size());
  std::transform(row.begin(), row.end(), out.begin(),
                 [factor](float x) { return static_cast<double>(x) * factor; });
  return out;
}

/// The attention of one query head, reduced over the queries.
std::vector<double> attention_row(const Recipe& recipe, const HeadFeatures& head, Reducer::Kind kind,
                                  std::size_t h) {
  const bool all = recipe.query == QuerySource::all;
  if (kind == Reducer::Kind::visible) return widened(head.attention_mean_over_visible(h), 1.0);
  if (all && kind == Reducer::Kind::sum) return widened(head.attention_sum(h), 1.0);
  if (all) return widened(head.attention_sum(h), 1.0 / static_cast<double>(head.geometry().prompt));
  return widened(head.window_mean(recipe.window, h), kind == Reducer::Kind::sum ? recipe.window : 1.0);
}

Rows base_rows(const Recipe& recipe, const HeadFeatures& head) {
  const LayerGeometry& layer = head.geometry();
  Rows rows;
  switch (recipe.base) {
    case Base::attention:
      KVSIM_CHECK(!recipe.reduce.empty(), "attention needs a reduction over queries");
      for (std::size_t h = 0; h < layer.group; ++h) {
        rows.push_back(attention_row(recipe, head, recipe.reduce.front().kind, h));
      }
      return rows;
    case Base::position:
      rows.emplace_back(layer.prompt);
      for (std::size_t t = 0; t < layer.prompt; ++t) {
        rows[0][t] = static_cast<double>(t) / static_cast<double>(layer.prompt);
      }
      return rows;
    case Base::knorm:
      return {key_norm_scores(head.keys())};
    case Base::keydiff:
      return {key_difference_scores(head.keys())};
  }
  throw InternalError("unknown base of a score");
}

void apply(const Reducer& step, Unit unit, Rows& rows) {
  switch (step.kind) {
    case Reducer::Kind::mean:
    case Reducer::Kind::sum:
    case Reducer::Kind::visible:
      return;  // done where the rows were made
    case Reducer::Kind::avg:
    case Reducer::Kind::max:
      for (auto& row : rows) row = pooled(row, step.width, step.kind == Reducer::Kind::avg);
      return;
    case Reducer::Kind::group:
      if (unit != Unit::query) rows = {join_group(rows, step.group)};
      return;
  }
}

}  // namespace

Need Recipe::needs() const {
  Need needs = Need::none;
  if (base == Base::attention)
    needs = query == QuerySource::all ? Need::prompt_attention : Need::window_queries;
  if (base == Base::knorm || base == Base::keydiff) needs = Need::keys;
  return value == ValueNorm::none ? needs : needs | Need::values;
}

void Recipe::score(const HeadFeatures& head, std::string_view policy, std::span<UnitScores> out) const {
  const std::size_t tokens = head.geometry().prompt;
  if (query == QuerySource::window && tokens <= window) {
    throw UserError("{}(window={}) needs a prompt of more than {} tokens, this one has {}", policy, window,
                    window, tokens);
  }
  Rows rows = base_rows(*this, head);
  const std::size_t free = tokens - std::min<std::size_t>(tokens, recent);
  for (auto& row : rows) row.resize(free);
  for (const Reducer& step : reduce) apply(step, unit, rows);
  if (unit == Unit::query && rows.size() == 1) rows.resize(out.size(), rows[0]);
  KVSIM_CHECK(rows.size() == out.size(), "{} has {} rows for {} units", policy, rows.size(), out.size());
  const std::vector<double> norms =
      value == ValueNorm::none ? std::vector<double>{} : row_norms(head.values(), value);
  for (std::size_t u = 0; u < out.size(); ++u) {
    for (std::size_t t = 0; t < free && !norms.empty(); ++t) rows[u][t] *= norms[t];
    out[u].score = to_scores(rows[u]);
    out[u].score.resize(tokens, 0.0f);
    out[u].protected_tokens = protected_order(tokens, sinks, recent);
  }
}

Recipe window_recipe(std::uint32_t window, std::size_t pool, std::uint32_t kernel, std::size_t group,
                     std::size_t unit) {
  Recipe recipe;
  recipe.query = QuerySource::window;
  recipe.window = window;
  recipe.base = Base::attention;
  recipe.reduce = {{.kind = Reducer::Kind::mean},
                   {.kind = pool == 0 ? Reducer::Kind::avg : Reducer::Kind::max, .width = kernel},
                   {.kind = Reducer::Kind::group, .group = static_cast<Group>(group)}};
  recipe.recent = window;
  recipe.unit = unit == 0 ? Unit::kv : Unit::query;
  return recipe;
}

void check_kernel(std::string_view policy, std::uint32_t kernel) {
  if (kernel % 2 == 0)
    throw UserError("{}: kernel={} must be odd, an even one shifts the scores", policy, kernel);
}

std::vector<TokenIndex> protected_order(std::size_t tokens, std::uint32_t sinks, std::uint32_t recent) {
  std::vector<TokenIndex> out;
  const auto n = static_cast<TokenIndex>(tokens);
  const TokenIndex first = std::min(sinks, n);
  for (TokenIndex t = 0; t < first; ++t) out.push_back(t);
  const TokenIndex oldest = std::max(first, n - std::min(recent, n));
  for (TokenIndex t = n; t-- > oldest;) out.push_back(t);
  return out;
}

void lift_protected(LayerScores& scores) {
  float largest = -std::numeric_limits<float>::infinity();
  std::vector<std::vector<bool>> guarded;
  for (const UnitScores& unit : scores.units) {
    std::vector<bool> mask(unit.score.size(), false);
    for (const TokenIndex t : unit.protected_tokens) mask[t] = true;
    for (std::size_t t = 0; t < mask.size(); ++t) {
      if (!mask[t])
        largest = std::max(largest, unit.score[t]);  // a NaN stays where it is and is refused later
    }
  }
  if (!std::isfinite(largest)) largest = 0.0f;
  for (UnitScores& unit : scores.units) {
    for (const TokenIndex t : unit.protected_tokens) unit.score[t] = largest + 1.0f;
  }
}

void share_over_layer(LayerScores& scores) {
  if (scores.units.empty()) return;
  Rows rows;
  for (const UnitScores& unit : scores.units) rows.push_back(widened(unit.score, 1.0));
  const std::vector<float> mean = to_scores(join_group(rows, Group::mean));
  for (UnitScores& unit : scores.units) unit.score = mean;
}

std::vector<double> join_group(const std::vector<std::vector<double>>& rows, Group group) {
  KVSIM_CHECK(!rows.empty(), "a group without query heads");
  std::vector<double> out = rows[0];
  if (group == Group::first) return out;
  for (std::size_t h = 1; h < rows.size(); ++h) {
    for (std::size_t t = 0; t < out.size(); ++t) {
      out[t] = group == Group::max ? std::max(out[t], rows[h][t]) : out[t] + rows[h][t];
    }
  }
  if (group == Group::mean) {
    for (double& x : out) x /= static_cast<double>(rows.size());
  }
  return out;
}

std::vector<double> pooled(const std::vector<double>& row, std::uint32_t width, bool average) {
  const std::size_t half = width / 2;
  std::vector<double> out(row.size());
  for (std::size_t t = 0; t < row.size(); ++t) {
    const std::size_t begin = t < half ? 0 : t - half;
    const std::size_t end = std::min(row.size(), t + half + 1);
    double sum = 0;
    double largest = row[t];
    for (std::size_t i = begin; i < end; ++i) {
      sum += row[i];
      largest = std::max(largest, row[i]);
    }
    out[t] = average ? sum / static_cast<double>(width) : largest;
  }
  return out;
}

std::vector<float> decode_reference(const HeadFeatures& head) {
  Rows rows;
  for (std::size_t h = 0; h < head.geometry().group; ++h) rows.push_back(widened(head.decode_mean(h), 1.0));
  return to_scores(join_group(rows, Group::mean));
}

std::vector<double> row_norms(MatrixView<const float> rows, ValueNorm norm) {
  std::vector<double> out(rows.rows);
  for (std::size_t t = 0; t < rows.rows; ++t) {
    double sum = 0;
    for (std::size_t c = 0; c < rows.cols; ++c) {
      const double x = static_cast<double>(rows(t, c));
      sum += norm == ValueNorm::l1 ? std::abs(x) : x * x;
    }
    out[t] = norm == ValueNorm::l1 ? sum : std::sqrt(sum);
  }
  return out;
}

std::vector<double> key_norm_scores(MatrixView<const float> keys) {
  std::vector<double> out = row_norms(keys, ValueNorm::l2);
  for (double& x : out) x = 0.0 - x;
  return out;
}

std::vector<double> key_difference_scores(MatrixView<const float> keys) {
  constexpr double kSmallestNorm = 1e-12;    // torch.nn.functional.normalize
  constexpr double kSmallestProduct = 1e-8;  // torch.nn.functional.cosine_similarity
  const std::vector<double> norms = row_norms(keys, ValueNorm::l2);
  std::vector<double> anchor(keys.cols, 0.0);
  for (std::size_t t = 0; t < keys.rows; ++t) {
    const double norm = std::max(norms[t], kSmallestNorm);
    for (std::size_t c = 0; c < keys.cols; ++c) anchor[c] += static_cast<double>(keys(t, c)) / norm;
  }
  double length = 0;
  for (double& x : anchor) {
    x /= static_cast<double>(keys.rows);
    length += x * x;
  }
  length = std::sqrt(length);
  std::vector<double> out(keys.rows);
  for (std::size_t t = 0; t < keys.rows; ++t) {
    double dot = 0;
    for (std::size_t c = 0; c < keys.cols; ++c) dot += static_cast<double>(keys(t, c)) * anchor[c];
    out[t] = -dot / std::max(norms[t] * length, kSmallestProduct);
  }
  return out;
}

std::vector<float> to_scores(const std::vector<double>& row) {
  std::vector<float> out(row.size());
  std::transform(row.begin(), row.end(), out.begin(), [](double x) { return static_cast<float>(x); });
  return out;
}

}  // namespace kvsim
