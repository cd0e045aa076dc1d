// A build with CUDA: its GPUs.
#include <fmt/format.h>

#include "kernels/cuda/device.h"
#include "sim/cli/gpus.h"

namespace kvsim {

bool built_for_gpus() { return true; }

std::vector<GpuInfo> list_gpus() {
  std::vector<GpuInfo> list;
  for (const cuda::DeviceInfo& device : cuda::devices())
    list.push_back({device.name, fmt::format("sm_{}{}", device.major, device.minor), device.usable()});
  return list;
}

std::size_t free_gpu_memory(int index) { return cuda::free_memory(index); }

std::unique_ptr<Device> open_gpu(int index, std::size_t memory) { return cuda::open_device(index, memory); }

}  // namespace kvsim
