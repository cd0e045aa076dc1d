// Key rotation: the kept keys move together, as if the evicted tokens had never been there.
//
// kvpress's KeyRerotationPress (and Finch, and attention sinks as first published): the i-th kept token gets position i, its
// key is turned there by the rotary embedding, values stay, and later queries go on from the compressed length. The
// recorded decode queries stand behind the whole prompt, so all keys are moved behind the gap instead: distances, and so
// logits, are the same. Under a sliding window what a query sees still goes by the recorded positions.
#include "policies/registry.h"
#include "policies/transformer.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "key_rotation",
                               .summary = "keys move together over the evicted tokens, around any score",
                               .reference = "kvpress KeyRerotationPress",
                               .accounting = "as the score's; nothing is added",
                               .transforms = true};

struct KeyRotation final : Transformer {
  KeyRotation() : Transformer(kTraits, "snapkv") {}
  void fields(FieldVisitor& f) override { score_field(f); }
  Transformed transform(const HeadFeatures& head, std::size_t query_head, std::span<const TokenIndex> kept) const override {
    Transformed entries = inner_entries(head, query_head, kept);
    entries.keys = moved_together(entries.keys.view(), kept, head.rope(), head.geometry().prompt - kept.size());
    return entries;
  }
};

const RegisterPolicy<KeyRotation> registered{kTraits};

}  // namespace
}  // namespace kvsim
