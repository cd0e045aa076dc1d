// kvsim pages: request traces and attention recordings through page policies at many capacities.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <map>
#include <tuple>

#include "analysis/pages_store.h"
#include "build_info.h"
#include "kernels/error.h"
#include "kernels/replay.h"
#include "sim/cli/pages_commands.h"
#include "sim/cli/pages_inputs.h"
#include "sim/cli/pages_options.h"
#include "sim/pages/curves.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim pages INPUT... --policy SPEC... --capacity LIST --out DIR [options]\n"
    "       kvsim pages info FILE\n"
    "       kvsim pages list [policies|predictors]\n\n"
    "Serves block requests by page policies. INPUT is an attention recording (kvsim-trace), a Mooncake "
    "JSONL, an oracleGeneral,\n"
    "csv or plain file, gzip or zstd or neither, or - for standard input.\n\n"
    "examples\n"
    "  kvsim pages conversation.jsonl --policy lru --policy 'guard(base=blindoracle(popu))' --capacity "
    "1000,10000 --out p1\n"
    "  kvsim pages t.h5 --policy 'guard(follow_scores)' --capacity 8..64*2 --block 16 --mass 0.9 --out p2\n"
    "  zcat big.gz | kvsim pages - --format oracleGeneral --stream --policy sieve --capacity 1000000 --out "
    "p3\n\n";

/// Log-spaced capacities from 1 to `most`, at most about 200.
std::vector<std::uint64_t> curve_capacities(std::uint64_t most) {
  constexpr int kPoints = 200;
  std::vector<std::uint64_t> out;
  for (int i = 0; i < kPoints; ++i) {
    const auto c =
        static_cast<std::uint64_t>(std::llround(std::pow(static_cast<double>(most), i / (kPoints - 1.0))));
    if (out.empty() || c > out.back()) out.push_back(c);
  }
  return out;
}

std::vector<CurvePoint> whole_curves(const PageSweep& sweep, const PagesOptions& o) {
  std::vector<CurvePoint> out;
  for (std::uint32_t s = 0; s < sweep.streams.size(); ++s) {
    const PageStream& stream = sweep.streams[s];
    if (stream.grouping == Grouping::sets || o.serve.by_bytes) {
      throw UserError(
          "--curve: whole curves are defined for pages of one size and one request at a time; give a list of "
          "capacities");
    }
    const std::vector<std::uint64_t> capacities = curve_capacities(std::max<Page>(1, stream.unique));
    for (std::uint32_t v = 0; v < sweep.variants.size(); ++v) {
      const PageVariant& variant = sweep.variants[v];
      if (variant.policy->traits().stack) {
        const StackCurve curve = stack_curve(variant.name, stream, sweep.options.warmup);
        for (const std::uint64_t c : capacities) {
          out.push_back({s, v, c,
                         static_cast<double>(curve.at(c)) /
                             static_cast<double>(std::max<std::uint64_t>(1, curve.requests)),
                         0.0, "stack"});
        }
        continue;
      }
      if (o.sample == 0)
        throw UserError("--curve: {} has no stack property, so its curve is sampled: add --sample 0.05",
                        variant.name);
      // A sample of less than one page says nothing.
      std::vector<std::uint64_t> sampled = capacities;
      std::erase_if(sampled, [&o](std::uint64_t c) { return static_cast<double>(c) * o.sample < 1; });
      const std::vector<SampledRatio> points =
          sampled_curve(*variant.policy, stream, sampled, o.sample, o.sample_groups, sweep.options);
      for (std::size_t i = 0; i < sampled.size(); ++i) {
        out.push_back({s, v, sampled[i], points[i].miss_ratio, points[i].error, "sampled"});
      }
    }
  }
  return out;
}

