// Scores all layers of a trace ahead.
#include "sim/cli/model_summaries.h"

#include <algorithm>
#include <iterator>

namespace kvsim {
namespace {

/// Heads of one layer, as often as there are batches of variants.
class LayerSource final : public BlockSource {
 public:
  LayerSource(const TraceReader& reader, std::size_t layer, std::size_t passes, const BlockRequest& request)
      : prefetcher_(reader, order(reader.info(), layer, passes), request, 1) {}
  HeadBlock next() override { return prefetcher_.next(); }

 private:
  static std::vector<BlockPrefetcher::Item> order(const TraceInfo& info, std::size_t layer, std::size_t passes) {
    std::vector<BlockPrefetcher::Item> items;
    for (std::size_t pass = 0; pass < passes; ++pass)
      for (std::uint32_t kv = 0; kv < info.num_kv_heads; ++kv) items.push_back({layer, kv});
    return items;
  }
  BlockPrefetcher prefetcher_;
};

}  // namespace

std::vector<std::uint32_t> model_wide_variants(const PreparedRun& run, const std::vector<std::uint32_t>& variants) {
  std::vector<std::uint32_t> wide;
  std::copy_if(variants.begin(), variants.end(), std::back_inserter(wide), [&](std::uint32_t v) {
    const auto& policy = run.variants[v].policy;
    return policy && policy->traits().model_wide;
  });
  return wide;
}

UnitMemory plan_summaries(const PreparedRun& run, std::size_t trace, std::size_t layer_ordinal,
                          const std::vector<std::uint32_t>& variants, std::size_t budgets) {
  const TraceInfo& info = run.traces[trace].info();
  const std::vector<const Variant*> list = run.pointers(variants);
  const BlockRequest request = block_request(list, info, info.layers[layer_ordinal], {});
  UnitMemory memory = plan_memory(make_layer_context(info, layer_ordinal), request, list, budgets, {}, info.layers[layer_ordinal].hidden_size, run.options.threads,
                                  run.options.memory, run.devices.empty() ? nullptr : run.devices.front().get());
  memory.hold = false;  // no head is needed twice
  return memory;
}

void SummaryStore::announce(std::size_t trace, const std::vector<std::uint32_t>& variants, const std::vector<std::uint32_t>& budgets) {
  const std::vector<std::uint32_t> wide = model_wide_variants(run_, variants);
  if (!wide.empty()) wanted_[trace][budgets].insert(wide.begin(), wide.end());
}

std::size_t SummaryStore::layers() const {
  std::size_t sum = 0;
  for (const auto& [trace, wanted] : wanted_) sum += wanted.size() * run_.traces[trace].info().layers.size();
  return sum;
}

bool SummaryStore::load(std::size_t trace, const std::function<bool()>& layer_done) {
  if (trace == held_) return true;
  summaries_.clear();
  held_ = trace;
  const auto wanted = wanted_.find(trace);
  if (wanted == wanted_.end()) return true;
  const TraceReader& reader = run_.traces[trace];
  for (const auto& [budgets, set] : wanted->second) {
    const std::vector<std::uint32_t> variants(set.begin(), set.end());
    UnitSettings settings;
    settings.variants = run_.pointers(variants);
    settings.fail_fast = run_.options.fail_fast;
    settings.device = run_.devices.empty() ? nullptr : run_.devices.front().get();
    for (const std::uint32_t b : budgets) settings.budgets.push_back(run_.record.description.traces[trace].budgets[b]);
    std::vector<ModelSummaries> summaries(variants.size());
    for (std::size_t l = 0; l < reader.info().layers.size(); ++l) {
      settings.memory = plan_summaries(run_, trace, l, variants, budgets.size());
      const std::size_t batches = (variants.size() + settings.memory.variant_batch - 1) / settings.memory.variant_batch;
      LayerSource source(reader, l, batches, block_request(settings.variants, reader.info(), reader.info().layers[l], {}));
      add_summaries(make_layer_context(reader.info(), l), settings, source, summaries);
      if (!layer_done()) {
        held_ = static_cast<std::size_t>(-1);
        return false;
      }
    }
    for (std::size_t i = 0; i < variants.size(); ++i) summaries_[{budgets, variants[i]}] = std::move(summaries[i]);
  }
  return true;
}

std::vector<const ModelSummaries*> SummaryStore::of(const std::vector<std::uint32_t>& variants,
                                                    const std::vector<std::uint32_t>& budgets) const {
  if (model_wide_variants(run_, variants).empty()) return {};
  std::vector<const ModelSummaries*> list;
  for (const std::uint32_t v : variants) {
    const auto found = summaries_.find({budgets, v});
    list.push_back(found == summaries_.end() ? nullptr : &found->second);
  }
  return list;
}

}  // namespace kvsim
