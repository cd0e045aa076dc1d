// The replay of KV heads on NVIDIA GPUs: an implementation of kernels/backend.h.
//
// Logits, softmax sums and exact outputs are in double (tensor cores of double precision); the weights of the
// one-pass curve are split into two bfloat16 terms (relative error of a weight below 2^-16), values too where
// they are not bfloat16 numbers themselves. No atomics on floating point: the same input gives the same bits.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace kvsim::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::size_t memory = 0;  // bytes

  /// Whether the kernels are built for it.
  bool usable() const { return major >= 8; }
};
/// The GPUs of this machine in the order of their indices, usable or not; empty without a driver. Makes no
/// context.
std::vector<DeviceInfo> devices();
/// Bytes that are free on a GPU. Throws DeviceError.
std::size_t free_memory(int index);

/// Opens GPU `index` for up to `memory_bytes` of its memory (0, or more than is free: what is free). Throws
/// DeviceError.
std::unique_ptr<Device> open_device(int index, std::size_t memory_bytes);

/// Milliseconds on the GPU of the last load and of the last curves of an open device, by part; for
/// benchmarks. Waits for the device.
struct Timing {
  double upload = 0, attention = 0, outputs = 0, ranks = 0;  // of load
  double overlap = 0, curve = 0, download = 0;  // of curves; download: what was left of it after the curves
};
Timing timing_of(Device& device);

}  // namespace kvsim::cuda
