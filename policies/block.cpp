// Block: reads the prompt block by block and keeps a budget of it at any time, around scores by keys and
// values.
//
// The block-wise prefill of KeyDiff (arXiv:2504.15364), as in kvpress (BlockPress): the first `budget` tokens
// are held; then each block of `length` tokens joins them and the best `budget` of both stay. The inner
// policy sees what is held and the block as if they were the whole prompt, in the order of their positions
// (kvpress: in the order of their last scores, which only scores by position notice). Every budget has its
// own order. kvpress also lets scores of queries in, with hidden states cut up among the heads; they make no
// sense and are refused here.
#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/error.h"
#include "policies/key_value_features.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "block",
    .summary = "reads the prompt in blocks and never holds more than the budget and one block",
    .reference = "arXiv:2504.15364; kvpress BlockPress",
    .accounting =
        "budget tokens per KV head; what the policy under score protects is kept first in every block",
    .nested = false,
    .order_by_budget = true};

struct Block final : ScoreWrapper {
  std::uint32_t length_ = 128;

  Block() : ScoreWrapper(kTraits, "keydiff") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.number("length", length_, 1, std::numeric_limits<std::uint32_t>::max(), "tokens of a block");
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    const PolicyTraits& inner = score_->traits();
    if (!scores_keys_and_values(*score_) || inner.order_by_budget || inner.own_size || inner.transforms ||
        inner.name == "external") {
      throw UserError(
          "block(score={}): only policies that rank by keys, values or positions of a KV head can rank a "
          "block "
          "and what is held",
          inner.name);
    }
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    score_->score(head, out);
    for (const std::uint32_t budget : head.budgets()) out[0].orders.push_back(read(head, budget));
  }
  void join(const LayerGeometry& layer, LayerScores& scores) const override { score_->join(layer, scores); }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    Policy::allocate(layer, ranking, budget, kept);
  }
  void reorder(const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
               std::span<const std::uint32_t> kept, std::span<std::vector<TokenIndex>> order) const override {
    Policy::reorder(layer, ranking, budget, kept, order);
  }

 private:
  /// What is held at the end, best first, then the others in the order in which they left, last first.
  std::vector<TokenIndex> read(const HeadFeatures& head, std::uint32_t budget) const {
    const std::size_t tokens = head.geometry().prompt, size = std::min<std::size_t>(budget, tokens);
    std::vector<TokenIndex> held(size), gone;
    std::iota(held.begin(), held.end(), TokenIndex{0});
    if (size == tokens) held = best(head, std::move(held));
    for (std::size_t begin = size; begin < tokens; begin += length_) {
      std::sort(held.begin(), held.end());
      for (std::size_t t = begin; t < std::min<std::size_t>(tokens, begin + length_); ++t)
        held.push_back(static_cast<TokenIndex>(t));
      held = best(head, std::move(held));
      gone.insert(gone.end(), held.rbegin(), held.rend() - static_cast<std::ptrdiff_t>(size));
      held.resize(size);
    }
    held.insert(held.end(), gone.rbegin(), gone.rend());
    return held;
  }
  /// The tokens, best first.
  std::vector<TokenIndex> best(const HeadFeatures& head, std::vector<TokenIndex> tokens) const {
    const KeyValueFeatures subset(head, tokens, score_->needs());
    LayerScores scores{Unit::kv, std::vector<UnitScores>(1)};
    score_->score(subset, scores.units);
    score_->join(subset.geometry(), scores);
    const LayerRanking ranking = rank_layer(*score_, subset.geometry(), std::move(scores));
    std::vector<TokenIndex> out;
    for (const TokenIndex t : ranking.order[0]) out.push_back(tokens[t]);
    return out;
  }
};

const RegisterPolicy<Block> registered{kTraits};

}  // namespace
}  // namespace kvsim
