// Opening a trace: validates the header, then hands out tensors head by head.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "traces/trace.h"

namespace kvsim {

/// Which optional tensors a block should carry.
struct BlockRequest {
  bool all_queries =
      false;  // prompt queries too; otherwise only the last `prompt_queries` and the decode queries
  std::size_t prompt_queries = 0;
  bool attention_stats = false;
  bool query_stats = false;
  bool output_proj = false;
  bool lookahead = false;                 // pseudo queries of every first pass
  bool second_pass = false;               // statistics of the second pass
  std::uint32_t sensitivity_samples = 0;  // all of them, as LayerInfo says, or none

  bool operator==(const BlockRequest&) const = default;
};

/// An open trace file. Move-only. Several threads may read from it: HDF5 calls take turns, conversion does not.
class TraceReader {
 public:
  /// Throws UserError (path inside the file, what was found, what was expected) on anything that
  /// trace-format.md forbids.
  static TraceReader open(const std::string& path);
  TraceReader(TraceReader&&) noexcept;
  TraceReader& operator=(TraceReader&&) noexcept;
  ~TraceReader();

  const TraceInfo& info() const;
  /// Reads raw 16-bit data and converts it with vector code. Rows of `query` are then Nq' = requested prompt
  /// queries + S. With `check_finite` the first NaN or Inf is a UserError naming path, head and token.
  HeadBlock read_head(std::size_t layer_ordinal, std::uint32_t kv_head, const BlockRequest& request) const;
  /// Recorded attention of one query head, [Nq, T+S].
  Matrix<float> read_attention(std::size_t layer_ordinal, std::uint32_t query_head) const;
  /// What the first pass `pass` kept in a layer: ascending prompt positions, one list per query head or,
  /// where there are fewer, per KV head. Throws UserError where the pass or its kept sets are not recorded.
  std::vector<std::vector<TokenIndex>> read_lookahead_kept(std::size_t layer_ordinal,
                                                           const std::string& pass) const;
  /// Logs of learned retention rates, [Hkv, T+S], each at most 0. Throws UserError where the layer has none.
  Matrix<float> read_retention(std::size_t layer_ordinal) const;
  /// Inputs of the layer's attention block for the tokens [first, first + count), [count, input_size]. Throws
  /// UserError where the layer has none.
  Matrix<float> read_hidden(std::size_t layer_ordinal, std::uint64_t first, std::uint64_t count) const;
  /// The last layer's output after the final norm for the tokens [first, first + count), [count,
  /// final_hidden_size]. Throws UserError without it.
  Matrix<float> read_final_hidden(std::uint64_t first, std::uint64_t count) const;

 private:
  struct Impl;
  explicit TraceReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Reads blocks ahead in a given order on one thread, at most `depth` blocks waiting.
class BlockPrefetcher {
 public:
  struct Item {
    std::size_t layer_ordinal;
    std::uint32_t kv_head;
  };
  BlockPrefetcher(const TraceReader& reader, std::vector<Item> order, BlockRequest request,
                  std::size_t depth);
  ~BlockPrefetcher();  // stops and joins
  /// The next block of the order. Rethrows what the reading thread met.
  HeadBlock next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Reads one dataset of any HDF5 file as float (external scores). Throws UserError naming file and dataset.
struct FloatArray {
  std::vector<std::size_t> shape;
  std::vector<float> data;
};
FloatArray read_float_array(const std::string& file, const std::string& dataset);

}  // namespace kvsim
