// Keeps every token: the reference that all errors are measured against.
#include <algorithm>

#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "full",
                               .summary = "keeps everything, whatever the budget: the reference",
                               .reference = "none",
                               .accounting = "ignores the budget; resident tokens tell what it really holds"};

struct Full final : Policy {
  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor&) override {}
  Need needs() const override { return Need::none; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    out[0].score.assign(head.geometry().prompt, 0.0f);
  }
  void allocate(const LayerGeometry& layer, const LayerRanking&, std::uint32_t,
                std::span<std::uint32_t> kept) const override {
    std::fill(kept.begin(), kept.end(), static_cast<std::uint32_t>(layer.prompt));
  }
};

const RegisterPolicy<Full> registered{kTraits};

}  // namespace
}  // namespace kvsim
