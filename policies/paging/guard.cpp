// Guard around a base policy: robust against any prediction, and equal to the base where predictions are
// right.
#include "kernels/error.h"
#include "policies/paging/nested_policy.h"
#include "policies/paging/rule_policy.h"

namespace kvsim {
namespace {

struct Guard final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = "guard",
      .summary =
          "follows its base until a page evicted in the phase is missed again: then a random unrequested old "
          "page leaves",
      .reference =
          "Guard (NeurIPS 2025), OptiSys-ZJU/Cache-Coliseum; strict form: (2 H_{k-1} + 2)-robust in "
          "expectation",
      .guardable = false,
      .guard_refusal = "it is Guard already",
      .randomised = true};
  NestedPolicy base{"base", "blindoracle",
                    "the policy to follow, any that 'kvsim list pages' marks as guardable"};
  GuardOptions options;
  std::uint32_t seed = 0;

  const PageTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    base.field(visitor);
    visitor.number(
        "relax_times", options.relax_times, 1, 0xFFFFFFFFu,
        "in each phase the first relax_times - 1 detected errors are left to the base; 1 = strict");
    visitor.number("relax_prob", options.relax_prob, 0.0, 1.0,
                   "chance that a detected error is left to the base; 0 = strict");
    visitor.flag("follow_if_guarded", options.follow_if_guarded,
                 "guard the page but let the base name the victim (ablation: no robustness)");
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  void prepare() override {
    base.prepare();
    if (!base->traits().guardable) {
      throw UserError("guard(base={}): {}", base->traits().name, base->traits().guard_refusal);
    }
    if (options.relax_times > 1 && options.relax_prob > 0) {
      throw UserError("guard: relax_times and relax_prob cannot both be relaxed");
    }
    options.seed = seed;
  }
  bool needs_future() const override { return base->needs_future(); }
  std::string refusal(const CacheSetup& setup) const override { return base->refusal(setup); }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<SlotCache<ErasedRule, true>>(setup, ErasedRule(base->rule(setup)), options);
  }
};

const RegisterPagePolicy<Guard> registered;

}  // namespace
}  // namespace kvsim
