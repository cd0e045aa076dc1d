// What a run folder says about itself.
#include "analysis/run_record.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "analysis/durable_file.h"
#include "analysis/result_header.h"
#include "analysis/write_guard.h"
#include "kernels/error.h"
#include "traces/h5/file.h"
#include "traces/h5/pending_file.h"

namespace kvsim {
namespace {

constexpr std::string_view kRecordFormat = "kvsim-run";

template <typename Entry, typename Value>
std::set<std::string> names_of(const std::vector<Entry>& entries, Value Entry::*member,
                               std::string_view what) {
  std::set<std::string> names;
  for (const Entry& entry : entries) {
    if (!names.insert(entry.*member).second) {
      throw UserError("two {}s are called '{}'; results could not tell them apart", what, entry.*member);
    }
  }
  return names;
}

void check_names(const RunDescription& description) {
  names_of(description.traces, &TraceEntry::name, "trace");
  names_of(description.variants, &VariantEntry::spec, "variant");
}

void write_budgets(h5::Group& root, const std::vector<TraceEntry>& traces) {
  std::vector<std::uint32_t> trace, tokens;
  std::vector<std::string> request;
  for (std::size_t t = 0; t < traces.size(); ++t) {
    for (const BudgetPoint& budget : traces[t].budgets) {
      trace.push_back(static_cast<std::uint32_t>(t));
      tokens.push_back(budget.tokens);
      request.push_back(budget.request);
    }
  }
  h5::Group group = root.create_group("budgets");
  group.write_column("trace", trace);
  group.write_column("request", request);
  group.write_column("tokens", tokens);
}

void read_budgets(const h5::Group& root, std::vector<TraceEntry>& traces) {
  const h5::Group group = root.group("budgets");
  const auto trace = group.read_column<std::uint32_t>("trace");
  const auto request = group.read_strings("request");
  const auto tokens = group.read_column<std::uint32_t>("tokens");
  if (request.size() != trace.size() || tokens.size() != trace.size()) {
    throw UserError("{}: its columns differ in length", group.where());
  }
  for (std::size_t i = 0; i < trace.size(); ++i) {
    if (trace[i] >= traces.size())
      throw UserError("{}: names trace {} of {}", group.where(), trace[i], traces.size());
    traces[trace[i]].budgets.push_back({request[i], tokens[i]});
  }
}

const TraceEntry* find_trace(const std::vector<TraceEntry>& traces, const std::string& name) {
  const auto found =
      std::find_if(traces.begin(), traces.end(), [&](const TraceEntry& t) { return t.name == name; });
  return found == traces.end() ? nullptr : &*found;
}

bool has_budget(const TraceEntry& trace, const BudgetPoint& budget) {
  return std::any_of(trace.budgets.begin(), trace.budgets.end(), [&](const BudgetPoint& b) {
    return b.request == budget.request && b.tokens == budget.tokens;
  });
}

void compare_traces(const TraceEntry& before, const TraceEntry& now, std::vector<std::string>& out) {
  if (before.digest_key != now.digest_key) {
    out.push_back(
        fmt::format("trace {} is another recording: digest {} -> {}", now.name, before.digest, now.digest));
  }
  for (const BudgetPoint& b : now.budgets) {
    if (!has_budget(before, b))
      out.push_back(fmt::format("budget {} ({} tokens) of trace {} is new", b.request, b.tokens, now.name));
  }
  for (const BudgetPoint& b : before.budgets) {
    if (!has_budget(now, b))
      out.push_back(fmt::format("budget {} ({} tokens) of trace {} is gone", b.request, b.tokens, now.name));
  }
}

void compare_names(const std::set<std::string>& before, const std::set<std::string>& now,
                   std::string_view what, std::vector<std::string>& out) {
  for (const auto& name : now) {
    if (!before.contains(name)) out.push_back(fmt::format("{} {} is new", what, name));
  }
  for (const auto& name : before) {
    if (!now.contains(name)) out.push_back(fmt::format("{} {} is gone", what, name));
  }
}

std::string units_text(const std::vector<UnitId>& units, std::size_t trace) {
  std::string text;
  for (const UnitId& unit : units) {
    if (unit.trace == trace) text += fmt::format("{}{}", text.empty() ? "" : ",", unit.layer);
  }
  return text;
}

std::size_t index_of(const std::vector<TraceEntry>& traces, const TraceEntry* trace) {
  return static_cast<std::size_t>(trace - traces.data());
}

}  // namespace

std::string parts_folder(const std::string& folder) { return folder + "/parts"; }
std::string record_path(const std::string& folder) { return parts_folder(folder) + "/run.h5"; }
bool has_description(const std::string& folder) { return std::filesystem::exists(record_path(folder)); }

void write_description(const std::string& folder, const RunRecord& record) {
  check_names(record.description);
  make_folder(parts_folder(folder));
  h5::PendingFile pending(record_path(folder));
  h5::File file = h5::File::create(pending.path(), h5::File::Create::replace);
  WriteGuard guard(file);
  write_format(file, kRecordFormat);
  write_provenance(file, record.description.provenance);
  write_traces(file, record.description.traces);
  write_budgets(file, record.description.traces);
  write_variants(file, record.description.variants);
  file.write_column("metrics", record.description.metrics);
  std::vector<std::uint32_t> trace, layer, refused_trace, refused_variant;
  std::vector<std::string> message;
  for (const UnitId& unit : record.units) {
    trace.push_back(unit.trace);
    layer.push_back(unit.layer);
  }
  for (const Refusal& refusal : record.refusals) {
    refused_trace.push_back(refusal.trace);
    refused_variant.push_back(refusal.variant);
    message.push_back(refusal.message);
  }
  file.write_column("units/trace", trace);
  file.write_column("units/layer", layer);
  file.write_column("refusals/trace", refused_trace);
  file.write_column("refusals/variant", refused_variant);
  file.write_column("refusals/message", message);
  std::vector<std::uint32_t> pass_trace, pass_variant, pass_tokens;
  std::vector<std::string> pass_name;
  for (const PassUse& use : record.passes) {
    pass_trace.push_back(use.trace);
    pass_variant.push_back(use.variant);
    pass_tokens.push_back(use.budget_tokens);
    pass_name.push_back(use.pass);
  }
  file.write_column("passes/trace", pass_trace);
  file.write_column("passes/variant", pass_variant);
  file.write_column("passes/budget_tokens", pass_tokens);
  file.write_column("passes/name", pass_name);
  close_guarded(file, guard);
  pending.commit();
}

namespace {

void read_passes(const h5::File& file, RunRecord& record) {
  if (!file.has("passes")) return;  // a run that began before there were any
  const auto trace = file.read_column<std::uint32_t>("passes/trace");
  const auto variant = file.read_column<std::uint32_t>("passes/variant");
  const auto tokens = file.read_column<std::uint32_t>("passes/budget_tokens");
  const auto name = file.read_strings("passes/name");
  const bool fits = trace.size() == name.size() && variant.size() == name.size() && tokens.size() == name.size();
  for (std::size_t i = 0; fits && i < name.size(); ++i) {
    if (trace[i] < record.description.traces.size() && variant[i] < record.description.variants.size())
      record.passes.push_back({trace[i], variant[i], tokens[i], name[i]});
  }
}

}  // namespace

RunRecord read_description(const std::string& folder) {
  if (!has_description(folder)) {
    throw UserError("{}: holds no run ({} is missing); 'kvsim run ... --out {}' makes one", folder,
                    record_path(folder), folder);
  }
  const h5::File file = h5::File::open(record_path(folder));
  check_format(file, kRecordFormat);
  RunRecord record;
  RunDescription& description = record.description;
  description.provenance = read_provenance(file);
  description.traces = read_traces(file);
  read_budgets(file, description.traces);
  description.variants = read_variants(file);
  description.metrics = file.read_strings("metrics");
  check_names(description);
  const auto trace = file.read_column<std::uint32_t>("units/trace");
  const auto layer = file.read_column<std::uint32_t>("units/layer");
  const auto refused_trace = file.read_column<std::uint32_t>("refusals/trace");
  const auto refused_variant = file.read_column<std::uint32_t>("refusals/variant");
  const auto message = file.read_strings("refusals/message");
  const auto bad = [&](const auto& column, std::size_t bound) {
    return std::any_of(column.begin(), column.end(), [&](std::uint32_t i) { return i >= bound; });
  };
  if (trace.size() != layer.size() || refused_trace.size() != message.size() ||
      refused_variant.size() != message.size() || bad(trace, description.traces.size()) ||
      bad(refused_trace, description.traces.size()) || bad(refused_variant, description.variants.size())) {
    throw UserError("{}: is damaged: its tables contradict each other", record_path(folder));
  }
  for (std::size_t i = 0; i < trace.size(); ++i) record.units.push_back({trace[i], layer[i]});
  for (std::size_t i = 0; i < message.size(); ++i) {
    record.refusals.push_back({refused_trace[i], refused_variant[i], message[i]});
  }
  read_passes(file, record);
  return record;
}

std::vector<std::string> differences(const RunRecord& before, const RunRecord& now) {
  const RunDescription &a = before.description, &b = now.description;
  std::vector<std::string> out;
  for (const TraceEntry& trace : b.traces) {
    const TraceEntry* old = find_trace(a.traces, trace.name);
    if (old == nullptr) {
      out.push_back(fmt::format("trace {} is new", trace.name));
      continue;
    }
    compare_traces(*old, trace, out);
    const std::string layers = units_text(before.units, index_of(a.traces, old));
    const std::string layers_now = units_text(now.units, index_of(b.traces, &trace));
    if (layers != layers_now)
      out.push_back(fmt::format("layers of trace {}: {} -> {}", trace.name, layers, layers_now));
  }
  for (const TraceEntry& trace : a.traces) {
    if (find_trace(b.traces, trace.name) == nullptr)
      out.push_back(fmt::format("trace {} is gone", trace.name));
  }
  compare_names(names_of(a.variants, &VariantEntry::spec, "variant"),
                names_of(b.variants, &VariantEntry::spec, "variant"), "policy", out);
  compare_names({a.metrics.begin(), a.metrics.end()}, {b.metrics.begin(), b.metrics.end()}, "metric", out);
  if (a.provenance.seed != b.provenance.seed) {
    out.push_back(fmt::format("seed: {} -> {}", a.provenance.seed, b.provenance.seed));
  }
  return out;
}

RunRecord extended(const RunRecord& before, const RunRecord& now) {
  RunRecord joined = before;
  RunDescription& d = joined.description;
  if (d.metrics != now.description.metrics) {
    throw UserError("--extend adds policies, budgets and traces; the metrics must stay: {}",
                    fmt::join(d.metrics, ","));
  }
  if (d.provenance.seed != now.description.provenance.seed) {
    throw UserError("--extend keeps the seed: it was {}, now {}", d.provenance.seed,
                    now.description.provenance.seed);
  }
  d.provenance = now.description.provenance;
  std::map<std::uint32_t, std::uint32_t> trace_of, variant_of;
  for (std::uint32_t t = 0; t < now.description.traces.size(); ++t) {
    const TraceEntry& trace = now.description.traces[t];
    const TraceEntry* old = find_trace(d.traces, trace.name);
    trace_of[t] = static_cast<std::uint32_t>(old == nullptr ? d.traces.size() : index_of(d.traces, old));
    if (old == nullptr) {
      d.traces.push_back(trace);
      continue;
    }
    if (old->digest_key != trace.digest_key) {
      throw UserError("{}: trace '{}' is another recording than the run began with (digest {}, was {})",
                      trace.path, trace.name, trace.digest, old->digest);
    }
    auto& budgets = d.traces[trace_of[t]].budgets;
    for (const BudgetPoint& budget : trace.budgets) {
      if (!has_budget(d.traces[trace_of[t]], budget)) budgets.push_back(budget);
    }
    std::stable_sort(budgets.begin(), budgets.end(),
                     [](const BudgetPoint& x, const BudgetPoint& y) { return x.tokens < y.tokens; });
  }
  for (std::uint32_t v = 0; v < now.description.variants.size(); ++v) {
    const VariantEntry& variant = now.description.variants[v];
    const auto old = std::find_if(d.variants.begin(), d.variants.end(),
                                  [&](const VariantEntry& e) { return e.spec == variant.spec; });
    variant_of[v] = static_cast<std::uint32_t>(old - d.variants.begin());
    if (old == d.variants.end()) d.variants.push_back(variant);
  }
  for (const UnitId& unit : now.units) joined.units.push_back({trace_of[unit.trace], unit.layer});
  std::sort(joined.units.begin(), joined.units.end());
  joined.units.erase(std::unique(joined.units.begin(), joined.units.end()), joined.units.end());
  for (const Refusal& refusal : now.refusals) {
    const Refusal mapped{trace_of[refusal.trace], variant_of[refusal.variant], refusal.message};
    const bool known = std::any_of(joined.refusals.begin(), joined.refusals.end(), [&](const Refusal& r) {
      return r.trace == mapped.trace && r.variant == mapped.variant;
    });
    if (!known) joined.refusals.push_back(mapped);
  }
  for (const PassUse& use : now.passes) {
    const PassUse mapped{trace_of[use.trace], variant_of[use.variant], use.budget_tokens, use.pass};
    const bool known = std::any_of(joined.passes.begin(), joined.passes.end(), [&](const PassUse& p) {
      return p.trace == mapped.trace && p.variant == mapped.variant && p.budget_tokens == mapped.budget_tokens;
    });
    if (!known) joined.passes.push_back(mapped);
  }
  return joined;
}

std::vector<MetricInfo> chosen_metrics(const RunDescription& description, MetricInfo::Level level) {
  std::vector<MetricInfo> chosen;
  for (const std::string& name : description.metrics) {
    const auto& all = all_metrics();
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const MetricInfo& m) { return m.name == name; });
    if (found == all.end())
      throw UserError("metric '{}' is not known to this version; 'kvsim list metrics' lists them", name);
    if (found->level == level) chosen.push_back(*found);
  }
  return chosen;
}

}  // namespace kvsim
