// Predictors that read the future: next use, Belady's labels and phase labels, each with noise.
#include "policies/paging/belady_labels.h"
#include "policies/paging/page_map.h"
#include "policies/paging/predictor.h"
#include "policies/paging/slot_heap.h"

namespace kvsim {
namespace {

class OracleRun final : public Prediction {
 public:
  OracleRun(const CacheSetup& setup, const NoiseField& noise)
      : noise_(noise),
        random_(setup.random(RandomPurpose::noise, noise.seed())),
        never_(static_cast<double>(setup.requests) + 1.0) {}
  double predict(const PageRequest& request) override {
    const double exact = request.next_use == kNeverAgain ? never_ : static_cast<double>(request.next_use);
    return noise_.next_use(exact, *random_);
  }

 private:
  const NoiseField& noise_;
  std::unique_ptr<RandomSource> random_;
  double never_;
};

struct Oracle final : Predictor {
  static constexpr PredictorTraits kTraits{
      .name = "oracle",
      .summary =
          "the true next use plus noise; a page that never comes back has the length of the stream + 1",
      .reference = "Cache-Coliseum's noisy next uses (dis, logdis)",
      .kind = PredictionKind::next_use,
      .future = true};
  NoiseField noise;
  const PredictorTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override { noise.field(visitor); }
  void prepare() override { noise.prepare("oracle", false); }
  std::unique_ptr<Prediction> start(const CacheSetup& setup) const override {
    return std::make_unique<OracleRun>(setup, noise);
  }
};

/// Labels of Mark&Predict: the stream is cut where k distinct pages were seen (at the first request after
/// them); a request of a phase whose page is requested in the next phase gets 0, all others 1; the last two
/// phases keep 1.
std::vector<bool> phase_labels(std::span<const Page> pages, std::uint64_t capacity) {
  std::vector<std::size_t> begin{0};
  PageMap<std::size_t> seen{0};  // number of the phase, from 1
  std::uint64_t distinct = 0;
  for (std::size_t t = 0; t < pages.size(); ++t) {
    if (distinct == capacity) {
      begin.push_back(t);
      distinct = 0;
    }
    seen.grow(pages[t] + 1);
    if (seen[pages[t]] != begin.size()) {
      seen[pages[t]] = begin.size();
      ++distinct;
    }
  }
  std::vector<bool> labels(pages.size(), true);
  PageMap<std::size_t> requested_in{0};
  requested_in.grow(static_cast<Page>(seen.size()));
  for (std::size_t phase = 0; phase + 2 < begin.size(); ++phase) {
    for (std::size_t t = begin[phase + 1]; t < begin[phase + 2]; ++t) requested_in[pages[t]] = phase + 1;
    for (std::size_t t = begin[phase]; t < begin[phase + 1]; ++t)
      labels[t] = requested_in[pages[t]] != phase + 1;
  }
  return labels;
}

class LabelRun final : public Prediction {
 public:
  LabelRun(std::vector<bool> labels, const CacheSetup& setup, const NoiseField& noise)
      : labels_(std::move(labels)),
        noise_(noise),
        random_(setup.random(RandomPurpose::noise, noise.seed())) {}
  double predict(const PageRequest& request) override {
    return noise_.label(labels_[request.time], *random_) ? 1.0 : 0.0;
  }

 private:
  std::vector<bool> labels_;
  const NoiseField& noise_;
  std::unique_ptr<RandomSource> random_;
};

struct Labels final : Predictor {
  static constexpr PredictorTraits kTraits{
      .name = "labels",
      .summary = "1 when Belady evicts the page before its next request, turned with probability p",
      .reference = "Cache-Coliseum's noisy labels (bin)",
      .kind = PredictionKind::label,
      .future = true,
      .in_memory = true,
      .unit_sets_only = true};
  NoiseField noise;
  const PredictorTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override { noise.field(visitor); }
  void prepare() override { noise.prepare("labels", true); }
  std::unique_ptr<Prediction> start(const CacheSetup& setup) const override {
    return std::make_unique<LabelRun>(belady_labels(setup.pages, setup.next, setup.capacity), setup, noise);
  }
};

struct PhaseLabels final : Predictor {
  static constexpr PredictorTraits kTraits{
      .name = "phase_labels",
      .summary =
          "0 when the page is requested in the next phase of k distinct pages, turned with probability p",
      .reference = "Antoniadis et al., 2023",
      .kind = PredictionKind::label,
      .future = true,
      .in_memory = true,
      .unit_sets_only = true};
  NoiseField noise;
  const PredictorTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override { noise.field(visitor); }
  void prepare() override { noise.prepare("phase_labels", true); }
  std::unique_ptr<Prediction> start(const CacheSetup& setup) const override {
    return std::make_unique<LabelRun>(phase_labels(setup.pages, setup.capacity), setup, noise);
  }
};

const RegisterPredictor<Oracle> registered_oracle;
const RegisterPredictor<Labels> registered_labels;
const RegisterPredictor<PhaseLabels> registered_phase_labels;

}  // namespace
}  // namespace kvsim
