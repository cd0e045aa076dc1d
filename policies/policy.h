// What a policy is: it scores prompt tokens, and may shift budget between heads and layers.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
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
  decode_queries = 32,   // HeadFeatures::decode_mean, QueryRows::Source::oracle: the future (oracles)
  lookahead = 64,           // QueryRows::Source::lookahead: pseudo queries of a recorded first pass
  second_pass = 128,        // HeadFeatures::second_pass
  output_projection = 256,  // HeadFeatures::output_projection
  all_queries = 512,        // HeadFeatures::prompt_queries, each_prompt_tile, QueryRows::Source::prompt
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
  bool order_by_budget = false;  // has another order at every budget: see Policy::reorder
  bool model_wide = false;       // a layer's counts depend on other layers: see Policy::summarise
  bool own_size = false;         // decides itself how much it keeps; the budget is the most it may
  bool transforms = false;       // changes keys or values of what it keeps: see Policy::transform
};

/// A first pass of Lookahead Q-Cache that the trace holds (arXiv:2505.20334).
struct LookaheadPass {
  std::string name;            // e.g. snapkv-128
  std::uint32_t capacity = 0;  // tokens that the pass kept per unit
  std::uint32_t queries = 0;   // pseudo queries recorded
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
  std::vector<LookaheadPass> lookaheads;  // as recorded
  std::vector<std::string> second_pass;   // names of the recorded statistics of a second pass
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

/// Queries of a query head whose attention over the prompt is looked at (reference, section 7.1, C1). Every row sees
/// what the model would let it see, unless `behind` or `staircase` say otherwise.
struct QueryRows {
  enum class Source : std::uint8_t {
    window,     // the last `count` prompt queries, oldest first
    prompt,     // `count` prompt queries from position `first` on
    lookahead,  // the first `count` pseudo queries of pass `pass`; they see all prompt keys and nothing else
    oracle      // the first `count` true decode queries; they see the decode tokens before them too
  };
  Source source = Source::window;
  std::uint32_t first = 0;
  std::uint32_t count = 0;   // lookahead, oracle: 0 = all there are
  std::uint32_t behind = 0;  // window: rows see keys as if they stood so many positions earlier
  bool staircase = false;    // lookahead: row k of n does not see the newest n - 1 - k prompt keys (authors' code of LAQ)
  std::string pass{};        // lookahead
  auto operator<=>(const QueryRows&) const = default;
};

/// Attention of some consecutive prompt queries, as HeadFeatures::each_prompt_tile hands it out.
struct PromptTile {
  std::size_t first = 0;               // position of the first query
  std::size_t count = 0;               // queries
  MatrixView<const float> queries;     // [count, d]
  MatrixView<const float> weights;     // [first + count, count]: token-major, causal; keys behind have no rows
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

  /// How many rows the set has.
  std::size_t count(const QueryRows& rows) const;
  /// The set's queries after the rotary embedding, [n, d].
  virtual MatrixView<const float> queries(const QueryRows& rows, std::size_t query_head) const;
  /// Their attention over the prompt, token-major: [T, n], softmax over all that a row sees.
  virtual MatrixView<const float> attention(const QueryRows& rows, std::size_t query_head) const;
  /// Their attention outputs before the output projection over all that a row sees, [n, dv].
  virtual MatrixView<const float> outputs(const QueryRows& rows, std::size_t query_head) const;
  /// All prompt queries after the rotary embedding, [T, d].
  virtual MatrixView<const float> prompt_queries(std::size_t query_head) const;
  /// Visits the attention of all prompt queries in order, a tile at a time: no n x n matrix is held. Costs T^2 d flops,
  /// so results belong into shared().
  virtual void each_prompt_tile(std::size_t query_head, const std::function<void(const PromptTile&)>& visit) const;
  /// Rows of the output projection that query head reads, [dv, hidden].
  virtual MatrixView<const float> output_projection(std::size_t query_head) const;
  /// A recorded statistic of the second pass over the context, [T]; which there are: LayerGeometry::second_pass.
  virtual std::span<const float> second_pass(const std::string& statistic, std::size_t query_head) const;
  /// Budgets of the run in tokens, ascending: for policies that have another order at every budget.
  virtual std::span<const std::uint32_t> budgets() const;

  /// A result that variants share: computed once for this head under `key`, which names the quantity and every
  /// parameter that it depends on. Thread-safe; `compute` may itself ask for other shared results.
  std::span<const float> shared(const std::string& key, const std::function<std::vector<float>()>& compute) const;

 private:
  struct Shared {
    std::once_flag once;
    std::vector<float> value;
  };
  mutable std::mutex shared_mutex_;
  mutable std::map<std::string, std::unique_ptr<Shared>> shared_;
};

/// What owns one kept set (metrics.md, "Selection unit").
enum class Unit : std::uint8_t { kv, query, layer };

/// Scores of one selection unit, larger = keep.
struct UnitScores {
  std::vector<float> score;  // [T]; NaN is an error of the policy
  std::vector<TokenIndex>
      protected_tokens;  // in the order in which they are kept: sinks, then newest to oldest
  std::vector<float> extra;  // what join, summarise, allocate and reorder need beside the score; the policy's own layout
  /// Optional, with traits().order_by_budget: the order at each of HeadFeatures::budgets(), best first, as long as the
  /// budget or longer.
  std::vector<std::vector<TokenIndex>> orders;
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
  /// What summarise() gave for every recorded layer, ascending; empty unless traits().model_wide.
  std::span<const std::vector<float>> summaries;
};

/// One budget of a run.
struct BudgetAt {
  std::size_t index = 0;     // place in HeadFeatures::budgets()
  std::uint32_t tokens = 0;  // per unit, on average
};

/// What a unit holds after a transformation, row i = kept token i.
struct Transformed {
  Matrix<float> keys;         // [kept, d], as the recorded decode queries read them
  Matrix<float> values;       // [kept, dv]
  double resident_share = 1;  // bytes held / bytes of the untouched entries (channels left out)
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

  /// With traits().model_wide: what the other layers' allocate must know of this layer. All layers are scored before
  /// any is allocated; allocate and reorder find the summaries in LayerRanking::summaries.
  virtual std::vector<float> summarise(const LayerGeometry&, const LayerRanking&) const { return {}; }
  /// With traits().order_by_budget, after allocate: the order of every unit at this budget, of which the first kept[u]
  /// stay. `order` holds ranking.order on entry. Default: UnitScores::orders where a unit has them.
  virtual void reorder(const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
                       std::span<const std::uint32_t> kept, std::span<std::vector<TokenIndex>> order) const;
  /// With traits().transforms: keys and values that stay in place of the `kept` tokens (ascending) of a unit; `head` is
  /// the KV head, `query_head` the query head inside its group (0 unless the unit is a query head).
  virtual Transformed transform(const HeadFeatures& head, std::size_t query_head, std::span<const TokenIndex> kept) const;
};

/// The order that allocate's counts cut at one budget: ranking.order, or what reorder makes of it.
std::vector<std::vector<TokenIndex>> order_at(const Policy& policy, const LayerGeometry& layer, const LayerRanking& ranking,
                                              BudgetAt budget, std::span<const std::uint32_t> kept);

/// Sorts every unit's tokens. Throws UserError naming policy, layer and unit where a score is NaN.
LayerRanking rank_layer(const Policy& policy, const LayerGeometry& layer, LayerScores scores);

}  // namespace kvsim
