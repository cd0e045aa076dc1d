// What queries of recorded prompts look like on average: filters and statistics for policies that take them
// from a file.
#include "sim/query_library.h"

#include <algorithm>

#include "kernels/error.h"
#include "policies/query_filter.h"
#include "sim/features.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

/// Sums over queries of one head, before the rotary embedding.
struct Moments {
  explicit Moments(std::size_t d) : sum(d, 0.0), squares(d, d) {}
  void add(std::span<const double> query) {
    ++count;
    for (std::size_t a = 0; a < query.size(); ++a) {
      sum[a] += query[a];
      for (std::size_t b = 0; b < query.size(); ++b) squares(a, b) += query[a] * query[b];
    }
  }
  void finish(std::vector<float>& mean, std::vector<float>& covariance) const {
    const auto n = static_cast<double>(count);
    for (const double x : sum) mean.push_back(static_cast<float>(x / n));
    for (std::size_t a = 0; a < sum.size(); ++a)
      for (std::size_t b = 0; b < sum.size(); ++b)
        covariance.push_back(
            static_cast<float>((squares(a, b) - sum[a] * sum[b] / n) / std::max(n - 1, 1.0)));
  }
  std::uint64_t count = 0;
  std::vector<double> sum;
  Matrix<double> squares;
};

void check_like_first(const TraceInfo& first, const TraceInfo& info, std::uint32_t sinks) {
  if (info.prompt_len <= sinks)
    throw UserError("{}: its prompt of {} tokens is not longer than the {} left out", info.path,
                    info.prompt_len, sinks);
  const bool alike = info.num_query_heads == first.num_query_heads &&
                     info.num_kv_heads == first.num_kv_heads && info.head_dim == first.head_dim &&
                     info.layers.size() == first.layers.size() &&
                     std::equal(info.layers.begin(), info.layers.end(), first.layers.begin(),
                                [](const LayerInfo& a, const LayerInfo& b) { return a.index == b.index; });
  if (!alike) throw UserError("{} has other heads or recorded layers than {}", info.path, first.path);
  for (const LayerInfo& layer : info.layers)
    if (layer.prompt_queries(info.prompt_len) < info.prompt_len)
      throw UserError("{}: layer {} lacks prompt queries: record with --queries all", info.path, layer.index);
}

/// Adds one KV head of a trace.
void add_head(const TraceReader& reader, std::size_t ordinal, std::uint32_t kv_head, std::uint32_t sinks,
              QueryFilter& filter, std::vector<Moments>& moments) {
  const TraceInfo& info = reader.info();
  const LayerInfo& layer = info.layers[ordinal];
  BlockRequest request;
  request.all_queries = true;
  const HeadBlock block = reader.read_head(ordinal, kv_head, request);
  const std::size_t tokens = info.prompt_len + info.decode_len;
  std::vector<double> query(info.head_dim);
  for (std::size_t h = 0; h < info.group(); ++h) {
    const MatrixView<const float> queries = block.query.view().rows_from(h * tokens, info.prompt_len);
    filter.add(h, queries);
    for (std::size_t t = sinks; t < queries.rows; ++t) {
      std::copy_n(queries.row(t), query.size(), query.begin());
      unrotate(query, layer.inverse_frequency, info.rope_layout, layer.attention_scaling,
               static_cast<double>(t));
      moments[h].add(query);
    }
  }
}

}  // namespace

QueryLibrary gather_queries(const std::vector<std::string>& traces, std::uint32_t sinks,
                            const std::function<void()>& progress) {
  std::vector<TraceReader> readers;
  for (const std::string& path : traces) {
    readers.push_back(TraceReader::open(path));
    check_like_first(readers.front().info(), readers.back().info(), sinks);
  }
  const TraceInfo& first = readers.front().info();
  QueryLibrary out{
      first.layers.size(), first.num_query_heads, first.num_kv_heads, first.head_dim, sinks, {}, {}, {}};
  for (std::size_t ordinal = 0; ordinal < first.layers.size(); ++ordinal) {
    for (std::uint32_t kv = 0; kv < first.num_kv_heads; ++kv) {
      QueryFilter filter(first.group(), first.head_dim);
      std::vector<Moments> moments;
      for (std::size_t h = 0; h < first.group(); ++h) moments.emplace_back(first.head_dim);
      for (const TraceReader& reader : readers) add_head(reader, ordinal, kv, sinks, filter, moments);
      const std::vector<float> direction = filter.result();
      out.filters.insert(out.filters.end(), direction.begin(), direction.end());
      for (const Moments& of : moments) of.finish(out.mean, out.covariance);
      progress();
    }
  }
  return out;
}

}  // namespace kvsim
