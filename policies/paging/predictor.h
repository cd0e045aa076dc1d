// Predictors: what learning-augmented page policies are told about a page's future.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "policies/paging/page_policy.h"

namespace kvsim {

/// What the number of a prediction means.
enum class PredictionKind : std::uint8_t {
  next_use,  // when the page is requested next, in the stream's time
  label,     // 1 = may leave before its next request, 0 = should stay
  score,     // of any page at any time: larger = needed sooner; residents are rescored at every miss
};
std::string_view to_text(PredictionKind kind);

struct PredictorTraits {
  std::string_view name = {}, summary = {}, reference = {};
  PredictionKind kind = PredictionKind::next_use;
  bool future = false;     // reads next uses
  bool in_memory = false;  // reads the whole stream before it starts
  bool attention = false;  // reads CacheSetup::attention
  bool unit_sets_only = false;
};

/// One run of a predictor over one stream.
class Prediction {
 public:
  virtual ~Prediction() = default;
  /// The prediction for the page just requested; called exactly once per request, in order.
  virtual double predict(const PageRequest& request) = 0;
  /// For PredictionKind::score: the page's score at `time`.
  virtual double score(Page, std::uint64_t) const { return 0; }
  /// For PredictionKind::score: no score differs between times of the same epoch.
  virtual std::uint64_t score_epoch(std::uint64_t time) const { return time; }
};

class Predictor {
 public:
  virtual ~Predictor() = default;
  virtual const PredictorTraits& traits() const = 0;
  virtual void fields(FieldVisitor&) {}
  virtual void prepare() {}
  virtual std::unique_ptr<Prediction> start(const CacheSetup& setup) const = 0;
};

using PredictorFactory = std::function<std::unique_ptr<Predictor>()>;
void register_predictor(const PredictorTraits& traits, PredictorFactory factory);
template <typename T>
struct RegisterPredictor {
  RegisterPredictor() {
    register_predictor(T::kTraits, [] { return std::make_unique<T>(); });
  }
};
std::vector<const PredictorTraits*> all_predictors();

/// A parameter `predictor=...` of a page policy: the spec and what is bound to it.
class PredictorField {
 public:
  /// `spec` is the default, e.g. "oracle".
  PredictorField(std::string_view spec, PredictionKind kind);
  void field(FieldVisitor& visitor);
  /// Binds and replaces the spec by its canonical form. Throws UserError when the kind is another.
  void prepare(std::string_view policy);
  const Predictor& operator*() const { return *predictor_; }
  const Predictor* operator->() const { return predictor_.get(); }
  /// Empty, or why the predictor cannot serve such a stream.
  std::string refusal(std::string_view policy, const CacheSetup& setup) const;

 private:
  SpecValue spec_;
  PredictionKind kind_;
  std::unique_ptr<Predictor> predictor_;
};

/// Noise on next uses and labels (as in Cache-Coliseum): none, inverted, normal(sigma), lognormal(sigma),
/// flip(p).
class NoiseField {
 public:
  NoiseField() { spec_.text = "none"; }
  void field(FieldVisitor& visitor);
  /// Binds. `label`: only none and flip fit; otherwise all but flip.
  void prepare(std::string_view predictor, bool label);
  double next_use(double exact, RandomSource& random) const;
  bool label(bool exact, RandomSource& random) const;
  std::uint64_t seed() const { return seed_; }

 private:
  enum class Form : std::uint8_t { none, inverted, normal, lognormal, flip };
  SpecValue spec_;
  Form form_ = Form::none;
  double amount_ = 0;
  std::uint32_t seed_ = 0;
};

}  // namespace kvsim
