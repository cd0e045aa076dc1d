// CAPKV: how much of the values' space a token spans that other tokens worth attending to do not.
//
// arXiv:2604.25975, as in kvpress (CapPress): keys are weighed by their cosine with the expected future
// query, omega = exp(tau cos - max); with M = I + sum (omega + epsilon) v v' a token scores omega v' M^-1 v,
// mean over the group. The anchor is the mean of the prompt's queries before the rotary embedding, rotated by
// the average rotation of the next `future` positions; sinks take no part.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "policies/mean_rotation.h"
#include "policies/products.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "capkv",
    .summary = "capacity of values, weighed by the keys' agreement with the expected query",
    .reference = "arXiv:2604.25975; kvpress CapPress",
    .accounting = "sinks are kept first and count towards the budget"};

struct CapKv final : Policy {
  double tau_ = 5;
  std::uint32_t future_ = 512;
  std::uint32_t sinks_ = 4;
  double epsilon_ = 1e-6;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("tau", tau_, 0.0, 1e6, "sharpness of the weights: factor on the cosine");
    f.number("future", future_, 1, 1u << 20,
             "positions after the prompt that the expected query is averaged over");
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(),
             "first tokens that are always kept");
    f.number("epsilon", epsilon_, 0.0, 1e6, "added to the weights inside the matrix");
  }
  Need needs() const override { return Need::keys | Need::values | Need::query_stats; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    const std::size_t tokens = layer.prompt;
    if (tokens <= sinks_) {
      throw UserError("capkv(sinks={}) needs a prompt of more than {} tokens, this one has {}", sinks_,
                      sinks_, tokens);
    }
    const MeanRotation rotation(head.rope(), tokens, future_);
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < layer.group; ++h) rows.push_back(row(head, h, rotation));
    out[0].score.assign(sinks_, 0.0f);
    for (const double x : join_group(rows, Group::mean)) out[0].score.push_back(static_cast<float>(x));
    out[0].protected_tokens = protected_order(tokens, sinks_, 0);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }

 private:
  /// exp(tau cos(anchor, k) - its maximum) of the tokens behind the sinks.
  std::vector<double> weights(const HeadFeatures& head, std::size_t h, const MeanRotation& rotation) const {
    const QueryStats stats = head.query_stats(h);
    if (stats.sinks != sinks_) {
      throw UserError(
          "capkv(sinks={}): the trace's query statistics leave out the first {} tokens, write sinks={}",
          sinks_, stats.sinks, stats.sinks);
    }
    constexpr double kSmallestNorm = 1e-12;  // torch.nn.functional.normalize
    std::vector<double> anchor(stats.mean.begin(), stats.mean.end());
    rotation.apply(anchor.data(), 1);
    double length = 0;
    for (const double x : anchor) length += x * x;
    length = std::max(std::sqrt(length), kSmallestNorm);
    const MatrixView<const float> keys = head.keys().rows_from(sinks_, head.geometry().prompt - sinks_);
    const std::vector<double> norms = row_norms(keys, ValueNorm::l2);
    std::vector<double> out(keys.rows);
    for (std::size_t t = 0; t < keys.rows; ++t) {
      double dot = 0;
      for (std::size_t c = 0; c < keys.cols; ++c) dot += anchor[c] * static_cast<double>(keys(t, c));
      out[t] = tau_ * std::clamp(dot / (length * std::max(norms[t], kSmallestNorm)), -1.0, 1.0);
    }
    const double largest = *std::max_element(out.begin(), out.end());
    for (double& x : out) x = std::exp(x - largest);
    return out;
  }

  std::vector<double> row(const HeadFeatures& head, std::size_t h, const MeanRotation& rotation) const {
    const MatrixView<const float> values = head.values().rows_from(sinks_, head.geometry().prompt - sinks_);
    const std::vector<double> omega = weights(head, h, rotation);
    Matrix<float> scaled(values.rows, values.cols);
    for (std::size_t t = 0; t < values.rows; ++t) {
      const double root = std::sqrt(omega[t] + epsilon_);
      for (std::size_t c = 0; c < values.cols; ++c)
        scaled(t, c) = static_cast<float>(root * static_cast<double>(values(t, c)));
    }
    const Matrix<float> gram = gram_matrix(scaled.view());
    Matrix<double> capacity(gram.rows(), gram.cols());
    for (std::size_t r = 0; r < gram.rows(); ++r)
      for (std::size_t c = 0; c < gram.cols(); ++c)
        capacity(r, c) = static_cast<double>(gram(std::max(r, c), std::min(r, c))) + (r == c ? 1.0 : 0.0);
    const Matrix<double> factor = inverse_factor(capacity);
    if (factor.empty())
      throw UserError("capkv: the values of layer {}, KV head {} are too large for Cholesky's factors",
                      head.geometry().layer, head.kv_head());
    std::vector<double> out = squared_lengths(values, factor);
    for (std::size_t t = 0; t < out.size(); ++t) out[t] *= omega[t];
    return out;
  }
};

const RegisterPolicy<CapKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
