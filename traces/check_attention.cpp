// Recorded attention against the queries and keys that it came from.
#include "traces/check_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "traces/header.h"

namespace kvsim {
namespace {

struct Worst {
  double deviation = -1.0;
  std::size_t row = 0, token = 0;
  double found = 0.0, expected = 0.0;

  void see(double value, double want, std::size_t at_row, std::size_t at_token) {
    const double difference = std::fabs(value - want);
    if (difference > deviation) *this = {difference, at_row, at_token, value, want};
  }
};

/// Largest deviations of one query head.
struct HeadDeviation {
  Worst sum, probability;
  bool exceeded = false;  // the first cell out of tolerance, in order of rows and tokens
  Worst first_exceeded;
};

LogitRule rule_of(const LayerInfo& layer) {
  return {layer.softmax_scale, layer.logit_softcap, layer.sliding_window};
}

/// Rows of one query head against attention recomputed with `keys`, tile by tile.
HeadDeviation compare(MatrixView<const float> recorded, MatrixView<const float> keys,
                      MatrixView<const float> queries, const LayerInfo& layer, double tolerance) {
  HeadDeviation result;
  for (std::size_t begin = 0; begin < queries.rows; begin += kRowTile) {
    const std::size_t count = std::min(kRowTile, queries.rows - begin);
    const std::span<const TokenIndex> position = std::span(layer.query_position).subspan(begin, count);
    const std::size_t seen = std::size_t{position.back()} + 1;
    Matrix<float> weights(seen, count, kRowPad);
    attention_weights(keys.rows_from(0, seen), queries.rows_from(begin, count), position, rule_of(layer), 0,
                      count, weights.view());
    for (std::size_t i = 0; i < count; ++i) {
      double sum = 0.0;
      for (std::size_t j = 0; j < recorded.cols; ++j) {
        const double found = static_cast<double>(recorded(begin + i, j));
        const double want = j < seen ? static_cast<double>(weights(j, i)) : 0.0;
        sum += found;
        result.probability.see(found, want, begin + i, j);
        if (!result.exceeded && std::fabs(found - want) > tolerance) {
          result.exceeded = true;
          result.first_exceeded.see(found, want, begin + i, j);
        }
      }
      result.sum.see(sum, 1.0, begin + i, 0);
    }
  }
  return result;
}

/// The KV head whose keys explain a query head's recorded attention, if another one than the mapped does.
std::string other_owner(const TraceReader& reader, std::size_t ordinal, std::uint32_t query_head,
                        MatrixView<const float> recorded, MatrixView<const float> queries, double tolerance) {
  const TraceInfo& info = reader.info();
  for (std::uint32_t kv = 0; kv < info.num_kv_heads; ++kv) {
    if (kv == query_head / info.group()) continue;
    const HeadBlock block = reader.read_head(ordinal, kv, {});
    const HeadDeviation other = compare(recorded, block.key.view(), queries, info.layers[ordinal], tolerance);
    if (!other.exceeded) return fmt::format("; the keys of KV head {} explain it: wrong head mapping", kv);
  }
  return {};
}

}  // namespace

double attention_tolerance(DType type) {
  return type == DType::float32 ? 1e-4 : type == DType::float16 ? 2e-2 : 1e-1;
}

double row_sum_tolerance(DType type) {
  return type == DType::float32 ? 1e-4 : type == DType::float16 ? 4e-3 : 1e-2;
}

void check_attention(const TraceReader& reader, std::size_t ordinal, CheckReport& report) {
  const TraceInfo& info = reader.info();
  const LayerInfo& layer = info.layers[ordinal];
  if (!layer.has_attention) return;
  const std::string where = fmt::format("/layers/{}/attention", layer_name(layer.index));
  const double tolerance = attention_tolerance(info.dtype), sum_tolerance = row_sum_tolerance(info.dtype);
  Worst sum, probability;
  for (std::uint32_t kv = 0; kv < info.num_kv_heads; ++kv) {
    BlockRequest request;
    request.all_queries = true;
    const HeadBlock block = reader.read_head(ordinal, kv, request);
    const std::size_t rows = layer.query_position.size();
    for (std::uint32_t g = 0; g < info.group(); ++g) {
      const std::uint32_t head = kv * info.group() + g;
      const Matrix<float> recorded = reader.read_attention(ordinal, head);
      const auto queries = block.query.view().rows_from(g * rows, rows);
      const HeadDeviation found = compare(recorded.view(), block.key.view(), queries, layer, tolerance);
      if (found.sum.deviation > sum_tolerance) {
        report.findings.push_back(
            fmt::format("{}: head {}, query {} (position {}): found a row sum of {:.6g}, expected 1", where,
                        head, found.sum.row, layer.query_position[found.sum.row], found.sum.found));
      }
      if (found.exceeded) {
        const Worst& first = found.first_exceeded;
        report.findings.push_back(fmt::format(
            "{}: head {}, query {} (position {}), token {}: found {:.6g}, recomputed {:.6g}{}", where, head,
            first.row, layer.query_position[first.row], first.token, first.found, first.expected,
            other_owner(reader, ordinal, head, recorded.view(), queries, tolerance)));
      }
      sum.see(found.sum.found, 1.0, found.sum.row, 0);
      probability.see(found.probability.found, found.probability.expected, found.probability.row,
                      found.probability.token);
    }
  }
  report.notes.push_back(
      fmt::format("{}: largest deviation from recomputed attention {:.3g} (allowed {:.3g}), of a row sum "
                  "{:.3g} (allowed {:.3g})",
                  where, probability.deviation, tolerance, sum.deviation, sum_tolerance));
}

}  // namespace kvsim
