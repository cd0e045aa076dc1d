// All page policies by name, and making one from its spec.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "policies/paging/page_policy.h"

namespace kvsim {

using PagePolicyFactory = std::function<std::unique_ptr<PagePolicy>()>;

/// Adds a policy under its traits' name; a second one of that name is an InternalError.
void register_page_policy(const PageTraits& traits, PagePolicyFactory factory);

/// A static object of this type in the policy's own file is all that a new page policy needs.
template <typename T>
struct RegisterPagePolicy {
  RegisterPagePolicy() {
    register_page_policy(T::kTraits, [] { return std::make_unique<T>(); });
  }
};

/// Traits of all page policies, sorted by name.
std::vector<const PageTraits*> all_page_policies();
/// An unbound policy with its defaults. Throws UserError naming the nearest name.
std::unique_ptr<PagePolicy> make_page_policy(std::string_view name);
/// A policy bound to a spec and prepared. Unknown keys, wrong types and values out of range are UserErrors.
std::unique_ptr<PagePolicy> bind_page_policy(const SpecValue& spec);
/// Every parameter written, nested policies and predictors too: the label of a variant.
std::string canonical_page_spec(PagePolicy& policy);

}  // namespace kvsim
