// Synthetic traces: seeded, of any geometry and length, with the shape that real attention has.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "kernels/dtype.h"

namespace kvsim {

struct SynthOptions {
  std::uint32_t layers = 4;
  std::uint32_t query_heads = 4;
  std::uint32_t kv_heads = 2;
  std::uint32_t head_dim = 64;
  std::uint32_t value_dim = 0;  // 0 = head_dim
  std::uint64_t prompt = 1024;
  std::uint64_t decode = 64;
  DType dtype = DType::bfloat16;
  std::uint64_t seed = 1;
  std::optional<std::uint64_t> query_window;  // prompt queries to record; nothing = all of them
  bool stats = false;                         // attention_stats and query_stats (quadratic in the prompt)
  bool output_proj = false;
  std::uint32_t sliding_window = 0;  // of every second layer, from layer 0 on; 0 = none
  std::uint32_t needles = 2;
  std::uint32_t needle_length = 8;
  int threads = 0;  // 0 = as many as OpenMP takes; never changes a byte
};

/// Bytes of the tensors that these options make.
std::uint64_t synth_bytes(const SynthOptions& options);
/// The sum of all that `progress` will hear.
std::uint64_t synth_work(const SynthOptions& options);

/// Writes the trace. Equal options give equal bytes, whatever the machine and the number of threads; memory
/// does not grow with layers and heads, and with the length only for `stats`. Attention has sinks (the first
/// four tokens), locality, heavy hitters whose topic drifts with the position, needles that decode queries
/// look for (segments of kind `evidence`), and heads that weigh these differently. Throws UserError for
/// impossible options and when the file cannot be written (nothing is left behind then).
void synthesise(const SynthOptions& options, const std::string& path,
                const std::function<void(std::uint64_t)>& progress = {});

}  // namespace kvsim
