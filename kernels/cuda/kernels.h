// What the .cu files of the backend offer each other: launches on a stream, device pointers only.
//
// Rows lie in the lanes as in kernels/replay.h: weights[token][row]. The row stride is a multiple of kRowBlock with one block
// to spare, so that a tile may begin at any multiple of 8 rows; rows beyond the last weigh 0.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvsim::cuda {

inline constexpr int kRowBlock = 128;   // rows of a tile of the curve kernel
inline constexpr int kStepTokens = 32;  // tokens of a step of the curve kernel
inline constexpr int kFractions = 3;

inline std::size_t row_stride(std::size_t rows) { return (rows + kRowBlock - 1) / kRowBlock * kRowBlock + kRowBlock; }

struct Sizes {
  int prompt = 0, tokens = 0, rows = 0, stride = 0, key_dim = 0, value_dim = 0;
};
struct Rule {
  double scale = 1, softcap = 0;
  unsigned window = 0;
};

/// Exact weights of the loaded head.
struct Weights {
  const std::uint32_t* position;  // [rows]
  double* logits;                 // [tokens][stride], scratch
  double* partial;                // [softmax chunks][2][stride], scratch
  float* weights;                 // [tokens][stride]
  __nv_bfloat16 *high, *low;      // [prompt][stride]
};
std::size_t softmax_chunks(std::size_t tokens);
void launch_attention(const float* keys, const float* queries, const Sizes& size, const Rule& rule, const Weights& out, cudaStream_t stream);

/// Outputs: exact[rows][value_dim], tail[rows][value_dim], tail_weight[stride], norm[stride] (squared).
struct Outputs {
  double* partial;  // [output chunks][stride][value_dim], scratch
  float *exact, *tail, *tail_weight;
  double* norm;
};
std::size_t output_chunks(std::size_t prompt, std::size_t tokens);
void launch_outputs(const float* weights, const float* values, const Sizes& size, const Outputs& out, cudaStream_t stream);

/// Values as bfloat16, [prompt][padded_value_dim]; `low` = what is missing, null where nothing is.
void launch_split_values(const float* values, const Sizes& size, __nv_bfloat16* high, __nv_bfloat16* low, cudaStream_t stream);

/// Ranks of every row among its visible prompt tokens, and needed sets.
template <typename Rank>
struct Ranks {
  std::uint32_t *keys, *sorted_keys;    // [rows][tokens], scratch
  std::uint32_t *tokens, *sorted_tokens;  // [rows][tokens], scratch
  void* sort_space;
  std::size_t sort_bytes;
  Rank* by_row;    // [rows][prompt], scratch
  Rank* ranks;     // [prompt][stride]
  std::uint32_t *needed_total, *needed_prompt;  // [kFractions][stride]
};
std::size_t sort_bytes(std::size_t rows, std::size_t tokens);
template <typename Rank>
void launch_ranks(const float* weights, const std::uint32_t* position, const Sizes& size, const Rule& rule, const Ranks<Rank>& out, cudaStream_t stream);

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
struct CurveArguments {
  const RankingOnDevice* rankings;
  const __nv_bfloat16 *weight_high, *weight_low;  // [prompt][stride]
  const __nv_bfloat16 *value_high, *value_low;    // [prompt][padded value_dim]; value_low null where values are bfloat16
  const float *exact, *tail;                      // [rows][value_dim]
  const float* tail_weight;                       // [stride]
  const double* norm;                             // [stride]
  float *error, *recall;                          // [ranking][count][stride]
  int stride, value_dim, counts;
};
/// Columns that a value row takes on the device: 64, 128 or 256.
int padded_value_dim(int value_dim);
void launch_curves(const CurveArguments& arguments, int rankings, int most_rows, cudaStream_t stream);

/// What the overlap kernel reads of a token and row, packed: the first budget whose limit lies above the token's rank, and which
/// needed sets hold the token. Packed = uint8_t (up to kNarrowBudgets budgets) or uint16_t.
inline constexpr int kNarrowBudgets = 31;
template <typename Packed>
struct Packing {
  static constexpr int kFlags = 3;  // N(0.5), N(0.9), N(0.99), from the highest bit down
  static constexpr int kBits = static_cast<int>(8 * sizeof(Packed));
  static constexpr int kNever = (1 << (kBits - kFlags)) - 1;  // in no budget's set
};
template <typename Rank, typename Packed>
void launch_pack(const Rank* ranks, const std::uint32_t* needed_prompt, const std::uint32_t* counts, int count, const Sizes& size, Packed* packed,
                 cudaStream_t stream);

template <typename Packed>
struct OverlapArguments {
  const RankingOnDevice* rankings;
  const std::uint32_t* counts;  // [count], the same for all rankings of the call
  const Packed* packed;         // [prompt][stride]
  std::uint32_t* partial;       // [chunk][ranking][1 + kFractions][count][stride], scratch
  std::uint32_t *agree, *found;  // [ranking][count][stride], [fraction][all rankings][count][stride]
  std::size_t fraction_stride;   // elements between the fractions of `found`
  int stride, counts_per_ranking, rankings_in_call;
};
int overlap_chunks();
template <typename Packed>
void launch_overlap(const OverlapArguments<Packed>& arguments, int most_rows, cudaStream_t stream);

void launch_prompt_sums(const float* weights, const Sizes& size, int row_begin, int row_end, double* sums, cudaStream_t stream);

}  // namespace kvsim::cuda
