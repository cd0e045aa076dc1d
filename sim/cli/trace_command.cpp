// kvsim trace: finds the subcommand, and parses what several of them share.
#include <fmt/format.h>

#include <charconv>

#include "kernels/error.h"
#include "policies/registry.h"
#include "sim/cli/trace_commands.h"

namespace kvsim {
namespace {

struct Subcommand {
  const char* name;
  int (*run)(const Arguments&);
  const char* summary;
};

constexpr Subcommand kSubcommands[] = {
    {"info", trace_info_command, "what a trace holds, what it lacks, and which policies that rules out"},
    {"check", trace_check_command, "read everything: NaN, digest, recorded against recomputed attention"},
    {"stats", trace_stats_command, "how attention moves from step to step, before any policy"},
    {"lookahead", trace_lookahead_command, "what first passes guessed and cost, and how alike queries are to the true ones"},
    {"queries", trace_queries_command, "filters and statistics of queries, for policies that take them from a file"},
    {"synth", trace_synth_command, "make a trace from a seed, of any geometry and length"},
    {"cut", trace_cut_command, "keep some layers, KV heads or decode steps"},
    {"merge", trace_merge_command, "join traces that hold different layers of one prompt"},
    {"convert", trace_convert_command, "make a trace of NumPy (.npz) or safetensors files"},
};

std::string usage() {
  std::string text =
      "usage: kvsim trace SUBCOMMAND ...\n\nMakes, cuts and inspects traces: one recorded sequence each, see "
      "traces/FORMAT.md.\n\n";
  for (const Subcommand& one : kSubcommands) text += fmt::format("  {:<9} {}\n", one.name, one.summary);
  return text +
         "\n'kvsim trace SUBCOMMAND --help' explains one of them. Record real models with kvsim-record.\n";
}

std::uint32_t parse_index(const std::string& text, const std::string& whole, const std::string& option) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > (1u << 20)) {
    throw UserError("{} '{}' is no list of numbers: write for example 0,4,8..12", option, whole);
  }
  return value;
}

}  // namespace

std::vector<std::uint32_t> parse_index_list(const std::string& text, const std::string& option) {
  std::vector<std::uint32_t> result;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const std::size_t dots = part.find("..");
    const std::uint32_t first = parse_index(part.substr(0, dots), text, option);
    const std::uint32_t last =
        dots == std::string::npos ? first : parse_index(part.substr(dots + 2), text, option);
    if (last < first) throw UserError("{} '{}': {}..{} runs backwards", option, text, first, last);
    for (std::uint32_t i = first; i <= last; ++i) result.push_back(i);
    begin = end + 1;
  }
  return result;
}

bool parse_query_window(const std::string& text, const std::string& option, std::uint64_t& window) {
  if (text == "all") return false;
  constexpr std::string_view kPrefix = "window:";
  const char* end = text.data() + text.size();
  if (text.starts_with(kPrefix)) {
    const auto [stop, error] = std::from_chars(text.data() + kPrefix.size(), end, window);
    if (error == std::errc() && stop == end) return true;
  }
  throw UserError("{} '{}' is unknown: write all, or window:64 for the last 64 prompt queries", option, text);
}

int trace_command(const Arguments& arguments) {
  if (arguments.empty())
    throw UserError("kvsim trace needs a subcommand: info, check, stats, lookahead, queries, synth, cut, merge or convert");
  const std::string& name = arguments.front();
  if (name == "--help" || name == "-h" || name == "help") {
    fmt::print("{}", usage());
    return kDone;
  }
  std::vector<std::string> names;
  for (const Subcommand& one : kSubcommands) {
    if (name == one.name) return one.run(Arguments(arguments.begin() + 1, arguments.end()));
    names.emplace_back(one.name);
  }
  const std::string near = nearest_name(name, names);
  throw UserError("unknown subcommand 'kvsim trace {}'{}; there are {}", name,
                  near.empty() ? "" : fmt::format(", did you mean '{}'?", near), fmt::join(names, ", "));
}

}  // namespace kvsim
