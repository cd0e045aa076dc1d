// Leverage of keys: tokens whose keys other keys cannot stand in for.
//
// The geometric half of Compactor (Chari & Van Durme, arXiv:2507.08143), as in kvpress (LeverageScorePress):
// statistical leverage of the centred keys before the rotary embedding, standardised over all heads of the
// layer. kvpress draws a random sketch of 48 columns; the default here is the exact score without one
// (sketch=0), sketch=48 is kvpress's.
#include <limits>

#include "policies/compactor_parts.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "leverage",
                               .summary = "statistical leverage of the keys before the rotary embedding",
                               .reference = "arXiv:2507.08143; kvpress LeverageScorePress (sketch=48)",
                               .accounting = "budget tokens per KV head; nothing is protected"};

struct Leverage final : Policy {
  std::uint32_t sketch_ = 0;
  std::uint32_t seed_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("sketch", sketch_, 0, 4096, "columns of a random sketch of the keys, 0 = the keys themselves");
    f.number("seed", seed_, 0, std::numeric_limits<std::uint32_t>::max(), "another seed, another sketch");
  }
  Need needs() const override { return Need::keys; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::span<const float> row = key_leverage(head, {0, head.geometry().prompt}, sketch_, seed_);
    out[0].score.assign(row.begin(), row.end());
  }
  void join(const LayerGeometry&, LayerScores& scores) const override {
    std::vector<std::span<float>> rows;
    for (UnitScores& unit : scores.units) rows.emplace_back(unit.score);
    standardise(rows);
  }
};

const RegisterPolicy<Leverage> registered{kTraits};

}  // namespace
}  // namespace kvsim
