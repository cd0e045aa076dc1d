// Compose: a policy from parts, so that scorers, reductions, value weights, allocators and protection
// recombine freely.
//
// The parts and their order of application are those of the reference's section 7.1: query source, base
// quantity, an ordered list of reductions, value weight, protected tokens, head budgets, layer budgets.
// `score=` puts another policy in place of query, base, reduce and unit. The named policies are presets of
// the same parts: compose(query=window(64), base=attention, reduce=[mean,avg(5),group(mean)], recent=64) is
// snapkv to the last bit.
#include <algorithm>
#include <array>
#include <limits>

#include "kernels/error.h"
#include "policies/compose_parts.h"
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

constexpr std::array<std::string_view, 4> kBaseChoices{"attention", "position", "knorm", "keydiff"};
constexpr std::array<std::string_view, 3> kValueChoices{"none", "l1", "l2"};
constexpr std::array<std::string_view, 3> kUnitsOfCompose{"kv", "query", "layer"};
constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();

struct Compose final : ScoreWrapper {
  std::size_t base_ = 0;
  std::optional<QueryPart> query_;              // as given; what the base needs otherwise
  std::optional<std::vector<Reducer>> reduce_;  // likewise
  std::size_t value_ = 0;
  std::optional<HeadShare> heads_;
  std::optional<LayerSlope> layers_;
  std::uint32_t sinks_ = 0;
  std::uint32_t recent_ = 0;
  std::size_t unit_ = 0;

  Compose() : ScoreWrapper(kTraits, "") {}

  void fields(FieldVisitor& f) override {
    score_field(f);
    if (!score_) {
      f.choice("base", base_, kBaseChoices, "what a token is scored by");
      part(f, "query", query(), read_query, write_query, "window(w), all or none",
           [this](const QueryPart& read) { query_ = read; });
      part(f, "reduce", reducers(), read_reducers, write_reducers,
           "in order: mean|sum|visible over queries, avg(k)|max(k) over positions, group(mean|max|sum|first)",
           [this](const std::vector<Reducer>& read) { reduce_ = read; });
    }
    f.choice("value", value_, kValueChoices, "norm of the value that the score is multiplied by");
    part(f, "heads", heads_, read_heads, write_heads, "budgets of the heads: uniform or ada(alpha)",
         [this](const std::optional<HeadShare>& read) { heads_ = read; });
    part(f, "layers", layers_, read_layers, write_layers, "budgets of the layers: uniform or pyramid(beta)",
         [this](const std::optional<LayerSlope>& read) { layers_ = read; });
    f.number("sinks", sinks_, 0, kAny, "first tokens that are always kept");
    f.number("recent", recent_, 0, kAny, "last prompt tokens that are always kept");
    if (!score_) f.choice("unit", unit_, kUnitsOfCompose, "what owns a kept set");
    const bool windowed = score_ ? score_->traits().windowed : query().source == QuerySource::window;
    update(traits_.windowed, windowed);
    update(traits_.nested, !layers_ && (!score_ || score_->traits().nested));
  }

  void prepare(Resources& resources) override {
    if (score_) score_->prepare(resources);
    if (score_ && layers_ && score_->scope() == Scope::model) {
      throw UserError("compose: both layers=pyramid and score={} share budget over layers",
                      score_->traits().name);
    }
    if (unit() == Unit::layer && heads_) throw UserError("compose: heads=ada needs unit=kv or unit=query");
    if (!score_) check_parts();
  }

  Need needs() const override {
    const Need needs = score_ ? score_->needs() : recipe().needs();
    return value_ == 0 ? needs : needs | Need::values;
  }
  std::uint32_t window() const override { return score_ ? score_->window() : query().window; }
  Unit unit() const override {
    const Unit unit = score_ ? score_->unit() : static_cast<Unit>(unit_);
    return score_ && heads_ && unit == Unit::layer ? Unit::kv : unit;
  }
  Scope scope() const override {
    if (layers_) return Scope::model;
    return std::max(heads_ ? Scope::layer : Scope::head, ScoreWrapper::scope());
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    if (!score_) return recipe().score(head, kTraits.name, out);
    score_->score(head, out);
    std::vector<double> norms;
    if (value_ != 0) norms = row_norms(head.values(), static_cast<ValueNorm>(value_));
    for (UnitScores& unit : out) {
      for (std::size_t t = 0; t < norms.size(); ++t) {
        unit.score[t] = static_cast<float>(static_cast<double>(unit.score[t]) * norms[t]);
      }
      protect_too(unit);
    }
  }

