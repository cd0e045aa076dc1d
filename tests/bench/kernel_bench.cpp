// How fast the replay kernels run at size S, as shares of the float32 multiply-add rate measured in the same
// run.
//
// One KV head of SmolLM2-135M: 256 steps x 3 query heads = 768 rows, 4096 prompt tokens, head size 64, peaky
// attention. Single-threaded, processor time. Usage: kernel_bench [PATH] [--steps N] [--group N] [--prompt N]
// [--dim N] [--repeats N] [--json FILE]; PATH as AVX2.
#include <fmt/format.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/instruction_path.h"
#include "kernels/replay.h"
#include "tests/kernels/peaky_head.h"

namespace {

using kvsim::Matrix;
using kvsim::TokenIndex;

/// This thread's processor time: on a busy machine the wall clock would show the neighbours.
double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double seconds_of(const std::function<void()>& work) {
  const double start = thread_seconds();
  work();
  return thread_seconds() - start;
}

struct Timing {
  double median = 0.0;
  double fastest = 0.0;
  double slowest = 0.0;
};

Timing time_of(int repeats, const std::function<void()>& work) {
  work();  // warm caches
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) times.push_back(seconds_of(work));
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

/// Sixteen independent chains of multiply-adds and nothing else: the rate that no kernel can pass.
constexpr int kChains = 16;

__attribute__((target("avx512f"), noinline)) float chains_avx512(std::size_t rounds) {
  __m512 sum[kChains];
  const __m512 factor = _mm512_set1_ps(0.5f);
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::size_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_fmadd_ps(sum[i], factor, factor);
  }
  float total = 0.0f;
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) total += _mm512_cvtss_f32(sum[i]);
  return total;
}

__attribute__((target("avx2,fma"), noinline)) float chains_avx2(std::size_t rounds) {
  __m256 sum[kChains - 4];
  const __m256 factor = _mm256_set1_ps(0.5f);
#pragma GCC unroll 16
  for (int i = 0; i < kChains - 4; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (std::size_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains - 4; ++i) sum[i] = _mm256_fmadd_ps(sum[i], factor, factor);
  }
  float total = 0.0f;
#pragma GCC unroll 16
  for (int i = 0; i < kChains - 4; ++i) total += _mm256_cvtss_f32(sum[i]);
  return total;
}

double peak_flops(std::string_view path) {
  const bool wide = path.substr(0, 4) == "AVX3";
  constexpr std::size_t kRounds = 2'000'000;
  volatile float keep = 0.0f;
  const Timing timing = time_of(7, [&] { keep = wide ? chains_avx512(kRounds) : chains_avx2(kRounds); });
  (void)keep;
  const double lanes = wide ? 16.0 * kChains : 8.0 * (kChains - 4);
  return 2.0 * lanes * static_cast<double>(kRounds) / timing.fastest;
}

struct Options {
  std::string path, json;
  std::size_t steps = 256, group = 3, prompt = 4096, dim = 64;
  int repeats = 7;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto number = [&] {
      return i + 1 < argc ? static_cast<std::size_t>(std::strtoull(argv[++i], nullptr, 10)) : 0;
    };
    if (word == "--steps")
      options.steps = number();
    else if (word == "--group")
      options.group = number();
    else if (word == "--prompt")
      options.prompt = number();
    else if (word == "--dim")
      options.dim = number();
    else if (word == "--repeats")
      options.repeats = static_cast<int>(number());
    else if (word == "--json" && i + 1 < argc)
      options.json = argv[++i];
    else
      options.path = word;
  }
  return options;
}

std::vector<std::uint32_t> budgets(std::size_t count, std::size_t prompt) {
  std::vector<std::uint32_t> counts(count);
  for (std::size_t i = 0; i < count; ++i) {
    counts[i] = static_cast<std::uint32_t>(prompt * (i + 1) / count);
  }
  return counts;
}

/// Rows of one call: four register tiles.
constexpr std::size_t kPart = 4 * kvsim::kRowTile;

/// The layout that replay uses: matrices of their own for every kPart rows.
struct TiledHead {
  std::vector<Matrix<float>> weights;
  std::vector<Matrix<std::uint16_t>> ranks;
};

class Report {
 public:
  Report(double peak, int repeats) : peak_(peak), repeats_(repeats) {}
  void flops(const std::string& name, const Timing& t, double flops, double of_peak = 1.0) {
    const auto share = [&](double seconds) { return flops / seconds / (peak_ * of_peak); };
    shares_.push_back(fmt::format(
        R"({{"line": "peak, {}", "value": {:.4f}, "low": {:.4f}, "high": {:.4f}, "repeats": {}, "note": "{:.1f} of {:.1f} GFLOP/s on one core"}})",
        name.substr(0, name.find(" (")), share(t.median), share(t.slowest), share(t.fastest), repeats_,
        flops / t.median * 1e-9, peak_ * of_peak * 1e-9));
    fmt::print("{:<44} {:>9.3f} ms  {:>7.1f} GFLOP/s  {:>5.1f}% of peak   (spread {:.3f}..{:.3f})\n", name,
               t.median * 1e3, flops / t.median * 1e-9, 100.0 * flops / t.median / (peak_ * of_peak),
               t.fastest * 1e3, t.slowest * 1e3);
  }
  void items(const std::string& name, const Timing& t, double items, double bytes) const {
    fmt::print("{:<44} {:>9.3f} ms  {:>7.2f} ns/element {:>6.1f} GB/s   (spread {:.3f}..{:.3f})\n", name,
               t.median * 1e3, t.median * 1e9 / items, bytes / t.median * 1e-9, t.fastest * 1e3,
               t.slowest * 1e3);
  }
  /// Shares of the peak as tests/bench/run reads them.
  void write(const std::string& path) const {
    if (path.empty()) return;
    std::ofstream(path) << fmt::format("[{}]\n", fmt::join(shares_, ",\n "));
  }

