// Option parsing: Boost does the work, this file turns its errors into one line that helps.
#include "sim/cli/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "kernels/error.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

std::vector<std::string> long_names(const po::options_description& options) {
  std::vector<std::string> names;
  for (const auto& option : options.options()) names.push_back("--" + option->long_name());
  return names;
}

/// Reads a leading number and hands back the rest.
bool leading_number(const std::string& text, double& number, std::string& rest) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || !std::isfinite(number) || number < 0) return false;
  rest.assign(end, text.data() + text.size());
  return true;
}

}  // namespace

bool parse_options(const Arguments& arguments, const po::options_description& options,
                   const po::positional_options_description& positional, const std::string& usage,
                   po::variables_map& values) {
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end() ||
      std::find(arguments.begin(), arguments.end(), "-h") != arguments.end()) {
    std::ostringstream text;
    text << options;
    fmt::print("{}\n{}", usage, text.str());
    return false;
  }
  try {
    auto style = po::command_line_style::default_style & ~po::command_line_style::allow_guessing;
    po::command_line_parser parser(arguments);
    parser.options(options).positional(positional).style(style);
    po::store(parser.run(), values);
    po::notify(values);
  } catch (const po::unknown_option& error) {
    const std::string nearest = nearest_name(error.get_option_name(), long_names(options));
    throw UserError("unknown option '{}'{}; --help lists them", error.get_option_name(),
                    nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest));
  } catch (const po::too_many_positional_options_error&) {
    throw UserError("too many arguments: '{}'; --help shows the usage", arguments.back());
  } catch (const po::error& error) {
    throw UserError("{}; --help shows the usage", error.what());
  }
  return true;
}

std::uint64_t parse_size(const std::string& text, const std::string& option) {
  double number = 0;
  std::string unit;
  const std::string units = "KMGT";
  if (leading_number(text, number, unit)) {
    double factor = 1;
    std::string suffix = unit;
    if (!suffix.empty()) {
      const auto place = units.find(static_cast<char>(std::toupper(static_cast<unsigned char>(suffix[0]))));
      if (place != std::string::npos) {
        factor = std::pow(1024.0, static_cast<double>(place + 1));
        suffix.erase(0, 1);
        if (suffix == "i" || suffix == "iB" || suffix == "B") suffix.clear();
      } else if (suffix == "B") {
        suffix.clear();
      }
    }
    if (suffix.empty() && number * factor >= 1 && number * factor < 1e18) return static_cast<std::uint64_t>(number * factor);
  }
  throw UserError("{} '{}' is not a size: write for example 512M, 16G or a number of bytes", option, text);
}

double parse_duration(const std::string& text, const std::string& option) {
  double seconds = 0;
  std::string rest = text;
  bool good = !text.empty();
  if (text.find(':') != std::string::npos) {
    while (good && !rest.empty()) {
      double part = 0;
      good = leading_number(rest, part, rest);
      seconds = seconds * 60 + part;
      if (good && !rest.empty()) {
        good = rest[0] == ':' && rest.size() > 1;
        rest.erase(0, 1);
      }
    }
  } else {
    good = leading_number(text, seconds, rest);
    if (rest == "m" || rest == "min") seconds *= 60;
    else if (rest == "h") seconds *= 3600;
    else if (!(rest.empty() || rest == "s")) good = false;
  }
  if (!good || seconds <= 0) throw UserError("{} '{}' is not a duration: write for example 90s, 55m, 2h or 1:30:00", option, text);
  return seconds;
}

std::string human_bytes(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string human_seconds(double seconds) {
  if (seconds < 0.0095) return fmt::format("{:.1f} ms", seconds * 1e3);
  if (seconds < 10) return fmt::format("{:.2g} s", seconds);
  if (seconds < 60) return fmt::format("{:.0f} s", seconds);
  const auto whole = static_cast<std::uint64_t>(seconds + 0.5);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace kvsim
