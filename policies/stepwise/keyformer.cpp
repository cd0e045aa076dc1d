// Keyformer: gathered softmax of logits with Gumbel noise, at a temperature that rises with every step.
//
// Adnan et al., "Keyformer: KV cache reduction through key tokens selection", arXiv:2403.09054. Every query adds
// softmax((s + g) / tau) over what it can read, g fresh Gumbel noise, tau = temperature + rise x step (0 for the prompt, t + 1
// for decode step t). The recent tokens are floor(recent x capacity), 30 % in the authors' code. That code's masks freeze the
// key tokens at the end of the prompt and slide only the recent ones: freeze=true; freeze=false lets them compete as the paper
// says. The softmax of the noisy logits is taken from the attention a itself: exp((s + g) / tau) ~ (a / E)^(1 / tau), E
// exponential, which has the same weights.
#include <cmath>
#include <limits>

#include "kernels/philox.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "keyformer",
                             .summary = "gathered attention with Gumbel noise, and recent tokens",
                             .reference = "arXiv:2403.09054; the authors' code",
                             .accounting = "the recent tokens, floor(recent x capacity), count towards the capacity"};
constexpr std::string_view kStepUnitChoices[] = {"kv", "query"};

struct Settings {
  double recent = 0.3, temperature = 1.0, rise = 0.01;
  bool freeze = false;
  std::uint32_t seed = 0;
};

struct State final : Cloned<State> {
  State(const Settings& settings, const StepContext& context)
      : settings_(settings), digest_(context.geometry.trace_digest), layer_(context.geometry.layer) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    gathered_.resize(cache.slots(), 0.0);
    const double step = cache.phase() == StepPhase::step ? static_cast<double>(cache.step() + 1) : 0.0;
    const double power = 1.0 / (settings_.temperature + settings_.rise * step);
    for (std::size_t h = 0; h < cache.query_heads(); ++h) {
      const Philox random(settings_.seed, stream_of(digest_, layer_, cache.query_head() + h));
      for (std::size_t r = 0; r < cache.rows(); ++r) add_row(cache, h, r, random, power);
    }
    if (cache.phase() == StepPhase::prompt_end) prompt_slots_ = cache.slots();
  }

  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const CacheView& cache = *caches[0];
    score_.assign(gathered_.begin(), gathered_.end());
    const auto recent = static_cast<std::uint32_t>(settings_.recent * cache.capacity());
    if (settings_.freeze && cache.phase() == StepPhase::step) {
      // The oldest capacity - recent tokens of the prompt are its keys and stay; of the others the oldest leaves for good,
      // also where it is a prompt token that was kept for being recent.
      const std::size_t keys = std::min<std::size_t>(prompt_slots_, cache.capacity() - recent);
      for (std::size_t s = 0; s < score_.size(); ++s) score_[s] = s < keys ? 1.0f : -static_cast<float>(score_.size() - s);
    }
    keep_best(cache.positions(), score_, cache.capacity(), {0, recent}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override {
    erase_slots(gathered_, slots);
    prompt_slots_ -= static_cast<std::size_t>(std::lower_bound(slots.begin(), slots.end(), prompt_slots_) - slots.begin());
  }

 private:
  /// Noise of (query at, token position): word position % 4 of block (at, position / 4), so it depends on nothing else.
  void add_row(const CacheView& cache, std::size_t h, std::size_t r, const Philox& random, double power) {
    const std::span<const TokenIndex> positions = cache.positions();
    const float* row = cache.attention(h).row(r);
    const std::uint64_t at = std::uint64_t{cache.row_position(r)} << 32;
    noisy_.resize(positions.size());
    Philox::Block block{};
    std::uint64_t have = ~std::uint64_t{0};
    double sum = 0;
    for (std::size_t s = 0; s < positions.size(); ++s) {
      noisy_[s] = 0;
      if (row[s] <= 0.0f) continue;
      if (positions[s] / 4 != have) {
        have = positions[s] / 4;
        block = random.block(at | have);
      }
      const double uniform = (static_cast<double>(block[positions[s] % 4]) + 0.5) * 0x1.0p-32;
      const double weight = static_cast<double>(row[s]) / -std::log(uniform);
      noisy_[s] = power == 1.0 ? weight : std::pow(weight, power);
      sum += noisy_[s];
    }
    for (std::size_t s = 0; s < positions.size(); ++s) gathered_[s] += noisy_[s] / sum;
  }

  Settings settings_;
  std::uint64_t digest_;
  std::uint32_t layer_;
  std::size_t prompt_slots_ = 0;  // slots that came with the prompt
  std::vector<double> gathered_, noisy_;  // [slots]
  std::vector<float> score_;
};

struct Keyformer final : StepwisePolicy {
  Settings settings_;
  std::size_t unit_ = 0;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("recent", settings_.recent, 0.0, 1.0, "share of the capacity that holds the newest tokens");
    f.number("temperature", settings_.temperature, 1e-3, 1e3, "tau of the prompt's queries");
    f.number("rise", settings_.rise, 0.0, 1e3, "what tau grows by at every step");
    f.flag("freeze", settings_.freeze, "key tokens are chosen at the end of the prompt for good, as in the authors' code");
    f.number("seed", settings_.seed, 0, std::numeric_limits<std::uint32_t>::max(), "of the noise, with trace, layer and query head");
    f.choice("unit", unit_, kStepUnitChoices, "what owns a cache: a KV head or a query head");
    schedule_.fields(f);
  }
  StepNeed needs() const override { return StepNeed::attention; }
  std::uint32_t prompt_rows() const override { return std::numeric_limits<std::uint32_t>::max(); }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  std::unique_ptr<StepState> start(const StepContext& context) const override { return std::make_unique<State>(settings_, context); }
};

const RegisterStepwisePolicy<Keyformer> registered{kTraits};

}  // namespace
}  // namespace kvsim
