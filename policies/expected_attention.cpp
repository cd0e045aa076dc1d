// Expected attention: what a typical future query would attend to, from the mean and covariance of the
// prompt's queries.
//
// arXiv:2510.00636, as in kvpress (ExpectedAttentionPress): queries before the rotary embedding are taken as
// Gaussian, rotated by the average rotation of the next `future` positions, and the expected exp(logit) of
// every key follows in closed form: z = mu.k / sqrt(d) + k' Sigma k / (2 d), softmax over the tokens after
// the sinks, mean over the group, (s + epsilon) * |v|. The logit scale is 1/sqrt(d) even where a model has
// its own, as in kvpress. Channels that the rotary embedding leaves alone are left alone here, where kvpress
// rotates whole heads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "expected_attention",
    .summary = "attention expected from Gaussian future queries, times value norms",
    .reference = "arXiv:2510.00636; kvpress ExpectedAttentionPress",
    .accounting = "sinks are kept first and count towards the budget"};

/// Mean rotation over positions first .. first + count - 1: channel a[i] and b[i] turn by a scaled angle
/// whose mean cosine and sine these are.
struct MeanRotation {
  std::vector<std::size_t> a, b;
  std::vector<double> cosine, sine;
};

MeanRotation mean_rotation(const Rope& rope, std::size_t first, std::size_t count) {
  MeanRotation out;
  if (rope.layout == Rope::Layout::none) return out;
  const std::size_t pairs = rope.inverse_frequency.size();
  const bool half = rope.layout == Rope::Layout::half;
  for (std::size_t i = 0; i < pairs; ++i) {
    out.a.push_back(half ? i : 2 * i);
    out.b.push_back(half ? i + pairs : 2 * i + 1);
    double cosine = 0, sine = 0;
    for (std::size_t p = first; p < first + count; ++p) {
      const double angle = static_cast<double>(p) * static_cast<double>(rope.inverse_frequency[i]);
      cosine += std::cos(angle);
      sine += std::sin(angle);
    }
    out.cosine.push_back(cosine / static_cast<double>(count) * rope.attention_scaling);
    out.sine.push_back(sine / static_cast<double>(count) * rope.attention_scaling);
  }
  return out;
}

/// x <- R x for the vector at x[0], x[stride], ...
void rotate(const MeanRotation& r, double* x, std::size_t stride) {
  for (std::size_t i = 0; i < r.a.size(); ++i) {
    double& left = x[r.a[i] * stride];
    double& right = x[r.b[i] * stride];
    const double turned = r.cosine[i] * left - r.sine[i] * right;
    right = r.sine[i] * left + r.cosine[i] * right;
    left = turned;
  }
}

/// Rotated mean and covariance of one query head's queries, the covariance with the factor 1 / (2 d) of the
/// logit.
struct FutureQueries {
  std::vector<double> mean;
  Matrix<float> covariance;
};

FutureQueries future_queries(const QueryStats& stats, const MeanRotation& rotation, bool use_covariance) {
  const std::size_t d = stats.mean.size();
  FutureQueries out{{stats.mean.begin(), stats.mean.end()}, {}};
  rotate(rotation, out.mean.data(), 1);
  if (!use_covariance) return out;
  std::vector<double> sigma(d * d);
  for (std::size_t r = 0; r < d; ++r)
    std::copy_n(stats.covariance.row(r), d, sigma.begin() + static_cast<std::ptrdiff_t>(r * d));
  for (std::size_t c = 0; c < d; ++c) rotate(rotation, sigma.data() + c, d);      // R Sigma
  for (std::size_t r = 0; r < d; ++r) rotate(rotation, sigma.data() + r * d, 1);  // (R Sigma) R'
  out.covariance = Matrix<float>(d, d);
  for (std::size_t i = 0; i < d * d; ++i) {
    out.covariance(i / d, i % d) = static_cast<float>(sigma[i] / (2 * static_cast<double>(d)));
  }
  return out;
}

