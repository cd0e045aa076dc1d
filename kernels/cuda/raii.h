// Owners of CUDA objects, and CUDA's errors as ours. Only .cu files include it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <utility>

#include "kernels/cuda/device.h"

namespace kvsim::cuda {

/// Throws DeviceError naming the operation.
inline void check(cudaError_t status, const char* operation) {
  if (status != cudaSuccess) throw DeviceError(std::string(operation) + ": " + cudaGetErrorString(status), status == cudaErrorMemoryAllocation);
}

/// Makes a device current for a scope.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Device memory that grows and is kept: what was in it is lost when it grows.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() {
    if (data_ != nullptr) cudaFree(data_);
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&&) = delete;
  T* fit(std::size_t size) {
    if (size <= size_) return data_;
    if (data_ != nullptr) check(cudaFree(data_), "cudaFree");
    data_ = nullptr;
    size_ = 0;
    void* fresh = nullptr;
    check(cudaMalloc(&fresh, size * sizeof(T)), "cudaMalloc");
    data_ = static_cast<T*>(fresh);
    size_ = size;
    return data_;
  }
  T* get() const { return data_; }
  std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Page-locked host memory, grown like Buffer.
template <typename T>
class Pinned {
 public:
  Pinned() = default;
  ~Pinned() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  T* fit(std::size_t size) {
    if (size <= size_) return data_;
    if (data_ != nullptr) check(cudaFreeHost(data_), "cudaFreeHost");
    data_ = nullptr;
    size_ = 0;
    void* fresh = nullptr;
    check(cudaMallocHost(&fresh, size * sizeof(T)), "cudaMallocHost");
    data_ = static_cast<T*>(fresh);
    size_ = size;
    return data_;
  }
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kvsim::cuda
