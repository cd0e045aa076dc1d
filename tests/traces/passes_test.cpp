// First passes and the second pass: read back as written, carried by cut and merge, refused where they do not
// fit.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/traces/support.h"
#include "traces/check.h"
#include "traces/cut.h"
#include "traces/digest.h"
#include "traces/header.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;
using testing::user_error;

constexpr std::uint64_t kPseudo = 3, kKept = 5;

/// Numbers that say where they stand, between 0 and 1.
std::vector<float> numbered(std::size_t count, std::size_t first) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>((first + i) % 1021) / 1024.0f;
  return values;
}

/// Adds the pass `snapkv-5` and two second-pass statistics to every layer of a trace of small_options.
void add_passes(const std::string& path) {
  const TraceInfo info = TraceReader::open(path).info();
  h5::File file = h5::File::open_for_writing(path);
  file.write_column("lookahead/snapkv-5/token",
                    std::vector<std::int32_t>{info.token_id[info.prompt_len], 7, 9});
  file.write_column("lookahead/snapkv-5/position", std::vector<std::int32_t>{48, 49, 50});
  file.write_column("second_pass/token", std::vector<std::int32_t>(60, 1));
  const std::string prompt = prompt_hash({info.token_id.data(), info.prompt_len});
  h5::Group pass = file.group("lookahead/snapkv-5"), second = file.group("second_pass");
  pass.set_attribute("method", "snapkv(window=2)");
  pass.set_attribute("capacity", 5);
  pass.set_attribute("window", 2);
  pass.set_attribute("stopped_at_eos", 0);
  pass.set_attribute("steps", 3);
  pass.set_attribute("cache_bytes", 12345);
  pass.set_attribute("prompt", prompt);
  second.set_attribute("method", "repeat");
  second.set_attribute("pieces", 1);
  second.set_attribute("prompt", prompt);
  for (const LayerInfo& layer : info.layers) {
    const std::string name = layer_name(layer.index);
    std::vector<float> queries = numbered(info.num_query_heads * kPseudo * info.head_dim, layer.index);
    if (layer.index == 0) {  // the first layer's first pseudo query is the first decode query
      const TraceReader reader = TraceReader::open(path);
      for (std::uint32_t h = 0; h < info.num_query_heads; ++h) {
        const HeadBlock block = reader.read_head(0, h / info.group(), {});
        const auto row = block.query.view().row_span((h % info.group()) * info.decode_len);
        std::copy(row.begin(), row.end(),
                  queries.begin() + static_cast<std::ptrdiff_t>(h * kPseudo * info.head_dim));
      }
    }
    file.write_array("lookahead/snapkv-5/layers/" + name + "/query",
                     {info.num_query_heads, kPseudo, info.head_dim}, std::span<const float>(queries));
    std::vector<std::int32_t> kept;
    for (std::int32_t h = 0; h < static_cast<std::int32_t>(info.num_query_heads); ++h) {
      for (const std::int32_t j : {h, h + 10, 46, 47, -1}) kept.push_back(j);
    }
    file.write_array("lookahead/snapkv-5/layers/" + name + "/kept", {info.num_query_heads, kKept},
                     std::span<const std::int32_t>(kept));
    for (const char* statistic : {"kvzip", "kvcompose_mean"}) {
      const auto table =
          numbered(info.num_query_heads * info.prompt_len, layer.index + (statistic[2] == 'z' ? 100 : 0));
      file.write_array("layers/" + name + "/second_pass/" + statistic,
                       {info.num_query_heads, info.prompt_len}, std::span<const float>(table));
    }
  }
  file.set_attribute("digest", file_digest(file));
  file.close();
}

class TracePasses : public ::testing::Test {
 protected:
  void SetUp() override {
    SynthOptions options = testing::small_options();
    options.dtype = DType::float32;
    options.layers = 3;
    synthesise(options, path_);
    add_passes(path_);
  }
  /// What a reader says after `change` was made to the file.
  std::string refusal(const std::function<void(h5::File&)>& change) {
    h5::File file = h5::File::open_for_writing(path_);
    change(file);
    file.close();
    return user_error([this] { TraceReader::open(path_); });
  }
  TemporaryFolder folder_;
  std::string path_ = folder_.file("t.h5"), part_ = folder_.file("part.h5");
};

BlockRequest passes_request() {
  BlockRequest request;
  request.lookahead = request.second_pass = true;
  return request;
}

