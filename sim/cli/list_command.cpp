// kvsim list: the policies, page policies or metrics that this program knows, as an aligned table or
// Markdown.
#include <fmt/format.h>

#include "kernels/error.h"
#include "policies/catalogue.h"
#include "policies/not_replayed.h"
#include "policies/paging/page_registry.h"
#include "policies/registry.h"
#include "sim/cli/options.h"
#include "sim/results.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim list policies|pages|metrics [--all] [--format text|md]\n\n"
    "Shows what can be named in --policy (of run and of pages) or --metrics; 'kvsim help NAME' explains one "
    "of them.\n";

std::string metric_table(TableFormat format, bool all) {
  constexpr const char* kLevels[] = {"layer, head, step", "layer, step", "trace, step"};
  std::vector<std::vector<std::string>> rows{{"name", "unit", "better", "per", "what it measures"}};
  if (all) rows[0].push_back("formula");
  for (const MetricInfo& metric : all_metrics()) {
    rows.push_back({std::string(metric.name), std::string(metric.unit),
                    metric.higher_is_better ? "higher" : "lower",
                    kLevels[static_cast<std::size_t>(metric.level)], std::string(metric.summary)});
    if (all) rows.back().emplace_back(metric.formula);
  }
  return format_table(rows, format);
}

std::string page_table(TableFormat format, bool all) {
  std::vector<std::vector<std::string>> rows{{"name", "future", "guardable", "one pass", "what it does"}};
  if (all) rows[0].push_back("reference");
  for (const PageTraits* traits : all_page_policies()) {
    const auto yes_no = [](bool value) { return value ? "yes" : "no"; };
    rows.push_back({std::string(traits->name), yes_no(traits->future), yes_no(traits->guardable),
                    yes_no(traits->stack), std::string(traits->summary)});
    if (all) rows.back().emplace_back(traits->reference);
  }
  return format_table(rows, format);
}

/// What is published and not replayed here, with the reason: never silently absent.
std::string not_replayed_table(TableFormat format) {
  std::vector<std::vector<std::string>> rows{{"not replayed", "reference", "why"}};
  for (const NotReplayed& one : not_replayed())
    rows.push_back({std::string(one.name), std::string(one.reference), std::string(one.reason)});
  return format_table(rows, format);
}

TableFormat table_format(const std::string& word) {
  if (word == "text") return TableFormat::text;
  if (word == "md") return TableFormat::markdown;
  throw UserError("--format {} is unknown, expected text or md", word);
}

}  // namespace

int list_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("all",
                                                    "more columns: parameters and references, or formulas")(
      "format", po::value<std::string>()->default_value("text"), "text or md (Markdown, for documents)")(
      "what", po::value<std::string>(), "policies, pages or metrics");
  po::positional_options_description positional;
  positional.add("what", 1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  const TableFormat format = table_format(values["format"].as<std::string>());
  const bool all = values.count("all") > 0;
  const std::string what = values.count("what") > 0 ? values["what"].as<std::string>() : "";
  if (what == "policies") {
    fmt::print("{}", policy_table(format, all));
    if (all) fmt::print("\n{}", not_replayed_table(format));
  } else if (what == "pages") {
    fmt::print("{}", page_table(format, all));
  } else if (what == "metrics") {
    fmt::print("{}", metric_table(format, all));
  } else if (what.empty()) {
    throw UserError("kvsim list needs to know what to list: policies, pages or metrics");
  } else {
    const std::string near = nearest_name(what, {"policies", "pages", "metrics"});
    throw UserError("kvsim list does not know '{}'{}; it lists policies, pages or metrics", what,
                    near.empty() ? "" : fmt::format(", did you mean '{}'?", near));
  }
  return kDone;
}

}  // namespace kvsim
