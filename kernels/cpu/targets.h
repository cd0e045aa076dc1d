// Which instruction sets the CPU kernels are compiled for; to be included before any Highway header.
#pragma once

// Only sets with fused multiply-add, so that every path gives the same bits; machines without one run the
// emulated 128-bit path, whose multiply-adds are std::fma. Scalable vectors cannot stand in the register
// tiles' arrays.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
