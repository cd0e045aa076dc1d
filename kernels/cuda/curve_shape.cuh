// What a block of curve_hopper.cu is made of: its shapes, and the producers that gather tokens into a ring of stages.
#pragma once

#include "kernels/cuda/curve.h"
#include "kernels/cuda/wgmma.cuh"

namespace kvsim::cuda::hopper {

constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;  // producers, consumers, consumers
constexpr int kLookAhead = 4;                // steps whose tokens a producer warp knows at a time: 32 lanes of 8 tokens
constexpr int kChunk = 8;                    // bfloat16 numbers of a 16-byte access
static_assert(kStepTokens == 32, "a producer warp has 8 tokens of a step");

/// Shapes of a block. Width = columns of a value row; Blocks = 64-row blocks of a consumer; Sides = 2: the consumers share the rows and
/// each has half of the columns, 1: each has rows of its own.
template <int Width, bool SplitValues, int Blocks, int Sides>
struct Shape {
  static constexpr int kSides = Sides;
  static constexpr int kColumns = Width / Sides;  // of a consumer
  static_assert(kColumns == 64 || kColumns == 128);
  static constexpr int kRows = 64 * Blocks * (Sides == 2 ? 1 : 2);
  static constexpr int kAtoms = kStepTokens / 8 * kAtomBytes;  // bytes of 64 rows or columns
  static constexpr int kValueAtoms = kColumns / 64;            // of a consumer
  static constexpr int kLow = kRows / 64 * kAtoms;
  static constexpr int kValue = 2 * kLow;
  static constexpr int kSideBytes = (kValueAtoms + 1) * kAtoms;  // values, then ones
  static constexpr int kValueLow = kValue + Sides * kSideBytes;
  static constexpr int kStageBytes = kValueLow + (SplitValues ? Sides * kValueAtoms * kAtoms : 0);
  static constexpr int kMostStages = 8, kMostBytes = 220 * 1024;  // of the 227 KB that a block may have
  static constexpr int kStages = kMostBytes / kStageBytes < kMostStages ? kMostBytes / kStageBytes : kMostStages;
  static constexpr int kBytes = kStages * kStageBytes + kAtomBytes;  // the ring begins at a multiple of an atom
};

struct Barriers {
  std::uint32_t full, empty;  // of the first stage; the others follow every 8 bytes
};

/// What one warp of producers fetches: 8 tokens of every step, weights of the tile's rows and whole value rows.
template <typename S, int Width, bool SplitValues>
__device__ __forceinline__ void produce(const CurveCall& in, const RankingOnDevice& ranking, int row0, std::uint32_t ring,
                                        Barriers barriers) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int kRowChunks = S::kRows / kChunk, kValueChunks = Width / kChunk;
  constexpr int kTokensAtOnce = 32 / kRowChunks, kValuesAtOnce = 32 / kValueChunks;
  const int last_step = static_cast<int>(ranking.step_count) - 1, steps = last_step + 1;
  const std::uint32_t slot = static_cast<std::uint32_t>(warp * 8 + lane % 8);
  // Lane 8 q + i looks up token i of this warp in step q of the next kLookAhead.
  const auto step_of = [&](int first) { return ranking.steps[min(first + lane / 8, last_step)]; };
  const auto token_of = [&](const CurveStep& step) { return ranking.order[min(step.first + slot, ranking.order_size - 1)]; };
  CurveStep step = step_of(0);
  std::uint32_t token = token_of(step);
  CurveStep next_step = step_of(kLookAhead);

