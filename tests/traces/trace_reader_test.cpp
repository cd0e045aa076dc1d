// Reading traces: what was written comes back exactly, for every element type and head layout.
#include "traces/trace_reader.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/traces/support.h"
#include "traces/header.h"
#include "traces/tensor.h"
#include "traces/trace_writer.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;
using testing::user_error;

struct Geometry {
  std::uint32_t query_heads, kv_heads, head_dim, value_dim;
  std::uint64_t prompt, decode, window;
  DType dtype;
};

/// A value that every element type holds exactly and that says where it stands.
float value_at(std::uint64_t tensor, std::uint64_t head, std::uint64_t row, std::uint64_t channel) {
  return static_cast<float>((tensor * 53 + head * 31 + row * 7 + channel * 3) % 251) - 125.0f;
}

std::vector<float> tensor(std::uint64_t which, std::uint64_t heads, std::uint64_t first, std::uint64_t rows,
                          std::uint64_t cols) {
  std::vector<float> values;
  for (std::uint64_t h = 0; h < heads; ++h) {
    for (std::uint64_t r = 0; r < rows; ++r) {
      for (std::uint64_t c = 0; c < cols; ++c) values.push_back(value_at(which, h, first + r, c));
    }
  }
  return values;
}

void put(TraceWriter& writer, const std::string& path, DType type, const h5::Shape& shape,
         const std::vector<float>& values) {
  std::vector<std::byte> raw(values.size() * size_of(type));
  narrow(type, values, raw);
  writer.create_tensor(path, type, shape).write_raw(h5::Shape(shape.size(), 0), shape, raw);
}

TraceHeader header_for(const Geometry& g) {
  TraceHeader header;
  header.model = "test";
  header.num_layers = 40;
  header.num_query_heads = g.query_heads;
  header.num_kv_heads = g.kv_heads;
  header.head_dim = g.head_dim;
  header.value_dim = g.value_dim;
  header.prompt_len = g.prompt;
  header.decode_len = g.decode;
  header.softmax_scale = 0.25;
  return header;
}

std::vector<float> norms(std::uint64_t tokens) {
  std::vector<float> list(tokens);
  for (std::uint64_t i = 0; i < tokens; ++i) list[i] = 1.5f + static_cast<float>(i);
  return list;
}

/// Layers 3 and 17 of a model of 40; the second has a sliding window and a scale of its own.
void write_trace(const std::string& path, const Geometry& g) {
  TraceWriter writer(path, header_for(g));
  const std::uint64_t tokens = g.prompt + g.decode, queries = g.window + g.decode,
                      first = g.prompt - g.window;
  for (const std::uint32_t layer : {3u, 17u}) {
    const std::string at = "layers/" + layer_name(layer);
    std::vector<std::int32_t> position;
    for (std::uint64_t i = 0; i < queries; ++i) position.push_back(static_cast<std::int32_t>(first + i));
    writer.root().write_column(at + "/query_position", position);
    put(writer, at + "/key", g.dtype, {g.kv_heads, tokens, g.head_dim},
        tensor(layer, g.kv_heads, 0, tokens, g.head_dim));
    put(writer, at + "/value", g.dtype, {g.kv_heads, tokens, g.value_dim},
        tensor(layer + 1, g.kv_heads, 0, tokens, g.value_dim));
    put(writer, at + "/query", g.dtype, {g.query_heads, queries, g.head_dim},
        tensor(layer + 2, g.query_heads, first, queries, g.head_dim));
    put(writer, at + "/output_proj", g.dtype, {g.query_heads * g.value_dim, 5},
        tensor(layer + 3, 1, 0, g.query_heads * g.value_dim, 5));
    put(writer, at + "/sensitivity", g.dtype, {2, g.query_heads, g.decode, g.value_dim},
        tensor(layer + 4, 2 * g.query_heads, 0, g.decode, g.value_dim));
    writer.root().write_column(at + "/residual_norm", norms(tokens));
    put(writer, at + "/attention_stats/sum", DType::float32, {g.query_heads, g.prompt},
        tensor(9, 1, 0, g.query_heads, g.prompt));
    put(writer, at + "/query_stats/mean", DType::float32, {g.query_heads, g.head_dim},
        tensor(10, 1, 0, g.query_heads, g.head_dim));
    put(writer, at + "/query_stats/covariance", DType::float32, {g.query_heads, g.head_dim, g.head_dim},
        tensor(11, g.query_heads, 0, g.head_dim, g.head_dim));
  }
  h5::Group layer = writer.root().group("layers/017");
  layer.set_attribute("sliding_window", 6);
  layer.set_attribute("softmax_scale", 0.5);
  writer.root().group("layers/017/query_stats").set_attribute("sinks", 4);
  writer.write_segments({{0, 3, "context", 0}, {3, 5, "evidence", 1}});
  writer.finish();
}

