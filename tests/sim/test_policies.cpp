// Policies that exist in this test program only, one for each way of leaving the single pass.
#include <algorithm>
#include <numeric>

#include "kernels/philox.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim::test {
namespace {

constexpr PolicyTraits kOrdersTraits{.name = "test_orders",
                                     .summary = "another random order at every second budget",
                                     .reference = "a test",
                                     .accounting = "budget tokens per unit; nothing is protected",
                                     .nested = false,
                                     .order_by_budget = true};

struct TestOrders final : Policy {
  std::size_t unit_ = 0;
  const PolicyTraits& traits() const override { return kOrdersTraits; }
  void fields(FieldVisitor& f) override { f.choice("unit", unit_, kUnitChoices, "what owns a kept set"); }
  Need needs() const override { return Need::none; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    for (std::size_t u = 0; u < out.size(); ++u) {
      out[u].score.assign(head.geometry().prompt, 0.0f);
      for (std::size_t b = 0; b < head.budgets().size(); ++b) {
        std::vector<TokenIndex>& order = out[u].orders.emplace_back(head.geometry().prompt);
        std::iota(order.begin(), order.end(), 0u);
        Philox random(5, stream_of(head.kv_head(), u, b / 2));
        for (auto i = static_cast<std::uint32_t>(order.size()); i > 1; --i) std::swap(order[i - 1], order[random.next_below(i)]);
        // No longer than the budget: the engine fills up.
        order.resize(std::min<std::size_t>(order.size(), b % 2 == 0 ? order.size() : head.budgets()[b]));
      }
    }
  }
};
const RegisterPolicy<TestOrders> registered_orders{kOrdersTraits};

constexpr PolicyTraits kOwnSizeTraits{.name = "test_own_size",
                                      .summary = "keeps two thirds of the budget in KV head 0 and half in the others",
                                      .reference = "a test",
                                      .accounting = "at most the budget",
                                      .own_size = true};

struct TestOwnSize final : Policy {
  const PolicyTraits& traits() const override { return kOwnSizeTraits; }
  void fields(FieldVisitor&) override {}
  Need needs() const override { return Need::keys; }
  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    out[0].score = to_scores(key_norm_scores(head.keys()));
  }
  void allocate(const LayerGeometry& layer, const LayerRanking&, std::uint32_t budget, std::span<std::uint32_t> kept) const override {
    const auto most = std::min<std::uint32_t>(budget, static_cast<std::uint32_t>(layer.prompt));
    for (std::size_t u = 0; u < kept.size(); ++u) kept[u] = u == 0 ? most * 2 / 3 : most / 2;
  }
};
const RegisterPolicy<TestOwnSize> registered_own_size{kOwnSizeTraits};

}  // namespace
}  // namespace kvsim::test
