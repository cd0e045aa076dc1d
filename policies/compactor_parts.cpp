// The two scores of Compactor (arXiv:2507.08143) and their standardisation: leverage of keys, attention
// inside chunks.
#include "policies/compactor_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/error.h"
#include "kernels/philox.h"
#include "kernels/replay.h"
#include "policies/mean_rotation.h"
#include "policies/products.h"
#include "policies/recipe.h"

namespace kvsim {
namespace {

/// [d, sketch] normal numbers of variance 1 / sketch (Box and Muller), row-major.
Matrix<float> sketch_matrix(const HeadFeatures& head, std::uint32_t sketch, std::uint32_t seed) {
  const LayerGeometry& layer = head.geometry();
  constexpr std::uint64_t kPurpose = 0x6c657665;  // apart from other draws for the head
  Philox numbers(seed, stream_of(layer.trace_digest, layer.layer, head.kv_head(), kPurpose));
  Matrix<float> out(layer.key_dim, sketch);
  for (std::size_t r = 0; r < out.rows(); ++r) {
    for (std::size_t c = 0; c < out.cols(); ++c) {
      const double radius = std::sqrt(-2 * std::log(1 - numbers.next_double()));
      const double angle = 2 * std::numbers::pi * numbers.next_double();
      out(r, c) = static_cast<float>(radius * std::cos(angle) / std::sqrt(static_cast<double>(sketch)));
    }
  }
  return out;
}

void centre(Matrix<float>& rows) {
  std::vector<double> mean(rows.cols(), 0.0);
  for (std::size_t t = 0; t < rows.rows(); ++t)
    for (std::size_t c = 0; c < rows.cols(); ++c) mean[c] += static_cast<double>(rows(t, c));
  for (double& m : mean) m /= static_cast<double>(rows.rows());
  for (std::size_t t = 0; t < rows.rows(); ++t)
    for (std::size_t c = 0; c < rows.cols(); ++c)
      rows(t, c) = static_cast<float>(static_cast<double>(rows(t, c)) - mean[c]);
}

std::vector<float> compute_leverage(const HeadFeatures& head, TokenRange range, std::uint32_t sketch,
                                    std::uint32_t seed) {
  Matrix<float> rows = keys_before_rotation(head, range.first, range.count);
  centre(rows);
  if (sketch > 0)
    rows = row_products(rows.view(), transposed(sketch_matrix(head, sketch, seed).view()).view());
  const Matrix<float> gram = gram_matrix(rows.view());
  constexpr double kRidges[] = {1e-2, 1e-1, 1, 10, 100};
  for (const double ridge : kRidges) {
    Matrix<double> ridged(gram.rows(), gram.cols());
    for (std::size_t r = 0; r < gram.rows(); ++r)
      for (std::size_t c = 0; c < gram.cols(); ++c)
        ridged(r, c) = static_cast<double>(gram(std::max(r, c), std::min(r, c))) + (r == c ? ridge : 0.0);
    const Matrix<double> factor = inverse_factor(ridged);
    if (!factor.empty()) return to_scores(squared_lengths(rows.view(), factor));
  }
  throw UserError("leverage: the keys of layer {}, KV head {} are too large for Cholesky's factors",
                  head.geometry().layer, head.kv_head());
}

/// Adds to sum[first ..] what the queries of one chunk give its keys.
void add_chunk(MatrixView<const float> keys, MatrixView<const float> queries, std::uint32_t chunk,
               std::span<double> sum) {
  const std::size_t tokens = keys.rows, padding = chunk - tokens;
  const Matrix<float> logits = row_products(keys, queries);  // [key, query]
  std::vector<float> largest(tokens, padding > 0 ? 0.0f : -std::numeric_limits<float>::infinity());
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t i = 0; i < tokens; ++i) largest[i] = std::max(largest[i], logits(t, i));
  // A padded key has logit -1e-9: its weight is exp(0) but for the last bit.
  std::vector<double> total(tokens, 0.0);
  for (std::size_t i = 0; i < tokens; ++i)
    total[i] = static_cast<double>(padding) * std::exp(-static_cast<double>(largest[i]));
  Matrix<float> weights(tokens, tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t i = 0; i < tokens; ++i) {
      weights(t, i) = std::exp(logits(t, i) - largest[i]);
      total[i] += static_cast<double>(weights(t, i));
    }
  }
  for (double& x : total) x = 1 / x;
  for (std::size_t t = 0; t < tokens; ++t) {
    double column = static_cast<double>(padding) / static_cast<double>(chunk);
    for (std::size_t i = 0; i < tokens; ++i) column += static_cast<double>(weights(t, i)) * total[i];
    sum[t] += column;
  }
}

std::vector<float> compute_attention(const HeadFeatures& head, TokenRange range, std::uint32_t chunk) {
  const std::size_t group = head.geometry().group;
  const MatrixView<const float> keys = head.keys().rows_from(range.first, range.count);
  std::vector<double> sum(range.count, 0.0);
  for (std::size_t h = 0; h < group; ++h) {
    const MatrixView<const float> queries = head.prompt_queries(h).rows_from(range.first, range.count);
    for (std::size_t begin = 0; begin < range.count; begin += chunk) {
      const std::size_t count = std::min<std::size_t>(chunk, range.count - begin);
      add_chunk(keys.rows_from(begin, count), queries.rows_from(begin, count), chunk,
                std::span(sum).subspan(begin, count));
    }
  }
  const std::vector<double> norms =
      row_norms(head.values().rows_from(range.first, range.count), ValueNorm::l2);
  for (std::size_t t = 0; t < sum.size(); ++t) sum[t] *= norms[t] / static_cast<double>(group);
  return to_scores(pooled(sum, 3, true));
}

}  // namespace

std::span<const float> key_leverage(const HeadFeatures& head, TokenRange range, std::uint32_t sketch,
                                    std::uint32_t seed) {
  return head.shared(fmt::format("key leverage {} {} {} {}", range.first, range.count, sketch, seed),
                     [&] { return compute_leverage(head, range, sketch, seed); });
}

std::span<const float> chunk_attention(const HeadFeatures& head, TokenRange range, std::uint32_t chunk) {
  return head.shared(fmt::format("chunk attention {} {} {}", range.first, range.count, chunk),
                     [&] { return compute_attention(head, range, chunk); });
}

void standardise(const std::vector<std::span<float>>& rows) {
  double sum = 0, squares = 0;
  std::size_t count = 0;
  for (const std::span<float> row : rows) {
    for (const float x : row) sum += static_cast<double>(x);
    count += row.size();
  }
  const double mean = count > 0 ? sum / static_cast<double>(count) : 0.0;
  for (const std::span<float> row : rows)
    for (const float x : row) squares += (static_cast<double>(x) - mean) * (static_cast<double>(x) - mean);
  constexpr double kSmallest = 1e-6;
  const double deviation =
      std::max(count > 1 ? std::sqrt(squares / static_cast<double>(count - 1)) : 0.0, kSmallest);
  for (const std::span<float> row : rows)
    for (float& x : row) x = static_cast<float>((static_cast<double>(x) - mean) / deviation);
}

}  // namespace kvsim