void print_table(const PageSweep& sweep) {
  fmt::print("{:<44} {:>12} {:>12} {:>11} {:>10} {:>10}\n", "variant", "capacity", "misses", "miss ratio",
             "cost", "prefix");
  struct Sum {
    std::uint64_t requests = 0, misses = 0, optimum = 0, prefix = 0;
    bool has_optimum = true, has_prefix = false;
  };
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>, Sum> sums;
  for (const PageRow& row : sweep.rows) {
    Sum& sum = sums[{sweep.infos[row.stream].trace, row.variant, row.capacity}];
    sum.requests += row.counts.tally.requests;
    sum.misses += row.counts.tally.misses;
    sum.optimum += row.optimum;
    sum.prefix += row.counts.prefix_hits;
    sum.has_optimum = sum.has_optimum && row.has_optimum;
    sum.has_prefix = sum.has_prefix || sweep.streams[row.stream].grouping == Grouping::prefix;
  }
  std::uint32_t trace = ~0u;
  for (const auto& [key, sum] : sums) {
    const auto& [t, variant, capacity] = key;
    if (t != trace) fmt::print("{}\n", sweep.traces[t]);
    trace = t;
    std::string label = sweep.variants[variant].label;
    if (label.size() > 44) label = label.substr(0, 41) + "...";
    const double requests = static_cast<double>(std::max<std::uint64_t>(1, sum.requests));
    fmt::print("{:<44} {:>12} {:>12} {:>11.4f} {:>10} {:>10}\n", label, capacity, sum.misses,
               static_cast<double>(sum.misses) / requests,
               sum.has_optimum && sum.optimum > 0
                   ? fmt::format("{:.3f}", static_cast<double>(sum.misses) / static_cast<double>(sum.optimum))
                   : "",
               sum.has_prefix ? fmt::format("{:.4f}", static_cast<double>(sum.prefix) / requests) : "");
  }
}

Provenance page_provenance(const PagesOptions& o) {
  Provenance p;
  p.tool_version = kVersion;
  p.git_sha = kGitSha;
  p.created = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  p.command_line = o.command_line;
  p.compiler = kCompiler;
  p.build_flags = kBuildFlags;
  p.device = "cpu";
  p.instruction_path = std::string(instruction_path());
  p.seed = o.serve.seed;
  p.threads = o.threads;
  return p;
}

int run_pages(const PagesOptions& o, bool quiet) {
  NumberFiles numbers;
  PageSweep sweep;
  sweep.options = o.serve;
  sweep.options.numbers = [&numbers](const std::string& path) { return numbers.read(path); };
  sweep.capacities = parse_capacities(o.capacities);
  sweep.variants = make_page_variants(
      o.policies, o.bounds && !o.stream && !o.serve.by_bytes && (o.sample == 0 || o.curve));
  std::vector<AttentionStream> kept;
  std::vector<CurvePoint> curves;
  if (load_page_inputs(o, sweep, kept)) {
    sweep.options.warmup = warmup_of(o.warmup, 0, false);
    sweep.infos.assign(1, {});
    sweep.streams.clear();
    sweep.streams.emplace_back();
    sweep.streams[0].name = "file";
    run_streamed(sweep, o.inputs[0], o.file, o.sample > 0 ? o.sample : 1.0,
                 o.sample > 0 ? o.sample_groups : 1, o.threads);
  } else {
    std::uint64_t requests = 0;
    for (const PageStream& s : sweep.streams) requests = std::max<std::uint64_t>(requests, s.requests());
    sweep.options.warmup = warmup_of(o.warmup, requests, true);
    CellHook hook;
    if (o.output_error) {
      hook = [&](const PageStream& stream, const PagePolicy& policy, PageRow& row) {
        row.output_error =
            output_error_without_recall(kept[row.stream], stream, policy, row.slots, o.serve.seed);
      };
    }
    run_sweep(sweep, o.threads, hook);
    if (o.curve) curves = whole_curves(sweep, o);
  }
  write_page_results(o.out, sweep, curves, page_provenance(o));
  for (const PageFailure& f : sweep.failures)
    fmt::print(stderr, "kvsim: refused {}: {}\n", sweep.variants[f.variant].label, f.message);
  if (!quiet) print_table(sweep);
  if (sweep.failures.empty()) return kDone;
  return sweep.rows.empty() ? kWrongUse : kSomeRefused;
}

}  // namespace

int pages_command(const Arguments& arguments) {
  if (!arguments.empty() && arguments[0] == "info")
    return pages_info_command({arguments.begin() + 1, arguments.end()});
  if (!arguments.empty() && arguments[0] == "list")
    return pages_list_command({arguments.begin() + 1, arguments.end()});
  po::positional_options_description positional;
  positional.add("input", -1);
  po::variables_map values;
  if (!parse_options(arguments, described_pages_options(), positional, kUsage, values)) return kDone;
  PagesOptions options = read_pages_options(values);
  options.command_line = "kvsim pages";
  for (const std::string& a : arguments) options.command_line += " " + a;
  return run_pages(options, values.count("quiet") > 0);
}

}  // namespace kvsim
