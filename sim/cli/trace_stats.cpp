// kvsim trace stats: what a recording shows about attention over time, before any policy.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "analysis/statistics_store.h"
#include "analysis/text_table.h"
#include "kernels/error.h"
#include "sim/cli/options.h"
#include "sim/cli/progress.h"
#include "sim/cli/trace_commands.h"
#include "sim/trace_statistics.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim trace stats TRACE... [options]\n\n"
    "Measures, over the decode steps and without any policy, what policies that act while decoding rely on:\n"
    "  query_similarity    cosine of a query and the one k steps before (CORM)\n"
    "  top_overlap         share of a query's --top heaviest tokens that were so k steps before\n"
    "  persistence         share of a query's important tokens that were important k steps before\n"
    "  persistence_window  the same for any of the last k queries (Scissorhands)\n"
    "  sink_mass, recent_mass   attention on the first and on the newest n tokens\n"
    "A token is important to a query that gives it its even share, 1/t of t tokens seen. By chance, "
    "top_overlap would be\n"
    "top_overlap_chance and persistence important_share. Queries are compared as attention reads them, after "
    "the rotary\n"
    "embedding.\n"
    "Prints means per layer; --out writes every query head's figures as stats.csv and stats.h5, which "
    "'kvsim-plot stats'\n"
    "draws and pandas reads.\n\n"
    "examples:\n"
    "  kvsim trace stats t.h5\n"
    "  kvsim trace stats t.h5 --lags 1,2,4,8,16,32 --top 128 --out runs/stats\n\n";

using Key = std::pair<TraceStatistic, std::uint32_t>;

/// Mean over heads of every figure.
class HeadMeans {
 public:
  void add(const StatisticRow& row) {
    if (row.count == 0) return;
    auto& [sum, count] = means_[{row.statistic, row.parameter}];
    sum += row.mean;
    ++count;
  }
  std::string text(const Key& key) const {
    const auto at = means_.find(key);
    return at == means_.end()
               ? "-"
               : fmt::format("{:.3f}", at->second.first / static_cast<double>(at->second.second));
  }

 private:
  std::map<Key, std::pair<double, std::uint64_t>> means_;
};

/// The columns of the table: every statistic at its smallest and largest distance and at one between; masses
/// at their two smallest numbers of tokens.
std::vector<Key> shown(const std::vector<StatisticRow>& rows) {
  std::map<TraceStatistic, std::vector<std::uint32_t>> parameters;
  for (const StatisticRow& row : rows) {
    auto& known = parameters[row.statistic];
    if (row.count > 0 && std::find(known.begin(), known.end(), row.parameter) == known.end())
      known.push_back(row.parameter);
  }
  std::vector<Key> keys;
  for (const auto& [statistic, values] : parameters) {
    if (statistic == TraceStatistic::top_overlap_chance || values.empty()) continue;
    const bool mass = statistic == TraceStatistic::sink_mass || statistic == TraceStatistic::recent_mass;
    std::vector<std::size_t> picked{0,
                                    mass ? std::min<std::size_t>(1, values.size() - 1) : values.size() / 2};
    if (!mass) picked.push_back(values.size() - 1);
    picked.erase(std::unique(picked.begin(), picked.end()), picked.end());
    for (const std::size_t i : picked) keys.emplace_back(statistic, values[i]);
  }
  return keys;
}

void print(const TraceStatistics& trace) {
  const std::vector<Key> keys = shown(trace.rows);
  TextTable table;
  table.header = {"layer"};
  for (const auto& [statistic, parameter] : keys) {
    std::string name(name_of(statistic));
    if (parameter > 0) name += fmt::format(" {}", parameter);
    table.header.push_back(name);
  }
  table.numeric.assign(table.header.size(), true);
  std::map<std::uint32_t, HeadMeans> layers;
  HeadMeans all;
  for (const StatisticRow& row : trace.rows) {
    layers[row.layer].add(row);
    all.add(row);
  }
  const auto line = [&](const std::string& name, const HeadMeans& means) {
    std::vector<std::string> cells{name};
    for (const Key& key : keys) cells.push_back(means.text(key));
    table.rows.push_back(std::move(cells));
  };
  for (const auto& [layer, means] : layers) line(std::to_string(layer), means);
  line("all", all);
  fmt::print("{}: {} prompt + {} decode tokens, means over query heads and steps\n{}\n", trace.path,
             trace.prompt_len, trace.decode_len, table.render(TableFormat::table));
}

}  // namespace

int trace_stats_command(const Arguments& arguments) {
  po::options_description options("options");
  auto add = options.add_options();
  add("out,o", po::value<std::string>(), "folder for stats.csv and stats.h5");
  add("lags", po::value<std::string>()->default_value("1,2,4,8,16,32,64,128,256"), "distances in steps");
  add("top", po::value<std::string>()->default_value("64"), "tokens that count as a query's heaviest");
  add("masses", po::value<std::string>()->default_value("1,4,16,64"), "numbers of first and newest tokens");
  add("quiet,q", "no progress, no table");
  add("help,h", "show this text");
  add("trace", po::value<std::vector<std::string>>(), "traces to measure");
  po::positional_options_description positional;
  positional.add("trace", -1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("trace") == 0) throw UserError("kvsim trace stats needs a trace to measure");
  StatisticsOptions chosen;
  chosen.lags = parse_index_list(values["lags"].as<std::string>(), "--lags");
  chosen.masses = parse_index_list(values["masses"].as<std::string>(), "--masses");
  const auto top = parse_index_list(values["top"].as<std::string>(), "--top");
  if (top.size() != 1) throw UserError("--top '{}': expected one number", values["top"].as<std::string>());
  chosen.top = top.front();
  const bool quiet = values.count("quiet") > 0;
  std::vector<TraceStatistics> all;
  for (const std::string& path : values["trace"].as<std::vector<std::string>>()) {
    const TraceReader reader = TraceReader::open(path);
    const TraceInfo& info = reader.info();
    TraceStatistics trace{path, info.model, info.group(), info.prompt_len, info.decode_len, {}};
    Progress bar("stats", info.layers.size(), quiet);
    for (std::size_t l = 0; l < info.layers.size(); ++l) {
      const auto rows = layer_statistics(reader, l, chosen);
      trace.rows.insert(trace.rows.end(), rows.begin(), rows.end());
      bar.advance(1);
    }
    bar.finish();
    if (!quiet) print(trace);
    all.push_back(std::move(trace));
  }
  if (values.count("out") > 0) write_statistics(values["out"].as<std::string>(), all, chosen.top);
  return kDone;
}

}  // namespace kvsim
