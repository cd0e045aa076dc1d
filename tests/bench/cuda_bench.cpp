// How fast the CUDA backend is on one KV head, against the machine's own ceilings in the same run.
//
//     cuda_bench [prompt] [decode] [group] [dim] [rankings] [budgets] [--json FILE]
//
// Prints milliseconds by part (median of repeats) with the floor of each, from the bandwidth of a device copy
// in the same run and the operations over the datasheet's rates; the defaults are size L.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/device.h"
#include "tests/kernels/peaky_head.h"

namespace {

using kvsim::TokenIndex;
using Clock = std::chrono::steady_clock;
constexpr int kRepeats = 11;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Median milliseconds of a call; the first is not counted.
double wall(const std::function<void()>& call) {
  std::vector<double> values;
  for (int i = 0; i <= kRepeats; ++i) {
    const auto start = Clock::now();
    call();
    if (i > 0) values.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  return median(values);
}

/// Bytes per millisecond, read and written, of a large copy on the device.
double copy_rate() {
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  void *from = nullptr, *to = nullptr;
  if (cudaMalloc(&from, kBytes) != cudaSuccess || cudaMalloc(&to, kBytes) != cudaSuccess) return 0;
  cudaMemset(from, 1, kBytes);
  const double ms = wall([&] {
    cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, nullptr);
    cudaDeviceSynchronize();
  });
  cudaFree(from);
  cudaFree(to);
  return 2.0 * static_cast<double>(kBytes) / ms;
}

void part(const char* name, double ms, double bytes, double rate, double flops, double flop_rate) {
  const double by_bytes = rate > 0 ? bytes / rate : 0, by_flops = flops / flop_rate;
  fmt::print(
      "  {:<22} {:7.3f} ms   {:7.1f} MB = {:.3f} ms, {:7.1f} GFLOP = {:.3f} ms: {:3.0f} % of the floor\n",
      name, ms, bytes / 1e6, by_bytes, flops / 1e9, by_flops, 100 * std::max(by_bytes, by_flops) / ms);
}

/// Wall milliseconds per head where `workers` threads, each with a device object of its own on the same GPU,
/// load heads and measure their rankings one after the other: uploads and downloads of one go on under the
/// kernels of another. One value per repeat.
std::vector<double> throughput(int workers, const kvsim::HeadInput& input,
                               std::span<const kvsim::Ranking> rankings) {
  constexpr int kHeads = 24, kRounds = 5;
  const std::size_t share = kvsim::cuda::free_memory(0) / static_cast<std::size_t>(workers);
  std::vector<std::unique_ptr<kvsim::Device>> devices;
  for (int w = 0; w < workers; ++w) devices.push_back(kvsim::cuda::open_device(0, share));
  const auto work = [&](int heads) {
    std::vector<std::thread> threads;
    for (int w = 0; w < workers; ++w)
      threads.emplace_back([&, w] {
        for (int i = 0; i < heads / workers; ++i) {
          const auto head = devices[static_cast<std::size_t>(w)]->load(input);
          head->exact();
          head->curves(rankings, false);
        }
      });
    for (std::thread& thread : threads) thread.join();
  };
  work(2 * workers);  // allocations and lazily loaded kernels
  std::vector<double> values;
  for (int i = 0; i < kRounds; ++i) {
    const auto start = Clock::now();
    work(kHeads);
    values.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count() / kHeads);
  }
  return values;
}

