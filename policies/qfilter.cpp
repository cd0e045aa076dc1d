// Q-Filters: one direction per head stands for all queries; tokens whose keys point along it are kept.
//
// arXiv:2503.02812, as in kvpress (QFilterPress): score = -<filter, key>, no sinks. The published filters are
// made elsewhere; here a filter is the leading right singular vector of a head's queries as attention reads
// them (not centred), turned so that the mean query projects negatively onto it, averaged over the group.
// Those come from a file, which `kvsim trace queries` makes of other traces and which may also hold published
// ones ([layers, KV heads, channels], /filters), or, with file=own, from the prompt queries of the trace
// itself.
#include "policies/layer_array.h"
#include "policies/query_filter.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "qfilter",
                               .summary = "keys along the main direction of the head's queries",
                               .reference = "arXiv:2503.02812; kvpress QFilterPress",
                               .accounting = "budget tokens per KV head; nothing is protected"};

struct QFilter final : Policy {
  std::string file_ = "own";
  LayerArray filters_;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.text(
        "file", file_,
        "own = filters from this trace's prompt queries, else a file with /filters ('kvsim trace queries')");
  }
  void prepare(Resources& resources) override {
    if (file_ != "own") filters_.load(resources, file_, "/filters");
  }
  Need needs() const override { return filters_.loaded() ? Need::keys : Need::keys | Need::all_queries; }
  void check(const LayerGeometry& layer) const override {
    if (filters_.loaded())
      filters_.check(layer, {layer.kv_heads, layer.key_dim}, "layers, KV heads, channels");
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    const std::span<const float> filter =
        filters_.loaded() ? filters_.at(layer, head.kv_head()) : own_filter(head);
    const MatrixView<const float> keys = head.keys();
    out[0].score.resize(keys.rows);
    for (std::size_t t = 0; t < keys.rows; ++t) {
      double dot = 0;
      for (std::size_t c = 0; c < keys.cols; ++c)
        dot += static_cast<double>(filter[c]) * static_cast<double>(keys(t, c));
      out[0].score[t] = static_cast<float>(0.0 - dot);
    }
  }

 private:
  static std::span<const float> own_filter(const HeadFeatures& head) {
    return head.shared("query filter", [&] {
      QueryFilter filter(head.geometry().group, head.geometry().key_dim);
      for (std::size_t h = 0; h < head.geometry().group; ++h) filter.add(h, head.prompt_queries(h));
      return filter.result();
    });
  }
};

const RegisterPolicy<QFilter> registered{kTraits};

}  // namespace
}  // namespace kvsim
