// The instruction sets that the CPU kernels can run on here, and the choice among them for tests.
#pragma once

#include <string_view>
#include <vector>

namespace kvsim {

/// Names of the paths that this machine can run, best first, e.g. {"AVX3", "AVX2", "EMU128"}.
std::vector<std::string_view> instruction_paths();

/// From now on every kernel runs on this path, in all threads; an empty name means the best again. Results do
/// not depend on it. Throws UserError for a path that is not there. Not to be called while kernels run.
void use_instruction_path(std::string_view name);

}  // namespace kvsim
