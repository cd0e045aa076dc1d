// kvsim trace lookahead: what recorded first passes cost, and how alike their queries and the prompt's are to
// the true ones.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <set>

#include "analysis/lookahead_store.h"
#include "analysis/text_table.h"
#include "kernels/error.h"
#include "sim/cli/options.h"
#include "sim/cli/trace_commands.h"
#include "sim/unit.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim trace lookahead TRACE... [--window N] [--out DIR]\n\n"
    "Reports on the recorded first passes of Lookahead Q-Cache (kvsim-record --lookahead): how many pseudo "
    "tokens equal the true\n"
    "ones, how many steps and bytes a pass cost, and how alike its pseudo queries, and the prompt's last "
    "queries, are to the true\n"
    "decode queries: cosine (as attention reads them, and with the rotary embedding undone) and relative "
    "error of the logits over\n"
    "the prompt, their mean taken out. A pair's distance is the position of the true query minus that of its "
    "stand-in; pseudo\n"
    "queries stand at the places of the first decode steps, so distance 0 compares a guess with what came "
    "there.\n\n"
    "examples:\n"
    "  kvsim trace lookahead t.h5\n"
    "  kvsim trace lookahead t.h5 --window 8 --out runs/lookahead     alignment.csv, passes.csv, "
    "lookahead.h5: per layer and head\n\n";

PassReport pass_report(const TraceInfo& trace, const LookaheadInfo& pass) {
  PassReport report{
      pass.name, pass.method, pass.capacity, pass.window, pass.tokens, pass.stopped_at_eos, {}, 0, 0, 0};
  report.guessed = guessed_tokens(trace, pass);
  report.steps = pass.steps;
  report.cache_bytes = pass.cache_bytes;
  report.full_bytes = trace.prompt_len * trace.num_layers * trace.num_kv_heads *
                      (trace.head_dim + trace.value_dim) * size_of(trace.dtype);
  return report;
}

void check_window(const TraceInfo& trace, std::uint32_t window) {
  for (const LayerInfo& layer : trace.layers) {
    const std::size_t recorded = layer.prompt_queries(trace.prompt_len);
    if (recorded < window)
      throw UserError(
          "--window {}: layer {} of {} holds {} prompt queries: record with --queries window:{}, or choose a "
          "smaller window",
          window, layer.index, trace.path, recorded, window);
  }
}

LookaheadReport report_on(const std::string& path, std::uint32_t window) {
  const TraceReader reader = TraceReader::open(path);
  const TraceInfo& trace = reader.info();
  if (trace.lookaheads.empty())
    throw UserError("{} holds no first pass: record with --lookahead 8 --lookahead-budget 128", path);
  check_window(trace, window);
  LookaheadReport report;
  report.trace = std::filesystem::path(path).stem().string();
  for (const LookaheadInfo& pass : trace.lookaheads) report.passes.push_back(pass_report(trace, pass));
  const std::vector<QueryStandIn> stand_ins = query_stand_ins(trace, window);
  for (const QueryStandIn& one : stand_ins) report.stand_ins.push_back(one.name);
  BlockRequest request;
  request.prompt_queries = window;
  request.lookahead = true;
  for (std::size_t ordinal = 0; ordinal < trace.layers.size(); ++ordinal) {
    const LayerContext layer = make_layer_context(trace, ordinal);
    std::vector<HeadBlock> blocks;
    for (std::uint32_t kv = 0; kv < trace.num_kv_heads; ++kv)
      blocks.push_back(reader.read_head(ordinal, kv, request));
    std::vector<std::vector<QueryAlignment>> of_head(blocks.size());
#pragma omp parallel for schedule(dynamic)
    for (std::size_t kv = 0; kv < blocks.size(); ++kv)
      of_head[kv] = align_queries(layer, blocks[kv], stand_ins);
    for (const auto& rows : of_head)
      report.alignment.insert(report.alignment.end(), rows.begin(), rows.end());
  }
  return report;
}

