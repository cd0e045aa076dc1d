// A parameter whose value is another page policy.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "policies/paging/page_registry.h"

namespace kvsim {

class NestedPolicy {
 public:
  NestedPolicy(std::string_view key, std::string_view spec, std::string_view help) : key_(key), help_(help) {
    spec_.text = spec;
  }
  void field(FieldVisitor& visitor) { visitor.value(key_, spec_, help_); }
  /// Binds and replaces the spec by its canonical form.
  void prepare() {
    policy_ = bind_page_policy(spec_);
    spec_ = parse_specs(canonical_page_spec(*policy_)).at(0);
  }
  const PagePolicy& operator*() const { return *policy_; }
  const PagePolicy* operator->() const { return policy_.get(); }

 private:
  std::string_view key_, help_;
  SpecValue spec_;
  std::unique_ptr<PagePolicy> policy_;
};

}  // namespace kvsim
