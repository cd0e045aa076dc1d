// What a policy is: it scores prompt tokens, and may shift budget between heads and layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/view.h"
#include "policies/spec.h"

namespace kvsim {

/// What a policy reads, as bits. A policy sees only what it declares; the rest is NaN in the contract tests.
enum class Need : std::uint32_t {
  none = 0,
  keys = 1,              // HeadFeatures::keys
  values = 2,            // HeadFeatures::values
  window_queries = 4,    // HeadFeatures::window_mean; Policy::window() says how many queries
  prompt_attention = 8,  // HeadFeatures::attention_sum, attention_mean_over_visible
  query_stats = 16,      // HeadFeatures::query_stats
  decode_queries = 32,   // HeadFeatures::decode_mean: the future (oracles)
};
constexpr Need operator|(Need a, Need b) { return Need(std::uint32_t(a) | std::uint32_t(b)); }
constexpr bool has(Need set, Need one) { return (std::uint32_t(set) & std::uint32_t(one)) != 0; }

/// How far a policy moves budget: within nothing, over the heads of a layer, over the layers of the model.
enum class Scope : std::uint8_t { head, layer, model };

/// Static facts of a policy.
struct PolicyTraits {
  std::string_view name;
  std::string_view summary;     // one line
  std::string_view reference;   // paper and, where there is one, the code whose defaults are used
  std::string_view accounting;  // how the budget is counted and what is protected
  bool nested = true;           // kept(b) is a subset of kept(b + 1): every budget in one pass
  bool oracle = false;          // looks at the future
  bool step_order = false;      // every decode step and query head has its own order (oracle_topk)
  bool windowed = false;  // scores by the attention of an observation window (window_consistency is defined)
};

/// Shapes of the layer that is being replayed.
struct LayerGeometry {
  std::uint32_t layer = 0;                     // the model's own layer index
  std::uint32_t model_layers = 1;              // layers of the model
  std::vector<std::uint32_t> recorded_layers;  // ascending; those the trace holds
  std::size_t prompt = 0;                      // T
  std::size_t decode = 0;                      // S
  std::size_t kv_heads = 1;
  std::size_t group = 1;  // query heads per KV head
  std::size_t key_dim = 0;
  std::size_t value_dim = 0;
  double softmax_scale = 1.0;  // of the recorded model (kvpress' formulas use 1/sqrt(key_dim) instead)
  std::uint32_t sliding_window = 0;
  std::uint64_t trace_digest = 0;  // keys random choices, with layer and head
};

/// Rotary embedding of the layer, to re-create queries at other positions.
struct Rope {
  enum class Layout : std::uint8_t { none, half, interleaved };
  Layout layout = Layout::none;
  std::span<const float> inverse_frequency;  // [rotary_dim / 2]
  double attention_scaling = 1.0;            // factor on cos and sin
};

/// Mean [d] and covariance [d, d] of one query head's prompt queries before the rotary embedding.
struct QueryStats {
  std::span<const float> mean;
  MatrixView<const float> covariance;
  std::uint32_t sinks = 0;  // how many first tokens were left out
};

/// What can be known of one KV head at the end of the prompt. Lazy: what nobody asks for is never computed.
/// Query heads are counted inside the group: 0 .. group-1.
class HeadFeatures {
 public:
  virtual ~HeadFeatures() = default;
  virtual const LayerGeometry& geometry() const = 0;
  virtual std::uint32_t kv_head() const = 0;
  virtual MatrixView<const float> keys() const = 0;    // [T, d], as attention reads them
  virtual MatrixView<const float> values() const = 0;  // [T, dv]
  virtual Rope rope() const = 0;
  /// Mean over the last `window` prompt queries of their causal attention, [T]; softmax over all visible
  /// keys.
  virtual std::span<const float> window_mean(std::uint32_t window, std::size_t query_head) const = 0;
  /// Sum over all prompt queries of their causal attention, [T].
  virtual std::span<const float> attention_sum(std::size_t query_head) const = 0;
  /// The same divided by the number of queries that see the key, T - t, [T].
  virtual std::span<const float> attention_mean_over_visible(std::size_t query_head) const = 0;
  virtual QueryStats query_stats(std::size_t query_head) const = 0;
  /// Mean over the decode steps of the true decode queries' attention over the prompt, [T] (denominator: all
  /// visible).
  virtual std::span<const float> decode_mean(std::size_t query_head) const = 0;
};

/// What owns one kept set (metrics.md, "Selection unit").
enum class Unit : std::uint8_t { kv, query, layer };

/// Scores of one selection unit, larger = keep.
struct UnitScores {
  std::vector<float> score;  // [T]; NaN is an error of the policy
  std::vector<TokenIndex>
      protected_tokens;  // in the order in which they are kept: sinks, then newest to oldest
};

/// All units of a layer: with Unit::kv and Unit::layer one per KV head (equal ones for layer), with
/// Unit::query one per query head, group after group.
struct LayerScores {
  Unit unit = Unit::kv;
  std::vector<UnitScores> units;
};

/// LayerScores turned into orders: protected tokens first, then by score, ties to the earlier position.
struct LayerRanking {
  LayerScores scores;
  std::vector<std::vector<TokenIndex>> order;  // [units][T]
};

/// A user's array, e.g. scores made in Python: row-major, float.
struct ExternalArray {
  std::vector<std::size_t> shape;
  std::vector<float> data;
};
/// How policies reach files without knowing their format. Implemented by the program.
class Resources {
 public:
  virtual ~Resources() = default;
  /// Throws UserError with file and dataset when it cannot be read.
  virtual const ExternalArray& array(const std::string& file, const std::string& dataset) = 0;
};

/// A prompt-time policy with bound parameters. Stateless while it scores: called from several threads.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual const PolicyTraits& traits() const = 0;
  /// Declares the parameters: the one description that the spec parser, help and canonical printing visit.
  virtual void fields(FieldVisitor& visitor) = 0;
  /// After binding, before use: checks combinations of parameters (UserError) and loads files.
  virtual void prepare(Resources&) {}

  /// Before a run, for every layer: throws UserError with the reason when the policy cannot work on such a layer.
  virtual void check(const LayerGeometry&) const {}

  virtual Need needs() const = 0;
  virtual std::uint32_t window() const { return 0; }  // prompt queries that window_mean is asked for
  virtual Unit unit() const { return Unit::kv; }
  virtual Scope scope() const { return Scope::head; }

  /// Stage 1, per KV head, independent of other heads: fills one UnitScores (Unit::kv, layer) or `group`
  /// (Unit::query).
  virtual void score(const HeadFeatures& head, std::span<UnitScores> out) const = 0;
  /// Stage 2, per layer: what needs all heads (a layer-wide mean, chunk sums over heads). Default: nothing.
  virtual void join(const LayerGeometry&, LayerScores&) const {}
  /// Stage 3: tokens that every unit keeps at a budget of `budget` tokens per unit on average, all <= T.
  /// Default: min(budget, T) everywhere. Monotone in the budget where traits().nested.
  virtual void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                        std::span<std::uint32_t> kept) const;
};

/// Sorts every unit's tokens. Throws UserError naming policy, layer and unit where a score is NaN.
LayerRanking rank_layer(const Policy& policy, const LayerGeometry& layer, LayerScores scores);

}  // namespace kvsim
