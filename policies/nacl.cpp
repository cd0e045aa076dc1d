// NACL: a few proxy queries vote, and a part of the budget is drawn at random.
//
// arXiv:2408.03675 in the one-shot form of KVCache-Factory's selector: attention of the proxy queries (the
// last `suffix` and the first `prefix` prompt queries) is summed; the proxies themselves and the sinks stay;
// of the rest of the budget a share `random` is drawn without replacement from softmax(score / temperature)
// over the tokens that the vote leaves out. A budget below what is protected keeps the newest of it. How the
// paper splits the two parts is not known to us: suffix=32 and random=0.3 are our choice. Draws are keyed by
// (seed, trace, layer, query head), never by the budget, so that the drawn tokens of a larger budget contain
// those of a smaller one but for those that the vote keeps by then.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "kernels/order.h"
#include "kernels/philox.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "nacl",
    .summary = "attention of proxy queries, and a random part",
    .reference = "arXiv:2408.03675; KVCache-Factory's selector (split of the parts: ours)",
    .accounting =
        "proxies and sinks, newest first, then (1 - random) of the rest by score and `random` of it drawn",
    .nested = false,
    .order_by_budget = true};

struct Nacl final : Policy {
  std::uint32_t suffix_ = 32;
  std::uint32_t prefix_ = 0;
  std::uint32_t sinks_ = 0;
  double random_ = 0.3;
  double temperature_ = 1;
  std::uint32_t seed_ = 0;
  std::size_t group_ = 0;
  std::size_t unit_ = 1;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
    f.number("suffix", suffix_, 0, kAny, "last prompt queries that vote, always kept");
    f.number("prefix", prefix_, 0, kAny, "first prompt queries that vote, always kept");
    f.number("sinks", sinks_, 0, kAny, "first tokens that are always kept");
    f.number("random", random_, 0.0, 1.0, "share of the unprotected budget that is drawn");
    f.number("temperature", temperature_, 1e-9, 1e9, "of the draw: softmax(score / temperature)");
    f.number("seed", seed_, 0, kAny, "another seed, another draw");
    f.choice("group", group_, kGroupChoices, "unit=kv: how the query heads of a KV head are joined");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
  }
  void prepare(Resources&) override {
    if (suffix_ + std::uint64_t{prefix_} == 0)
      throw UserError("nacl needs proxy queries: suffix or prefix above 0");
  }
  Need needs() const override {
    return (suffix_ > 0 ? Need::window_queries : Need::none) | (prefix_ > 0 ? Need::all_queries : Need::none);
  }
  std::uint32_t window() const override { return suffix_; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    if (layer.prompt <= std::uint64_t{suffix_} + prefix_) {
      throw UserError("nacl(suffix={},prefix={}) needs a prompt of more than {} tokens, this one has {}",
                      suffix_, prefix_, std::uint64_t{suffix_} + prefix_, layer.prompt);
    }
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < layer.group; ++h) rows.push_back(votes(head, h));
    if (unit_ == 0) rows = {join_group(rows, static_cast<Group>(group_))};
    for (std::size_t u = 0; u < rows.size(); ++u) {
      out[u].score = to_scores(rows[u]);
      out[u].protected_tokens = protected_order(layer.prompt, std::max(prefix_, sinks_), suffix_);
      std::sort(out[u].protected_tokens.begin(), out[u].protected_tokens.end(), std::greater<>());
      draw(head, u, out[u]);
    }
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }

 private:
  std::vector<double> votes(const HeadFeatures& head, std::size_t h) const {
    std::vector<double> sum(head.geometry().prompt, 0.0);
    const auto add = [&](const QueryRows& rows) {
      const MatrixView<const float> weights = head.attention(rows, h);
      for (std::size_t t = 0; t < sum.size(); ++t)
        for (const float a : weights.row_span(t)) sum[t] += static_cast<double>(a);
    };
    if (prefix_ > 0) add({.source = QueryRows::Source::prompt, .first = 0, .count = prefix_});
    if (suffix_ > 0) add({.count = suffix_});
    return sum;
  }

  /// The order at every budget: protected, the best, the drawn, the rest.
  void draw(const HeadFeatures& head, std::size_t u, UnitScores& unit) const {
    const LayerGeometry& layer = head.geometry();
    const std::size_t tokens = unit.score.size(), guarded = unit.protected_tokens.size();
    Philox numbers(seed_, stream_of(layer.trace_digest, layer.layer, head.kv_head(), u));
    std::vector<bool> stays(tokens, false);
    for (const TokenIndex t : unit.protected_tokens) stays[t] = true;
    // Sampling without replacement from softmax weights = the largest of logit + Gumbel noise.
    std::vector<float> noisy(tokens);
    for (std::size_t t = 0; t < tokens; ++t) {
      const double uniform = 1 - numbers.next_double();  // (0, 1]
      const double noise = -std::log(std::max(-std::log(uniform), 1e-300));
      noisy[t] = static_cast<float>(static_cast<double>(unit.score[t]) / temperature_ + noise);
    }
    std::vector<TokenIndex> by_score(tokens), by_draw(tokens);
    sort_descending(unit.score, by_score);
    sort_descending(noisy, by_draw);
    std::erase_if(by_score, [&](TokenIndex t) { return stays[t]; });
    for (const std::uint32_t budget : head.budgets()) {
      const std::size_t free = std::min<std::size_t>(budget, tokens) - std::min<std::size_t>(guarded, budget);
      const std::size_t best = free - static_cast<std::size_t>(random_ * static_cast<double>(free));
      std::vector<TokenIndex> order = unit.protected_tokens;
      std::vector<bool> taken = stays;
      for (std::size_t i = 0; i < std::min(best, by_score.size()); ++i) {
        order.push_back(by_score[i]);
        taken[by_score[i]] = true;
      }
      for (const TokenIndex t : by_draw)
        if (!taken[t]) order.push_back(t);
      unit.orders.push_back(std::move(order));
    }
  }
};

const RegisterPolicy<Nacl> registered{kTraits};

}  // namespace
}  // namespace kvsim
