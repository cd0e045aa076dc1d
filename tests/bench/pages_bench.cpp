// Rates of page policies on a seeded Zipf stream (or a request file), memory per resident page, what one pass
// for all costs, and what Guard adds; or how the time per request grows with the capacity.
//
//   pages_bench [--requests 100M] [--objects 10M] [--capacity 1M] [--exponent 1.0] [--file PATH] [--policies
//   a,b,...] pages_bench --growth 1K,10K,100K,1M [--policies a,b,...]
//
// All times are processor time, so rates are per core; small streams are served again and again, and the
// median counts. libCacheSim's own claim (20 million requests per second and core, https://libcachesim.com,
// LRU-like policies) stands beside the rates.
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "policies/paging/page_registry.h"
#include "sim/pages/page_server.h"
#include "sim/pages/stream_files.h"
#include "tests/bench/zipf_stream.h"

namespace {

using namespace std::string_literals;
using kvsim::PageStream;
using kvsim::bench::zipf_stream;

constexpr double kPublishedRate = 20e6;
constexpr std::size_t kStreamChunk = 1u << 18;  // as sim/pages/stream_files.cpp reads

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::unique_ptr<kvsim::PagePolicy> policy_of(const std::string& spec) {
  return kvsim::bind_page_policy(kvsim::parse_specs(spec).at(0));
}

/// Several policies over one stream in one pass: each serves a whole chunk before the next one gets it.
class Pass {
 public:
  Pass(const PageStream& stream, const std::vector<std::string>& specs, std::uint64_t capacity)
      : stream_(stream) {
    for (const std::string& spec : specs) {
      policies_.push_back(policy_of(spec));
      const kvsim::CacheSetup setup = kvsim::setup_for(stream, capacity, {});
      servers_.push_back(
          std::make_unique<kvsim::PageServer>(*policies_.back(), setup, kvsim::Grouping::none, 0));
    }
  }
  void serve(std::size_t begin, std::size_t end) {
    for (std::size_t s = 0; s < servers_.size(); ++s) {
      for (std::size_t at = begin; at < end; at += kBlock) serve_block(s, at, std::min(kBlock, end - at));
    }
  }
  void serve_all(std::size_t chunk) {
    for (std::size_t at = 0; at < stream_.requests(); at += chunk)
      serve(at, std::min(at + chunk, stream_.requests()));
  }
  double miss_ratio() { return servers_[0]->finish().miss_ratio(); }

 private:
  static constexpr std::size_t kBlock = 4096;  // requests whose next uses are widened at a time
  void serve_block(std::size_t s, std::size_t at, std::size_t n) {
    kvsim::RequestBlock block;
    block.first_time = at;
    block.pages = std::span(stream_.pages).subspan(at, n);
    block.page_limit = stream_.unique;
    if (policies_[s]->needs_future()) {
      next_.resize(n);
      for (std::size_t i = 0; i < n; ++i)
        next_[i] = stream_.next[at + i] == stream_.requests() ? kvsim::kNeverAgain : stream_.next[at + i];
      block.next_use = next_;
    }
    servers_[s]->serve(block, {});
  }

