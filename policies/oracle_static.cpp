// The best fixed set in hindsight: ranks by the mean attention of the true decode queries over the whole
// decode.
//
// A bound for recall, consistency and misses of prompt-time eviction. It is no bound for the output error,
// which depends on the values as well.
#include "policies/reads_means.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "oracle_static",
                               .summary = "one set for all steps, by the true decode queries' mean attention",
                               .reference = "hindsight; metrics page, \"The oracles\"",
                               .accounting = "budget tokens per KV head; nothing is protected",
                               .oracle = true};

struct OracleStatic final : Policy, ReadsMeans {
  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor&) override {}
  Need needs() const override { return Need::decode_queries; }
  bool means_alone() const override { return true; }
  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    out[0].score = decode_reference(head);
  }
};

const RegisterPolicy<OracleStatic> registered{kTraits};

}  // namespace
}  // namespace kvsim
