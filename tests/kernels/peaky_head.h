// One KV head with peaky attention: sinks, drifting heavy hitters and needles, logits up to about +-100.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/philox.h"
#include "kernels/replay.h"
#include "kernels/view.h"

namespace kvsim {

inline float normal_number(Philox& random) {
  double sum = -6.0;  // Irwin-Hall: near enough to normal, and the same on every machine
  for (int i = 0; i < 12; ++i) sum += random.next_double();
  return static_cast<float>(sum);
}

struct PeakyShape {
  std::size_t prompt = 300;
  std::size_t steps = 24;
  std::size_t group = 2;
  std::size_t head_dim = 32;
  std::size_t value_dim = 32;
  double reach = 20.0;  // logits of heavy keys; 100 for the harshest rows
  std::uint64_t seed = 1;
  bool half = false;  // values as they come from 16-bit traces (bfloat16)
};

/// Keys, values and queries of one KV head; rows are query head major, step t stands at prompt + t.
struct PeakyHead {
  explicit PeakyHead(const PeakyShape& asked)
      : shape(asked),
        keys(tokens(), shape.head_dim),
        values(tokens(), shape.value_dim),
        queries(rows(), shape.head_dim),
        position(rows()) {
    Philox random(shape.seed, 7);
    const std::size_t d = shape.head_dim;
    std::vector<float> topic(d), sink(d);
    for (float& x : topic) x = normal_number(random);
    for (float& x : sink) x = normal_number(random);
    const auto length = static_cast<float>(std::sqrt(static_cast<double>(d)));
    for (std::size_t j = 0; j < tokens(); ++j) {
      const bool needle = random.next_below(97) == 0;
      const auto heavy = static_cast<float>(j < 4 ? 1.0 : (needle ? 0.9 : 0.3 * random.next_double() - 0.2));
      for (std::size_t c = 0; c < d; ++c) {
        const float along = (j < 4 ? sink[c] : topic[c]) * heavy * static_cast<float>(shape.reach) / length;
        keys(j, c) = rounded(along + 0.5f * normal_number(random));
      }
      for (std::size_t c = 0; c < shape.value_dim; ++c) values(j, c) = rounded(normal_number(random));
    }
    for (std::size_t r = 0; r < rows(); ++r) {
      const auto mix = static_cast<float>(random.next_double());
      for (std::size_t c = 0; c < d; ++c) {
        queries(r, c) = rounded((mix * sink[c] + (1.0f - mix) * topic[c]) + 0.4f * normal_number(random));
      }
      position[r] = static_cast<TokenIndex>(shape.prompt + r % shape.steps);
    }
    rule.scale = 1.0 / static_cast<double>(length);
  }

  std::size_t tokens() const { return shape.prompt + shape.steps; }
  std::size_t rows() const { return shape.group * shape.steps; }
  float rounded(float x) const {
    // Not `half ? masked : x`: GCC 12 drops the mask there.
    const std::uint32_t mask = shape.half ? 0xffff0000u : 0xffffffffu;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & mask);
  }

  PeakyShape shape;
  Matrix<float> keys, values, queries;
  std::vector<TokenIndex> position;
  LogitRule rule;
};

/// A random order of 0 .. n-1.
inline std::vector<TokenIndex> shuffled(std::size_t n, std::uint64_t seed) {
  Philox random(seed, 11);
  std::vector<TokenIndex> order(n);
  std::iota(order.begin(), order.end(), 0u);
  for (std::size_t i = n; i > 1; --i)
    std::swap(order[i - 1], order[random.next_below(static_cast<std::uint32_t>(i))]);
  return order;
}

/// Everything that curve_pass reads for a PeakyHead: weights, exact outputs, and what the decode tokens hold.
struct PreparedHead {
  explicit PreparedHead(const PeakyHead& head)
      : rows(head.rows()),
        weights(head.tokens(), rows, kRowPad),
        exact(head.shape.value_dim, rows, kRowPad),
        tail(head.shape.value_dim, rows, kRowPad),
        sum(weights.stride()),
        tail_weight(weights.stride()) {
    attention_weights(head.keys.view(), head.queries.view(), head.position, head.rule, 0, rows,
                      weights.view());
    attention_outputs(weights.view(), head.values.view(), 0, head.tokens(), 0, rows, exact.view(), sum);
    attention_outputs(weights.view(), head.values.view(), head.shape.prompt, head.tokens(), 0, rows,
                      tail.view(), tail_weight);
    prompt = head.shape.prompt;
  }
  CurveInput input(const PeakyHead& head, std::span<const TokenIndex> order,
                   std::span<const std::uint32_t> counts) const {
    return {weights.view().rows_from(0, prompt),
            head.values.view().rows_from(0, prompt),
            order,
            counts,
            tail.view(),
            tail_weight,
            exact.view()};
  }

  std::size_t rows;
  std::size_t prompt = 0;
  Matrix<float> weights, exact, tail;
  std::vector<float> sum, tail_weight;
};

struct Curve {
  Curve(std::size_t counts, std::size_t rows) : error(counts, rows), recall(counts, rows) {}
  CurveOutput output() { return {error.view(), recall.view()}; }
  Matrix<float> error, recall;
};

inline Curve run_curve(const PeakyHead& head, const PreparedHead& ready, std::span<const TokenIndex> order,
                       std::span<const std::uint32_t> counts) {
  Curve curve(counts.size(), head.rows());
  curve_pass(ready.input(head, order, counts), 0, head.rows(), curve.output());
  return curve;
}

}  // namespace kvsim
