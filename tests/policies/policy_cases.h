// What the tests of policies share: policies out of specs, why one is refused, golden inputs, rows of
// expected scores.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/error.h"
#include "policies/registry.h"
#include "tests/policies/array_files.h"
#include "tests/policies/dense_features.h"

namespace kvsim::test {

using Row = std::vector<double>;

/// Bound, not prepared.
inline std::unique_ptr<Policy> policy_of(std::string_view spec) {
  return bind_policy(parse_specs(spec).at(0));
}

/// Bound, and prepared where no file exists.
inline std::unique_ptr<Policy> prepared_policy(std::string_view spec) {
  NoFiles files;
  std::unique_ptr<Policy> policy = policy_of(spec);
  policy->prepare(files);
  return policy;
}

/// Another head without attention of single queries.
class MeansOf : public HeadFeatures {
 public:
  explicit MeansOf(const HeadFeatures& head) : head_(head) {}
  const LayerGeometry& geometry() const override { return head_.geometry(); }
  std::uint32_t kv_head() const override { return head_.kv_head(); }
  MatrixView<const float> keys() const override { return head_.keys(); }
  MatrixView<const float> values() const override { return head_.values(); }
  Rope rope() const override { return head_.rope(); }
  std::span<const float> window_mean(std::uint32_t n, std::size_t h) const override {
    return head_.window_mean(n, h);
  }
  std::span<const float> attention_sum(std::size_t h) const override { return head_.attention_sum(h); }
  std::span<const float> attention_mean_over_visible(std::size_t h) const override {
    return head_.attention_mean_over_visible(h);
  }
  QueryStats query_stats(std::size_t h) const override { return head_.query_stats(h); }
  std::span<const float> decode_mean(std::size_t h) const override { return head_.decode_mean(h); }

 protected:
  const HeadFeatures& head_;
};

/// What the UserError of `task` says, or "accepted".
template <typename Task>
std::string error_of(const Task& task) {
  try {
    task();
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

/// Why the policy is refused, by itself or for such a layer.
inline std::string refusal(std::string_view spec, const LayerGeometry* layer = nullptr) {
  return error_of([&] {
    const std::unique_ptr<Policy> policy = prepared_policy(spec);
    if (layer != nullptr) policy->check(*layer);
  });
}

/// Inputs of the golden values: 4 query heads, 2 KV heads, 12 tokens, 4 channels.
/// K[h][t][c] = sin(0.7t + 1.3c + 0.9h + 0.1) (1 + 0.05t)
/// V[h][t][c] = cos(0.5t - 0.8c + 0.6h) (1 + 0.1c)
/// Q[a][t][c] = 1.5 sin(0.3 t (c + 1) + 0.4a)
inline DenseLayer golden_layer() {
  DenseLayer layer;
  LayerGeometry& g = layer.geometry;
  g.prompt = 12;
  g.kv_heads = g.group = 2;
  g.key_dim = g.value_dim = 4;
  g.softmax_scale = 0.5;
  g.model_layers = 1;
  g.recorded_layers = {0};
  const auto real = [](std::size_t i) { return static_cast<double>(i); };
  layer.fill([=](std::size_t a, std::size_t t,
                 std::size_t c) { return 1.5 * std::sin(0.3 * real(t) * real(c + 1) + 0.4 * real(a)); },
             [=](std::size_t h, std::size_t t, std::size_t c) {
               return std::sin(0.7 * real(t) + 1.3 * real(c) + 0.9 * real(h) + 0.1) * (1 + 0.05 * real(t));
             },
             [=](std::size_t h, std::size_t t, std::size_t c) {
               return std::cos(0.5 * real(t) - 0.8 * real(c) + 0.6 * real(h)) * (1 + 0.1 * real(c));
             });
  return layer;
}

/// How far a number may be off: the larger of the two. One figure for both: so much of numbers up to 1, in
/// proportion above.
struct Tolerance {
  constexpr Tolerance(double both) : Tolerance(both, both) {}
  constexpr Tolerance(double of_all, double of_magnitude) : absolute(of_all), relative(of_magnitude) {}
  double absolute, relative;
};

/// As many scores as expected, each as large as expected.
inline void expect_row(std::span<const float> score, const Row& expected, Tolerance tolerance,
                       const std::string& what) {
  ASSERT_EQ(score.size(), expected.size()) << what;
  for (std::size_t t = 0; t < expected.size(); ++t)
    EXPECT_NEAR(static_cast<double>(score[t]), expected[t],
                std::max(tolerance.absolute, tolerance.relative * std::abs(expected[t])))
        << what << ", token " << t;
}

}  // namespace kvsim::test
