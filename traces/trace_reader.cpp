// Reading the tensors of a trace head by head.
#include "traces/trace_reader.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/error.h"
#include "traces/header.h"
#include "traces/tensor.h"

namespace kvsim {

struct TraceReader::Impl {
  h5::File file;
  TraceInfo info;
};

namespace {

/// Staging memory of the calling thread, so that several may read from one reader.
Staging& own_staging() {
  thread_local Staging staging;
  return staging;
}

/// What one read of a head works with.
struct Head {
  const TraceInfo& info;
  const LayerInfo& layer;
  h5::Group group;
  std::uint32_t kv_head;
  Staging& staging;

  std::uint64_t first_query_head() const { return std::uint64_t{kv_head} * info.group(); }
};

Matrix<float> read_matrix(const Head& head, const h5::Dataset& dataset, std::uint64_t at, std::uint64_t first,
                          std::uint64_t rows) {
  Matrix<float> out(rows, dataset.shape().back());
  read_rows(dataset, {at}, first, out.view(), Finite::required, head.staging);
  return out;
}

/// The last `rows` recorded queries of every query head of the group, one head after the other.
Matrix<float> read_queries(const Head& head, std::uint64_t rows) {
  const h5::Dataset dataset = head.group.dataset("query");
  const std::uint64_t first = head.layer.query_position.size() - rows;
  Matrix<float> out(head.info.group() * rows, head.info.head_dim);
  for (std::uint64_t g = 0; g < head.info.group(); ++g) {
    read_rows(dataset, {head.first_query_head() + g}, first, out.view().rows_from(g * rows, rows),
              Finite::required, head.staging);
  }
  return out;
}

std::uint64_t query_rows(const TraceInfo& info, const LayerInfo& layer, const BlockRequest& request) {
  if (request.all_queries) return layer.query_position.size();
  const std::size_t recorded = layer.prompt_queries(info.prompt_len);
  if (request.prompt_queries > recorded) {
    throw UserError(
        "{}: /layers/{}/query: found the last {} prompt queries, expected {}; record with a longer --queries "
        "window",
        info.path, layer_name(layer.index), recorded, request.prompt_queries);
  }
  return request.prompt_queries + info.decode_len;
}

/// Tables [group, T] of the datasets `names` below `folder`.
std::map<std::string, Matrix<float>> read_tables(const Head& head, const std::string& folder,
                                                 const std::vector<std::string>& names) {
  std::map<std::string, Matrix<float>> tables;
  for (const std::string& name : names) {
    Matrix<float> table(head.info.group(), head.info.prompt_len);
    read_rows(head.group.dataset(folder + "/" + name), {}, head.first_query_head(), table.view(),
              Finite::required, head.staging);
    tables.emplace(name, std::move(table));
  }
  return tables;
}

/// Pseudo queries [group * n, d] of every first pass that recorded this layer.
std::map<std::string, Matrix<float>> read_lookahead_queries(const Head& head, const h5::File& file) {
  std::map<std::string, Matrix<float>> queries;
  for (const LookaheadInfo& pass : head.info.lookaheads) {
    const std::string where = "lookahead/" + pass.name + "/layers/" + layer_name(head.layer.index) + "/query";
    if (!file.has(where)) continue;
    Matrix<float> rows(std::size_t{head.info.group()} * pass.tokens, head.info.head_dim);
    for (std::uint64_t g = 0; pass.tokens > 0 && g < head.info.group(); ++g) {
      read_rows(file.dataset(where), {head.first_query_head() + g}, 0,
                rows.view().rows_from(g * pass.tokens, pass.tokens), Finite::required, head.staging);
    }
    queries.emplace(pass.name, std::move(rows));
  }
  return queries;
}

void read_statistics(const Head& head, const BlockRequest& request, HeadBlock& block) {
  const std::uint64_t first = head.first_query_head(), group = head.info.group();
  if (request.attention_stats)
    block.attention_stats = read_tables(head, "attention_stats", head.layer.attention_stats);
  if (request.second_pass) block.second_pass = read_tables(head, "second_pass", head.layer.second_pass);
  if (request.query_stats && head.layer.has_query_stats) {
    const h5::Group stats = head.group.group("query_stats");
    if (stats.has_attribute("sinks"))
      block.query_stats_sinks = static_cast<std::uint32_t>(stats.int_attribute("sinks"));
    const std::uint64_t d = head.info.head_dim;
    block.query_mean = Matrix<float>(group, d);
    read_rows(stats.dataset("mean"), {}, first, block.query_mean.view(), Finite::required, head.staging);
    const h5::Dataset covariance = stats.dataset("covariance");
    block.query_covariance = Matrix<float>(group * d, d);
    for (std::uint64_t g = 0; g < group; ++g) {
      read_rows(covariance, {first + g}, 0, block.query_covariance.view().rows_from(g * d, d),
                Finite::required, head.staging);
    }
  }
}

void read_output_proj(const Head& head, HeadBlock& block) {
  const h5::Dataset dataset = head.group.dataset("output_proj");
  const std::uint64_t rows = std::uint64_t{head.info.group()} * head.info.value_dim;
  block.output_proj = Matrix<float>(rows, dataset.shape().back());
  read_rows(dataset, {}, head.kv_head * rows, block.output_proj.view(), Finite::required, head.staging);
}

/// Stored as [R, Hq, S, dv]; steps go into columns, so that replays read all rows of a component side by
/// side.
void read_sensitivity(const Head& head, HeadBlock& block) {
  const h5::Dataset dataset = head.group.dataset("sensitivity");
  const std::uint64_t group = head.info.group(), steps = head.info.decode_len, dv = head.info.value_dim;
  block.sensitivity = Matrix<float>(head.layer.sensitivity_samples * dv, group * steps);
  Matrix<float> of_head(steps, dv);
  for (std::uint64_t r = 0; r < head.layer.sensitivity_samples; ++r) {
    for (std::uint64_t g = 0; g < group; ++g) {
      read_rows(dataset, {r, head.first_query_head() + g}, 0, of_head.view(), Finite::required, head.staging);
      for (std::uint64_t c = 0; c < dv; ++c)
        for (std::uint64_t t = 0; t < steps; ++t)
          block.sensitivity(r * dv + c, g * steps + t) = of_head(t, c);
    }
  }
}

void check_tokens(const TraceInfo& info, std::uint64_t first, std::uint64_t count) {
  KVSIM_CHECK(first <= info.tokens() && count <= info.tokens() - first, "tokens {} + {} of {}", first, count,
              info.path);
}

[[noreturn]] void throw_lacking(const TraceInfo& info, const std::string& where, const char* option) {
  throw UserError("{}: /{} is missing, record it with {}", info.path, where, option);
}

}  // namespace

TraceReader::TraceReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TraceReader::TraceReader(TraceReader&&) noexcept = default;
TraceReader& TraceReader::operator=(TraceReader&&) noexcept = default;
TraceReader::~TraceReader() = default;

TraceReader TraceReader::open(const std::string& path) {
  h5::File file = h5::File::open(path);
  TraceInfo info = read_header(file);
  return TraceReader(std::make_unique<Impl>(Impl{std::move(file), std::move(info)}));
}

const TraceInfo& TraceReader::info() const { return impl_->info; }

HeadBlock TraceReader::read_head(std::size_t layer_ordinal, std::uint32_t kv_head,
                                 const BlockRequest& request) const {
  const TraceInfo& info = impl_->info;
  KVSIM_CHECK(layer_ordinal < info.layers.size() && kv_head < info.num_kv_heads, "layer {} head {} of {}",
              layer_ordinal, kv_head, info.path);
  const LayerInfo& layer = info.layers[layer_ordinal];
  const Head head{info, layer, impl_->file.group("layers/" + layer_name(layer.index)), kv_head,
                  own_staging()};
  HeadBlock block;
  block.layer_ordinal = static_cast<std::uint32_t>(layer_ordinal);
  block.kv_head = kv_head;
  block.query = read_queries(head, query_rows(info, layer, request));
  block.key = read_matrix(head, head.group.dataset("key"), kv_head, 0, info.tokens());
  block.value = read_matrix(head, head.group.dataset("value"), kv_head, 0, info.tokens());
  read_statistics(head, request, block);
  if (request.lookahead) block.lookahead_query = read_lookahead_queries(head, impl_->file);
  if (request.output_proj && layer.has_output_proj) read_output_proj(head, block);
  if (request.sensitivity_samples > 0 && layer.sensitivity_samples > 0) read_sensitivity(head, block);
  return block;
}

Matrix<float> TraceReader::read_attention(std::size_t layer_ordinal, std::uint32_t query_head) const {
  const TraceInfo& info = impl_->info;
  KVSIM_CHECK(layer_ordinal < info.layers.size() && query_head < info.num_query_heads,
              "layer {} query head {} of {}", layer_ordinal, query_head, info.path);
  const LayerInfo& layer = info.layers[layer_ordinal];
  const h5::Dataset dataset = impl_->file.dataset("layers/" + layer_name(layer.index) + "/attention");
  Matrix<float> out(layer.query_position.size(), info.tokens());
  read_rows(dataset, {query_head}, 0, out.view(), Finite::required, own_staging());
  return out;
}

std::vector<std::vector<TokenIndex>> TraceReader::read_lookahead_kept(std::size_t layer_ordinal,
                                                                      const std::string& pass) const {
  const TraceInfo& info = impl_->info;
  KVSIM_CHECK(layer_ordinal < info.layers.size(), "layer {} of {}", layer_ordinal, info.path);
  const std::string where =
      "lookahead/" + pass + "/layers/" + layer_name(info.layers[layer_ordinal].index) + "/kept";
  if (!impl_->file.has(where)) throw_lacking(info, where, "kvsim-record --lookahead N");
  const h5::Dataset dataset = impl_->file.dataset(where);
  const auto stored = dataset.read<std::int64_t>();
  const std::size_t rows = dataset.shape()[0], columns = dataset.shape()[1];
  std::vector<std::vector<TokenIndex>> kept(rows);
  for (std::size_t i = 0; i < stored.size(); ++i) {
    if (stored[i] >= 0) kept[i / columns].push_back(static_cast<TokenIndex>(stored[i]));  // -1 fills up
  }
  return kept;
}

Matrix<float> TraceReader::read_retention(std::size_t layer_ordinal) const {
  const TraceInfo& info = impl_->info;
  KVSIM_CHECK(layer_ordinal < info.layers.size(), "layer {} of {}", layer_ordinal, info.path);
  const LayerInfo& layer = info.layers[layer_ordinal];
  const std::string where = "layers/" + layer_name(layer.index) + "/retention";
  if (!layer.has_retention) throw_lacking(info, where, "kvsim-record --retention-gates FILE");
  Matrix<float> out(info.num_kv_heads, info.tokens());
  read_rows(impl_->file.dataset(where), {}, 0, out.view(), Finite::required, own_staging());
  for (std::size_t g = 0; g < out.rows(); ++g) {
    const auto row = out.view().row_span(g);
    const auto bad = std::find_if(row.begin(), row.end(), [](float x) { return x > 0.0f; });
    if (bad != row.end()) {
      throw UserError("{}: /{}: found {} at head {}, token {}, expected the log of a rate, at most 0",
                      info.path, where, *bad, g, bad - row.begin());
    }
  }
  return out;
}

Matrix<float> TraceReader::read_hidden(std::size_t layer_ordinal, std::uint64_t first,
                                       std::uint64_t count) const {
  const TraceInfo& info = impl_->info;
  KVSIM_CHECK(layer_ordinal < info.layers.size(), "layer {} of {}", layer_ordinal, info.path);
  check_tokens(info, first, count);
  const LayerInfo& layer = info.layers[layer_ordinal];
  const std::string where = "layers/" + layer_name(layer.index) + "/hidden";
  if (!layer.has_hidden) throw_lacking(info, where, "kvsim-record --hidden");
  Matrix<float> out(count, layer.input_size);
  read_rows(impl_->file.dataset(where), {}, first, out.view(), Finite::required, own_staging());
  return out;
}

Matrix<float> TraceReader::read_final_hidden(std::uint64_t first, std::uint64_t count) const {
  const TraceInfo& info = impl_->info;
  check_tokens(info, first, count);
  if (info.final_hidden_size == 0) throw_lacking(info, "final_hidden", "kvsim-record --final-hidden");
  Matrix<float> out(count, info.final_hidden_size);
  read_rows(impl_->file.dataset("final_hidden"), {}, first, out.view(), Finite::required, own_staging());
  return out;
}

}  // namespace kvsim
