// What the .cu files of the backend offer each other: launches on a stream, device pointers only.
//
// Rows lie in the lanes as in kernels/replay.h: weights[token][row]. The row stride is a multiple of
// kRowBlock with one block to spare, so that a tile may begin at any multiple of 8 rows; rows beyond the last
// weigh 0. What is ordered row by row (ranks, and the unfinished softmax) lies row-major.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"

namespace kvsim::cuda {

inline constexpr int kRowBlock = 128;   // rows of a tile of the curve kernel
inline constexpr int kStepTokens = 32;  // tokens of a step of the curve kernel
inline constexpr int kFractions = 3;
inline constexpr int kKeyPad =
    16;  // keys and queries are padded with zeros to a multiple of so many channels
inline constexpr int kSoftmaxSlice = 32;       // tokens that share a power of two
inline constexpr std::size_t kResultPad = 32;  // results of a count take a multiple of so many rows
inline constexpr int kTokenPad = 128;          // row-major rows are padded to a multiple of so many tokens

inline std::size_t row_stride(std::size_t rows) {
  return (rows + kRowBlock - 1) / kRowBlock * kRowBlock + kRowBlock;
}
inline std::size_t padded(std::size_t n, std::size_t step) { return (n + step - 1) / step * step; }
/// Columns that a value row takes on the device: 64, 128 or 256.
int padded_value_dim(int value_dim);

struct Sizes {
  int prompt = 0, tokens = 0, rows = 0;
  int stride = 0;                    // of the rows: row_stride(rows)
  int key_dim = 0;                   // padded to a multiple of kKeyPad
  int value_dim = 0, value_pad = 0;  // value_pad = padded_value_dim(value_dim)
  int token_stride = 0;              // of what is row-major: tokens, padded to kTokenPad
  int rank_stride = 0;               // of ranks: prompt, padded to kTokenPad
};
struct Rule {
  double scale = 1, softcap = 0;
  unsigned window = 0;
};

/// Rows of numbers as they travelled, to floats padded with zeros: out[rows][padded_cols].
void launch_widen(const void* raw, DType type, std::size_t rows, int cols, int padded_cols, float* out,
                  cudaStream_t stream);
/// Values as bfloat16, `low` = what is missing, null where nothing is.
void launch_split(const float* values, std::size_t count, __nv_bfloat16* high, __nv_bfloat16* low,
                  cudaStream_t stream);

/// The softmax before its slices of kSoftmaxSlice tokens are joined: the weight of a token is
/// part * 2^(exponent of its slice - most) * inverse.
struct Softmax {
  float* part;        // [rows][token_stride]; 0 where the row does not see the token
  int* exponent;      // [rows][token_stride / kSoftmaxSlice]
  double* slice_sum;  // [rows][token_stride / kSoftmaxSlice]
  int* most;          // [rows]
  double* inverse;    // [rows]
};
/// Exponent of a slice whose tokens no row sees.
inline constexpr int kNothingSeen = -(1 << 30);
void launch_softmax(const float* keys, const float* queries, const std::uint32_t* position, const Sizes& size,
                    const Rule& rule, const Softmax& out, cudaStream_t stream);
/// weights[tokens][stride], and their two bfloat16 terms for the prompt (both null: not asked for),
/// [prompt][stride].
void launch_weights(const Softmax& softmax, const Sizes& size, float* weights, __nv_bfloat16* high,
                    __nv_bfloat16* low, cudaStream_t stream);

/// Outputs: exact[rows][value_dim], tail[rows][value_dim], tail_weight[stride], norm[stride] (squared).
struct Outputs {
  double* partial;  // [output chunks][rows][value_pad], scratch
  float *exact, *tail, *tail_weight;
  double* norm;
};
std::size_t output_chunks(std::size_t prompt, std::size_t tokens);
void launch_outputs(const float* weights, const float* values, const Sizes& size, const Outputs& out,
                    cudaStream_t stream);

/// Ranks of every row among its visible prompt tokens, and needed sets.
template <typename Rank>
struct Ranks {
  Rank* ranks;                                  // [rows][rank_stride]; all ones where a token is not visible
  std::uint32_t *needed_total, *needed_prompt;  // [kFractions][stride]
};
/// Largest number of tokens whose order fits into the shared memory of a block.
inline constexpr int kMostShortTokens = 33216;  // all that shared memory holds of this
void launch_short_ranks(const Softmax& softmax, const std::uint32_t* position, const Sizes& size,
                        const Rule& rule, const Ranks<std::uint16_t>& out, cudaStream_t stream);
/// The same for longer rows, through memory; rows first .. last - 1. Scratch: long_rank_bytes(last - first,
/// tokens).
std::size_t long_rank_bytes(std::size_t rows, std::size_t tokens);
template <typename Rank>
void launch_long_ranks(const Softmax& softmax, const std::uint32_t* position, const Sizes& size,
                       const Rule& rule, int first, int last, void* scratch, const Ranks<Rank>& out,
                       cudaStream_t stream);

/// One step of the curve kernel: up to kStepTokens tokens of an order, then `snapshots` budgets.
struct CurveStep {
  std::uint32_t first;
  std::uint16_t tokens, snapshots;
};
/// One ranking on the device.
struct RankingOnDevice {
  const std::uint32_t* order;
  const CurveStep* steps;
  std::uint32_t step_count, order_size;
  std::uint32_t row_begin, row_end;
};
/// Overlaps. What is counted of a token and row lies packed in a byte: in the low bits the first budget (of a
/// window of kWindowBudgets) whose limit lies above the token's rank, above them which needed sets hold the
/// token.
inline constexpr int kBudgetBits = 5;
inline constexpr int kWindowBudgets = (1 << kBudgetBits) - 1;  // the value itself: in no budget of the window
/// A window of the budgets of a call: first .. first + count - 1, count <= kWindowBudgets.
struct Window {
  int first, count;
};
/// One ranking as overlaps need it.
struct OverlapRanking {
  const std::uint32_t* order;
  std::uint32_t row_begin, row_end;
  std::uint32_t place;  // in the results
};
/// Rankings that are counted together: they share counts, and the limits of a row. One with limits of its own
/// is alone.
struct OverlapGroup {
  const std::uint32_t* counts;
  const std::uint32_t* limits;  // limits[budget * budget_step + row * row_step]
  std::uint32_t budget_step, row_step;
  const OverlapRanking* rankings;
  std::uint32_t size;                // rankings
  std::uint32_t row_begin, row_end;  // of all its rankings
};
/// What all groups of a call share.
struct OverlapCall {
  std::uint8_t* segments;  // [lines][rank_stride], scratch
  std::uint8_t* packed;    // [lines of groups][rows][rank_stride], scratch
  std::uint32_t *agree,
      *found;  // [ranking][count][result_stride], [fraction] first; zero before the first window
  std::size_t fraction_stride;  // elements between the fractions of `found`
  int result_stride, counts;    // counts of a ranking
};
/// Groups of one ranking are counted so many at a time, the rankings of larger ones in tiles.
inline constexpr int kLoneGroups = 4;
inline constexpr int kRankingTile = 8;
/// Lines of `segments` and rows x lines of `packed` that a group needs.
inline std::size_t segment_lines(std::size_t rankings) {
  return rankings == 1 ? kLoneGroups : padded(rankings, 2 * kRankingTile);
}
/// packed for groups[0 .. count - 1], one after the other.
template <typename Rank>
void launch_pack(const Rank* ranks, const std::uint32_t* needed_prompt, const OverlapGroup* groups, int count,
                 const Window& window, const Sizes& size, std::uint8_t* packed, cudaStream_t stream);
/// segments: `lines` rankings of one group, or of as many groups of one.
void launch_segments(const OverlapGroup* groups, bool lone, int lines, const Window& window,
                     const Sizes& size, std::uint8_t* segments, cudaStream_t stream);
/// The overlaps of one packed group of several rankings; of up to kLoneGroups packed groups of one.
void launch_overlap(const OverlapCall& call, const OverlapGroup* group, int rankings, const Window& window,
                    const Sizes& size, cudaStream_t stream);
void launch_lone_overlaps(const OverlapCall& call, const OverlapGroup* groups, int count,
                          const Window& window, const Sizes& size, cudaStream_t stream);

/// sums[token] += weights of rows begin .. end - 1, 16 rows at a time.
void launch_prompt_sums(const float* weights, int tokens, int stride, int begin, int end, double* sums,
                        cudaStream_t stream);
/// squares[token] += (a / (1 - a))^2 |v - o|^2 of rows begin .. end - 1, 16 rows at a time.
void launch_removal_squares(const float* weights, const float* values, const float* exact, const Sizes& size,
                            int begin, int end, double* squares, cudaStream_t stream);

}  // namespace kvsim::cuda
