// A small layer with peaky attention, in memory: sinks, heavy hitters, and everything the replay of a unit needs.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "kernels/philox.h"
#include "policies/registry.h"
#include "sim/unit.h"
#include "tests/policies/array_files.h"

namespace kvsim::test {

struct Shape {
  std::size_t prompt = 120, decode = 20, kv_heads = 2, group = 3, key_dim = 16, value_dim = 12;
  std::uint32_t window = 0;
  double softcap = 0;
  std::size_t hidden = 0;  // of the output projection, 0 = none
  std::size_t samples = 0;  // of recorded sensitivities, 0 = none
  std::uint32_t lookahead = 0;  // pseudo queries of each of two first passes, 0 = none
  double sharpness = 1.0;  // factor on the logits
  std::uint64_t seed = 1;
};

/// Norms of a residual stream at the decode steps.
inline std::span<const float> residual_norms(std::size_t steps) {
  static const std::vector<float> norms = [] {
    std::vector<float> list(256);
    for (std::size_t t = 0; t < list.size(); ++t) list[t] = 3.0f + 0.25f * static_cast<float>(t % 7);
    return list;
  }();
  return std::span(norms).first(steps);
}

inline LayerContext make_layer(const Shape& shape) {
  LayerContext layer;
  layer.residual_norm = residual_norms(shape.decode);
  LayerGeometry& g = layer.geometry;
  g.layer = 3;
  g.model_layers = 6;
  g.recorded_layers = {3};
  g.prompt = shape.prompt;
  g.decode = shape.decode;
  g.kv_heads = shape.kv_heads;
  g.group = shape.group;
  g.key_dim = shape.key_dim;
  g.value_dim = shape.value_dim;
  g.softmax_scale = 0.35 * shape.sharpness;
  g.sliding_window = shape.window;
  g.trace_digest = 99;
  g.second_pass = {"kvzip", "kvzip_plus", "kvcompose_max", "kvcompose_mean"};
  layer.rule = {g.softmax_scale, shape.softcap, shape.window};
  layer.element_bytes = 2;
  if (shape.lookahead > 0) g.lookaheads = {{"snapkv-8", 8, shape.lookahead}, {"snapkv-32", 32, shape.lookahead}};
  if (shape.prompt >= 43) layer.evidence = {{10, 14}, {40, 43}};
  return layer;
}

/// Statistics of a second pass, from a stream of their own.
inline void add_second_pass(const Shape& shape, HeadBlock& block) {
  Philox random(shape.seed, stream_of(1000 + block.kv_head));
  for (const char* name : {"kvzip", "kvzip_plus", "kvcompose_max", "kvcompose_mean"}) {
    Matrix<float>& rows = block.second_pass[name] = Matrix<float>(shape.group, shape.prompt);
    for (std::size_t h = 0; h < shape.group; ++h)
      for (std::size_t t = 0; t < shape.prompt; ++t) rows(h, t) = static_cast<float>(random.next_double());
  }
}

/// Blocks with all queries recorded, query head major: rows of every head are positions 0 .. T+S-1.
inline std::vector<HeadBlock> make_blocks(const Shape& shape) {
  std::vector<HeadBlock> blocks;
  const std::size_t tokens = shape.prompt + shape.decode;
  for (std::uint32_t kv = 0; kv < shape.kv_heads; ++kv) {
    Philox random(shape.seed, stream_of(kv));
    const auto noise = [&random] { return static_cast<float>(random.next_double() * 2 - 1); };
    HeadBlock block;
    block.kv_head = kv;
    block.key = Matrix<float>(tokens, shape.key_dim);
    block.value = Matrix<float>(tokens, shape.value_dim);
    block.query = Matrix<float>(shape.group * tokens, shape.key_dim);
    for (std::size_t i = 0; i < tokens; ++i) {
      const bool heavy = i < 3 || random.next_below(17) == 0;
      for (std::size_t c = 0; c < shape.key_dim; ++c) block.key(i, c) = 1.5f * noise() + (heavy && c < 5 ? 2.0f : 0.0f);
      for (std::size_t c = 0; c < shape.value_dim; ++c) block.value(i, c) = noise();
    }
    for (std::size_t i = 0; i < block.query.rows(); ++i)
      for (std::size_t c = 0; c < shape.key_dim; ++c) block.query(i, c) = 2 * noise() + (c < 5 ? 1.5f : 0.0f);
    if (shape.hidden > 0) {
      block.output_proj = Matrix<float>(shape.group * shape.value_dim, shape.hidden);
      for (std::size_t i = 0; i < block.output_proj.rows(); ++i)
        for (std::size_t c = 0; c < shape.hidden; ++c) block.output_proj(i, c) = noise();
    }
    if (shape.samples > 0) {
      block.sensitivity = Matrix<float>(shape.samples * shape.value_dim, shape.group * shape.decode);
      for (std::size_t i = 0; i < block.sensitivity.rows(); ++i)
        for (std::size_t c = 0; c < block.sensitivity.cols(); ++c) block.sensitivity(i, c) = noise();
    }
    for (const char* pass : {"snapkv-8", "snapkv-32"}) {
      if (shape.lookahead == 0) break;
      Matrix<float>& queries = block.lookahead_query[pass];
      queries = Matrix<float>(shape.group * shape.lookahead, shape.key_dim);
      for (std::size_t i = 0; i < queries.rows(); ++i)
        for (std::size_t c = 0; c < shape.key_dim; ++c) queries(i, c) = 2 * noise() + (c < 5 ? 1.5f : 0.0f);
    }
    add_second_pass(shape, block);
    blocks.push_back(std::move(block));
  }
  return blocks;
}

/// Makes the blocks anew each time they are asked for, as a file would.
class ShapeSource final : public BlockSource {
 public:
  explicit ShapeSource(const Shape& shape) : shape_(shape) {}
  HeadBlock next() override {
    std::vector<HeadBlock> blocks = make_blocks(shape_);
    return std::move(blocks[calls_++ % blocks.size()]);
  }
  std::size_t calls() const { return calls_; }

