// The GPUs of this machine, as far as this build can use them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace kvsim {

struct GpuInfo {
  std::string name;                         // e.g. "NVIDIA H100 80GB HBM3"
  std::string architecture;                 // e.g. "sm_90"
  std::size_t memory = 0, free_memory = 0;  // bytes
};

/// Whether this build can use GPUs at all.
bool built_for_gpus();
/// The GPUs that can be used, in the order of their indices; empty without a driver. Throws DeviceError.
std::vector<GpuInfo> list_gpus();
/// A stream of work on a GPU that keeps within `memory` bytes. Throws DeviceError.
std::unique_ptr<Device> open_gpu(int index, std::size_t memory);

}  // namespace kvsim
