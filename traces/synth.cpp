// Writing synthetic traces as a stream: blocks of rows are made by several threads and stored in order.
#include "traces/synth.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <vector>

#include "kernels/error.h"
#include "traces/header.h"
#include "traces/synth_head.h"
#include "traces/synth_stats.h"
#include "traces/tensor.h"
#include "traces/trace_writer.h"

namespace kvsim {
namespace {

using synth::Head;
using synth::World;

constexpr std::uint64_t kBlockRows = 4 * Head::kRowGrid;
constexpr std::uint32_t kVocabulary = 32000;
constexpr std::uint64_t kSentence = 16;

void check(const SynthOptions& o) {
  const auto refuse = [](const char* option, const auto& value, const char* expected) {
    throw UserError("{} {}: expected {}", option, value, expected);
  };
  if (o.layers < 1 || o.layers > 1000) refuse("--layers", o.layers, "1 to 1000");
  if (o.kv_heads < 1 || o.kv_heads > 4096) refuse("--kv-heads", o.kv_heads, "1 to 4096");
  if (o.query_heads < 1 || o.query_heads > 65536 || o.query_heads % o.kv_heads != 0) {
    refuse("--query-heads", o.query_heads, "a multiple of --kv-heads, at most 65536");
  }
  if (o.head_dim < 1 || o.head_dim > 4096) refuse("--head-dim", o.head_dim, "1 to 4096");
  if (o.value_dim > 4096) refuse("--value-dim", o.value_dim, "1 to 4096");
  if (o.prompt < 1 || o.prompt > (std::uint64_t{1} << 30)) refuse("--prompt", o.prompt, "1 to 2^30");
  if (o.decode < 1 || o.decode > (std::uint64_t{1} << 30)) refuse("--decode", o.decode, "1 to 2^30");
  if (o.query_window && *o.query_window > o.prompt)
    refuse("--queries window:", *o.query_window, "at most --prompt");
}

std::uint64_t value_dim(const SynthOptions& o) { return o.value_dim == 0 ? o.head_dim : o.value_dim; }
std::uint64_t prompt_queries(const SynthOptions& o) { return o.query_window.value_or(o.prompt); }

void check_space(const std::string& path, std::uint64_t bytes) {
  std::error_code error;
  const auto folder = std::filesystem::absolute(path, error).parent_path();
  const auto space = std::filesystem::space(folder, error);
  if (!error && space.available < bytes) {
    throw UserError("{}: the trace needs {} bytes, {} has {} left", path, bytes, folder.string(),
                    space.available);
  }
}

TraceHeader header_of(const World& world) {
  const SynthOptions& o = world.options;
  TraceHeader header;
  header.model = fmt::format("synthetic-{}x{}", o.layers, o.query_heads);
  header.recorder = "kvsim trace synth";
  header.source =
      fmt::format("seed {}, {} needles of {} tokens", o.seed, world.needles.size(), o.needle_length);
  header.weights = "none, drawn at random";
  header.num_layers = o.layers;
  header.num_query_heads = o.query_heads;
  header.num_kv_heads = o.kv_heads;
  header.head_dim = o.head_dim;
  header.value_dim = world.value_dim;
  header.prompt_len = o.prompt;
  header.decode_len = o.decode;
  header.rope_layout = world.inverse_frequency.empty() ? RopeLayout::none : RopeLayout::half;
  header.inverse_frequency = world.inverse_frequency;
  header.softmax_scale = 1.0 / std::sqrt(static_cast<double>(o.head_dim));
  return header;
}

void write_tables(const World& world, TraceWriter& writer) {
  const SynthOptions& o = world.options;
  std::vector<std::int32_t> ids(world.tokens);
  std::vector<std::string> texts(world.tokens);
  Philox random(o.seed, stream_of(1));
  for (std::uint64_t i = 0; i < world.tokens; ++i) {
    ids[i] = static_cast<std::int32_t>(random.next_below(kVocabulary));
    texts[i] = i % kSentence == kSentence - 1 ? "." : fmt::format(" w{}", ids[i]);
  }
  writer.write_tokens(ids, texts);
  const auto prompt = static_cast<std::uint32_t>(o.prompt), end = static_cast<std::uint32_t>(world.tokens);
  const std::uint32_t question = prompt - prompt / 16;
  std::vector<Segment> segments{{0, question, "context", 0}};
  for (const auto& [first, last] : world.needles) {
    segments.push_back({static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(last), "evidence", 0});
  }
  segments.push_back({question, prompt, "question", 0});
  segments.push_back({prompt, end, "answer", 0});
  writer.write_segments(segments);
}

/// One tensor [heads, rows, cols] or [rows, cols] being written: `fill(head, first position, rows)` makes a
/// block.
class Stream {
 public:
  Stream(h5::Dataset dataset, DType type, int threads, const std::function<void(std::uint64_t)>& progress)
      : dataset_(std::move(dataset)), type_(type), threads_(threads), progress_(progress) {}

