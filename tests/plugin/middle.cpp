// The example of CONTRIBUTING.md, as a plugin: keeps the tokens nearest to the middle of the prompt.
#include <cmath>

#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "middle",
                               .summary = "keeps the middle of the prompt",
                               .reference = "an example",
                               .accounting = "budget tokens per KV head; the sinks count"};

struct Middle final : Policy {
  std::uint32_t sinks_ = 4;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override { f.number("sinks", sinks_, 0, 1u << 20, "first tokens that are never evicted"); }
  Need needs() const override { return Need::none; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t prompt = head.geometry().prompt;
    const double middle = static_cast<double>(prompt) / 2;
    for (std::size_t i = 0; i < prompt; ++i)
      out[0].score.push_back(static_cast<float>(-std::abs(static_cast<double>(i) - middle)));
    for (TokenIndex i = 0; i < sinks_ && i < prompt; ++i) out[0].protected_tokens.push_back(i);
  }
};

const RegisterPolicy<Middle> registered{kTraits};

}  // namespace
}  // namespace kvsim
