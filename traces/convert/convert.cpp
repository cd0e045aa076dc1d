// Names, metadata and geometry of converted traces.
#include "traces/convert/convert.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include "kernels/error.h"
#include "traces/convert/array_source.h"
#include "traces/header.h"
#include "traces/tensor.h"

namespace kvsim {
namespace {

using convert::ArrayInfo;
using convert::ArraySource;

constexpr std::size_t kPiece = std::size_t{1} << 22;

constexpr std::string_view kLayerTensors[] = {"key",
                                              "value",
                                              "query",
                                              "attention",
                                              "output_proj",
                                              "hidden",
                                              "retention",
                                              "query_stats.mean",
                                              "query_stats.covariance",
                                              "rope.inv_freq",
                                              "sensitivity",
                                              "residual_norm"};
constexpr std::string_view kRootIntegers[] = {"tokens.id", "segments.begin", "segments.end", "segments.turn"};
constexpr std::string_view kRootTensors[] = {"rope.inv_freq", "final_hidden"};
constexpr std::string_view kRootNumbers[] = {"prompt_len", "num_layers", "softmax_scale", "logit_softcap",
                                             "attention_scaling"};
constexpr std::string_view kRootTexts[] = {"model",    "source",      "weights", "created",
                                           "recorder", "rope_layout", "format"};
constexpr std::string_view kLayerNumbers[] = {"sliding_window", "softmax_scale", "logit_softcap",
                                              "attention_scaling", "query_stats.sinks"};

template <std::size_t N>
bool is_one_of(std::string_view word, const std::string_view (&words)[N]) {
  return std::find(std::begin(words), std::end(words), word) != std::end(words);
}

/// "layers.<l>.<rest>".
struct LayerName {
  std::uint32_t layer = 0;
  std::string rest;
};

std::optional<LayerName> layer_part(const std::string& name) {
  constexpr std::string_view kPrefix = "layers.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  LayerName result;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, result.layer);
  if (error != std::errc() || stop == end || *stop != '.') return std::nullopt;
  result.rest.assign(stop + 1, end);
  return result;
}

std::string with_slashes(std::string name) {
  std::replace(name.begin(), name.end(), '.', '/');
  return name;
}

/// All arrays and metadata of all sources, by name.
class Input {
 public:
  explicit Input(const ConvertOptions& options) {
    if (options.sources.empty()) throw UserError("nothing to convert");
    for (const std::string& path : options.sources) {
      sources_.push_back(convert::open_source(path));
      for (const auto& [name, info] : sources_.back()->arrays()) {
        if (!owner_.emplace(name, sources_.back().get()).second)
          throw UserError("{}: {} stands in two of the files", path, name);
      }
      for (const auto& [key, text] : sources_.back()->metadata()) metadata_[key] = text;
    }
    for (const auto& [key, text] : options.metadata) metadata_[key] = text;
    for (const auto& [key, text] : metadata_) check_key(key);
  }

  const std::map<std::string, const ArraySource*>& arrays() const { return owner_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool has(const std::string& name) const { return owner_.count(name) > 0; }
  std::string where(const std::string& name) const { return owner_.at(name)->path() + ": " + name; }

  const ArrayInfo& array(const std::string& name) const {
    const auto found = owner_.find(name);
    if (found == owner_.end())
      throw UserError("{}: the array '{}' is missing", sources_.front()->path(), name);
    return found->second->arrays().at(name);
  }
  /// Throws unless the array has `rank` dimensions.
  const h5::Shape& shape(const std::string& name, std::size_t rank) const {
    const h5::Shape& found = array(name).shape;
    if (found.size() != rank)
      throw UserError("{}: found the shape {}, expected {} dimensions", where(name),
                      h5::describe_shape(found), rank);
    return found;
  }
  convert::ByteReader open(const std::string& name) const { return owner_.at(name)->open(name); }

  std::string text(const std::string& key, const std::string& fallback) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? fallback : found->second;
  }
  double number(const std::string& key, double fallback) const {
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) return fallback;
    double value = 0.0;
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) {
      throw UserError("metadata {}: found '{}', expected a number", key, text);
    }
    return value;
  }
  std::uint64_t count(const std::string& key, double fallback) const {
    const double value = number(key, fallback);
    if (value < 0.0 || value > 2147483647.0 || value != std::floor(value)) {
      throw UserError("metadata {}: found {}, expected a whole number >= 0", key, value);
    }
    return static_cast<std::uint64_t>(value);
  }

 private:
  void check_key(const std::string& key) const {
    const auto part = layer_part(key);
    const bool known =
        part ? is_one_of(part->rest, kLayerNumbers)
             : is_one_of(key, kRootNumbers) || is_one_of(key, kRootTexts) || key == "segments.kind";
    if (!known) {
      throw UserError("metadata '{}' is unknown; there are {}, {}, segments.kind, and layers.<l>. with {}",
                      key, fmt::join(kRootNumbers, ", "), fmt::join(kRootTexts, ", "),
                      fmt::join(kLayerNumbers, ", "));
    }
  }

