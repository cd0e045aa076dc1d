// What users read about policies: the table of all of them and the page of one, made from the code itself.
#include "policies/catalogue.h"

#include <fmt/format.h>

#include <algorithm>

#include "policies/compose_parts.h"
#include "policies/presets.h"
#include "policies/registry.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

std::string yes_no(bool value) { return value ? "yes" : "no"; }

std::string markdown_cell(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

std::string parameters_text(std::string_view name) {
  const std::string spec = canonical_spec(*make_policy(name));
  return spec.size() == name.size() ? "" : spec.substr(name.size() + 1, spec.size() - name.size() - 2);
}

/// Breaks at spaces; every line starts with `indent` blanks.
std::string wrapped(std::string_view text, std::size_t indent) {
  constexpr std::size_t kWidth = 100;
  std::string out, line(indent, ' ');
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    if (line.size() + end + 1 > kWidth && line.size() > indent) {
      out += line + '\n';
      line.assign(indent, ' ');
    }
    if (line.size() > indent) line += ' ';
    line += text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out + line + '\n';
}

}  // namespace

std::string format_table(const std::vector<std::vector<std::string>>& rows, TableFormat format) {
  std::string out;
  if (format == TableFormat::markdown) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      out += '|';
      for (const std::string& cell : rows[r]) out += ' ' + markdown_cell(cell) + " |";
      out += '\n';
      if (r > 0) continue;
      out += '|';
      for (std::size_t c = 0; c < rows[r].size(); ++c) out += " --- |";
      out += '\n';
    }
    return out;
  }
  std::vector<std::size_t> width;
  for (const auto& row : rows) {
    width.resize(std::max(width.size(), row.size()), 0);
    for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], row[c].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t c = 0; c < row.size(); ++c) line += fmt::format("{:<{}}  ", row[c], width[c]);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  }
  return out;
}

std::string needs_text(Need needs) {
  std::string out;
  const auto add = [&](Need one, std::string_view text) {
    if (has(needs, one)) out += fmt::format("{}{}", out.empty() ? "" : ", ", text);
  };
  add(Need::keys, "keys");
  add(Need::values, "values");
  add(Need::window_queries, "window queries");
  add(Need::prompt_attention, "prompt attention");
  add(Need::query_stats, "query statistics");
  add(Need::decode_queries, "decode queries");
  add(Need::lookahead, "pseudo queries");
  add(Need::second_pass, "second pass");
  add(Need::output_projection, "output projection");
  add(Need::all_queries, "all prompt queries");
  return out.empty() ? "positions" : out;
}

std::string policy_table(TableFormat format, bool all) {
  std::vector<std::vector<std::string>> rows{{"name", "phase", "needs", "nested", "oracle", "what it keeps"}};
  if (all) rows[0].insert(rows[0].end(), {"parameters", "reference"});
  for (const PolicyTraits* traits : all_policies()) {
    rows.push_back({std::string(traits->name), "prompt", needs_text(make_policy(traits->name)->needs()),
                    yes_no(traits->nested), yes_no(traits->oracle), std::string(traits->summary)});
    if (all)
      rows.back().insert(rows.back().end(), {parameters_text(traits->name), std::string(traits->reference)});
  }
  for (auto& row : stepwise_policy_rows(all)) rows.push_back(std::move(row));
  return format_table(rows, format);
}

std::vector<std::string> recording_advice(Need needs, std::uint32_t window) {
  std::vector<std::string> out;
  if (has(needs, Need::window_queries)) {
    out.push_back(
        fmt::format("kvsim-record --queries all (the default), or --queries window:{} or more", window));
  }
  if (has(needs, Need::prompt_attention)) {
    out.push_back(
        "kvsim-record --queries all (the default), or --stats with a shorter window (attention column sums)");
  }
  if (has(needs, Need::query_stats)) {
    out.push_back(
        "kvsim-record --queries all (the default), or --stats with a shorter window (query mean, "
        "covariance)");
  }
  if (has(needs, Need::all_queries)) out.push_back("kvsim-record --queries all (the default)");
  if (has(needs, Need::lookahead))
    out.push_back("kvsim-record --lookahead 8 --lookahead-policy 'snapkv(window=32)' --lookahead-budget 128,256,512");
  if (has(needs, Need::second_pass)) out.push_back("kvsim-record --second-pass repeat");
  if (has(needs, Need::output_projection)) out.push_back("kvsim-record --output-proj");
  if (out.empty()) out.push_back("nothing special: every trace holds what it reads");
  return out;
}

std::string policy_page(std::string_view name) {
  const std::unique_ptr<Policy> policy = bind_policy(parse_specs(name).front());
  const PolicyTraits& traits = policy->traits();
  std::string out = fmt::format("{}: {}\n\n", traits.name, traits.summary);
  out += fmt::format("  {:<9} {}\n", name == traits.name ? "default" : "spec", canonical_spec(*policy));
  if (const std::optional<std::string> parts = preset_line(*policy)) out += fmt::format("  in parts  {}\n", *parts);
  out += fmt::format("  reference {}\n", traits.reference);
  out += fmt::format("  needs     {}\n", needs_text(policy->needs()));
  out += fmt::format("  nested    {}\n  oracle    {}\n", yes_no(traits.nested), yes_no(traits.oracle));
  if (traits.order_by_budget) out += "  orders    another one at every budget: measured budget by budget\n";
  if (traits.model_wide) out += "  layers    all are scored before the first is measured, in every shard of a run\n";
  if (traits.own_size) out += "  size      its own; the budget is the most that it keeps\n";
  if (traits.transforms) out += "  entries   changed: output_error is over what it puts in the place of what it keeps\n";
  out += "\nBudget\n" + wrapped(traits.accounting, 2);
  const std::vector<FieldDescription> fields = describe_fields([&](FieldVisitor& visitor) { policy->fields(visitor); });
  out += "\nParameters\n";
  if (fields.empty()) out += "  none\n";
  std::vector<std::vector<std::string>> rows{{"  name", "type", "default", "range", "meaning"}};
  for (const FieldDescription& f : fields)
    rows.push_back({"  " + f.key, f.type, f.default_text, f.range, f.help});
  if (!fields.empty()) out += format_table(rows, TableFormat::text);
  out += "\nWhat to record\n";
  for (const std::string& line : recording_advice(policy->needs(), policy->window()))
    out += "  " + line + '\n';
  if (traits.name == "compose") out += "\nParts\n" + explain_parts();
  return out;
}

}  // namespace kvsim
