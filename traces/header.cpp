// The root of a trace: format, geometry, tokens and segments.
#include "traces/header.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "kernels/error.h"

namespace kvsim {
namespace header {
namespace {

constexpr std::int64_t kVersion = 1;
/// Bounds that no real model comes near; they keep every product of two of them inside 64 bits.
constexpr std::int64_t kMaxCount = 1 << 20;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 31;

std::string optional_text(const h5::Object& object, const char* name) {
  return object.has_attribute(name) ? object.string_attribute(name) : std::string();
}

RopeLayout read_rope_layout(const h5::Object& root) {
  const std::string text = root.string_attribute("rope_layout");
  if (text == "none") return RopeLayout::none;
  if (text == "half") return RopeLayout::half;
  if (text == "interleaved") return RopeLayout::interleaved;
  throw UserError("{}@rope_layout: found '{}', expected 'half', 'interleaved' or 'none'", root.where(), text);
}

void check_format(const h5::File& file) {
  if (!file.has_attribute("format")) {
    throw UserError("{}: is no trace: the root attribute 'format' is missing, expected 'kvsim-trace'",
                    file.file());
  }
  const std::string format = file.string_attribute("format");
  if (format != "kvsim-trace") {
    throw UserError("{}: is no trace: found the format '{}', expected 'kvsim-trace'", file.file(), format);
  }
  const std::int64_t version = file.int_attribute("version");
  if (version > kVersion) {
    throw UserError("{}: found version {} of the format, expected at most {}; a newer kvsim is needed",
                    file.file(), version, kVersion);
  }
  if (version < 1) throw UserError("{}@version: found {}, expected {}", file.where(), version, kVersion);
}

std::uint32_t count_attribute(const h5::Object& object, const char* name) {
  return static_cast<std::uint32_t>(bounded_attribute(object, name, 1, kMaxCount));
}

void read_geometry(const h5::File& file, TraceInfo& info) {
  info.num_layers = count_attribute(file, "num_layers");
  info.num_query_heads = count_attribute(file, "num_query_heads");
  info.num_kv_heads = count_attribute(file, "num_kv_heads");
  info.head_dim = count_attribute(file, "head_dim");
  info.value_dim = count_attribute(file, "value_dim");
  if (info.num_query_heads % info.num_kv_heads != 0) {
    throw UserError("{}@num_query_heads: found {}, expected a multiple of num_kv_heads = {}", file.where(),
                    info.num_query_heads, info.num_kv_heads);
  }
  info.prompt_len = static_cast<std::uint64_t>(bounded_attribute(file, "prompt_len", 1, kMaxTokens));
  info.decode_len = static_cast<std::uint64_t>(bounded_attribute(file, "decode_len", 1, kMaxTokens));
  if (info.tokens() >= static_cast<std::uint64_t>(kMaxTokens)) {
    throw UserError("{}: found {} tokens, expected fewer than {}", file.file(), info.tokens(), kMaxTokens);
  }
}

std::uint64_t fnv1a(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

/// Without a digest, what can be known without reading the tensors.
std::uint64_t digest_key(const TraceInfo& info) {
  if (!info.digest.empty()) return fnv1a(info.digest);
  std::error_code error;
  const auto time = std::filesystem::last_write_time(info.path, error).time_since_epoch();
  return fnv1a(fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}|{}", info.model, info.num_layers, info.num_query_heads,
                           info.num_kv_heads, info.head_dim, info.value_dim, info.prompt_len, info.decode_len,
                           info.file_bytes,
                           std::chrono::duration_cast<std::chrono::nanoseconds>(time).count()));
}

void read_layers(const h5::File& file, TraceInfo& info) {
  const h5::Group layers = file.group("layers");
  const Sequence main{0, info.prompt_len, info.decode_len};
  LayerInfo defaults;
  static_cast<void>(
      file.float_attribute("softmax_scale"));  // must be there, the others have a natural default
  defaults.softmax_scale = finite_attribute(file, "softmax_scale", 1.0, false);
  defaults.logit_softcap = finite_attribute(file, "logit_softcap", 0.0, true);
  defaults.attention_scaling = finite_attribute(file, "attention_scaling", 1.0, false);
  defaults.inverse_frequency = read_inverse_frequency(file, info.head_dim);
  for (const std::string& name : layers.children()) {
    defaults.index = layer_index(layers, name, info.num_layers);
    info.layers.push_back(read_layer(layers.group(name), defaults, info, main));
  }
  if (info.layers.empty()) throw UserError("{}: found no layer, expected at least one", layers.where());
  std::sort(info.layers.begin(), info.layers.end(),
            [](const LayerInfo& a, const LayerInfo& b) { return a.index < b.index; });
  const LayerInfo* sampled = nullptr;
  for (const LayerInfo& layer : info.layers) {
    if (layer.sensitivity_samples == 0) continue;
    if (sampled != nullptr && sampled->sensitivity_samples != layer.sensitivity_samples)
      throw UserError("{}/{}/sensitivity: found {} samples, expected {} as in layer {}", layers.where(),
                      layer_name(layer.index), layer.sensitivity_samples, sampled->sensitivity_samples,
                      sampled->index);
    sampled = &layer;
  }
}

std::uint32_t final_hidden_size(const h5::File& file, const TraceInfo& info) {
  return file.has("final_hidden") ? expect_rows(file.dataset("final_hidden"), info.tokens()) : 0;
}

}  // namespace

void expect_shape(const h5::Dataset& dataset, const h5::Shape& expected) {
  const h5::Shape& found = dataset.shape();
  bool same = found.size() == expected.size();
  h5::Shape wanted = expected;
  for (std::size_t i = 0; same && i < found.size(); ++i) {
    if (wanted[i] == kAny) wanted[i] = found[i];
    same = found[i] == wanted[i];
  }
  if (!same) {
    std::string text = "[";
    for (std::size_t i = 0; i < expected.size(); ++i) {
      text += (i == 0 ? "" : ", ") + (expected[i] == kAny ? std::string("any") : std::to_string(expected[i]));
    }
    throw UserError("{}: found the shape {}, expected {}]", dataset.where(), h5::describe_shape(found), text);
  }
  dataset.check_backed();
}

void expect_tensor(const h5::Dataset& dataset, const h5::Shape& expected) {
  static_cast<void>(tensor_type(dataset));
  expect_shape(dataset, expected);
}

std::uint32_t expect_rows(const h5::Dataset& dataset, std::uint64_t rows) {
  expect_tensor(dataset, {rows, kAny});
  const std::uint64_t columns = dataset.shape()[1];
  if (columns == 0 || columns > static_cast<std::uint64_t>(kMaxCount)) {
    throw UserError("{}: found rows of {} numbers, expected 1 to {}", dataset.where(), columns, kMaxCount);
  }
  return static_cast<std::uint32_t>(columns);
}

std::int64_t bounded_attribute(const h5::Object& object, const char* name, std::int64_t low,
                               std::int64_t high) {
  const std::int64_t value = object.int_attribute(name);
  if (value < low || value > high) {
    throw UserError("{}@{}: found {}, expected {} to {}", object.where(), name, value, low, high);
  }
  return value;
}

double finite_attribute(const h5::Object& object, const char* name, double fallback, bool zero_allowed) {
  if (!object.has_attribute(name)) return fallback;
  const double value = object.float_attribute(name);
  if (!std::isfinite(value) || value < 0.0 || (value == 0.0 && !zero_allowed)) {
    throw UserError("{}@{}: found {}, expected a finite number {} 0", object.where(), name, value,
                    zero_allowed ? ">=" : ">");
  }
  return value;
}

std::vector<float> read_inverse_frequency(const h5::Group& owner, std::uint32_t head_dim) {
  if (!owner.has("rope/inv_freq")) return {};
  const h5::Dataset dataset = owner.dataset("rope/inv_freq");
  expect_shape(dataset, {kAny});
  if (dataset.elements() == 0 || 2 * dataset.elements() > head_dim) {
    throw UserError("{}: found {} frequencies, expected 1 to {} (half of head_dim)", dataset.where(),
                    dataset.elements(), head_dim / 2);
  }
  std::vector<float> values = dataset.read<float>();
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]) || values[i] < 0.0f) {
      throw UserError("{}: found {} at {}, expected a finite frequency >= 0", dataset.where(), values[i], i);
    }
  }
  return values;
}

