// Registry of predictors, the predictor parameter of policies, and noise models.
#include "policies/paging/predictor.h"

#include <cmath>
#include <limits>
#include <map>

#include "kernels/error.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

struct Entry {
  PredictorTraits traits;
  PredictorFactory factory;
};

std::map<std::string, Entry, std::less<>>& table() {
  static std::map<std::string, Entry, std::less<>> entries;
  return entries;
}

/// Standard normal by Marsaglia's polar method.
double standard_normal(RandomSource& random) {
  for (;;) {
    const double u = 2.0 * random.unit() - 1.0;
    const double v = 2.0 * random.unit() - 1.0;
    const double s = u * u + v * v;
    if (s > 0.0 && s < 1.0) return u * std::sqrt(-2.0 * std::log(s) / s);
  }
}

}  // namespace

std::string_view to_text(PredictionKind kind) {
  switch (kind) {
    case PredictionKind::next_use:
      return "next_use";
    case PredictionKind::label:
      return "label";
    case PredictionKind::score:
      return "score";
  }
  return "";
}

void register_predictor(const PredictorTraits& traits, PredictorFactory factory) {
  const bool added = table().emplace(std::string(traits.name), Entry{traits, std::move(factory)}).second;
  KVSIM_CHECK(added, "two predictors are named {}", traits.name);
}

std::vector<const PredictorTraits*> all_predictors() {
  std::vector<const PredictorTraits*> out;
  for (const auto& [name, entry] : table()) out.push_back(&entry.traits);
  return out;
}

PredictorField::PredictorField(std::string_view spec, PredictionKind kind) : kind_(kind) {
  spec_.text = spec;
}

void PredictorField::field(FieldVisitor& visitor) {
  visitor.value("predictor", spec_,
                "where predictions come from: a predictor of kind " + std::string(to_text(kind_)));
}

void PredictorField::prepare(std::string_view policy) {
  const auto found = table().find(spec_.text);
  if (found == table().end()) {
    std::vector<std::string> names;
    for (const auto& [known, entry] : table()) names.push_back(known);
    const std::string near = nearest_name(spec_.text, names);
    throw UserError("{}: unknown predictor '{}'{}; 'kvsim pages list predictors' shows them all", policy,
                    to_text(spec_), near.empty() ? "" : fmt::format(", did you mean '{}'?", near));
  }
  predictor_ = found->second.factory();
  bind_fields(spec_, [this](FieldVisitor& visitor) { predictor_->fields(visitor); });
  predictor_->prepare();
  if (predictor_->traits().kind != kind_) {
    throw UserError(
        "{} needs a predictor of kind {}, and {} is of kind {}; 'kvsim pages list predictors' shows them all",
        policy, to_text(kind_), spec_.text, to_text(predictor_->traits().kind));
  }
  spec_ = parse_specs(print_fields(spec_.text, [this](FieldVisitor& v) { predictor_->fields(v); })).at(0);
}

std::string PredictorField::refusal(std::string_view policy, const CacheSetup& setup) const {
  const PredictorTraits& t = predictor_->traits();
  if ((t.future && !setup.knows_future) || (t.in_memory && setup.pages.empty() && setup.requests != 0)) {
    return fmt::format(
        "{}: predictor {} needs to know the future, and this input is read as a stream without it", policy,
        t.name);
  }
  if (t.attention && setup.attention == nullptr) {
    return fmt::format(
        "{}: predictor {} reads attention, and this input has none (only attention recordings do)", policy,
        t.name);
  }
  if (t.unit_sets_only && (setup.in_sets || setup.by_bytes)) {
    return fmt::format("{}: predictor {} is defined for pages of one size, one request at a time", policy,
                       t.name);
  }
  return {};
}

void NoiseField::field(FieldVisitor& visitor) {
  visitor.value("noise", spec_, "none, inverted, normal(sigma), lognormal(sigma), flip(p)");
  visitor.number("seed", seed_, 0, 0xFFFFFFFFu, "of the noise, added to the run's seed");
}

void NoiseField::prepare(std::string_view predictor, bool label) {
  static const std::map<std::string, Form, std::less<>> forms{{"none", Form::none},
                                                              {"inverted", Form::inverted},
                                                              {"normal", Form::normal},
                                                              {"lognormal", Form::lognormal},
                                                              {"flip", Form::flip}};
  const auto found = forms.find(spec_.text);
  const bool fits =
      found != forms.end() && (found->second == Form::none || (found->second == Form::flip) == label);
  if (!fits) {
    throw UserError("{}: noise={} does not fit, expected {}", predictor, to_text(spec_),
                    label ? "none or flip(p)" : "none, inverted, normal(sigma) or lognormal(sigma)");
  }
  form_ = found->second;
  bind_fields(spec_, [this](FieldVisitor& visitor) {
    if (form_ == Form::flip) visitor.number("p", amount_, 0.0, 1.0, "share of labels that are turned");
    if (form_ == Form::normal || form_ == Form::lognormal) {
      visitor.number("sigma", amount_, 0.0, std::numeric_limits<double>::max(), "spread of the noise");
    }
  });
}

double NoiseField::next_use(double exact, RandomSource& random) const {
  switch (form_) {
    case Form::inverted:
      return -exact;
    case Form::normal:
      return amount_ == 0 ? exact : exact + amount_ * standard_normal(random);
    case Form::lognormal:
      return amount_ == 0 ? exact : exact + std::exp(amount_ * standard_normal(random));
    default:
      return exact;
  }
}

bool NoiseField::label(bool exact, RandomSource& random) const {
  return form_ == Form::flip ? exact != (random.unit() < amount_) : exact;
}

}  // namespace kvsim
