// One KV head of a synthetic layer: where its attention looks, and the rows that make it look there.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/philox.h"
#include "kernels/view.h"
#include "traces/synth.h"

namespace kvsim::synth {

/// Spans of the prompt that hold what decode queries look for.
using Spans = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

/// What all heads of a trace share.
struct World {
  explicit World(const SynthOptions& options);

  SynthOptions options;
  std::uint64_t tokens = 0;
  std::uint32_t value_dim = 0;
  double log_tokens = 0.0;  // strengths are measured in it: e^logit competes with that many tokens
  std::vector<float> inverse_frequency;  // empty: no rotary embedding (odd or tiny heads)
  Spans needles;
};

/// Fills rows first, first + 1, ... of a stream with noise of mean 0 and standard deviation `amplitude`.
void fill_noise(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, float amplitude,
                MatrixView<float> out);

enum class Rotary : bool { off, on };

/// Rows of keys, values and queries of one (layer, KV head). Each row is a pure function of (seed, layer,
/// head, position).
class Head {
 public:
  Head(const World& world, std::uint32_t layer, std::uint32_t kv_head);

  /// Keys of positions first .. first + out.rows - 1; `first` must be a multiple of kRowGrid.
  void keys(std::uint64_t first, MatrixView<float> out) const;
  void values(std::uint64_t first, MatrixView<float> out) const;
  /// Queries of one query head of the group; likewise. Without rotation: as they are before the rotary
  /// embedding.
  void queries(std::uint32_t head_in_group, std::uint64_t first, MatrixView<float> out,
               Rotary rotary = Rotary::on) const;

  /// Rotation angles are stepped from row to row and set anew at multiples of this many rows.
  static constexpr std::uint64_t kRowGrid = 256;

 private:
  using Direction = std::vector<float>;
  /// How strongly one query head looks at what, as logits.
  struct Taste {
    float sinks, local, topics, needles;
  };

  std::uint32_t topic_of_tokens(std::uint64_t position) const;
  float salience(std::uint64_t position) const;
  void add_topics(std::uint64_t position, float strength, float* row) const;
  void rotate(std::uint64_t first, MatrixView<float> out) const;
  Direction direction(std::uint64_t purpose, std::size_t begin, std::size_t end, std::size_t size) const;
  std::pair<std::size_t, bool> needle_at(std::uint64_t position) const;

  const World& world_;
  std::uint64_t seed_;
  std::uint64_t id_;
  Direction sink_, local_;
  std::vector<Direction> topics_, needles_, topic_values_;
  std::vector<Taste> tastes_;
};

}  // namespace kvsim::synth
