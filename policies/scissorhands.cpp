// Scissorhands in its one-shot forms: mean attention of the last queries, or how often a token gets less than
// its share.
//
// Liu et al., arXiv:2305.17118, applied once at the end of the prompt. form=mean is the prompt-time score of
// VATP's authors, the mean attention of the last 400 prompt queries. form=count is the paper's: a token loses
// a point for every one of those queries that gives it less than 1/t of its attention, t the keys that the
// query sees. Ten recent tokens stay; kept sets per query head, as both codes were written without groups.
#include <array>
#include <limits>

#include "kernels/error.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "scissorhands",
    .summary = "attention of the last 400 queries, as a mean or as counts below an even share",
    .reference = "arXiv:2305.17118; prompt-time score of VATP's authors (form=mean)",
    .accounting = "sinks, then the recent tokens are kept first; both count",
    .windowed = true};

constexpr std::array<std::string_view, 2> kFormChoices{"mean", "count"};

struct Scissorhands final : Policy {
  std::size_t form_ = 0;
  std::uint32_t window_ = 400;
  std::uint32_t sinks_ = 0;
  std::uint32_t recent_ = 10;
  std::size_t group_ = 0;
  std::size_t unit_ = 1;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
    f.choice("form", form_, kFormChoices,
             "mean attention, or minus the number of queries that give less than 1/t");
    f.number("window", window_, 1, kAny, "last prompt queries that vote");
    f.number("sinks", sinks_, 0, kAny, "first tokens that are always kept");
    f.number("recent", recent_, 0, kAny, "last prompt tokens that are always kept");
    f.choice("group", group_, kGroupChoices, "unit=kv: how the query heads of a KV head are joined");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
  }
  Need needs() const override { return Need::window_queries; }
  std::uint32_t window() const override { return window_; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t tokens = head.geometry().prompt;
    if (tokens <= window_) {
      throw UserError("scissorhands(window={}) needs a prompt of more than {} tokens, this one has {}",
                      window_, window_, tokens);
    }
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < head.geometry().group; ++h) {
      if (form_ == 1) {
        rows.push_back(counts(head, h));
        continue;
      }
      const std::span<const float> mean = head.window_mean(window_, h);
      rows.emplace_back(mean.begin(), mean.end());
    }
    if (unit_ == 0) rows = {join_group(rows, static_cast<Group>(group_))};
    for (std::size_t u = 0; u < rows.size(); ++u) {
      out[u].score = to_scores(rows[u]);
      out[u].protected_tokens = protected_order(tokens, sinks_, recent_);
    }
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }

 private:
  std::vector<double> counts(const HeadFeatures& head, std::size_t h) const {
    const std::size_t tokens = head.geometry().prompt;
    const QueryRows rows{.count = window_};
    const MatrixView<const float> weights =
        head.attention(rows, h);  // hindsight has as many rows as were decoded
    std::vector<double> out(tokens, 0.0);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t i = 0; i < weights.cols; ++i) {
        const std::size_t seen = visible_end(rows, i, weights.cols, head.geometry());
        const bool low = static_cast<double>(weights(t, i)) * static_cast<double>(seen) < 1;
        if (t < seen && low) out[t] -= 1;
      }
    }
    return out;
  }
};

const RegisterPolicy<Scissorhands> registered{kTraits};

}  // namespace
}  // namespace kvsim
