// A learned binary predictor: boosted trees trained on Belady's labels of the first part of the stream.
#include "policies/paging/belady_labels.h"
#include "policies/paging/boosted_trees.h"
#include "policies/paging/predictor.h"
#include "policies/paging/reuse_features.h"

namespace kvsim {
namespace {

class GbmRun final : public Prediction {
 public:
  GbmRun(const CacheSetup& setup, double share, std::uint64_t seed)
      : training_(static_cast<std::size_t>(share * static_cast<double>(setup.pages.size()))) {
    if (training_ == 0) return;
    const std::unique_ptr<RandomSource> random = setup.random(RandomPurpose::sampling, seed);
    const std::vector<bool> labels = labels_of(setup);
    std::vector<float> rows, targets;
    ReuseFeatures features;
    for (std::size_t t = 0; t < training_; ++t) {
      features.grow(setup.pages[t] + 1);
      features.request(setup.pages[t], t, 1);
      const ReuseFeatures::Row row = features.row(setup.pages[t], t);
      rows.insert(rows.end(), row.begin(), row.end());
      targets.push_back(labels[t] ? 1.0f : 0.0f);
    }
    BoostingOptions options;
    options.logistic = true;
    options.trees = 100;
    model_ = BoostedTrees::fit({rows.data(), training_, ReuseFeatures::kCount, ReuseFeatures::kCount},
                               targets, options, *random);
  }
  double predict(const PageRequest& request) override {
    features_.grow(request.page + 1);
    features_.request(request.page, request.time, 1);
    return training_ > 0 && model_.predict(features_.row(request.page, request.time)) >= 0.5 ? 1.0 : 0.0;
  }

 private:
  /// Belady on the training part alone, so that nothing behind it is known.
  std::vector<bool> labels_of(const CacheSetup& setup) const {
    const auto n = static_cast<std::uint32_t>(training_);
    std::vector<std::uint32_t> next(setup.next.begin(),
                                    setup.next.begin() + static_cast<std::ptrdiff_t>(training_));
    for (std::uint32_t& t : next) t = std::min(t, n);
    return belady_labels(setup.pages.first(training_), next, setup.capacity);
  }

  std::size_t training_;
  BoostedTrees model_;
  ReuseFeatures features_;
};

struct Gbm final : Predictor {
  static constexpr PredictorTraits kTraits{
      .name = "gbm",
      .summary =
          "boosted trees on gaps and decayed counts, trained on Belady's labels of the first part of the "
          "stream",
      .reference = "Cache-Coliseum's GBM (there called LRB); leave the training part out with --warmup",
      .kind = PredictionKind::label,
      .future = true,
      .in_memory = true,
      .unit_sets_only = true};
  double train = 0.2;
  std::uint32_t seed = 0;
  const PredictorTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.number("train", train, 0.0, 1.0, "share of the stream that is learned from");
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  std::unique_ptr<Prediction> start(const CacheSetup& setup) const override {
    return std::make_unique<GbmRun>(setup, train, seed);
  }
};

const RegisterPredictor<Gbm> registered;

}  // namespace
}  // namespace kvsim