void print_passes(const LookaheadReport& report) {
  TextTable table;
  table.header = {"first pass", "capacity",  "pseudo tokens",          "equal", "equal from the first on",
                  "steps",      "its cache", "share of the full cache"};
  table.numeric = {false, true, true, true, true, true, true, true};
  for (const PassReport& pass : report.passes) {
    table.rows.push_back(
        {pass.name, std::to_string(pass.capacity),
         fmt::format("{}{}", pass.pseudo_tokens, pass.stopped_at_eos ? " (end of text)" : ""),
         fmt::format("{} of {}", pass.guessed.equal, pass.guessed.compared),
         std::to_string(pass.guessed.leading), pass.steps > 0 ? std::to_string(pass.steps) : "-",
         pass.cache_bytes > 0 ? human_bytes(pass.cache_bytes) : "-",
         pass.cache_bytes > 0 ? fmt::format("{:.1f}%", 100.0 * static_cast<double>(pass.cache_bytes) /
                                                           static_cast<double>(pass.full_bytes))
                              : "-"});
  }
  fmt::print("{}\nThe whole prompt's cache ({}) stays beside it until the pass is done.\n\n",
             table.render(TableFormat::table), human_bytes(report.passes.front().full_bytes));
}

void add_means(TextTable& table, const LookaheadReport& report, const std::string& name,
               const std::function<bool(const QueryAlignment&)>& chosen) {
  const QueryAlignment mean = mean_alignment(report.alignment, chosen);
  if (mean.pairs == 0) return;
  table.rows.push_back({name, std::to_string(mean.pairs), short_number(mean.cosine),
                        short_number(mean.cosine_unrotated), short_number(mean.logit_error)});
}

TextTable alignment_table(const std::string& first) {
  TextTable table;
  table.header = {first, "pairs", "cosine", "cosine, unrotated", "logit error"};
  table.numeric = {false, true, true, true, true};
  return table;
}

/// By source: all pairs, the same place in the text, and apart.
void print_alignment(const LookaheadReport& report) {
  TextTable table = alignment_table("queries against the true decode queries");
  for (std::uint32_t s = 0; s < report.stand_ins.size(); ++s) {
    const std::string& name = report.stand_ins[s];
    const auto pairs = [&](const std::string& label, std::int32_t from, std::int32_t to) {
      add_means(table, report, name + label, [=](const QueryAlignment& one) {
        return one.stand_in == s && std::abs(one.distance) >= from && std::abs(one.distance) <= to;
      });
    };
    pairs(", all pairs", 0, std::numeric_limits<std::int32_t>::max());
    pairs(", same place", 0, 0);
    pairs(", 1 to 4 apart", 1, 4);
    pairs(", 5 to 16 apart", 5, 16);
    pairs(", 17 to 64 apart", 17, 64);
    pairs(", further apart", 65, std::numeric_limits<std::int32_t>::max());
  }
  fmt::print("{}\n", table.render(TableFormat::table));
}

void print_layers(const LookaheadReport& report) {
  std::set<std::uint32_t> layers;
  for (const QueryAlignment& one : report.alignment) layers.insert(one.layer);
  TextTable table;
  table.header = {"logit error by layer"};
  table.numeric = {true};
  for (const std::string& name : report.stand_ins) {
    table.header.push_back(name);
    table.numeric.push_back(true);
  }
  for (const std::uint32_t layer : layers) {
    std::vector<std::string> row{std::to_string(layer)};
    for (std::uint32_t s = 0; s < report.stand_ins.size(); ++s)
      row.push_back(short_number(mean_alignment(report.alignment, [=](const QueryAlignment& one) {
                                   return one.layer == layer && one.stand_in == s;
                                 }).logit_error));
    table.rows.push_back(std::move(row));
  }
  fmt::print("{}\n", table.render(TableFormat::table));
}

}  // namespace

int trace_lookahead_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("trace", po::value<std::vector<std::string>>(),
                                                    "traces with first passes")(
      "window,w", po::value<std::uint32_t>()->default_value(32),
      "last prompt queries to compare with; 0 leaves them out")(
      "out,o", po::value<std::string>(), "folder for passes.csv, alignment.csv and lookahead.h5")(
      "threads,t", po::value<int>()->default_value(0), "threads (default: all)");
  po::positional_options_description positional;
  positional.add("trace", -1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("trace") == 0) throw UserError("kvsim trace lookahead needs a trace");
  if (values["threads"].as<int>() > 0) omp_set_num_threads(values["threads"].as<int>());
  std::vector<LookaheadReport> reports;
  for (const std::string& path : values["trace"].as<std::vector<std::string>>()) {
    reports.push_back(report_on(path, values["window"].as<std::uint32_t>()));
    fmt::print("{}\n", path);
    print_passes(reports.back());
    print_alignment(reports.back());
    print_layers(reports.back());
  }
  if (values.count("out") != 0) {
    write_lookahead_report(values["out"].as<std::string>(), reports);
    fmt::print("{}\n", (std::filesystem::path(values["out"].as<std::string>()) / "lookahead.h5").string());
  }
  return kDone;
}

}  // namespace kvsim