void read_tokens(const h5::Group& owner, const Sequence& sequence, std::vector<std::int32_t>& ids,
                 std::vector<std::string>& texts) {
  if (owner.has("tokens/id")) {
    const h5::Dataset dataset = owner.dataset("tokens/id");
    expect_shape(dataset, {sequence.own()});
    ids = dataset.read<std::int32_t>();
    const auto bad = std::find_if(ids.begin(), ids.end(), [](std::int32_t id) { return id < 0; });
    if (bad != ids.end()) {
      throw UserError("{}: found {} at token {}, expected an id >= 0", dataset.where(), *bad,
                      bad - ids.begin());
    }
  }
  if (owner.has("tokens/text")) {
    const h5::Dataset dataset = owner.dataset("tokens/text");
    expect_shape(dataset, {sequence.own()});
    texts = dataset.read_strings();
  }
}

std::vector<Segment> read_segments(const h5::Group& owner, const Sequence& sequence) {
  if (!owner.has("segments")) return {};
  const h5::Group group = owner.group("segments");
  const h5::Dataset first = group.dataset("begin"), last = group.dataset("end");
  expect_shape(first, {kAny});
  const std::uint64_t count = first.elements();
  expect_shape(last, first.shape());
  const h5::Dataset kind = group.dataset("kind");
  expect_shape(kind, first.shape());
  const auto begin = first.read<std::int64_t>(), end = last.read<std::int64_t>();
  const auto kinds = kind.read_strings();
  std::vector<std::int32_t> turns(count, 0);
  if (group.has("turn")) {
    expect_shape(group.dataset("turn"), first.shape());
    turns = group.read_column<std::int32_t>("turn");
  }
  if (group.has("embedding")) expect_tensor(group.dataset("embedding"), {count, kAny});
  std::vector<Segment> segments(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto low = static_cast<std::int64_t>(sequence.first),
               high = static_cast<std::int64_t>(sequence.end());
    if (begin[i] < low || begin[i] > end[i] || end[i] > high) {
      throw UserError("{}: segment {} is [{}, {}), expected a range inside [{}, {})", group.where(), i,
                      begin[i], end[i], low, high);
    }
    if (turns[i] < 0) throw UserError("{}/turn: found {} at {}, expected >= 0", group.where(), turns[i], i);
    segments[i] = {static_cast<std::uint32_t>(begin[i]), static_cast<std::uint32_t>(end[i]), kinds[i],
                   turns[i]};
  }
  return segments;
}

}  // namespace header

