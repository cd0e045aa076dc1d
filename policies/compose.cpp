// Compose: a policy from parts, so that scorers, reductions, value weights, allocators and protection
// recombine freely.
//
// The parts and their order of application are those of the reference's section 7.1: query source, base
// quantity, an ordered list of reductions, value weight, redundancy, protected tokens, head budgets, layer
// budgets. `score=` puts another policy in place of query, base, reduce and unit. The named policies are
// presets of the same parts: compose(query=window(64), base=attention, reduce=[mean,avg(5),group(mean)],
// recent=64) is snapkv to the last bit.
#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <utility>

#include "kernels/error.h"
#include "policies/compose_parts.h"
#include "policies/recipe_policy.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "compose",
    .summary = "a policy from parts: queries, base, reductions, values, heads, layers",
    .reference = "the parts of the named policies; kvpress's forms of ada (guarantee) and pyramid",
    .accounting =
        "budget tokens per unit on average; sinks, recents and what `score` protects are kept first"};

constexpr std::array<std::string_view, 3> kUnitsOfCompose{"kv", "query", "layer"};
constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint32_t kKvpressWindow = 64;

struct Compose final : ScoreWrapper, ReadsLookahead, ReadsMeans {
  Base base_ = Base::attention;
  std::optional<QueryParts> query_;             // as given; what the base needs otherwise
  std::optional<std::vector<Reducer>> reduce_;  // likewise
  ValuePart value_;
  std::optional<RedundancyPart> redundancy_;
  std::optional<HeadShare> heads_;
  LayersPart layers_;
  std::uint32_t sinks_ = 0;
  std::uint32_t recent_ = 0;
  double recent_share_ = 0;
  std::vector<TokenIndex> forced_;
  std::optional<StagesPart> select_;
  std::size_t unit_ = 0;
  std::unique_ptr<Policy> staged_;  // with select=two_stage: critical around everything else

  Compose() : ScoreWrapper(kTraits, "") {}

  void fields(FieldVisitor& f) override {
    score_field(f);
    if (!score_) {
      part(f, "base", base_, read_base, write_base, "what a token is scored by",
           [this](Base read) { base_ = read; });
      part(f, "query", query(), read_query, write_query,
           "whose attention: window(w), all, lookahead(...), a list, ...",
           [this](const QueryParts& read) { query_ = read; });
      part(f, "reduce", reducers(), read_reducers, write_reducers,
           "in order: over queries (mean, sum, ...), avg(k)|max(k) over positions, group(rule), ...",
           [this](const std::vector<Reducer>& read) { reduce_ = read; });
    }
    part(f, "value", value_, read_value, write_value, "what of the values the score is weighed by",
         [this](const ValuePart& read) { value_ = read; });
    if (!score_) {
      part(f, "redundancy", redundancy_, read_redundancy, write_redundancy,
           "what repeats others: none or cosine(...)",
           [this](const std::optional<RedundancyPart>& read) { redundancy_ = read; });
    }
    part(f, "heads", heads_, read_heads, write_heads, "budgets of the heads: uniform or ada(alpha)",
         [this](const std::optional<HeadShare>& read) { heads_ = read; });
    part(f, "layers", layers_, read_layers, write_layers, "budgets of the layers: uniform, pyramid(beta) or cake(window)",
         [this](const LayersPart& read) { layers_ = read; });
    f.number("sinks", sinks_, 0, kAny, "first tokens that are always kept");
    f.number("recent", recent_, 0, kAny, "last prompt tokens that are always kept");
    f.number("recent_share", recent_share_, 0.0, 1.0, "share of every budget that goes to the newest tokens");
    part(f, "forced", forced_, read_positions, write_positions, "positions that are always kept, e.g. [0,17]",
         [this](const std::vector<TokenIndex>& read) { forced_ = read; });
    part(f, "select", select_, read_select, write_select, "how scores become a set: top or two_stage(...)",
         [this](const std::optional<StagesPart>& read) { select_ = read; });
    if (!score_) f.choice("unit", unit_, kUnitsOfCompose, "what owns a kept set");
    update_traits();
  }

  void prepare(Resources& resources) override {
    if (score_) score_->prepare(resources);
    if (score_ && layers_.shared() && score_->scope() == Scope::model) {
      throw UserError("compose: both layers={} and score={} share budget over layers",
                      to_text(write_layers(layers_)), score_->traits().name);
    }
    if (layers_.spread && traits_.order_by_budget) {
      throw UserError("compose: layers=cake needs scores that are the same at every budget");
    }
    const bool guards = sinks_ > 0 || recent_ > 0 || recent_share_ > 0 || !forced_.empty();
    if (score_ && score_->traits().order_by_budget && (guards || value_.kind != ValuePart::Kind::none)) {
      throw UserError(
          "compose: score={} has another order at every budget, give sinks, recent, forced and value to it "
          "instead",
          score_->traits().name);
    }
    if (unit() == Unit::layer && heads_) throw UserError("compose: heads=ada needs unit=kv or unit=query");
    if (!score_) recipe().check_parts(kTraits.name);
    if (select_) make_staged(resources);
  }
  void check(const LayerGeometry& layer) const override {
    if (score_)
      score_->check(layer);
    else
      recipe().check(kTraits.name, layer);
  }