  void join(const LayerGeometry& layer, LayerScores& scores) const override {
    if (score_) score_->join(layer, scores);
    if (!score_ && unit() == Unit::layer) share_over_layer(scores);
    lift_protected(scores);
  }

  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const std::size_t guarded =
        ranking.scores.units.empty() ? 0 : ranking.scores.units[0].protected_tokens.size();
    const std::uint32_t mean = layers_ ? layers_->tokens(layer, budget, guarded) : budget;
    if (score_) {
      score_->allocate(layer, ranking, mean, kept);
    } else {
      Policy::allocate(layer, ranking, mean, kept);
    }
    if (heads_) heads_->apply(ranking, kept);
  }

 private:
  /// A part is visited as text, read where the visitor changed it, and so always printed in full.
  template <typename Part, typename Read, typename Write, typename Store>
  static void part(FieldVisitor& f, std::string_view key, const Part& now, Read read, Write write,
                   std::string_view help, Store store) {
    const SpecValue before = write(now);
    SpecValue text = before;
    f.value(key, text, help);
    if (text != before) store(read(text));
  }

  QueryPart query() const {
    constexpr std::uint32_t kKvpressWindow = 64;
    if (query_) return *query_;
    return base_ == 0 ? QueryPart{QuerySource::window, kKvpressWindow} : QueryPart{};
  }
  std::vector<Reducer> reducers() const {
    if (reduce_) return *reduce_;
    if (base_ != 0) return {};
    return {{.kind = Reducer::Kind::mean},
            {.kind = Reducer::Kind::avg, .width = 5},
            {.kind = Reducer::Kind::group, .group = Group::mean}};
  }
  Recipe recipe() const {
    Recipe out;
    out.query = query().source;
    out.window = query().window;
    out.base = static_cast<Base>(base_);
    out.reduce = reducers();
    out.value = static_cast<ValueNorm>(value_);
    out.sinks = sinks_;
    out.recent = recent_;
    out.unit = unit();
    return out;
  }

  static bool over_queries(const Reducer& r) {
    return r.kind == Reducer::Kind::mean || r.kind == Reducer::Kind::sum || r.kind == Reducer::Kind::visible;
  }

  void check_parts() const {
    const std::vector<Reducer> reduce = reducers();
    const auto queries = std::count_if(reduce.begin(), reduce.end(), over_queries);
    const bool grouped = std::any_of(reduce.begin(), reduce.end(),
                                     [](const Reducer& r) { return r.kind == Reducer::Kind::group; });
    if (base_ != 0) {
      if (query().source != QuerySource::none || queries > 0) {
        throw UserError(
            "compose: base={} reads no queries, write query=none and no mean, sum or visible in reduce",
            kBaseChoices[base_]);
      }
      if (value_ != 0 && base_ >= 2) {
        throw UserError("compose: value={} multiplies a score, but {} scores are negative",
                        kValueChoices[value_], kBaseChoices[base_]);
      }
      return;
    }
    if (query().source == QuerySource::none)
      throw UserError("compose: base=attention needs query=window(w) or all");
    if (queries != 1 || !over_queries(reduce.front())) {
      throw UserError(
          "compose: reduce must begin with one of mean, sum, visible over the queries, and name no other");
    }
    if (reduce.front().kind == Reducer::Kind::visible && query().source != QuerySource::all) {
      throw UserError("compose: visible needs query=all, every key is seen by all queries of a window");
    }
    if (!grouped && unit() != Unit::query) {
      throw UserError("compose: reduce needs a group(mean|max|sum|first) where the unit is no query head");
    }
  }

  /// Adds own sinks and recents to what the inner policy protects: first tokens in order, then newest to
  /// oldest.
  void protect_too(UnitScores& unit) const {
    const std::size_t tokens = unit.score.size();
    std::vector<bool> guarded(tokens, false);
    for (const TokenIndex t : unit.protected_tokens) guarded[t] = true;
    for (const TokenIndex t : protected_order(tokens, sinks_, recent_)) guarded[t] = true;
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
