// From exact attention to block requests.
#include "sim/pages/attention_streams.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "sim/pages/page_server.h"

namespace kvsim {
namespace {

/// Attention of all rows: [tokens, rows], rows query head major; each head's queries stand at first, first +
/// 1, ...
Matrix<float> exact_weights(MatrixView<const float> keys, MatrixView<const float> query,
                            const LayerInfo& layer, std::uint64_t first, std::size_t queries) {
  std::vector<TokenIndex> position(query.rows);
  for (std::size_t r = 0; r < query.rows; ++r) position[r] = static_cast<TokenIndex>(first + r % queries);
  Matrix<float> weights(keys.rows, query.rows, kRowPad);
  attention_weights(keys, query, position, {layer.softmax_scale, layer.logit_softcap, layer.sliding_window},
                    0, query.rows, weights.view());
  return weights;
}

/// Mean over the group's query heads of the attention mass of every block, for one query.
struct BlockMasses {
  std::vector<double> per_head;  // [group][blocks]
  std::vector<double> mean;
};

BlockMasses block_masses(const Matrix<float>& weights, std::size_t group, std::size_t queries,
                         std::size_t query, std::uint32_t block, std::size_t blocks) {
  BlockMasses out{std::vector<double>(group * blocks, 0.0), std::vector<double>(blocks, 0.0)};
  for (std::size_t h = 0; h < group; ++h) {
    for (std::size_t t = 0; t < weights.rows(); ++t) {
      out.per_head[h * blocks + t / block] += static_cast<double>(weights(t, h * queries + query));
    }
    for (std::size_t b = 0; b < blocks; ++b)
      out.mean[b] += out.per_head[h * blocks + b] / static_cast<double>(group);
  }
  return out;
}

/// Adds to `wanted` the blocks that one query head needs.
void needed_blocks(std::span<const double> mass, const AttentionStreamOptions& options,
                   std::vector<bool>& wanted) {
  std::vector<std::uint32_t> order(mass.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return mass[a] > mass[b] || (mass[a] == mass[b] && a < b);
  });
  const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
  double held = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (options.top_k > 0 ? i >= options.top_k : held >= options.mass * total) return;
    if (mass[order[i]] <= 0) return;
    wanted[order[i]] = true;
    held += mass[order[i]];
  }
}

}  // namespace

AttentionStream attention_stream(const TraceInfo& info, const HeadBlock& head, std::size_t prompt_queries,
                                 MatrixView<const float> lookahead, bool with_outputs,
                                 const AttentionStreamOptions& options) {
  const LayerInfo& layer = info.layers[head.layer_ordinal];
  AttentionStream out;
  out.options = options;
  out.prompt = info.prompt_len;
  out.steps = info.decode_len;
  out.group = info.group();
  const std::size_t queries = prompt_queries + info.decode_len;
  KVSIM_CHECK(head.query.rows() == out.group * queries, "{} query rows, expected {} x {}", head.query.rows(),
              out.group, queries);
  Matrix<float> weights =
      exact_weights(head.key.view(), head.query.view(), layer, info.prompt_len - prompt_queries, queries);
  const std::size_t blocks = (head.key.rows() + options.block - 1) / options.block;
  out.pinned = options.sink_blocks + options.recent_blocks;

  PageStream& stream = out.stream;
  stream.grouping = Grouping::sets;
  stream.key = stream_of(info.digest_key, layer.index, head.kv_head);
  stream.name = fmt::format("layer {} head {}", layer.index, head.kv_head);
  stream.bytes_per_page = static_cast<double>(options.block) * (info.head_dim + info.value_dim) *
                          static_cast<double>(size_of(info.dtype));
  out.page_of.assign(blocks, kNoPage);
  const auto page_for = [&](std::uint32_t b) {
    if (out.page_of[b] == kNoPage) {
      out.page_of[b] = static_cast<Page>(out.block_of.size());
      out.block_of.push_back(b);
    }
    return out.page_of[b];
  };
  std::vector<std::vector<double>> masses;
  for (std::size_t q = 0; q < queries; ++q) {
    BlockMasses mass = block_masses(weights, out.group, queries, q, options.block, blocks);
    if (q >= prompt_queries) {
      const std::uint64_t newest = (info.prompt_len + q - prompt_queries) / options.block;
      std::vector<bool> wanted(blocks, false);
      for (std::size_t h = 0; h < out.group; ++h) {
        needed_blocks(std::span(mass.per_head).subspan(h * blocks, blocks), options, wanted);
      }
      std::vector<std::uint32_t> set;
      for (std::uint32_t b = options.sink_blocks; b + options.recent_blocks <= newest; ++b) {
        if (wanted[b]) set.push_back(b);
      }
      std::sort(set.begin(), set.end(), [&](std::uint32_t a, std::uint32_t b) {
        return mass.mean[a] > mass.mean[b] || (mass.mean[a] == mass.mean[b] && a < b);
      });
      stream.starts.push_back(static_cast<std::uint32_t>(stream.pages.size()));
      for (const std::uint32_t b : set) stream.pages.push_back(page_for(b));
    }
    masses.push_back(std::move(mass.mean));
  }
  stream.unique = static_cast<Page>(out.block_of.size());
  for (std::uint32_t b = options.sink_blocks; b < blocks; ++b) page_for(b);
  stream.mass = Matrix<float>(queries, std::max<std::size_t>(1, out.block_of.size()));
  for (std::size_t q = 0; q < queries; ++q) {
    for (std::size_t p = 0; p < out.block_of.size(); ++p)
      stream.mass(q, p) = static_cast<float>(masses[q][out.block_of[p]]);
  }
  stream.first_step = prompt_queries;
  if (lookahead.rows > 0) {
    const std::size_t pseudo = lookahead.rows / out.group;
    const Matrix<float> ahead = exact_weights(head.key.view().rows_from(0, info.prompt_len), lookahead, layer,
                                              info.prompt_len, pseudo);
    stream.lookahead = Matrix<float>(pseudo, stream.mass.cols());
    for (std::size_t q = 0; q < pseudo; ++q) {
      const BlockMasses mass = block_masses(ahead, out.group, pseudo, q, options.block, blocks);
      for (std::size_t p = 0; p < out.block_of.size(); ++p) {
        stream.lookahead(q, p) = static_cast<float>(mass.mean[out.block_of[p]]);
      }
    }
  }
  stream.find_next();
  if (with_outputs) {
    out.weights = Matrix<float>(head.key.rows(), out.group * out.steps);
    for (std::size_t t = 0; t < head.key.rows(); ++t) {
      for (std::size_t h = 0; h < out.group; ++h) {
        for (std::size_t s = 0; s < out.steps; ++s)
          out.weights(t, h * out.steps + s) = weights(t, h * queries + prompt_queries + s);
      }
    }
    out.value = Matrix<float>(head.value.rows(), head.value.cols());
    for (std::size_t t = 0; t < head.value.rows(); ++t)
      std::copy_n(head.value.row(t), head.value.cols(), out.value.row(t));
  }
  return out;
}

