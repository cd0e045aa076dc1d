// kvsim pages info: requests, objects, span and reuse distances of a request file.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"
#include "sim/cli/options.h"
#include "sim/cli/pages_commands.h"
#include "sim/pages/curves.h"
#include "sim/pages/stream_files.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim pages info FILE [--format auto|mooncake|oracleGeneral|csv|plain]\n\n"
    "Shows how many requests and objects a request file holds, how often objects come back, and after how "
    "many other objects.\n";

/// The smallest distance that covers the share q of all reuses.
std::uint64_t quantile(const StackCurve& curve, std::uint64_t reuses, double q) {
  const std::uint64_t first = curve.misses.front();
  const auto wanted = static_cast<std::uint64_t>(q * static_cast<double>(reuses));
  const auto at = std::lower_bound(curve.misses.begin(), curve.misses.end(), first - wanted,
                                   [](std::uint64_t misses, std::uint64_t limit) { return misses > limit; });
  return static_cast<std::uint64_t>(at - curve.misses.begin());
}

void line(const char* name, const std::string& value) { fmt::print("  {:<22} {}\n", name, value); }

}  // namespace

int pages_info_command(const Arguments& arguments) {
  po::options_description options("options");
  auto add = options.add_options();
  add("help,h", "this text");
  add("format", po::value<std::string>()->default_value("auto"),
      "auto, mooncake, oracleGeneral, csv or plain");
  add("id-column", po::value<std::uint32_t>()->default_value(0), "csv: column of the object id, from 1");
  add("size-column", po::value<std::uint32_t>()->default_value(0), "csv: column of the size, from 1");
  add("file", po::value<std::string>(), "request file, - for standard input");
  po::positional_options_description positional;
  positional.add("file", 1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("file") == 0) throw UserError("no file; --help shows the usage");
  const std::string path = values["file"].as<std::string>();
  RequestFileOptions file;
  file.format = parse_request_format(values["format"].as<std::string>());
  file.id_column = values["id-column"].as<std::uint32_t>();
  file.size_column = values["size-column"].as<std::uint32_t>();
  PageStream stream = load_requests(path, file);
  stream.find_next();
  fmt::print("{}\n", path);
  line("requests", fmt::format("{}", stream.requests()));
  line("unique objects", fmt::format("{}", stream.unique));
  if (stream.requests() == 0) return kDone;
  std::vector<std::uint32_t> uses(stream.unique, 0);
  std::uint64_t bytes = 0, gap_count = 0;
  for (std::size_t t = 0; t < stream.requests(); ++t) {
    ++uses[stream.pages[t]];
    bytes += stream.sizes.empty() ? 0 : stream.sizes[t];
    gap_count += stream.next[t] < stream.requests() ? 1 : 0;
  }
  const auto once = static_cast<std::uint64_t>(std::count(uses.begin(), uses.end(), 1u));
  line("used once", fmt::format("{} ({:.1f}%)", once,
                                100.0 * static_cast<double>(once) / static_cast<double>(stream.unique)));
  if (stream.groups() > 0)
    line("groups",
         fmt::format("{}, {:.1f} requests each", stream.groups(),
                     static_cast<double>(stream.requests()) / static_cast<double>(stream.groups())));
  if (!stream.sizes.empty()) {
    const auto [least, most] = std::minmax_element(stream.sizes.begin(), stream.sizes.end());
    line("bytes requested", human_bytes(bytes));
    line("sizes", fmt::format("{} to {}", human_bytes(*least), human_bytes(*most)));
  }
  line("infinite cache hits",
       fmt::format("{:.4f}", static_cast<double>(gap_count) / static_cast<double>(stream.requests())));
  if (gap_count > 0) {
    std::vector<std::uint32_t> gaps;
    for (std::size_t t = 0; t < stream.requests(); ++t) {
      if (stream.next[t] < stream.requests()) gaps.push_back(stream.next[t] - static_cast<std::uint32_t>(t));
    }
    std::sort(gaps.begin(), gaps.end());
    const auto gap = [&gaps](double q) {
      return gaps[static_cast<std::size_t>(q * static_cast<double>(gaps.size() - 1))];
    };
    line("reuse gap, requests",
         fmt::format("p10 {}  p50 {}  p90 {}  max {}", gap(0.1), gap(0.5), gap(0.9), gaps.back()));
    const StackCurve curve = stack_curve("lru", stream, 0);
    line("reuse distance, objects",
         fmt::format("p10 {}  p50 {}  p90 {}  max {}", quantile(curve, gap_count, 0.1),
                     quantile(curve, gap_count, 0.5), quantile(curve, gap_count, 0.9),
                     quantile(curve, gap_count, 1.0)));
  }
  return kDone;
}

}  // namespace kvsim
