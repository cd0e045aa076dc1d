// TRIM-KV: a learned rate of forgetting per token, decided when it was written.
//
// arXiv:2512.03324; ngocbh/trimkv (inference). A token's score is (n_seen + 1 - position) x log beta, n_seen counting the current
// token: no query is looked at. When capacity + buffer tokens are held, the best `capacity` stay. pool=layer ranks all heads of a
// layer together (more than heads x (capacity + buffer) held), pool=model all heads of all recorded layers (that many or more);
// a head's own size is then free and only the total holds. floor: that share of the capacity every head has beside what it gets
// of the rest, as in the authors' code. Log beta comes from the recording (kvsim-record --retention-gates, or kvsim trace cut
// --retention-gates from recorded hidden states).
#include <algorithm>
#include <limits>

#include "kernels/error.h"
#include "kernels/order.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "trim_kv",
                             .summary = "learned retention that decays with age; looks at no query",
                             .reference = "arXiv:2512.03324; ngocbh/trimkv",
                             .accounting = "capacity to capacity + buffer tokens per KV head; with pool=layer or model on average"};
constexpr std::string_view kPoolChoices[] = {"head", "layer", "model"};

struct Settings {
  std::size_t pool = 0;
  double floor = 0;
  std::uint32_t recent = 0;
  std::uint32_t buffer = 0;
};

double decayed(float log_beta, TokenIndex position, std::size_t seen) {
  return static_cast<double>(seen + 1 - position) * static_cast<double>(log_beta);
}

/// One cache by itself.
struct HeadState final : Cloned<HeadState> {
  HeadState(const Settings& settings, const StepContext& context)
      : settings_(settings), retention_(context.inputs.retention), layer_(layer_place(context)) {}
  static std::size_t layer_place(const StepContext& context) {
    const auto& recorded = context.geometry.recorded_layers;
    return static_cast<std::size_t>(std::find(recorded.begin(), recorded.end(), context.geometry.layer) - recorded.begin());
  }

  void observe(std::span<const CacheView* const>) override {}
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const std::span<const TokenIndex> positions = caches[0]->positions();
    const std::span<const float> log_beta = retention_[layer_].row_span(caches[0]->kv_head());
    const std::size_t seen = positions.back() + std::size_t{1};
    std::vector<float> score(positions.size());
    for (std::size_t s = 0; s < score.size(); ++s) score[s] = static_cast<float>(decayed(log_beta[positions[s]], positions[s], seen));
    keep_best(positions, score, caches[0]->capacity(), {0, settings_.recent}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t>) override {}

 private:
  Settings settings_;
  std::vector<MatrixView<const float>> retention_;
  std::size_t layer_;
};

/// All heads that share a budget. Nothing but retention and age decides, so every layer works out the same answer for the
/// whole model by itself.
struct PooledState final : Cloned<PooledState> {
  PooledState(const Settings& settings, const StepContext& context) : settings_(settings), retention_(context.inputs.retention) {
    const std::size_t own = HeadState::layer_place(context);
    const bool model = settings.pool == 2;
    for (std::size_t layer = model ? 0 : own; layer < (model ? retention_.size() : own + 1); ++layer) {
      if (layer == own) first_ = held_.size();
      for (std::size_t head = 0; head < context.geometry.kv_heads; ++head) {
        rates_.push_back(retention_[layer].row_span(head));
        held_.emplace_back();
      }
    }
  }

