// Which form of policy.h a plugin was compiled against.
#pragma once

#include <string_view>

namespace kvsim {

/// Raised whenever policy.h, spec.h or registry.h change what a compiled policy expects of the program.
inline constexpr std::string_view kPolicyAbi = "kvsim-policy-abi:1";
inline constexpr std::string_view kPolicyAbiMark = "kvsim-policy-abi:";

}  // namespace kvsim
