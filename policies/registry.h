// All policies by name, and making one from its spec.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

using PolicyFactory = std::function<std::unique_ptr<Policy>()>;

/// Adds a policy under its traits' name; a second one of that name is an InternalError.
void register_policy(const PolicyTraits& traits, PolicyFactory factory);

/// A static object of this type in the policy's own file is all that a new policy needs.
template <typename T>
struct RegisterPolicy {
  explicit RegisterPolicy(const PolicyTraits& traits) {
    register_policy(traits, [] { return std::make_unique<T>(); });
  }
};

/// Traits of all policies, sorted by name.
std::vector<const PolicyTraits*> all_policies();
/// Null when there is none of that name.
const PolicyTraits* find_policy(std::string_view name);
/// An unbound policy with its defaults. Throws UserError naming the nearest name.
std::unique_ptr<Policy> make_policy(std::string_view name);
/// A policy bound to a spec: unknown keys (lists the valid ones), values out of range and wrong types are
/// UserErrors.
std::unique_ptr<Policy> bind_policy(const SpecValue& spec);

/// Every parameter written, in declared order, numbers as their shortest exact text: the label of a variant.
std::string canonical_spec(const Policy& policy);

/// One parameter, as help shows it.
struct FieldDescription {
  std::string key, type, default_text, range, help;
};
std::vector<FieldDescription> describe_fields(std::string_view name);

/// The same three for anything that declares fields (page policies, predictors): bind the arguments of
/// `spec`, print `name(key=value,...)`, describe.
void bind_fields(const SpecValue& spec, const std::function<void(FieldVisitor&)>& fields);
std::string print_fields(std::string_view name, const std::function<void(FieldVisitor&)>& fields);
std::vector<FieldDescription> describe_fields(const std::function<void(FieldVisitor&)>& fields);

/// The candidate with the smallest edit distance, or empty when none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace kvsim
