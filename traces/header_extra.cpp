// What a trace may hold besides its main sequence: lookaheads, a second pass and branches.
#include <algorithm>
#include <map>

#include "kernels/error.h"
#include "traces/digest.h"
#include "traces/header.h"

namespace kvsim::header {
namespace {

const LayerInfo& recorded_layer(const h5::Group& layers, const std::string& name, const TraceInfo& info) {
  const std::uint32_t index = layer_index(layers, name, info.num_layers);
  const auto at = std::find_if(info.layers.begin(), info.layers.end(),
                               [index](const LayerInfo& layer) { return layer.index == index; });
  if (at == info.layers.end()) {
    throw UserError("{}: found layer {}, expected only layers that /layers holds as well", layers.where(),
                    name);
  }
  return *at;
}

void check_kept(const h5::Dataset& dataset, const TraceInfo& info) {
  const bool per_query = dataset.shape().size() == 2 && dataset.shape()[0] == info.num_query_heads;
  expect_shape(dataset, {per_query ? info.num_query_heads : info.num_kv_heads, kAny});
  const auto limit = static_cast<std::int64_t>(info.prompt_len);
  const auto kept = dataset.read<std::int64_t>();
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (kept[i] < -1 || kept[i] >= limit) {  // -1 fills up where a head kept fewer
      throw UserError("{}: found {} at {}, expected prompt positions below {}", dataset.where(), kept[i], i,
                      limit);
    }
    if (i % dataset.shape()[1] != 0 && kept[i] >= 0 && kept[i] <= kept[i - 1]) {
      throw UserError("{}: found {} after {} at {}, expected ascending positions", dataset.where(), kept[i],
                      kept[i - 1], i);
    }
  }
}

/// A pass over the prompt tells which model and which prompt it was run on (where its recorder wrote it
/// down): a group that was copied here from another recording is refused.
void check_origin(const h5::Group& group, const TraceInfo& info) {
  const auto compare = [&group](const char* name, const std::string& expected) {
    if (!group.has_attribute(name) || expected.empty()) return;
    const std::string found = group.string_attribute(name);
    if (found != expected) {
      throw UserError("{}@{}: found '{}', expected '{}': it was recorded with another {}; record it anew",
                      group.where(), name, found, expected, name);
    }
  };
  compare("model", info.model);
  if (info.token_id.size() == info.tokens())
    compare("prompt", prompt_hash({info.token_id.data(), static_cast<std::size_t>(info.prompt_len)}));
}

LookaheadInfo read_lookahead(const h5::Group& group, const std::string& name, const TraceInfo& info) {
  LookaheadInfo lookahead;
  lookahead.name = name;
  check_origin(group, info);
  lookahead.method = group.string_attribute("method");
  const auto most = static_cast<std::int64_t>(info.tokens());
  lookahead.capacity = static_cast<std::uint32_t>(bounded_attribute(group, "capacity", 0, most));
  lookahead.window = static_cast<std::uint32_t>(bounded_attribute(group, "window", 0, most));
  lookahead.stopped_at_eos = group.has_attribute("stopped_at_eos") && group.bool_attribute("stopped_at_eos");
  const h5::Dataset tokens = group.dataset("token"), positions = group.dataset("position");
  expect_shape(tokens, {kAny});
  expect_shape(positions, tokens.shape());
  lookahead.tokens = static_cast<std::uint32_t>(tokens.elements());
  lookahead.token_id = tokens.read<std::int32_t>();
  constexpr std::int64_t kMost = std::int64_t{1} << 50;
  lookahead.steps = lookahead.tokens;
  if (group.has_attribute("steps"))
    lookahead.steps = static_cast<std::uint64_t>(bounded_attribute(group, "steps", 0, most));
  if (group.has_attribute("cache_bytes"))
    lookahead.cache_bytes = static_cast<std::uint64_t>(bounded_attribute(group, "cache_bytes", 0, kMost));
  const auto position = positions.read<std::int64_t>();
  for (std::size_t i = 0; i < position.size(); ++i) {
    const auto expected = static_cast<std::int64_t>(info.prompt_len + i);
    if (position[i] != expected) {
      throw UserError("{}: found {} at {}, expected {}", positions.where(), position[i], i, expected);
    }
  }
  if (!group.has("layers")) return lookahead;
  const h5::Group layers = group.group("layers");
  for (const std::string& layer : layers.children()) {
    static_cast<void>(recorded_layer(layers, layer, info));
    const h5::Group one = layers.group(layer);
    expect_tensor(one.dataset("query"), {info.num_query_heads, tokens.elements(), info.head_dim});
    if (one.has("kept")) check_kept(one.dataset("kept"), info);
  }
  return lookahead;
}

/// The header of one branch; its tensors are checked when its place on the path is known.
BranchInfo read_branch_header(const h5::Group& group, const std::string& name) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  BranchInfo branch;
  branch.name = name;
  branch.parent = group.string_attribute("parent");
  branch.fork_position = static_cast<std::uint64_t>(bounded_attribute(group, "fork_position", 1, kMost));
  branch.prompt_len = static_cast<std::uint64_t>(bounded_attribute(group, "prompt_len", 0, kMost));
  branch.decode_len = static_cast<std::uint64_t>(bounded_attribute(group, "decode_len", 0, kMost));
  return branch;
}

