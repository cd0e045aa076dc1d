// kvsim help: one policy or metric in detail.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"
#include "policies/catalogue.h"
#include "policies/registry.h"
#include "sim/cli/options.h"
#include "sim/results.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim help NAME\n\n"
    "Explains a policy (parameters, reference, budget, what to record) or a metric (formula, unit, "
    "direction).\n"
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

[[noreturn]] void unknown(const std::string& name) {
  std::vector<std::string> names;
  for (const PolicyTraits* traits : all_policies()) names.emplace_back(traits->name);
  for (const MetricInfo& metric : all_metrics()) names.emplace_back(metric.name);
  const std::string near = nearest_name(name, names);
  throw UserError(
      "no policy or metric is named '{}'{}; 'kvsim list policies' and 'kvsim list metrics' show them", name,
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
  const auto& metrics = all_metrics();
  const auto metric =
      std::find_if(metrics.begin(), metrics.end(), [&](const MetricInfo& m) { return m.name == name; });
  if (find_policy(name) != nullptr) {
    fmt::print("{}", policy_page(name));
  } else if (metric != metrics.end()) {
    fmt::print("{}", metric_page(*metric));
  } else {
    unknown(name);
  }
  return kDone;
}

}  // namespace kvsim
