// Attention inside chunks of the prompt that ignores the order of its tokens.
//
// The attention half of Compactor (Chari & Van Durme, arXiv:2507.08143), as in kvpress (NonCausalAttnPress):
// every query of a chunk attends to all keys of the chunk without the logit scale; column sums, mean over the
// group, times |v|, averaged over three neighbours, standardised over all heads of the layer. A shorter last
// chunk is padded as kvpress pads it, which gives its keys weight from queries that do not exist.
#include "policies/compactor_parts.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "noncausal",
                               .summary = "attention inside chunks without order, times value norms",
                               .reference = "arXiv:2507.08143; kvpress NonCausalAttnPress",
                               .accounting = "budget tokens per KV head; nothing is protected"};

struct NonCausal final : Policy {
  std::uint32_t chunk_ = 256;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override { f.number("chunk", chunk_, 1, 1u << 20, "tokens of a chunk"); }
  Need needs() const override { return Need::keys | Need::values | Need::all_queries; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::span<const float> sums = chunk_attention(head, {0, head.geometry().prompt}, chunk_);
    out[0].score.assign(sums.begin(), sums.end());
  }
  void join(const LayerGeometry&, LayerScores& scores) const override {
    std::vector<std::span<float>> rows;
    for (UnitScores& unit : scores.units) rows.emplace_back(unit.score);
    standardise(rows);
  }
};

const RegisterPolicy<NonCausal> registered{kTraits};

}  // namespace
}  // namespace kvsim
