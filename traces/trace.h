// A trace in memory: what its header says, and the tensors of one KV head.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/view.h"

namespace kvsim {

enum class RopeLayout : std::uint8_t { none, half, interleaved };

/// One recorded layer, as the header of the file describes it.
struct LayerInfo {
  std::uint32_t index = 0;  // the model's own layer index
  double softmax_scale = 1.0;
  double logit_softcap = 0.0;
  double attention_scaling = 1.0;
  std::uint32_t sliding_window = 0;
  std::vector<float> inverse_frequency;    // [rotary_dim / 2], empty without rotary embedding
  std::vector<TokenIndex> query_position;  // [Nq] ascending; always ends with T .. T+S-1
  bool has_attention = false;
  bool has_output_proj = false;
  bool has_hidden = false;
  std::uint32_t hidden_size = 0;  // columns of output_proj, 0 without one
  std::uint32_t input_size = 0;   // columns of hidden, 0 without it
  bool has_retention = false;
  std::uint32_t sensitivity_samples = 0;  // R of sensitivity, 0 without it
  std::vector<float> residual_norm;       // [S] at the decode steps, each > 0, or empty
  bool has_query_stats = false;
  std::vector<std::string> attention_stats;  // names of the recorded per-key sums
  std::vector<std::string> second_pass;      // names of the statistics of a recorded second pass
  std::uint64_t bytes = 0;                   // of all its tensors

  /// Number of prompt queries that are recorded without a gap up to T-1.
  std::size_t prompt_queries(std::size_t prompt) const;
};

struct Segment {
  std::uint32_t begin = 0, end = 0;  // half-open token range
  std::string kind;
  std::int32_t turn = 0;
};

/// One recorded first pass of Lookahead Q-Cache.
struct LookaheadInfo {
  std::string name, method;
  std::uint32_t capacity = 0, window = 0, tokens = 0;
  bool stopped_at_eos = false;
  std::vector<std::int32_t> token_id;  // [tokens] the pseudo tokens that were fed, at positions T, T+1, ...
  std::uint64_t steps = 0;             // forward passes that it took
  std::uint64_t cache_bytes = 0;       // its own cache at its largest, over all layers; 0 = not recorded
};

/// How the second pass over the prompt was run.
struct SecondPassInfo {
  std::string method;                    // empty without one
  std::uint64_t tokens = 0, pieces = 0;  // fed in all, and forward passes that it took
};

struct BranchInfo {
  std::string name, parent;
  std::uint64_t fork_position = 0, prompt_len = 0, decode_len = 0;
};

/// The header of a trace: everything but the large tensors. Validated on open.
struct TraceInfo {
  std::string path, model, recorder, created, source, weights;
  std::string digest;  // as stored; empty when the file has none
  std::uint64_t digest_key =
      0;  // 64 bits that stand for the trace's content: from the digest, else from header, size and time
  std::uint32_t num_layers = 0, num_query_heads = 0, num_kv_heads = 0, head_dim = 0, value_dim = 0;
  std::uint64_t prompt_len = 0, decode_len = 0;
  DType dtype = DType::float32;
  RopeLayout rope_layout = RopeLayout::none;
  std::vector<LayerInfo> layers;        // recorded ones, ascending
  std::vector<std::string> token_text;  // [T+S] or empty
  std::vector<std::int32_t> token_id;   // [T+S] or empty
  std::vector<Segment> segments;
  std::vector<LookaheadInfo> lookaheads;
  std::vector<std::string> second_pass;  // names of the statistics that every recorded layer holds
  SecondPassInfo second_pass_run;
  std::vector<BranchInfo> branches;
  std::uint32_t final_hidden_size = 0;  // columns of final_hidden, 0 without it
  std::uint64_t file_bytes = 0;

  std::uint32_t group() const { return num_query_heads / num_kv_heads; }
  std::uint64_t tokens() const { return prompt_len + decode_len; }
};

/// All tensors of one (layer, KV head), converted to float. Query rows are query head major: row =
/// head_in_group * Nq + i.
struct HeadBlock {
  std::uint32_t layer_ordinal = 0;  // index into TraceInfo::layers
  std::uint32_t kv_head = 0;
  Matrix<float> key;                                     // [T+S, d]
  Matrix<float> value;                                   // [T+S, dv]
  Matrix<float> query;                                   // [group * Nq, d]
  std::map<std::string, Matrix<float>> attention_stats;  // name -> [group, T]
  std::map<std::string, Matrix<float>> second_pass;      // statistic -> [group, T]
  std::map<std::string, Matrix<float>> lookahead_query;  // pass -> [group * n, d], query head major
  Matrix<float> query_mean;                              // [group, d] or empty
  Matrix<float> query_covariance;                        // [group * d, d] or empty
  std::uint32_t query_stats_sinks = 0;
  Matrix<float> output_proj;  // [group * dv, hidden] rows of this head's group, or empty
  /// [R * dv, group * S] or empty: sampled gradients of the log-likelihood with respect to the attention
  /// output; row = sample * dv + component, column = head_in_group * S + step.
  Matrix<float> sensitivity;

  std::uint64_t bytes() const;
};

}  // namespace kvsim
