// Owners of CUDA objects, and CUDA's errors as ours. Only files of this folder include it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <utility>

#include "kernels/backend.h"

namespace kvsim::cuda {

/// Throws DeviceError naming the operation.
inline void check(cudaError_t status, const char* operation) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the next call starts afresh
  throw DeviceError(std::string(operation) + ": " + cudaGetErrorString(status),
                    status == cudaErrorMemoryAllocation);
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
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(const Stream& stream) {
    check(cudaEventRecord(event_, stream.get()), "cudaEventRecord");
    recorded_ = true;
  }
  /// Lets a stream, or the host, wait for what was recorded; nothing recorded is nothing to wait for.
  void hold(const Stream& stream) const {
    check(cudaStreamWaitEvent(stream.get(), event_, 0), "cudaStreamWaitEvent");
  }
  void wait() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  /// Milliseconds from `before`; 0 where one of them was never recorded.
  double since(const Event& before) const {
    if (!recorded_ || !before.recorded_) return 0;
    float ms = 0;
    check(cudaEventElapsedTime(&ms, before.event_, event_), "cudaEventElapsedTime");
    return static_cast<double>(ms);
  }

 private:
  cudaEvent_t event_ = nullptr;
  bool recorded_ = false;
};

/// Page-locked host memory that grows and is kept: what was in it is lost when it grows.
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
    if (data_ != nullptr) check(cudaFreeHost(std::exchange(data_, nullptr)), "cudaFreeHost");
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

template <typename T>
void upload(T* to, const T* from, std::size_t count, const Stream& stream) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyHostToDevice, stream.get()),
        "cudaMemcpyAsync to the device");
}
template <typename T>
void download(T* to, const T* from, std::size_t count, const Stream& stream) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, stream.get()),
        "cudaMemcpyAsync from the device");
}

}  // namespace kvsim::cuda
