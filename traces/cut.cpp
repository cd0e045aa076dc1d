// Cutting a trace by layers, heads and steps.
#include "traces/cut.h"

#include <algorithm>
#include <optional>
#include <string_view>

#include "kernels/error.h"
#include "traces/copy.h"
#include "traces/header.h"
#include "traces/retention_gates.h"

namespace kvsim {
namespace {

/// What stays, as selections of the axes that a trace's datasets have.
struct Selection {
  std::vector<std::uint32_t> layers;
  Axis kv_heads, query_heads, projection_rows;
  Axis tokens, steps;
  std::uint64_t tokens_left = 0;
  bool cuts_steps = false;
  std::vector<std::uint32_t> heads;  // KV heads
  bool own_retention = false;        // computed anew, not copied

  bool has_layer(std::string_view name) const {
    return std::any_of(layers.begin(), layers.end(), [&](std::uint32_t l) { return layer_name(l) == name; });
  }
};

void check_members(const char* what, const std::vector<std::uint32_t>& asked,
                   const std::vector<std::uint32_t>& present) {
  if (asked.empty()) throw UserError("no {} are left to keep", what);
  for (std::size_t i = 0; i < asked.size(); ++i) {
    if (std::find(present.begin(), present.end(), asked[i]) == present.end()) {
      throw UserError("{}: found {}, expected among those of the trace: {}", what, asked[i],
                      fmt::join(present, ", "));
    }
    if (i > 0 && asked[i] <= asked[i - 1])
      throw UserError("{}: found {} after {}, expected ascending", what, asked[i], asked[i - 1]);
  }
}

Selection select(const TraceInfo& info, const CutOptions& options, TraceHeader& header) {
  std::vector<std::uint32_t> layers, heads;
  for (const LayerInfo& layer : info.layers) layers.push_back(layer.index);
  for (std::uint32_t h = 0; h < info.num_kv_heads; ++h) heads.push_back(h);
  Selection selection;
  selection.layers = options.layers.value_or(layers);
  check_members("layers", selection.layers, layers);
  const std::vector<std::uint32_t> kept = options.heads.value_or(heads);
  check_members("KV heads", kept, heads);
  const std::uint64_t steps = options.steps.value_or(info.decode_len);
  if (steps < 1 || steps > info.decode_len) {
    throw UserError("steps: found {}, expected 1 to {}, the decode steps of {}", steps, info.decode_len,
                    info.path);
  }
  selection.heads = kept;
  selection.own_retention = !options.retention_gates.empty();
  selection.kv_heads = Axis::of(kept);
  selection.query_heads = Axis::of(kept, info.group());
  selection.projection_rows = Axis::of(kept, std::uint64_t{info.group()} * info.value_dim);
  selection.tokens_left = info.prompt_len + steps;
  selection.tokens = Axis::first(selection.tokens_left);
  selection.steps = Axis::first(steps);
  selection.cuts_steps = steps != info.decode_len;
  header.num_kv_heads = static_cast<std::uint32_t>(kept.size());
  header.num_query_heads = header.num_kv_heads * info.group();
  header.decode_len = steps;
  return selection;
}

/// Axes of a dataset of a layer, by its name below the layer's group; nothing for names that the format does
/// not know. A branch's layers keep all of their tokens.
std::optional<std::vector<Axis>> layer_axes(std::string_view name, const Selection& s, std::uint64_t queries,
                                            bool branch) {
  const Axis tokens = branch ? Axis::all() : s.tokens, steps = branch ? Axis::all() : s.steps;
  const Axis query = branch ? Axis::all() : Axis::first(queries);
  if (name == "key" || name == "value") return {{s.kv_heads, tokens}};
  if (name == "retention") return {{s.kv_heads, tokens}};
  if (name == "query") return {{s.query_heads, query}};
  if (name == "query_position") return {{query}};
  if (name == "attention") return {{s.query_heads, query, tokens}};
  if (name == "output_proj") return {{s.projection_rows}};
  if (name == "hidden" || name == "residual_norm") return {{tokens}};
  if (name == "query_stats/mean" || name == "query_stats/covariance") return {{s.query_heads}};
  if (name.starts_with("attention_stats/") || name.starts_with("second_pass/")) return {{s.query_heads}};
  if (name == "sensitivity") return {{Axis::all(), s.query_heads, steps}};
  if (name == "rope/inv_freq") return {{Axis::all()}};
  return std::nullopt;
}

/// Takes datasets over, one by one.
class Cutter {
 public:
  Cutter(const h5::File& source, const TraceInfo& info, const Selection& selection, TraceWriter& writer,
         const ByteProgress& progress)
      : source_(source), info_(info), selection_(selection), writer_(writer), progress_(progress) {}

  void take(const std::string& path) {
    const std::string_view name = std::string_view(path).substr(1);
    if (name.starts_with("layers/")) return take_layer(path, "", false);
    if (name.starts_with("segments/")) return;  // rewritten as a whole
    if (name.starts_with("tokens/") || name == "final_hidden") return copy(path, {selection_.tokens});
    if (name == "rope/inv_freq" || name == "second_pass/token") return copy(path, {});
    if (name.starts_with("lookahead/")) return take_below(path, false);
    if (name.starts_with("branches/") && !selection_.cuts_steps) return take_below(path, true);
    left_out_.push_back(path);
  }

