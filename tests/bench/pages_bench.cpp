// Rates of page policies on a seeded Zipf stream (or a request file), memory per resident page, and what
// Guard adds.
//
//   pages_bench [--requests 100M] [--objects 10M] [--capacity 1M] [--exponent 1.0] [--file PATH] [--policies
//   a,b,...]
//
// Rates are per core, by processor time; libCacheSim's own claim (20 million requests per second and core,
// https://libcachesim.com, LRU-like policies) stands beside them.
#include <fmt/format.h>
#include <malloc.h>

#include <cmath>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "kernels/philox.h"
#include "policies/paging/page_registry.h"
#include "sim/pages/interner.h"
#include "sim/pages/page_server.h"
#include "sim/pages/stream_files.h"

namespace {

using namespace std::string_literals;
using kvsim::PageStream;

constexpr double kPublishedRate = 20e6;

/// Rejection-inversion sampling of ranks 1..n with probability ~ rank^-s (Hoermann and Derflinger, 1996).
class Zipf {
 public:
  Zipf(std::uint64_t n, double s) : n_(static_cast<double>(n)), s_(s) {
    low_ = integral(1.5) - 1.0;
    high_ = integral(n_ + 0.5);
    cut_ = 2.0 - inverse(integral(2.5) - std::pow(2.0, -s_));
  }
  std::uint64_t draw(kvsim::Philox& philox) const {
    for (;;) {
      const double u = high_ + philox.next_double() * (low_ - high_);
      const double x = inverse(u);
      const double k = std::min(n_, std::max(1.0, std::floor(x + 0.5)));
      if (k - x <= cut_ || u >= integral(k + 0.5) - std::pow(k, -s_)) return static_cast<std::uint64_t>(k);
    }
  }

 private:
  double integral(double x) const {
    return s_ == 1.0 ? std::log(x) : (std::pow(x, 1.0 - s_) - 1.0) / (1.0 - s_);
  }
  double inverse(double u) const {
    return s_ == 1.0 ? std::exp(u) : std::pow(1.0 + u * (1.0 - s_), 1.0 / (1.0 - s_));
  }
  double n_, s_, low_, high_, cut_;
};

PageStream zipf_stream(std::uint64_t requests, std::uint64_t objects, double exponent) {
  PageStream stream;
  stream.name = "zipf";
  stream.pages.reserve(requests);
  kvsim::Interner interner;
  kvsim::Philox philox(1, 1);
  const Zipf zipf(objects, exponent);
  for (std::uint64_t i = 0; i < requests; ++i) stream.pages.push_back(interner.page_of(zipf.draw(philox)));
  stream.unique = interner.count();
  return stream;
}

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Measured {
  double seconds = 0, miss_ratio = 0, bytes = 0;
};

Measured measure(const PageStream& stream, const std::string& spec, std::uint64_t capacity) {
  const auto policy = kvsim::bind_page_policy(kvsim::parse_specs(spec).at(0));
  kvsim::CacheSetup setup = kvsim::setup_for(stream, capacity, {});
  const std::size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
  const double begin = cpu_seconds();
  kvsim::PageServer server(*policy, setup, kvsim::Grouping::none, 0);
  constexpr std::size_t kBlock = 4096;
  std::vector<std::uint64_t> next;
  for (std::size_t at = 0; at < stream.requests(); at += kBlock) {
    const std::size_t n = std::min(kBlock, stream.requests() - at);
    kvsim::RequestBlock block;
    block.first_time = at;
    block.pages = std::span(stream.pages).subspan(at, n);
    block.page_limit = stream.unique;
    if (policy->needs_future()) {
      next.resize(n);
      for (std::size_t i = 0; i < n; ++i)
        next[i] = stream.next[at + i] == stream.requests() ? kvsim::kNeverAgain : stream.next[at + i];
      block.next_use = next;
    }
    server.serve(block, {});
  }
  Measured out;
  out.seconds = cpu_seconds() - begin;
  out.bytes = static_cast<double>(mallinfo2().uordblks + mallinfo2().hblkhd - before);
  out.miss_ratio = server.finish().miss_ratio();
  return out;
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
  std::uint64_t requests = 100'000'000, objects = 10'000'000, capacity = 1'000'000;
  double exponent = 1.0;
  std::string file;
  std::vector<std::string> specs{"lru",
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
    else {
      fmt::print(stderr, "unknown option {}\n", name);
      return 2;
    }
  }
  PageStream stream =
      file.empty() ? zipf_stream(requests, objects, exponent) : kvsim::load_requests(file, {});
  stream.sizes.clear();
  stream.grouping = kvsim::Grouping::none;
  const double begin = cpu_seconds();
  stream.find_next();
  fmt::print("{}: {} requests, {} objects seen, capacity {}; backward pass {:.2f} s\n",
             file.empty() ? "zipf"s : file, stream.requests(), stream.unique, capacity,
             cpu_seconds() - begin);
  fmt::print("{:<28} {:>10} {:>14} {:>12} {:>16}\n", "policy", "M req/s", "of published", "miss ratio",
             "bytes / resident");
  for (const std::string& spec : specs) {
    const Measured m = measure(stream, spec, capacity);
    const double rate = static_cast<double>(stream.requests()) / m.seconds;
    const double residents = static_cast<double>(std::min<std::uint64_t>(capacity, stream.unique));
    fmt::print("{:<28} {:>10.1f} {:>13.2f}x {:>12.4f} {:>16.1f}\n", spec, rate / 1e6, rate / kPublishedRate,
               m.miss_ratio, m.bytes / residents);
  }
  fmt::print("\nGuard against its base, nanoseconds per request (processor time):\n");
  for (const std::string& base : {"lru"s, "fifo"s, "blindoracle"s, "blindoracle(predictor=popu)"s}) {
    const double n = static_cast<double>(stream.requests()) * 1e-9;
    const double bare = measure(stream, base, capacity).seconds / n;
    const double guarded = measure(stream, "guard(base=" + base + ")", capacity).seconds / n;
    fmt::print("{:<28} {:>8.1f} {:>8.1f}  guard adds {:.1f}\n", base, bare, guarded, guarded - bare);
  }
  return 0;
}