  void observe(std::span<const CacheView* const>) override {}
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const std::size_t seen = caches[0]->positions().back() + std::size_t{1};
    for (std::vector<TokenIndex>& held : held_)
      for (std::size_t p = seen_; p < seen; ++p) held.push_back(static_cast<TokenIndex>(p));
    seen_ = seen;
    std::uint64_t total = 0;
    for (const std::vector<TokenIndex>& held : held_) total += held.size();
    const std::uint64_t limit = held_.size() * (std::uint64_t{caches[0]->capacity()} + settings_.buffer);
    if (settings_.pool == 1 ? total > limit : total >= limit) cut(caches[0]->capacity());
    for (std::size_t i = 0; i < caches.size(); ++i) {
      const std::vector<TokenIndex>& stays = held_[first_ + i];
      const std::span<const TokenIndex> positions = caches[i]->positions();
      std::size_t next = 0;
      for (std::size_t s = 0; s < positions.size(); ++s) {
        while (next < stays.size() && stays[next] < positions[s]) ++next;  // a sliding window passed it
        if (next == stays.size() || stays[next] != positions[s]) out[i].slots.push_back(static_cast<std::uint32_t>(s));
      }
    }
  }
  void removed(std::size_t, std::span<const std::uint32_t>) override {}

 private:
  struct Entry {
    bool newest;  // always kept
    float score;
    std::uint32_t head;
    TokenIndex position;
    bool operator<(const Entry& other) const {  // best first; ties to the lower head, then to the earlier position
      if (newest != other.newest) return newest;
      if (score != other.score) return score > other.score;
      return head != other.head ? head < other.head : position < other.position;
    }
  };
  std::vector<Entry> entries(std::size_t head) const {
    std::vector<Entry> out;
    for (const TokenIndex p : held_[head])
      out.push_back({p + std::size_t{settings_.recent} >= seen_, static_cast<float>(decayed(rates_[head][p], p, seen_)),
                     static_cast<std::uint32_t>(head), p});
    return out;
  }

  /// Every head keeps as many of its best tokens as it has among the best of the shared part of the total, and its floor.
  void cut(std::uint32_t capacity) {
    const auto floor = static_cast<std::size_t>(settings_.floor * capacity);
    const auto total = static_cast<double>(std::uint64_t{capacity} * held_.size());
    const auto shared = static_cast<std::size_t>(total - settings_.floor * total);
    std::vector<std::vector<Entry>> own;
    std::vector<Entry> all;
    for (std::size_t head = 0; head < held_.size(); ++head) {
      own.push_back(entries(head));
      std::sort(own.back().begin(), own.back().end());
      all.insert(all.end(), own.back().begin(), own.back().end());
    }
    std::sort(all.begin(), all.end());
    std::vector<std::size_t> room(held_.size(), floor);
    for (std::size_t i = 0; i < std::min(shared, all.size()); ++i) ++room[all[i].head];
    for (std::size_t head = 0; head < held_.size(); ++head) {
      held_[head].clear();
      for (std::size_t i = 0; i < std::min(room[head], own[head].size()); ++i) held_[head].push_back(own[head][i].position);
      std::sort(held_[head].begin(), held_[head].end());
    }
  }

  Settings settings_;
  std::vector<MatrixView<const float>> retention_;
  std::vector<std::span<const float>> rates_;    // [heads that share] log beta
  std::vector<std::vector<TokenIndex>> held_;    // likewise, ascending
  std::size_t first_ = 0;                        // of the layer's own heads among them
  std::size_t seen_ = 0;
};

struct TrimKv final : StepwisePolicy {
  Settings settings_;

  TrimKv() {
    constexpr std::uint32_t kAuthorsBuffer = 128;
    schedule_.buffer = kAuthorsBuffer;
  }
  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.choice("pool", settings_.pool, kPoolChoices, "what shares a budget: nothing, the heads of a layer, or all heads of all recorded layers");
    f.number("floor", settings_.floor, 0.0, 1.0, "with pool: share of the capacity that every head keeps for itself");
    f.number("recent", settings_.recent, 0, std::numeric_limits<std::uint32_t>::max(), "newest tokens that always stay");
    schedule_.fields(f);
    settings_.buffer = schedule_.buffer;
  }
  void prepare(Resources&) override {
    if (settings_.pool == 0 && settings_.floor > 0) throw UserError("decode:trim_kv: floor={} needs pool=layer or pool=model", settings_.floor);
  }
  StepNeed needs() const override { return StepNeed::retention; }
  bool bounded() const override { return settings_.pool == 0; }
  bool joint() const override { return settings_.pool != 0; }
  std::unique_ptr<StepState> start(const StepContext& context) const override {
    if (settings_.pool == 0) return std::make_unique<HeadState>(settings_, context);
    return std::make_unique<PooledState>(settings_, context);
  }
};

const RegisterStepwisePolicy<TrimKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
