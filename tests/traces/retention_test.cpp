// Hidden states, retention and its gates: read back exactly, checked, carried along by cut and merge.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/traces/support.h"
#include "traces/check.h"
#include "traces/cut.h"
#include "traces/header.h"
#include "traces/retention_gates.h"
#include "traces/tensor.h"
#include "traces/trace_writer.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;
using testing::user_error;
using testing::write_bytes;

constexpr std::uint64_t kTokens = 6, kHidden = 3;
constexpr std::uint32_t kHeads = 2;

float hidden_at(std::uint32_t layer, std::uint64_t token, std::uint64_t i) {
  return static_cast<float>((layer * 17 + token * 5 + i * 3) % 11) / 4.0f - 1.0f;
}

float retention_at(std::uint32_t layer, std::uint64_t head, std::uint64_t token) {
  return -static_cast<float>(layer * 64 + head * 8 + token) / 16.0f;
}

std::vector<float> hidden_of(std::uint32_t layer) {
  std::vector<float> values;
  for (std::uint64_t t = 0; t < kTokens; ++t) {
    for (std::uint64_t i = 0; i < kHidden; ++i) values.push_back(hidden_at(layer, t, i));
  }
  return values;
}

void put(TraceWriter& writer, const std::string& path, DType type, const h5::Shape& shape,
         const std::vector<float>& values) {
  std::vector<std::byte> raw(values.size() * size_of(type));
  narrow(type, values, raw);
  writer.create_tensor(path, type, shape).write_raw(h5::Shape(shape.size(), 0), shape, raw);
}

/// `layers` of a model of four: 4 + 2 tokens, two KV heads of two channels; hidden states and, if wanted,
/// retention in every layer, the final hidden states (as those of a layer 9).
void write_trace(const std::string& path, const std::vector<std::uint32_t>& layers, bool extras = true) {
  TraceHeader header;
  header.num_layers = 4;
  header.num_query_heads = header.num_kv_heads = kHeads;
  header.head_dim = header.value_dim = 2;
  header.prompt_len = 4;
  header.decode_len = 2;
  TraceWriter writer(path, header);
  for (const std::uint32_t layer : layers) {
    const std::string at = "layers/" + layer_name(layer);
    writer.root().write_column(at + "/query_position", std::vector<std::int32_t>{4, 5});
    for (const char* name : {"/key", "/value"})
      put(writer, at + name, DType::bfloat16, {kHeads, kTokens, 2}, std::vector<float>(24, 0.5f));
    put(writer, at + "/query", DType::bfloat16, {kHeads, 2, 2}, std::vector<float>(8, 1.0f));
    if (!extras) continue;
    put(writer, at + "/hidden", DType::bfloat16, {kTokens, kHidden}, hidden_of(layer));
    std::vector<float> logs;
    for (std::uint64_t h = 0; h < kHeads; ++h) {
      for (std::uint64_t t = 0; t < kTokens; ++t) logs.push_back(retention_at(layer, h, t));
    }
    put(writer, at + "/retention", DType::float32, {kHeads, kTokens}, logs);
  }
  if (extras) put(writer, "final_hidden", DType::bfloat16, {kTokens, kHidden}, hidden_of(9));
  writer.finish();
}

void expect_hidden(MatrixView<const float> found, std::uint32_t layer, std::uint64_t first,
                   std::uint64_t count) {
  ASSERT_EQ(found.rows, count);
  ASSERT_EQ(found.cols, kHidden);
  for (std::size_t t = 0; t < count; ++t) {
    for (std::size_t i = 0; i < kHidden; ++i) EXPECT_EQ(found(t, i), hidden_at(layer, first + t, i));
  }
}

TEST(TraceReader, GivesHiddenStatesAndRetentionOfRecordedLayers) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {1, 3});
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  EXPECT_EQ(reader.info().final_hidden_size, kHidden);
  EXPECT_EQ(reader.info().layers[1].input_size, kHidden);
  expect_hidden(reader.read_hidden(1, 0, kTokens).view(), 3, 0, kTokens);
  expect_hidden(reader.read_hidden(0, 2, 3).view(), 1, 2, 3);
  expect_hidden(reader.read_final_hidden(4, 2).view(), 9, 4, 2);
  const Matrix<float> logs = reader.read_retention(1);
  ASSERT_EQ(logs.rows(), kHeads);
  ASSERT_EQ(logs.cols(), kTokens);
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t t = 0; t < kTokens; ++t) EXPECT_EQ(logs(h, t), retention_at(3, h, t));
  }
  EXPECT_THROW(static_cast<void>(reader.read_final_hidden(4, 3)), InternalError);
}

