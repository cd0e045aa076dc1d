// Synthetic traces: valid, the same bytes for any number of threads, and of the promised shape.
#include "traces/synth.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/replay.h"
#include "tests/traces/support.h"
#include "traces/check.h"
#include "traces/synth_math.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::read_bytes;
using testing::small_options;
using testing::TemporaryFolder;
using testing::user_error;

TEST(Synth, SameOptionsGiveTheSameBytesForAnyNumberOfThreads) {
  const TemporaryFolder folder;
  SynthOptions options = small_options();
  options.prompt = 2100;  // several blocks, the last one short
  options.query_window = 1500;
  options.threads = 1;
  synthesise(options, folder.file("one.h5"));
  const std::string one = read_bytes(folder.file("one.h5"));
  for (const int threads : {2, 5}) {
    options.threads = threads;
    synthesise(options, folder.file("more.h5"));
    EXPECT_TRUE(read_bytes(folder.file("more.h5")) == one) << threads;
  }
  options.seed += 1;
  synthesise(options, folder.file("other.h5"));
  EXPECT_FALSE(read_bytes(folder.file("other.h5")) == one);
}

TEST(Synth, BytesNeverChangeBetweenVersions) {
  const TemporaryFolder folder;
  SynthOptions options = small_options();
  options.stats = false;  // sums of the kernels are tested for themselves
  synthesise(options, folder.file("t.h5"));
  // Obtained by running this very test once; a change means that published synthetic traces cannot be made
  // again.
  EXPECT_EQ(TraceReader::open(folder.file("t.h5")).info().digest, "kvd1:24e7ce74279b6d27");
}

TEST(Synth, AWindowedRecordingHoldsTheSameQueries) {
  const TemporaryFolder folder;
  SynthOptions options = small_options();
  options.prompt = 1400;
  synthesise(options, folder.file("all.h5"));
  options.query_window = 300;
  synthesise(options, folder.file("window.h5"));
  const TraceReader all = TraceReader::open(folder.file("all.h5")),
                    window = TraceReader::open(folder.file("window.h5"));
  EXPECT_EQ(all.info().layers[0].prompt_queries(1400), 1400u);
  EXPECT_EQ(window.info().layers[0].prompt_queries(1400), 300u);
  BlockRequest request;
  request.prompt_queries = 300;
  const HeadBlock a = all.read_head(1, 1, request), b = window.read_head(1, 1, request);
  ASSERT_EQ(a.query.rows(), b.query.rows());
  for (std::size_t i = 0; i < a.query.rows() * a.query.cols(); ++i)
    ASSERT_EQ(a.query.data()[i], b.query.data()[i]) << i;
}

TEST(Synth, EveryGeometryPassesItsOwnCheck) {
  const TemporaryFolder folder;
  for (const DType type : {DType::float16, DType::bfloat16, DType::float32}) {
    for (const auto& [query_heads, kv_heads, d] :
         {std::tuple(6u, 2u, 16u), std::tuple(3u, 3u, 6u), std::tuple(7u, 1u, 9u)}) {
      SynthOptions options = small_options();
      options.dtype = type;
      options.query_heads = query_heads;
      options.kv_heads = kv_heads;
      options.head_dim = d;
      synthesise(options, folder.file("t.h5"));
      const CheckReport report = check_trace(folder.file("t.h5"), {});
      EXPECT_TRUE(report.good()) << (report.good() ? "" : report.findings.front());
    }
  }
}

TEST(Synth, TinyPromptsWork) {
  const TemporaryFolder folder;
  SynthOptions options = small_options();
  options.prompt = 1;
  options.decode = 1;
  options.stats = false;
  synthesise(options, folder.file("t.h5"));
  EXPECT_EQ(TraceReader::open(folder.file("t.h5")).info().tokens(), 2u);
}

/// Mean share of the decode queries' attention that falls on tokens of a kind, per query head.
struct Shape {
  double most_sinks = 0.0, most_recent = 0.0, most_needles = 0.0, least_peaked = 1.0, most_peaked = 0.0;
};

