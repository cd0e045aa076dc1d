// kvsim pages list: page policies and predictors, as text or Markdown.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"
#include "policies/paging/page_registry.h"
#include "policies/paging/predictor.h"
#include "policies/registry.h"
#include "sim/cli/options.h"
#include "sim/cli/pages_commands.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim pages list [policies|predictors] [--format text|md]\n\n"
    "Shows what can be named in --policy of 'kvsim pages'.\n";

std::string table_of(const std::vector<std::vector<std::string>>& rows, bool markdown) {
  std::vector<std::size_t> width;
  for (const auto& row : rows) {
    width.resize(std::max(width.size(), row.size()), 0);
    for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], row[c].size());
  }
  std::string out;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::string line = markdown ? "|" : "";
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      const bool last = c + 1 == rows[r].size();
      line += markdown ? fmt::format(" {} |", rows[r][c])
              : last   ? rows[r][c]
                       : fmt::format("{:<{}}  ", rows[r][c], width[c]);
    }
    out += line + "\n";
    if (markdown && r == 0) {
      out += "|";
      for (std::size_t c = 0; c < rows[r].size(); ++c) out += " --- |";
      out += "\n";
    }
  }
  return out;
}

}  // namespace

std::string page_policy_table(bool markdown) {
  std::vector<std::vector<std::string>> rows{
      {"policy", "guard", "future", "what leaves", "parameters", "reference"}};
  for (const PageTraits* t : all_page_policies()) {
    const std::unique_ptr<PagePolicy> policy = make_page_policy(t->name);
    policy->prepare();
    std::string parameters = canonical_page_spec(*policy);
    parameters = parameters.size() > t->name.size()
                     ? parameters.substr(t->name.size() + 1, parameters.size() - t->name.size() - 2)
                     : "";
    rows.push_back({markdown ? fmt::format("`{}`", t->name) : std::string(t->name),
                    t->guardable ? "yes" : fmt::format("no: {}", t->guard_refusal), t->future ? "yes" : "",
                    std::string(t->summary),
                    markdown && !parameters.empty() ? fmt::format("`{}`", parameters) : parameters,
                    std::string(t->reference)});
  }
  if (!markdown) {
    for (auto& row : rows) {
      row[1] = row[1].substr(0, 5) == "guard" ? row[1] : row[1].substr(0, row[1].find(':'));
      row.resize(4);
    }
  }
  return table_of(rows, markdown);
}

std::string predictor_table(bool markdown) {
  std::vector<std::vector<std::string>> rows{{"predictor", "kind", "reads", "what it predicts", "reference"}};
  for (const PredictorTraits* t : all_predictors()) {
    rows.push_back({markdown ? fmt::format("`{}`", t->name) : std::string(t->name),
                    std::string(to_text(t->kind)),
                    t->future      ? "the future"
                    : t->attention ? "attention"
                                   : "the past",
                    std::string(t->summary), std::string(t->reference)});
  }
  if (!markdown) {
    for (auto& row : rows) row.resize(4);
  }
  return table_of(rows, markdown);
}

int pages_list_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("format", po::value<std::string>()->default_value("text"),
                                                    "text or md")(
      "what", po::value<std::string>()->default_value("policies"), "policies or predictors");
  po::positional_options_description positional;
  positional.add("what", 1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  const std::string format = values["format"].as<std::string>(), what = values["what"].as<std::string>();
  if (format != "text" && format != "md")
    throw UserError("--format {} is unknown, expected text or md", format);
  if (what == "policies") {
    fmt::print("{}", page_policy_table(format == "md"));
  } else if (what == "predictors") {
    fmt::print("{}", predictor_table(format == "md"));
  } else {
    throw UserError("kvsim pages list does not know '{}'; it lists policies or predictors", what);
  }
  return kDone;
}

}  // namespace kvsim
