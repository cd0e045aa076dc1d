// What the errors of all layers together do to the model's output.
#include "sim/predicted_kl.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"

namespace kvsim {
namespace {

// Nats per unit of the summed squares, and the depth from which on layers count: what earlier layers get wrong, later ones
// mostly make good again. Fitted on SmolLM2, on other texts and passages than those that analysis/studies/fidelity.md reports on.
constexpr double kNats = 4.6, kFirstDepth = 0.4;

/// Adds value_of(i) to sums[i].
template <typename ValueOf>
void add_values(std::vector<double>& sums, std::size_t count, bool first, const ValueOf& value_of) {
  if (first) sums.assign(count, 0.0);
  if (sums.size() != count) throw UserError("the layers of a trace differ in decode steps or in samples of their sensitivity ({} and {})", sums.size(), count);
  for (std::size_t i = 0; i < count; ++i) sums[i] += value_of(i);
}

}  // namespace

bool needs_responses(std::span<const std::string> metrics) {
  return std::any_of(metrics.begin(), metrics.end(), [](const std::string& name) { return name.starts_with("predicted_kl_"); });
}

bool needs_norms(std::span<const std::string> metrics) {
  return std::any_of(metrics.begin(), metrics.end(),
                     [](const std::string& name) { return name == "predicted_kl" || name == "projected_sum" || name == "residual_error"; });
}

void EffectSum::add(const LayerEffect& layer) {
  ++layers_;
  if (!layer.response.empty()) {
    const bool first = with_response_++ == 0;
    if (first) samples_ = layer.samples;
    KVSIM_CHECK(layer.samples > 0 && layer.response.size() % layer.samples == 0, "{} responses of {} samples", layer.response.size(), layer.samples);
    const std::size_t steps = layer.response.size() / layer.samples;
    const auto response = [&](std::size_t i) { return static_cast<double>(layer.response[i]); };
    add_values(response_, layer.response.size(), first, response);
    add_values(layers_kl_, steps, first, [&](std::size_t t) {
      double sum = 0;
      for (std::size_t r = 0; r < layer.samples; ++r) sum += response(r * steps + t) * response(r * steps + t);
      return sum / (2.0 * layer.samples);
    });
  }
  if (!layer.relative.empty()) {
    const bool first = with_norms_++ == 0;
    const auto relative = [&](std::size_t t) { return static_cast<double>(layer.relative[t]); };
    add_values(projected_, layer.projected.size(), first, [&](std::size_t t) { return static_cast<double>(layer.projected[t]); });
    add_values(relative_, layer.relative.size(), first, relative);
    const double weight = layer.depth > kFirstDepth ? kNats : 0.0;
    predicts_ = predicts_ || weight > 0;
    add_values(predicted_, layer.relative.size(), first, [&](std::size_t t) { return weight * relative(t) * relative(t); });
  }
}

/// f(sum over layers of g.delta of all samples) per step, mean over samples.
template <typename F>
std::vector<double> EffectSum::mean_over_samples(const F& f) const {
  const std::size_t steps = layers_kl_.size();
  std::vector<double> means(steps, 0.0);
  for (std::size_t r = 0; r < samples_; ++r)
    for (std::size_t t = 0; t < steps; ++t) means[t] += f(response_[r * steps + t]) / static_cast<double>(samples_);
  return means;
}

std::vector<double> EffectSum::steps(std::string_view metric) const {
  const bool responses = layers_ > 0 && with_response_ == layers_, norms = layers_ > 0 && with_norms_ == layers_;
  const auto quadratic = [this] { return mean_over_samples([](double sum) { return sum * sum / 2; }); };
  if (metric == "predicted_kl") return norms && predicts_ ? predicted_ : std::vector<double>();
  if (metric == "projected_sum") return norms ? projected_ : std::vector<double>();
  if (metric == "residual_error") return norms ? relative_ : std::vector<double>();
  if (!responses) return {};
  if (metric == "predicted_kl_linear") return mean_over_samples([](double sum) { return std::abs(sum); });
  if (metric == "predicted_kl_quadratic") return quadratic();
  if (metric == "predicted_kl_layers") return layers_kl_;
  if (metric == "predicted_kl_saturated") {
    std::vector<double> kl = quadratic();
    for (double& value : kl) value = std::log1p(value);
    return kl;
  }
  throw InternalError("metric of a trace without a value: " + std::string(metric));
}

}  // namespace kvsim
