// CORM: a token that none of the recent queries found important leaves; the cache has the size that comes of it.
//
// Dai et al., "CORM: cache optimization with recent message", arXiv:2404.15949 (from notes on the paper: no code was
// available). A query finds a token important when its attention is at least 1 / t; a token leaves when it was unimportant to
// all of the last `window` queries and is not among the last `recent` tokens. Nothing leaves before so many queries were seen,
// of which the last ones of the prompt are the first. t is the number of tokens so far (threshold=seen, the default) or of those
// that the query could read (threshold=held). unit=kv keeps what any query head of the group finds important.
#include <limits>

#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "corm",
                             .summary = "what no recent query found important leaves; chooses its own size",
                             .reference = "arXiv:2404.15949",
                             .accounting = "chooses its own size and ignores the capacity, unless cap=true: then it is the most that is held",
                             .bounded = false};
constexpr std::string_view kThresholdChoices[] = {"seen", "held"};
constexpr std::string_view kStepUnitChoices[] = {"kv", "query"};

struct Settings {
  std::uint32_t window = 256, recent = 256;
  std::size_t threshold = 0;
  bool cap = false;
};

struct State final : Cloned<State> {
  explicit State(const Settings& settings) : settings_(settings) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    const std::span<const TokenIndex> positions = cache.positions();
    // A token enters as important to its own query; prompt tokens before the window were never asked for.
    for (std::size_t s = important_.size(); s < positions.size(); ++s) important_.push_back(kNever);
    for (std::size_t r = 0; r < cache.rows(); ++r) {
      ++rows_;
      const TokenIndex at = cache.row_position(r);
      const auto seen = static_cast<std::size_t>(std::upper_bound(positions.begin(), positions.end(), at) - positions.begin());
      if (seen > 0 && positions[seen - 1] == at) important_[seen - 1] = rows_;
      const float threshold = 1.0f / static_cast<float>(settings_.threshold == 0 ? at + std::size_t{1} : seen);
      for (std::size_t h = 0; h < cache.query_heads(); ++h) {
        const float* row = cache.attention(h).row(r);
        for (std::size_t s = 0; s < seen; ++s)
          if (row[s] >= threshold) important_[s] = rows_;
      }
    }
  }

  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const CacheView& cache = *caches[0];
    const std::size_t slots = cache.slots(), last = slots - std::min<std::size_t>(settings_.recent, slots);
    if (rows_ >= settings_.window) {
      for (std::size_t s = 0; s < last; ++s)
        if (important_[s] + static_cast<std::int64_t>(settings_.window) <= rows_) out[0].slots.push_back(static_cast<std::uint32_t>(s));
    }
    if (!settings_.cap || slots - out[0].slots.size() <= cache.capacity()) return;
    // What was important longest ago goes first; what has to leave anyway is among it.
    out[0].slots.clear();
    score_.assign(important_.begin(), important_.end());
    keep_best(cache.positions(), score_, cache.capacity(), {0, settings_.recent}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override { erase_slots(important_, slots); }

 private:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int32_t>::min();
  Settings settings_;
  std::int64_t rows_ = 0;                // queries seen
  std::vector<std::int64_t> important_;  // [slots], the number of the last query that found it important
  std::vector<float> score_;
};

struct Corm final : StepwisePolicy {
  Settings settings_;
  std::size_t unit_ = 0;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("window", settings_.window, 1, 1u << 24, "queries of which one must find a token important");
    f.number("recent", settings_.recent, 1, std::numeric_limits<std::uint32_t>::max(), "newest tokens that always stay");
    f.choice("threshold", settings_.threshold, kThresholdChoices, "t of the threshold 1 / t: tokens so far, or tokens held");
    f.flag("cap", settings_.cap, "hold at most the capacity; what was important longest ago leaves first");
    f.choice("unit", unit_, kStepUnitChoices, "what owns a cache: a KV head or a query head");
    schedule_.fields(f);
  }
  StepNeed needs() const override { return StepNeed::attention; }
  std::uint32_t prompt_rows() const override { return settings_.window; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  std::unique_ptr<StepState> start(const StepContext&) const override { return std::make_unique<State>(settings_); }
};

const RegisterStepwisePolicy<Corm> registered{kTraits};

}  // namespace
}  // namespace kvsim