Matrix<float> transposed(MatrixView<const float> keys) {
  Matrix<float> out(keys.cols, keys.rows, kRowPad);
  for (std::size_t t = 0; t < keys.rows; ++t) {
    for (std::size_t c = 0; c < keys.cols; ++c) out(c, t) = keys(t, c);
  }
  return out;
}

/// Softmax over the keys of the expected logits. `keys` is [d, tokens].
std::vector<double> expected_weights(const Matrix<float>& keys, const FutureQueries& queries) {
  const std::size_t d = keys.rows(), tokens = keys.cols();
  std::vector<double> z(tokens, 0.0);
  const double scale = 1.0 / std::sqrt(static_cast<double>(d));
  for (std::size_t c = 0; c < d; ++c) {
    const double weight = queries.mean[c] * scale;
    for (std::size_t t = 0; t < tokens; ++t) z[t] += weight * static_cast<double>(keys(c, t));
  }
  if (!queries.covariance.empty()) {
    Matrix<float> product(d, tokens, kRowPad);  // Sigma k for every key
    accumulate_product(keys.view(), queries.covariance.view(), product.view());
    for (std::size_t c = 0; c < d; ++c) {
      for (std::size_t t = 0; t < tokens; ++t) {
        z[t] += static_cast<double>(keys(c, t)) * static_cast<double>(product(c, t));
      }
    }
  }
  const double largest = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (double& x : z) sum += x = std::exp(x - largest);
  for (double& x : z) x /= sum;
  return z;
}

struct ExpectedAttention final : Policy {
  std::uint32_t future_ = 512;
  std::uint32_t sinks_ = 4;
  bool covariance_ = true;
  bool vnorm_ = true;
  double epsilon_ = 0;
  std::size_t group_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("future", future_, 1, 1u << 20, "positions after the prompt that the expectation covers");
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(),
             "first tokens that are always kept");
    f.flag("covariance", covariance_, "use the spread of the queries, not only their mean");
    f.flag("vnorm", vnorm_, "multiply by the norm of the value");
    f.number("epsilon", epsilon_, 0.0, 1e6, "added to the attention before the value norm");
    f.choice("group", group_, kGroupChoices, "how the query heads of a KV head are joined");
  }
  Need needs() const override {
    const Need needs = Need::keys | Need::query_stats;
    return vnorm_ ? needs | Need::values : needs;
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    const std::size_t tokens = layer.prompt;
    if (tokens <= sinks_) {
      throw UserError("{}(sinks={}) needs a prompt of more than {} tokens, this one has {}", kTraits.name,
                      sinks_, sinks_, tokens);
    }
    const Matrix<float> keys = transposed(head.keys().rows_from(sinks_, tokens - sinks_));
    const MeanRotation rotation = mean_rotation(head.rope(), tokens, future_);
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < layer.group; ++h) {
      const QueryStats stats = head.query_stats(h);
      if (stats.sinks != sinks_) {
        throw UserError(
            "{}(sinks={}): the trace's query statistics leave out the first {} tokens, write sinks={}",
            kTraits.name, sinks_, stats.sinks, stats.sinks);
      }
      rows.push_back(expected_weights(keys, future_queries(stats, rotation, covariance_)));
    }
    std::vector<double> joined = join_group(rows, static_cast<Group>(group_));
    if (vnorm_) {
      const std::vector<double> norms = row_norms(head.values(), ValueNorm::l2);
      for (std::size_t t = 0; t < joined.size(); ++t) joined[t] = (joined[t] + epsilon_) * norms[t + sinks_];
    }
    out[0].score.assign(sinks_, 0.0f);
    for (const double x : joined) out[0].score.push_back(static_cast<float>(x));
    out[0].protected_tokens = protected_order(tokens, sinks_, 0);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }
};

const RegisterPolicy<ExpectedAttention> registered{kTraits};

}  // namespace
}  // namespace kvsim
