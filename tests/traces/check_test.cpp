// trace check: finds each kind of damage, names the first offending index, and passes good traces.
#include "traces/check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/traces/support.h"
#include "traces/digest.h"
#include "traces/header.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;

/// Softmax attention of one query in double precision, from the definition.
std::vector<double> plain_attention(const HeadBlock& block, std::size_t row, std::size_t position,
                                    const LayerInfo& layer) {
  std::vector<double> weights(block.key.rows(), 0.0);
  const std::size_t first =
      layer.sliding_window == 0 || position < layer.sliding_window ? 0 : position + 1 - layer.sliding_window;
  double sum = 0.0;
  for (std::size_t j = first; j <= position; ++j) {
    double dot = 0.0;
    for (std::size_t c = 0; c < block.key.cols(); ++c)
      dot += static_cast<double>(block.query(row, c)) * static_cast<double>(block.key(j, c));
    weights[j] = std::exp(dot * layer.softmax_scale);
    sum += weights[j];
  }
  for (double& w : weights) w /= sum;
  return weights;
}

/// Adds the recorded attention that a perfect recorder would have written; with `swapped`, of the other KV
/// head's keys.
void record_attention(const std::string& path, bool swapped = false) {
  std::vector<std::vector<float>> layers;
  {
    const TraceReader reader = TraceReader::open(path);
    const TraceInfo& info = reader.info();
    for (std::size_t l = 0; l < info.layers.size(); ++l) {
      BlockRequest request;
      request.all_queries = true;
      std::vector<float> all;
      for (std::uint32_t h = 0; h < info.num_query_heads; ++h) {
        const std::uint32_t kv = h / info.group();
        HeadBlock block = reader.read_head(l, kv, request);
        if (swapped) block.key = reader.read_head(l, 1 - kv, request).key;
        const std::size_t rows = info.layers[l].query_position.size();
        for (std::size_t i = 0; i < rows; ++i) {
          for (const double w : plain_attention(block, (h % info.group()) * rows + i,
                                                info.layers[l].query_position[i], info.layers[l])) {
            all.push_back(static_cast<float>(w));
          }
        }
      }
      layers.push_back(std::move(all));
    }
  }
  h5::File file = h5::File::open_for_writing(path);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string at = "layers/" + layer_name(static_cast<std::uint32_t>(l));
    const std::uint64_t queries = file.dataset(at + "/query_position").elements(),
                        tokens = file.dataset(at + "/key").shape()[1];
    file.write_array(at + "/attention", {layers[l].size() / queries / tokens, queries, tokens},
                     std::span<const float>(layers[l]));
  }
  file.set_attribute("digest", file_digest(file));
  file.close();
}

class CheckTrace : public ::testing::Test {
 protected:
  void SetUp() override {
    SynthOptions options = testing::small_options();
    options.dtype = DType::float32;
    synthesise(options, path_);
  }
  /// Puts a value into a float32 tensor and makes the digest fit again.
  void change(const std::string& dataset, const h5::Shape& at, float value, bool mend_digest = true) {
    h5::File file = h5::File::open_for_writing(path_);
    file.dataset(dataset).write_raw(at, h5::Shape(at.size(), 1), std::as_bytes(std::span(&value, 1)));
    if (mend_digest) file.set_attribute("digest", file_digest(file));
    file.close();
  }
  std::string only_finding() {
    const CheckReport report = check_trace(path_, {});
    EXPECT_EQ(report.findings.size(), 1u);
    return report.findings.empty() ? "" : report.findings.front();
  }
  TemporaryFolder folder_;
  std::string path_ = folder_.file("t.h5");
};

TEST_F(CheckTrace, PassesAGoodTraceAndSaysHowGood) {
  record_attention(path_);
  const CheckReport report = check_trace(path_, {});
  EXPECT_TRUE(report.good()) << report.findings.front();
  std::string notes;
  for (const std::string& note : report.notes) notes += note + "\n";
  expect_contains(notes, "digest kvd1:");
  expect_contains(notes, "/layers/001/attention: largest deviation from recomputed attention");
  expect_contains(notes, "/layers/000/attention_stats/sum: largest relative deviation");
}

TEST_F(CheckTrace, FindsAChangedByte) {
  change("layers/000/key", {1, 5, 3}, 0.125f, false);
  expect_contains(only_finding(), "/@digest: found kvd1:");
}

TEST_F(CheckTrace, NamesTheFirstNan) {
  change("layers/001/value", {1, 5, 3}, NAN);
  expect_contains(only_finding(), "/layers/001/value: found nan at head 1, token 5, channel 3");
}

TEST_F(CheckTrace, FindsAttentionThatIsNotThatOfTheQueries) {
  record_attention(path_);
  change("layers/001/attention", {2, 7, 3}, 0.9f);
  const CheckReport report = check_trace(path_, {});
  ASSERT_EQ(report.findings.size(), 2u);
  expect_contains(report.findings[0],
                  "/layers/001/attention: head 2, query 7 (position 7): found a row sum of");
  expect_contains(report.findings[1],
                  "/layers/001/attention: head 2, query 7 (position 7), token 3: found 0.9, recomputed");
}

TEST_F(CheckTrace, FindsAttentionToTokensThatCannotBeSeen) {
  record_attention(path_);
  change("layers/000/attention", {0, 40, 10},
         0.001f);  // 20 tokens of window end at position 40 with token 21
  expect_contains(check_trace(path_, {}).findings.back(),
                  "query 40 (position 40), token 10: found 0.001, recomputed 0");
}

TEST_F(CheckTrace, TellsAWrongMappingOfHeads) {
  record_attention(path_, true);
  const CheckReport report = check_trace(path_, {});
  ASSERT_FALSE(report.good());
  expect_contains(report.findings.front(), "the keys of KV head 1 explain it: wrong head mapping");
}

TEST_F(CheckTrace, FindsSumsThatDoNotAddUp) {
  change("layers/000/attention_stats/sum", {3, 2}, 40.0f);
  expect_contains(only_finding(), "/layers/000/attention_stats/sum: head 3: found sums that add up to");
}

TEST_F(CheckTrace, FindsCovariancesThatAreNone) {
  change("layers/000/query_stats/covariance", {1, 4, 4}, -1.0f);
  expect_contains(only_finding(), "head 1: found the variance -1 of channel 4");
  change("layers/000/query_stats/covariance", {1, 4, 4}, 1.0f);
  change("layers/000/query_stats/covariance", {1, 6, 2}, 50.0f);
  expect_contains(only_finding(), "expected a symmetric matrix");
}

TEST(CheckTraceRecorded, PassesTheShippedTrace) {
  const std::string path = std::string(KVSIM_SOURCE_DIR) + "/tests/data/smollm2-harbour.h5";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const CheckReport report = check_trace(path, {});
  EXPECT_TRUE(report.good()) << report.findings.front();
}

}  // namespace
}  // namespace kvsim
