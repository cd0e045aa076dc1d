// Running page policies on small sequences.
#include "tests/pages/page_run.h"

#include <algorithm>
#include <sstream>

namespace kvsim::test {

std::vector<std::uint32_t> Sequence::next() const {
  const auto n = static_cast<std::uint32_t>(pages.size());
  std::vector<std::uint32_t> out(n, n), last(universe(), n);
  for (std::uint32_t t = n; t-- > 0;) {
    out[t] = last[pages[t]];
    last[pages[t]] = t;
  }
  return out;
}

std::vector<double> Sequence::next_use() const {
  std::vector<double> out;
  const double never = static_cast<double>(pages.size() + 1);
  for (const std::uint32_t t : next()) out.push_back(t == pages.size() ? never : static_cast<double>(t));
  return out;
}

Page Sequence::universe() const {
  return pages.empty() ? 0 : *std::max_element(pages.begin(), pages.end()) + 1;
}

Sequence sequence_of(const std::string& words, const std::string& numbers) {
  std::map<std::string, Page> ids;
  Sequence out;
  std::istringstream in(words);
  for (std::string word; in >> word;)
    out.pages.push_back(ids.emplace(word, static_cast<Page>(ids.size())).first->second);
  out.numbers = numbers_of(numbers);
  return out;
}

std::vector<double> numbers_of(const std::string& words) {
  std::vector<double> out;
  std::istringstream in(words);
  for (double x = 0; in >> x;) out.push_back(x);
  return out;
}

std::unique_ptr<PagePolicy> policy_of(const std::string& spec) {
  return bind_page_policy(parse_specs(spec).at(0));
}

CacheSetup setup_of(const Sequence& sequence, std::uint64_t capacity, std::uint64_t seed) {
  CacheSetup setup;
  setup.capacity = capacity;
  setup.seed = seed;
  setup.requests = sequence.pages.size();
  setup.knows_future = true;
  setup.pages = sequence.pages;
  setup.numbers = [&sequence](const std::string&) { return std::span<const double>(sequence.numbers); };
  return setup;
}

Outcome run(const PagePolicy& policy, const Sequence& sequence, const CacheSetup& given) {
  CacheSetup setup = given;
  const std::vector<std::uint32_t> next = sequence.next();
  setup.next = next;
  std::vector<std::uint64_t> next_use;
  for (const std::uint32_t t : next) next_use.push_back(t == sequence.pages.size() ? kNeverAgain : t);
  const std::unique_ptr<PageCache> cache = policy.start(setup);
  Outcome out;
  RequestBlock block;
  block.pages = sequence.pages;
  block.next_use = next_use;
  block.page_limit = sequence.universe();
  cache->serve(block, out.tally);
  if (cache->guard_counters() != nullptr) out.guard = *cache->guard_counters();
  return out;
}

std::uint64_t misses(const std::string& spec, const Sequence& sequence, std::uint64_t capacity,
                     std::uint64_t seed) {
  return run(*policy_of(spec), sequence, setup_of(sequence, capacity, seed)).tally.misses;
}

namespace {

struct Choice {
  std::uint32_t taken, bound;
};

/// Replays a prefix of choices and takes the first of every further one.
class BranchSource final : public RandomSource {
 public:
  BranchSource(std::vector<Choice>& choices, std::size_t& at) : choices_(choices), at_(at) {}
  std::uint32_t below(std::uint32_t bound) override {
    if (at_ == choices_.size()) choices_.push_back({0, bound});
    return choices_[at_++].taken;
  }
  double unit() override { return 0.5; }
  bool ascending() const override { return true; }

 private:
  std::vector<Choice>& choices_;
  std::size_t& at_;
};

}  // namespace

std::map<std::uint64_t, double> distribution(const std::string& spec, const Sequence& sequence,
                                             std::uint64_t capacity) {
  const std::unique_ptr<PagePolicy> policy = policy_of(spec);
  std::map<std::uint64_t, double> out;
  std::vector<Choice> choices;
  do {
    std::size_t at = 0;
    CacheSetup setup = setup_of(sequence, capacity);
    setup.random_override = [&](RandomPurpose, std::uint64_t) {
      return std::make_unique<BranchSource>(choices, at);
    };
    const std::uint64_t cost = run(*policy, sequence, setup).tally.misses;
    double probability = 1;
    for (const Choice& c : choices) probability /= c.bound;
    out[cost] += probability;
    while (!choices.empty() && choices.back().taken + 1 == choices.back().bound) choices.pop_back();
    if (!choices.empty()) ++choices.back().taken;
  } while (!choices.empty());
  return out;
}

double mean(const std::map<std::uint64_t, double>& distribution) {
  double sum = 0;
  for (const auto& [cost, probability] : distribution) sum += static_cast<double>(cost) * probability;
  return sum;
}

std::uint64_t fewest_misses(const Sequence& sequence, std::uint64_t capacity) {
  std::map<std::uint32_t, std::uint64_t> states{{0, 0}};  // set of residents -> fewest misses that lead to it
  for (const Page p : sequence.pages) {
    const std::uint32_t bit = 1u << p;
    std::map<std::uint32_t, std::uint64_t> after;
    const auto offer = [&after](std::uint32_t state, std::uint64_t cost) {
      const auto [it, added] = after.emplace(state, cost);
      if (!added) it->second = std::min(it->second, cost);
    };
    for (const auto& [state, cost] : states) {
      if ((state & bit) != 0) {
        offer(state, cost);
      } else if (static_cast<std::uint64_t>(__builtin_popcount(state)) < capacity) {
        offer(state | bit, cost + 1);
      } else {
        for (Page q = 0; q < 32; ++q) {
          if ((state >> q & 1u) != 0) offer((state & ~(1u << q)) | bit, cost + 1);
        }
      }
    }
    states = std::move(after);
  }
  std::uint64_t best = ~0ull;
  for (const auto& [state, cost] : states) best = std::min(best, cost);
  return best;
}

double guard_bound(std::uint64_t capacity) {
  double sum = 0;
  for (std::uint64_t i = 1; i < capacity; ++i) sum += 1.0 / static_cast<double>(i);
  return 2 * sum + 2;
}

}  // namespace kvsim::test
