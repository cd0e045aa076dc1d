// The header of a trace file: every attribute, shape, position and name in it, checked.
#pragma once

#include "traces/h5/file.h"
#include "traces/trace.h"

namespace kvsim {

/// Name of the group that holds layer `index`: three digits at least.
std::string layer_name(std::uint32_t index);

/// The element type as one of ours. Throws UserError when a tensor is stored otherwise.
DType tensor_type(const h5::Dataset& dataset);

/// Reads everything but the large tensors. Throws UserError (file, path inside it, what was found, what was
/// expected) for anything that traces/FORMAT.md forbids. No size is believed before the dataset's stored
/// bytes cover it.
TraceInfo read_header(const h5::File& file);

namespace header {  // the parts, one file each

/// A sequence of tokens: the main one or a branch.
struct Sequence {
  std::uint64_t first = 0;   // position of its first own token
  std::uint64_t prompt = 0;  // own prompt tokens
  std::uint64_t decode = 0;  // own decoded tokens
  std::uint64_t own() const { return prompt + decode; }
  std::uint64_t end() const { return first + own(); }
};

/// In an expected shape: any length.
inline constexpr std::uint64_t kAny = ~std::uint64_t{0};
/// Throws unless the dataset has this shape and its bytes lie in the file.
void expect_shape(const h5::Dataset& dataset, const h5::Shape& expected);
/// expect_shape, and an element type among float16, bfloat16 and float32.
void expect_tensor(const h5::Dataset& dataset, const h5::Shape& expected);
/// expect_tensor for `rows` vectors of one length, which is returned: 1 to 2^20.
std::uint32_t expect_rows(const h5::Dataset& dataset, std::uint64_t rows);
/// An integer attribute in [low, high].
std::int64_t bounded_attribute(const h5::Object& object, const char* name, std::int64_t low,
                               std::int64_t high);
/// A finite number; `fallback` when the attribute is missing; positive, or zero where that is allowed.
double finite_attribute(const h5::Object& object, const char* name, double fallback, bool zero_allowed);

std::vector<float> read_inverse_frequency(const h5::Group& owner, std::uint32_t head_dim);
void read_tokens(const h5::Group& owner, const Sequence& sequence, std::vector<std::int32_t>& ids,
                 std::vector<std::string>& texts);
std::vector<Segment> read_segments(const h5::Group& owner, const Sequence& sequence);

/// Index of the layer that a group of this name holds; throws for any other name.
std::uint32_t layer_index(const h5::Group& layers, const std::string& name, std::uint32_t num_layers);
/// One layer of a sequence. `defaults` brings scale, soft cap, window and rotary frequencies, which a layer
/// may override.
LayerInfo read_layer(const h5::Group& group, const LayerInfo& defaults, const TraceInfo& root,
                     const Sequence& sequence);

/// Statistics of a second pass that all layers hold, and how it was run.
void read_second_pass(const h5::File& file, TraceInfo& info);
std::vector<LookaheadInfo> read_lookaheads(const h5::File& file, const TraceInfo& info);
std::vector<BranchInfo> read_branches(const h5::File& file, const TraceInfo& info);

}  // namespace header
}  // namespace kvsim
