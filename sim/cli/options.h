// Option parsing on Boost.Program_options, with one-line errors that offer the nearest valid name.
#pragma once

#include <boost/program_options.hpp>
#include <string>
#include <vector>

#include "sim/cli/command.h"

namespace kvsim {

namespace po = boost::program_options;

/// Parses `arguments` (positional ones go to `positional`, if named). Unknown, ambiguous or ill-formed options are
/// UserErrors that name the nearest valid option. `--help` must be among `options`; when given, prints `usage` and the
/// options to stdout and returns false.
bool parse_options(const Arguments& arguments, const po::options_description& options,
                   const po::positional_options_description& positional, const std::string& usage,
                   po::variables_map& values);

/// "16G", "512M", "1.5GiB", plain bytes -> bytes. Throws UserError naming the option.
std::uint64_t parse_size(const std::string& text, const std::string& option);
/// "90s", "55m", "2h", "1:30:00", plain seconds -> seconds.
double parse_duration(const std::string& text, const std::string& option);
/// 1536 -> "1.5 KiB".
std::string human_bytes(std::uint64_t bytes);
/// 75.2 -> "1 min 15 s".
std::string human_seconds(double seconds);

}  // namespace kvsim
