// A device beside the processor that replays KV heads: exact attention, ranks, one-pass curves and overlaps
// of any number of rankings.
//
// The meaning of every number is that of kernels/replay.h; a device agrees with the CPU's kernels as two
// instruction paths would if they rounded differently: equal ranks but for near ties, results within 1e-5.
// The same device gives the same bits for the same rows, however they were cut into calls (cuts of rows at
// multiples of 16).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/replay.h"
#include "kernels/view.h"

namespace kvsim {

/// A call of the device's interface that failed, with the operation named.
class DeviceError : public std::runtime_error {
 public:
  DeviceError(const std::string& text, bool out_of_memory)
      : std::runtime_error(text), out_of_memory_(out_of_memory) {}
  bool out_of_memory() const { return out_of_memory_; }

 private:
  bool out_of_memory_;
};

/// One KV head as it is loaded; the views need not outlive the call.
struct HeadInput {
  MatrixView<const float> keys;          // [T + S, d]
  MatrixView<const float> values;        // [T + S, dv]
  MatrixView<const float> queries;       // [rows, d], query head major
  std::span<const TokenIndex> position;  // [rows]
  std::size_t prompt = 0;                // T
  LogitRule rule;
  DType stored = DType::float32;  // what the numbers most likely are: they travel in this type where each is
                                  // an exact number of it (checked while they are packed), else as floats
  bool ranks = true;  // whether ranks and needed sets are asked for: curves and own_order need them
};

/// One ranking of the prompt for a range of rows.
struct Ranking {
  std::span<const TokenIndex> order;      // best first
  std::span<const std::uint32_t> counts;  // ascending, repeats allowed, as many for every ranking of a call
  /// n of query_consistency, [counts, >= row_end]; empty where it is the count itself for every row.
  MatrixView<const std::uint32_t> limits;
  std::size_t row_begin = 0, row_end = 0;  // row_begin a multiple of the rows of a query head
};

/// What the rankings of a call gave. Memory of the device object, valid until its next call of curves or
/// own_order.
struct CurveResults {
  std::size_t rankings = 0, counts = 0, stride = 0;  // elements between counts: rows, rounded up
  std::size_t value_dim = 0;
  const float* error =
      nullptr;  // [ranking][count][stride]; NaN: below kRecallFloor, recompute with subset_output
  const float* recall = nullptr;  // [ranking][count][stride]
  const std::uint32_t* agree =
      nullptr;  // [ranking][count][stride]: kept tokens among the row's own best limits[count][row]
  const std::uint32_t* found = nullptr;  // [fraction][ranking][count][stride]: kept tokens of the needed sets
  const float* delta = nullptr;          // [ranking][count][dv][stride]: o' - o, where it was asked for
  std::size_t at(std::size_t ranking, std::size_t count) const { return (ranking * counts + count) * stride; }
  std::size_t found_at(std::size_t fraction, std::size_t ranking, std::size_t count) const {
    return fraction * rankings * counts * stride + at(ranking, count);
  }
};

/// Small exact results of a head, on the host.
struct HeadExact {
  Matrix<float> output;                        // [rows, dv]: exact outputs
  std::vector<std::uint32_t> needed_total[3];  // [rows], per fraction of kMassFractions
  std::vector<std::uint32_t> needed_prompt[3];
};

/// Rows [begin, end).
struct RowRange {
  std::size_t begin = 0, end = 0;
};

/// One KV head on a device: what was uploaded, its exact weights, ranks and needed sets. Calls go to one
/// device object, which is not for concurrent use. All throw DeviceError.
class DeviceHead {
 public:
  virtual ~DeviceHead() = default;
  virtual const HeadExact& exact() const = 0;

  /// Measures rankings. With `deltas` also o' - o, which takes dv times the memory of an error.
  virtual CurveResults curves(std::span<const Ranking> rankings, bool deltas) = 0;
  /// The curve where every row has its own order (its ranks): error and recall of all rows, as one ranking.
  virtual CurveResults own_order(std::span<const std::uint32_t> counts, bool deltas) = 0;

  /// sum[i] += sum over rows [begin, end) of the weights of prompt token i, in double, 16 rows (from `begin`
  /// on) at a time.
  virtual void add_prompt_sums(std::size_t begin, std::size_t end, std::span<double> sum) = 0;
  /// See removal_squares in kernels/removal.h; 16 rows (from `begin` on) at a time.
  virtual void add_removal_squares(std::size_t begin, std::size_t end, std::span<double> squares) = 0;

  /// Weights of the decode queries over all tokens, as attention_weights leaves them: [T + S, rows padded to
  /// kRowPad].
  virtual Matrix<float> weights() = 0;
  /// Ranks as rank_rows leaves them, 32 bits wide: [T, rows padded to kRowPad], 0xFFFFFFFF where a token is
  /// not visible.
  virtual Matrix<std::uint32_t> ranks() = 0;

  /// Attention of other queries of the head over its prompt's keys (tokens behind a query's position weigh
  /// 0), as attention_weights leaves it: [T, rows padded to kRowPad].
  virtual Matrix<float> attention(MatrixView<const float> queries, std::span<const TokenIndex> position) = 0;
  /// Its sums over ranges of rows, in double: sums(i, t) = sum over the rows of ranges[i] of the weights of
  /// token t.
  virtual void attention_sums(MatrixView<const float> queries, std::span<const TokenIndex> position,
                              std::span<const RowRange> ranges, MatrixView<double> sums) = 0;
};

/// Sizes that decide how much device memory is taken.
struct DeviceShape {
  std::size_t prompt = 0, decode = 0, rows = 0, key_dim = 0, value_dim = 0;
  std::size_t attended_rows = 0;         // of attention and attention_sums
  std::size_t rankings = 0, counts = 0;  // of a call of curves
  bool deltas = false;
  std::size_t attended_sums = 0;  // ranges of a call of attention_sums
  bool row_limits = false;        // rankings come with limits
};

/// The largest head that a device takes in one piece.
struct DeviceLimits {
  std::size_t rows = 0, value_dim = 0;
};

/// A device, or a share of one: a stream of work with memory of its own. Not for concurrent use; several
/// objects may share a GPU.
class Device {
 public:
  virtual ~Device() = default;
  /// Uploads the head and starts on its exact attention. Heads must not outlive the device.
  virtual std::unique_ptr<DeviceHead> load(const HeadInput& head) = 0;
  /// Bytes that a loaded head keeps, and that the device needs beside its heads while it works on one.
  virtual std::size_t head_bytes(const DeviceShape& shape) const = 0;
  virtual std::size_t work_bytes(const DeviceShape& shape) const = 0;
  virtual DeviceLimits limits() const = 0;
  /// Bytes that this object may use: its share of what was free when it was opened.
  virtual std::size_t memory() const = 0;
  /// What runs here, e.g. "cuda:0 NVIDIA H100 (sm_90)".
  virtual std::string name() const = 0;
  /// To be held around calls of the device and its heads by threads that share it.
  std::mutex& mutex() { return mutex_; }

 private:
  std::mutex mutex_;
};

}  // namespace kvsim
