// kvsim report: tables, knees and comparisons of finished runs.
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "analysis/report.h"
#include "kernels/error.h"
#include "policies/registry.h"
#include "sim/cli/options.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim report DIR... [options]\n"
    "       kvsim report --diff A B [--tolerance T]\n"
    "       kvsim report DIR... --compare SPEC_A SPEC_B\n\n"
    "Without options: a ranking of the variants at every budget by the main metrics. Several folders are "
    "read as one. Where the model itself has judged a run (DIR/closed.h5, written by kvsim-judge), its "
    "divergence kl and "
    "top1_agreement come first, log_likelihood_change can be asked for, and a table shows how well each "
    "other figure "
    "orders the policies.\n\n"
    "examples\n"
    "  kvsim report runs/a                                          rankings\n"
    "  kvsim report runs/a --budget 10% --sort set_consistency      one budget, another order\n"
    "  kvsim report runs/a --x budget --y output_error,miss_rate    a curve per variant as a table\n"
    "  kvsim report runs/a --x layer --y output_error --budget 128  where in the model it goes wrong\n"
    "  kvsim report runs/a --by policy --filter 'policy!=random and budget<=512'\n"
    "  kvsim report runs/a --stat p95 --format md                   the bad tail, as Markdown\n"
    "  kvsim report runs/a --at 'set_consistency>=0.95'             smallest measured budget that reaches "
    "it\n"
    "  kvsim report runs/a --compare h2o 'snapkv(window=32)'        paired differences\n"
    "  kvsim report runs/a --y kl,predicted_kl --sort predicted_kl  the model's own divergence beside the "
    "prediction\n"
    "  kvsim report --diff runs/a runs/b                            exit code 1 when any number differs\n";

po::options_description report_options() {
  po::options_description options("options");
  auto add = options.add_options();
  add("help,h", "this text");
  add("x", po::value<std::string>()->default_value(""),
      "column along the table: budget, resident_tokens, layer, kv_head, trace, a metric, ...");
  add("y", po::value<std::string>()->default_value(""),
      "metrics or columns to show, comma-separated (default: the main metrics)");
  add("by", po::value<std::string>()->default_value(""),
      "what makes a line: variant (default), policy, layer, trace, ..., comma-separated");
  add("budget", po::value<std::vector<std::string>>()->composing(),
      "only these: 128,10%,64..512 (between), 64..512*2; or all");
  add("filter", po::value<std::string>()->default_value(""),
      "conditions: column == != < <= > >= ~ (contains) value, joined by 'and', 'or'");
  add("sort", po::value<std::string>()->default_value(""),
      "column, best or smallest first; column:asc or column:desc");
  add("stat", po::value<std::string>()->default_value("mean"),
      "mean, p50, p95, p99, max (over layers, heads, steps; where more is better p5, p1, min)");
  add("format", po::value<std::string>()->default_value("table"), "table, csv or md");
  add("at", po::value<std::string>()->default_value(""),
      "condition on metrics: smallest measured budget that satisfies it");
  add("compare", po::value<std::vector<std::string>>()->composing(),
      "two variants: their paired differences, with intervals over traces");
  add("closed", po::value<std::vector<std::string>>()->composing(),
      "what kvsim-judge wrote (default: closed.h5 in every DIR)");
  add("diff", "compare two results, number by number");
  add("tolerance", po::value<double>()->default_value(0),
      "for --diff: |a - b| may be this times max(1, |a|, |b|)");
  add("seed", po::value<std::uint64_t>()->default_value(0), "of the bootstrap");
  add("dir", po::value<std::vector<std::string>>(), "results folder");
  return options;
}

std::vector<std::string> listed(const std::string& text) {
  std::vector<std::string> items;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) items.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return items;
}

/// `--compare A B` takes two words; Boost knows options of one word, or of all that follow.
Arguments split_compare(const Arguments& arguments) {
  Arguments out;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] != "--compare") {
      out.push_back(arguments[i]);
      continue;
    }
    if (i + 2 >= arguments.size()) throw UserError("--compare takes two variants: --compare SPEC_A SPEC_B");
    out.push_back("--compare=" + arguments[i + 1]);
    out.push_back("--compare=" + arguments[i + 2]);
    i += 2;
  }
  return out;
}

TableFormat format_of(const std::string& name) {
  if (name == "table") return TableFormat::table;
  if (name == "csv") return TableFormat::csv;
  if (name == "md" || name == "markdown") return TableFormat::markdown;
  throw UnknownName("format", name, {"table", "csv", "md"});
}

