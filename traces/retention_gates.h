// Gates that tell from a token's hidden state how long a KV head should keep it (TRIM-KV), read from a file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/view.h"
#include "traces/trace_reader.h"

namespace kvsim {

/// One small network per layer (TRIM-KV, arXiv 2512.03324): a token with the attention block's input x gets
/// log beta[g] = log sigmoid(down . act(up . x + up_bias) + bias)[g] <= 0 in KV head g. The file is
/// safetensors or .npz, its arrays `layers.<l>.up.weight` [width, hidden], `layers.<l>.up.bias` [width],
/// `layers.<l>.down.weight` [Hkv, width] and `layers.<l>.bias` [Hkv]; its metadata may name the `activation`:
/// silu (default), gelu, gelu_tanh or relu. See traces/FORMAT.md, "Retention gates".
class RetentionGates {
 public:
  /// Throws UserError when the file cannot be read, holds no gate, or names an unknown activation.
  static RetentionGates open(const std::string& path);
  RetentionGates(RetentionGates&&) noexcept;
  RetentionGates& operator=(RetentionGates&&) noexcept;
  ~RetentionGates();

  /// Throws UserError, naming array, shape found and shape expected, unless layer `layer` of the model has a
  /// gate for `hidden` numbers per token and `kv_heads` heads.
  void check(std::uint32_t layer, std::uint64_t hidden, std::uint32_t kv_heads) const;
  /// log beta of every token in every KV head of the model's layer `layer`, [kv_heads, rows of hidden],
  /// summed in double precision. Throws as `check` does.
  Matrix<float> log_retention(std::uint32_t layer, MatrixView<const float> hidden,
                              std::uint32_t kv_heads) const;

 private:
  struct Impl;
  explicit RetentionGates(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// log beta [Hkv, T+S] of one layer, from the trace's /layers/<l>/hidden. Throws UserError without it.
Matrix<float> compute_retention(const RetentionGates& gates, const TraceReader& reader,
                                std::size_t layer_ordinal);

}  // namespace kvsim
