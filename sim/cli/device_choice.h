// What --device means on this machine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace kvsim {

/// Who computes: the CPU alone, or GPUs with the CPU beside them.
struct DeviceChoice {
  std::vector<int> gpus;     // empty = the CPU alone
  std::string name = "cpu";  // e.g. "cuda:0,1 NVIDIA H100 80GB HBM3 (sm_90)"
  std::string path;  // what decides the bits of the results: GPU model, architecture and instruction set
  std::string why;   // how "auto" came to it, else empty

  bool on_gpu() const { return !gpus.empty(); }
};

/// Throws UserError unless `asked` is auto, cpu, cuda, cuda:all, or cuda: and a list of indices.
void check_device_syntax(const std::string& asked);

/// auto takes the first GPU where there is one. Throws UserError where a GPU is asked for that is not there,
/// or GPUs of different models, whose results would differ in their last bits.
DeviceChoice choose_device(const std::string& asked);

/// Streams of work, `streams_per_gpu` on every GPU in turn, each with an equal share of what is free there;
/// none on the CPU.
std::vector<std::unique_ptr<Device>> open_streams(const DeviceChoice& choice, std::size_t streams_per_gpu);

}  // namespace kvsim