TEST(TraceReader, NamesTheRecordersOptionForWhatIsMissing) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {1}, false);
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  EXPECT_EQ(reader.info().final_hidden_size, 0u);
  expect_contains(user_error([&] { static_cast<void>(reader.read_hidden(0, 0, 1)); }),
                  "t.h5: /layers/001/hidden is missing, record it with kvsim-record --hidden");
  expect_contains(user_error([&] { static_cast<void>(reader.read_retention(0)); }),
                  "/layers/001/retention is missing, record it with kvsim-record --retention-gates FILE");
  expect_contains(user_error([&] { static_cast<void>(reader.read_final_hidden(0, 1)); }),
                  "/final_hidden is missing, record it with kvsim-record --final-hidden");
}

TEST(TraceReader, RefusesHiddenStatesOfAnotherNumberOfTokens) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {1}, false);
  h5::File::open_for_writing(folder.file("t.h5"))
      .write_array("final_hidden", {kTokens - 1, 3}, std::span<const float>(std::vector<float>(15, 0.0f)));
  expect_contains(user_error([&] { TraceReader::open(folder.file("t.h5")); }),
                  "/final_hidden: found the shape [5, 3], expected [6, any]");
}

TEST(CheckTraceRetention, FindsARetentionRateAboveOne) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t.h5");
  write_trace(path, {1});
  EXPECT_TRUE(check_trace(path, {}).good());
  {
    h5::File file = h5::File::open_for_writing(path);
    const float above = 0.25f;
    file.dataset("layers/001/retention")
        .write_raw(h5::Shape{1, 3}, h5::Shape{1, 1}, std::as_bytes(std::span(&above, 1)));
  }
  const CheckReport report = check_trace(path, {});
  ASSERT_EQ(report.findings.size(), 2u);
  expect_contains(report.findings[0], "/@digest");
  expect_contains(
      report.findings[1],
      "/layers/001/retention: head 1: found 0.25 at token 3, expected the log of a rate, at most 0");
  expect_contains(user_error([&] { static_cast<void>(TraceReader::open(path).read_retention(0)); }),
                  "found 0.25 at head 1, token 3");
}

TEST(CutTraceExtras, CarriesHiddenStatesAndRetentionAlong) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {1, 3});
  CutOptions options;
  options.layers = {3};
  options.heads = {1};
  options.steps = 1;
  EXPECT_TRUE(cut_trace(folder.file("t.h5"), folder.file("part.h5"), options).empty());
  const TraceReader part = TraceReader::open(folder.file("part.h5"));
  expect_hidden(part.read_hidden(0, 0, 5).view(), 3, 0, 5);
  expect_hidden(part.read_final_hidden(0, 5).view(), 9, 0, 5);
  const Matrix<float> logs = part.read_retention(0);
  ASSERT_EQ(logs.rows(), 1u);
  ASSERT_EQ(logs.cols(), 5u);
  for (std::size_t t = 0; t < 5; ++t) EXPECT_EQ(logs(0, t), retention_at(3, 1, t));
}

TEST(MergeTracesExtras, CarriesHiddenStatesAndRetentionAlong) {
  const TemporaryFolder folder;
  write_trace(folder.file("a.h5"), {1});
  write_trace(folder.file("b.h5"), {3});
  merge_traces({folder.file("a.h5"), folder.file("b.h5")}, folder.file("both.h5"));
  const TraceReader both = TraceReader::open(folder.file("both.h5"));
  expect_hidden(both.read_hidden(1, 0, kTokens).view(), 3, 0, kTokens);
  expect_hidden(both.read_final_hidden(0, kTokens).view(), 9, 0, kTokens);
  EXPECT_EQ(both.read_retention(1)(1, 2), retention_at(3, 1, 2));
}

/// A safetensors file by its documentation: length, JSON, raw values.
void write_gates(const std::string& path, std::uint32_t layer, const std::string& metadata,
                 std::uint64_t width = 2) {
  struct Array {
    std::string part, shape;
    std::vector<float> values;
  };
  std::vector<float> up(width * kHidden), up_bias(width), down(kHeads * width);
  for (std::size_t i = 0; i < up.size(); ++i) up[i] = static_cast<float>(i % 5) - 2.0f;
  for (std::size_t i = 0; i < width; ++i) up_bias[i] = 0.25f * static_cast<float>(i);
  for (std::size_t i = 0; i < down.size(); ++i) down[i] = 1.5f - static_cast<float>(i);
  const std::vector<Array> arrays{{"up.weight", fmt::format("[{},{}]", width, kHidden), up},
                                  {"up.bias", fmt::format("[{}]", width), up_bias},
                                  {"down.weight", fmt::format("[{},{}]", kHeads, width), down},
                                  {"bias", "[2]", {3.0f, -1.0f}}};
  std::string header = "{" + metadata, body;
  for (const Array& a : arrays) {
    const std::size_t begin = body.size();
    body.append(reinterpret_cast<const char*>(a.values.data()), a.values.size() * sizeof(float));
    header += fmt::format(R"({}"layers.{}.{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}})",
                          header.back() == '{' ? "" : ",", layer, a.part, a.shape, begin, body.size());
  }
  header += "}";
  std::string length(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  write_bytes(path, length + header + body);
}

