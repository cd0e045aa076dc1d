// Merging: the values of evicted tokens go to the kept token whose key is most alike.
//
// kvpress's MergingPress. Every evicted token e finds the kept token t with the largest cosine of keys; it is merged where
// that is at least `threshold`, and with fraction < 1 only where it is at least the (1 - fraction) quantile of all evicted
// tokens' cosines (linear between neighbours; those below the threshold count as -infinity). Weight w_e = max(0, cos)
// |v_e| / (|v_e| + |v_t| + 1e-6); v_t becomes (v_t + sum w_e v_e) / (1 + sum w_e); keys stay. Deviation: where the quantile
// falls among tokens below the threshold, all others merge; the press computes a NaN there and merges nothing.
#include <algorithm>
#include <cmath>
#include <limits>

#include "policies/registry.h"
#include "policies/transformer.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "merging",
                               .summary = "values of evicted tokens are merged into the kept token with the most similar key",
                               .reference = "kvpress MergingPress (after arXiv:2210.09461, arXiv:2406.13035)",
                               .accounting = "as the score's; merged tokens take no room",
                               .transforms = true};

constexpr double kLeastNorm = 1e-6;

double norm_of(const float* row, std::size_t size) {
  double squares = 0;
  for (std::size_t c = 0; c < size; ++c) squares += static_cast<double>(row[c]) * static_cast<double>(row[c]);
  return std::sqrt(squares);
}

/// Where an evicted token goes.
struct Target {
  std::size_t kept = 0;  // place among the kept tokens
  double cosine = -std::numeric_limits<double>::infinity();
};

struct Merging final : Transformer {
  double threshold_ = 0;
  double fraction_ = 1;

  Merging() : Transformer(kTraits, "snapkv") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.number("threshold", threshold_, -1.0, 1.0, "least cosine of the keys");
    f.number("fraction", fraction_, 0.0, 1.0, "share of the evicted tokens that may merge, the most similar first");
  }
  Transformed transform(const HeadFeatures& head, std::size_t query_head, std::span<const TokenIndex> kept) const override {
    Transformed entries = inner_entries(head, query_head, kept);
    const std::vector<TokenIndex> evicted = others(head.geometry().prompt, kept);
    if (kept.empty() || evicted.empty()) return entries;
    const std::vector<Target> targets = find_targets(head.keys(), entries.keys.view(), evicted);
    const double least = std::max(threshold_, quantile(targets));
    const std::size_t dv = head.geometry().value_dim;
    Matrix<double> sum(kept.size(), dv);
    std::vector<double> weight(kept.size(), 0.0), norm(kept.size());
    for (std::size_t t = 0; t < kept.size(); ++t) norm[t] = norm_of(entries.values.row(t), dv);
    for (std::size_t e = 0; e < evicted.size(); ++e) {
      const auto [to, cosine] = targets[e];
      if (cosine < least) continue;
      const float* const value = head.values().row(evicted[e]);
      const double own = norm_of(value, dv);
      const double w = std::max(0.0, cosine) * own / (own + norm[to] + kLeastNorm);
      weight[to] += w;
      for (std::size_t c = 0; c < dv; ++c) sum(to, c) += w * static_cast<double>(value[c]);
    }
    for (std::size_t t = 0; t < kept.size(); ++t)
      for (std::size_t c = 0; c < dv && weight[t] > 0; ++c)
        entries.values(t, c) = static_cast<float>((static_cast<double>(entries.values(t, c)) + sum(t, c)) / (1 + weight[t]));
    return entries;
  }

 private:
  static std::vector<TokenIndex> others(std::size_t prompt, std::span<const TokenIndex> kept) {
    std::vector<TokenIndex> rest;
    std::size_t next = 0;
    for (TokenIndex t = 0; t < prompt; ++t) {
      if (next < kept.size() && kept[next] == t) {
        ++next;
      } else {
        rest.push_back(t);
      }
    }
    return rest;
  }

  /// Ties go to the earlier kept token.
  static std::vector<Target> find_targets(MatrixView<const float> keys, MatrixView<const float> kept,
                                          const std::vector<TokenIndex>& evicted) {
    Matrix<double> by_channel(kept.cols, kept.rows);  // normalised, so that the kept tokens run in the lanes
    for (std::size_t t = 0; t < kept.rows; ++t) {
      const double norm = std::max(norm_of(kept.row(t), kept.cols), kLeastNorm);
      for (std::size_t c = 0; c < kept.cols; ++c) by_channel(c, t) = static_cast<double>(kept.row(t)[c]) / norm;
    }
    std::vector<Target> targets(evicted.size());
    std::vector<double> cosine(kept.rows);
    for (std::size_t e = 0; e < evicted.size(); ++e) {
      const float* const key = keys.row(evicted[e]);
      const double norm = std::max(norm_of(key, keys.cols), kLeastNorm);
      std::fill(cosine.begin(), cosine.end(), 0.0);
      for (std::size_t c = 0; c < kept.cols; ++c) {
        const double x = static_cast<double>(key[c]) / norm;
        const double* const row = by_channel.row(c);
        for (std::size_t t = 0; t < kept.rows; ++t) cosine[t] += x * row[t];
      }
      const auto best = std::max_element(cosine.begin(), cosine.end());
      targets[e] = {static_cast<std::size_t>(best - cosine.begin()), *best};
    }
    return targets;
  }

  double quantile(const std::vector<Target>& targets) const {
    constexpr double kNone = -std::numeric_limits<double>::infinity();
    if (fraction_ >= 1) return kNone;
    std::vector<double> cosines;
    for (const Target& target : targets) cosines.push_back(target.cosine >= threshold_ ? target.cosine : kNone);
    std::sort(cosines.begin(), cosines.end());
    const double place = (1 - fraction_) * static_cast<double>(cosines.size() - 1);
    const auto below = static_cast<std::size_t>(std::floor(place));
    const double low = cosines[below], high = cosines[std::min(below + 1, cosines.size() - 1)];
    return low == kNone ? kNone : low + (high - low) * (place - static_cast<double>(below));
  }
};

const RegisterPolicy<Merging> registered{kTraits};

}  // namespace
}  // namespace kvsim
