// Finch: the question at the end of the prompt chooses what stays of the context.
//
// Corallo & Papotti, doi 10.1162/tacl_a_00716, as in kvpress (FinchPress): attention of the question's
// queries, each row multiplied by the number of keys before it so that late rows do not count less
// (normalize), mean over the question and over the group, no pooling; the question itself stays. `window` is
// the question's length: `kvsim trace info` shows the segments of a trace recorded with --split. length > 0
// keeps max(1, floor(length * budget / T)) tokens of every chunk. kvpress rotates the kept keys to their new
// places afterwards; here they stay where they are.
#include <algorithm>
#include <limits>

#include "kernels/error.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "finch",
    .summary = "attention of the question's queries, later rows not discounted",
    .reference = "doi 10.1162/tacl_a_00716; kvpress FinchPress (rotation left out)",
    .accounting =
        "the question is always kept and counts; with length: max(1, floor(length * budget / T)) tokens of "
        "every chunk, up to one per chunk below the budget",
    .windowed = true};

struct Finch final : Policy {
  std::uint32_t window_ = 0;
  bool normalize_ = true;
  std::uint32_t length_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
    f.number("window", window_, 0, kAny, "tokens of the question at the end of the prompt (required)");
    f.flag("normalize", normalize_, "multiply each row by the number of keys before it");
    f.number("length", length_, 0, kAny,
             "tokens of a chunk, each of which keeps its share; 0 = the whole prompt");
  }
  void prepare(Resources&) override {
    if (window_ == 0)
      throw UserError(
          "finch needs the question's length in tokens, e.g. finch(window=24); 'kvsim trace info' shows "
          "segments");
  }
  Need needs() const override { return Need::window_queries; }
  std::uint32_t window() const override { return window_; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    const std::size_t tokens = layer.prompt;
    if (tokens <= window_)
      throw UserError("finch(window={}) needs a prompt of more than {} tokens, this one has {}", window_,
                      window_, tokens);
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < layer.group; ++h) {
      const MatrixView<const float> weights = head.attention({.count = window_}, h);
      const std::size_t n = weights.cols;  // the question's queries, or the true decode queries in hindsight
      rows.emplace_back(tokens - window_, 0.0);
      for (std::size_t t = 0; t < rows[h].size(); ++t) {
        for (std::size_t j = 0; j < n; ++j) {
          const std::size_t before = n == window_ ? tokens - window_ + j : tokens;
          rows[h][t] += (normalize_ ? static_cast<double>(before) : 1.0) * static_cast<double>(weights(t, j));
        }
        rows[h][t] /= static_cast<double>(n);
      }
    }
    out[0].score = to_scores(join_group(rows, Group::mean));
    out[0].score.resize(tokens, 0.0f);
    out[0].protected_tokens = protected_order(tokens, 0, window_);
    if (length_ > 0) share_chunks(out[0]);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override {
    if (length_ == 0) lift_protected(scores);
  }

  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    if (length_ == 0) return Policy::allocate(layer, ranking, budget, kept);
    const auto limit = -static_cast<float>(std::min<std::size_t>(budget, layer.prompt));
    for (std::size_t u = 0; u < kept.size(); ++u) {
      const auto& order = ranking.order[u];
      const auto& score = ranking.scores.units[u].score;
      const auto end =
          std::partition_point(order.begin(), order.end(), [&](TokenIndex t) { return score[t] >= limit; });
      kept[u] = static_cast<std::uint32_t>(end - order.begin());
    }
  }

 private:
  /// Puts in place of the score minus the smallest budget at which the token's chunk keeps it; the question
  /// first.
  void share_chunks(UnitScores& unit) const {
    const std::size_t tokens = unit.score.size(), question = tokens - window_;
    std::vector<float> entry(tokens);
    for (std::size_t begin = 0; begin < tokens; begin += length_) {
      const std::size_t length = std::min<std::size_t>(length_, tokens - begin);
      std::vector<TokenIndex> order(length);
      for (std::size_t i = 0; i < length; ++i) order[i] = static_cast<TokenIndex>(begin + i);
      std::stable_sort(order.begin(), order.end(), [&](TokenIndex a, TokenIndex b) {
        const bool asks_a = a >= question, asks_b = b >= question;
        return asks_a != asks_b ? asks_a : unit.score[a] > unit.score[b];
      });
      for (std::size_t rank = 0; rank < length; ++rank) {
        const std::size_t budget = rank == 0 ? 0 : ((rank + 1) * tokens + length - 1) / length;
        entry[order[rank]] = 0.0f - static_cast<float>(budget);
      }
    }
    unit.score = std::move(entry);
    unit.protected_tokens.clear();
  }
};

const RegisterPolicy<Finch> registered{kTraits};

}  // namespace
}  // namespace kvsim
