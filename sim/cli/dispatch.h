// The table of subcommands.
#pragma once

#include "sim/cli/command.h"

namespace kvsim {

/// Runs the subcommand that arguments[0] names. Unknown ones are UserErrors naming the nearest.
int dispatch(const Arguments& arguments);

}  // namespace kvsim
