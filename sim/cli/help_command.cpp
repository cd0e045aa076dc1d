// kvsim help: one policy, page policy, metric or subcommand in detail.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"
#include "policies/catalogue.h"
#include "policies/paging/page_registry.h"
#include "policies/registry.h"
#include "policies/stepwise/stepwise_registry.h"
#include "sim/cli/options.h"
#include "sim/results.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim help NAME\n\n"
    "Explains a policy (parameters, reference, budget, what to record), a metric (formula, unit, "
    "direction),\n"
    "a page policy or a subcommand. A name that several kinds of policy have means the prompt-time one;\n"
    "decode:NAME means the decode-time one, pages:NAME the page policy.\n"
    "'kvsim list policies' and 'kvsim list metrics' show the names; 'kvsim SUBCOMMAND --help' explains a "
    "subcommand.\n";

std::string metric_page(const MetricInfo& metric) {
  constexpr const char* kLevels[] = {"per layer, head and step", "per layer and step",
                                     "per step of the trace"};
  return fmt::format("{}: {}\n\n  formula  {}\n  unit     {}\n  better   {}\n  measured {}\n", metric.name,
                     metric.summary, metric.formula, metric.unit,
                     metric.higher_is_better ? "higher" : "lower",
                     kLevels[static_cast<std::size_t>(metric.level)]);
}

std::string page_policy_page(const std::string& name) {
  const std::unique_ptr<PagePolicy> policy = make_page_policy(name);
  const PageTraits& traits = policy->traits();
  std::string out = fmt::format("{}: {}\n\n  default   {}\n  reference {}\n\nParameters\n", traits.name,
                                traits.summary, canonical_page_spec(*policy), traits.reference);
  std::vector<std::vector<std::string>> rows{{"  name", "type", "default", "range", "meaning"}};
  for (const FieldDescription& f : describe_fields([&](FieldVisitor& visitor) { policy->fields(visitor); })) {
    rows.push_back({"  " + f.key, f.type, f.default_text, f.range, f.help});
  }
  return out + (rows.size() == 1 ? "  none\n" : format_table(rows, TableFormat::text));
}

bool is_page_policy(std::string_view name) {
  const auto all = all_page_policies();
  return std::any_of(all.begin(), all.end(), [&](const PageTraits* traits) { return traits->name == name; });
}

struct Subcommand {
  std::string_view name;
  int (*run)(const Arguments&);
};
constexpr Subcommand kSubcommands[] = {
    {"run", run_command},     {"plan", plan_command},   {"list", list_command},
    {"trace", trace_command}, {"merge", merge_command}, {"report", report_command},
    {"pages", pages_command}, {"help", help_command},   {"selftest", selftest_command}};

[[noreturn]] void unknown(const std::string& name) {
  std::vector<std::string> names;
  for (const PolicyTraits* traits : all_policies()) names.emplace_back(traits->name);
  for (const MetricInfo& metric : all_metrics()) names.emplace_back(metric.name);
  for (const StepTraits* traits : all_stepwise_policies()) names.push_back(std::string(kDecodePrefix) + std::string(traits->name));
  for (const PageTraits* traits : all_page_policies()) names.emplace_back(traits->name);
  const std::string near = nearest_name(name, names);
  throw UserError("nothing is named '{}'{}; 'kvsim list policies' and 'kvsim list metrics' show them", name,
                  near.empty() ? "" : fmt::format(", did you mean '{}'?", near));
}

}  // namespace

int help_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("name", po::value<std::string>(), "a policy or metric");
  po::positional_options_description positional;
  positional.add("name", 1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("name") == 0) {
    fmt::print("{}", kUsage);
    return kDone;
  }
  const std::string name = values["name"].as<std::string>();
  constexpr std::string_view kPages = "pages:";
  for (const Subcommand& subcommand : kSubcommands) {
    if (subcommand.name == name) return subcommand.run({"--help"});
  }
  const auto& metrics = all_metrics();
  const auto metric =
      std::find_if(metrics.begin(), metrics.end(), [&](const MetricInfo& m) { return m.name == name; });
  if (find_policy(name.substr(0, name.find('('))) != nullptr) {  // a spec shows its own parameters
    fmt::print("{}", policy_page(name));
  } else if (is_stepwise_name(name)) {
    fmt::print("{}", stepwise_policy_page(name));
  } else if (metric != metrics.end()) {
    fmt::print("{}", metric_page(*metric));
  } else if (is_page_policy(name) || name.starts_with(kPages)) {
    fmt::print("{}", page_policy_page(name.starts_with(kPages) ? name.substr(kPages.size()) : name));
  } else {
    unknown(name);
  }
  return kDone;
}

}  // namespace kvsim