/// Tokens of the whole path that ends with `branch`; refuses unknown parents, cycles and forks behind the
/// parent's end.
void check_path(const h5::Group& branches, const std::map<std::string, BranchInfo>& all,
                const BranchInfo& branch, std::uint64_t main_tokens) {
  std::uint64_t parent_end = main_tokens;
  if (!branch.parent.empty()) {
    const auto parent = all.find(branch.parent);
    if (parent == all.end()) {
      throw UserError("{}/{}@parent: found '{}', expected another branch or nothing", branches.where(),
                      branch.name, branch.parent);
    }
    std::size_t steps = 0;
    for (auto at = parent; at != all.end() && !at->second.parent.empty(); at = all.find(at->second.parent)) {
      if (++steps > all.size()) {
        throw UserError("{}/{}@parent: found a circle of branches, expected a path to the main sequence",
                        branches.where(), branch.name);
      }
    }
    parent_end = parent->second.fork_position + parent->second.prompt_len + parent->second.decode_len;
  }
  if (branch.fork_position > parent_end) {
    throw UserError("{}/{}@fork_position: found {}, expected at most the parent's {} tokens",
                    branches.where(), branch.name, branch.fork_position, parent_end);
  }
}

void check_branch_tensors(const h5::Group& group, const BranchInfo& branch, const TraceInfo& info) {
  const Sequence own{branch.fork_position, branch.prompt_len, branch.decode_len};
  std::vector<std::int32_t> ids;
  std::vector<std::string> texts;
  read_tokens(group, own, ids, texts);
  static_cast<void>(read_segments(group, own));
  const h5::Group layers = group.group("layers");
  for (const std::string& name : layers.children()) {
    const LayerInfo& main = recorded_layer(layers, name, info);
    static_cast<void>(read_layer(layers.group(name), main, info, own));
  }
}

}  // namespace

std::vector<LookaheadInfo> read_lookaheads(const h5::File& file, const TraceInfo& info) {
  std::vector<LookaheadInfo> found;
  if (!file.has("lookahead")) return found;
  const h5::Group group = file.group("lookahead");
  for (const std::string& name : group.children())
    found.push_back(read_lookahead(group.group(name), name, info));
  return found;
}

void read_second_pass(const h5::File& file, TraceInfo& info) {
  info.second_pass = info.layers.front().second_pass;
  std::erase_if(info.second_pass, [&info](const std::string& name) {
    return !std::all_of(info.layers.begin(), info.layers.end(), [&name](const LayerInfo& layer) {
      return std::find(layer.second_pass.begin(), layer.second_pass.end(), name) != layer.second_pass.end();
    });
  });
  if (!file.has_group("second_pass")) return;
  const h5::Group group = file.group("second_pass");
  check_origin(group, info);
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  const h5::Dataset token = group.dataset("token");
  expect_shape(token, {kAny});
  const auto pieces = static_cast<std::uint64_t>(bounded_attribute(group, "pieces", 0, kMost));
  info.second_pass_run = {group.string_attribute("method"), token.elements(), pieces};
}

std::vector<BranchInfo> read_branches(const h5::File& file, const TraceInfo& info) {
  std::vector<BranchInfo> found;
  if (!file.has("branches")) return found;
  const h5::Group branches = file.group("branches");
  std::map<std::string, BranchInfo> all;
  for (const std::string& name : branches.children())
    all[name] = read_branch_header(branches.group(name), name);
  for (const auto& [name, branch] : all) {
    check_path(branches, all, branch, info.tokens());
    check_branch_tensors(branches.group(name), branch, info);
    found.push_back(branch);
  }
  return found;
}

}  // namespace kvsim::header