 private:
  double peak_;
  int repeats_;
  std::vector<std::string> shares_;
};

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  kvsim::use_instruction_path(options.path);
  kvsim::PeakyShape shape;
  shape.steps = options.steps;
  shape.group = options.group;
  shape.prompt = options.prompt;
  shape.head_dim = shape.value_dim = options.dim;
  shape.half = true;
  const kvsim::PeakyHead head(shape);
  const std::size_t rows = head.rows(), tokens = head.tokens(), prompt = shape.prompt, dim = options.dim;
  const double peak = peak_flops(kvsim::instruction_path());
  fmt::print(
      "path {}, one thread, {} rows x {} prompt tokens, head size {}; float32 multiply-add peak {:.1f} "
      "GFLOP/s\n",
      kvsim::instruction_path(), rows, prompt, dim, peak * 1e-9);
  Report report(peak, options.repeats);
  const int repeats = options.repeats;
  const double pair = static_cast<double>(rows) * static_cast<double>(prompt);
  const double all_pairs = static_cast<double>(rows) * static_cast<double>(tokens);

  Matrix<float> weights(tokens, rows, kvsim::kRowPad);
  report.flops("attention_weights (double sums; of half peak)",
               time_of(std::min(repeats, 3),
                       [&] {
                         attention_weights(head.keys.view(), head.queries.view(), head.position, head.rule, 0,
                                           rows, weights.view());
                       }),
               2.0 * all_pairs * static_cast<double>(dim), 0.5);
  Matrix<float> exact(dim, rows, kvsim::kRowPad), tail(dim, rows, kvsim::kRowPad);
  std::vector<float> sum(exact.stride()), tail_weight(exact.stride());
  report.flops("attention_outputs",
               time_of(repeats,
                       [&] {
                         attention_outputs(weights.view(), head.values.view(), 0, tokens, 0, rows,
                                           exact.view(), sum);
                       }),
               2.0 * all_pairs * static_cast<double>(dim));
  attention_outputs(weights.view(), head.values.view(), prompt, tokens, 0, rows, tail.view(), tail_weight);
  std::vector<double> columns(tokens);
  report.items("column_sums", time_of(repeats, [&] { column_sums(weights.view(), 0, rows, columns); }),
               all_pairs, all_pairs * 4.0);

  // Tiles of their own from here on.
  TiledHead tiled;
  for (std::size_t row = 0; row < rows; row += kPart) {
    const std::size_t count = std::min(kPart, rows - row);
    Matrix<float> tile(tokens, count, kvsim::kRowPad);
    for (std::size_t j = 0; j < tokens; ++j) std::copy_n(weights.row(j) + row, count, tile.row(j));
    tiled.weights.push_back(std::move(tile));
    tiled.ranks.emplace_back(prompt, count, kvsim::kRowPad);
  }
  const auto tile_rows = [&](std::size_t t) { return std::min(kPart, rows - t * kPart); };
  std::vector<std::uint32_t> needed(6 * exact.stride());
  report.items(
      "rank_rows",
      time_of(std::min(repeats, 3),
              [&] {
                for (std::size_t t = 0; t < tiled.weights.size(); ++t) {
                  kvsim::RankOutput<std::uint16_t> out;
                  out.ranks = tiled.ranks[t].view();
                  for (std::size_t f = 0; f < 3; ++f) {
                    out.needed_total[f] = {needed.data() + 2 * f * exact.stride(), exact.stride()};
                    out.needed_prompt[f] = {needed.data() + (2 * f + 1) * exact.stride(), exact.stride()};
                  }
                  rank_rows<std::uint16_t>(tiled.weights[t].view(), prompt,
                                           std::span(head.position).subspan(t * kPart), 0, 0, tile_rows(t),
                                           out);
                }
              }),
      all_pairs, all_pairs * 6.0);

  const std::vector<TokenIndex> order = kvsim::shuffled(prompt, 1);
  const auto view_of = [&](Matrix<float>& matrix, std::size_t t) {
    return kvsim::MatrixView<const float>{matrix.data() + t * kPart, matrix.rows(), tile_rows(t),
                                          matrix.stride()};
  };
  double one = 0.0;
  for (const std::size_t snapshots : {1u, 16u, 200u}) {
    const std::vector<std::uint32_t> counts = budgets(snapshots, prompt);
    Matrix<float> error(snapshots, rows), recall(snapshots, rows);
    const Timing timing = time_of(repeats, [&] {
      for (std::size_t t = 0; t < tiled.weights.size(); ++t) {
        const kvsim::CurveInput in{tiled.weights[t].view().rows_from(0, prompt),
                                   head.values.view().rows_from(0, prompt),
                                   order,
                                   counts,
                                   view_of(tail, t),
                                   std::span(tail_weight).subspan(t * kPart),
                                   view_of(exact, t)};
        const auto part = [&](Matrix<float>& m) {
          return kvsim::MatrixView<float>{m.data() + t * kPart, m.rows(), tile_rows(t), m.stride()};
        };
        curve_pass(in, 0, tile_rows(t), {part(error), part(recall)});
      }
    });
    if (snapshots == 1) one = timing.median;
    report.flops(fmt::format("curve_pass, {} budgets ({:.2f} x one)", snapshots, timing.median / one), timing,
                 2.0 * pair * static_cast<double>(dim));
    Matrix<std::uint32_t> single(1, rows, kvsim::kRowPad), each(snapshots, rows, kvsim::kRowPad);
    Matrix<std::uint32_t> overlap(snapshots, rows);
    for (std::size_t r = 0; r < rows; ++r) {
      single(0, r) = 300;
      for (std::size_t s = 0; s < snapshots; ++s) each(s, r) = counts[s];
    }
    for (const bool per_snapshot : {false, true}) {
      const Matrix<std::uint32_t>& limits = per_snapshot ? each : single;
      report.items(
          fmt::format("overlap_counts, {} budgets, {}", snapshots, per_snapshot ? "limit each" : "one limit"),
          time_of(repeats,
                  [&] {
                    for (std::size_t t = 0; t < tiled.weights.size(); ++t) {
                      overlap_counts<std::uint16_t>(
                          tiled.ranks[t].view(), order, counts,
                          {limits.data() + t * kPart, limits.rows(), tile_rows(t), limits.stride()}, 0,
                          tile_rows(t),
                          {overlap.data() + t * kPart, snapshots, tile_rows(t), overlap.stride()});
                    }
                  }),
          pair, pair * 2.0);
    }
  }
  for (const std::size_t snapshots : {1u, 16u, 200u}) {
    // What a replay asks for: three needed sets and the row's own best n, in one reading of one matrix of all
    // rows.
    const std::vector<std::uint32_t> counts = budgets(snapshots, prompt);
    Matrix<std::uint16_t> ranks(prompt, rows, 2 * kvsim::kRowPad);
    for (std::size_t t = 0; t < tiled.ranks.size(); ++t) {
      for (std::size_t j = 0; j < prompt; ++j)
        std::copy_n(tiled.ranks[t].row(j), tile_rows(t), ranks.row(j) + t * kPart);
    }
    Matrix<std::uint32_t> needed_limits(3, rows, kvsim::kRowPad), each(snapshots, rows, kvsim::kRowPad);
    std::vector<Matrix<std::uint32_t>> overlaps;
    for (std::size_t q = 0; q < 4; ++q) overlaps.emplace_back(snapshots, rows);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t q = 0; q < 3; ++q)
        needed_limits(q, r) = static_cast<std::uint32_t>(30 + 300 * q + r % 32);
      for (std::size_t s = 0; s < snapshots; ++s) each(s, r) = counts[s];
    }
    std::vector<kvsim::OverlapQuery> queries{{each.view(), overlaps[3].view()}};
    const kvsim::MatrixView<const std::uint32_t> all_needed = needed_limits.view();
    for (std::size_t q = 0; q < 3; ++q) queries.push_back({all_needed.rows_from(q, 1), overlaps[q].view()});
    report.items(
        fmt::format("overlap_counts, {} budgets, all four queries", snapshots),
        time_of(repeats,
                [&] { kvsim::overlap_counts<std::uint16_t>(ranks.view(), order, counts, queries, 0, rows); }),
        pair, pair * 2.0);
  }
  const std::vector<std::uint32_t> counts = budgets(16, prompt);
  Matrix<float> error(16, kPart), recall(16, kPart);
  report.flops("own_order_curve, 16 budgets",
               time_of(std::min(repeats, 3),
                       [&] {
                         for (std::size_t t = 0; t < tiled.weights.size(); ++t) {
                           const kvsim::CurveInput in{tiled.weights[t].view().rows_from(0, prompt),
                                                      head.values.view().rows_from(0, prompt),
                                                      {},
                                                      counts,
                                                      view_of(tail, t),
                                                      std::span(tail_weight).subspan(t * kPart),
                                                      view_of(exact, t)};
                           own_order_curve<std::uint16_t>(in, tiled.ranks[t].view(), 0, tile_rows(t),
                                                          {error.view(), recall.view()});
                         }
                       }),
               2.0 * pair * static_cast<double>(dim));
  report.write(options.json);
}