  Need needs() const override {
    const Need needs = score_ ? score_->needs() | value_needs(value_) : recipe().needs();
    return layers_.spread ? needs | Need::window_queries : needs;
  }
  std::uint32_t window() const override {
    const std::uint32_t window = score_ ? score_->window() : query_window(query());
    return layers_.spread ? std::max(window, layers_.spread->window) : window;
  }
  Unit unit() const override {
    const Unit unit = score_ ? score_->unit() : static_cast<Unit>(unit_);
    // Values differ from head to head, and so do shifted budgets around a score that the heads share.
    return unit == Unit::layer && (select_ || (score_ && heads_)) ? Unit::kv : unit;
  }
  Scope scope() const override {
    if (layers_.shared()) return Scope::model;
    return std::max(heads_ ? Scope::layer : Scope::head, ScoreWrapper::scope());
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    if (staged_) return staged_->score(head, out);
    score_tokens(head, out);
    if (!layers_.spread) return;
    const QueryRows rows{.source = QueryRows::Source::window, .count = layers_.spread->window};
    const std::size_t candidates = head.geometry().prompt - layers_.spread->window;
    for (std::size_t u = 0; u < out.size(); ++u) {  // the KV head's share stands with its first unit
      const AttentionSpread spread = u == 0 ? attention_spread(head, {rows}, candidates) : AttentionSpread{};
      const std::vector<float> four = spread.to_floats();
      out[u].extra.insert(out[u].extra.end(), four.begin(), four.end());
    }
  }
  std::vector<float> summarise(const LayerGeometry& layer, const LayerRanking& ranking) const override {
    if (layers_.spread) return summarise_spread(ranking.scores);
    return score_ ? score_->summarise(layer, ranking) : std::vector<float>{};
  }
  void score_tokens(const HeadFeatures& head, std::span<UnitScores> out) const {
    if (!score_) return recipe().score(head, kTraits.name, out);
    score_->score(head, out);
    for (UnitScores& unit : out) {
      if (value_.kind != ValuePart::Kind::none) {
        std::vector<std::vector<double>> rows{{unit.score.begin(), unit.score.end()}};
        weigh_by_value(value_, head, unit.protected_tokens, rows);
        unit.score = to_scores(rows[0]);
      }
      protect_too(unit);
    }
  }