namespace {

/// Relative error of one query's output over the held tokens.
double relative_error(const AttentionStream& s, std::size_t row, const std::vector<bool>& held,
                      std::uint64_t tokens) {
  const std::size_t dv = s.value.cols();
  std::vector<double> exact(dv, 0.0), kept(dv, 0.0);
  double kept_mass = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    const double w = static_cast<double>(s.weights(t, row));
    if (w == 0) continue;
    const bool in = held[t / s.options.block];
    kept_mass += in ? w : 0;
    for (std::size_t c = 0; c < dv; ++c) {
      const double x = w * static_cast<double>(s.value(t, c));
      exact[c] += x;
      if (in) kept[c] += x;
    }
  }
  double difference = 0, norm = 0;
  for (std::size_t c = 0; c < dv; ++c) {
    const double o = kept_mass > 0 ? kept[c] / kept_mass : 0.0;
    difference += (o - exact[c]) * (o - exact[c]);
    norm += exact[c] * exact[c];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace

double output_error_without_recall(const AttentionStream& s, const PageStream& stream,
                                   const PagePolicy& policy, std::uint64_t slots, std::uint64_t seed) {
  ServeOptions options;
  options.seed = seed;
  CacheSetup setup = setup_for(stream, slots, options);
  const AttentionScores scores{stream.mass.view(), stream.lookahead.view(), stream.first_step};
  setup.attention = &scores;
  const std::unique_ptr<PageCache> cache = policy.start(setup);
  const auto pages = static_cast<Page>(s.block_of.size());
  PageTally ignored;
  // The next use of a page at the present step, from the recorded steps: for policies that know the future.
  std::vector<std::vector<std::uint64_t>> uses(pages);
  for (std::size_t g = 0; g < stream.groups(); ++g) {
    const auto [begin, end] = stream.group(g);
    for (std::size_t i = begin; i < end; ++i) uses[stream.pages[i]].push_back(g);
  }
  const auto next_use = [&](Page p, std::uint64_t after) {
    const auto at = std::upper_bound(uses[p].begin(), uses[p].end(), after);
    return at == uses[p].end() ? kNeverAgain : *at;
  };
  const auto request = [&](std::vector<Page> set, std::uint64_t step, bool first) {
    std::sort(set.begin(), set.end());
    std::vector<std::uint64_t> next;
    for (const Page p : set) next.push_back(first && !uses[p].empty() ? uses[p].front() : next_use(p, step));
    RequestBlock block;
    block.first_time = step;
    block.one_time = true;
    block.pages = set;
    block.next_use = next;
    block.page_limit = pages;
    cache->serve_step(block, ignored);
  };
  const std::uint32_t sinks = s.options.sink_blocks;
  std::uint64_t loaded = sinks;  // blocks [sinks, loaded) have left the pinned window
  double sum = 0;
  for (std::uint64_t step = 0; step < s.steps; ++step) {
    const std::uint64_t newest = (s.prompt + step) / s.options.block;
    for (; loaded + s.options.recent_blocks <= newest; ++loaded) request({s.page_of[loaded]}, step, true);
    std::vector<Page> set;
    const auto [begin, end] = stream.group(step);
    for (std::size_t i = begin; i < end; ++i) {
      if (cache->contains(stream.pages[i])) set.push_back(stream.pages[i]);
    }
    request(set, step, false);
    std::vector<bool> held(s.page_of.size(), false);
    for (std::uint64_t b = 0; b <= newest; ++b) {
      held[b] = b < sinks || b + s.options.recent_blocks > newest || cache->contains(s.page_of[b]);
    }
    for (std::size_t h = 0; h < s.group; ++h)
      sum += relative_error(s, h * s.steps + step, held, s.prompt + step + 1);
  }
  return sum / static_cast<double>(s.steps * s.group);
}

}  // namespace kvsim
