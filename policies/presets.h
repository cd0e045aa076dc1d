// Named policies as the parts that they are made of.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// The compose(...) line that gives the same results to the last bit, with this policy's parameters; nothing
/// where the policy does not decompose.
std::optional<std::string> preset_line(const Policy& policy);

/// Names of the policies that have one, at least for their defaults.
std::vector<std::string> preset_names();

}  // namespace kvsim