/// What tests/bench/machine.py reads: milliseconds of compute per KV head.
void write_json(const std::string& path, std::vector<double> totals, const std::string& note) {
  std::sort(totals.begin(), totals.end());
  std::ofstream(path) << fmt::format(
      "[{{\"line\": \"gpu head ms\", \"value\": {:.4f}, \"low\": {:.4f}, \"high\": {:.4f}, \"repeats\": {}, "
      "\"note\": \"{}\"}}]\n",
      totals[totals.size() / 2], totals.front(), totals.back(), totals.size(), note);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace kvsim;
  std::string json;
  std::vector<std::string> numbers;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      numbers.emplace_back(argv[i]);
    }
  }
  const auto argument = [&](std::size_t i, std::size_t fallback) {
    return numbers.size() >= i ? static_cast<std::size_t>(std::atol(numbers[i - 1].c_str())) : fallback;
  };
  const std::size_t prompt = argument(1, 32768), decode = argument(2, 256), group = argument(3, 4),
                    dim = argument(4, 128), count = argument(5, 30), budgets = argument(6, 16);
  for (const cuda::DeviceInfo& info : cuda::devices())
    fmt::print("{} (sm_{}{}), {} multiprocessors, {} GiB\n", info.name, info.major, info.minor,
               info.multiprocessors, info.memory >> 30);
  if (cuda::devices().empty()) {
    fmt::print("no GPU\n");
    return 0;
  }
  const PeakyHead head(
      {.prompt = prompt, .steps = decode, .group = group, .head_dim = dim, .value_dim = dim, .half = true});
  std::vector<std::uint32_t> counts;
  for (std::size_t b = 1; b <= budgets; ++b)
    counts.push_back(static_cast<std::uint32_t>(b * prompt / budgets));
  std::vector<std::vector<TokenIndex>> orders;
  std::vector<Ranking> rankings;
  for (std::size_t r = 0; r < count; ++r) orders.push_back(shuffled(prompt, r));
  for (std::size_t r = 0; r < count; ++r) rankings.push_back({orders[r], counts, {}, 0, head.rows()});
  const double rate = copy_rate();
  fmt::print(
      "device copy {:.2f} TB/s read and written; rates of the datasheet: 67 TFLOP/s in double, 990 in "
      "bfloat16, 1980 in bytes\n",
      rate / 1e9);
  const auto device = cuda::open_device(0, 0);
  HeadInput input;
  input.keys = head.keys.view();
  input.values = head.values.view();
  input.queries = head.queries.view();
  input.position = head.position;
  input.prompt = prompt;
  input.rule = head.rule;
  input.stored = DType::bfloat16;
  std::vector<cuda::Timing> timings;
  std::unique_ptr<DeviceHead> loaded;
  const double load_wall = wall([&] {
    loaded = device->load(input);
    loaded->exact();
  });
  const double curves_wall = wall([&] { loaded->curves(rankings, false); });
  for (int i = 0; i < kRepeats; ++i) {
    loaded = device->load(input);
    loaded->curves(rankings, false);
    timings.push_back(cuda::timing_of(*device));
  }
  const auto of = [&](double cuda::Timing::*field) {
    std::vector<double> values;
    for (const auto& timing : timings) values.push_back(timing.*field);
    return median(values);
  };
  using T = cuda::Timing;
  const auto rows = static_cast<double>(head.rows()), tokens = static_cast<double>(head.tokens()),
             t = static_cast<double>(prompt), d = static_cast<double>(dim), r = static_cast<double>(count),
             b = static_cast<double>(budgets);
  fmt::print("one KV head: prompt {}, {} rows, dim {}; {} rankings x {} budgets; medians of {}\n", prompt,
             head.rows(), dim, count, budgets, kRepeats);
  fmt::print("  upload and unpack      {:7.3f} ms (host packing included)\n", of(&T::upload));
  part("exact attention", of(&T::attention), rows * tokens * 4 + rows * t * 4, rate, 2 * rows * tokens * d,
       67e9);
  part("exact outputs", of(&T::outputs), rows * tokens * 4, rate, 2 * rows * tokens * d, 67e9);
  part("ranks, needed sets", of(&T::ranks), rows * tokens * 4 + rows * t * 2, rate, 0, 1);
  part("overlaps", of(&T::overlap), rows * t * 3 + r * t * 4, rate, 2 * rows * t * r * b * 4, 1980e9);
  part("curves", of(&T::curve), r * rows * t * 4, rate, 2 * 2 * rows * t * d * r, 990e9);
  fmt::print("  rest of the download   {:7.3f} ms ({:.1f} MB in all)\n", of(&T::download),
             6 * 4 * r * b * rows / 1e6);
  const double compute = of(&T::attention) + of(&T::outputs) + of(&T::ranks) + of(&T::overlap) +
                         of(&T::curve) + of(&T::download);
  fmt::print("  sum {:.3f} ms, without curves {:.3f} ms; x 256 = {:.2f} s\n", compute,
             compute - of(&T::curve), compute * 0.256);
  fmt::print("wall: load and exact {:.2f} ms, curves {:.2f} ms\n", load_wall, curves_wall);
  std::vector<double> totals;
  for (const T& one : timings)
    totals.push_back(one.attention + one.outputs + one.ranks + one.overlap + one.curve + one.download);
  std::string how = "sum of the parts, one head at a time";
  loaded.reset();
  for (const int workers : {1, 2, 4}) {
    const std::vector<double> of_workers = throughput(workers, input, rankings);
    fmt::print("{} threads with a device object each: {:.3f} ms of wall clock per head, transfers included\n",
               workers, median(of_workers));
    if (median(of_workers) < median(totals)) {
      totals = of_workers;
      how = fmt::format("wall clock per head of {} threads on one GPU, transfers included", workers);
    }
  }
  if (!json.empty())
    write_json(json, totals,
               fmt::format("{}; prompt {}, {} rows, dim {}, {} rankings x {} budgets on {}", how, prompt,
                           head.rows(), dim, count, budgets, device->name()));
  loaded = device->load(input);
  std::vector<double> sum(prompt);
  fmt::print("wall: prompt sums of all rows {:.3f} ms, removal squares {:.3f} ms\n",
             wall([&] { loaded->add_prompt_sums(0, head.rows(), sum); }),
             wall([&] { loaded->add_removal_squares(0, head.rows(), sum); }));
  const auto few = head.queries.view().rows_from(0, std::min<std::size_t>(head.rows(), 256));
  const std::span position(head.position.data(), few.rows);
  std::vector<RowRange> windows;
  for (std::size_t i = 1; i <= 32; ++i) windows.push_back({few.rows - few.rows * i / 32, few.rows});
  Matrix<double> sums(windows.size(), prompt);
  fmt::print("wall: attention of {} rows and {} sums of them {:.3f} ms\n", few.rows, windows.size(),
             wall([&] { loaded->attention_sums(few, position, windows, sums.view()); }));
  std::vector<std::vector<std::uint32_t>> own(
      count, counts);  // counts of its own for each ranking, as adaptive policies have
  for (std::size_t i = 0; i < count; ++i)
    for (std::uint32_t& n : own[i]) n = std::max<std::uint32_t>(n, 64) - static_cast<std::uint32_t>(i);
  for (std::size_t i = 0; i < count; ++i) rankings[i].counts = own[i];
  std::vector<double> adaptive;
  for (int i = 0; i < kRepeats; ++i) {
    loaded->curves(rankings, false);
    adaptive.push_back(cuda::timing_of(*device).overlap);
  }
  fmt::print("overlaps where every ranking has counts of its own {:.3f} ms\n", median(adaptive));
}