  void join(const LayerGeometry& layer, LayerScores& scores) const override {
    if (staged_) return staged_->join(layer, scores);
    if (!score_) return join_recipe(recipe(), scores);
    score_->join(layer, scores);
    lift_protected(scores);
  }

  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    if (staged_) return staged_->allocate(layer, ranking, budget, kept);
    const std::size_t guarded =
        ranking.scores.units.empty() ? 0 : ranking.scores.units[0].protected_tokens.size();
    const std::uint32_t mean = layer_budget(layer, ranking, budget, guarded);
    if (score_) {
      score_->allocate(layer, ranking, mean, kept);
    } else {
      Policy::allocate(layer, ranking, mean, kept);
    }
    if (heads_) heads_->apply(traits_.order_by_budget ? ranking_at(layer, ranking, budget) : ranking, kept);
  }

  void reorder(const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
               std::span<const std::uint32_t> kept, std::span<std::vector<TokenIndex>> order) const override {
    if (staged_) return staged_->reorder(layer, ranking, budget, kept, order);
    if (score_) {
      score_->reorder(layer, ranking, budget, kept, order);
    } else {
      const LayerRanking taken = ranking_at(layer, ranking, budget.tokens);
      std::copy(taken.order.begin(), taken.order.end(), order.begin());
    }
    if (recent_share_ > 0)
      for (std::vector<TokenIndex>& unit : order) newest_first(unit, budget.tokens);
  }

  bool means_alone() const override {
    return !layers_.spread && !(score_ ? reads_rows(*score_) : recipe().reads_rows());
  }
  std::string pass_at(const LayerGeometry& layer, std::uint32_t budget) const override {
    return score_ ? lookahead_pass_at(*score_, layer, budget) : recipe_pass(recipe(), layer, budget);
  }
  LayerRanking ranking_at(const LayerGeometry& layer, const LayerRanking& ranking,
                          std::uint32_t budget) const override {
    return score_ ? kvsim::ranking_at(*score_, layer, ranking, budget)
                  : recipe_ranking(*this, recipe(), layer, ranking, budget);
  }

 private:
  std::uint32_t layer_budget(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                             std::size_t guarded) const {
    if (layers_.slope) return layers_.slope->tokens(layer, budget, guarded);
    if (!layers_.spread) return budget;
    return layers_.spread->preference.tokens(ranking.summaries, layer_place(layer), budget,
                                             static_cast<std::uint32_t>(guarded),
                                             static_cast<std::uint32_t>(layer.prompt));
  }

  /// A part is visited as text, read where the visitor changed it, and so always printed in full.
  template <typename Part, typename Read, typename Write, typename Store>
  static void part(FieldVisitor& f, std::string_view key, const Part& now, Read read, Write write,
                   std::string_view help, Store store) {
    const SpecValue before = write(now);
    SpecValue text = before;
    f.value(key, text, help);
    if (text != before) store(read(text));
  }

  /// Puts the sinks and the budget's share of the newest tokens before the others.
  void newest_first(std::vector<TokenIndex>& order, std::uint32_t budget) const {
    const auto recent = static_cast<std::uint32_t>(
        recent_share_ * std::min<double>(budget, static_cast<double>(order.size())));
    std::vector<TokenIndex> out = protected_order(order.size(), sinks_, recent);
    std::vector<bool> taken(order.size(), false);
    for (const TokenIndex t : out) taken[t] = true;
    std::copy_if(order.begin(), order.end(), std::back_inserter(out),
                 [&](TokenIndex t) { return !taken[t]; });
    order = std::move(out);
  }

  /// critical around this very policy without its last stage.
  void make_staged(Resources& resources) {
    if (value_.kind != ValuePart::Kind::wo)
      throw UserError(
          "compose: select=two_stage weighs its second stage by the projected values, write value=wo");
    const std::optional<StagesPart> stages = std::exchange(select_, std::nullopt);
    const ValuePart value = std::exchange(value_, ValuePart{});
    const std::string inner = canonical_spec(*this);
    select_ = stages;
    value_ = value;
    update_traits();  // printing left those of the inner policy behind
    const std::string text = fmt::format("critical(score={},first={},epsilon={},safe={})", inner,
                                         stages->first, value.epsilon, stages->safe);
    staged_ = bind_policy(parse_specs(text).front());
    staged_->prepare(resources);
  }

  void update_traits() {
    const bool by_budget = select_.has_value() || recent_share_ > 0 ||
                           (score_ ? score_->traits().order_by_budget : recipe().by_budget());
    update(traits_.windowed, score_ ? score_->traits().windowed : guesses_queries(query()));
    update(traits_.oracle, score_ ? score_->traits().oracle : reads_future(query()));
    update(traits_.order_by_budget, by_budget);
    update(traits_.model_wide, layers_.spread.has_value() || (score_ && score_->traits().model_wide));
    update(traits_.own_size,
           (layers_.spread && layers_.spread->preference.cascade) || (score_ && score_->traits().own_size));
    update(traits_.nested, !layers_.shared() && !by_budget && (!score_ || score_->traits().nested) &&
                               !(heads_ && heads_->form == HeadShare::Form::interpolate && !heads_->repo));
  }

  QueryParts query() const {
    if (query_) return *query_;
    return reads_queries(base_) ? QueryParts{{.kind = QueryPart::Kind::window, .count = kKvpressWindow}}
                                : QueryParts{};
  }
  std::vector<Reducer> reducers() const {
    if (reduce_) return *reduce_;
    if (!reads_queries(base_)) return {};
    if (reads_outputs(base_)) return {fold_step(Fold::sum), group_step(Group::mean)};
    return {fold_step(Fold::mean), pool_step(true, 5), group_step(Group::mean)};
  }
  Recipe recipe() const {
    Recipe out;
    out.query = query();
    out.base = base_;
    out.reduce = reducers();
    out.value = value_;
    out.redundancy = redundancy_;
    out.sinks = sinks_;
    out.recent = recent_;
    out.forced = forced_;
    out.unit = unit();
    return out;
  }

  /// Adds own sinks and recents to what the inner policy protects: first tokens in order, then newest to
  /// oldest.
  void protect_too(UnitScores& unit) const {
    const std::size_t tokens = unit.score.size();
    std::vector<bool> guarded(tokens, false);
    for (const TokenIndex t : unit.protected_tokens) guarded[t] = true;
    for (const TokenIndex t : protected_order(tokens, sinks_, recent_)) guarded[t] = true;
    for (const TokenIndex t : forced_)
      if (t < tokens) guarded[t] = true;
    std::uint32_t first = std::min(sinks_, static_cast<std::uint32_t>(tokens));
    std::uint32_t inner = 0;  // the inner policy's own sinks stand first and in order
    while (inner < unit.protected_tokens.size() && unit.protected_tokens[inner] == inner) ++inner;
    first = std::max(first, inner);
    unit.protected_tokens = protected_order(tokens, first, 0);
    for (auto t = static_cast<TokenIndex>(tokens); t-- > first;) {
      if (guarded[t]) unit.protected_tokens.push_back(t);
    }
  }
};

const RegisterPolicy<Compose> registered{kTraits};

}  // namespace
}  // namespace kvsim
