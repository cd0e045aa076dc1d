// Subcommands of kvsim pages.
#pragma once

#include "sim/cli/command.h"

namespace kvsim {

int pages_info_command(const Arguments& arguments);
int pages_list_command(const Arguments& arguments);
/// The tables that `kvsim pages list` prints and the documents hold: every page policy, every predictor.
std::string page_policy_table(bool markdown);
std::string predictor_table(bool markdown);

}  // namespace kvsim
