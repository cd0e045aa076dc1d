// CUR: leverage of keys and values, by their squared norms relative to their neighbourhood.
//
// CurDKV, arXiv:2509.15048, as in kvpress (CURPress) without its random projection: squared norms are divided
// by the sum over their block of `local` tokens, keys and values are multiplied, and the result is divided by
// its sum. As there, the tokens of a shorter last block share the mass of a whole one and so weigh more.
// Deviation: an all-zero block scores 0.
#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "cur",
                               .summary = "leverage of keys and values within blocks",
                               .reference = "arXiv:2509.15048; kvpress CURPress",
                               .accounting = "sinks are kept first and count towards the budget"};

constexpr std::array<std::string_view, 4> kLeverageChoices{"kv_product", "kv_avg", "key", "value"};

/// Squared row norms, each divided by the sum over its block of `local` rows; 0 = not divided.
std::vector<double> leverage(MatrixView<const float> rows, std::size_t local) {
  std::vector<double> out = row_norms(rows, ValueNorm::l2);
  for (double& x : out) x *= x;
  if (local == 0) return out;
  for (std::size_t begin = 0; begin < out.size(); begin += local) {
    const std::size_t end = std::min(out.size(), begin + local);
    double sum = 0;
    for (std::size_t t = begin; t < end; ++t) sum += out[t];
    for (std::size_t t = begin; t < end && sum > 0; ++t) out[t] /= sum;
  }
  return out;
}

struct Cur final : Policy {
  std::uint32_t sinks_ = 4;
  std::uint32_t local_ = 16;
  std::size_t leverage_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(),
             "first tokens that are always kept");
    f.number("local", local_, 0, std::numeric_limits<std::uint32_t>::max(),
             "tokens of a neighbourhood, 0 = whole prompt");
    f.choice("leverage", leverage_, kLeverageChoices, "what is weighed");
  }
  Need needs() const override {
    return leverage_ == 2 ? Need::keys : leverage_ == 3 ? Need::values : Need::keys | Need::values;
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t tokens = head.geometry().prompt;
    std::vector<double> total =
        leverage_ == 3 ? leverage(head.values(), local_) : leverage(head.keys(), local_);
    if (leverage_ < 2) {
      const std::vector<double> values = leverage(head.values(), local_);
      for (std::size_t t = 0; t < tokens; ++t)
        total[t] = leverage_ == 0 ? total[t] * values[t] : (total[t] + values[t]) / 2;
    }
    double sum = 0;
    for (const double x : total) sum += x;
    for (double& x : total) x = sum > 0 ? x / sum : 0.0;
    out[0].score = to_scores(total);
    out[0].protected_tokens = protected_order(tokens, sinks_, 0);
    for (const TokenIndex t : out[0].protected_tokens) out[0].score[t] = 1.0f;
  }
};

const RegisterPolicy<Cur> registered{kTraits};

}  // namespace
}  // namespace kvsim
