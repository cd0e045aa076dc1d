// ThinK: after the tokens, the key channels that matter least for the logits are dropped.
//
// arXiv:2407.21018. Channel c of a set scores mean q_c^2 * mean k_c^2, over the window's last queries and the kept keys; the
// trunc(d * ratio) lowest are left out, values stay. form=kvpress (ThinKPress): one set of channels per KV head, q^2 averaged
// over its query heads, the channels dropped for all kept tokens. form=authors: the newest 32 tokens stay whole (`recent`);
// the authors have channels of their own for every query head, which is score=...(unit=query) here. Tokens that are decoded
// stay whole. The metric logit_error says what the logits lose, and bytes count the channels that are left. kvpress's own
// ratio is 0, nothing dropped; the default is the authors' 0.4.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "policies/registry.h"
#include "policies/transformer.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "think",
                               .summary = "drops the key channels that matter least, after any token eviction",
                               .reference = "arXiv:2407.21018; kvpress ThinKPress, the authors' code (form=authors)",
                               .accounting = "tokens as the score's; resident_bytes counts the channels that are left",
                               .transforms = true};

constexpr std::array<std::string_view, 2> kFormChoices{"kvpress", "authors"};

struct Think final : Transformer {
  double ratio_ = 0.4;
  std::uint32_t window_ = 32;
  std::size_t form_ = 0;
  std::uint32_t recent_ = 32;

  Think() : Transformer(kTraits, "snapkv") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.number("ratio", ratio_, 0.0, 1.0, "share of the key channels that is dropped");
    f.number("window", window_, 1, std::numeric_limits<std::uint32_t>::max(), "last prompt queries that are looked at");
    f.choice("form", form_, kFormChoices, "all kept tokens lose the channels, or the newest stay whole");
    f.number("recent", recent_, 0, std::numeric_limits<std::uint32_t>::max(), "form=authors: newest prompt tokens that stay whole");
  }
  Need needs() const override { return Transformer::needs() | Need::window_queries; }
  std::uint32_t window() const override { return std::max(window_, Transformer::window()); }

  Transformed transform(const HeadFeatures& head, std::size_t query_head, std::span<const TokenIndex> kept) const override {
    Transformed entries = inner_entries(head, query_head, kept);
    const std::size_t d = head.geometry().key_dim;
    const auto dropped = static_cast<std::size_t>(static_cast<double>(d) * ratio_);
    if (kept.empty() || dropped == 0) return entries;
    const std::vector<double> energy = channel_energy(head, query_head, entries.keys.view());
    std::vector<std::size_t> channels(d);
    std::iota(channels.begin(), channels.end(), std::size_t{0});
    std::stable_sort(channels.begin(), channels.end(), [&](std::size_t a, std::size_t b) { return energy[a] < energy[b]; });
    const std::size_t whole_from = head.geometry().prompt - std::min<std::size_t>(form_ == 1 ? recent_ : 0, head.geometry().prompt);
    std::size_t cut = 0;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      if (kept[i] >= whole_from) continue;
      ++cut;
      for (std::size_t c = 0; c < dropped; ++c) entries.keys(i, channels[c]) = 0.0f;
    }
    const double lost = static_cast<double>(cut * dropped) / static_cast<double>(kept.size() * (d + head.geometry().value_dim));
    entries.resident_share *= 1 - lost;
    return entries;
  }

 private:
  /// mean q_c^2 * mean k_c^2 per channel.
  std::vector<double> channel_energy(const HeadFeatures& head, std::size_t query_head, MatrixView<const float> keys) const {
    const bool own = unit() == Unit::query;
    const std::size_t first = own ? query_head : 0, end = own ? query_head + 1 : head.geometry().group;
    std::vector<double> queries(keys.cols, 0.0), energy(keys.cols, 0.0);
    for (std::size_t h = first; h < end; ++h) {
      const MatrixView<const float> rows = head.queries({.source = QueryRows::Source::window, .count = window_}, h);
      for (std::size_t i = 0; i < rows.rows; ++i)
        for (std::size_t c = 0; c < keys.cols; ++c) queries[c] += static_cast<double>(rows.row(i)[c]) * static_cast<double>(rows.row(i)[c]);
    }
    for (std::size_t t = 0; t < keys.rows; ++t)
      for (std::size_t c = 0; c < keys.cols; ++c) energy[c] += static_cast<double>(keys.row(t)[c]) * static_cast<double>(keys.row(t)[c]);
    const double count = static_cast<double>((end - first) * window_) * static_cast<double>(keys.rows);
    for (std::size_t c = 0; c < keys.cols; ++c) energy[c] *= queries[c] / count;
    return energy;
  }
};

const RegisterPolicy<Think> registered{kTraits};

}  // namespace
}  // namespace kvsim
