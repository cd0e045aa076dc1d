// Matrix instructions and asynchronous copies that the kernels share.
#pragma once

#include <cstdint>

namespace kvsim::cuda {

__device__ inline std::uint32_t address_in_shared(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// 16 bytes to shared memory; zeros where `present` is false (`from` must be readable all the same).
__device__ inline void copy_16_async(void* to, const void* from, bool present) {
  const int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address_in_shared(to)), "l"(from),
               "r"(bytes)
               : "memory");
}
__device__ inline void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/// sum[16 x 8] += a[16 x 16] * b[16 x 8] in double. Of thread `lane`, with g = lane / 4 and q = lane % 4: a[2
/// j + h] is row g + 8 h, k = q + 4 j; b[j] is k = q + 4 j, column g; sum[2 h + e] is row g + 8 h, column 2 q
/// + e.
__device__ inline void multiply_double(double (&sum)[4], const double (&a)[8], const double (&b)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7,%8,%9,%10,%11}, "
      "{%12,%13,%14,%15}, {%0,%1,%2,%3};"
      : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]), "d"(b[0]),
        "d"(b[1]), "d"(b[2]), "d"(b[3]));
#else
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                   : "+d"(sum[2 * h]), "+d"(sum[2 * h + 1])
                   : "d"(a[2 * j + h]), "d"(b[j]));
#endif
}

/// sum[16 x 8] += a[16 x 32] * b[32 x 8], unsigned bytes. a[2 j + h]: row g + 8 h, k = 16 j + 4 q .. + 3;
/// b[j]: the same k, column g; sum as above.
__device__ inline void multiply_bytes(std::uint32_t (&sum)[4], std::uint32_t a0, std::uint32_t a1,
                                      std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                      std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace kvsim::cuda
