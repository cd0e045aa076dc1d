// What a decode-time policy is: it watches one cache (or a layer's caches) step by step and says what leaves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/view.h"
#include "policies/policy.h"

namespace kvsim {

/// What a decode-time policy reads, as bits. Asking a view for anything undeclared is an InternalError.
enum class StepNeed : std::uint32_t {
  none = 0,
  keys = 1,            // CacheView::key
  values = 2,          // CacheView::value
  attention = 4,       // CacheView::attention of decode steps and of prefill blocks; prompt_rows() for a dense prefill
  queries = 8,         // CacheView::query and logits
  prompt_sum = 16,     // CacheView::attention_sum at the end of a dense prefill too
  token_text = 32,     // StepInputs::token_text, token_id
  final_hidden = 64,   // StepInputs::final_hidden
  hidden = 128,        // StepInputs::hidden
  retention = 256,     // StepInputs::retention
};
constexpr StepNeed operator|(StepNeed a, StepNeed b) { return StepNeed(std::uint32_t(a) | std::uint32_t(b)); }
constexpr bool has(StepNeed set, StepNeed one) { return (std::uint32_t(set) & std::uint32_t(one)) != 0; }

/// What happens to a token that a policy lets go: it leaves for good, or it is hidden and may be shown again.
enum class Removal : std::uint8_t { drop, mask };

/// When a policy may evict (section C13 of the taxonomy in README.md). The engine asks it only when due, and policies of
/// bounded size only while they hold more than their capacity.
struct Schedule {
  std::uint32_t block = 0;   // > 0: the prompt is read in blocks of so many tokens, with an eviction after each; 0: at once
  bool prompt_end = true;    // evict when the prompt has been read
  std::uint32_t every = 1;   // evict after every so many decode steps
  std::uint32_t buffer = 0;  // > 0: only when capacity + buffer tokens are held (hysteresis)

  /// Declares `block`, `prompt_end`, `every`, `buffer`: called at the end of a policy's fields().
  void fields(FieldVisitor& visitor);
};

/// Static facts of a decode-time policy.
struct StepTraits {
  std::string_view name;
  std::string_view summary;     // one line
  std::string_view reference;   // paper and, where there is one, the code whose defaults are used
  std::string_view accounting;  // how the capacity is counted and what is protected
  bool bounded = true;          // holds at most its capacity after an eviction; false: chooses its own size by a threshold
  bool stack = false;           // held(c) is a subset of held(c + 1) at every step: all capacities share one pass
};

/// Inputs beside keys, values and attention; empty unless declared. Token positions run over prompt and decode, T + S.
struct StepInputs {
  std::span<const std::string> token_text;            // [T + S]
  std::span<const std::int32_t> token_id;             // [T + S], empty where the trace has none
  MatrixView<const float> final_hidden;               // [T + S, hidden]
  MatrixView<const float> hidden;                     // [T + S, hidden] of the layer
  std::vector<MatrixView<const float>> retention;     // [recorded layers] of [kv heads, T + S]: log beta
};

/// What a state is for.
struct StepContext {
  const LayerGeometry& geometry;
  StepInputs inputs;
  Rope rope;
  double logit_softcap = 0;  // 0 = none
  std::size_t cache = 0;     // the cache's number in the layer; of a joint state: 0
  std::size_t caches = 1;    // how many the state looks after: 1, or all of the layer
  std::uint32_t cache_kv_head = 0;     // KV head of `cache`
  std::uint32_t cache_query_head = 0;  // first of its query heads, counted in the layer
};

/// What happened last.
enum class StepPhase : std::uint8_t {
  prompt_rows,  // dense prefill: some of the last prompt_rows() prompt queries, in ascending order; nothing is evicted
  block,        // a block of the prompt was read
  prompt_end,   // the whole prompt was read; no new queries (rows() == 0)
  step,         // a decode step was computed
};

/// One cache after an event. Slots are its tokens in ascending position; the newest tokens are the last slots. With
/// Removal::mask hidden tokens have slots too (visible() tells, their attention is 0). Spans hold until the event ends.
class CacheView {
 public:
  virtual ~CacheView() = default;
  virtual StepPhase phase() const = 0;
  virtual std::size_t step() const = 0;           // decode step t (StepPhase::step), tokens stand at T + t
  virtual std::uint32_t capacity() const = 0;     // of this cache, in tokens
  virtual std::uint32_t kv_head() const = 0;
  virtual std::uint32_t query_head() const = 0;   // first query head that reads the cache, counted in the layer
  virtual std::size_t query_heads() const = 0;    // how many read it; h below is 0 .. query_heads()-1
  virtual std::span<const TokenIndex> positions() const = 0;
  std::size_t slots() const { return positions().size(); }
  virtual bool visible(std::size_t slot) const = 0;

