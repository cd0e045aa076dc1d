// Lookahead Q-Cache: pseudo queries of a cheap first pass in the place of SnapKV's window.
//
// Wang et al., arXiv:2505.20334, after the authors' code (noforit/Lookahead_Q-Cache). A first pass evicts
// with SnapKV, decodes a few pseudo tokens on the small cache and throws everything away but their queries;
// kvsim-record --lookahead ran it on the model. Here the attention of those queries over the prompt keys
// alone is summed over the rows, joined over the group, pooled, and ranked. laq protects nothing; laq_pp puts
// the last 8 prompt queries before the pseudo queries and always keeps those 8 tokens.
//
// mask=repo lays the authors' causal triangle over the newest prompt columns, where it does not belong: row i
// of R does not see the newest R - 1 - i tokens. mask=causal lets pseudo queries see the whole prompt and
// window queries what stands before them. The authors keep a set per query head (unit=query); the form with
// one set per KV head joins the summed rows by their mean before the pooling.
//
// Without a name every budget takes the pass of the nearest capacity not above it, or the smallest there is,
// as the authors set the first pass's capacity to the budget; lookahead=snapkv-256 names one for all budgets.
#include <array>
#include <limits>

#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kLaq{.name = "laq",
                            .summary = "attention of pseudo queries that a cheap first pass decoded",
                            .reference = "arXiv:2505.20334; noforit/Lookahead_Q-Cache (LAQ)",
                            .accounting = "budget tokens per unit; nothing is protected",
                            .nested = false,
                            .windowed = true,
                            .order_by_budget = true};
constexpr PolicyTraits kLaqPlus{
    .name = "laq_pp",
    .summary = "attention of the prompt's last queries and pseudo queries together",
    .reference = "arXiv:2505.20334; noforit/Lookahead_Q-Cache (LAQ++)",
    .accounting = "budget tokens per unit; the window is always kept and counts",
    .nested = false,
    .windowed = true,
    .order_by_budget = true};

constexpr std::array<std::string_view, 2> kMasks{"causal", "repo"};
constexpr std::array<std::string_view, 2> kPools{"max", "avg"};

struct Laq : RecipePolicy {
  PolicyTraits traits_ = kLaq;
  std::uint32_t window_ = 0;
  std::string lookahead_;
  std::uint32_t length_ = 8;
  std::size_t mask_ = 0;
  std::uint32_t kernel_ = 7;
  std::size_t pool_ = 0;
  std::size_t unit_ = 0;

  const PolicyTraits& traits() const override { return traits_; }
  void fields(FieldVisitor& f) override {
    f.text("lookahead", lookahead_, "first pass, e.g. snapkv-256; \"\" = the one that suits each budget");
    f.number("length", length_, shortest(), std::numeric_limits<std::uint32_t>::max(),
             "pseudo queries, from the first on");
    f.choice("mask", mask_, kMasks, "what rows see: all that they may, or as the authors' code has it");
    f.number("kernel", kernel_, 1, 4095, "tokens that a score is pooled over, odd");
    f.choice("pool", pool_, kPools, "how neighbours are pooled");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
    const bool by_budget = length_ > 0 && PassChoice{lookahead_}.by_budget();
    if (traits_.order_by_budget != by_budget) traits_.order_by_budget = by_budget;
    if (traits_.nested == by_budget) traits_.nested = !by_budget;
  }
  void prepare(Resources& resources) override {
    check_kernel(traits_.name, kernel_);
    RecipePolicy::prepare(resources);
  }

  Recipe recipe() const override {
    Recipe recipe;
    if (window_ > 0) recipe.query.push_back({.kind = QueryPart::Kind::window, .count = window_});
    if (length_ > 0)
      recipe.query.push_back({.kind = QueryPart::Kind::lookahead,
                              .count = length_,
                              .pass = {lookahead_},
                              .repo_mask = mask_ == 1});
    recipe.base = Base::attention;
    recipe.reduce = {fold_step(Fold::sum), group_step(Group::mean), pool_step(pool_ == 1, kernel_)};
    recipe.recent = window_;
    recipe.unit = unit_ == 0 ? Unit::kv : Unit::query;
    return recipe;
  }

 private:
  virtual std::uint32_t shortest() const { return 1; }
};

struct LaqPlus final : Laq {
  LaqPlus() {
    traits_ = kLaqPlus;
    window_ = 8;
  }
  void fields(FieldVisitor& f) override {
    Laq::fields(f);
    f.number("window", window_, 1, std::numeric_limits<std::uint32_t>::max(),
             "last prompt queries that vote too, always kept");
  }

 private:
  std::uint32_t shortest() const override { return 0; }  // the window alone: snapkv
};

const RegisterPolicy<Laq> registered{kLaq};
const RegisterPolicy<LaqPlus> registered_plus{kLaqPlus};

}  // namespace
}  // namespace kvsim
