// What a reader of a report must know beside its numbers.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "analysis/report_query.h"

namespace kvsim {
namespace {

constexpr std::size_t kFailuresShown = 5;

struct Counts {
  std::size_t cells = 0, unevicted = 0, clamped = 0;
  double near_ties = 0, fewest = 0, most = 0;
  bool references = false;
};

Counts count(const Results& results, const ReportQuery& query, const std::string& metric) {
  const Table& table = results.summary;
  const Column &evicted = table.at("evicted"), &clamped = table.at("clamped"), &ties = table.at("near_ties");
  const Column &variant = table.at("variant"), &policy = table.at("policy");
  const Column* values = table.find(metric + "_count");
  std::set<std::string> automatic;
  for (const VariantEntry& entry : results.variants) {
    if (entry.automatic) automatic.insert(entry.spec);
  }
  Counts counts;
  const auto keep = query.selected(table);
  for (std::size_t i = 0; i < table.rows(); ++i) {
    if (!keep[i]) continue;
    counts.references = counts.references || automatic.contains(variant.text(variant.numbers[i]));
    const double many = values == nullptr ? 0 : values->numbers[i];
    if (!std::isnan(many)) {
      counts.fewest = counts.most == 0 ? many : std::min(counts.fewest, many);
      counts.most = std::max(counts.most, many);
    }
    counts.near_ties += ties.numbers[i];
    // The full cache never evicts; counting it would hide what the warning is about.
    if (policy.text(policy.numbers[i]) == "full") continue;
    ++counts.cells;
    counts.unevicted += evicted.numbers[i] == 0;
    counts.clamped += clamped.numbers[i] != 0;
  }
  return counts;
}

void add_failures(const Results& results, std::vector<std::string>& notes) {
  if (results.failures.empty()) return;
  std::set<std::string> variants;
  for (const FailureEntry& failure : results.failures) variants.insert(failure.variant);
  notes.push_back(fmt::format(
      "{} variant(s) were refused or failed somewhere ({} entries in /failures); a summary leaves out "
      "cells that miss a layer:",
      variants.size(), results.failures.size()));
  std::set<std::pair<std::string, std::string>> shown;
  for (const FailureEntry& failure : results.failures) {
    if (shown.size() == kFailuresShown) break;
    if (!shown.emplace(failure.variant, failure.message).second) continue;
    notes.push_back(fmt::format("  {} ({}): {}", failure.variant, failure.unit, failure.message));
  }
}

/// Which first pass served which budget; a variant with a named pass says so itself.
void add_passes(const Results& results, const ReportQuery& query, std::vector<std::string>& notes) {
  const Column& variants = results.summary.at("variant");
  std::set<std::string> shown;
  const auto keep = query.selected(results.summary);
  for (std::size_t i = 0; i < keep.size(); ++i)
    if (keep[i]) shown.insert(variants.text(variants.numbers[i]));
  std::map<std::string, std::set<std::int64_t>> budgets;  // "variant: first pass p" -> tokens
  for (const PassEntry& use : results.passes) {
    if (shown.contains(use.variant) && use.variant.find(use.pass) == std::string::npos)
      budgets[fmt::format("{} took the first pass {}", use.variant, use.pass)].insert(use.budget_tokens);
  }
  for (const auto& [what, tokens] : budgets)
    notes.push_back(fmt::format("{} at {} tokens", what, fmt::join(tokens, ", ")));
}

/// Which of the figures shown are open loop, and what to do about it; or how much the model itself has
/// judged.
std::string judged_note(const Results& results, const ReportQuery& query,
                        const std::vector<std::string>& shown) {
  const Column* kl = results.summary.find("kl_mean");
  if (kl == nullptr) {
    return fmt::format(
        "open-loop figures alone ({}): they order policies only roughly as the model's own divergence does "
        "(on "
        "SmolLM2, among policies of one budget, rank correlation 0.5 for output_error, 0.9 for predicted_kl: "
        "analysis/studies/fidelity.md); 'kvsim-judge {}' lets the model run with the kept sets (of 'kvsim "
        "run "
        "--save kept')",
        fmt::join(shown, ", "), results.folders.front());
  }
  const auto keep = query.selected(results.summary);
  std::size_t judged = 0, cells = 0;
  for (std::size_t i = 0; i < keep.size(); ++i) {
    cells += keep[i];
    judged += keep[i] && !std::isnan(kl->numbers[i]);
  }
  return fmt::format(
      "kl, top1_agreement: the model itself with the kept sets of {} of {} cells, against its full cache "
      "(kvsim-judge); all other "
      "figures are open loop",
      judged, cells);
}

std::string counts_note(const Counts& counts, const std::string& metric, const std::string& level,
                        std::size_t traces) {
  const std::string values = counts.fewest == counts.most
                                 ? fmt::format("{:.15g}", counts.most)
                                 : fmt::format("{:.15g} to {:.15g}", counts.fewest, counts.most);
  return fmt::format("a figure of {} is over {} values per trace ({}); {} trace{}", metric, values,
                     level == "trace" ? "decode steps" : "layers, heads and steps", traces,
                     traces == 1 ? "" : "s");
}

}  // namespace

std::string report_notes(const Results& results, const ReportRequest& request) {
  if (request.format == TableFormat::csv) return {};
  const ReportQuery query(results, request);
  std::vector<std::string> shown = main_metrics(results, request);
  const std::string usual = shown.front();
  if (!request.y.empty()) shown = request.y;
  const std::string metric = results.metric(shown.front()) != nullptr ? shown.front() : usual;
  const Counts counts = count(results, query, metric);
  std::vector<std::string> notes;
  notes.emplace_back(
      "open loop: every policy was given the keys, values and queries of the model with its full cache. What "
      "an evicted "
      "token would have changed in later layers, or in the text itself, is not in these figures");
  notes.push_back(judged_note(results, query, shown));
  notes.push_back(counts_note(counts, metric, results.metric(metric)->level, query.traces().size()));
  if (query.several_traces()) {
    notes.push_back(
        fmt::format("[low, high] is the 95% bootstrap interval of the mean over traces (traces resampled, {} "
                    "resamples, seed {}){}",
                    Bootstrap(request.seed).resamples(), request.seed,
                    query.traces().size() < 5 ? "; with so few traces it says little" : ""));
  } else {
    notes.emplace_back("one trace: there is no interval over traces");
  }
  if (counts.references)
    notes.emplace_back("* reference that is added to every run; references are no bounds for output_error");
  if (request.stat != "mean") {
    notes.emplace_back(
        "percentiles come from bins at most 1% wide; where more is better they count from the other end (p5 "
        "for p95)");
  }
  if (counts.unevicted > 0) {
    notes.push_back(fmt::format(
        "{} of {} cells evicted nothing (budget not below the prompt): they say nothing about a policy",
        counts.unevicted, counts.cells));
  }
  if (counts.clamped > 0) {
    notes.push_back(fmt::format(
        "{} of {} cells are clamped: the budget is below what the policy protects, so it kept the first "
        "of its protected tokens only",
        counts.clamped, counts.cells));
  }
  if (counts.near_ties > 0) {
    notes.push_back(fmt::format(
        "{:.15g} near ties at cut-offs: scores so close that another instruction path may keep other tokens",
        counts.near_ties));
  }
  add_passes(results, query, notes);
  add_failures(results, notes);
  std::string text;
  for (const std::string& note : notes) {
    text += note.starts_with("  ")
                ? note + "\n"
                : fmt::format("{} {}\n", request.format == TableFormat::markdown ? "-" : "note:", note);
  }
  return text;
}

}  // namespace kvsim
