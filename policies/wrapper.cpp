// A policy around another one: takes its scores, and changes what is done with them.
#include "policies/wrapper.h"

#include "kernels/error.h"
#include "policies/registry.h"

namespace kvsim {

ScoreWrapper::ScoreWrapper(const PolicyTraits& traits, std::string_view inner)
    : traits_(traits), own_traits_(traits), score_(inner.empty() ? nullptr : make_policy(inner)) {}

void ScoreWrapper::prepare(Resources& resources) {
  if (!score_)
    throw UserError("{} needs a policy that scores, e.g. {}(score=snapkv)", traits_.name, traits_.name);
  score_->prepare(resources);
}

void ScoreWrapper::score_field(FieldVisitor& visitor) {
  visitor.policy("score", score_, "the policy whose scores are used");
  if (!score_) return;
  const PolicyTraits& inner = score_->traits();
  update(traits_.oracle, own_traits_.oracle || inner.oracle);
  update(traits_.windowed, own_traits_.windowed || inner.windowed);
  update(traits_.nested, own_traits_.nested && inner.nested);
  update(traits_.order_by_budget, own_traits_.order_by_budget || inner.order_by_budget);
  update(traits_.model_wide, own_traits_.model_wide || inner.model_wide);
  update(traits_.own_size, own_traits_.own_size || inner.own_size);
  update(traits_.transforms, own_traits_.transforms || inner.transforms);
}

}  // namespace kvsim
