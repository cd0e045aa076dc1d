// DropKV: what the outputs of the last prompt queries lose when one token alone is removed, squared and
// summed.
//
// openreview MqfNzH3TVH, as in kvpress (DropKVPress): sum over the window of (a / (1 - a))^2 |v - o|^2, mean
// over the group, average pooling over all tokens (the window's own scores take part in their neighbours'),
// the window stays. Deviation: kvpress adds 1e-6 to 1 - a; here 1 - a is bounded below by the float next
// to 1.
#include <limits>

#include "kernels/error.h"
#include "policies/products.h"
#include "policies/recipe.h"
#include "policies/registry.h"
#include "policies/removal_cost.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "dropkv",
    .summary = "exact change of the last prompt queries' outputs without the token",
    .reference = "openreview MqfNzH3TVH; kvpress DropKVPress",
    .accounting = "the window is always kept and counts towards the budget",
    .windowed = true};

struct DropKv final : Policy {
  std::uint32_t window_ = 32;
  std::uint32_t kernel_ = 7;
  std::size_t group_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("window", window_, 1, std::numeric_limits<std::uint32_t>::max(),
             "last prompt queries that vote, always kept");
    f.number("kernel", kernel_, 1, 4095, "tokens that a score is averaged over, odd");
    f.choice("group", group_, kGroupChoices,
             "how the query heads of a KV head are joined, before the pooling");
  }
  void prepare(Resources&) override { check_kernel(kTraits.name, kernel_); }
  Need needs() const override { return Need::values | Need::window_queries; }
  std::uint32_t window() const override { return window_; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t tokens = head.geometry().prompt;
    if (tokens <= window_)
      throw UserError("dropkv(window={}) needs a prompt of more than {} tokens, this one has {}", window_,
                      window_, tokens);
    std::vector<std::vector<double>> rows;
    const QueryRows window{.count = window_};
    for (std::size_t h = 0; h < head.geometry().group; ++h) {
      rows.emplace_back(tokens, 0.0);
      const MatrixView<const float> outputs = head.outputs(window, h);
      add_removal_squares(head.attention(window, h), head.values(), transposed(outputs).view(), 0,
                          outputs.rows, rows[h]);
    }
    out[0].score = to_scores(pooled(join_group(rows, static_cast<Group>(group_)), kernel_, true));
    out[0].protected_tokens = protected_order(tokens, 0, window_);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }
};

const RegisterPolicy<DropKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
