// CAOTE as it runs: the change of the output when one token leaves, on the weights of a base score.
//
// arXiv:2504.14051: alpha / (1 - alpha) |v - X|, X the mean of the held values weighted by alpha, which are the base score divided
// by its sum over what is held; fast=true takes the plain mean of the values for X. base=tova: the current query's attention;
// base=h2o: attention gathered while held. Costs of a KV head's query heads are averaged (the paper does not say). Prefill in
// blocks of 128, greedy: the costs of single tokens are not computed anew while several leave.
#include <cmath>
#include <limits>

#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "caote",
                             .summary = "change of the output if the token alone left, on a base score's weights",
                             .reference = "arXiv:2504.14051 (blocks of 128)",
                             .accounting = "the recent tokens, floor(recent x capacity), count towards the capacity; by default there are none"};
constexpr std::string_view kBaseChoices[] = {"tova", "h2o"};

struct Settings {
  bool gathered = false, fast = false;
  double recent = 0;
};

struct State final : Cloned<State> {
  State(const Settings& settings, std::size_t value_dim) : settings_(settings), middle_(value_dim) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    base_.resize(cache.query_heads());
    for (std::size_t h = 0; h < base_.size(); ++h) {
      base_[h].resize(cache.slots(), 0.0);
      if (settings_.gathered) {
        const std::span<const float> sum = cache.attention_sum(h);
        for (std::size_t s = 0; s < sum.size(); ++s) base_[h][s] += static_cast<double>(sum[s]);
      } else if (cache.rows() > 0) {
        const float* const row = cache.attention(h).row(cache.rows() - 1);
        base_[h].assign(row, row + cache.slots());
      }
    }
  }
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const CacheView& cache = *caches[0];
    std::vector<double> cost(cache.slots(), 0.0);
    for (const std::vector<double>& base : base_) add_costs(cache, base, cost);
    std::vector<float> score(cost.size());
    for (std::size_t s = 0; s < cost.size(); ++s) score[s] = static_cast<float>(cost[s] / static_cast<double>(base_.size()));
    keep_best(cache.positions(), score, cache.capacity(), {0, static_cast<std::uint32_t>(settings_.recent * cache.capacity())}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override {
    for (std::vector<double>& base : base_) erase_slots(base, slots);
  }

 private:
  void add_costs(const CacheView& cache, const std::vector<double>& base, std::vector<double>& cost) {
    double total = 0;
    for (const double x : base) total += x;
    const auto alpha = [&](std::size_t s) { return total > 0 ? base[s] / total : 0.0; };
    std::fill(middle_.begin(), middle_.end(), 0.0);
    const double share = 1.0 / static_cast<double>(base.size());
    for (std::size_t s = 0; s < base.size(); ++s) {
      const std::span<const float> value = cache.value(s);
      const double weight = settings_.fast ? share : alpha(s);
      for (std::size_t c = 0; c < middle_.size(); ++c) middle_[c] += weight * static_cast<double>(value[c]);
    }
    for (std::size_t s = 0; s < base.size(); ++s) {
      const std::span<const float> value = cache.value(s);
      double distance = 0;
      for (std::size_t c = 0; c < middle_.size(); ++c) {
        const double away = static_cast<double>(value[c]) - middle_[c];
        distance += away * away;
      }
      // A token with all the weight cannot leave, wherever its value lies.
      const double a = alpha(s);
      cost[s] += a >= 1.0 ? std::numeric_limits<float>::max() : a / (1 - a) * std::sqrt(distance);
    }
  }

  Settings settings_;
  std::vector<std::vector<double>> base_;  // [query heads][slots]
  std::vector<double> middle_;
};

struct Caote final : StepwisePolicy {
  Settings settings_;
  std::size_t base_ = 0;

  Caote() {
    constexpr std::uint32_t kPaperBlock = 128;
    schedule_.block = kPaperBlock;
  }
  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.choice("base", base_, kBaseChoices, "whose weights: attention of the current query, or gathered while held");
    f.flag("fast", settings_.fast, "the plain mean of the values stands for the output");
    f.number("recent", settings_.recent, 0.0, 1.0, "share of the capacity that holds the newest tokens");
    schedule_.fields(f);
    settings_.gathered = base_ == 1;
  }
  StepNeed needs() const override {
    const StepNeed always = StepNeed::attention | StepNeed::values;
    return base_ == 1 ? always | StepNeed::prompt_sum : always;
  }
  std::uint32_t prompt_rows() const override { return base_ == 0 ? 1 : 0; }
  std::unique_ptr<StepState> start(const StepContext& context) const override {
    return std::make_unique<State>(settings_, context.geometry.value_dim);
  }
};

const RegisterStepwisePolicy<Caote> registered{kTraits};

}  // namespace
}  // namespace kvsim
