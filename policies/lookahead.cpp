// Which recorded first pass of Lookahead Q-Cache serves which budget.
#include "policies/lookahead.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "kernels/error.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr std::string_view kPaperMethod = "snapkv";

/// "snapkv-256" -> "snapkv"; a name without a capacity is its own method.
std::string_view method_of(std::string_view name) {
  const std::size_t dash = name.rfind('-');
  if (dash == std::string_view::npos || dash + 1 == name.size()) return name;
  const auto digits = name.substr(dash + 1);
  const bool capacity =
      std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  return capacity ? name.substr(0, dash) : name;
}

std::string names_of(const std::vector<LookaheadPass>& passes) {
  std::string out;
  for (const LookaheadPass& pass : passes) out += fmt::format("{}{}", out.empty() ? "" : ", ", pass.name);
  return out;
}

/// Scores of pass 1, 2, ...
template <typename Scores>
auto slice(Scores& unit, std::size_t pass) {
  const std::size_t tokens = unit.score.size();
  KVSIM_CHECK(pass > 0 && pass * tokens < unit.extra.size(), "no scores of first pass {}", pass);
  return std::span(unit.extra).subspan(1 + (pass - 1) * tokens, tokens);
}

/// The same as a layer of their own.
LayerScores scores_of_pass(const LayerScores& scores, std::size_t pass) {
  LayerScores out;
  out.unit = scores.unit;
  for (const UnitScores& unit : scores.units) {
    const auto from = slice(unit, pass);
    out.units.push_back({{from.begin(), from.end()}, unit.protected_tokens, {}, {}});
  }
  return out;
}

}  // namespace

bool PassChoice::by_budget() const { return method_of(name) == name && name != "full"; }

std::vector<LookaheadPass> PassChoice::candidates(const LayerGeometry& layer) const {
  const std::vector<LookaheadPass>& all = layer.lookaheads;
  if (all.empty())
    throw UserError(
        "the trace holds no first pass, record with kvsim-record --lookahead 8 --lookahead-budget 128");
  const auto taken = [&](const auto& wanted) {
    std::vector<LookaheadPass> out;
    std::copy_if(all.begin(), all.end(), std::back_inserter(out), wanted);
    std::stable_sort(out.begin(), out.end(),
                     [](const auto& a, const auto& b) { return a.capacity < b.capacity; });
    return out;
  };
  if (name.empty()) {
    std::vector<LookaheadPass> paper =
        taken([](const LookaheadPass& p) { return method_of(p.name) == kPaperMethod; });
    return paper.empty() ? taken([](const LookaheadPass&) { return true; }) : paper;
  }
  std::vector<LookaheadPass> exact = taken([&](const LookaheadPass& p) { return p.name == name; });
  if (exact.empty()) exact = taken([&](const LookaheadPass& p) { return method_of(p.name) == name; });
  if (exact.empty())
    throw UserError(
        "the trace holds no first pass '{}', it has {}; choose one of them or record it with kvsim-record "
        "--lookahead-policy and --lookahead-budget",
        name, names_of(all));
  return exact;
}

LookaheadPass PassChoice::at(const LayerGeometry& layer, std::uint32_t budget) const {
  return candidates(layer)[pass_index(*this, layer, budget)];
}

std::size_t pass_index(const PassChoice& choice, const LayerGeometry& layer, std::uint32_t budget) {
  const std::vector<LookaheadPass> passes = choice.candidates(layer);
  std::size_t best = 0;
  for (std::size_t i = 1; i < passes.size(); ++i) {
    if (passes[i].capacity <= budget && passes[i].capacity > passes[best].capacity) best = i;
  }
  return best;
}

void join_passes(LayerScores& scores, const std::function<void(LayerScores&)>& join) {
  const std::size_t further =
      scores.units.empty() ? 0 : static_cast<std::size_t>(scores.units[0].extra.at(0));
  for (std::size_t pass = 1; pass <= further; ++pass) {
    LayerScores one = scores_of_pass(scores, pass);
    join(one);
    for (std::size_t u = 0; u < one.units.size(); ++u)
      std::copy(one.units[u].score.begin(), one.units[u].score.end(), slice(scores.units[u], pass).begin());
  }
  join(scores);
}

LayerRanking ranking_of_pass(const Policy& policy, const LayerGeometry& layer, const LayerRanking& ranking,
                             std::size_t pass) {
  if (pass == 0) return ranking;
  LayerRanking out = rank_layer(policy, layer, scores_of_pass(ranking.scores, pass));
  out.summaries = ranking.summaries;
  return out;
}

void check_length(std::string_view policy, const LookaheadPass& pass, std::uint32_t length) {
  if (length <= pass.queries) return;
  throw UserError(
      "{}: length={} but the first pass {} holds {} pseudo queries: choose length={} or record with "
      "kvsim-record --lookahead {}",
      policy, length, pass.name, pass.queries, pass.queries, length);
}

LayerRanking ranking_at(const Policy& policy, const LayerGeometry& layer, const LayerRanking& ranking,
                        std::uint32_t budget) {
  if (const auto* reader = dynamic_cast<const ReadsLookahead*>(&policy))
    return reader->ranking_at(layer, ranking, budget);
  if (const auto* wrapper = dynamic_cast<const ScoreWrapper*>(&policy);
      wrapper != nullptr && wrapper->inner() != nullptr)
    return kvsim::ranking_at(*wrapper->inner(), layer, ranking, budget);
  return ranking;
}

std::string lookahead_pass_at(const Policy& policy, const LayerGeometry& layer, std::uint32_t budget) {
  if (const auto* reader = dynamic_cast<const ReadsLookahead*>(&policy))
    return reader->pass_at(layer, budget);
  if (const auto* wrapper = dynamic_cast<const ScoreWrapper*>(&policy);
      wrapper != nullptr && wrapper->inner() != nullptr)
    return lookahead_pass_at(*wrapper->inner(), layer, budget);
  return {};
}

}  // namespace kvsim
