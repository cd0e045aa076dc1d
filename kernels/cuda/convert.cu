// Numbers as they travel, as floats, and as bfloat16 terms.
#include <cuda_fp16.h>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float wide(float x) { return x; }
__device__ float wide(__half x) { return __half2float(x); }
__device__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__global__ void widen_kernel(const T* __restrict__ raw, std::size_t rows, int cols, int padded_cols,
                             float* __restrict__ out) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * static_cast<std::size_t>(padded_cols)) return;
  const std::size_t row = i / padded_cols;
  const int c = static_cast<int>(i % padded_cols);
  out[i] = c < cols ? wide(raw[row * cols + c]) : 0.0f;
}

__global__ void split_kernel(const float* __restrict__ values, std::size_t count,
                             __nv_bfloat16* __restrict__ high, __nv_bfloat16* __restrict__ low) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const float x = values[i];
  const __nv_bfloat16 top = __float2bfloat16_rn(x);
  high[i] = top;
  if (low != nullptr) low[i] = __float2bfloat16_rn(x - __bfloat162float(top));
}

unsigned blocks(std::size_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

template <typename T>
void widen(const void* raw, std::size_t rows, int cols, int padded_cols, float* out, cudaStream_t stream) {
  widen_kernel<<<blocks(rows * static_cast<std::size_t>(padded_cols)), kThreads, 0, stream>>>(
      static_cast<const T*>(raw), rows, cols, padded_cols, out);
  check(cudaGetLastError(), "widen_kernel");
}

}  // namespace

void launch_widen(const void* raw, DType type, std::size_t rows, int cols, int padded_cols, float* out,
                  cudaStream_t stream) {
  switch (type) {
    case DType::float16:
      return widen<__half>(raw, rows, cols, padded_cols, out, stream);
    case DType::bfloat16:
      return widen<__nv_bfloat16>(raw, rows, cols, padded_cols, out, stream);
    case DType::float32:
      return widen<float>(raw, rows, cols, padded_cols, out, stream);
  }
}

void launch_split(const float* values, std::size_t count, __nv_bfloat16* high, __nv_bfloat16* low,
                  cudaStream_t stream) {
  split_kernel<<<blocks(count), kThreads, 0, stream>>>(values, count, high, low);
  check(cudaGetLastError(), "split_kernel");
}

}  // namespace kvsim::cuda