  std::vector<std::unique_ptr<ArraySource>> sources_;
  std::map<std::string, const ArraySource*> owner_;
  std::map<std::string, std::string> metadata_;
};

std::vector<std::uint32_t> layers_of(const Input& input) {
  std::vector<std::uint32_t> layers;
  for (const auto& [name, source] : input.arrays()) {
    const auto part = layer_part(name);
    if (part && part->rest == "key") layers.push_back(part->layer);
  }
  std::sort(layers.begin(), layers.end());
  if (layers.empty()) throw UserError("no array 'layers.<l>.key' [KV heads, tokens, head size] is there");
  return layers;
}

std::string layer_prefix(std::uint32_t layer) { return fmt::format("layers.{}.", layer); }

/// Geometry from the shapes of the first layer; the reader's own checks hold the others to it.
TraceHeader make_header(const Input& input, const std::vector<std::uint32_t>& layers) {
  const std::string first = layer_prefix(layers.front());
  const h5::Shape &key = input.shape(first + "key", 3), &value = input.shape(first + "value", 3),
                  &query = input.shape(first + "query", 3);
  if (!input.metadata().count("prompt_len"))
    throw UserError("the metadata 'prompt_len' is missing: say how many of the {} tokens are the prompt",
                    key[1]);
  TraceHeader header;
  header.prompt_len = input.count("prompt_len", 0);
  if (header.prompt_len < 1 || header.prompt_len >= key[1]) {
    throw UserError("metadata prompt_len: found {}, expected 1 to {}: {} holds {} tokens", header.prompt_len,
                    key[1] - 1, input.where(first + "key"), key[1]);
  }
  header.decode_len = key[1] - header.prompt_len;
  for (const std::uint64_t n : {key[0], key[2], value[2], query[0]}) {
    if (n < 1 || n > (1u << 20))
      throw UserError("{}: found the shape {}, expected between 1 and 2^20 heads and channels",
                      input.where(first + "key"), h5::describe_shape(key));
  }
  header.num_kv_heads = static_cast<std::uint32_t>(key[0]);
  header.num_query_heads = static_cast<std::uint32_t>(query[0]);
  header.head_dim = static_cast<std::uint32_t>(key[2]);
  header.value_dim = static_cast<std::uint32_t>(value[2]);
  header.num_layers = static_cast<std::uint32_t>(input.count("num_layers", layers.back() + 1.0));
  header.softmax_scale = input.number("softmax_scale", 1.0 / std::sqrt(static_cast<double>(header.head_dim)));
  header.logit_softcap = input.number("logit_softcap", 0.0);
  header.attention_scaling = input.number("attention_scaling", 1.0);
  header.model = input.text("model", "unknown");
  header.recorder = input.text("recorder", "kvsim trace convert");
  header.created = input.text("created", "");
  header.source = input.text("source", "");
  header.weights = input.text("weights", "");
  const bool rotary = std::any_of(input.arrays().begin(), input.arrays().end(),
                                  [](const auto& a) { return a.first.ends_with("rope.inv_freq"); });
  const std::string layout = input.text("rope_layout", rotary ? "half" : "none");
  for (const RopeLayout one : {RopeLayout::none, RopeLayout::half, RopeLayout::interleaved}) {
    if (layout == name_of(one)) header.rope_layout = one;
  }
  if (layout != name_of(header.rope_layout))
    throw UserError("metadata rope_layout: found '{}', expected half, interleaved or none", layout);
  return header;
}

void copy_tensor(const Input& input, const std::string& name, const std::string& path, TraceWriter& writer,
                 const ByteProgress& progress) {
  const ArrayInfo& info = input.array(name);
  if (info.element != h5::Element::float16 && info.element != h5::Element::bfloat16 &&
      info.element != h5::Element::float32) {
    throw UserError(
        "{}: found elements of type {}, expected float16, bfloat16 or float32; nothing is rounded on the way "
        "in",
        input.where(name), info.stored_as);
  }
  h5::Dataset dataset = writer.root().create_dataset(path, info.element, info.shape);
  const convert::ByteReader read = input.open(name);
  dataset.fill_raw(kPiece, [&](std::span<std::byte> piece) {
    read(piece);
    if (progress) progress(piece.size());
  });
}

template <typename T>
std::vector<std::int32_t> narrow_integers(const Input& input, const std::string& name, std::uint64_t count) {
  std::vector<T> values(count);
  input.open(name)(std::as_writable_bytes(std::span(values)));
  std::vector<std::int32_t> result(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    if (std::cmp_less(values[i], 0) ||
        std::cmp_greater(values[i], std::numeric_limits<std::int32_t>::max())) {
      throw UserError("{}: found {} at {}, expected 0 to 2^31 - 1", input.where(name), values[i], i);
    }
    result[i] = static_cast<std::int32_t>(values[i]);
  }
  return result;
}

