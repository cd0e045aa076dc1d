// PyramidKV: SnapKV's scores, with more budget in the early layers than in the late ones.
//
// Cai et al., arXiv:2406.02069, in kvpress's form (PyramidKVPress): linear from 2C - C/beta tokens in the
// first layer down to C/beta in the last, C the mean budget; flat where the prompt is too short or C/beta
// would not hold the window, which is common below C = beta * window. form=authors is the original code
// (KVCache-Factory): the slope runs over the tokens beyond the window, which every layer keeps on top. Both
// round every layer by itself (total=repo); here the sum over the recorded layers is exact unless that is
// asked for. A trace of some layers only uses their true depth and is scaled to the same mean.
#include <algorithm>
#include <array>
#include <limits>

#include "policies/allotment.h"
#include "policies/reads_means.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "pyramidkv",
    .summary = "snapkv with budgets that fall linearly over the layers",
    .reference = "arXiv:2406.02069; kvpress PyramidKVPress, KVCache-Factory (authors)",
    .accounting = "budget tokens per unit on average over the recorded layers, the window included",
    .nested = false,  // a layer's share can fall where the flat form gives way to the slope
    .windowed = true};

constexpr std::array<std::string_view, 2> kFormChoices{"kvpress", "authors"};
constexpr std::array<std::string_view, 2> kTotalChoices{"exact", "repo"};

struct PyramidKv final : Policy, ReadsMeans {
  std::uint32_t window_ = 64;
  std::uint32_t kernel_ = 5;
  std::size_t pool_ = 0;
  double beta_ = 20;
  std::size_t group_ = 0;
  std::size_t unit_ = 0;
  std::size_t form_ = 0;
  std::size_t total_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("window", window_, 1, std::numeric_limits<std::uint32_t>::max(),
             "last prompt queries that vote, always kept");
    f.number("kernel", kernel_, 1, 4095, "tokens that a score is pooled over, odd");
    f.choice("pool", pool_, kPoolChoices, "how neighbours are pooled");
    f.number("beta", beta_, 1.0, 1e6, "mean budget over the last layer's budget; 1 = the same everywhere");
    f.choice("group", group_, kGroupChoices,
             "how the query heads of a KV head are joined, after the pooling");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
    f.choice("form", form_, kFormChoices, "slope over the whole budget or over the tokens beyond the window");
    f.choice("total", total_, kTotalChoices,
             "keep the total over the layers exactly, or round as that code does");
  }
  void prepare(Resources&) override { check_kernel(kTraits.name, kernel_); }
  Need needs() const override { return Need::window_queries; }
  std::uint32_t window() const override { return window_; }
  bool means_alone() const override { return true; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  Scope scope() const override { return Scope::model; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    window_recipe(window_, pool_, kernel_, group_, unit_).score(head, kTraits.name, out);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }
  void allocate(const LayerGeometry& layer, const LayerRanking&, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const LayerSlope slope{beta_, total_ == 1,
                           form_ == 0 ? LayerSlope::Form::kvpress : LayerSlope::Form::authors};
    std::fill(kept.begin(), kept.end(), slope.tokens(layer, budget, window_));
  }
};

const RegisterPolicy<PyramidKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
