// The table of page policies that register themselves.
#include "policies/paging/page_registry.h"

#include <map>

#include "kernels/error.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

struct Entry {
  PageTraits traits;
  PagePolicyFactory factory;
};

std::map<std::string, Entry, std::less<>>& table() {
  static std::map<std::string, Entry, std::less<>> entries;
  return entries;
}

}  // namespace

void register_page_policy(const PageTraits& traits, PagePolicyFactory factory) {
  const bool added = table().emplace(std::string(traits.name), Entry{traits, std::move(factory)}).second;
  KVSIM_CHECK(added, "two page policies are named {}", traits.name);
}

std::vector<const PageTraits*> all_page_policies() {
  std::vector<const PageTraits*> out;
  for (const auto& [name, entry] : table()) out.push_back(&entry.traits);
  return out;
}

std::unique_ptr<PagePolicy> make_page_policy(std::string_view name) {
  const auto found = table().find(name);
  if (found != table().end()) return found->second.factory();
  std::vector<std::string> names;
  for (const auto& [known, entry] : table()) names.push_back(known);
  const std::string near = nearest_name(name, names);
  throw UserError("unknown page policy '{}'{}; 'kvsim list pages' shows them all", name,
                  near.empty() ? "" : fmt::format(", did you mean '{}'?", near));
}

std::unique_ptr<PagePolicy> bind_page_policy(const SpecValue& spec) {
  if (spec.kind != SpecValue::Kind::word && spec.kind != SpecValue::Kind::call) {
    throw UserError("'{}' is no page policy, expected name or name(key=value,...)", to_text(spec));
  }
  std::unique_ptr<PagePolicy> policy = make_page_policy(spec.text);
  bind_fields(spec, [&policy](FieldVisitor& visitor) { policy->fields(visitor); });
  policy->prepare();
  return policy;
}

std::string canonical_page_spec(PagePolicy& policy) {
  return print_fields(policy.traits().name, [&policy](FieldVisitor& visitor) { policy.fields(visitor); });
}

}  // namespace kvsim
