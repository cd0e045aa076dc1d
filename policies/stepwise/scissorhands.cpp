// Scissorhands: a token that was unimportant again and again will stay so; a full cache loses half of its tokens at once.
//
// Liu et al., "Scissorhands", arXiv:2305.17118. Over the last `history` queries it counts how often a token's attention was
// below 1 / t, t = tokens that the query could read; when the cache is over its capacity, the tokens with the most such counts
// leave until floor(keep x capacity) remain. The recent tokens always stay. Counts are per query head; unit=kv adds the
// group's up. A history longer than the prompt is the whole prompt.
#include <bit>
#include <limits>

#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "scissorhands",
                             .summary = "drops what was of low attention most often, half of the cache at once",
                             .reference = "arXiv:2305.17118",
                             .accounting = "the recent tokens count towards the capacity; after an eviction floor(keep x capacity) tokens are held"};
constexpr std::string_view kStepUnitChoices[] = {"kv", "query"};

struct State final : Cloned<State> {
  State(std::uint32_t history, double keep, std::uint32_t recent)
      : history_(history), words_((history + 63) / 64), keep_(keep), recent_(recent) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    const std::size_t slots = cache.slots(), width = cache.query_heads() * words_;
    low_.resize(slots * width, 0);
    counts_.resize(slots, 0);
    for (std::size_t r = 0; r < cache.rows(); ++r, ++rows_) {
      for (std::size_t h = 0; h < cache.query_heads(); ++h) count_row(cache, h, r, width);
    }
  }

  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const CacheView& cache = *caches[0];
    score_.resize(counts_.size());
    for (std::size_t s = 0; s < counts_.size(); ++s) score_[s] = -static_cast<float>(counts_[s]);
    const auto kept = static_cast<std::uint32_t>(keep_ * cache.capacity());
    keep_best(cache.positions(), score_, std::max(kept, 1u), {0, recent_}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override {
    const std::size_t width = counts_.empty() ? 0 : low_.size() / counts_.size();
    erase_slots(low_, slots, width);
    erase_slots(counts_, slots);
  }

 private:
  void count_row(const CacheView& cache, std::size_t h, std::size_t r, std::size_t width) {
    const MatrixView<const float> attention = cache.attention(h);
    const float* row = attention.row(r);
    const std::span<const TokenIndex> positions = cache.positions();
    const auto seen = static_cast<std::size_t>(std::upper_bound(positions.begin(), positions.end(), cache.row_position(r)) - positions.begin());
    const float threshold = 1.0f / static_cast<float>(seen);
    const std::size_t place = rows_ % history_;
    const std::size_t word = h * words_ + place / 64;
    const std::uint64_t bit = std::uint64_t{1} << place % 64;
    for (std::size_t s = 0; s < positions.size(); ++s) {
      std::uint64_t& bits = low_[s * width + word];
      const std::uint64_t before = bits & bit, now = s < seen && row[s] < threshold ? bit : 0;
      bits = (bits & ~bit) | now;
      counts_[s] = counts_[s] + (now != 0 ? 1u : 0u) - (before != 0 ? 1u : 0u);
    }
  }

  std::size_t history_, words_;
  double keep_;
  std::uint32_t recent_;
  std::size_t rows_ = 0;             // queries seen so far
  std::vector<std::uint64_t> low_;   // [slots][query heads][words]: in which of the last `history` queries it was low
  std::vector<std::uint32_t> counts_;  // [slots], bits set
  std::vector<float> score_;
};

struct Scissorhands final : StepwisePolicy {
  std::uint32_t history_ = 400;
  double keep_ = 0.5;
  std::uint32_t recent_ = 10;
  std::size_t unit_ = 0;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("history", history_, 1, 65536, "queries over which low attention is counted");
    f.number("keep", keep_, 0.0, 1.0, "share of the capacity that an eviction leaves");
    f.number("recent", recent_, 0, std::numeric_limits<std::uint32_t>::max(), "newest tokens that always stay");
    f.choice("unit", unit_, kStepUnitChoices, "what owns a cache: a KV head or a query head");
    schedule_.fields(f);
  }
  StepNeed needs() const override { return StepNeed::attention; }
  std::uint32_t prompt_rows() const override { return history_; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  std::unique_ptr<StepState> start(const StepContext&) const override { return std::make_unique<State>(history_, keep_, recent_); }
};

const RegisterStepwisePolicy<Scissorhands> registered{kTraits};

}  // namespace
}  // namespace kvsim
