// PLECO: next uses from a power law with exponential cutoff over the past requests of a page.
#include <array>
#include <cmath>
#include <vector>

#include "policies/paging/page_map.h"
#include "policies/paging/predictor.h"

namespace kvsim {
namespace {

/// The weight of a request j - 1 requests ago (j = 1: the present one), w_j = (j + 10)^-1.8 * exp(-j / 670).
///
/// A power is not a finite sum of exponentials, so no fixed number of running sums holds the past exactly,
/// and the definition costs one term for every past request of the page. But the power is an integral over
/// exponentials, Gamma(1.8) x^-1.8 = integral of exp(1.8 u - x e^u) du, and the trapezoid rule on it
/// converges exponentially (Beylkin and Monzon, 2010). kTerms points give every w_j to 3e-9 of itself where
/// it counts (up to j = 5000), and a sum of weights with a present request to 2e-9. So a request costs kTerms
/// multiplications, whatever the past.
class PlecoKernel {
 public:
  static constexpr std::size_t kTerms = 60;
  using Sums = std::array<double, kTerms>;  // sums of exp(-rate * age) over past requests

  PlecoKernel() : low_(kStride), high_(kHorizon / kStride) {
    constexpr double kStep = 0.35, kFirst = -19.0;
    for (std::size_t m = 0; m < kTerms; ++m) {
      const double u = kFirst + kStep * static_cast<double>(m);
      const double rate = std::exp(u) + 1.0 / 670.0;
      factor_[m] = kStep / std::tgamma(1.8) * std::exp(1.8 * u - 10.0 * std::exp(u) - rate);
      for (std::size_t g = 0; g < kStride; ++g) low_[g][m] = std::exp(-rate * static_cast<double>(g));
      for (std::size_t g = 0; g < high_.size(); ++g)
        high_[g][m] = std::exp(-rate * static_cast<double>(g * kStride));
    }
  }

  static double weight(std::uint64_t j) {
    const double x = static_cast<double>(j);
    return std::pow(x + 10.0, -1.8) * std::exp(-x / 670.0);
  }
  /// Lets `gap` requests pass and adds the present one; returns the sum of the weights of all.
  double request(Sums& sums, std::uint64_t gap) const {
    if (gap >= kHorizon) {
      sums.fill(1.0);
    } else {
      const Sums& low = low_[gap % kStride];
      const Sums& high = high_[gap / kStride];
      for (std::size_t m = 0; m < kTerms; ++m) sums[m] = sums[m] * (low[m] * high[m]) + 1.0;
    }
    std::array<double, 4> parts{};
    for (std::size_t m = 0; m < kTerms; m += parts.size()) {
      for (std::size_t i = 0; i < parts.size(); ++i) parts[i] += factor_[m + i] * sums[m + i];
    }
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }

  static constexpr std::uint64_t kHorizon = 32768;  // older weights are below the last bit of any sum

 private:
  static constexpr std::size_t kStride = 256;
  Sums factor_{};
  std::vector<Sums> low_, high_;  // exp(-rate * g) for g < kStride, and for multiples of it
};

class PlecoRun final : public Prediction {
 public:
  explicit PlecoRun(bool label) : label_(label) {}
  double predict(const PageRequest& request) override {
    past_.grow(request.page + 1);
    ++t_;
    if (t_ <= PlecoKernel::kHorizon) total_ += PlecoKernel::weight(t_);
    Past& past = past_[request.page];
    const double probability = kernel_.request(past.sums, t_ - past.last) / total_;
    past.last = t_;
    if (label_) return probability > 0.5 ? 0.0 : 1.0;
    return 1.0 / probability + static_cast<double>(t_) - 1.0;
  }

 private:
  struct Past {
    PlecoKernel::Sums sums{};
    std::uint64_t last = 0;  // sums of a new page are 0, so its first gap does not matter
  };
  bool label_;
  PlecoKernel kernel_;
  PageMap<Past> past_;
  std::uint64_t t_ = 0;
  double total_ = 0;
};

struct Pleco final : Predictor {
  static constexpr PredictorTraits kTraits{
      .name = "pleco",
      .summary = "1 / probability by a power law over past requests, to 2e-9 by 60 decaying sums a page",
      .reference = "Antoniadis et al., 2020 (PLECO, BrightKite parameters)",
      .kind = PredictionKind::next_use};
  const PredictorTraits& traits() const override { return kTraits; }
  std::unique_ptr<Prediction> start(const CacheSetup&) const override {
    return std::make_unique<PlecoRun>(false);
  }
};

struct PlecoLabel final : Predictor {
  static constexpr PredictorTraits kTraits{.name = "pleco_label",
                                           .summary = "0 when PLECO's probability is above one half, else 1",
                                           .reference = "Cache-Coliseum's PLECO-Bin",
                                           .kind = PredictionKind::label};
  const PredictorTraits& traits() const override { return kTraits; }
  std::unique_ptr<Prediction> start(const CacheSetup&) const override {
    return std::make_unique<PlecoRun>(true);
  }
};

const RegisterPredictor<Pleco> registered_pleco;
const RegisterPredictor<PlecoLabel> registered_pleco_label;

}  // namespace
}  // namespace kvsim