  virtual std::size_t rows() const = 0;                          // queries of this event
  virtual TokenIndex row_position(std::size_t row) const = 0;    // ascending
  /// Softmax of the event's queries over what the cache shows (and no later token than the query's own), [rows, slots].
  virtual MatrixView<const float> attention(std::size_t h) const = 0;
  /// Sum over the event's queries of their attention, [slots]. At the end of a dense prefill: over all prompt queries
  /// (StepNeed::prompt_sum); there, where nothing new arrived, zeros otherwise.
  virtual std::span<const float> attention_sum(std::size_t h) const = 0;
  virtual std::span<const float> query(std::size_t h, std::size_t row) const = 0;  // [d]
  /// Scaled (and soft-capped) logits of one of the event's queries, [slots]; -inf where the query cannot see.
  virtual std::span<const float> logits(std::size_t h, std::size_t row) const = 0;
  virtual std::span<const float> key(std::size_t slot) const = 0;    // [d]
  virtual std::span<const float> value(std::size_t slot) const = 0;  // [dv], with everything merged into it
};

/// What leaves one cache.
struct Eviction {
  std::vector<std::uint32_t> slots;  // Removal::drop: these leave. Removal::mask: all that the next step cannot read
  bool clamped = false;              // the capacity is smaller than what is protected
  std::int64_t near_ties = 0;        // tokens that left with a score as good as that of the last token kept
  /// Values that change (merging): added to the stored value of a slot that stays.
  struct Change {
    std::uint32_t slot = 0;
    std::vector<float> value;  // [dv], the new stored value
  };
  std::vector<Change> changes;
};

/// What a policy remembers of one cache, or of all caches of a layer (joint policies). Made before the prompt is read.
class StepState {
 public:
  virtual ~StepState() = default;
  /// The dense prefill is watched once for all capacities; then the state is copied. See Cloned.
  virtual std::unique_ptr<StepState> clone() const = 0;
  /// After every event. Per-slot arrays grow to slots() here: new tokens are the last slots.
  virtual void observe(std::span<const CacheView* const> caches) = 0;
  /// When due: fills out[i] for caches[i].
  virtual void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) = 0;
  /// Slots (ascending) that left caches[cache]: per-slot arrays shrink. With Removal::mask only where a sliding window passed.
  virtual void removed(std::size_t cache, std::span<const std::uint32_t> slots) = 0;
};

/// clone() by copy construction: `struct State final : Cloned<State> { ... }`.
template <typename Derived>
class Cloned : public StepState {
 public:
  std::unique_ptr<StepState> clone() const override { return std::make_unique<Derived>(static_cast<const Derived&>(*this)); }
};

/// A decode-time policy with bound parameters. Immutable while it runs: used from several threads.
class StepwisePolicy {
 public:
  virtual ~StepwisePolicy() = default;
  virtual const StepTraits& traits() const = 0;
  /// Declares the parameters; ends with schedule_.fields(visitor).
  virtual void fields(FieldVisitor& visitor) = 0;
  virtual void prepare(Resources&) {}
  /// Before a run, for every layer: throws UserError with the reason when the policy cannot work on such a layer.
  virtual void check(const LayerGeometry&) const {}
  virtual StepNeed needs() const = 0;
  /// Queries at the end of a dense prefill whose attention or vectors it wants to observe.
  virtual std::uint32_t prompt_rows() const { return 0; }
  virtual Unit unit() const { return Unit::kv; }
  /// One state for all caches of the layer (always so with Unit::layer, where all caches must evict the same slots).
  virtual bool joint() const { return unit() == Unit::layer; }
  virtual Removal removal() const { return Removal::drop; }
  /// Held tokens take the positions 0, 1, 2, ... in the order of their slots when a query meets them.
  virtual bool shifts_positions() const { return false; }
  /// Whether a cache holds at most its capacity after an eviction. Policies of free size are asked whenever the schedule says
  /// so; bounded ones only while they hold more than their capacity (and at least capacity + buffer).
  virtual bool bounded() const { return traits().bounded; }
  /// Whether an eviction may follow decode step `step`.
  virtual bool due(const LayerGeometry&, std::size_t step) const { return (step + 1) % schedule_.every == 0; }
  virtual std::unique_ptr<StepState> start(const StepContext& context) const = 0;
  const Schedule& schedule() const { return schedule_; }

 protected:
  Schedule schedule_;
};

}  // namespace kvsim
