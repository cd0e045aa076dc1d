// Joining traces that hold different layers of the same prompt.
#include <algorithm>
#include <map>

#include "kernels/error.h"
#include "traces/copy.h"
#include "traces/cut.h"
#include "traces/header.h"

namespace kvsim {
namespace {

struct Source {
  h5::File file;
  TraceInfo info;
};

/// First passes of one name must be one and the same run.
void check_lookaheads(const TraceInfo& a, const TraceInfo& b) {
  for (const LookaheadInfo& pass : b.lookaheads) {
    const auto same = std::find_if(a.lookaheads.begin(), a.lookaheads.end(),
                                   [&pass](const LookaheadInfo& other) { return other.name == pass.name; });
    if (same != a.lookaheads.end() && (same->method != pass.method || same->token_id != pass.token_id)) {
      throw UserError("{}: /lookahead/{} is another first pass than in {}, expected the same tokens", b.path,
                      pass.name, a.path);
    }
  }
}

/// Everything but the layers must agree.
void check_alike(const Source& first, const Source& other) {
  const auto compare = [&](const char* what, const auto& a, const auto& b) {
    if (a != b)
      throw UserError("{}: {} is {}, expected {} as in {}", other.info.path, what, b, a, first.info.path);
  };
  const TraceInfo &a = first.info, &b = other.info;
  compare("model", a.model, b.model);
  compare("num_layers", a.num_layers, b.num_layers);
  compare("num_query_heads", a.num_query_heads, b.num_query_heads);
  compare("num_kv_heads", a.num_kv_heads, b.num_kv_heads);
  compare("head_dim", a.head_dim, b.head_dim);
  compare("value_dim", a.value_dim, b.value_dim);
  compare("prompt_len", a.prompt_len, b.prompt_len);
  compare("decode_len", a.decode_len, b.decode_len);
  compare("rope_layout", name_of(a.rope_layout), name_of(b.rope_layout));
  compare("element type", name_of(a.dtype), name_of(b.dtype));
  if (a.token_id != b.token_id) {
    const auto [x, y] =
        std::mismatch(a.token_id.begin(), a.token_id.end(), b.token_id.begin(), b.token_id.end());
    throw UserError("{}: /tokens/id differs from {} at token {}, expected the same text", b.path, a.path,
                    x - a.token_id.begin());
  }
  check_lookaheads(a, b);
  const auto samples = [](const Source& source) {
    return source.file.has_attribute("sensitivity_seed")
               ? fmt::format("seed {}", source.file.int_attribute("sensitivity_seed"))
               : std::string("none");
  };
  compare("sensitivity_seed", samples(first), samples(other));  // samples of all layers belong together
}

/// Scale, soft cap and rotary frequencies of a layer may come from its file's root: they are written to the
/// layer where the first file's root says otherwise.
void keep_layer_values(const Source& source, const LayerInfo& layer, TraceWriter& writer,
                       const TraceHeader& root, const std::vector<float>& root_frequency) {
  h5::Group group = writer.root().group("layers/" + layer_name(layer.index));
  group.add_attributes(source.file.group("layers/" + layer_name(layer.index)));
  const auto set = [&group](const char* name, double value, double at_root) {
    if (value != at_root && !group.has_attribute(name)) group.set_attribute(name, value);
  };
  set("softmax_scale", layer.softmax_scale, root.softmax_scale);
  set("logit_softcap", layer.logit_softcap, root.logit_softcap);
  set("attention_scaling", layer.attention_scaling, root.attention_scaling);
  if (layer.inverse_frequency != root_frequency && !group.has("rope/inv_freq")) {
    group.write_column("rope/inv_freq", layer.inverse_frequency);
  }
}

void copy_group_attributes(const h5::Group& from, h5::Group& to) {
  for (const std::string& name : from.children()) {
    if (!from.has_group(name) || !to.has_group(name)) continue;
    h5::Group target = to.group(name);
    target.add_attributes(from.group(name));
    copy_group_attributes(from.group(name), target);
  }
}

}  // namespace

void merge_traces(const std::vector<std::string>& sources, const std::string& target,
                  const ByteProgress& progress) {
  if (sources.size() < 2) throw UserError("joining needs at least two traces, found {}", sources.size());
  std::vector<Source> opened;
  std::map<std::uint32_t, std::string> owner;
  for (const std::string& path : sources) {
    h5::File file = h5::File::open(path);
    TraceInfo info = read_header(file);
    opened.push_back({std::move(file), std::move(info)});
    check_alike(opened.front(), opened.back());
    for (const LayerInfo& layer : opened.back().info.layers) {
      const auto [at, fresh] = owner.emplace(layer.index, path);
      if (!fresh)
        throw UserError("{}: holds layer {}, which {} holds too; expected each once", path, layer.index,
                        at->second);
    }
  }
  const Source& first = opened.front();
  const TraceHeader header = header_of(first.file, first.info);
  std::vector<float> root_frequency;
  if (first.file.has("rope/inv_freq")) root_frequency = first.file.read_column<float>("rope/inv_freq");
  TraceWriter writer(target, header);
  for (const Source& source : opened) {
    for (const std::string& path : source.file.all_datasets()) {
      if (writer.root().has(path.substr(1)))
        continue;  // tables and lookahead tokens are alike: the first file's stay
      copy_dataset(source.file.dataset(path), writer.root(), path.substr(1), {}, progress);
    }
    for (const LayerInfo& layer : source.info.layers)
      keep_layer_values(source, layer, writer, header, root_frequency);
    copy_group_attributes(source.file, writer.root());
  }
  writer.add_root_attributes(first.file);
  writer.finish(progress);
}

}  // namespace kvsim