Shape measure(const TraceReader& reader) {
  const TraceInfo& info = reader.info();
  Shape shape;
  for (std::size_t l = 0; l < info.layers.size(); ++l) {
    for (std::uint32_t h = 0; h < info.num_kv_heads; ++h) {
      const HeadBlock block = reader.read_head(l, h, {});
      const std::size_t steps = info.decode_len;
      std::vector<TokenIndex> position(block.query.rows());
      for (std::size_t r = 0; r < position.size(); ++r)
        position[r] = static_cast<TokenIndex>(info.prompt_len + r % steps);
      Matrix<float> weights(info.tokens(), position.size(), kRowPad);
      attention_weights(block.key.view(), block.query.view(), position,
                        {info.layers[l].softmax_scale, 0.0, 0}, 0, position.size(), weights.view());
      for (std::size_t g = 0; g < info.group(); ++g) {
        double sinks = 0.0, recent = 0.0, needles = 0.0, top = 0.0;
        for (std::size_t r = g * steps; r < (g + 1) * steps; ++r) {
          std::vector<double> row;
          for (std::size_t j = 0; j < info.tokens(); ++j) {
            const double w = static_cast<double>(weights(j, r));
            row.push_back(w);
            if (j < 4) sinks += w;
            if (j + 32 > position[r]) recent += w;
            for (const Segment& s : info.segments)
              needles += s.kind == "evidence" && j >= s.begin && j < s.end ? w : 0.0;
          }
          std::partial_sort(row.begin(), row.begin() + 20, row.end(), std::greater<>());
          for (std::size_t i = 0; i < 20; ++i) top += row[i];
        }
        const auto n = static_cast<double>(steps);
        shape.most_sinks = std::max(shape.most_sinks, sinks / n);
        shape.most_recent = std::max(shape.most_recent, recent / n);
        shape.most_needles = std::max(shape.most_needles, needles / n);
        shape.least_peaked = std::min(shape.least_peaked, top / n);
        shape.most_peaked = std::max(shape.most_peaked, top / n);
      }
    }
  }
  return shape;
}

TEST(Synth, AttentionHasSinksLocalityNeedlesAndUnlikeHeads) {
  const TemporaryFolder folder;
  SynthOptions options = small_options();
  options.head_dim = options.value_dim = 64;
  options.layers = 4;
  options.prompt = 1024;
  options.decode = 16;
  options.stats = options.output_proj = false;
  options.sliding_window = 0;
  synthesise(options, folder.file("t.h5"));
  const Shape shape = measure(TraceReader::open(folder.file("t.h5")));
  EXPECT_GT(shape.most_sinks, 0.3);    // some head sinks,
  EXPECT_GT(shape.most_recent, 0.2);   // some looks back a little,
  EXPECT_GT(shape.most_needles, 0.3);  // some finds needles;
  EXPECT_GT(shape.most_peaked, 0.9);   // 20 of 1040 tokens hold nearly everything in some heads,
  EXPECT_LT(shape.least_peaked, 0.6);  // and not in others
}

TEST(Synth, ImpossibleOptionsAreRefusedAndLeaveNothing) {
  const TemporaryFolder folder;
  SynthOptions options = small_options();
  options.query_heads = 5;
  expect_contains(user_error([&] { synthesise(options, folder.file("t.h5")); }),
                  "--query-heads 5: expected a multiple of --kv-heads");
  options = small_options();
  options.query_window = 49;
  expect_contains(user_error([&] { synthesise(options, folder.file("t.h5")); }), "at most --prompt");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SynthMath, AgreesWithTheMathLibrary) {
  for (double x = -40.0; x < 40.0; x += 0.37)
    EXPECT_NEAR(synth::exponential(x) / std::exp(x), 1.0, 1e-14) << x;
  for (double x = 1.0; x < 1e9; x *= 1.7) EXPECT_NEAR(synth::logarithm(x), std::log(x), 1e-13) << x;
  for (double x = 0.0; x < 1e5; x = x * 1.3 + 0.01) {
    EXPECT_NEAR(synth::rotation(x).cosine, std::cos(x), 1e-9) << x;
    EXPECT_NEAR(synth::rotation(x).sine, std::sin(x), 1e-9) << x;
  }
}

}  // namespace
}  // namespace kvsim
