// The table of decode-time policies, their specs and their help.
#include "policies/stepwise/stepwise_registry.h"

#include <fmt/format.h>

#include <limits>
#include <map>

#include "kernels/error.h"
#include "policies/catalogue.h"

namespace kvsim {
namespace {

struct Entry {
  StepTraits traits;
  std::function<std::unique_ptr<StepwisePolicy>()> factory;
};

std::map<std::string, Entry, std::less<>>& table() {
  static std::map<std::string, Entry, std::less<>> entries;
  return entries;
}

std::string_view plain_name(std::string_view name) {
  return name.starts_with(kDecodePrefix) ? name.substr(kDecodePrefix.size()) : name;
}

std::string full_name(std::string_view name) { return fmt::format("{}{}", kDecodePrefix, name); }

std::string parameters_text(const StepwisePolicy& policy) {
  const std::string spec = canonical_spec(policy);
  const std::size_t open = spec.find('(');
  return open == std::string::npos ? "" : spec.substr(open + 1, spec.size() - open - 2);
}

std::vector<std::string> step_recording_advice(const StepwisePolicy& policy) {
  std::vector<std::string> out;
  const StepNeed needs = policy.needs();
  if (has(needs, StepNeed::prompt_sum)) out.push_back("kvsim-record --queries all (the default), or --stats with a shorter window");
  if (policy.prompt_rows() > 0)
    out.push_back(policy.prompt_rows() == std::numeric_limits<std::uint32_t>::max()
                      ? "kvsim-record --queries all (the default)"
                      : fmt::format("kvsim-record --queries all (the default), or --queries window:{} or more", policy.prompt_rows()));
  if (has(needs, StepNeed::attention) || has(needs, StepNeed::queries)) out.push_back("with block > 0: kvsim-record --queries all (the default)");
  if (has(needs, StepNeed::token_text)) out.push_back("token texts (kvsim-record stores them)");
  if (has(needs, StepNeed::final_hidden)) out.push_back("kvsim-record --final-hidden");
  if (has(needs, StepNeed::hidden)) out.push_back("kvsim-record --hidden");
  if (has(needs, StepNeed::retention)) out.push_back("kvsim-record --retention-gates FILE");
  if (out.empty()) out.push_back("nothing special: every trace holds what it reads");
  return out;
}

}  // namespace

void register_stepwise_policy(const StepTraits& traits, std::function<std::unique_ptr<StepwisePolicy>()> factory) {
  const bool added = table().emplace(std::string(traits.name), Entry{traits, std::move(factory)}).second;
  KVSIM_CHECK(added, "two decode-time policies are named {}", traits.name);
}

std::vector<const StepTraits*> all_stepwise_policies() {
  std::vector<const StepTraits*> out;
  for (const auto& [name, entry] : table()) out.push_back(&entry.traits);
  return out;
}

bool is_stepwise_name(std::string_view name) {
  if (name.starts_with(kDecodePrefix)) return true;
  return find_policy(name) == nullptr && table().find(name) != table().end();
}

std::unique_ptr<StepwisePolicy> make_stepwise_policy(std::string_view name) {
  const auto found = table().find(plain_name(name));
  if (found != table().end()) return found->second.factory();
  std::vector<std::string> names;
  for (const auto& [known, entry] : table()) names.push_back(known);
  const std::string near = nearest_name(plain_name(name), names);
  throw UserError("unknown decode-time policy '{}'{}; 'kvsim list policies' shows them all", name,
                  near.empty() ? "" : fmt::format(", did you mean '{}'?", full_name(near)));
}

std::unique_ptr<StepwisePolicy> bind_stepwise_policy(const SpecValue& spec) {
  std::unique_ptr<StepwisePolicy> policy = make_stepwise_policy(spec.text);
  bind_fields(spec, [&policy](FieldVisitor& visitor) { policy->fields(visitor); });
  return policy;
}

std::string canonical_spec(const StepwisePolicy& policy) {
  // One description serves all visitors; printing only reads.
  return print_fields(full_name(policy.traits().name), [&](FieldVisitor& v) { const_cast<StepwisePolicy&>(policy).fields(v); });
}

std::string needs_text(StepNeed needs) {
  std::string out;
  const auto add = [&](StepNeed one, std::string_view text) {
    if (has(needs, one)) out += fmt::format("{}{}", out.empty() ? "" : ", ", text);
  };
  add(StepNeed::keys, "keys");
  add(StepNeed::values, "values");
  add(StepNeed::attention, "attention");
  add(StepNeed::queries, "queries");
  add(StepNeed::prompt_sum, "prompt attention");
  add(StepNeed::token_text, "token texts");
  add(StepNeed::final_hidden, "final hidden states");
  add(StepNeed::hidden, "hidden states");
  add(StepNeed::retention, "retention gates");
  return out.empty() ? "positions" : out;
}

std::vector<std::vector<std::string>> stepwise_policy_rows(bool all) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& [name, entry] : table()) {
    const std::unique_ptr<StepwisePolicy> policy = entry.factory();
    rows.push_back({full_name(name), "decode", needs_text(policy->needs()), entry.traits.stack ? "yes" : "no", "no",
                    std::string(entry.traits.summary)});
    if (all) rows.back().insert(rows.back().end(), {parameters_text(*policy), std::string(entry.traits.reference)});
  }
  return rows;
}

std::string stepwise_policy_page(std::string_view name) {
  const std::unique_ptr<StepwisePolicy> policy = make_stepwise_policy(name);
  const StepTraits& traits = policy->traits();
  const auto yes_no = [](bool value) { return value ? "yes" : "no"; };
  std::string out = fmt::format("{}: {}\n\n", full_name(traits.name), traits.summary);
  out += fmt::format("  default   {}\n  phase     decode: one cache for prompt and decoded tokens, step by step\n", canonical_spec(*policy));
  out += fmt::format("  reference {}\n  needs     {}\n", traits.reference, needs_text(policy->needs()));
  out += fmt::format("  nested    {} (all capacities in one pass)\n", yes_no(traits.stack));
  out += fmt::format("\nCapacity (--budget)\n  {}\n", traits.accounting);
  if (traits.bounded)
    out += "  It bounds all tokens of a cache after each eviction; while a step is computed its own token is held too.\n";
  out += "\nParameters\n";
  std::vector<std::vector<std::string>> rows{{"  name", "type", "default", "range", "meaning"}};
  for (const FieldDescription& f : describe_fields([&](FieldVisitor& visitor) { policy->fields(visitor); }))
    rows.push_back({"  " + f.key, f.type, f.default_text, f.range, f.help});
  out += rows.size() == 1 ? "  none\n" : format_table(rows, TableFormat::text);
  out += "\nWhat to record\n";
  for (const std::string& line : step_recording_advice(*policy)) out += "  " + line + '\n';
  return out;
}

void Schedule::fields(FieldVisitor& f) {
  constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();
  f.number("block", block, 0, kMost, "prefill in blocks of so many tokens with an eviction after each, open loop; 0 = all at once");
  f.flag("prompt_end", prompt_end, "evict when the prompt has been read");
  f.number("every", every, 1, kMost, "evict after every so many decode steps");
  f.number("buffer", buffer, 0, kMost, "evict only once the capacity and so many more tokens are held; 0 = whenever above it");
}

}  // namespace kvsim