std::vector<std::int32_t> read_integers(const Input& input, const std::string& name) {
  const std::uint64_t count = input.shape(name, 1)[0];
  switch (input.array(name).element) {
    case h5::Element::int32:
      return narrow_integers<std::int32_t>(input, name, count);
    case h5::Element::int64:
      return narrow_integers<std::int64_t>(input, name, count);
    case h5::Element::uint32:
      return narrow_integers<std::uint32_t>(input, name, count);
    case h5::Element::uint64:
      return narrow_integers<std::uint64_t>(input, name, count);
    default:
      throw UserError("{}: found elements of type {}, expected int32 or int64", input.where(name),
                      input.array(name).stored_as);
  }
}

/// Segments come as integer arrays and one text of kinds, separated by commas.
void write_segments(const Input& input, TraceWriter& writer) {
  if (!input.has("segments.begin")) return;
  const auto begin = read_integers(input, "segments.begin"), end = read_integers(input, "segments.end");
  const auto turn = input.has("segments.turn") ? read_integers(input, "segments.turn")
                                               : std::vector<std::int32_t>(begin.size(), 0);
  std::vector<std::string> kind;
  const std::string kinds = input.text("segments.kind", "");
  for (std::size_t at = 0; at < kinds.size();) {
    const std::size_t comma = std::min(kinds.find(',', at), kinds.size());
    kind.push_back(kinds.substr(at, comma - at));
    at = comma + 1;
  }
  if (end.size() != begin.size() || turn.size() != begin.size() || kind.size() != begin.size()) {
    throw UserError(
        "segments: found {} begins, {} ends, {} turns and {} kinds (metadata segments.kind), expected as "
        "many of each",
        begin.size(), end.size(), turn.size(), kind.size());
  }
  std::vector<Segment> segments;
  for (std::size_t i = 0; i < begin.size(); ++i) {
    segments.push_back(
        {static_cast<std::uint32_t>(begin[i]), static_cast<std::uint32_t>(end[i]), kind[i], turn[i]});
  }
  writer.write_segments(segments);
}

void write_layer(const Input& input, std::uint32_t layer, const TraceHeader& header, TraceWriter& writer) {
  const std::string prefix = layer_prefix(layer), path = "layers/" + layer_name(layer);
  if (!input.has(prefix + "query_position")) {  // the last of all positions
    const std::uint64_t queries = input.shape(prefix + "query", 3)[1],
                        tokens = header.prompt_len + header.decode_len;
    if (queries > tokens)
      throw UserError("{}: found {} queries, expected at most {}", input.where(prefix + "query"), queries,
                      tokens);
    std::vector<std::int32_t> position(queries);
    for (std::uint64_t i = 0; i < queries; ++i) position[i] = static_cast<std::int32_t>(tokens - queries + i);
    writer.root().write_column(path + "/query_position", position);
  }
  h5::Group group = writer.root().group(path);
  group.set_attribute("sliding_window", input.count(prefix + "sliding_window", 0));
  for (const char* name : {"softmax_scale", "logit_softcap", "attention_scaling"}) {
    if (input.metadata().count(prefix + name) > 0)
      group.set_attribute(name, input.number(prefix + name, 0.0));
  }
  if (input.metadata().count(prefix + "query_stats.sinks") > 0) {
    h5::Group stats = group.group("query_stats");
    stats.set_attribute("sinks", input.count(prefix + "query_stats.sinks", 0));
  }
}

/// Takes one array over under the name that stands for it.
void write_array(const Input& input, const std::string& name, TraceWriter& writer,
                 const ByteProgress& progress) {
  if (const auto part = layer_part(name)) {
    const std::string path = "layers/" + layer_name(part->layer) + "/" + with_slashes(part->rest);
    if (part->rest == "query_position") {
      writer.root().write_column(path, read_integers(input, name));
      return;
    }
    if (is_one_of(part->rest, kLayerTensors) || part->rest.starts_with("attention_stats.") ||
        part->rest.starts_with("second_pass.")) {
      return copy_tensor(input, name, path, writer, progress);
    }
  } else if (is_one_of(name, kRootTensors)) {
    return copy_tensor(input, name, with_slashes(name), writer, progress);
  } else if (is_one_of(name, kRootIntegers)) {
    if (name == "tokens.id") writer.write_tokens(read_integers(input, name), {});
    return;  // segments are written together
  }
  throw UserError(
      "{}: is no name of a trace's array; there are layers.<l>. with {}, query_position, "
      "attention_stats.<name> and second_pass.<name>; {}; {}",
      input.where(name), fmt::join(kLayerTensors, ", "), fmt::join(kRootTensors, ", "),
      fmt::join(kRootIntegers, ", "));
}

}  // namespace

void convert_to_trace(const ConvertOptions& options, const std::string& target,
                      const ByteProgress& progress) {
  const Input input(options);
  const std::vector<std::uint32_t> layers = layers_of(input);
  const TraceHeader header = make_header(input, layers);
  TraceWriter writer(target, header);
  for (const auto& [name, source] : input.arrays()) write_array(input, name, writer, progress);
  for (const std::uint32_t layer : layers) write_layer(input, layer, header, writer);
  write_segments(input, writer);
  writer.finish(progress);
}

}  // namespace kvsim