  /// Rows hold the positions first, first + 1, ...; blocks begin at multiples of kBlockRows.
  template <typename Fill>
  void write(std::uint64_t first_position, const Fill& fill) {
    const h5::Shape& shape = dataset_.shape();
    const std::uint64_t heads = shape.size() == 3 ? shape[0] : 1,
                        end = first_position + shape[shape.size() - 2];
    std::vector<Block> blocks;
    for (std::uint64_t head = 0; head < heads; ++head) {
      for (std::uint64_t at = first_position / kBlockRows * kBlockRows; at < end; at += kBlockRows) {
        blocks.push_back({head, at, std::min(kBlockRows, end - at), std::max(at, first_position) - at});
      }
    }
    const std::size_t batch = static_cast<std::size_t>(threads_) * 4;
    std::vector<Buffer> buffers(batch);
    for (std::size_t begin = 0; begin < blocks.size(); begin += batch) {
      const std::size_t count = std::min(batch, blocks.size() - begin);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
      for (std::size_t i = 0; i < count; ++i) make(blocks[begin + i], fill, buffers[i]);
      for (std::size_t i = 0; i < count; ++i) store(blocks[begin + i], first_position, buffers[i].raw);
    }
  }

 private:
  struct Block {
    std::uint64_t head, first, rows,
        skip;  // the first `skip` rows are made (angles start on the grid) and not stored
  };

  /// Kept from block to block: the C library does not find freed aligned memory again, so none is asked for
  /// here.
  struct Buffer {
    std::vector<float> rows;
    std::vector<std::byte> raw;
  };

  template <typename Fill>
  void make(const Block& block, const Fill& fill, Buffer& buffer) const {
    const std::uint64_t cols = dataset_.shape().back();
    buffer.rows.resize(block.rows * cols);
    fill(block.head, block.first, MatrixView<float>{buffer.rows.data(), block.rows, cols, cols});
    const std::uint64_t kept = block.rows - block.skip;
    buffer.raw.resize(kept * cols * size_of(type_));
    narrow(type_, {buffer.rows.data() + block.skip * cols, kept * cols}, buffer.raw);
  }

  void store(const Block& block, std::uint64_t first_position, const std::vector<std::byte>& raw) {
    h5::Shape offset{block.head, block.first + block.skip - first_position, 0};
    h5::Shape count{1, block.rows - block.skip, dataset_.shape().back()};
    if (dataset_.shape().size() == 2) {
      offset.erase(offset.begin());
      count.erase(count.begin());
    }
    dataset_.write_raw(offset, count, raw);
    if (progress_) progress_(raw.size());
  }

  h5::Dataset dataset_;
  DType type_;
  int threads_;
  const std::function<void(std::uint64_t)>& progress_;
};

/// Everything that the parts of one layer need.
struct LayerJob {
  const World& world;
  TraceWriter& writer;
  std::uint32_t layer;
  int threads;
  const std::function<void(std::uint64_t)>& progress;
  std::vector<Head> heads;

