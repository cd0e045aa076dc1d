// How fast the CUDA kernels are on one KV head, against the machine's own ceilings in the same run.
//
//     cuda_bench [prompt] [decode] [group] [dim] [rankings] [budgets]
//
// Prints milliseconds by part (median of repeats) and the rate of the curve kernel; the defaults are size L.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "kernels/cuda/device.h"
#include "tests/kernels/peaky_head.h"

namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  using namespace kvsim;
  const auto argument = [&](int i, long fallback) { return static_cast<std::size_t>(argc > i ? std::atol(argv[i]) : fallback); };
  const std::size_t prompt = argument(1, 32768), decode = argument(2, 256), group = argument(3, 4), dim = argument(4, 128),
                    count = argument(5, 30), budgets = argument(6, 16);
  for (const cuda::DeviceInfo& device : cuda::devices())
    fmt::print("{} (sm_{}{}), {} multiprocessors, {} GiB\n", device.name, device.major, device.minor, device.multiprocessors,
               device.memory >> 30);
  if (cuda::devices().empty()) {
    fmt::print("no GPU\n");
    return 0;
  }
  const PeakyHead head({.prompt = prompt, .steps = decode, .group = group, .head_dim = dim, .value_dim = dim, .half = true});
  std::vector<std::uint32_t> counts;
  for (std::size_t b = 1; b <= budgets; ++b) counts.push_back(static_cast<std::uint32_t>(b * prompt / budgets));
  std::vector<std::vector<TokenIndex>> orders;
  std::vector<cuda::Ranking> rankings;
  for (std::size_t r = 0; r < count; ++r) orders.push_back(shuffled(prompt, r));
  for (std::size_t r = 0; r < count; ++r) rankings.push_back({orders[r], counts, 0, head.rows()});
  cuda::HeadReplay replay(0);
  cuda::CurveResults results;
  std::vector<cuda::HeadReplay::Timing> timings;
  std::vector<double> load_wall, curves_wall;
  for (int repeat = 0; repeat < 6; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    replay.load({head.keys.view(), head.values.view(), head.queries.view(), head.position, prompt, head.rule});
    const auto loaded = std::chrono::steady_clock::now();
    replay.curves(rankings, results);
    const auto done = std::chrono::steady_clock::now();
    if (repeat == 0) continue;  // allocations and lazily loaded kernels
    timings.push_back(replay.timing());
    load_wall.push_back(std::chrono::duration<double, std::milli>(loaded - start).count());
    curves_wall.push_back(std::chrono::duration<double, std::milli>(done - loaded).count());
  }
  const auto part = [&](double cuda::HeadReplay::Timing::*of) {
    std::vector<double> values;
    for (const auto& timing : timings) values.push_back(timing.*of);
    return median(values);
  };
  using Timing = cuda::HeadReplay::Timing;
  const double curve = part(&Timing::curve);
  const double flops = 2.0 * 2.0 * static_cast<double>(head.rows()) * static_cast<double>(prompt) * static_cast<double>(dim) * static_cast<double>(count);
  fmt::print("one KV head: prompt {}, {} rows, dim {}; {} rankings x {} budgets\n", prompt, head.rows(), dim, count, budgets);
  fmt::print("upload {:.2f} ms, exact attention {:.2f} ms, ranks {:.2f} ms (wall of load {:.2f} ms)\n", part(&Timing::upload),
             part(&Timing::attention), part(&Timing::ranks), median(load_wall));
  fmt::print("curves {:.2f} ms = {:.3f} ms a ranking, {:.0f} TFLOP/s of split bf16; overlaps {:.2f} ms; download {:.2f} ms (wall {:.2f} ms)\n", curve,
             curve / static_cast<double>(count), flops / curve / 1e9, part(&Timing::overlap), part(&Timing::download), median(curves_wall));
}