 private:
  Shape shape_;
  std::size_t calls_ = 0;
};

/// The file "made-up" with what policies read from files, of the shapes of the layer above; other files do not exist.
class MadeUpFiles final : public Resources {
 public:
  const ExternalArray& array(const std::string& file, const std::string& dataset) override {
    if (file != "made-up") throw UserError("no file {}", file);
    ExternalArray& array = arrays_[dataset];
    if (!array.data.empty()) return array;
    if (dataset == "/curve") {  // pruned ratios: the second head keeps twice as much as the first
      array.shape = {99, 1, 2};
      for (std::size_t i = 0; i < 99; ++i)
        for (const double share : {2.0 / 3, 4.0 / 3})
          array.data.push_back(static_cast<float>(1 - std::min(1.0, share * (1 - static_cast<double>(i + 1) / 100))));
    } else if (dataset == "/pattern") {
      array = {{1, 2}, {0.2f, 0.9f}};
    } else {
      throw UserError("no {} in {}", dataset, file);
    }
    return array;
  }

 private:
  std::map<std::string, ExternalArray> arrays_;
};

/// Bound variants and the settings that measure everything about them.
struct Sweep {
  std::unique_ptr<MadeUpFiles> files_ = std::make_unique<MadeUpFiles>();  // outlives the policies
  std::vector<Variant> variants;
  UnitSettings settings;

  Sweep(const std::vector<std::string>& specs, const std::vector<std::uint32_t>& budgets) {
    MadeUpFiles& files = *files_;
    for (const std::string& text : specs) {
      Variant variant;
      variant.policy = bind_policy(parse_specs(text).front());
      variant.policy->prepare(files);
      variant.entry.spec = canonical_spec(*variant.policy);
      variants.push_back(std::move(variant));
    }
    for (const Variant& variant : variants) settings.variants.push_back(&variant);
    for (const std::uint32_t tokens : budgets) settings.budgets.push_back({fmt::format("{}", tokens), tokens});
    for (const MetricInfo& metric : all_metrics()) settings.metrics.emplace_back(metric.name);
    settings.save_kept = true;
    settings.memory.variant_batch = variants.size();
  }

  UnitResult run(const Shape& shape) {
    settings.memory.step_chunk = settings.memory.step_chunk == 0 ? shape.decode : settings.memory.step_chunk;
    const LayerContext layer = make_layer(shape);
    ShapeSource source(shape);
    return replay_unit(layer, settings, source);
  }
  std::size_t metric(const std::string& name) const {
    const std::vector<std::string> names = metrics_of_level(settings.metrics, MetricInfo::Level::row);
    for (std::size_t i = 0; i < names.size(); ++i)
      if (names[i] == name) return i;
    throw InternalError("no metric " + name);
  }
};

}  // namespace kvsim::test
