// Policies from shared objects, registered by loading them.
#pragma once

#include <string>
#include <vector>

#include "sim/cli/command.h"

namespace kvsim {

/// Loads a plugin made by kvsim_add_plugin; its policies then are in the registry. Loading one twice does nothing. Throws
/// UserError when the file is no plugin, was made for another form of policy.h, or cannot be loaded.
void load_plugin(const std::string& path);

/// Paths of what was loaded, in order.
const std::vector<std::string>& loaded_plugins();

/// Takes `--plugin FILE` and `--plugin=FILE` out of the arguments and loads them: every subcommand knows the option.
Arguments load_plugins(const Arguments& arguments);

}  // namespace kvsim
