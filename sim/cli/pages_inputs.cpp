// Inputs of kvsim pages.
#include "sim/cli/pages_inputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "kernels/error.h"
#include "traces/requests/byte_stream.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

bool is_recording(const std::string& path) {
  if (path == "-") return false;
  return ByteStream(path).peek(4) == "\x89HDF";
}

std::string stem_of(const std::string& path) {
  std::string name = path == "-" ? "stdin" : path.substr(path.find_last_of('/') + 1);
  for (const char* ending : {".gz", ".zst", ".h5", ".jsonl", ".bin", ".csv", ".txt"}) {
    if (name.ends_with(ending) && name.size() > std::string_view(ending).size())
      name.resize(name.size() - std::string_view(ending).size());
  }
  return name;
}

/// Pseudo queries of the recording's first lookahead for one KV head, [group * n, d]; empty without one.
Matrix<float> lookahead_queries(const TraceInfo& info, std::uint32_t layer, std::uint32_t head) {
  if (info.lookaheads.empty()) return {};
  const std::string dataset =
      fmt::format("/lookahead/{}/layers/{:03}/query", info.lookaheads.front().name, layer);
  const FloatArray all = read_float_array(info.path, dataset);
  if (all.shape.size() != 3 || all.shape[0] != info.num_query_heads || all.shape[2] != info.head_dim) {
    throw UserError("{}: {} has another shape than [{}, n, {}]", info.path, dataset, info.num_query_heads,
                    info.head_dim);
  }
  const std::size_t rows = info.group() * all.shape[1];
  Matrix<float> out(rows, info.head_dim);
  const float* first = all.data.data() + head * rows * info.head_dim;
  for (std::size_t r = 0; r < rows; ++r) std::copy_n(first + r * info.head_dim, info.head_dim, out.row(r));
  return out;
}

std::vector<std::size_t> chosen_layers(const TraceInfo& info, const std::vector<std::string>& names) {
  std::vector<std::size_t> out;
  for (std::size_t l = 0; l < info.layers.size(); ++l) {
    const std::string index = fmt::format("{}", info.layers[l].index);
    if (names.empty() || std::find(names.begin(), names.end(), index) != names.end()) out.push_back(l);
  }
  if (out.size() != names.size() && !names.empty())
    throw UserError("--layers: {} has no such layer; 'kvsim trace info' lists them", info.path);
  return out;
}

/// Streams of a recording, added to the sweep; `kept` holds what output errors need.
void add_recording(const std::string& path, std::uint32_t trace, const PagesOptions& o, PageSweep& sweep,
                   std::vector<AttentionStream>& kept) {
  constexpr std::size_t kPromptQueries = 32;  // they start the moving averages of attention scores
  const TraceReader reader = TraceReader::open(path);
  const TraceInfo& info = reader.info();
  if (info.decode_len == 0)
    throw UserError("{} holds no decode steps, so nothing is requested: record with --decode N", path);
  for (const std::size_t layer : chosen_layers(info, o.layers)) {
    const std::size_t before = std::min(kPromptQueries, info.layers[layer].prompt_queries(info.prompt_len));
    for (std::uint32_t head = 0; head < info.num_kv_heads; ++head) {
      BlockRequest request;
      request.prompt_queries = before;
      const Matrix<float> lookahead = lookahead_queries(info, info.layers[layer].index, head);
      AttentionStream s = attention_stream(info, reader.read_head(layer, head, request), before,
                                           lookahead.view(), o.output_error, o.attention);
      sweep.streams.push_back(std::move(s.stream));
      s.stream = PageStream{};
      sweep.infos.push_back({.trace = trace,
                             .layer = static_cast<std::int32_t>(info.layers[layer].index),
                             .kv_head = static_cast<std::int32_t>(head),
                             .pinned = s.pinned,
                             .all_bytes = 0});
      kept.push_back(std::move(s));
    }
  }
}

std::uint64_t bytes_of_objects(const PageStream& stream) {
  std::uint64_t sum = 0;
  Page seen = 0;
  for (std::size_t t = 0; t < stream.requests(); ++t) {
    if (stream.pages[t] < seen) continue;
    ++seen;
    sum += stream.sizes.empty() ? 1 : stream.sizes[t];
  }
  return sum;
}

}  // namespace

bool load_page_inputs(const PagesOptions& o, PageSweep& sweep, std::vector<AttentionStream>& kept) {
  // Held in memory: page, next use and size of a request, and what goes with an object.
  constexpr std::uint64_t kBytesPerRequest = 24;
  bool future = false;
  for (const PageVariant& v : sweep.variants) future |= v.policy->needs_future();
  for (std::uint32_t i = 0; i < o.inputs.size(); ++i) {
    const std::string& path = o.inputs[i];
    sweep.traces.push_back(stem_of(path));
    if (std::count(sweep.traces.begin(), sweep.traces.end(), sweep.traces.back()) > 1)
      sweep.traces.back() += fmt::format("#{}", i + 1);
    if (is_recording(path)) {
      if (o.serve.by_bytes)
        throw UserError("--bytes: the blocks of a recording have one size; count objects");
      if (o.stream || o.sample > 0)
        throw UserError("--stream and --sample are for request files, and {} is a recording", path);
      add_recording(path, i, o, sweep, kept);
      continue;
    }
    if (o.output_error)
      throw UserError("--output-error is for attention recordings, and {} is a request file", path);
    if (o.stream || (o.sample > 0 && !o.curve)) {
      if (o.inputs.size() > 1) throw UserError("--stream and --sample take one input at a time");
      return true;
    }
    PageStream stream;
    try {
      stream =
          load_requests(path, o.file, std::min<std::uint64_t>(0xFFFFFFF0ull, o.memory / kBytesPerRequest));
    } catch (const TooManyRequests&) {
      if (path == "-" || o.inputs.size() > 1 || o.curve) throw;
      fmt::print(stderr, "kvsim: {} does not fit into --memory and is read as a stream\n", path);
      return true;
    }
    if (o.serve.by_bytes && stream.sizes.empty())
      throw UserError("{}: --bytes needs sizes, and this file has none", path);
    if (future || o.bounds) stream.find_next();
    sweep.infos.push_back({.trace = i,
                           .layer = -1,
                           .kv_head = -1,
                           .pinned = 0,
                           .all_bytes = o.serve.by_bytes ? bytes_of_objects(stream) : 0});
    sweep.streams.push_back(std::move(stream));
    kept.emplace_back();
  }
  return false;
}

std::span<const double> NumberFiles::read(const std::string& path) {
  const std::lock_guard lock(mutex_);
  const auto found = files_.find(path);
  if (found != files_.end()) return found->second;
  ByteStream stream(path);
  std::vector<double> numbers;
  for (std::string text; stream.line(text);) {
    if (text.empty()) continue;
    char* end = nullptr;
    numbers.push_back(std::strtod(text.c_str(), &end));
    if (end != text.c_str() + text.size() || std::isnan(numbers.back())) {
      throw UserError("{}:{}: '{}' is no number", path, stream.line_number(), text);
    }
  }
  return files_.emplace(path, std::move(numbers)).first->second;
}

}  // namespace kvsim
