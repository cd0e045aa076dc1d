// What --device means on this machine.
#include "sim/cli/device_choice.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "sim/cli/gpus.h"

namespace kvsim {
namespace {

/// Of what is free on a GPU, the rest being for the driver and for others.
constexpr double kUsableShare = 0.9;

/// The indices of "cuda:0,2"; nothing for other texts.
std::optional<std::vector<int>> listed(const std::string& asked) {
  constexpr std::string_view kPrefix = "cuda:";
  if (!asked.starts_with(kPrefix)) return std::nullopt;
  std::vector<int> indices;
  const char* at = asked.data() + kPrefix.size();
  const char* const end = asked.data() + asked.size();
  while (true) {
    int index = 0;
    const auto [next, error] = std::from_chars(at, end, index);
    if (error != std::errc() || index < 0) return std::nullopt;
    indices.push_back(index);
    if (next == end) return indices;
    if (*next != ',') return std::nullopt;
    at = next + 1;
  }
}

std::string describe(const std::vector<GpuInfo>& gpus) {
  if (gpus.empty()) return "this machine has none that can be used";
  std::vector<std::string> names;
  for (std::size_t i = 0; i < gpus.size(); ++i) names.push_back(fmt::format("cuda:{} {}", i, gpus[i].name));
  return fmt::format("this machine has {}", fmt::join(names, ", "));
}

std::vector<int> wanted_gpus(const std::string& asked, const std::vector<GpuInfo>& gpus) {
  if (gpus.empty()) throw UserError("--device {}: no CUDA GPU was found; use --device cpu", asked);
  std::vector<int> usable;
  for (std::size_t i = 0; i < gpus.size(); ++i)
    if (gpus[i].usable) usable.push_back(static_cast<int>(i));
  if (usable.empty())
    throw UserError("--device {}: {}, which the kernels are not built for; use --device cpu", asked,
                    describe(gpus));
  if (asked == "cuda") return {usable.front()};
  if (asked == "cuda:all") return usable;
  const std::vector<int> wanted = *listed(asked);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const int index = wanted[i];
    if (static_cast<std::size_t>(index) >= gpus.size())
      throw UserError("--device {}: there is no cuda:{}; {}", asked, index, describe(gpus));
    const GpuInfo& gpu = gpus[static_cast<std::size_t>(index)];
    if (!gpu.usable)
      throw UserError("--device {}: the kernels are not built for cuda:{}, a {} ({})", asked, index, gpu.name,
                      gpu.architecture);
    if (std::find(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(i), index) !=
        wanted.begin() + static_cast<std::ptrdiff_t>(i))
      throw UserError("--device {}: cuda:{} is given twice", asked, index);
  }
  return wanted;
}

/// The first GPU where it can be had, else the CPU, and why.
DeviceChoice choose_automatically() {
  DeviceChoice choice;
  choice.path = std::string(instruction_path());
  try {
    if (!built_for_gpus()) {
      choice.why = "this build has no CUDA backend";
    } else if (const std::vector<GpuInfo> gpus = list_gpus(); gpus.empty()) {
      choice.why = "no GPU was found";
    } else {
      choice = choose_device("cuda");
      choice.why =
          gpus.size() == 1 ? "the GPU of this machine" : fmt::format("the first of {} GPUs", gpus.size());
    }
  } catch (const UserError& error) {
    choice.why = error.what();
  } catch (const DeviceError& error) {
    choice.why = fmt::format("the GPU cannot be used: {}", error.what());
  }
  return choice;
}

}  // namespace

void check_device_syntax(const std::string& asked) {
  if (asked == "auto" || asked == "cpu" || asked == "cuda" || asked == "cuda:all" || listed(asked)) return;
  throw UserError("--device '{}' must be auto, cpu, cuda, cuda:all or a list like cuda:0,1", asked);
}

DeviceChoice choose_device(const std::string& asked) {
  check_device_syntax(asked);
  if (asked == "auto") return choose_automatically();
  DeviceChoice choice;
  choice.path = std::string(instruction_path());
  if (asked == "cpu") return choice;
  if (!built_for_gpus())
    throw UserError("--device {}: this build has no CUDA backend; use --device cpu", asked);
  const std::vector<GpuInfo> gpus = list_gpus();
  choice.gpus = wanted_gpus(asked, gpus);
  const GpuInfo& first = gpus[static_cast<std::size_t>(choice.gpus.front())];
  for (const int index : choice.gpus) {
    const GpuInfo& other = gpus[static_cast<std::size_t>(index)];
    if (other.name != first.name || other.architecture != first.architecture)
      throw UserError(
          "--device {}: cuda:{} is a {}, cuda:{} a {}: results of different models differ in their last "
          "bits, so take one model",
          asked, choice.gpus.front(), first.name, index, other.name);
  }
  choice.name = fmt::format("cuda:{} {} ({})", fmt::join(choice.gpus, ","), first.name, first.architecture);
  choice.path = fmt::format("{} ({}) and {}", first.name, first.architecture, instruction_path());
  return choice;
}

std::vector<std::unique_ptr<Device>> open_streams(const DeviceChoice& choice, std::size_t streams_per_gpu) {
  std::vector<std::unique_ptr<Device>> streams;
  if (!choice.on_gpu()) return streams;
  std::vector<std::size_t> share;
  for (const int index : choice.gpus)
    share.push_back(static_cast<std::size_t>(static_cast<double>(free_gpu_memory(index)) * kUsableShare /
                                             static_cast<double>(streams_per_gpu)));
  for (std::size_t s = 0; s < streams_per_gpu; ++s)
    for (std::size_t i = 0; i < share.size(); ++i) streams.push_back(open_gpu(choice.gpus[i], share[i]));
  return streams;
}

}  // namespace kvsim