  std::string path(const char* name) const { return "layers/" + layer_name(layer) + "/" + name; }
  Stream stream(const char* name, const h5::Shape& shape) const {
    return {writer.create_tensor(path(name), world.options.dtype, shape), world.options.dtype, threads,
            progress};
  }
};

void write_output_proj(const LayerJob& job) {
  const SynthOptions& o = job.world.options;
  const std::uint64_t hidden = std::uint64_t{o.query_heads} * job.world.value_dim;
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden)));
  const std::uint64_t seed = o.seed, layer = job.layer;
  job.stream("output_proj", {hidden, hidden})
      .write(0, [=](std::uint64_t, std::uint64_t first, MatrixView<float> out) {
        synth::fill_noise(seed, stream_of(2, layer), first, scale, out);
      });
}

void write_layer(const LayerJob& job) {
  const SynthOptions& o = job.world.options;
  const std::uint64_t tokens = job.world.tokens, group = o.query_heads / o.kv_heads;
  const std::uint64_t first_query = o.prompt - prompt_queries(o), queries = tokens - first_query;
  h5::Group attributes = job.writer.root().create_group("layers/" + layer_name(job.layer));
  attributes.set_attribute("sliding_window", job.layer % 2 == 0 ? o.sliding_window : 0u);
  std::vector<std::int32_t> position(queries);
  for (std::uint64_t i = 0; i < queries; ++i) position[i] = static_cast<std::int32_t>(first_query + i);
  job.writer.root().write_column(job.path("query_position"), position);
  const auto& heads = job.heads;
  job.stream("key", {o.kv_heads, tokens, o.head_dim})
      .write(0, [&heads](std::uint64_t h, std::uint64_t first, MatrixView<float> out) {
        heads[h].keys(first, out);
      });
  job.stream("value", {o.kv_heads, tokens, job.world.value_dim})
      .write(0, [&heads](std::uint64_t h, std::uint64_t first, MatrixView<float> out) {
        heads[h].values(first, out);
      });
  job.stream("query", {o.query_heads, queries, o.head_dim})
      .write(first_query, [&heads, group](std::uint64_t h, std::uint64_t first, MatrixView<float> out) {
        heads[h / group].queries(static_cast<std::uint32_t>(h % group), first, out);
      });
  if (o.output_proj) write_output_proj(job);
}

}  // namespace

std::uint64_t synth_bytes(const SynthOptions& o) {
  const std::uint64_t tokens = o.prompt + o.decode, item = size_of(o.dtype);
  const std::uint64_t keys = o.kv_heads * tokens * (o.head_dim + value_dim(o));
  const std::uint64_t queries = o.query_heads * (prompt_queries(o) + o.decode) * o.head_dim;
  const std::uint64_t hidden = o.query_heads * value_dim(o);
  const std::uint64_t stats =
      o.stats ? 4 * o.query_heads * (3 * o.prompt + std::uint64_t{o.head_dim} * (o.head_dim + 1)) : 0;
  return o.layers * (item * (keys + queries + (o.output_proj ? hidden * hidden : 0)) + stats);
}

std::uint64_t synth_work(const SynthOptions& o) {
  return 2 * synth_bytes(o) + (o.stats ? o.layers * o.query_heads * synth::stats_work(o.prompt) : 0);
}

void synthesise(const SynthOptions& options, const std::string& path,
                const std::function<void(std::uint64_t)>& progress) {
  check(options);
  check_space(path, synth_bytes(options));
  const World world(options);
  const int threads = options.threads > 0 ? options.threads : omp_get_max_threads();
  TraceWriter writer(path, header_of(world));
  write_tables(world, writer);
  for (std::uint32_t layer = 0; layer < options.layers; ++layer) {
    LayerJob job{world, writer, layer, threads, progress, {}};
    for (std::uint32_t h = 0; h < options.kv_heads; ++h) job.heads.emplace_back(world, layer, h);
    write_layer(job);
    if (options.stats) {
      const std::uint32_t window = layer % 2 == 0 ? options.sliding_window : 0;
      synth::write_stats(world, job.heads, layer, window, threads, writer, progress);
    }
  }
  writer.finish(progress);
}

}  // namespace kvsim
