// SnapKV: tokens that the last prompt queries attend to, smoothed over neighbours, plus those queries' own
// window.
//
// Li et al., arXiv:2404.14469. Defaults and order of steps are kvpress's (SnapKVPress): mean over the window,
// pooling over the tokens before it (divisor always `kernel`), mean over the query heads of the group. The
// authors pool with a maximum (pool=max, kernel=7, window=32) and keep a set per query head (unit=query); a
// sum instead of the mean over the window gives the same ranks.
#include <limits>

#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "snapkv",
                               .summary = "attention of the last prompt queries, pooled over neighbours",
                               .reference = "arXiv:2404.14469; kvpress SnapKVPress",
                               .accounting = "the window is always kept and counts towards the budget",
                               .windowed = true};

struct SnapKv final : RecipePolicy {
  std::uint32_t window_ = 64;
  std::uint32_t kernel_ = 5;
  std::size_t pool_ = 0;
  std::size_t group_ = 0;
  std::size_t unit_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("window", window_, 1, std::numeric_limits<std::uint32_t>::max(),
             "last prompt queries that vote, always kept");
    f.number("kernel", kernel_, 1, 4095, "tokens that a score is pooled over, odd");
    f.choice("pool", pool_, kPoolChoices, "how neighbours are pooled");
    f.choice("group", group_, kGroupChoices,
             "how the query heads of a KV head are joined, after the pooling");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
  }
  void prepare(Resources&) override { check_kernel(kTraits.name, kernel_); }
  Recipe recipe() const override { return window_recipe(window_, pool_, kernel_, group_, unit_); }
};

const RegisterPolicy<SnapKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
