// Keeps random tokens: the reference that every score has to beat.
//
// Numbers are keyed by (seed, trace digest, layer, KV head), never by the variant, so that the same tokens go
// in every run. kvpress draws from torch's generator instead; with a seed it gives all layers the same
// scores.
#include <limits>

#include "kernels/philox.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "random",
                               .summary = "keeps random tokens: the reference that every score has to beat",
                               .reference = "none; kvpress RandomPress draws differently",
                               .accounting = "budget tokens per KV head; nothing is protected"};

struct Random final : Policy {
  std::uint32_t seed_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("seed", seed_, 0, std::numeric_limits<std::uint32_t>::max(), "another seed, another choice");
  }
  Need needs() const override { return Need::none; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    Philox numbers(seed_, stream_of(layer.trace_digest, layer.layer, head.kv_head()));
    out[0].score.resize(layer.prompt);
    for (float& s : out[0].score) s = static_cast<float>(numbers.next_double());
  }
};

const RegisterPolicy<Random> registered{kTraits};

}  // namespace
}  // namespace kvsim
