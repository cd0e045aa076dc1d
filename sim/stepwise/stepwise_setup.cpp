// What the decode-time policies of a unit need before they run: recorded inputs, what is read, and memory.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"
#include "sim/stepwise/stepwise_unit.h"
#include "sim/stepwise/tile_measure.h"

namespace kvsim {
namespace {

bool reads_blocks(const StepwisePolicy& policy) {
  return policy.schedule().block > 0 && (has(policy.needs(), StepNeed::attention) || has(policy.needs(), StepNeed::queries));
}

bool has_sums(const LayerInfo& layer) {
  return std::find(layer.attention_stats.begin(), layer.attention_stats.end(), "sum") != layer.attention_stats.end();
}

}  // namespace

std::string missing_step_need(const StepwisePolicy& policy, const TraceInfo& trace, const LayerInfo& layer) {
  const StepNeed needs = policy.needs();
  const std::size_t recorded = layer.prompt_queries(trace.prompt_len);
  const auto without = [&](std::string_view what, std::string_view how) {
    return fmt::format("needs {}, which layer {} of {} lacks: record with {}", what, layer.index, trace.path, how);
  };
  if (reads_blocks(policy) && recorded < trace.prompt_len) return without("all prompt queries to read the prompt in blocks", "--queries all");
  const std::size_t rows = std::min<std::size_t>(policy.prompt_rows(), trace.prompt_len);
  if (policy.schedule().block == 0 && rows > recorded)
    return fmt::format("needs the last {} prompt queries, layer {} of {} holds {}: record with --queries {}", rows, layer.index, trace.path,
                       recorded, rows == trace.prompt_len ? "all" : fmt::format("window:{}", rows));
  if (policy.schedule().block == 0 && has(needs, StepNeed::prompt_sum) && !has_sums(layer) && recorded < trace.prompt_len)
    return without("the attention of all prompt queries", "--stats or --queries all");
  if (has(needs, StepNeed::token_text) && trace.token_text.empty())
    return fmt::format("needs token texts, which {} lacks: record with kvsim-record, which stores them", trace.path);
  if (has(needs, StepNeed::final_hidden) && trace.final_hidden_size == 0)
    return fmt::format("needs final hidden states, which {} lacks: record with --final-hidden", trace.path);
  if (has(needs, StepNeed::hidden) && !layer.has_hidden) return without("hidden states", "--hidden");
  if (has(needs, StepNeed::retention)) {
    for (const LayerInfo& one : trace.layers)
      if (!one.has_retention) return fmt::format("needs retention gates, which layer {} of {} lacks: record with --retention-gates FILE", one.index, trace.path);
  }
  return {};
}

BlockRequest stepwise_block_request(std::span<const Variant* const> variants, const TraceInfo& trace, const LayerInfo& layer,
                                    std::span<const std::string> metrics) {
  BlockRequest request = metrics_request(layer, metrics);
  for (const Variant* variant : variants) {
    const StepwisePolicy& policy = *variant->stepwise;
    if (!missing_step_need(policy, trace, layer).empty()) continue;
    if (reads_blocks(policy)) request.all_queries = true;
    if (policy.schedule().block > 0) continue;
    const std::size_t rows = std::min<std::size_t>(policy.prompt_rows(), trace.prompt_len);
    if (rows == trace.prompt_len) request.all_queries = true;
    request.prompt_queries = std::max(request.prompt_queries, rows);
    if (has(policy.needs(), StepNeed::prompt_sum)) {
      request.attention_stats |= has_sums(layer);
      request.all_queries |= !has_sums(layer);
    }
  }
  return request;
}

StepwiseMemory plan_stepwise_memory(const LayerContext& layer, const BlockRequest& request, std::span<const Variant* const> variants,
                                    std::size_t budgets, std::size_t hidden, int threads, std::uint64_t limit) {
  const LayerGeometry& g = layer.geometry;
  constexpr std::uint64_t kBase = 96ull << 20;
  const std::uint64_t tokens = g.prompt + g.decode;
  const std::uint64_t queries = g.group * (g.decode + (request.all_queries ? g.prompt : request.prompt_queries));
  std::uint64_t block = (tokens * (g.key_dim + g.value_dim) + queries * g.key_dim) * sizeof(float);
  if (request.attention_stats) block += g.group * g.prompt * sizeof(float) * 3;
  if (request.output_proj) block += g.group * g.value_dim * hidden * sizeof(float);
  block += request.sensitivity_samples * g.value_dim * g.group * g.decode * sizeof(float);
  // A cell: positions, lanes, times of eviction, and a state of a few numbers per query head and token.
  std::uint64_t cells = 0, tile = 0;
  for (const Variant* variant : variants) {
    const StepwisePolicy& policy = *variant->stepwise;
    const std::uint64_t caches = g.kv_heads * (policy.unit() == Unit::query ? g.group : 1);
    cells += caches * tokens * (10 + 8 * sizeof(float));
    const std::uint64_t rows = policy.schedule().block > 0 ? policy.schedule().block : policy.prompt_rows() > 0 ? 64 : 0;
    tile = std::max(tile, g.kv_heads * g.prompt * round_up(g.group * rows, kRowPad) * sizeof(float));
  }
  cells *= budgets + 1;
  cells += budgets * variants.size() * request.sensitivity_samples * g.decode * sizeof(double);
  const std::uint64_t panel = tokens * (g.group * 16 * (2 * sizeof(float) + 4) + g.value_dim * sizeof(float)) + tokens * g.group * 4 * sizeof(float);
  const auto need = [&](std::size_t chunk) {
    const std::uint64_t values = g.kv_heads * g.group * chunk * (8 + (request.output_proj || request.sensitivity_samples > 0 ? g.value_dim : 0)) * sizeof(float);
    return kBase + (g.kv_heads + 2) * block + std::max<std::uint64_t>(g.kv_heads * ExactHead::bytes_needed(g, chunk), tile) + cells +
           static_cast<std::uint64_t>(threads) * (panel + values * (variants.empty() ? 1 : budgets) + hidden * chunk * sizeof(float) * 2);
  };
  StepwiseMemory memory;
  memory.step_chunk = std::max<std::size_t>(g.decode, 1);
  if (need(memory.step_chunk) > limit) memory.step_chunk = round_up(memory.step_chunk, kStepBlock);
  while (need(memory.step_chunk) > limit && memory.step_chunk > kStepBlock) memory.step_chunk = round_up(memory.step_chunk / 2, kStepBlock);
  memory.bytes = need(memory.step_chunk);
  if (memory.bytes > limit)
    throw UserError("--memory {} MiB is too little: layer {} (prompt {}, {} decode-time variants x {} budgets) needs {} MiB", limit >> 20,
                    g.layer, g.prompt, variants.size(), budgets, (memory.bytes >> 20) + 1);
  return memory;
}

}  // namespace kvsim
