// The GPUs of this machine, as far as this build can use them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace kvsim {

struct GpuInfo {
  std::string name;          // e.g. "NVIDIA H100 80GB HBM3"
  std::string architecture;  // e.g. "sm_90"
  bool usable = true;        // whether this build has code for it
};

/// Whether this build can use GPUs at all.
bool built_for_gpus();
/// The GPUs of this machine, in the order of their indices; empty without a driver. Throws DeviceError.
std::vector<GpuInfo> list_gpus();
/// Bytes that are free on a GPU. Throws DeviceError.
std::size_t free_gpu_memory(int index);
/// A stream of work on a GPU that keeps within `memory` bytes. Throws DeviceError.
std::unique_ptr<Device> open_gpu(int index, std::size_t memory);

}  // namespace kvsim
