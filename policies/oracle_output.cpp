// The exact worth of a token in hindsight: how much the outputs over the decode change without it.
//
// For every decode step and query head the change is a / (1 - a) |v - o| (the identity of CAOTE,
// arXiv:2504.14051, with the true queries in place of the last prompt query); a token's score is the length
// of the change of all these outputs stacked, the truth that the metric score_truth compares scores with.
// Exact for the removal of one token; of larger sets it knows the members but not what they do together, so
// it is a strong reference and no bound.
#include "policies/recipe.h"
#include "policies/registry.h"
#include "policies/removal_cost.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "oracle_output",
    .summary = "exact change of the true decode outputs when the token alone is removed",
    .reference = "hindsight; closed form of arXiv:2504.14051",
    .accounting = "budget tokens per KV head, or per query head; nothing is protected",
    .oracle = true};

struct OracleOutput final : Policy {
  std::size_t unit_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
  }
  Need needs() const override { return Need::values | Need::decode_queries; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    std::vector<std::span<const float>> costs;
    for (std::size_t h = 0; h < head.geometry().group; ++h) costs.push_back(decode_removal_cost(head, h));
    if (unit_ == 0) {
      out[0].score = joint_removal_cost(costs);
      return;
    }
    for (std::size_t h = 0; h < costs.size(); ++h) out[h].score.assign(costs[h].begin(), costs[h].end());
  }
};

const RegisterPolicy<OracleOutput> registered{kTraits};

}  // namespace
}  // namespace kvsim
