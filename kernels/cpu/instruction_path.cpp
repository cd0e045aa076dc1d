// Which instruction set the kernels run on here, and how a test chooses another.
#include "kernels/instruction_path.h"

#include "kernels/cpu/targets.h"
#include "kernels/error.h"
#include "kernels/replay.h"

// Highway last: it reads the choice of targets.
#include <hwy/highway.h>

#include <cstdint>

namespace kvsim {
namespace {

void choose(std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

/// The compiled targets that the machine supports, lowest (best) bit first; the emulated one can always run.
std::vector<std::int64_t> targets_here() {
  std::vector<std::int64_t> targets;
  for (std::int64_t rest = (hwy::SupportedTargets() | HWY_STATIC_TARGET) & HWY_TARGETS; rest != 0;
       rest &= rest - 1) {
    targets.push_back(rest & -rest);
  }
  return targets;
}

}  // namespace

std::string_view instruction_path() { return hwy::TargetName(targets_here().front()); }

std::vector<std::string_view> instruction_paths() {
  const std::int64_t now = targets_here().front();
  choose(0);
  std::vector<std::string_view> names;
  const std::vector<std::int64_t> targets = targets_here();
  for (const std::int64_t target : targets) names.emplace_back(hwy::TargetName(target));
  if (now != targets.front()) choose(now);
  return names;
}

void use_instruction_path(std::string_view name) {
  choose(0);
  if (name.empty()) return;
  for (const std::int64_t target : targets_here()) {
    if (name == hwy::TargetName(target)) return choose(target);
  }
  throw UserError("this machine has no instruction path '{}'", name);
}

}  // namespace kvsim
