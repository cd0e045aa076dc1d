// One layer of a trace: shapes, query positions and what it holds besides keys, values and queries.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "kernels/error.h"
#include "traces/header.h"

namespace kvsim::header {
namespace {

std::vector<TokenIndex> read_query_positions(const h5::Group& group, const Sequence& sequence) {
  const h5::Dataset dataset = group.dataset("query_position");
  expect_shape(dataset, {kAny});
  const auto found = dataset.read<std::int64_t>();
  const auto low = static_cast<std::int64_t>(sequence.first),
             high = static_cast<std::int64_t>(sequence.end());
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i] < low || found[i] >= high) {
      throw UserError("{}: found {} at {}, expected positions in [{}, {})", dataset.where(), found[i], i, low,
                      high);
    }
    if (i > 0 && found[i] <= found[i - 1]) {
      throw UserError("{}: found {} after {} at {}, expected ascending positions", dataset.where(), found[i],
                      found[i - 1], i);
    }
  }
  // Ascending positions below the end: the last `decode` of them are the decode steps exactly when the first
  // of them is.
  const std::uint64_t first_decode = sequence.first + sequence.prompt;
  if (found.size() < sequence.decode ||
      (sequence.decode > 0 &&
       static_cast<std::uint64_t>(found[found.size() - sequence.decode]) != first_decode)) {
    throw UserError(
        "{}: found {} positions that do not end with the decode steps, expected them to end with {} to {}",
        dataset.where(), found.size(), first_decode, sequence.end() - 1);
  }
  return {found.begin(), found.end()};
}

std::uint32_t sample_count(const h5::Dataset& dataset) {
  constexpr std::uint64_t kMost = 1u << 16;
  const std::uint64_t samples = dataset.shape()[0];
  if (samples == 0 || samples > kMost)
    throw UserError("{}: found {} samples, expected 1 to {}", dataset.where(), samples, kMost);
  return static_cast<std::uint32_t>(samples);
}

/// Norms at the decode steps.
std::vector<float> read_residual_norm(const h5::Dataset& dataset, const Sequence& sequence) {
  const auto all = dataset.read<double>();
  std::vector<float> norms;
  for (std::size_t i = all.size() - sequence.decode; i < all.size(); ++i) {
    if (!std::isfinite(all[i]) || all[i] <= 0)
      throw UserError("{}: found {} at token {}, expected a finite number > 0", dataset.where(), all[i], i);
    norms.push_back(static_cast<float>(all[i]));
  }
  return norms;
}

void check_optional_tensors(const h5::Group& group, const TraceInfo& root, const Sequence& sequence,
                            LayerInfo& layer) {
  const std::uint64_t queries = layer.query_position.size(), own = sequence.own();
  const std::uint64_t heads = root.num_query_heads;
  const auto check = [&group](const char* name, const h5::Shape& shape) {
    if (!group.has(name)) return false;
    expect_tensor(group.dataset(name), shape);
    return true;
  };
  layer.has_attention = check("attention", {heads, queries, sequence.end()});
  layer.has_output_proj = check("output_proj", {heads * root.value_dim, kAny});
  if (layer.has_output_proj)
    layer.hidden_size = static_cast<std::uint32_t>(group.dataset("output_proj").shape()[1]);
  layer.has_hidden = group.has("hidden");
  if (layer.has_hidden) layer.input_size = expect_rows(group.dataset("hidden"), own);
  layer.has_retention = check("retention", {root.num_kv_heads, own});
  if (check("sensitivity", {kAny, heads, sequence.decode, root.value_dim}))
    layer.sensitivity_samples = sample_count(group.dataset("sensitivity"));
  if (check("residual_norm", {own}))
    layer.residual_norm = read_residual_norm(group.dataset("residual_norm"), sequence);
}