std::string layer_name(std::uint32_t index) { return fmt::format("{:03d}", index); }

DType tensor_type(const h5::Dataset& dataset) {
  switch (dataset.element()) {
    case h5::Element::float16:
      return DType::float16;
    case h5::Element::bfloat16:
      return DType::bfloat16;
    case h5::Element::float32:
      return DType::float32;
    default:
      throw UserError("{}: found {}, expected float16, bfloat16 or float32 (little-endian)", dataset.where(),
                      dataset.describe_type());
  }
}

TraceInfo read_header(const h5::File& file) {
  header::check_format(file);
  TraceInfo info;
  info.path = file.file();
  std::error_code error;
  info.file_bytes = std::filesystem::file_size(info.path, error);
  info.model = header::optional_text(file, "model");
  info.recorder = header::optional_text(file, "recorder");
  info.created = header::optional_text(file, "created");
  info.source = header::optional_text(file, "source");
  info.weights = header::optional_text(file, "weights");
  info.digest = header::optional_text(file, "digest");
  header::read_geometry(file, info);
  info.rope_layout = header::read_rope_layout(file);
  const header::Sequence main{0, info.prompt_len, info.decode_len};
  header::read_tokens(file, main, info.token_id, info.token_text);
  info.segments = header::read_segments(file, main);
  header::read_layers(file, info);
  info.dtype = tensor_type(file.dataset("layers/" + layer_name(info.layers.front().index) + "/key"));
  info.final_hidden_size = header::final_hidden_size(file, info);
  info.lookaheads = header::read_lookaheads(file, info);
  header::read_second_pass(file, info);
  info.branches = header::read_branches(file, info);
  info.digest_key = header::digest_key(info);
  return info;
}

}  // namespace kvsim