TEST_F(TracePasses, HeaderTellsWhatWasRun) {
  const TraceInfo info = TraceReader::open(path_).info();
  ASSERT_EQ(info.lookaheads.size(), 1u);
  const LookaheadInfo& pass = info.lookaheads[0];
  EXPECT_EQ(pass.token_id, (std::vector<std::int32_t>{info.token_id[48], 7, 9}));
  EXPECT_EQ(pass.steps, 3u);
  EXPECT_EQ(pass.cache_bytes, 12345u);
  EXPECT_EQ(info.second_pass, (std::vector<std::string>{"kvcompose_mean", "kvzip"}));
  EXPECT_EQ(info.second_pass_run.method, "repeat");
  EXPECT_EQ(info.second_pass_run.tokens, 60u);
  EXPECT_EQ(info.second_pass_run.pieces, 1u);
}

TEST_F(TracePasses, BlocksHoldTheRowsOfTheirHeads) {
  const TraceReader reader = TraceReader::open(path_);
  const TraceInfo& info = reader.info();
  const std::size_t group = info.group(), d = info.head_dim, T = info.prompt_len;
  for (std::uint32_t kv = 0; kv < info.num_kv_heads; ++kv) {
    const HeadBlock block = reader.read_head(2, kv, passes_request()), plain = reader.read_head(2, kv, {});
    ASSERT_EQ(block.lookahead_query.size(), 1u);
    const Matrix<float>& query = block.lookahead_query.at("snapkv-5");
    ASSERT_EQ(query.rows(), group * kPseudo);
    const auto queries = numbered(info.num_query_heads * kPseudo * d, 2);
    const auto table = numbered(info.num_query_heads * T, 102);
    for (std::size_t r = 0; r < query.rows(); ++r) {
      for (std::size_t c = 0; c < d; ++c) EXPECT_EQ(query(r, c), queries[(kv * group * kPseudo + r) * d + c]);
    }
    const Matrix<float>& kvzip = block.second_pass.at("kvzip");
    ASSERT_EQ(kvzip.rows(), group);
    for (std::size_t g = 0; g < group; ++g) {
      for (std::size_t j = 0; j < T; ++j) EXPECT_EQ(kvzip(g, j), table[(kv * group + g) * T + j]);
    }
    EXPECT_TRUE(plain.lookahead_query.empty());
    EXPECT_TRUE(plain.second_pass.empty());
    EXPECT_EQ(block.bytes() - plain.bytes(), query.bytes() + 2 * kvzip.bytes());
  }
}

TEST_F(TracePasses, KeptSetsComeWithoutWhatFillsThemUp) {
  const auto kept = TraceReader::open(path_).read_lookahead_kept(1, "snapkv-5");
  ASSERT_EQ(kept.size(), 4u);
  EXPECT_EQ(kept[3], (std::vector<TokenIndex>{3, 13, 46, 47}));
  expect_contains(
      user_error([&] { TraceReader::open(path_).read_lookahead_kept(1, "snapkv-6"); }),
      "/lookahead/snapkv-6/layers/001/kept is missing, record it with kvsim-record --lookahead N");
}

TEST_F(TracePasses, CheckPassesAndFindsWhatCannotBe) {
  EXPECT_TRUE(check_trace(path_, {}).findings.empty());
  {
    h5::File file = h5::File::open_for_writing(path_);
    const float bad = 1.5f;
    file.dataset("layers/001/second_pass/kvzip")
        .write_raw(h5::Shape{2, 7}, h5::Shape{1, 1}, std::as_bytes(std::span(&bad, 1)));
    file.dataset("lookahead/snapkv-5/layers/000/query")
        .write_raw(h5::Shape{3, 0, 2}, h5::Shape{1, 1, 1}, std::as_bytes(std::span(&bad, 1)));
    file.set_attribute("digest", file_digest(file));
    file.close();
  }
  const auto findings = check_trace(path_, {}).findings;
  ASSERT_EQ(findings.size(), 2u);
  expect_contains(findings[0],
                  "/layers/001/second_pass/kvzip: head 2: found 1.5 at token 7, expected 0 to 1");
  expect_contains(findings[1], "the first pseudo query differs from the first decode query");
}

