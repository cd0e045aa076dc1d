// A build without CUDA: there are no GPUs to use.
#include "kernels/error.h"
#include "sim/cli/gpus.h"

namespace kvsim {

bool built_for_gpus() { return false; }
std::vector<GpuInfo> list_gpus() { return {}; }
std::size_t free_gpu_memory(int) { return 0; }
std::unique_ptr<Device> open_gpu(int index, std::size_t) {
  throw InternalError("GPU " + std::to_string(index) + " in a build without CUDA");
}

}  // namespace kvsim
