// Expected attention: what a typical future query would attend to, from the mean and covariance of the
// prompt's queries.
//
// arXiv:2510.00636, as in kvpress (ExpectedAttentionPress): queries before the rotary embedding are taken as
// Gaussian, rotated by the average rotation of the next `future` positions, and the expected exp(logit) of
// every key follows in closed form: z = mu.k / sqrt(d) + k' Sigma k / (2 d), softmax over the tokens after
// the sinks, mean over the group, (s + epsilon) * |v|. The logit scale is 1/sqrt(d) even where a model has
// its own, as in kvpress. Channels that the rotary embedding leaves alone are left alone here, where kvpress
// rotates whole heads. expected_attention_stats (kvpress's ExpectedAttentionStatsPress) takes the statistics
// of other prompts' queries from a file, which `kvsim trace queries` makes of traces.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "policies/layer_array.h"
#include "policies/mean_rotation.h"
#include "policies/products.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kStatsTraits{
    .name = "expected_attention_stats",
    .summary = "expected attention with the query statistics of other prompts, from a file",
    .reference = "arXiv:2510.00636; kvpress ExpectedAttentionStatsPress",
    .accounting = "sinks are kept first and count towards the budget"};

constexpr PolicyTraits kTraits{
    .name = "expected_attention",
    .summary = "attention expected from Gaussian future queries, times value norms",
    .reference = "arXiv:2510.00636; kvpress ExpectedAttentionPress",
    .accounting = "sinks are kept first and count towards the budget"};

/// Rotated mean and covariance of one query head's queries, the covariance with the factor 1 / (2 d) of the
/// logit.
struct FutureQueries {
  std::vector<double> mean;
  Matrix<float> covariance;
};

FutureQueries future_queries(const QueryStats& stats, const MeanRotation& rotation, bool use_covariance) {
  const std::size_t d = stats.mean.size();
  FutureQueries out{{stats.mean.begin(), stats.mean.end()}, {}};
  rotation.apply(out.mean.data(), 1);
  if (!use_covariance) return out;
  std::vector<double> sigma(d * d);
  for (std::size_t r = 0; r < d; ++r)
    std::copy_n(stats.covariance.row(r), d, sigma.begin() + static_cast<std::ptrdiff_t>(r * d));
  for (std::size_t c = 0; c < d; ++c) rotation.apply(sigma.data() + c, d);      // R Sigma
  for (std::size_t r = 0; r < d; ++r) rotation.apply(sigma.data() + r * d, 1);  // (R Sigma) R'
  out.covariance = Matrix<float>(d, d);
  for (std::size_t i = 0; i < d * d; ++i) {
    out.covariance(i / d, i % d) = static_cast<float>(sigma[i] / (2 * static_cast<double>(d)));
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

template <bool from_file>
struct ExpectedAttention final : Policy {
  std::uint32_t future_ = 512;
  std::uint32_t sinks_ = 4;
  bool covariance_ = true;
  bool vnorm_ = true;
  double epsilon_ = 0;
  std::size_t group_ = 0;
  std::string file_;  // only with from_file
  LayerArray mean_of_file_, covariance_of_file_;

  const PolicyTraits& traits() const override { return from_file ? kStatsTraits : kTraits; }
  void fields(FieldVisitor& f) override {
    if (from_file)
      f.text("file", file_,
             "HDF5 file with /query_mean and /query_covariance, as 'kvsim trace queries' writes it");
    f.number("future", future_, 1, 1u << 20, "positions after the prompt that the expectation covers");
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(),
             "first tokens that are always kept");
    f.flag("covariance", covariance_, "use the spread of the queries, not only their mean");
    f.flag("vnorm", vnorm_, "multiply by the norm of the value");
    f.number("epsilon", epsilon_, 0.0, 1e6, "added to the attention before the value norm");
    f.choice("group", group_, kGroupChoices, "how the query heads of a KV head are joined");
  }
  void prepare(Resources& resources) override {
    if (!from_file) return;
    if (file_.empty())
      throw UserError(
          "expected_attention_stats needs a file: make one with 'kvsim trace queries TRACE... --out "
          "queries.h5'");
    mean_of_file_.load(resources, file_, "/query_mean");
    if (covariance_) covariance_of_file_.load(resources, file_, "/query_covariance");
  }
  Need needs() const override {
    const Need needs = from_file ? Need::keys : Need::keys | Need::query_stats;
    return vnorm_ ? needs | Need::values : needs;
  }
  void check(const LayerGeometry& layer) const override {
    const std::size_t heads = layer.kv_heads * layer.group, d = layer.key_dim;
    if (mean_of_file_.loaded()) mean_of_file_.check(layer, {heads, d}, "layers, query heads, channels");
    if (covariance_of_file_.loaded())
      covariance_of_file_.check(layer, {heads, d, d}, "layers, query heads, channels, channels");
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    const std::size_t tokens = layer.prompt;
    if (tokens <= sinks_) {
      throw UserError("{}(sinks={}) needs a prompt of more than {} tokens, this one has {}", kTraits.name,
                      sinks_, sinks_, tokens);
    }
    const Matrix<float> keys = transposed(head.keys().rows_from(sinks_, tokens - sinks_));
    const MeanRotation rotation(head.rope(), tokens, future_);
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < layer.group; ++h) {
      const QueryStats stats = stats_of(head, h);
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

 private:
  QueryStats stats_of(const HeadFeatures& head, std::size_t h) const {
    const LayerGeometry& layer = head.geometry();
    if (mean_of_file_.loaded()) {
      const std::size_t index = head.kv_head() * layer.group + h, d = layer.key_dim;
      QueryStats stats{mean_of_file_.at(layer, index), {}, sinks_};
      if (covariance_) stats.covariance = {covariance_of_file_.at(layer, index).data(), d, d, d};
      return stats;
    }
    const QueryStats stats = head.query_stats(h);
    if (stats.sinks != sinks_) {
      throw UserError(
          "{}(sinks={}): the trace's query statistics leave out the first {} tokens, write sinks={}",
          traits().name, sinks_, stats.sinks, stats.sinks);
    }
    return stats;
  }
};

const RegisterPolicy<ExpectedAttention<false>> registered{kTraits};
const RegisterPolicy<ExpectedAttention<true>> registered_stats{kStatsTraits};

}  // namespace
}  // namespace kvsim