void expect_rows(MatrixView<const float> found, std::uint64_t which, std::uint64_t head,
                 std::uint64_t first) {
  for (std::size_t r = 0; r < found.rows; ++r) {
    for (std::size_t c = 0; c < found.cols; ++c)
      ASSERT_EQ(found(r, c), value_at(which, head, first + r, c)) << r << " " << c;
  }
}

class TraceReaderGeometry : public ::testing::TestWithParam<Geometry> {};

TEST_P(TraceReaderGeometry, GivesBackWhatWasWritten) {
  const Geometry& g = GetParam();
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), g);
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  const TraceInfo& info = reader.info();
  EXPECT_EQ(info.dtype, g.dtype);
  EXPECT_EQ(info.group(), g.query_heads / g.kv_heads);
  ASSERT_EQ(info.layers.size(), 2u);
  EXPECT_EQ(info.layers[0].index, 3u);
  EXPECT_EQ(info.layers[1].index, 17u);
  EXPECT_EQ(info.layers[0].softmax_scale, 0.25);
  EXPECT_EQ(info.layers[1].softmax_scale, 0.5);
  EXPECT_EQ(info.layers[1].sliding_window, 6u);
  EXPECT_EQ(info.layers[0].prompt_queries(g.prompt), g.window);
  ASSERT_EQ(info.segments.size(), 2u);
  EXPECT_EQ(info.segments[1].kind, "evidence");
  EXPECT_EQ(info.layers[1].sensitivity_samples, 2u);
  const std::vector<float> all_norms = norms(g.prompt + g.decode);
  EXPECT_EQ(info.layers[1].residual_norm,
            std::vector<float>(all_norms.end() - static_cast<std::ptrdiff_t>(g.decode), all_norms.end()));
  BlockRequest request;
  request.sensitivity_samples = 2;
  request.all_queries = request.attention_stats = request.query_stats = request.output_proj = true;
  const std::uint64_t queries = g.window + g.decode, group = info.group();
  for (std::size_t l = 0; l < 2; ++l) {
    const std::uint64_t which = info.layers[l].index;
    for (std::uint32_t h = 0; h < g.kv_heads; ++h) {
      const HeadBlock block = reader.read_head(l, h, request);
      ASSERT_EQ(block.query.rows(), group * queries);
      expect_rows(block.key.view(), which, h, 0);
      expect_rows(block.value.view(), which + 1, h, 0);
      for (std::uint64_t i = 0; i < group; ++i) {
        expect_rows(block.query.view().rows_from(i * queries, queries), which + 2, h * group + i,
                    g.prompt - g.window);
        expect_rows(block.query_covariance.view().rows_from(i * g.head_dim, g.head_dim), 11, h * group + i,
                    0);
      }
      expect_rows(block.output_proj.view(), which + 3, 0, h * group * g.value_dim);
      ASSERT_EQ(block.sensitivity.rows(), 2 * g.value_dim);
      ASSERT_EQ(block.sensitivity.cols(), group * g.decode);
      for (std::uint64_t r = 0; r < 2; ++r)
        for (std::uint64_t c = 0; c < g.value_dim; ++c)
          for (std::uint64_t i = 0; i < group * g.decode; ++i)
            ASSERT_EQ(block.sensitivity(r * g.value_dim + c, i),
                      value_at(which + 4, r * g.query_heads + h * group + i / g.decode, i % g.decode, c));
      expect_rows(block.attention_stats.at("sum").view(), 9, 0, h * group);
      expect_rows(block.query_mean.view(), 10, 0, h * group);
      EXPECT_EQ(block.query_stats_sinks, l == 1 ? 4u : 0u);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    HeadsAndTypes, TraceReaderGeometry,
    ::testing::Values(Geometry{4, 2, 16, 8, 12, 3, 12, DType::float16},     // grouped, all queries
                      Geometry{4, 2, 16, 8, 12, 3, 5, DType::bfloat16},     // windowed
                      Geometry{3, 3, 7, 9, 10, 2, 0, DType::float32},       // one per head, odd sizes
                      Geometry{8, 1, 4, 4, 9, 1, 1, DType::float16},        // multi-query
                      Geometry{2, 1, 64, 64, 9000, 2, 3, DType::bfloat16},  // several slabs
                      Geometry{1, 1, 64, 64, 9000, 2, 3, DType::float32}));

TEST(TraceReader, GivesTheLastPromptQueriesThatAreAskedFor) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {4, 2, 16, 8, 12, 3, 5, DType::float16});
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  BlockRequest request;
  request.prompt_queries = 2;
  const HeadBlock block = reader.read_head(0, 1, request);
  ASSERT_EQ(block.query.rows(), 2u * 5);
  expect_rows(block.query.view().rows_from(0, 5), 5, 2, 10);
  expect_rows(block.query.view().rows_from(5, 5), 5, 3, 10);
  EXPECT_TRUE(block.output_proj.empty());
  EXPECT_TRUE(block.sensitivity.empty());
  EXPECT_TRUE(block.attention_stats.empty());
  request.prompt_queries = 6;
  expect_contains(user_error([&] { reader.read_head(0, 0, request); }),
                  "/layers/003/query: found the last 5 prompt queries, expected 6");
}

