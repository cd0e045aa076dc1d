// DBudgetKV (ReFreeKV): prunes along a ranking until the norm of the last query's attention has dropped by a threshold.
//
// arXiv:2502.16886, after the authors' code. The size is the policy's own: p tokens, the same number in every head of the
// layer, are cut from the end of each head's order, p the largest number with (S(0) - S(p)) / S(0) <= threshold, S(p) =
// mean over query heads of the l2 norm of the last prompt query's attention over the tokens that are left; protected
// tokens do not count (as in the code; protected=true counts them). Default order: the position prior, first 4 tokens
// kept, then oldest first. Any other ranking can be put in its place. The paper says threshold 0.01, its scripts and
// parser 0.05, the default here. What the test read at the stop is the metric stop_signal.
#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "policies/registry.h"
#include "policies/stop_signal.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "dbudgetkv",
    .summary = "its own size: prunes any ranking until the last query's attention norm has dropped",
    .reference = "arXiv:2502.16886; the authors' code (last_token_attn)",
    .accounting = "the budget is the most it keeps; one count per layer, chosen from the input",
    .own_size = true};

struct DBudgetKv final : ScoreWrapper, StopSignal {
  double threshold_ = 0.05;
  bool count_protected_ = false;

  DBudgetKv() : ScoreWrapper(kTraits, "streaming_llm") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.number("threshold", threshold_, 0.0, 1.0, "relative drop of the norm that ends the pruning");
    f.flag("protected", count_protected_, "count protected tokens in the norm");
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    const PolicyTraits& inner = score_->traits();
    if (inner.order_by_budget || inner.model_wide || inner.own_size || inner.step_order)
      throw UserError("dbudgetkv: score={} has no single order that could be cut", inner.name);
  }
  Need needs() const override { return ScoreWrapper::needs() | Need::window_queries; }
  std::uint32_t window() const override { return std::max(1u, ScoreWrapper::window()); }
  Unit unit() const override { return ScoreWrapper::unit() == Unit::query ? Unit::query : Unit::kv; }
  Scope scope() const override { return Scope::layer; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    score_->score(head, out);
    const std::size_t group = head.geometry().group;
    for (UnitScores& unit : out) unit.extra.clear();
    for (std::size_t h = 0; h < group; ++h) {
      const MatrixView<const float> row = head.attention({.source = QueryRows::Source::window, .count = 1}, h);
      std::vector<float>& extra = out[out.size() == group ? h : 0].extra;
      for (std::size_t t = 0; t < row.rows; ++t) extra.push_back(row.row(t)[0]);
    }
  }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const std::vector<double> drops = all_drops(ranking);
    // Drops do not fall as more is cut.
    const auto end = std::upper_bound(drops.begin(), drops.end(), threshold_);
    const auto cut = static_cast<std::uint32_t>(end - drops.begin()) - 1;
    const auto prompt = static_cast<std::uint32_t>(layer.prompt);
    std::fill(kept.begin(), kept.end(), std::min(budget, prompt - cut));
  }
  double stop_signal(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t,
                     std::span<const std::uint32_t> kept) const override {
    const std::vector<double> drops = all_drops(ranking);
    return drops[std::min(drops.size() - 1, layer.prompt - kept.front())];
  }

 private:
  /// (S(0) - S(p)) / S(0) for p = 0 .. the most that can be cut, not falling.
  std::vector<double> all_drops(const LayerRanking& ranking) const {
    const auto& units = ranking.scores.units;
    const std::size_t prompt = units[0].score.size();
    std::size_t guarded = 0;
    for (const UnitScores& unit : units) guarded = std::max(guarded, unit.protected_tokens.size());
    std::vector<double> norms(prompt - guarded + 1, 0.0);  // the last of them of nothing where all can be cut
    std::size_t heads = 0;
    for (std::size_t u = 0; u < units.size(); ++u) {
      const std::size_t own = units[u].protected_tokens.size();
      for (std::size_t at = 0; at < units[u].extra.size(); at += prompt, ++heads) {
        const float* const row = units[u].extra.data() + at;
        double squares = 0;
        for (std::size_t i = 0; i < prompt; ++i) {  // in the order: what is kept longest comes first
          if (i >= own || count_protected_) squares += std::pow(static_cast<double>(row[ranking.order[u][i]]), 2);
          if (prompt - 1 - i < norms.size()) norms[prompt - 1 - i] += std::sqrt(squares);
        }
      }
    }
    KVSIM_CHECK(heads > 0, "dbudgetkv without attention rows");
    const double whole = norms[0];
    std::vector<double> drops;
    for (const double norm : norms) drops.push_back(whole > 0 ? (whole - norm) / whole : 0.0);
    for (std::size_t p = 1; p < drops.size(); ++p) drops[p] = std::max(drops[p], drops[p - 1]);  // against rounding
    return drops;
  }
};

const RegisterPolicy<DBudgetKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
