// The parts of compose as text: which words and calls stand for which part, read and written back in full.
#include "policies/compose_parts.h"

#include <fmt/format.h>

#include <limits>

#include "kernels/error.h"
#include "policies/part_words.h"

namespace kvsim {
namespace {

constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
constexpr std::array<std::string_view, 2> kMasks{"causal", "repo"};
constexpr std::array<std::string_view, 5> kGroups{"mean", "max", "sum", "first", "logit_max"};
constexpr std::array<std::string_view, 2> kDomains{"visible", "older"};
constexpr std::array<std::string_view, 2> kIndicators{"above", "below"};
constexpr std::array<std::string_view, 4> kDamages{"joint", "value", "key", "no_cross"};
constexpr std::array<std::string_view, 2> kHeadForms{"guarantee", "interp"};
constexpr std::array<std::string_view, 2> kLayerForms{"kvpress", "authors"};
constexpr std::array<std::string_view, 2> kTotals{"exact", "repo"};

/// A choice that is held as an enumeration or flag.
template <typename Enum, std::size_t n>
void choose(FieldVisitor& f, std::string_view key, Enum& value, const std::array<std::string_view, n>& words) {
  auto index = static_cast<std::size_t>(value);
  f.choice(key, index, words, "");
  if (index != static_cast<std::size_t>(value)) value = static_cast<Enum>(index);
}

// --- queries -----------------------------------------------------------------------------------------------------------

template <QueryPart::Kind kind>
bool is_query(const QueryPart& part) { return part.kind == kind; }

constexpr auto kWindowFields = [](FieldVisitor& f, QueryPart& p) { f.number("queries", p.count, 1, kAny, ""); };
constexpr auto kProxyFields = [](FieldVisitor& f, QueryPart& p) {
  f.number("first", p.first, 0, kAny, "");
  f.number("last", p.count, 0, kAny, "");
};
constexpr auto kLookaheadFields = [](FieldVisitor& f, QueryPart& p) {
  f.text("pass", p.pass.name, "");
  f.number("length", p.count, 1, kAny, "");
  choose(f, "mask", p.repo_mask, kMasks);
};

std::span<const PartWord<QueryPart>> query_words() {
  using Kind = QueryPart::Kind;
  static const std::vector<PartWord<QueryPart>> words{
      {"window", {.kind = Kind::window}, kWindowFields, is_query<Kind::window>, "the last w prompt queries",
       "compose(query=window(32),reduce=[mean,avg(5),group(mean)],recent=32)"},
      {"all", {.kind = Kind::all}, nullptr, is_query<Kind::all>, "every prompt query",
       "compose(query=all,reduce=[sum,group(mean)])"},
      {"current", {.kind = Kind::current, .count = 1}, nullptr, is_query<Kind::current>, "the last prompt query",
       "compose(query=current,reduce=[mean,group(mean)],recent=1,unit=layer)"},
      {"proxy", {.kind = Kind::proxy, .count = 16, .first = 0}, kProxyFields, is_query<Kind::proxy>,
       "the first and the last prompt queries", "compose(query=proxy(first=4,last=16),reduce=[sum,group(mean)],sinks=4,recent=16)"},
      {"lookahead", {.kind = Kind::lookahead, .count = 8}, kLookaheadFields, is_query<Kind::lookahead>,
       "pseudo queries of a recorded first pass; without a name each budget takes the pass that suits it",
       "compose(query=[window(8),lookahead(length=8)],reduce=[sum,group(mean),max(7)],recent=8)"},
      {"oracle", {.kind = Kind::oracle, .count = 8}, kWindowFields, is_query<Kind::oracle>,
       "the first true decode queries: the bound of every such source", "compose(query=oracle(8),reduce=[sum,group(mean),max(7)])"}};
  return words;
}

// --- base --------------------------------------------------------------------------------------------------------------

template <Base base>
bool is_base(const Base& part) { return part == base; }
constexpr auto kIndicatorFields = [](FieldVisitor& f, Base& base) {
  bool below = base == Base::below;
  choose(f, "rule", below, kIndicators);
  if (below != (base == Base::below)) base = below ? Base::below : Base::above;
};

constexpr auto kDamageFields = [](FieldVisitor& f, Base& base) {
  auto form = static_cast<std::size_t>(base) - static_cast<std::size_t>(Base::obd_joint);
  const std::size_t before = form;
  f.choice("form", form, kDamages, "");
  if (form != before) base = static_cast<Base>(form + static_cast<std::size_t>(Base::obd_joint));
};

std::span<const PartWord<Base>> base_words() {
  static const std::vector<PartWord<Base>> words{
      {"attention", Base::attention, nullptr, is_base<Base::attention>, "softmax over all that a query sees",
       "compose(base=attention,query=window(16),reduce=[max,group(max)])"},
      {"logit", Base::logit, nullptr, is_base<Base::logit>, "scaled products of query and key",
       "compose(base=logit,query=window(8),reduce=[group(logit_max),softmax(older),mean,max(7)],recent=8)"},
      {"indicator", Base::above, kIndicatorFields, [](const Base& b) { return b == Base::above || b == Base::below; },
       "1 where a key gets at least (above) or less than (below) its fair share 1/t of a query that sees t keys",
       "compose(base=indicator(above),query=window(64),reduce=[count,group(sum)],recent=10)"},
      {"obd", Base::obd_joint, kDamageFields, [](const Base& b) { return reads_outputs(b); },
       "loss of the output when key and value (joint, no_cross), value or key are pruned (OBCache)",
       "compose(base=obd(joint),query=window(16),reduce=[sum,group(mean)],recent=16)"},
      {"position", Base::position, nullptr, is_base<Base::position>, "newest first", "compose(base=position,sinks=4)"},
      {"knorm", Base::knorm, nullptr, is_base<Base::knorm>, "smallest key norms", "compose(base=knorm)"},
      {"keydiff", Base::keydiff, nullptr, is_base<Base::keydiff>, "keys that differ from the mean direction",
       "compose(base=keydiff,recent=32)"}};
  return words;
}

// --- value -------------------------------------------------------------------------------------------------------------

template <ValuePart::Kind kind>
bool is_value(const ValuePart& part) { return part.kind == kind; }
constexpr auto kProjectedFields = [](FieldVisitor& f, ValuePart& p) { f.number("epsilon", p.epsilon, 0.0, 1e6, ""); };

std::span<const PartWord<ValuePart>> value_words() {
  using Kind = ValuePart::Kind;
  static const std::vector<PartWord<ValuePart>> words{
      {"none", {}, nullptr, is_value<Kind::none>, "the score alone", "compose(query=all,reduce=[sum,group(mean)],value=none)"},
      {"l1", {.kind = Kind::l1}, nullptr, is_value<Kind::l1>, "times |v|_1 (VATP)",
       "compose(query=all,reduce=[sum,group(mean)],value=l1,sinks=20)"},
      {"l2", {.kind = Kind::l2}, nullptr, is_value<Kind::l2>, "times |v|_2", "compose(query=window(32),value=l2,recent=32)"},
      {"l2sq", {.kind = Kind::l2sq}, nullptr, is_value<Kind::l2sq>, "times |v|_2^2 (OBCache)",
       "compose(query=window(16),reduce=[squares,value(l2sq),group(mean)],recent=16)"},
      {"wo", {.kind = Kind::wo}, kProjectedFields, is_value<Kind::wo>,
       "(score + epsilon) |v W_O|_1, mean over the group (CriticalKV)", "compose(query=window(32),value=wo,recent=32)"},
      {"caote", {.kind = Kind::caote}, nullptr, is_value<Kind::caote>,
       "change of the weighted output when the token leaves (CAOTE)", "compose(query=all,reduce=[sum,value(caote),group(mean)])"},
      {"fast_caote", {.kind = Kind::fast_caote}, nullptr, is_value<Kind::fast_caote>, "the same around the mean value",
       "compose(query=all,reduce=[sum,value(fast_caote),group(mean)])"}};
  return words;
}

// --- reducers ----------------------------------------------------------------------------------------------------------

template <Fold fold>
bool is_fold(const Reducer& r) { return r.kind == Reducer::Kind::fold && r.fold == fold; }
template <Reducer::Kind kind>
bool is_step(const Reducer& r) { return r.kind == kind; }

constexpr auto kGammaFields = [](FieldVisitor& f, Reducer& r) { f.number("gamma", r.gamma, 0.0, 1e9, ""); };
constexpr auto kWidthFields = [](FieldVisitor& f, Reducer& r) { f.number("width", r.width, 1, 4095, ""); };
constexpr auto kGroupFields = [](FieldVisitor& f, Reducer& r) { choose(f, "rule", r.group, kGroups); };
constexpr auto kSoftmaxFields = [](FieldVisitor& f, Reducer& r) { choose(f, "over", r.older, kDomains); };
constexpr auto kValueFields = [](FieldVisitor& f, Reducer& r) {
  const SpecValue before = write_value(r.value);
  SpecValue text = before;
  f.value("kind", text, "");
  if (text != before) r.value = read_value(text);
};

std::span<const PartWord<Reducer>> reducer_words() {
  using Kind = Reducer::Kind;
  static const std::vector<PartWord<Reducer>> words{
      {"mean", fold_step(Fold::mean), nullptr, is_fold<Fold::mean>, "over the queries: their mean",
       "compose(query=window(32),reduce=[mean,group(mean)],recent=32)"},
      {"sum", fold_step(Fold::sum), nullptr,
       is_fold<Fold::sum>, "over the queries: their sum", "compose(query=all,reduce=[sum,group(mean)])"},
      {"meanvar", fold_step(Fold::meanvar), kGammaFields, is_fold<Fold::meanvar>,
       "over the queries: mean + gamma * unbiased variance (CAKE)",
       "compose(query=window(32),reduce=[meanvar(200),avg(5),group(mean)],recent=32)"},
      {"last", fold_step(Fold::last), nullptr, is_fold<Fold::last>, "over the queries: the newest one",
       "compose(query=window(4),reduce=[last,group(mean)],recent=4)"},
      {"max", fold_step(Fold::largest), nullptr, is_fold<Fold::largest>, "over the queries: their largest; or over positions",
       "compose(query=window(16),reduce=[max,max(7),group(mean)],recent=16)"},
      {"squares", fold_step(Fold::squares), nullptr, is_fold<Fold::squares>, "over the queries: sum of squares",
       "compose(query=window(16),reduce=[squares,group(mean)],recent=16)"},
      {"count", fold_step(Fold::count), nullptr, is_fold<Fold::count>, "over the queries: how often base=indicator is 1",
       "compose(base=indicator(above),query=window(64),reduce=[count,group(mean)],recent=10)"},
      {"visible", fold_step(Fold::visible), nullptr, is_fold<Fold::visible>,
       "over the queries: sum / queries that see the key", "compose(query=all,reduce=[visible,group(mean)])"},
      {"avg", pool_step(true, 1), kWidthFields, is_step<Kind::avg>, "over positions: mean of k neighbours, zeros at the borders",
       "compose(query=window(32),reduce=[mean,avg(5),group(mean)],recent=32)"},
      {"max", pool_step(false, 1), kWidthFields, is_step<Kind::max>, "over positions: largest of k neighbours",
       "compose(query=window(32),reduce=[sum,group(mean),max(7)],recent=32)"},
      {"group", group_step(Group::mean), kGroupFields, is_step<Kind::group>,
       "the query heads of a KV head as one: mean, max, sum, first, or logit_max before the softmax",
       "compose(query=window(32),reduce=[mean,group(max),max(7)],recent=32)"},
      {"softmax", {.kind = Kind::softmax}, kSoftmaxFields, is_step<Kind::softmax>,
       "softmax again, over all visible keys or those older than `recent`",
       "compose(query=window(8),reduce=[softmax(older),mean,group(mean)],recent=8)"},
      {"value", {.kind = Kind::value, .value = {.kind = ValuePart::Kind::l1}}, kValueFields, is_step<Kind::value>,
       "weighs by the values here, before what follows", "compose(query=window(32),reduce=[mean,value(l1),max(7),group(mean)])"},
      {"minus", {.kind = Kind::minus}, nullptr, is_step<Kind::minus>, "turns a count of base=indicator(below) round",
       "compose(base=indicator(below),query=window(64),reduce=[count,minus,group(mean)],recent=10)"},
      {"sum1", {.kind = Kind::sum1}, nullptr, is_step<Kind::sum1>, "divides by the sum over the tokens",
       "compose(query=window(32),reduce=[mean,sum1,group(mean)],recent=32)"}};
  return words;
}

// --- redundancy, heads, layers -------------------------------------------------------------------------------------------

using Redundancy = std::optional<RedundancyPart>;
std::span<const PartWord<Redundancy>> redundancy_words() {
  static const std::vector<PartWord<Redundancy>> words{
      {"none", std::nullopt, nullptr, [](const Redundancy& p) { return !p.has_value(); }, "the score alone",
       "compose(query=window(8),redundancy=none,recent=8)"},
      {"cosine", RedundancyPart{},
       [](FieldVisitor& f, Redundancy& p) {
         f.number("lambda", p->lambda, 0.0, 1.0, "");
         f.number("threshold", p->threshold, -1.0, 1.0, "");
       },
       [](const Redundancy& p) { return p.has_value(); }, "lambda * score - (1 - lambda) * redundancy of the keys (R-KV)",
       "compose(query=window(8),reduce=[mean,group(max),max(7)],redundancy=cosine(lambda=0.1),recent=8)"}};
  return words;
}

using Heads = std::optional<HeadShare>;
std::span<const PartWord<Heads>> head_words() {
  static const std::vector<PartWord<Heads>> words{
      {"uniform", std::nullopt, nullptr, [](const Heads& p) { return !p.has_value(); }, "the same for every head",
       "compose(query=window(32),heads=uniform,recent=32)"},
      {"ada", HeadShare{},
       [](FieldVisitor& f, Heads& p) {
         f.number("alpha", p->alpha, 0.0, 1.0, "");
         choose(f, "form", p->form, kHeadForms);
         choose(f, "total", p->repo, kTotals);
       },
       [](const Heads& p) { return p.has_value(); }, "to the heads with the largest scores (Ada-KV)",
       "compose(query=window(32),heads=ada(0.2),recent=32)"}};
  return words;
}

using Layers = LayersPart;
std::span<const PartWord<Layers>> layer_words() {
  static const std::vector<PartWord<Layers>> words{
      {"uniform", {}, nullptr, [](const Layers& p) { return !p.shared(); }, "the same for every layer",
       "compose(query=window(32),layers=uniform,recent=32)"},
      {"pyramid", {LayerSlope{}, std::nullopt},
       [](FieldVisitor& f, Layers& p) {
         f.number("beta", p.slope->beta, 1.0, 1e6, "");
         choose(f, "form", p.slope->form, kLayerForms);
         choose(f, "total", p.slope->repo, kTotals);
       },
       [](const Layers& p) { return p.slope.has_value(); }, "falling linearly over the depth (PyramidKV)",
       "compose(query=window(32),layers=pyramid(20),recent=32)"},
      {"cake", {std::nullopt, Layers::Spread{}},
       [](FieldVisitor& f, Layers& p) {
         f.number("window", p.spread->window, 2, std::numeric_limits<std::uint32_t>::max(), "");
         f.number("tau1", p.spread->preference.tau1, 1e-3, 1e6, "");
         f.number("tau2", p.spread->preference.tau2, 1e-3, 1e6, "");
         f.flag("cascade", p.spread->preference.cascade, "");
       },
       [](const Layers& p) { return p.spread.has_value(); },
       "by entropy and variance of a window's attention (CAKE)",
       "compose(query=window(32),reduce=[meanvar(200),avg(5),group(mean)],layers=cake(window=32),recent=32)"}};
  return words;
}

using Select = std::optional<StagesPart>;
std::span<const PartWord<Select>> select_words() {
  static const std::vector<PartWord<Select>> words{
      {"top", std::nullopt, nullptr, [](const Select& p) { return !p.has_value(); }, "the best scores",
       "compose(query=window(32),select=top,recent=32)"},
      {"two_stage", StagesPart{},
       [](FieldVisitor& f, Select& p) {
         f.number("first", p->first, 0.0, 1.0, "");
         f.number("safe", p->safe, 0.0, 1.0, "");
       },
       [](const Select& p) { return p.has_value(); }, "a share by the score alone, the rest by the score weighed by value=wo (CriticalKV)",
       "compose(query=window(32),value=wo,select=two_stage(first=0.5),recent=32)"}};
  return words;
}

template <typename Part>
std::string explain(std::string_view key, std::span<const PartWord<Part>> table) {
  std::string out = fmt::format("\n  {}\n", key);
  for (const PartWord<Part>& word : table)
    out += fmt::format("    {:<24} {}\n      {}\n", part_words::text_of(word, word.start), word.meaning, word.example);
  return out;
}

}  // namespace

Base read_base(const SpecValue& value) { return read_part("base", value, base_words()); }
SpecValue write_base(const Base& part) { return write_part(part, base_words()); }

QueryParts read_query(const SpecValue& value) {
  if (value.kind == SpecValue::Kind::word && value.text == "none") return {};
  QueryParts out;
  if (value.kind != SpecValue::Kind::list) out.push_back(read_part("query", value, query_words()));
  for (const SpecValue& item : value.items) out.push_back(read_part("query", item, query_words()));
  return out;
}

SpecValue write_query(const QueryParts& parts) {
  if (parts.empty()) return {SpecValue::Kind::word, "none", {}, {}};
  if (parts.size() == 1) return write_part(parts.front(), query_words());
  SpecValue out{SpecValue::Kind::list, {}, {}, {}};
  for (const QueryPart& part : parts) out.items.push_back(write_part(part, query_words()));
  return out;
}

std::vector<Reducer> read_reducers(const SpecValue& value) {
  std::vector<Reducer> out;
  if (value.kind != SpecValue::Kind::list) out.push_back(read_part("reduce", value, reducer_words()));
  for (const SpecValue& item : value.items) out.push_back(read_part("reduce", item, reducer_words()));
  for (const Reducer& step : out) {
    if (step.kind == Reducer::Kind::avg || step.kind == Reducer::Kind::max)
      check_kernel(step.kind == Reducer::Kind::avg ? "compose: avg" : "compose: max", step.width);
  }
  return out;
}

SpecValue write_reducers(const std::vector<Reducer>& reducers) {
  SpecValue out{SpecValue::Kind::list, {}, {}, {}};
  for (const Reducer& reducer : reducers) out.items.push_back(write_part(reducer, reducer_words()));
  return out;
}

ValuePart read_value(const SpecValue& value) { return read_part("value", value, value_words()); }
SpecValue write_value(const ValuePart& part) { return write_part(part, value_words()); }
Redundancy read_redundancy(const SpecValue& value) { return read_part("redundancy", value, redundancy_words()); }
SpecValue write_redundancy(const Redundancy& part) { return write_part(part, redundancy_words()); }
Heads read_heads(const SpecValue& value) { return read_part("heads", value, head_words()); }
SpecValue write_heads(const Heads& part) { return write_part(part, head_words()); }
Layers read_layers(const SpecValue& value) { return read_part("layers", value, layer_words()); }
SpecValue write_layers(const Layers& part) { return write_part(part, layer_words()); }

Select read_select(const SpecValue& value) { return read_part("select", value, select_words()); }
SpecValue write_select(const Select& part) { return write_part(part, select_words()); }

std::vector<TokenIndex> read_positions(const SpecValue& value) {
  std::vector<TokenIndex> out;
  for (const SpecValue& item : value.items) {
    SpecValue holder{SpecValue::Kind::call, "compose: forced", {{"", item}}, {}};
    TokenIndex token = 0;
    bind_fields(holder, [&](FieldVisitor& f) { f.number("position", token, 0, kAny, ""); });
    out.push_back(token);
  }
  if (value.kind != SpecValue::Kind::list)
    throw UserError("compose: forced={} does not fit, expected a list of positions, e.g. [0,17]", to_text(value));
  return out;
}

SpecValue write_positions(const std::vector<TokenIndex>& positions) {
  SpecValue out{SpecValue::Kind::list, {}, {}, {}};
  for (const TokenIndex t : positions) out.items.push_back({SpecValue::Kind::word, fmt::format("{}", t), {}, {}});
  return out;
}

std::string explain_parts() {
  return explain("base: what a token is scored by", base_words()) +
         explain("query: whose attention; a list [a,b] joins the rows of several", query_words()) +
         explain("reduce: an ordered list; the order is part of the policy", reducer_words()) +
         explain("value: what the score is weighed by, after all of reduce", value_words()) +
         explain("redundancy: what repeats others, last of all", redundancy_words()) +
         explain("heads: budgets of the heads of a layer", head_words()) +
         explain("layers: budgets of the layers", layer_words()) +
         explain("select: how the scores become a set", select_words()) +
         "\n  protection: sinks=4, recent=32, forced=[0,17], and recent_share=0.5 of every budget for the newest tokens\n"
         "    compose(query=all,reduce=[sum,group(mean)],sinks=4,recent_share=0.5)\n"
         "\n  unit: kv, query or layer: what owns a kept set\n"
         "    compose(query=all,reduce=[sum],unit=query)\n"
         "\n  score: any policy in the place of base, query, reduce, redundancy and unit\n"
         "    compose(score=expected_attention,value=l2,heads=ada(0.2),sinks=4)\n";
}

}  // namespace kvsim