/// A label of the results as it is, else the canonical one where the text is a spec of a policy we know.
std::string label_from(const std::string& text, const Results& results) {
  for (const VariantEntry& variant : results.variants)
    if (variant.spec == text) return text;
  try {
    const auto specs = parse_specs(text);
    if (specs.size() == 1 && text.find('(') != std::string::npos)
      return canonical_spec(*bind_policy(specs.front()));
  } catch (const UserError&) {
    // Results may hold policies that this program does not know.
  }
  return text;
}

ReportRequest request_from(const po::variables_map& values) {
  ReportRequest request;
  const auto text = [&](const char* name) { return values[name].as<std::string>(); };
  request.x = text("x");
  request.y = listed(text("y"));
  request.by = listed(text("by"));
  request.filter = text("filter");
  request.sort = text("sort");
  request.stat = text("stat");
  request.at = text("at");
  request.format = format_of(text("format"));
  request.seed = values["seed"].as<std::uint64_t>();
  if (values.count("budget") != 0)
    request.budgets = fmt::format("{}", fmt::join(values["budget"].as<std::vector<std::string>>(), ","));
  if (values.count("compare") != 0) request.compare = values["compare"].as<std::vector<std::string>>();
  return request;
}

int show_difference(const std::vector<std::string>& folders, double tolerance) {
  if (folders.size() != 2) throw UserError("--diff compares two results folders, {} given", folders.size());
  if (!(tolerance >= 0) || std::isinf(tolerance)) throw UserError("--tolerance must be a number not below 0");
  const Difference difference =
      diff_results(read_results(folders[0], true), read_results(folders[1], true), tolerance);
  fmt::print("{}", difference.text);
  return difference.differing == 0 ? kDone : kFoundSomething;
}

/// closed.h5 of every results folder that has one.
std::vector<std::string> closed_files(const std::vector<std::string>& folders) {
  namespace fs = std::filesystem;
  std::vector<std::string> files;
  for (const std::string& folder : folders) {
    const fs::path path =
        (fs::is_directory(folder) ? fs::path(folder) : fs::path(folder).parent_path()) / "closed.h5";
    if (fs::exists(path)) files.push_back(path.string());
  }
  return files;
}

/// Adds what kvsim-judge wrote to the results.
void add_judged(Results& results, const std::vector<std::string>& closed) {
  if (add_closed_loop(results, closed) == 0)
    throw UserError("{}: holds no cell of these results; run kvsim-judge again, or take the file away",
                    fmt::join(closed, ", "));
}

int show_report(const std::vector<std::string>& folders, ReportRequest request,
                std::vector<std::string> closed) {
  std::vector<Results> all;
  for (const std::string& folder : folders) all.push_back(read_results(folder, needs_rows(request)));
  Results results = join_results(std::move(all));
  if (!closed.empty()) {
    add_judged(results, closed);
  } else if (closed = closed_files(folders); !closed.empty()) {
    try {
      add_judged(results, closed);
    } catch (const UserError& error) {  // nobody named the file: the report goes on without it
      fmt::print(stderr, "kvsim: left out: {}\n", error.what());
    }
  }
  for (std::string& spec : request.compare) spec = label_from(spec, results);
  if (!request.at.empty() && !request.compare.empty())
    throw UserError("--at and --compare are two reports; ask for one");
  const std::string body = !request.compare.empty() ? compare_report(results, request)
                           : !request.at.empty()    ? knee_report(results, request)
                                                    : ranking_report(results, request);
  const bool tables = request.compare.empty() && request.at.empty();
  fmt::print("{}{}{}", body, tables ? fidelity_report(results, request) : "", report_notes(results, request));
  return kDone;
}

}  // namespace

int report_command(const Arguments& arguments) {
  po::positional_options_description positional;
  positional.add("dir", -1);
  po::variables_map values;
  if (!parse_options(split_compare(arguments), report_options(), positional, kUsage, values)) return kDone;
  if (values.count("dir") == 0) throw UserError("which results? 'kvsim report DIR'; --help shows more");
  const auto folders = values["dir"].as<std::vector<std::string>>();
  try {
    if (values.count("diff") != 0) return show_difference(folders, values["tolerance"].as<double>());
    const auto closed = values.count("closed") != 0 ? values["closed"].as<std::vector<std::string>>()
                                                    : std::vector<std::string>();
    return show_report(folders, request_from(values), closed);
  } catch (const UnknownName& error) {
    const std::string nearest = nearest_name(error.word, error.candidates);
    if (nearest.empty()) throw;
    throw UserError("{}; did you mean '{}'?", error.what(), nearest);
  }
}

}  // namespace kvsim
