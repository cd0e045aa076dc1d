// All decode-time policies by name, and making one from its spec.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "policies/registry.h"
#include "policies/stepwise/stepwise_policy.h"

namespace kvsim {

/// Full names are "decode:NAME". The prefix may be left out where no prompt-time policy has the name.
inline constexpr std::string_view kDecodePrefix = "decode:";

void register_stepwise_policy(const StepTraits& traits, std::function<std::unique_ptr<StepwisePolicy>()> factory);

/// A static object of this type in the policy's own file is all that a new policy needs.
template <typename T>
struct RegisterStepwisePolicy {
  explicit RegisterStepwisePolicy(const StepTraits& traits) {
    register_stepwise_policy(traits, [] { return std::make_unique<T>(); });
  }
};

/// Traits of all decode-time policies, sorted by name.
std::vector<const StepTraits*> all_stepwise_policies();
/// Whether a spec of this name means a decode-time policy.
bool is_stepwise_name(std::string_view name);
/// An unbound policy with its defaults; `name` with or without the prefix. Throws UserError naming the nearest name.
std::unique_ptr<StepwisePolicy> make_stepwise_policy(std::string_view name);
/// A policy bound to a spec.
std::unique_ptr<StepwisePolicy> bind_stepwise_policy(const SpecValue& spec);
/// decode:NAME(key=value,...), every parameter written: the label of a variant.
std::string canonical_spec(const StepwisePolicy& policy);

/// The help page of a decode-time policy, and its lines for the table of all policies (name, phase, needs, nested,
/// oracle, summary; with `all` also parameters and reference).
std::string stepwise_policy_page(std::string_view name);
std::vector<std::vector<std::string>> stepwise_policy_rows(bool all);
std::string needs_text(StepNeed needs);

}  // namespace kvsim
