// Writing a trace: streamed to a temporary file that gets its name, and its digest, only when it is complete.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "traces/h5/file.h"
#include "traces/h5/pending_file.h"
#include "traces/trace.h"

namespace kvsim {

/// The root attributes of a trace, see traces/FORMAT.md.
struct TraceHeader {
  std::string model, recorder, created, source, weights;
  std::uint32_t num_layers = 0, num_query_heads = 0, num_kv_heads = 0, head_dim = 0, value_dim = 0;
  std::uint64_t prompt_len = 0, decode_len = 0;
  RopeLayout rope_layout = RopeLayout::none;
  std::vector<float> inverse_frequency;  // empty without rotary embedding
  double softmax_scale = 1.0;
  double logit_softcap = 0.0;
  double attention_scaling = 1.0;
};

/// Hears how many bytes more were dealt with.
using ByteProgress = std::function<void(std::uint64_t)>;

/// Tensors are created through `root()` (h5::Group) and written block by block. Destroyed without `finish`,
/// it leaves nothing behind. Every function throws UserError when the file cannot be written.
class TraceWriter {
 public:
  TraceWriter(const std::string& target, const TraceHeader& header);

  h5::File& root() { return file_; }
  /// Creates a tensor of one of our element types at an absolute path or one below the root, without a
  /// leading slash.
  h5::Dataset create_tensor(const std::string& path, DType type, const h5::Shape& shape);
  /// Takes over further root attributes of another trace (not its digest).
  void add_root_attributes(const h5::File& from);
  void write_segments(const std::vector<Segment>& segments);
  /// Ids and, when not empty, texts of all tokens.
  void write_tokens(const std::vector<std::int32_t>& ids, const std::vector<std::string>& texts);

  /// Computes and stores the digest, opens the file as a reader would (so that no invalid trace is ever
  /// handed out), forces it to disk and renames it. Returns the digest.
  std::string finish(const ByteProgress& progress = {});

 private:
  h5::PendingFile pending_;
  h5::File file_;
};

/// The text that stands in `rope_layout`.
std::string_view name_of(RopeLayout layout);

}  // namespace kvsim