  const PageStream& stream_;
  std::vector<std::unique_ptr<kvsim::PagePolicy>> policies_;
  std::vector<std::unique_ptr<kvsim::PageServer>> servers_;
  std::vector<std::uint64_t> next_;
};

struct Measured {
  double seconds = 0, miss_ratio = 0, bytes = 0;
};

/// Median over passes with fresh caches, until they took half a second together.
Measured measure(const PageStream& stream, const std::vector<std::string>& specs, std::uint64_t capacity,
                 std::size_t chunk = kStreamChunk) {
  Measured out;
  std::vector<double> times;
  for (double sum = 0; sum < 0.5; sum += times.back()) {
    const std::size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    const double begin = cpu_seconds();
    Pass pass(stream, specs, capacity);
    pass.serve_all(chunk);
    times.push_back(cpu_seconds() - begin);
    out.bytes = static_cast<double>(mallinfo2().uordblks + mallinfo2().hblkhd - before);
    out.miss_ratio = pass.miss_ratio();
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  out.seconds = times[times.size() / 2];
  return out;
}

void print_rates(const PageStream& stream, const std::vector<std::string>& specs, std::uint64_t capacity) {
  fmt::print("{:<28} {:>10} {:>14} {:>12} {:>16}\n", "policy", "M req/s", "of published", "miss ratio",
             "bytes / resident");
  double sum = 0;
  const double residents = static_cast<double>(std::min<std::uint64_t>(capacity, stream.unique));
  for (const std::string& spec : specs) {
    const Measured m = measure(stream, {spec}, capacity);
    const double rate = static_cast<double>(stream.requests()) / m.seconds;
    sum += m.seconds;
    fmt::print("{:<28} {:>10.1f} {:>13.2f}x {:>12.4f} {:>16.1f}\n", spec, rate / 1e6, rate / kPublishedRate,
               m.miss_ratio, m.bytes / residents);
    std::fflush(stdout);
  }
  // In memory the program serves one policy after the other, read as a stream chunk by chunk: then the
  // policies drive each other's state out of the processor's caches.
  for (const std::size_t chunk : {kStreamChunk, stream.requests()}) {
    const double together = measure(stream, specs, capacity, chunk).seconds;
    fmt::print("all {} in one pass, {}: {:.2f} s, the sum of single passes {:.2f} s, ratio {:.2f}\n",
               specs.size(), chunk == kStreamChunk ? "read as a stream" : "in memory", together, sum,
               together / sum);
    std::fflush(stdout);
  }
}

void print_guard(const PageStream& stream, std::uint64_t capacity) {
  fmt::print("\nGuard against its base, nanoseconds per request (processor time):\n");
  for (const std::string& base : {"lru"s, "fifo"s, "blindoracle"s, "blindoracle(predictor=popu)"s}) {
    const double n = static_cast<double>(stream.requests()) * 1e-9;
    const double bare = measure(stream, {base}, capacity).seconds / n;
    const double guarded = measure(stream, {"guard(base=" + base + ")"}, capacity).seconds / n;
    fmt::print("{:<28} {:>8.1f} {:>8.1f}  guard adds {:.1f}\n", base, bare, guarded, guarded - bare);
  }
}

/// Every policy with its defaults, predictors that cost something of their own, and Guard around all that it
/// may follow.
std::vector<std::string> every_policy() {
  std::vector<std::string> out;
  for (const kvsim::PageTraits* traits : kvsim::all_page_policies()) {
    if (traits->name == "guard" || traits->name == "follow_scores") continue;
    out.emplace_back(traits->name);
    if (traits->guardable) out.push_back(fmt::format("guard(base={})", traits->name));
  }
  for (const char* predictor : {"popu", "pleco", "history"})
    out.push_back(fmt::format("blindoracle(predictor={})", predictor));
  out.emplace_back("trust_doubt(predictor=popu)");
  out.emplace_back("follower_robust(predictor=oracle(noise=inverted))");
  return out;
}

/// Nanoseconds per request in the steady state: 2 k requests fill the cache, the next ones count, for two
/// seconds at most.
double steady(const std::string& spec, const PageStream& stream, std::uint64_t capacity) {
  Pass pass(stream, {spec}, capacity);
  std::size_t at = 2 * capacity;
  pass.serve(0, at);
  const std::size_t filled = at;
  const double begin = cpu_seconds();
  while (at < stream.requests() && cpu_seconds() < begin + 2) {
    const std::size_t end = std::min<std::size_t>(at + 16384, stream.requests());
    pass.serve(at, end);
    at = end;
  }
  return (cpu_seconds() - begin) * 1e9 / static_cast<double>(at - filled);
}

/// The same for `follow_scores`, whose scores come with steps: k / 8 requests a step, 2 k pages.
double steady_scores(const std::string& spec, std::uint64_t capacity) {
  constexpr std::size_t kSteps = 48, kFill = 24;
  const std::size_t in_step = std::max<std::size_t>(1, capacity / 8), pages = 2 * capacity;
  kvsim::Philox philox(1, 2);
  kvsim::Matrix<float> mass(kSteps, pages);
  for (std::size_t s = 0; s < kSteps; ++s) {
    for (std::size_t p = 0; p < pages; ++p) mass(s, p) = static_cast<float>(philox.next_double());
  }
  const kvsim::AttentionScores scores{mass.view(), {}, 0};
  kvsim::CacheSetup setup;
  setup.capacity = capacity;
  setup.attention = &scores;
  setup.requests = kSteps;
  const auto policy = policy_of(spec);
  const auto cache = policy->start(setup);
  std::vector<kvsim::Page> asked(in_step);
  kvsim::PageTally tally;
  double seconds = 0;
  for (std::size_t s = 0; s < kSteps; ++s) {
    for (kvsim::Page& p : asked) p = philox.next_below(static_cast<std::uint32_t>(pages));
    const kvsim::RequestBlock block{s, true, asked, {}, {}, static_cast<kvsim::Page>(pages)};
    const double begin = cpu_seconds();
    cache->serve(block, tally);
    if (s >= kFill) seconds += cpu_seconds() - begin;
  }
  return seconds * 1e9 / static_cast<double>((kSteps - kFill) * in_step);
}

void print_growth(const std::vector<std::uint64_t>& capacities, std::vector<std::string> specs) {
  const bool scores = specs.empty();
  if (specs.empty()) specs = every_policy();
  std::vector<PageStream> streams;
  fmt::print("nanoseconds per request (processor time), Zipf 0.7 over 4 k pages, by capacity k\n{:<52}",
             "policy");
  for (const std::uint64_t k : capacities) {
    streams.push_back(zipf_stream(2 * k + std::max<std::uint64_t>(300'000, k), 4 * k, 0.7));
    streams.back().find_next();
    fmt::print("{:>10}", k);
  }
  fmt::print("{:>10}\n", "growth");
  const auto row = [&](const std::string& spec, auto time) {
    fmt::print("{:<52}", spec);
    double first = 0, last = 0;
    for (std::size_t i = 0; i < capacities.size(); ++i) {
      last = time(i);
      if (i == 0) first = last;
      fmt::print("{:>10.0f}", last);
      std::fflush(stdout);
    }
    fmt::print("{:>9.1f}x\n", last / first);
  };
  for (const std::string& spec : specs)
    row(spec, [&](std::size_t i) { return steady(spec, streams[i], capacities[i]); });
  if (!scores) return;
  fmt::print("k / 8 requests a step, all scores new at every step:\n");
  for (const std::string& spec : {"follow_scores"s, "guard(base=follow_scores)"s})
    row(spec, [&](std::size_t i) { return steady_scores(spec, capacities[i]); });
}

std::uint64_t count_of(const std::string& text) {
  double value = std::stod(text);
  if (text.ends_with('M')) value *= 1e6;
  if (text.ends_with('K')) value *= 1e3;
  return static_cast<std::uint64_t>(value);
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out;
  std::string word;
  int depth = 0;
  for (const char c : text + ",") {
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (c == ',' && depth == 0) {
      if (!word.empty()) out.push_back(word);
      word.clear();
    } else {
      word += c;
    }
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t requests = 100'000'000, objects = 10'000'000, capacity = 0;
  double exponent = 1.0;
  std::string file;
  std::vector<std::string> specs;
  std::vector<std::uint64_t> growth;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--requests")
      requests = count_of(value);
    else if (name == "--objects")
      objects = count_of(value);
    else if (name == "--capacity")
      capacity = count_of(value);
    else if (name == "--exponent")
      exponent = std::stod(value);
    else if (name == "--file")
      file = value;
    else if (name == "--policies")
      specs = split(value);
    else if (name == "--growth")
      for (const std::string& k : split(value)) growth.push_back(count_of(k));
    else {
      fmt::print(stderr, "unknown option {}\n", name);
      return 2;
    }
  }
  if (!growth.empty()) {
    print_growth(growth, specs);
    return 0;
  }
  const bool with_guard = specs.empty();
  if (specs.empty()) {
    specs = {"lru",
             "fifo",
             "clock",
             "sieve",
             "s3_fifo",
             "arc",
             "two_q",
             "lfu",
             "tiny_lfu",
             "random",
             "belady",
             "blindoracle",
             "guard(base=lru)",
             "guard(base=fifo)",
             "guard(base=blindoracle)"};
  }
  PageStream stream =
      file.empty() ? zipf_stream(requests, objects, exponent) : kvsim::load_requests(file, {});
  stream.sizes.clear();
  stream.grouping = kvsim::Grouping::none;
  if (capacity == 0) capacity = file.empty() ? 1'000'000 : std::max<std::uint64_t>(1, stream.unique / 10);
  const double begin = cpu_seconds();
  stream.find_next();
  fmt::print("{}: {} requests, {} objects seen, capacity {}; backward pass {:.3f} s\n",
             file.empty() ? "zipf"s : file, stream.requests(), stream.unique, capacity,
             cpu_seconds() - begin);
  print_rates(stream, specs, capacity);
  if (with_guard) print_guard(stream, capacity);
  return 0;
}
