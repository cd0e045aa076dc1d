// The memory pool of an open device.
#include "kernels/cuda/pool.h"

#include <cstdint>
#include <string>

namespace kvsim::cuda {

Pool::Pool(int device, std::size_t limit, const Stream& stream) : limit_(limit), stream_(stream) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  check(cudaMemPoolCreate(&pool_, &properties), "cudaMemPoolCreate");
  std::uint64_t keep = UINT64_MAX;
  check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
}

Pool::~Pool() {
  cudaStreamSynchronize(stream_.get());
  cudaMemPoolDestroy(pool_);
}

void* Pool::take(std::size_t bytes) {
  bytes = rounded(bytes);
  if (bytes > limit_ - used_)
    throw DeviceError("device memory: " + std::to_string(bytes) + " more bytes than the " +
                          std::to_string(used_) + " in use of " + std::to_string(limit_),
                      true);
  void* data = nullptr;
  check(cudaMallocFromPoolAsync(&data, bytes, pool_, stream_.get()), "cudaMallocFromPoolAsync");
  used_ += bytes;
  return data;
}

void Pool::give(void* data, std::size_t bytes) noexcept {
  cudaFreeAsync(data, stream_.get());
  used_ -= rounded(bytes);
}

}  // namespace kvsim::cuda