TEST(TraceReader, NamesTheFirstValueThatIsNotFinite) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t.h5");
  write_trace(path, {4, 2, 16, 8, 12, 3, 5, DType::bfloat16});
  {
    h5::File file = h5::File::open_for_writing(path);
    const std::uint16_t nan = 0x7FC0;
    file.dataset("layers/017/value")
        .write_raw(h5::Shape{1, 6, 3}, h5::Shape{1, 1, 1}, std::as_bytes(std::span(&nan, 1)));
  }
  const TraceReader reader = TraceReader::open(path);
  EXPECT_NO_THROW(reader.read_head(1, 0, {}));
  expect_contains(user_error([&] { reader.read_head(1, 1, {}); }),
                  "t.h5: /layers/017/value: found nan at head 1, token 6, channel 3");
}

TEST(TraceReader, ReadsChunkedAndCompressedDatasets) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t.h5");
  const Geometry g{2, 1, 16, 8, 700, 4, 3, DType::float32};
  write_trace(path, g);
  {
    h5::File file = h5::File::open_for_writing(path);
    H5Ldelete(file.id(), "/layers/003/key", H5P_DEFAULT);
    const hsize_t extent[] = {1, 704, 16}, chunk[] = {1, 100, 16};
    const h5::Handle space(H5Screate_simple(3, extent, nullptr), H5Sclose),
        plist(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_chunk(plist.get(), 3, chunk);
    H5Pset_deflate(plist.get(), 1);
    const h5::Handle made(H5Dcreate2(file.id(), "/layers/003/key", H5T_IEEE_F32LE, space.get(), H5P_DEFAULT,
                                     plist.get(), H5P_DEFAULT),
                          H5Dclose);
    const auto values = tensor(3, 1, 0, 704, 16);
    ASSERT_GE(H5Dwrite(made.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
  }
  expect_rows(TraceReader::open(path).read_head(0, 0, {}).key.view(), 3, 0, 0);
}

TEST(TraceReader, KeysItsContentByTheDigest) {
  const TemporaryFolder folder;
  const Geometry g{2, 1, 16, 8, 12, 3, 5, DType::float16};
  write_trace(folder.file("a.h5"), g);
  write_trace(folder.file("b.h5"), g);
  const TraceInfo a = TraceReader::open(folder.file("a.h5")).info(),
                  b = TraceReader::open(folder.file("b.h5")).info();
  EXPECT_EQ(a.digest.substr(0, 5), "kvd1:");
  EXPECT_EQ(a.digest_key, b.digest_key);
  h5::File::open_for_writing(folder.file("b.h5")).set_attribute("digest", "");
  EXPECT_NE(TraceReader::open(folder.file("b.h5")).info().digest_key, a.digest_key);
}

TEST(BlockPrefetcher, GivesBlocksInTheOrderAskedFor) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {4, 2, 16, 8, 12, 3, 5, DType::float16});
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  const std::vector<BlockPrefetcher::Item> order{{1, 0}, {0, 1}, {0, 0}, {1, 1}, {1, 0}};
  BlockPrefetcher ahead(reader, order, {}, 2);
  for (const auto& item : order) {
    const HeadBlock block = ahead.next();
    EXPECT_EQ(block.layer_ordinal, item.layer_ordinal);
    EXPECT_EQ(block.kv_head, item.kv_head);
    expect_rows(block.key.view(), reader.info().layers[item.layer_ordinal].index, item.kv_head, 0);
  }
  EXPECT_THROW(ahead.next(), InternalError);
}

