// What a unit needs before it runs: its context, what it reads, and how it fits into memory.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "kernels/error.h"
#include "policies/reads_means.h"
#include "sim/device_plan.h"
#include "sim/predicted_kl.h"
#include "sim/projection.h"
#include "sim/transformed.h"
#include "sim/unit_replay.h"

namespace kvsim {

std::vector<std::string> metrics_of_level(std::span<const std::string> chosen, MetricInfo::Level level) {
  std::vector<std::string> names;
  for (const MetricInfo& metric : all_metrics())
    if (metric.level == level && std::find(chosen.begin(), chosen.end(), metric.name) != chosen.end())
      names.emplace_back(metric.name);
  return names;
}

LayerContext make_layer_context(const TraceInfo& trace, std::size_t layer_ordinal) {
  const LayerInfo& layer = trace.layers[layer_ordinal];
  LayerContext context;
  LayerGeometry& g = context.geometry;
  g.layer = layer.index;
  g.model_layers = trace.num_layers;
  for (const LayerInfo& recorded : trace.layers) g.recorded_layers.push_back(recorded.index);
  g.prompt = trace.prompt_len;
  g.decode = trace.decode_len;
  g.kv_heads = trace.num_kv_heads;
  g.group = trace.group();
  g.key_dim = trace.head_dim;
  g.value_dim = trace.value_dim;
  g.softmax_scale = layer.softmax_scale;
  g.sliding_window = layer.sliding_window;
  g.trace_digest = trace.digest_key;
  for (const LookaheadInfo& pass : trace.lookaheads)
    g.lookaheads.push_back({pass.name, pass.capacity, pass.tokens});
  g.second_pass = trace.second_pass;
  context.rule = {layer.softmax_scale, layer.logit_softcap, layer.sliding_window};
  context.inverse_frequency = layer.inverse_frequency;
  context.rope_layout = trace.rope_layout;
  context.attention_scaling = layer.attention_scaling;
  context.element_bytes = size_of(trace.dtype);
  context.stored = trace.dtype;
  context.residual_norm = layer.residual_norm;
  for (const Segment& segment : trace.segments) {
    const auto end = std::min<std::uint32_t>(segment.end, static_cast<std::uint32_t>(g.prompt));
    if (segment.kind == "evidence" && segment.begin < end) context.evidence.emplace_back(segment.begin, end);
  }
  return context;
}

std::string missing_need(const Policy& policy, const TraceInfo& trace, const LayerInfo& layer) {
  const std::size_t prompt_queries = layer.prompt_queries(trace.prompt_len);
  const bool all_queries = prompt_queries >= trace.prompt_len;
  const Need needs = policy.needs();
  const auto without = [&](std::string_view what, std::string_view how) {
    return fmt::format("needs {}, which layer {} of {} lacks: record with {}", what, layer.index, trace.path,
                       how);
  };
  if (has(needs, Need::window_queries) && policy.window() >= trace.prompt_len)
    return fmt::format("needs a prompt of more than {} tokens, that of {} has {}: choose a smaller window",
                       policy.window(), trace.path, trace.prompt_len);
  if (has(needs, Need::window_queries) && policy.window() > prompt_queries) {
    return fmt::format(
        "needs the last {} prompt queries, layer {} of {} holds {}: record with --queries window:{}",
        policy.window(), layer.index, trace.path, prompt_queries, policy.window());
  }
  const bool has_sum = std::find(layer.attention_stats.begin(), layer.attention_stats.end(), "sum") !=
                       layer.attention_stats.end();
  if (has(needs, Need::prompt_attention) && !has_sum && !all_queries)
    return without("the attention of all prompt queries", "--stats or --queries all");
  if (has(needs, Need::query_stats) && !layer.has_query_stats && !all_queries)
    return without("statistics of the prompt's queries before the rotary embedding",
                   "--stats or --queries all");
  if (has(needs, Need::all_queries) && !all_queries) return without("all prompt queries", "--queries all");
  if (has(needs, Need::output_projection) && !layer.has_output_proj)
    return without("the output projection", "--output-proj");
  if (has(needs, Need::lookahead) && trace.lookaheads.empty())
    return without("pseudo queries of a lookahead pass", "--lookahead 8 --lookahead-budget 128");
  if (has(needs, Need::second_pass) && trace.second_pass.empty())
    return without("a second pass over the context", "--second-pass repeat");
  return {};
}

BlockRequest metrics_request(const LayerInfo& layer, std::span<const std::string> metrics) {
  BlockRequest request;
  const bool norms = needs_norms(metrics) && !layer.residual_norm.empty();
  request.output_proj =
      layer.has_output_proj && (norms || !metrics_of_level(metrics, MetricInfo::Level::layer).empty());
  if (needs_responses(metrics)) request.sensitivity_samples = layer.sensitivity_samples;
  return request;
}

BlockRequest block_request(std::span<const Variant* const> variants, const TraceInfo& trace,
                           const LayerInfo& layer, std::span<const std::string> metrics) {
  BlockRequest request = metrics_request(layer, metrics);
  const bool has_sum = std::find(layer.attention_stats.begin(), layer.attention_stats.end(), "sum") !=
                       layer.attention_stats.end();
  for (const Variant* variant : variants) {
    if (!missing_need(*variant->policy, trace, layer).empty()) continue;
    const Need needs = variant->policy->needs();
    if (has(needs, Need::window_queries))
      request.prompt_queries = std::max<std::size_t>(request.prompt_queries, variant->policy->window());
    if (has(needs, Need::prompt_attention)) {
      request.attention_stats |= has_sum;
      request.all_queries |= !has_sum;
    }
    if (has(needs, Need::query_stats)) {
      request.query_stats |= layer.has_query_stats;
      request.all_queries |= !layer.has_query_stats;
    }
    request.all_queries |= has(needs, Need::all_queries);
    request.output_proj |= has(needs, Need::output_projection);
    request.lookahead |= has(needs, Need::lookahead);
    request.second_pass |= has(needs, Need::second_pass);
  }
  return request;
}

namespace {

/// The parts of a unit's memory.
struct Sizes {
  std::uint64_t block = 0, raw = 0, score = 0, projection = 0, task = 0, heads = 0;
  std::uint64_t guesses = 0;  // attention of windows and pseudo queries, and means over tokens
  std::uint64_t future = 0;   // attention of the true decode queries, where a score asks for their rows
  std::uint64_t future_outputs = 0;  // and their outputs
  std::uint64_t most_units = 1;      // per KV head
  bool transforms = false;           // some variant looks at the features again while it is measured
};

/// Whether scoring asks for the attention of single true decode queries: as an oracle, or with hindsight.
bool reads_future_rows(const Policy& policy) {
  return (has_hindsight(policy) || has(policy.needs(), Need::decode_queries)) && reads_rows(policy);
}

/// A KV head as it is read.
std::uint64_t block_bytes(const LayerGeometry& g, const BlockRequest& request, std::size_t hidden) {
  std::uint64_t queries = g.group * (g.decode + (request.all_queries ? g.prompt : request.prompt_queries));
  if (request.lookahead)
    for (const LookaheadPass& pass : g.lookaheads) queries += g.group * pass.queries;
  std::uint64_t elements = (g.prompt + g.decode) * (g.key_dim + g.value_dim) + queries * g.key_dim;
  if (request.attention_stats) elements += g.group * g.prompt * 3;
  if (request.query_stats) elements += g.group * g.key_dim * (g.key_dim + 1);
  if (request.output_proj) elements += g.group * g.value_dim * hidden;
  elements += request.sensitivity_samples * g.value_dim * g.group * g.decode;
  if (request.second_pass) elements += g.group * g.prompt * g.second_pass.size();
  return elements * sizeof(float);
}

/// Different observation windows of the variants.
std::size_t count_windows(std::span<const Variant* const> variants) {
  std::set<std::uint32_t> windows;
  for (const Variant* variant : variants)
    if (has(variant->policy->needs(), Need::window_queries)) windows.insert(variant->policy->window());
  return windows.size();
}

/// What features keep of a head: attention of the widest window and of all pseudo queries once; the mean of
/// every window, of the decode, and two of the whole prompt.
std::uint64_t guess_bytes(const LayerGeometry& g, const BlockRequest& request,
                          std::span<const Variant* const> variants) {
  constexpr std::size_t kOtherMeans = 3;
  std::uint64_t columns =
      round_up(g.group * request.prompt_queries, kRowPad) + g.group * (count_windows(variants) + kOtherMeans);
  if (request.lookahead)
    for (const LookaheadPass& pass : g.lookaheads) columns += round_up(g.group * pass.queries, kRowPad);
  return g.prompt * columns * sizeof(float);
}

Sizes unit_sizes(const LayerContext& layer, const BlockRequest& request,
                 std::span<const Variant* const> variants, std::size_t budgets,
                 std::span<const std::string> metrics, std::size_t hidden) {
  const LayerGeometry& g = layer.geometry;
  const std::uint64_t tokens = g.prompt + g.decode;
  Sizes sizes;
  sizes.block = block_bytes(g, request, hidden);
  // While a block is read, one of its tensors is held in the file's own type too.
  sizes.raw = tokens * std::max(g.key_dim, g.value_dim) * layer.element_bytes;
  sizes.guesses = guess_bytes(g, request, variants);
  const std::uint64_t rows = round_up(g.group * g.decode, kRowPad);
  std::uint64_t most_units = g.kv_heads, orders = 0;
  for (const Variant* variant : variants) {
    if (variant->policy->unit() == Unit::query) {
      most_units = g.kv_heads * g.group;
      sizes.most_units = g.group;
    }
    if (variant->policy->traits().order_by_budget) orders = budgets;
    sizes.transforms |= variant->policy->traits().transforms;
    if (!reads_future_rows(*variant->policy)) continue;
    sizes.future = tokens * rows * sizeof(float);
    sizes.future_outputs = 2 * rows * g.value_dim * sizeof(float);  // as computed, and row by row
  }
  // Scores, order, and the hindsight order, each four bytes a token; an order of its own at every budget is
  // held twice.
  sizes.score = most_units * g.prompt * (3 + 2 * orders) * sizeof(float);
  // Errors of a variant after the projection, what stands for their norms, and responses of samples, from
  // selection to result.
  if (request.output_proj && !metrics_of_level(metrics, MetricInfo::Level::layer).empty())
    sizes.projection += ProjectedError::bytes_needed(budgets, hidden, g.decode);
  if (request.output_proj && needs_norms(metrics)) {
    sizes.projection += ProjectedError::bytes_needed(budgets, std::min(hidden, kSketch), g.decode);
    sizes.block += g.group * g.value_dim * std::min(hidden, kSketch) * sizeof(float);
  }
  sizes.projection += SampledResponse::bytes_needed(budgets, request.sensitivity_samples, g.decode);
  sizes.task =
      budgets * rows * 7 * sizeof(float) + g.prompt * 4 * sizeof(float) +
      (request.output_proj || request.sensitivity_samples > 0 ? budgets * rows * g.value_dim * sizeof(float)
                                                              : 0);
  // Queries without their rotation, in double, where their statistics are not recorded.
  const bool makes_stats = std::any_of(variants.begin(), variants.end(), [&](const Variant* variant) {
    return has(variant->policy->needs(), Need::query_stats) && !request.query_stats;
  });
  if (makes_stats) sizes.task += g.prompt * g.key_dim * sizeof(double);
  // Changed keys and values of one unit, made in double, and the logits of a tile of rows.
  if (sizes.transforms)
    sizes.task +=
        4 * g.prompt * (g.key_dim + g.value_dim) * sizeof(float) + tokens * kTransformedTile * sizeof(double);
  // Mean attention of every query head, and orders by it: mean, order, place and running mass of each and of
  // all together.
  constexpr std::uint64_t kOrderBytes = 3 * sizeof(float) + sizeof(double);
  sizes.heads = g.kv_heads * g.prompt * (g.group * sizeof(float) + (g.group + 1) * kOrderBytes);
  return sizes;
}

/// Whether the metrics need the error vectors themselves.
bool asks_for_deltas(const BlockRequest& request, std::span<const std::string> metrics) {
  return request.sensitivity_samples > 0 ||
         (request.output_proj &&
          (!metrics_of_level(metrics, MetricInfo::Level::layer).empty() || needs_norms(metrics)));
}

}  // namespace

UnitMemory plan_memory(const LayerContext& layer, const BlockRequest& request,
                       std::span<const Variant* const> variants, std::size_t budgets,
                       std::span<const std::string> metrics, std::size_t hidden, int threads,
                       std::uint64_t limit, const Device* device) {
  const LayerGeometry& g = layer.geometry;
  const Sizes sizes = unit_sizes(layer, request, variants, budgets, metrics, hidden);
  // The program itself, results of finished units, and what the allocator keeps back.
  constexpr std::uint64_t kBase = 96ull << 20;
  const auto n = static_cast<std::uint64_t>(threads);
  std::optional<DevicePlan> on_device;
  if (device != nullptr)
    on_device.emplace(*device, g, request, variants.size() * sizes.most_units, count_windows(variants),
                      budgets, asks_for_deltas(request, metrics));
  const auto steps_bytes = [&](std::size_t steps) -> std::uint64_t {
    if (!on_device) return ExactSteps::bytes_needed(g, steps, true);
    // Weights come to the host only where a score asks for them.
    return round_up(g.group * steps, kRowPad) * (2 * g.value_dim + g.key_dim) * sizeof(float) + sizes.future;
  };
  UnitMemory memory;
  memory.step_chunk = std::max<std::size_t>(g.decode, 1);
  memory.variant_batch = std::max<std::size_t>(variants.size(), 1);
  // Held: the layer's heads with their weights, those of the future among them, and two blocks read ahead.
  const std::uint64_t head = sizes.block + steps_bytes(g.decode) + sizes.guesses + sizes.future_outputs;
  memory.bytes = kBase + g.kv_heads * head + 2 * sizes.block + sizes.raw +
                 variants.size() * (sizes.score + sizes.projection) + n * sizes.task + sizes.heads +
                 (on_device ? on_device->host_bytes(g.decode) : 0);
  if (memory.bytes <= limit && (!on_device || on_device->fits(g.kv_heads, g.decode))) return memory;
  memory.hold = false;
  const auto need = [&](std::size_t chunk, std::size_t batch) {
    const std::uint64_t scoring = sizes.guesses + sizes.future + sizes.future_outputs;
    const std::uint64_t measuring = steps_bytes(chunk) + (sizes.transforms ? sizes.guesses : 0);
    return kBase + 2 * sizes.block + sizes.raw + std::max(scoring, measuring) +
           batch * (sizes.score + sizes.projection) + n * sizes.task + sizes.heads +
           (on_device ? on_device->host_bytes(chunk) : 0);
  };
  // A policy that changes entries asks for attention while its head is measured: from a few steps of its own.
  const std::size_t device_heads = sizes.transforms ? 2 : 1;
  // Larger chunks repeat less of the exact attention's set-up, larger batches less of the attention itself:
  // halve the larger cost first.
  const std::size_t whole = round_up(std::max<std::size_t>(g.decode, 1), kStepBlock);
  memory.step_chunk = whole;
  const auto fits = [&](std::size_t chunk) {
    return need(chunk, 1) <= limit && (!on_device || on_device->fits(device_heads, chunk));
  };
  while (!fits(memory.step_chunk) && memory.step_chunk > kStepBlock)
    memory.step_chunk = round_up(memory.step_chunk / 2, kStepBlock);
  if (on_device && !on_device->fits(device_heads, memory.step_chunk))
    throw UserError(
        "the device has {} MiB for layer {} (prompt {}, {} query heads per KV head), which needs {} MiB: "
        "free some of it, or use --device cpu",
        on_device->memory() >> 20, g.layer, g.prompt, g.group,
        (on_device->bytes(device_heads, memory.step_chunk) >> 20) + 1);
  const std::uint64_t least = need(memory.step_chunk, 1);
  if (least > limit)
    throw UserError(
        "--memory {} MiB is too little: layer {} (prompt {}, {} query heads per KV head) needs {} MiB",
        limit >> 20, g.layer, g.prompt, g.group, (least >> 20) + 1);
  while (need(memory.step_chunk, memory.variant_batch) > limit)
    memory.variant_batch = (memory.variant_batch + 1) / 2;
  memory.bytes = need(memory.step_chunk, memory.variant_batch);
  return memory;
}

}  // namespace kvsim
