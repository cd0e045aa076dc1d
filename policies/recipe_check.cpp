// Which parts of a score go together (reference, section 7.6).
#include <algorithm>

#include "kernels/error.h"
#include "policies/recipe.h"

namespace kvsim {
namespace {

using Kind = Reducer::Kind;

constexpr std::array<std::string_view, 11> kBaseWords{
    "attention",  "logit",      "indicator(above)", "indicator(below)",
    "obd(joint)", "obd(value)", "obd(key)",         "obd(no_cross)",
    "position",   "knorm",      "keydiff"};

std::string_view word(Base base) { return kBaseWords[static_cast<std::size_t>(base)]; }

bool joins_pairs(const Reducer& step) { return step.kind == Kind::group && step.group == Group::logit_max; }
bool over_pairs(const Reducer& step) { return step.kind == Kind::softmax || joins_pairs(step); }

void check_order(std::string_view policy, const Recipe& recipe) {
  const std::vector<Reducer>& reduce = recipe.reduce;
  const auto folds =
      std::count_if(reduce.begin(), reduce.end(), [](const auto& s) { return s.kind == Kind::fold; });
  if (folds != 1)
    throw UserError(
        "{}: reduce must name one of mean, sum, visible, meanvar, last, max, squares, count over the "
        "queries, "
        "and no other",
        policy);
  const auto fold =
      std::find_if(reduce.begin(), reduce.end(), [](const auto& s) { return s.kind == Kind::fold; });
  if (!std::all_of(reduce.begin(), fold, over_pairs))
    throw UserError(
        "{}: reduce must begin with one of mean, sum, visible, meanvar, last, max, squares, count over the "
        "queries; "
        "only softmax and group(logit_max) may stand before it",
        policy);
  if (std::any_of(fold, reduce.end(), over_pairs))
    throw UserError(
        "{}: softmax and group(logit_max) act on queries, they stand before the step over the queries",
        policy);
}

void check_pairs(std::string_view policy, const Recipe& recipe) {
  const std::vector<Reducer>& reduce = recipe.reduce;
  const bool all = !recipe.query.empty() && recipe.query.front().kind == QueryPart::Kind::all;
  for (const Reducer& step : reduce) {
    if (step.kind == Kind::fold && step.fold == Fold::visible && (!all || recipe.base != Base::attention))
      throw UserError("{}: visible needs query=all, every key is seen by all queries of a window", policy);
    if (step.kind == Kind::fold && step.fold == Fold::meanvar && recipe.query.size() == 1 &&
        recipe.query.front().kind != QueryPart::Kind::all &&
        recipe.query.front().count + recipe.query.front().first < 2)
      throw UserError("{}: meanvar needs the variance over several queries", policy);
    if (step.kind == Kind::fold && step.fold == Fold::count && recipe.base != Base::above &&
        recipe.base != Base::below)
      throw UserError("{}: count counts an indicator, write base=indicator(above) or base=indicator(below)",
                      policy);
    if (step.kind == Kind::fold && reads_outputs(recipe.base) && step.fold != Fold::sum)
      throw UserError("{}: base={} is a loss summed over the queries, write sum in reduce", policy,
                      word(recipe.base));
    if (step.kind == Kind::minus && recipe.base != Base::below)
      throw UserError(
          "{}: minus turns a count of base=indicator(below) round, other scores already mean keep", policy);
    if (joins_pairs(step) && recipe.base != Base::logit)
      throw UserError("{}: group(logit_max) is a maximum over logits, write base=logit", policy);
    if (joins_pairs(step) && recipe.unit == Unit::query)
      throw UserError("{}: group(logit_max) joins the query heads, so unit=query has nothing to tell apart",
                      policy);
    if (step.kind == Kind::softmax && recipe.base != Base::logit && recipe.base != Base::attention)
      throw UserError("{}: softmax needs base=logit or base=attention", policy);
    if (step.kind == Kind::softmax && step.older && recipe.recent == 0)
      throw UserError("{}: softmax(older) leaves out the recent tokens, write recent=n", policy);
    if (all && (recipe.base == Base::logit || step.kind == Kind::softmax))
      throw UserError("{}: query=all would need a logit for every pair of tokens, use window(w) or proxy",
                      policy);
  }
}

void check_values(std::string_view policy, const Recipe& recipe) {
  const bool softened = std::any_of(recipe.reduce.begin(), recipe.reduce.end(),
                                    [](const Reducer& step) { return step.kind == Kind::softmax; });
  const auto in_list = std::count_if(recipe.reduce.begin(), recipe.reduce.end(),
                                     [](const Reducer& step) { return step.kind == Kind::value; });
  const bool at_end = recipe.value.kind != ValuePart::Kind::none;
  if (in_list + (at_end ? 1 : 0) > 1)
    throw UserError("{}: the score is weighed by the values twice, once is enough", policy);
  if (in_list == 0 && !at_end) return;
  if (recipe.base == Base::knorm || recipe.base == Base::keydiff || (recipe.base == Base::logit && !softened))
    throw UserError("{}: value multiplies a score, but {} scores are negative", policy, word(recipe.base));
  if (reads_outputs(recipe.base))
    throw UserError("{}: base={} holds the values already, no value beside it", policy, word(recipe.base));
  if (recipe.base != Base::attention && recipe.base != Base::logit)
    throw UserError("{}: value weighs attention, base={} is no share of any output", policy,
                    word(recipe.base));
}

}  // namespace

void Recipe::check_parts(std::string_view policy) const {
  check_query(policy, query);
  const auto groups =
      std::count_if(reduce.begin(), reduce.end(), [](const auto& s) { return s.kind == Kind::group; });
  check_values(policy, *this);
  if (!reads_queries(base)) {
    const bool folds = std::any_of(reduce.begin(), reduce.end(),
                                   [](const auto& s) { return s.kind == Kind::fold || over_pairs(s); });
    if (!query.empty() || folds)
      throw UserError("{}: base={} reads no queries, write query=none and no mean, sum or visible in reduce",
                      policy, word(base));
    return;
  }
  if (query.empty())
    throw UserError("{}: base={} needs queries, e.g. query=window(32), all or lookahead(snapkv-128)", policy,
                    word(base));
  check_order(policy, *this);
  check_pairs(policy, *this);
  if (groups > 1)
    throw UserError("{}: the query heads are joined twice, name one group(...) in reduce", policy);
  if (groups == 0 && unit != Unit::query)
    throw UserError("{}: reduce needs a group(mean|max|sum|first) where the unit is no query head", policy);
}

}  // namespace kvsim