/// The gate's formula with nothing but the arrays that `write_gates` wrote.
double expected_log_retention(std::uint64_t head, std::uint64_t token, double (*activation)(double)) {
  double z = head == 0 ? 3.0 : -1.0;
  for (std::uint64_t i = 0; i < 2; ++i) {
    double u = 0.25 * static_cast<double>(i);
    for (std::uint64_t k = 0; k < kHidden; ++k) {
      u += (static_cast<double>((i * kHidden + k) % 5) - 2.0) * static_cast<double>(hidden_at(3, token, k));
    }
    z += (1.5 - static_cast<double>(head * 2 + i)) * activation(u);
  }
  return std::log(1.0 / (1.0 + std::exp(-z)));
}

TEST(RetentionGates, FollowTheFormulaOfTheGate) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {1, 3});
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  const auto silu = [](double x) { return x / (1.0 + std::exp(-x)); };
  const auto relu = [](double x) { return x > 0.0 ? x : 0.0; };
  for (const bool named : {false, true}) {
    write_gates(folder.file("g.safetensors"), 3, named ? R"("__metadata__":{"activation":"relu"})" : "");
    const RetentionGates gates = RetentionGates::open(folder.file("g.safetensors"));
    const Matrix<float> logs = compute_retention(gates, reader, 1);
    ASSERT_EQ(logs.rows(), kHeads);
    ASSERT_EQ(logs.cols(), kTokens);
    for (std::size_t h = 0; h < kHeads; ++h) {
      for (std::size_t t = 0; t < kTokens; ++t) {
        const double expected = expected_log_retention(h, t, named ? +relu : +silu);
        EXPECT_NEAR(logs(h, t), expected, 1e-6 * std::fabs(expected)) << h << " " << t;
        EXPECT_LE(logs(h, t), 0.0f);
      }
    }
  }
}

TEST(CutTraceExtras, ComputesRetentionAnewFromHiddenStates) {
  const TemporaryFolder folder;
  write_trace(folder.file("t.h5"), {1, 3});
  write_gates(folder.file("g.safetensors"), 3, "");
  CutOptions options;
  options.layers = {3};
  options.heads = {1};
  options.steps = 1;
  options.retention_gates = folder.file("g.safetensors");
  cut_trace(folder.file("t.h5"), folder.file("part.h5"), options);
  const Matrix<float> all = compute_retention(RetentionGates::open(folder.file("g.safetensors")),
                                              TraceReader::open(folder.file("t.h5")), 1);
  const Matrix<float> part = TraceReader::open(folder.file("part.h5")).read_retention(0);
  ASSERT_EQ(part.rows(), 1u);
  ASSERT_EQ(part.cols(), 5u);
  for (std::size_t t = 0; t < 5; ++t) EXPECT_EQ(part(0, t), all(1, t));
  EXPECT_NE(part(0, 0), retention_at(3, 1, 0));
  options.layers = {1};
  expect_contains(user_error([&] { cut_trace(folder.file("t.h5"), folder.file("none.h5"), options); }),
                  "g.safetensors: holds no array 'layers.1.up.weight'");
  write_trace(folder.file("bare.h5"), {3}, false);
  options.layers = {3};
  expect_contains(user_error([&] { cut_trace(folder.file("bare.h5"), folder.file("none.h5"), options); }),
                  "/layers/003/hidden is missing, record it with kvsim-record --hidden");
}

TEST(RetentionGates, NameTheArrayThatDoesNotFit) {
  const TemporaryFolder folder;
  const std::string path = folder.file("g.safetensors");
  write_gates(path, 3, "");
  const RetentionGates gates = RetentionGates::open(path);
  EXPECT_NO_THROW(gates.check(3, kHidden, kHeads));
  expect_contains(user_error([&] { gates.check(3, 5, kHeads); }),
                  "g.safetensors: layers.3.up.weight: found the shape [2, 3], expected [2, 5]");
  expect_contains(user_error([&] { gates.check(3, kHidden, 8); }),
                  "layers.3.down.weight: found the shape [2, 2], expected [8, 2]");
  expect_contains(user_error([&] { gates.check(1, kHidden, kHeads); }),
                  "holds no array 'layers.1.up.weight'");
  write_gates(path, 3, R"("__metadata__":{"activation":"swish"})");
  expect_contains(user_error([&] { RetentionGates::open(path); }),
                  "activation: found 'swish', expected silu, gelu, gelu_tanh or relu");
  write_bytes(path, std::string("\x02\0\0\0\0\0\0\0{}", 10));
  expect_contains(user_error([&] { RetentionGates::open(path); }), "holds no retention gates");
}

}  // namespace
}  // namespace kvsim