  void copy_segments() {
    if (!source_.has("segments")) return;
    const auto end = static_cast<std::uint32_t>(selection_.tokens_left);
    std::vector<std::uint32_t> rows;
    std::vector<Segment> kept;
    for (std::uint32_t i = 0; i < info_.segments.size(); ++i) {
      Segment segment = info_.segments[i];
      if (segment.begin >= end) continue;
      segment.end = std::min(segment.end, end);
      rows.push_back(i);
      kept.push_back(segment);
    }
    writer_.write_segments(kept);
    if (source_.has("segments/embedding") && !rows.empty()) copy("/segments/embedding", {Axis::of(rows)});
  }

  void copy_group_attributes(const h5::Group& from, const std::string& path) {
    for (const std::string& name : from.children()) {
      if (!from.has_group(name)) continue;
      const std::string below = path.empty() ? name : path + "/" + name;
      if (writer_.root().has_group(below)) writer_.root().group(below).add_attributes(from.group(name));
      copy_group_attributes(from.group(name), below);
    }
  }

  std::vector<std::string> left_out_;

 private:
  void copy(const std::string& path, const std::vector<Axis>& axes) {
    copy_dataset(source_.dataset(path), writer_.root(), path.substr(1), axes, progress_);
  }

  /// `path` = <prefix>/layers/<l>/<name>.
  void take_layer(const std::string& path, const std::string& prefix, bool branch) {
    const std::size_t begin = prefix.size() + std::string_view("/layers/").size(),
                      slash = path.find('/', begin);
    const std::string layer = path.substr(begin, slash - begin), name = path.substr(slash + 1);
    if (!selection_.has_layer(layer)) return;
    const std::uint64_t recorded =
        source_.dataset(prefix + "/layers/" + layer + "/query_position").elements();
    const std::uint64_t queries = recorded - (info_.tokens() - selection_.tokens_left);
    const auto axes = layer_axes(name, selection_, queries, branch);
    if (!axes) return left_out_.push_back(path);
    if (name == "retention" && selection_.own_retention && !branch) return;
    copy(path, *axes);
  }

  /// A dataset of a lookahead or a branch.
  void take_below(const std::string& path, bool branch) {
    const std::size_t name_end = path.find('/', path.find('/', 1) + 1);
    const std::string prefix = path.substr(0, name_end), rest = path.substr(name_end);
    if (!rest.starts_with("/layers/")) return copy(path, {});
    if (branch) return take_layer(path, prefix, true);
    const std::size_t slash = rest.find('/', std::string_view("/layers/").size());
    const std::string layer = rest.substr(8, slash - 8), name = rest.substr(slash + 1);
    if (!selection_.has_layer(layer)) return;
    const bool per_query = source_.dataset(path).shape()[0] == info_.num_query_heads;
    if (name == "query" || name == "kept")
      return copy(path, {per_query ? selection_.query_heads : selection_.kv_heads});
    left_out_.push_back(path);
  }

  const h5::File& source_;
  const TraceInfo& info_;
  const Selection& selection_;
  TraceWriter& writer_;
  const ByteProgress& progress_;
};

/// Retention of the layers and heads that stay, from gates and the recorded hidden states.
void write_retention(const TraceReader& reader, const Selection& selection, const std::string& gate_file,
                     TraceWriter& writer) {
  const RetentionGates gates = RetentionGates::open(gate_file);
  const std::vector<LayerInfo>& layers = reader.info().layers;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string layer = layer_name(layers[l].index);
    if (!selection.has_layer(layer)) continue;
    const Matrix<float> all = compute_retention(gates, reader, l);
    std::vector<float> kept;
    for (const std::uint32_t head : selection.heads) {
      const auto row = all.view().row_span(head).first(selection.tokens_left);
      kept.insert(kept.end(), row.begin(), row.end());
    }
    writer.root().write_array("layers/" + layer + "/retention",
                              {selection.heads.size(), selection.tokens_left}, std::span<const float>(kept));
  }
}

}  // namespace

std::vector<std::string> cut_trace(const std::string& source, const std::string& target,
                                   const CutOptions& options, const ByteProgress& progress) {
  const h5::File file = h5::File::open(source);
  const TraceInfo info = read_header(file);
  TraceHeader header = header_of(file, info);
  const Selection selection = select(info, options, header);
  TraceWriter writer(target, header);
  Cutter cutter(file, info, selection, writer, progress);
  for (const std::string& path : file.all_datasets()) cutter.take(path);
  cutter.copy_segments();
  if (selection.own_retention)
    write_retention(TraceReader::open(source), selection, options.retention_gates, writer);
  cutter.copy_group_attributes(file, "");
  writer.add_root_attributes(file);
  writer.finish(progress);
  return cutter.left_out_;
}

}  // namespace kvsim
