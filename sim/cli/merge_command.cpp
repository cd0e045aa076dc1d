// kvsim merge: joins the folders of a sharded run, or makes a run's results again from its parts.
#include <fmt/format.h>

#include <cstdio>

#include "analysis/result_store.h"
#include "kernels/error.h"
#include "sim/cli/options.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim merge DIR... --out DIR [--partial] [--allow-mixed]\n"
    "       kvsim merge DIR\n\n"
    "Joins the parts of a run that was computed in shards into one results folder; results.csv is the same "
    "to the byte as\n"
    "that of a run in one piece. With one folder and no --out its results are made again from its parts.\n\n"
    "examples\n"
    "  kvsim run t.h5 ... --shard 1/2 --out s1      on one machine\n"
    "  kvsim run t.h5 ... --shard 2/2 --out s2      on another\n"
    "  kvsim merge s1 s2 --out whole\n"
    "  kvsim merge runs/killed --partial            what there is of an unfinished run\n";

void list_lines(const char* what, const std::vector<std::string>& lines) {
  constexpr std::size_t kShown = 10;
  for (std::size_t i = 0; i < lines.size() && i < kShown; ++i) fmt::print(stderr, "{}: {}\n", what, lines[i]);
  if (lines.size() > kShown) fmt::print(stderr, "{}: {} more\n", what, lines.size() - kShown);
}

}  // namespace

int merge_command(const Arguments& arguments) {
  po::options_description options("options");
  auto add = options.add_options();
  add("help,h", "this text");
  add("out", po::value<std::string>(), "folder for the joined results");
  add("partial", "leave missing units out instead of stopping");
  add("allow-mixed", "join parts that were made on different instruction paths (last bits may differ)");
  add("dir", po::value<std::vector<std::string>>(), "run folder");
  po::positional_options_description positional;
  positional.add("dir", -1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("dir") == 0)
    throw UserError("which run folders? 'kvsim merge DIR... --out DIR'; --help shows more");
  const auto folders = values["dir"].as<std::vector<std::string>>();
  if (folders.size() > 1 && values.count("out") == 0)
    throw UserError("several folders need --out DIR for what they make together");
  const std::string out = values.count("out") != 0 ? values["out"].as<std::string>() : folders.front();
  MergeOptions merge;
  merge.partial = values.count("partial") != 0;
  merge.allow_mixed = values.count("allow-mixed") != 0;
  const MergeOutcome outcome = merge_results(folders, out, merge);
  list_lines("left out", outcome.missing);
  list_lines("not used", outcome.problems);
  fmt::print("{}: {} rows of {} units from {} parts{}{}\n", out, outcome.rows, outcome.units, outcome.parts,
             outcome.kept ? ", kept sets" : "",
             outcome.failures > 0 ? fmt::format(", {} failures", outcome.failures) : "");
  return outcome.failures > 0 ? kSomeRefused : kDone;
}

}  // namespace kvsim