  const int row_chunk = lane % kRowChunks, value_chunk = lane % kValueChunks;
  const int row_token = lane / kRowChunks, value_token = lane / kValueChunks;  // of those that the warp fetches at once
  const bool row_present = row0 + row_chunk * kChunk < static_cast<int>(ranking.row_end);
  // Bytes, and 32-bit factors: one multiply-add an address.
  const auto bytes = [](const __nv_bfloat16* numbers) { return reinterpret_cast<const char*>(numbers); };
  const char* const high = bytes(in.weight_high + (row_present ? row0 + row_chunk * kChunk : 0));
  const char* const low = bytes(in.weight_low + (row_present ? row0 + row_chunk * kChunk : 0));
  const char* const value = bytes(in.value_high + value_chunk * kChunk);
  const char* const value_low = bytes(in.value_low + (SplitValues ? value_chunk * kChunk : 0));
  const auto row_bytes = static_cast<std::uint32_t>(in.stride) * 2;
  // Where chunks of token 0 of the warp's 8 go; token i is there ^ i * (128 + 16): 128 bytes on, and swizzled.
  constexpr std::uint32_t kNextToken = 128 + 16;
  const std::uint32_t row_to = swizzled(warp * 8, row_chunk, S::kAtoms);
  constexpr int kSideChunks = S::kColumns / kChunk;  // a value row of 256 columns lies in two parts, with ones in between
  const std::uint32_t value_to =
      S::kValue + value_chunk / kSideChunks * S::kSideBytes + swizzled(warp * 8, value_chunk % kSideChunks, S::kAtoms);
  const std::uint32_t value_low_to =
      S::kValueLow + value_chunk / kSideChunks * S::kValueAtoms * S::kAtoms + swizzled(warp * 8, value_chunk % kSideChunks, S::kAtoms);

  int stage = 0;
  std::uint32_t phase = 1;
  for (int first = 0; first < steps; first += kLookAhead) {
    const std::uint32_t next_token = token_of(next_step);
    const CurveStep after_next = step_of(first + 2 * kLookAhead);
#pragma unroll 1
    for (int q = 0; q < kLookAhead && first + q < steps; ++q) {
      const int tokens = __shfl_sync(0xffffffffu, static_cast<int>(step.tokens), q * 8);
      // All tokens of the step before the wait, or every copy would stand behind a shuffle.
      std::uint32_t row_tokens[8 / kTokensAtOnce], value_tokens[8 / kValuesAtOnce];
#pragma unroll
      for (int i = 0; i < 8 / kTokensAtOnce; ++i) row_tokens[i] = __shfl_sync(0xffffffffu, token, q * 8 + i * kTokensAtOnce + row_token);
#pragma unroll
      for (int i = 0; i < 8 / kValuesAtOnce; ++i)
        value_tokens[i] = __shfl_sync(0xffffffffu, token, q * 8 + i * kValuesAtOnce + value_token);
      const std::uint32_t at = ring + stage * S::kStageBytes;
      wait_barrier(barriers.empty + stage * 8, phase);
      __syncwarp();
      if (warp < 2 || tokens > 16) {  // the second half of a step is not multiplied where it is empty
#pragma unroll
        for (int i = 0; i < 8 / kTokensAtOnce; ++i) {
          const int mine = i * kTokensAtOnce + row_token;
          const bool present = row_present && warp * 8 + mine < tokens;
          const std::uint64_t from = static_cast<std::uint64_t>(row_tokens[i]) * row_bytes;
          const std::uint32_t to = (at + row_to) ^ static_cast<std::uint32_t>(mine) * kNextToken;
          copy_async(to, high + from, present);
          copy_async(to + S::kLow, low + from, present);
        }
#pragma unroll
        for (int i = 0; i < 8 / kValuesAtOnce; ++i) {
          const int mine = i * kValuesAtOnce + value_token;
          const bool present = warp * 8 + mine < tokens;
          const std::uint64_t from = static_cast<std::uint64_t>(value_tokens[i]) * (Width * 2u);
          copy_async((at + value_to) ^ static_cast<std::uint32_t>(mine) * kNextToken, value + from, present);
          if constexpr (SplitValues) {
            copy_async((at + value_low_to) ^ static_cast<std::uint32_t>(mine) * kNextToken, value_low + from, present);
          }
        }
      }
      arrive_after_copies(barriers.full + stage * 8);
      if (++stage == S::kStages) {
        stage = 0;
        phase ^= 1;
      }
    }
    step = next_step;
    token = next_token;
    next_step = after_next;
  }
}

}  // namespace kvsim::cuda::hopper
