// The replay kernels on an NVIDIA GPU: one KV head is loaded once, then any number of rankings are measured on it.
//
// The meaning of every number is that of kernels/replay.h. Logits and softmax sums are in double; the weights of the one-pass
// curve are split into two bfloat16 terms for the tensor cores (relative error of a weight below 2^-16), values too where
// they are not bfloat16 numbers themselves. No atomics on floating point: the same input gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/replay.h"
#include "kernels/view.h"

namespace kvsim::cuda {

/// A CUDA call that failed, with the operation named.
class DeviceError : public std::runtime_error {
 public:
  DeviceError(const std::string& text, bool out_of_memory) : std::runtime_error(text), out_of_memory_(out_of_memory) {}
  bool out_of_memory() const { return out_of_memory_; }

 private:
  bool out_of_memory_;
};

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;        // compute capability
  int multiprocessors = 0;
  std::size_t memory = 0, free_memory = 0;  // bytes
};
/// The GPUs that can be used; empty without a driver.
std::vector<DeviceInfo> devices();

/// One KV head as it is loaded. Views live until the next load.
struct HeadInput {
  MatrixView<const float> keys;       // [T + S, d]
  MatrixView<const float> values;     // [T + S, dv]
  MatrixView<const float> queries;    // [rows, d], query head major
  std::span<const TokenIndex> position;  // [rows]
  std::size_t prompt = 0;             // T
  LogitRule rule;
};

/// One ranking of the prompt for a range of rows.
struct Ranking {
  std::span<const TokenIndex> order;      // best first
  std::span<const std::uint32_t> counts;  // ascending, as many for every ranking of a call
  std::size_t row_begin = 0, row_end = 0;  // row_begin a multiple of kRowBlock or of the rows of a query head
};

/// What the rankings of a call gave: [ranking][count][row stride].
struct CurveResults {
  std::size_t stride = 0;  // rows
  std::size_t counts = 0;
  std::vector<float> error, recall;   // NaN error: below kRecallFloor, recompute with subset_output
  std::vector<std::uint32_t> agree;   // kept tokens among the row's own best counts[i]
  std::vector<std::uint32_t> found;   // [fraction][ranking][count][row]: kept tokens of the needed sets
  std::size_t at(std::size_t ranking, std::size_t count, std::size_t row) const { return (ranking * counts + count) * stride + row; }
};

/// Exact results of the loaded head, on the host.
struct ExactResults {
  std::size_t stride = 0;                   // rows
  std::vector<float> weights;               // [T + S][stride]
  std::vector<float> output;                // [rows][dv]
  std::vector<std::uint32_t> ranks;         // [T][stride]
  std::vector<std::uint32_t> needed_total, needed_prompt;  // [fraction][stride]
};

/// A device that holds one KV head at a time. Not for concurrent use; several objects may share a device.
class HeadReplay {
 public:
  explicit HeadReplay(int device);
  ~HeadReplay();
  HeadReplay(HeadReplay&&) noexcept;

  /// Uploads the head and computes exact weights, outputs, ranks and needed sets. Throws DeviceError.
  void load(const HeadInput& head);
  /// Measures rankings on the loaded head.
  void curves(std::span<const Ranking> rankings, CurveResults& out);
  /// Sum over rows [begin, end) of the weights of every prompt token, in double.
  std::vector<double> prompt_sums(std::size_t row_begin, std::size_t row_end);
  ExactResults exact();
  /// Bytes of device memory that a head of this shape takes.
  static std::size_t bytes_needed(std::size_t prompt, std::size_t decode, std::size_t rows, std::size_t key_dim,
                                  std::size_t value_dim, std::size_t rankings, std::size_t counts);
  /// Milliseconds on the device of the last load and of the last curves, by part.
  struct Timing {
    double upload = 0, attention = 0, ranks = 0, curve = 0, overlap = 0, download = 0;
  };
  Timing timing() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvsim::cuda