/// Names of the datasets [Hq, T] below `folder`, each checked.
std::vector<std::string> table_names(const h5::Group& group, const char* folder, std::uint64_t heads,
                                     std::uint64_t prompt) {
  if (!group.has(folder)) return {};
  const h5::Group tables = group.group(folder);
  std::vector<std::string> names = tables.children();
  for (const std::string& name : names) expect_tensor(tables.dataset(name), {heads, prompt});
  return names;
}

void check_statistics(const h5::Group& group, const TraceInfo& root, const Sequence& sequence,
                      LayerInfo& layer) {
  const std::uint64_t heads = root.num_query_heads, d = root.head_dim;
  if (group.has("query_stats")) {
    const h5::Group stats = group.group("query_stats");
    expect_tensor(stats.dataset("mean"), {heads, d});
    expect_tensor(stats.dataset("covariance"), {heads, d, d});
    if (stats.has_attribute("sinks")) {
      bounded_attribute(stats, "sinks", 0, static_cast<std::int64_t>(sequence.prompt));
    }
    layer.has_query_stats = true;
  }
  layer.attention_stats = table_names(group, "attention_stats", heads, sequence.prompt);
  layer.second_pass = table_names(group, "second_pass", heads, sequence.prompt);
}

/// Bytes of all datasets below a group.
std::uint64_t stored_bytes(const h5::Group& group) {
  std::uint64_t total = 0;
  for (const std::string& path : group.all_datasets()) total += group.dataset(path).bytes();
  return total;
}

}  // namespace

std::uint32_t layer_index(const h5::Group& layers, const std::string& name, std::uint32_t num_layers) {
  std::uint32_t index = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (error != std::errc() || end != name.data() + name.size() || name != layer_name(index)) {
    throw UserError("{}: found '{}', expected layer numbers of three digits (000, 001, ...)", layers.where(),
                    name);
  }
  if (index >= num_layers) {
    throw UserError("{}: found layer {}, expected layers below num_layers = {}", layers.where(), name,
                    num_layers);
  }
  return index;
}

LayerInfo read_layer(const h5::Group& group, const LayerInfo& defaults, const TraceInfo& root,
                     const Sequence& sequence) {
  LayerInfo layer;
  layer.index = defaults.index;
  layer.softmax_scale = finite_attribute(group, "softmax_scale", defaults.softmax_scale, false);
  layer.logit_softcap = finite_attribute(group, "logit_softcap", defaults.logit_softcap, true);
  layer.attention_scaling = finite_attribute(group, "attention_scaling", defaults.attention_scaling, false);
  layer.sliding_window = defaults.sliding_window;
  if (group.has_attribute("sliding_window")) {
    constexpr std::int64_t kLargest = (std::int64_t{1} << 31) - 1;
    layer.sliding_window =
        static_cast<std::uint32_t>(bounded_attribute(group, "sliding_window", 0, kLargest));
  }
  layer.query_position = read_query_positions(group, sequence);
  expect_tensor(group.dataset("key"), {root.num_kv_heads, sequence.own(), root.head_dim});
  expect_tensor(group.dataset("value"), {root.num_kv_heads, sequence.own(), root.value_dim});
  expect_tensor(group.dataset("query"), {root.num_query_heads, layer.query_position.size(), root.head_dim});
  check_optional_tensors(group, root, sequence, layer);
  check_statistics(group, root, sequence, layer);
  layer.inverse_frequency = read_inverse_frequency(group, root.head_dim);
  if (layer.inverse_frequency.empty()) layer.inverse_frequency = defaults.inverse_frequency;
  if ((root.rope_layout == RopeLayout::none) != layer.inverse_frequency.empty()) {
    throw UserError(
        "{}: found {} rotary frequencies, expected {} (see the root attribute rope_layout and "
        "/rope/inv_freq)",
        group.where(), layer.inverse_frequency.size(),
        root.rope_layout == RopeLayout::none ? "none" : "some");
  }
  layer.bytes = stored_bytes(group);
  return layer;
}

}  // namespace kvsim::header
