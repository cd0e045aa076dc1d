// How alike queries that are known at the end of the prompt are to the true decode queries.
#include "sim/query_alignment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "sim/features.h"

namespace kvsim {
namespace {

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Products of the key channels over the keys [first, T), means taken out: |logits of q without their mean|^2
/// is q' G q up to the square of the scale.
Matrix<double> centred_gram(MatrixView<const float> keys, std::size_t first) {
  const std::size_t d = keys.cols;
  Vector mean(d, 0.0), row(d);
  for (std::size_t i = first; i < keys.rows; ++i)
    for (std::size_t c = 0; c < d; ++c) mean[c] += static_cast<double>(keys.row(i)[c]);
  for (double& m : mean) m /= static_cast<double>(keys.rows - first);
  Matrix<double> gram(d, d);
  for (std::size_t i = first; i < keys.rows; ++i) {
    for (std::size_t c = 0; c < d; ++c) row[c] = static_cast<double>(keys.row(i)[c]) - mean[c];
    for (std::size_t a = 0; a < d; ++a)
      for (std::size_t b = 0; b < d; ++b) gram(a, b) += row[a] * row[b];
  }
  return gram;
}

/// A query with what pairs need of it.
struct Query {
  std::int64_t position = 0;
  Vector rotated, plain, with_gram;
  double rotated_norm = 0, plain_norm = 0, logit_square = 0;
};

Query make_query(const LayerContext& layer, std::span<const float> vector, std::int64_t position,
                 const Matrix<double>& gram) {
  Query query;
  query.position = position;
  query.rotated.assign(vector.begin(), vector.end());
  query.plain = query.rotated;
  unrotate(query.plain, layer.inverse_frequency, layer.rope_layout, layer.attention_scaling,
           static_cast<double>(position));
  for (std::size_t a = 0; a < gram.rows(); ++a) {
    double sum = 0;
    for (std::size_t b = 0; b < gram.cols(); ++b) sum += gram(a, b) * query.rotated[b];
    query.with_gram.push_back(sum);
  }
  query.rotated_norm = std::sqrt(dot(query.rotated, query.rotated));
  query.plain_norm = std::sqrt(dot(query.plain, query.plain));
  query.logit_square = dot(query.rotated, query.with_gram);
  return query;
}

double ratio(double a, double b) { return b > 0 ? a / b : std::numeric_limits<double>::quiet_NaN(); }

std::vector<Query> queries_of(const LayerContext& layer, const HeadFeatures& head, const QueryRows& rows,
                              std::size_t query_head, const Matrix<double>& gram) {
  const MatrixView<const float> vectors = head.queries(rows, query_head);
  const auto prompt = static_cast<std::int64_t>(layer.geometry.prompt);
  const std::int64_t first =
      rows.source == QueryRows::Source::window ? prompt - static_cast<std::int64_t>(vectors.rows) : prompt;
  std::vector<Query> queries;
  for (std::size_t i = 0; i < vectors.rows; ++i)
    queries.push_back(make_query(layer, vectors.row_span(i), first + static_cast<std::int64_t>(i), gram));
  return queries;
}

}  // namespace

std::vector<QueryStandIn> query_stand_ins(const TraceInfo& trace, std::uint32_t window) {
  std::vector<QueryStandIn> list;
  if (window > 0)
    list.push_back(
        {fmt::format("window-{}", window), {.source = QueryRows::Source::window, .count = window}});
  for (const LookaheadInfo& pass : trace.lookaheads)
    list.push_back({pass.name, {.source = QueryRows::Source::lookahead, .pass = pass.name}});
  return list;
}

std::vector<QueryAlignment> align_queries(const LayerContext& layer, const HeadBlock& block,
                                          std::span<const QueryStandIn> stand_ins) {
  const LayerGeometry& g = layer.geometry;
  const BlockFeatures head(block, layer, {}, 0);
  const std::size_t seen =
      g.sliding_window == 0 ? g.prompt : std::min<std::size_t>(g.prompt, g.sliding_window - 1);
  const Matrix<double> gram = centred_gram(head.keys(), g.prompt - seen);
  std::vector<QueryAlignment> all;
  for (std::size_t h = 0; h < g.group; ++h) {
    const std::vector<Query> truth = queries_of(layer, head, {.source = QueryRows::Source::oracle}, h, gram);
    for (std::size_t s = 0; s < stand_ins.size(); ++s) {
      std::map<std::int64_t, QueryAlignment> by_distance;
      for (const Query& guess : queries_of(layer, head, stand_ins[s].rows, h, gram)) {
        for (const Query& real : truth) {
          QueryAlignment& sum = by_distance[real.position - guess.position];
          const double square =
              guess.logit_square - 2 * dot(guess.rotated, real.with_gram) + real.logit_square;
          sum.cosine += ratio(dot(guess.rotated, real.rotated), guess.rotated_norm * real.rotated_norm);
          sum.cosine_unrotated += ratio(dot(guess.plain, real.plain), guess.plain_norm * real.plain_norm);
          sum.logit_error += std::sqrt(ratio(std::max(square, 0.0), real.logit_square));
          ++sum.pairs;
        }
      }
      for (auto& [distance, sum] : by_distance) {
        const auto pairs = static_cast<double>(sum.pairs);
        all.push_back({static_cast<std::uint32_t>(s), g.layer,
                       static_cast<std::uint32_t>(block.kv_head * g.group + h),
                       static_cast<std::int32_t>(distance), sum.pairs, sum.cosine / pairs,
                       sum.cosine_unrotated / pairs, sum.logit_error / pairs});
      }
    }
  }
  return all;
}

QueryAlignment mean_alignment(std::span<const QueryAlignment> all,
                              const std::function<bool(const QueryAlignment&)>& chosen) {
  QueryAlignment mean;
  for (const QueryAlignment& one : all) {
    if (!chosen(one)) continue;
    const auto pairs = static_cast<double>(one.pairs);
    mean.pairs += one.pairs;
    mean.cosine += pairs * one.cosine;
    mean.cosine_unrotated += pairs * one.cosine_unrotated;
    mean.logit_error += pairs * one.logit_error;
  }
  const double pairs =
      mean.pairs > 0 ? static_cast<double>(mean.pairs) : std::numeric_limits<double>::quiet_NaN();
  mean.cosine /= pairs;
  mean.cosine_unrotated /= pairs;
  mean.logit_error /= pairs;
  return mean;
}

GuessedTokens guessed_tokens(const TraceInfo& trace, const LookaheadInfo& pass) {
  GuessedTokens guessed;
  bool leading = true;
  for (std::size_t i = 0; i < pass.token_id.size() && trace.prompt_len + i < trace.token_id.size(); ++i) {
    const bool equal = pass.token_id[i] == trace.token_id[trace.prompt_len + i];
    ++guessed.compared;
    guessed.equal += equal ? 1 : 0;
    leading = leading && equal;
    guessed.leading += leading ? 1 : 0;
  }
  return guessed;
}

}  // namespace kvsim
