// Device memory of one open device: taken and given back in the order of its stream, counted against its
// share.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/cuda/raii.h"

namespace kvsim::cuda {

/// A memory pool that keeps what it once got, so that loading head after head allocates nothing.
class Pool {
 public:
  /// Up to `limit` bytes of `device`, for work on `stream`, which outlives the pool.
  Pool(int device, std::size_t limit, const Stream& stream);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void* take(std::size_t bytes);
  void give(void* data, std::size_t bytes) noexcept;
  std::size_t limit() const { return limit_; }

  /// Bytes that an array takes.
  static constexpr std::size_t rounded(std::size_t bytes) { return (bytes + 511) / 512 * 512; }

 private:
  cudaMemPool_t pool_ = nullptr;
  std::size_t limit_, used_ = 0;
  const Stream& stream_;
};

/// An array of a pool. Grows without keeping what was in it.
template <typename T>
class Buffer {
 public:
  explicit Buffer(Pool& pool, std::size_t size = 0) : pool_(pool) { fit(size); }
  ~Buffer() { release(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* fit(std::size_t size) {
    if (size <= size_) return data_;
    release();
    data_ = static_cast<T*>(pool_.take(size * sizeof(T)));
    size_ = size;
    return data_;
  }
  void release() noexcept {
    if (data_ != nullptr) pool_.give(std::exchange(data_, nullptr), size_ * sizeof(T));
    size_ = 0;
  }
  T* get() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  Pool& pool_;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kvsim::cuda
