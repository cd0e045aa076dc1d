// The best set of every single step: each decode query and query head keeps its own heaviest tokens.
//
// An upper bound of the recall of any policy that may fetch tokens back. Its fixed ranking, by the mean
// attention over the decode, serves only where one order per head is asked for.
#include "policies/reads_means.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "oracle_topk",
    .summary = "every step's own heaviest tokens: the bound for recall with refetching",
    .reference = "hindsight; metrics page, \"The oracles\"",
    .accounting = "budget tokens per step and query head; nothing is protected",
    .oracle = true,
    .step_order = true};

struct OracleTopK final : Policy, ReadsMeans {
  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor&) override {}
  Need needs() const override { return Need::decode_queries; }
  bool means_alone() const override { return true; }
  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    out[0].score = decode_reference(head);
  }
};

const RegisterPolicy<OracleTopK> registered{kTraits};

}  // namespace
}  // namespace kvsim
