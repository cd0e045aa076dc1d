// The subcommands of `kvsim trace`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/cli/command.h"

namespace kvsim {

int trace_info_command(const Arguments& arguments);
int trace_check_command(const Arguments& arguments);
int trace_stats_command(const Arguments& arguments);
int trace_lookahead_command(const Arguments& arguments);
int trace_queries_command(const Arguments& arguments);
int trace_synth_command(const Arguments& arguments);
int trace_cut_command(const Arguments& arguments);
int trace_merge_command(const Arguments& arguments);
int trace_convert_command(const Arguments& arguments);

/// "0,4,8..12" -> 0 4 8 9 10 11 12. Throws UserError naming the option.
std::vector<std::uint32_t> parse_index_list(const std::string& text, const std::string& option);
/// "all" or "window:N": the prompt queries to keep; nothing means all. Throws UserError naming the option.
bool parse_query_window(const std::string& text, const std::string& option, std::uint64_t& window);

}  // namespace kvsim
