// The parts that scores are made of, and their application in a given order; named policies are presets of
// them.
#include "policies/recipe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "policies/obd_sums.h"

namespace kvsim {
namespace {

using Kind = Reducer::Kind;
using Row = std::vector<double>;
using Rows = std::vector<Row>;

std::vector<double> widened(std::span<const float> row) { return {row.begin(), row.end()}; }

/// The steps over (query, key) pairs and over the queries as one.
RowFold row_fold(const Recipe& recipe, const std::string& pass) {
  RowFold fold;
  fold.query = recipe.query;
  fold.pass = pass;
  fold.pair = static_cast<Pair>(recipe.base);
  for (const Reducer& step : recipe.reduce) {
    if (step.kind == Kind::group && step.group == Group::logit_max) fold.logit_max = true;
    if (step.kind == Kind::softmax) {
      fold.softmax = true;
      fold.older = step.older ? recipe.recent : 0;
    }
    if (step.kind != Kind::fold) continue;
    fold.fold = step.fold;
    fold.gamma = step.fold == Fold::meanvar ? step.gamma : 0.0;
    break;
  }
  return fold;
}

/// Optimal brain damage of one query head over all rows of the sources (arXiv:2510.07651).
Row obd_row(const Recipe& recipe, const HeadFeatures& head, const std::string& pass, std::size_t h) {
  const bool outputs = recipe.base != Base::obd_value;
  std::vector<ObdSums> parts;
  if (recipe.query.front().kind == QueryPart::Kind::all) {
    parts.push_back(obd_sums(head, h, outputs));
  } else {
    for (const QueryRows& rows : query_rows(recipe.query, pass))
      parts.push_back(obd_sums(head, rows, h, outputs));
  }
  const Row norms = row_norms(head.values(), ValueNorm::l2);
  Row out(norms.size(), 0.0);
  for (const ObdSums& sums : parts) {
    for (std::size_t t = 0; t < out.size(); ++t) {
      const double value = static_cast<double>(sums.square[t]) * norms[t] * norms[t];
      const double key = outputs ? static_cast<double>(sums.key[t]) : 0.0;
      out[t] += key + (recipe.base == Base::obd_key ? 0.0 : value) +
                (recipe.base == Base::obd_joint ? static_cast<double>(sums.cross[t]) : 0.0);
    }
  }
  return out;
}

Rows base_rows(const Recipe& recipe, const HeadFeatures& head, const std::string& pass) {
  const LayerGeometry& layer = head.geometry();
  Rows rows;
  if (reads_pairs(recipe.base)) {
    const RowFold fold = row_fold(recipe, pass);
    for (std::size_t h = 0; h < (fold.logit_max ? 1 : layer.group); ++h)
      rows.push_back(widened(folded_row(head, fold, h)));
    return rows;
  }
  if (reads_outputs(recipe.base)) {
    for (std::size_t h = 0; h < layer.group; ++h) rows.push_back(obd_row(recipe, head, pass, h));
    return rows;
  }
  if (recipe.base == Base::knorm) return {key_norm_scores(head.keys())};
  if (recipe.base == Base::keydiff) return {key_difference_scores(head.keys())};
  KVSIM_CHECK(recipe.base == Base::position, "unknown base of a score");
  rows.emplace_back(layer.prompt);
  for (std::size_t t = 0; t < layer.prompt; ++t)
    rows[0][t] = static_cast<double>(t) / static_cast<double>(layer.prompt);
  return rows;
}

void normalise(Row& row) {
  double sum = 0;
  for (const double x : row) sum += x;
  if (sum > 0)
    for (double& x : row) x /= sum;
}

void apply(const Reducer& step, const Recipe& recipe, const HeadFeatures& head,
           std::span<const TokenIndex> guarded, Rows& rows) {
  switch (step.kind) {
    case Kind::softmax:
    case Kind::fold:
      return;  // done where the rows were made
    case Kind::avg:
    case Kind::max:
      for (Row& row : rows) row = pooled(row, step.width, step.kind == Kind::avg);
      return;
    case Kind::group:
      if (recipe.unit != Unit::query && step.group != Group::logit_max) rows = {join_group(rows, step.group)};
      return;
    case Kind::value:
      return weigh_by_value(step.value, head, guarded, rows);
    case Kind::minus:
      for (Row& row : rows)
        for (double& x : row) x = 0.0 - x;
      return;
    case Kind::sum1:
      for (Row& row : rows) normalise(row);
      return;
  }
}

/// One row per unit, over the tokens that are not protected as recent.
Rows unit_rows(const Recipe& recipe, const HeadFeatures& head, const std::string& pass,
               std::span<const TokenIndex> guarded, std::size_t units) {
  const std::size_t tokens = head.geometry().prompt;
  Rows rows = base_rows(recipe, head, pass);
  for (Row& row : rows) row.resize(tokens - std::min<std::size_t>(tokens, recipe.recent));
  for (const Reducer& step : recipe.reduce) apply(step, recipe, head, guarded, rows);
  weigh_by_value(recipe.value, head, guarded, rows);
  if (recipe.redundancy) mix_redundancy(*recipe.redundancy, head, rows);
  if (recipe.unit == Unit::query && rows.size() == 1) rows.resize(units, rows[0]);
  return rows;
}

std::vector<TokenIndex> guarded_tokens(const Recipe& recipe, std::size_t tokens) {
  std::vector<TokenIndex> out = protected_order(tokens, recipe.sinks, recipe.recent);
  for (const TokenIndex t : recipe.forced) {
    if (t < tokens && std::find(out.begin(), out.end(), t) == out.end()) out.push_back(t);
  }
  return out;
}

}  // namespace

bool Recipe::reads_rows() const {
  if (!reads_queries(base)) return false;
  return reads_outputs(base) || fold_reads_rows(row_fold(*this, {}));
}

Need Recipe::needs() const {
  Need needs = value_needs(value);
  if (redundancy) needs = needs | Need::keys;
  for (const Reducer& step : reduce) needs = needs | value_needs(step.value);
  if (base == Base::knorm || base == Base::keydiff) needs = needs | Need::keys;
  if (reads_outputs(base)) {
    const bool all = !query.empty() && query.front().kind == QueryPart::Kind::all;
    needs = needs | (all ? Need::all_queries : query_needs(query)) | Need::values;
    if (base != Base::obd_value) needs = needs | Need::keys;
  }
  return reads_pairs(base) ? needs | fold_needs(row_fold(*this, {})) : needs;
}

bool Recipe::by_budget() const {
  const QueryPart* pseudo = lookahead_part(query);
  return pseudo != nullptr && pseudo->pass.by_budget();
}

void Recipe::score(const HeadFeatures& head, std::string_view policy, std::span<UnitScores> out) const {
  const LayerGeometry& layer = head.geometry();
  check(policy, layer);
  std::vector<std::string> passes{""};
  if (const QueryPart* pseudo = lookahead_part(query)) {
    passes.clear();
    for (const LookaheadPass& pass : pseudo->pass.candidates(layer)) passes.push_back(pass.name);
  }
  const std::vector<TokenIndex> guarded = guarded_tokens(*this, layer.prompt);
  for (UnitScores& one : out)
    if (by_budget()) one.extra = {static_cast<float>(passes.size() - 1)};
  for (std::size_t p = 0; p < passes.size(); ++p) {
    const Rows rows = unit_rows(*this, head, passes[p], guarded, out.size());
    KVSIM_CHECK(rows.size() == out.size(), "{} has {} rows for {} units", policy, rows.size(), out.size());
    for (std::size_t u = 0; u < out.size(); ++u) {
      std::vector<float> score = to_scores(rows[u]);
      score.resize(layer.prompt, 0.0f);
      if (p == 0) {
        out[u].score = std::move(score);
        out[u].protected_tokens = guarded;
      } else {
        out[u].extra.insert(out[u].extra.end(), score.begin(), score.end());
      }
    }
  }
}

Recipe window_recipe(std::uint32_t window, std::size_t pool, std::uint32_t kernel, std::size_t group,
                     std::size_t unit) {
  Recipe recipe;
  recipe.query = {{.kind = QueryPart::Kind::window, .count = window}};
  recipe.base = Base::attention;
  recipe.reduce = {fold_step(Fold::mean), pool_step(pool == 0, kernel),
                   group_step(static_cast<Group>(group))};
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
  for (const UnitScores& unit : scores.units) rows.push_back(widened(unit.score));
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
  // Neighbour after neighbour, all tokens at a time: every token's sum still runs from its first neighbour to its last.
  const std::size_t half = width / 2, tokens = row.size();
  std::vector<double> out = average ? std::vector<double>(tokens, 0.0) : row;
  for (std::size_t place = 0; place < width; ++place) {  // the neighbour of token t is t + place - half
    const std::size_t first = place < half ? half - place : 0;
    const std::size_t ahead = place > half ? place - half : 0, behind = place < half ? half - place : 0;
    const std::size_t last = tokens - std::min(tokens, ahead);
    if (first >= last) continue;
    const double* const from = row.data() + first + ahead - behind;
    double* const to = out.data() + first;
    const std::size_t count = last - first;
    if (average) {
      for (std::size_t i = 0; i < count; ++i) to[i] += from[i];
    } else {
      for (std::size_t i = 0; i < count; ++i) to[i] = std::max(to[i], from[i]);
    }
  }
  if (average)
    for (double& x : out) x /= static_cast<double>(width);
  return out;
}

std::vector<float> decode_reference(const HeadFeatures& head) {
  Rows rows;
  for (std::size_t h = 0; h < head.geometry().group; ++h) rows.push_back(widened(head.decode_mean(h)));
  return to_scores(join_group(rows, Group::mean));
}

std::vector<float> to_scores(const std::vector<double>& row) {
  std::vector<float> out(row.size());
  std::transform(row.begin(), row.end(), out.begin(), [](double x) { return static_cast<float>(x); });
  return out;
}

}  // namespace kvsim