TEST(BlockPrefetcher, RethrowsWhatItMetAfterTheBlocksBeforeIt) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {4, 2, 16, 8, 12, 3, 5, DType::float32});
  {
    h5::File file = h5::File::open_for_writing(folder.file("t.h5"));
    const float infinity = INFINITY;
    file.dataset("layers/003/key")
        .write_raw(h5::Shape{1, 0, 0}, h5::Shape{1, 1, 1}, std::as_bytes(std::span(&infinity, 1)));
  }
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  BlockPrefetcher ahead(reader, {{0, 0}, {0, 1}, {1, 0}}, {}, 3);
  EXPECT_NO_THROW(ahead.next());
  expect_contains(user_error([&] { ahead.next(); }), "found inf at head 1, token 0");
}

TEST(BlockPrefetcher, StopsWhileBlocksAreStillWaiting) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {4, 2, 16, 8, 12, 3, 5, DType::float16});
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  BlockPrefetcher ahead(reader, std::vector<BlockPrefetcher::Item>(50, {0, 0}), {}, 1);
  EXPECT_EQ(ahead.next().key.rows(), 15u);
}

TEST(ReadFloatArray, ReadsEveryNumericTypeOfAnyFile) {
  const TemporaryFolder folder;
  h5::File file = h5::File::create(folder.file("s.h5"));
  file.write_array("deep/scores", {2, 2}, std::span<const double>(std::vector<double>{1, 2, 3, 4.5}));
  const std::vector<std::uint16_t> bits{0x3FC0, 0xC000};
  file.create_dataset("b", h5::Element::bfloat16, {2})
      .write_raw(h5::Shape{0}, h5::Shape{2}, std::as_bytes(std::span(bits)));
  file.write_column("text", std::vector<std::string>{"x"});
  file.close();
  const FloatArray scores = read_float_array(folder.file("s.h5"), "/deep/scores");
  EXPECT_EQ(scores.shape, (std::vector<std::size_t>{2, 2}));
  EXPECT_EQ(scores.data, (std::vector<float>{1, 2, 3, 4.5f}));
  EXPECT_EQ(read_float_array(folder.file("s.h5"), "b").data, (std::vector<float>{1.5f, -2.0f}));
  expect_contains(user_error([&] { read_float_array(folder.file("s.h5"), "text"); }),
                  "s.h5: /text: found string, expected numbers");
  expect_contains(user_error([&] { read_float_array(folder.file("s.h5"), "gone"); }), "found nothing");
}

}  // namespace
}  // namespace kvsim
