// Column sums of the prompt attention and moments of the prompt queries.
#include "traces/synth_stats.h"

#include <algorithm>
#include <cmath>

#include "kernels/replay.h"
#include "traces/header.h"
#include "traces/tensor.h"

namespace kvsim::synth {
namespace {

/// kvpress' expected attention leaves these first tokens out of the query statistics.
constexpr std::uint64_t kStatsSinks = 4;

/// Values as a reader of the file will see them.
void round_trip(DType type, MatrixView<float> rows) {
  std::vector<std::byte> raw(rows.cols * size_of(type));
  for (std::size_t r = 0; r < rows.rows; ++r) {
    narrow(type, rows.row_span(r), raw);
    widen(type, raw, rows.row_span(r));
  }
}

struct Sums {
  std::vector<double> sum, sum_sq;
};

/// Tiles of queries, one after the other: the weights of a tile are summed into columns.
Sums attention_sums(MatrixView<const float> keys, MatrixView<const float> queries, const LogitRule& rule) {
  const std::size_t prompt = keys.rows;
  Sums total{std::vector<double>(prompt), std::vector<double>(prompt)};
  std::vector<TokenIndex> position(prompt);
  for (std::size_t i = 0; i < prompt; ++i) position[i] = static_cast<TokenIndex>(i);
  std::vector<double> part(prompt);
  for (std::size_t begin = 0; begin < prompt; begin += kRowTile) {
    const std::size_t count = std::min(kRowTile, prompt - begin), seen = begin + count;
    Matrix<float> weights(seen, count, kRowPad);
    attention_weights(keys.rows_from(0, seen), queries.rows_from(begin, count),
                      std::span(position).subspan(begin, count), rule, 0, count, weights.view());
    column_sums(weights.view(), 0, count, std::span(part).first(seen));
    for (std::size_t j = 0; j < seen; ++j) {
      total.sum[j] += part[j];
      double squares = 0.0;
      for (std::size_t i = 0; i < count; ++i)
        squares += static_cast<double>(weights(j, i)) * static_cast<double>(weights(j, i));
      total.sum_sq[j] += squares;
    }
  }
  return total;
}

struct Moments {
  std::vector<float> mean, covariance;
};

Moments query_moments(MatrixView<const float> queries, std::size_t sinks) {
  const std::size_t d = queries.cols, rows = queries.rows - sinks;
  std::vector<double> sum(d), outer(d * d);
  for (std::size_t r = sinks; r < queries.rows; ++r) {
    const float* q = queries.row(r);
    for (std::size_t i = 0; i < d; ++i) {
      sum[i] += static_cast<double>(q[i]);
      for (std::size_t j = 0; j < d; ++j)
        outer[i * d + j] += static_cast<double>(q[i]) * static_cast<double>(q[j]);
    }
  }
  Moments moments{std::vector<float>(d), std::vector<float>(d * d)};
  const auto n = static_cast<double>(rows);
  for (std::size_t i = 0; i < d; ++i) {
    moments.mean[i] = static_cast<float>(sum[i] / n);
    for (std::size_t j = 0; j < d; ++j) {
      moments.covariance[i * d + j] = static_cast<float>(outer[i * d + j] / n - sum[i] / n * (sum[j] / n));
    }
  }
  return moments;
}

/// Results of all query heads, packed as they are stored.
struct Tables {
  std::vector<float> sum, sum_sq, sum_over_count, mean, covariance;
};

void put(const std::vector<float>& part, std::size_t index, std::vector<float>& into) {
  std::copy(part.begin(), part.end(), into.begin() + static_cast<std::ptrdiff_t>(index * part.size()));
}

void compute_head(const World& world, const Head& head, std::uint32_t in_group, std::size_t index,
                  const LogitRule& rule, Tables& tables) {
  const SynthOptions& o = world.options;
  const std::size_t prompt = o.prompt;
  Matrix<float> keys(prompt, o.head_dim), queries(prompt, o.head_dim);
  head.queries(in_group, 0, queries.view(), Rotary::off);
  const std::size_t sinks = prompt > kStatsSinks ? kStatsSinks : 0;
  const Moments moments = query_moments(queries.view(), sinks);
  put(moments.mean, index, tables.mean);
  put(moments.covariance, index, tables.covariance);
  head.keys(0, keys.view());
  head.queries(in_group, 0, queries.view());
  round_trip(o.dtype, keys.view());
  round_trip(o.dtype, queries.view());
  const Sums sums = attention_sums(keys.view(), queries.view(), rule);
  for (std::size_t j = 0; j < prompt; ++j) {
    const std::size_t seen_by =
        rule.window == 0 ? prompt - j : std::min<std::size_t>(prompt - j, rule.window);
    tables.sum[index * prompt + j] = static_cast<float>(sums.sum[j]);
    tables.sum_sq[index * prompt + j] = static_cast<float>(sums.sum_sq[j]);
    tables.sum_over_count[index * prompt + j] =
        static_cast<float>(sums.sum[j] / static_cast<double>(seen_by));
  }
}

}  // namespace

std::uint64_t stats_work(std::uint64_t prompt) { return prompt * prompt / 16; }

void write_stats(const World& world, const std::vector<Head>& heads, std::uint32_t layer,
                 std::uint32_t window, int threads, TraceWriter& writer,
                 const std::function<void(std::uint64_t)>& progress) {
  const SynthOptions& o = world.options;
  const std::size_t count = o.query_heads, group = o.query_heads / o.kv_heads, d = o.head_dim,
                    prompt = o.prompt;
  const LogitRule rule{1.0 / std::sqrt(static_cast<double>(d)), 0.0, window};
  Tables tables{std::vector<float>(count * prompt), std::vector<float>(count * prompt),
                std::vector<float>(count * prompt), std::vector<float>(count * d),
                std::vector<float>(count * d * d)};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (std::size_t h = 0; h < count; ++h) {
    compute_head(world, heads[h / group], static_cast<std::uint32_t>(h % group), h, rule, tables);
#pragma omp critical(kvsim_synth_progress)
    if (progress) progress(stats_work(prompt));
  }
  const std::string at = "layers/" + layer_name(layer);
  const auto write = [&](const char* name, const h5::Shape& shape, const std::vector<float>& values) {
    writer.root().write_array(at + name, shape, std::span<const float>(values));
    if (progress) progress(values.size() * sizeof(float));
  };
  write("/attention_stats/sum", {count, prompt}, tables.sum);
  write("/attention_stats/sum_sq", {count, prompt}, tables.sum_sq);
  write("/attention_stats/sum_over_count", {count, prompt}, tables.sum_over_count);
  write("/query_stats/mean", {count, d}, tables.mean);
  write("/query_stats/covariance", {count, d, d}, tables.covariance);
  h5::Group stats = writer.root().group(at + "/query_stats");
  stats.set_attribute("sinks", std::uint64_t{prompt > kStatsSinks ? kStatsSinks : 0});
}

}  // namespace kvsim::synth