TEST_F(TracePasses, CutAndMergeCarryThem) {
  CutOptions low, high;
  low.layers = {0};
  high.layers = {1, 2};
  EXPECT_TRUE(cut_trace(path_, part_, low).empty());
  cut_trace(path_, folder_.file("high.h5"), high);
  merge_traces({part_, folder_.file("high.h5")}, folder_.file("joined.h5"));
  const TraceInfo whole = TraceReader::open(path_).info(),
                  joined = TraceReader::open(folder_.file("joined.h5")).info();
  EXPECT_EQ(joined.digest, whole.digest);
  EXPECT_EQ(joined.second_pass_run.pieces, 1u);
  EXPECT_EQ(joined.lookaheads.at(0).cache_bytes, 12345u);
  CutOptions heads;
  heads.heads = {1};
  cut_trace(path_, folder_.file("head.h5"), heads);
  const TraceReader a = TraceReader::open(path_), b = TraceReader::open(folder_.file("head.h5"));
  const HeadBlock x = a.read_head(1, 1, passes_request()), y = b.read_head(1, 0, passes_request());
  for (std::size_t r = 0; r < 2; ++r) {
    const auto expected = x.second_pass.at("kvzip").view().row_span(r),
               found = y.second_pass.at("kvzip").view().row_span(r);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), found.begin(), found.end()));
  }
  EXPECT_EQ(b.read_lookahead_kept(1, "snapkv-5").at(1), a.read_lookahead_kept(1, "snapkv-5").at(3));
}

TEST_F(TracePasses, PartsWithDifferentPassesAreNotJoined) {
  CutOptions low, high;
  low.layers = {0};
  high.layers = {1, 2};
  cut_trace(path_, part_, low);
  cut_trace(path_, folder_.file("high.h5"), high);
  {
    h5::File file = h5::File::open_for_writing(folder_.file("high.h5"));
    const std::int32_t other = 8;
    file.dataset("lookahead/snapkv-5/token")
        .write_raw(h5::Shape{1}, h5::Shape{1}, std::as_bytes(std::span(&other, 1)));
    file.close();
  }
  expect_contains(user_error([&] {
                    merge_traces({part_, folder_.file("high.h5")}, folder_.file("joined.h5"));
                  }),
                  "/lookahead/snapkv-5 is another first pass than in");
}

TEST_F(TracePasses, APassOfAnotherPromptIsRefused) {
  expect_contains(refusal([](h5::File& file) {
                    file.group("lookahead/snapkv-5").set_attribute("prompt", "kvd1:0123456789abcdef");
                  }),
                  "it was recorded with another prompt; record it anew");
}

TEST_F(TracePasses, ASecondPassOfAnotherModelIsRefused) {
  expect_contains(refusal([](h5::File& file) { file.group("second_pass").set_attribute("model", "other"); }),
                  "it was recorded with another model; record it anew");
}

TEST_F(TracePasses, WrongShapesAndPositionsAreRefused) {
  expect_contains(refusal([](h5::File& file) {
                    const std::int32_t late = 48;
                    file.dataset("lookahead/snapkv-5/layers/001/kept")
                        .write_raw(h5::Shape{0, 4}, h5::Shape{1, 1}, std::as_bytes(std::span(&late, 1)));
                  }),
                  "found 48 at 4, expected prompt positions below 48");
  expect_contains(refusal([](h5::File& file) {
                    const std::int32_t low = 3;
                    file.dataset("lookahead/snapkv-5/layers/001/kept")
                        .write_raw(h5::Shape{0, 4}, h5::Shape{1, 1}, std::as_bytes(std::span(&low, 1)));
                  }),
                  "found 3 after 47 at 4, expected ascending positions");
}

TEST_F(TracePasses, ATableOfAnotherLengthIsRefused) {
  expect_contains(
      refusal([](h5::File& file) {
        const std::vector<float> table(4 * 56);
        file.write_array("layers/000/second_pass/kvzip_plus", {4, 56}, std::span<const float>(table));
      }),
      "found the shape [4, 56], expected [4, 48]");
}

TEST_F(TracePasses, AStatisticThatALayerLacksIsNotPromised) {
  {
    h5::File file = h5::File::open_for_writing(path_);
    const std::vector<float> table(4 * 48);
    file.write_array("layers/001/second_pass/kvzip_plus", {4, 48}, std::span<const float>(table));
    file.close();
  }
  const TraceInfo info = TraceReader::open(path_).info();
  EXPECT_EQ(info.second_pass, (std::vector<std::string>{"kvcompose_mean", "kvzip"}));
  EXPECT_EQ(info.layers[1].second_pass.size(), 3u);
}

}  // namespace
}  // namespace kvsim
