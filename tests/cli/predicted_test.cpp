// Metrics of whole traces as a user meets them: the same bytes for any threads, shards, memory and resumption.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/philox.h"
#include "tests/cli/program.h"
#include "traces/h5/file.h"
#include "traces/trace_reader.h"

namespace kvsim::test {
namespace {

constexpr const char* kSweep =
    "--policy knorm --policy 'snapkv(window=16,unit=query)' --policy decode:streaming_llm --policy 'ada(score=snapkv(window=16))' --budget 16,40% --quiet --detail steps "
    "--metrics output_error,predicted_kl,predicted_kl_layers,predicted_kl_quadratic,predicted_kl_linear,residual_error,projected_sum";

/// A synthetic trace with output projections, to which made-up sensitivities and norms are added.
std::string trace_with_sensitivities(const Folder& folder) {
  const std::string path = folder / "sensitive.h5";
  const Outcome made = shell(fmt::format(
      "kvsim trace synth --layers 3 --query-heads 4 --kv-heads 2 --head-dim 16 --prompt 300 --decode 24 --dtype float32 --output-proj -o {}", path));
  EXPECT_EQ(made.code, 0) << made.text;
  h5::File file = h5::File::open_for_writing(path);
  Philox random(3, 1);
  for (const char* layer : {"layers/000", "layers/001", "layers/002"}) {
    const h5::Shape origin{0, 0, 0, 0}, shape{3, 4, 24, 16};
    std::vector<float> gradients(3 * 4 * 24 * 16);
    for (float& g : gradients) g = static_cast<float>(random.next_double() - 0.5);
    file.create_dataset(fmt::format("{}/sensitivity", layer), h5::Element::float32, shape).write_raw(origin, shape, std::as_bytes(std::span(gradients)));
    std::vector<float> norms(324);
    for (float& norm : norms) norm = static_cast<float>(1 + random.next_double());
    file.write_column(fmt::format("{}/residual_norm", layer), norms);
  }
  return path;
}

std::vector<double> column(const std::string& folder, const char* name) { return h5::File::open(folder + "/results.h5").read_column<double>(name); }

TEST(PredictedKl, IsTheSameForAnyThreadsShardsAndMemory) {
  const Folder folder;
  const std::string trace = trace_with_sensitivities(folder);
  const auto run = [&](const std::string& options, const std::string& name) {
    const Outcome outcome = shell(fmt::format("kvsim run {} {} {} --out {}", trace, kSweep, options, folder / name));
    EXPECT_EQ(outcome.code, 0) << outcome.text;
  };
  run("--threads 1", "one");
  run("--threads 2", "two");
  // The least that is accepted: decode steps in chunks, one variant at a time.
  std::string least = "1";
  for (int tries = 0; tries < 4; ++tries) {
    const Outcome tried = shell(fmt::format("kvsim run {} {} --memory {}M --out {}", trace, kSweep, least, folder / "small"));
    if (tried.code == 0) break;
    ASSERT_EQ(tried.code, 2) << tried.text;
    const std::size_t at = tried.text.rfind("needs ");
    ASSERT_NE(at, std::string::npos) << tried.text;
    least = std::to_string(std::stoul(tried.text.substr(at + 6)));
  }
  ASSERT_TRUE(std::filesystem::exists(folder / "small/summary.csv")) << "with " << least << " MiB";
  for (const int i : {1, 2, 3}) run(fmt::format("--shard {}/3", i), fmt::format("shard{}", i));
  const Outcome merged = shell(fmt::format("kvsim merge {} {} {} --out {}", folder / "shard3", folder / "shard1", folder / "shard2", folder / "merged"));
  EXPECT_EQ(merged.code, 0) << merged.text;
  const std::string expected = read(folder / "one/summary.csv");
  EXPECT_GT(lines(expected), 10u);
  for (const char* name : {"two", "small", "merged"}) {
    EXPECT_EQ(read(folder / (std::string(name) + "/summary.csv")), expected) << name;
    EXPECT_EQ(column(folder / name, "trace_detail/cell/variant"), column(folder / "one", "trace_detail/cell/variant"));
  }
  for (const char* metric : {"predicted_kl", "predicted_kl_layers", "predicted_kl_quadratic", "predicted_kl_linear", "residual_error", "projected_sum"}) {
    const std::vector<double> means = column(folder / "one", fmt::format("summary/{}_mean", metric).c_str());
    const std::vector<double> whole = column(folder / "one", fmt::format("summary/{}_count", metric).c_str());
    for (const double count : whole) EXPECT_EQ(count, 24) << metric;
    for (const double mean : means) EXPECT_TRUE(std::isfinite(mean) && mean >= 0) << metric;
    EXPECT_GT(*std::max_element(means.begin(), means.end()), 0.0) << metric;
    const h5::File results = h5::File::open(folder / "one/results.h5");
    const h5::Dataset steps = results.dataset(fmt::format("trace_detail/{}", metric));
    ASSERT_EQ(steps.shape(), (h5::Shape{means.size(), 24}));
    const std::vector<float> values = steps.read<float>();
    for (std::size_t cell = 0; cell < means.size(); ++cell) {  // /summary and /trace_detail have one order
      double sum = 0;
      for (std::size_t t = 0; t < 24; ++t) sum += static_cast<double>(values[cell * 24 + t]);
      EXPECT_NEAR(sum / 24, means[cell], 1e-5 * std::max(1.0, means[cell])) << metric;
    }
  }
}

TEST(PredictedKl, IsEmptyWithoutRecordedNorms) {
  const Folder folder;
  const std::string trace = small_trace(folder);
  EXPECT_EQ(shell(fmt::format("kvsim run {} --policy knorm --budget 16 --quiet --out {}", trace, folder / "out")).code, 0);
  for (const double count : column(folder / "out", "summary/predicted_kl_count")) EXPECT_EQ(count, 0);
  const Outcome info = shell("kvsim trace info " + trace);
  EXPECT_NE(info.text.find("predicted_kl is undefined (--output-proj)"), std::string::npos) << info.text;
}

TEST(PredictedKl, BelongsToATraceAndNotToALayer) {
  const Folder folder;
  const std::string trace = trace_with_sensitivities(folder);
  EXPECT_EQ(shell(fmt::format("kvsim run {} {} --out {}", trace, kSweep, folder / "out")).code, 0);
  const Outcome ranking = shell(fmt::format("kvsim report {} --y predicted_kl --budget 16", folder / "out"));
  EXPECT_EQ(ranking.code, 0) << ranking.text;
  EXPECT_NE(ranking.text.find("predicted_kl"), std::string::npos) << ranking.text;
  const Outcome help = shell("kvsim help predicted_kl");
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.text.find("per step of the trace"), std::string::npos) << help.text;
}

}  // namespace
}  // namespace kvsim::test
