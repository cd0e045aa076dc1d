// CAKE's eviction as it runs: spread and shift of the window's attention at the prompt's end, then the current query.
//
// arXiv:2503.12491; antgroup/cakekv. At the prompt's end the last `window` queries score the tokens before them by mean + gamma x
// unbiased variance of their attention, average-pooled, mean over the group; at every step the current query's row does, pooled
// likewise, and one token leaves. The newest `window` tokens always stay. Budgets of the layers are those of the prompt-time
// policy `cake`; a decode-time capacity is the same for all layers, so they are not modelled here. Deviation: the code pools over
// survivors in order of score, here over their order of position.
#include <limits>

#include "policies/recipe.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "cake",
                             .summary = "mean and variance of the window's attention, then the current query's",
                             .reference = "arXiv:2503.12491; antgroup/cakekv",
                             .accounting = "capacity tokens per KV head, the window included; the same for every layer"};

struct Settings {
  std::uint32_t window = 32;
  double gamma = 200;
  std::uint32_t kernel = 5;
};

struct State final : Cloned<State> {
  explicit State(const Settings& settings) : settings_(settings) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    switch (cache.phase()) {
      case StepPhase::prompt_rows:
        add_rows(cache);
        return;
      case StepPhase::prompt_end:
        if (rows_ > 0) score_window(cache);
        score_.resize(cache.slots(), 0.0f);
        return;
      case StepPhase::block:
      case StepPhase::step:
        score_newest(cache);
        return;
    }
  }
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    keep_best(caches[0]->positions(), score_, caches[0]->capacity(), {0, settings_.window}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override { erase_slots(score_, slots); }

 private:
  void add_rows(const CacheView& cache) {
    sum_.resize(cache.query_heads(), std::vector<double>(cache.slots(), 0.0));
    squares_.resize(cache.query_heads(), std::vector<double>(cache.slots(), 0.0));
    for (std::size_t h = 0; h < cache.query_heads(); ++h) {
      const MatrixView<const float> attention = cache.attention(h);
      for (std::size_t r = 0; r < cache.rows(); ++r) {
        for (std::size_t s = 0; s < cache.slots(); ++s) {
          const auto a = static_cast<double>(attention(r, s));
          sum_[h][s] += a;
          squares_[h][s] += a * a;
        }
      }
    }
    rows_ += cache.rows();
  }
  void score_window(const CacheView& cache) {
    const auto n = static_cast<double>(rows_);
    join(cache, [&](std::size_t h, std::size_t s) {
      const double mean = sum_[h][s] / n;
      const double variance = rows_ > 1 ? (squares_[h][s] - n * mean * mean) / (n - 1) : 0.0;
      return mean + settings_.gamma * variance;
    });
  }
  void score_newest(const CacheView& cache) {
    join(cache, [&](std::size_t h, std::size_t s) { return static_cast<double>(cache.attention(h)(cache.rows() - 1, s)); });
  }
  /// Mean over the query heads of the pooled rows of the slots before the window.
  template <typename Value>
  void join(const CacheView& cache, const Value& value) {
    const std::size_t older = cache.slots() - std::min<std::size_t>(settings_.window, cache.slots());
    std::vector<double> mean(older, 0.0), row(older);
    for (std::size_t h = 0; h < cache.query_heads(); ++h) {
      for (std::size_t s = 0; s < older; ++s) row[s] = value(h, s);
      const std::vector<double> smooth = pooled(row, settings_.kernel, true);
      for (std::size_t s = 0; s < older; ++s) mean[s] += smooth[s] / static_cast<double>(cache.query_heads());
    }
    score_.assign(mean.begin(), mean.end());
    score_.resize(cache.slots(), 0.0f);
  }

  Settings settings_;
  std::size_t rows_ = 0;                           // window queries seen
  std::vector<std::vector<double>> sum_, squares_;  // [query heads][T]
  std::vector<float> score_;
};

struct Cake final : StepwisePolicy {
  Settings settings_;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("window", settings_.window, 2, std::numeric_limits<std::uint32_t>::max(), "last prompt queries that score, and newest tokens that always stay");
    f.number("gamma", settings_.gamma, 0.0, 1e6, "weight of the variance at the prompt's end");
    f.number("kernel", settings_.kernel, 1, 4095, "tokens that scores are averaged over, odd");
    schedule_.fields(f);
  }
  void prepare(Resources&) override { check_kernel("decode:cake", settings_.kernel); }
  StepNeed needs() const override { return StepNeed::attention; }
  std::uint32_t prompt_rows() const override { return settings_.window; }
  std::unique_ptr<StepState> start(const StepContext&) const override { return std::make_unique<State>(settings_); }
};

const RegisterStepwisePolicy<Cake> registered{kTraits};

}  // namespace
}  // namespace kvsim
