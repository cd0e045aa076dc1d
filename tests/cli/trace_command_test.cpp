// kvsim trace: exit codes, messages and files of its subcommands.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "kernels/error.h"
#include "sim/cli/command.h"
#include "sim/cli/trace_commands.h"
#include "traces/h5/file.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

class TraceCommand : public ::testing::Test {
 protected:
  TraceCommand()
      : folder_(std::filesystem::temp_directory_path() / fmt::format("kvsim-trace-cli-{}", ::getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~TraceCommand() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  std::string file(const char* name) const { return (folder_ / name).string(); }

  /// Runs a command line split at blanks; FILE: names a file of the test's folder.
  int run(const std::string& line) const {
    Arguments arguments;
    for (std::size_t at = 0; at < line.size();) {
      const std::size_t end = std::min(line.find(' ', at), line.size());
      std::string word = line.substr(at, end - at);
      if (word.starts_with("FILE:")) word = file(word.c_str() + 5);
      arguments.push_back(word);
      at = end + 1;
    }
    ::testing::internal::CaptureStdout();
    try {
      const int code = trace_command(arguments);
      output_ = ::testing::internal::GetCapturedStdout();
      return code;
    } catch (...) {
      output_ = ::testing::internal::GetCapturedStdout();
      throw;
    }
  }
  std::string refused(const std::string& line) const {
    try {
      run(line);
    } catch (const UserError& error) {
      return error.what();
    }
    ADD_FAILURE() << "expected a UserError: " << line;
    return {};
  }
  void expect_refused(const std::string& line, const std::string& part) const {
    const std::string text = refused(line);
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
  }
  void expect_printed(const std::string& part) const {
    EXPECT_NE(output_.find(part), std::string::npos) << "'" << part << "' is not in: " << output_;
  }

  std::filesystem::path folder_;
  mutable std::string output_;
};

constexpr const char* kSynth =
    "synth --layers 2 --query-heads 4 --kv-heads 2 --head-dim 16 --value-dim 8 --prompt 70 --decode 6 "
    "--dtype float16 --seed 5";

TEST_F(TraceCommand, SynthWritesWhatItsOptionsSay) {
  ASSERT_EQ(run(std::string(kSynth) +
                " --queries window:32 --stats --output-proj --sliding-window 16 -o FILE:t.h5"),
            kDone);
  const TraceReader reader = TraceReader::open(file("t.h5"));
  const TraceInfo& info = reader.info();
  EXPECT_EQ(info.layers.size(), 2u);
  EXPECT_EQ(info.num_query_heads, 4u);
  EXPECT_EQ(info.value_dim, 8u);
  EXPECT_EQ(info.dtype, DType::float16);
  EXPECT_EQ(info.layers[0].prompt_queries(70), 32u);
  EXPECT_EQ(info.layers[0].sliding_window, 16u);
  EXPECT_EQ(info.layers[1].sliding_window, 0u);
  EXPECT_TRUE(info.layers[1].has_output_proj);
  EXPECT_TRUE(info.layers[1].has_query_stats);
}

TEST_F(TraceCommand, InfoSaysWhatIsThereAndWhatIsMissing) {
  run(std::string(kSynth) + " --queries window:32 -o FILE:t.h5");
  ASSERT_EQ(run("info FILE:t.h5"), kDone);
  expect_printed("4 query heads on 2 KV heads");
  expect_printed("70 prompt + 6 decode = 76 tokens");
  expect_printed("float16");
  expect_printed("digest         kvd1:");
  expect_printed("last 32");
  expect_printed("x evidence");
  expect_printed("lacks          attention_stats: accumulated-attention policies need them");
  expect_printed("cannot run     h2o: ");
}

TEST_F(TraceCommand, CheckGivesOneWhenItFindsSomething) {
  run(std::string(kSynth) + " -o FILE:t.h5");
  EXPECT_EQ(run("check FILE:t.h5"), kDone);
  expect_printed("good");
  {
    h5::File trace = h5::File::open_for_writing(file("t.h5"));
    const std::uint16_t nan = 0x7E00;
    trace.dataset("layers/001/key")
        .write_raw(h5::Shape{1, 9, 2}, h5::Shape{1, 1, 1}, std::as_bytes(std::span(&nan, 1)));
  }
  EXPECT_EQ(run("check FILE:t.h5"), kFoundSomething);
  expect_printed("WRONG /layers/001/key: found nan at head 1, token 9, channel 2");
  expect_printed("WRONG /@digest");
  expect_printed("2 findings");
}

TEST_F(TraceCommand, CutAndMergeGiveTheWholeAgain) {
  run(std::string(kSynth) + " -o FILE:t.h5");
  ASSERT_EQ(run("cut FILE:t.h5 --layers 0 -o FILE:a.h5"), kDone);
  ASSERT_EQ(run("cut FILE:t.h5 --layers 1 -o FILE:b.h5"), kDone);
  ASSERT_EQ(run("merge FILE:a.h5 FILE:b.h5 -o FILE:ab.h5"), kDone);
  EXPECT_EQ(TraceReader::open(file("ab.h5")).info().digest, TraceReader::open(file("t.h5")).info().digest);
  ASSERT_EQ(run("cut FILE:t.h5 --heads 1 --steps 2 -o FILE:c.h5"), kDone);
  EXPECT_EQ(TraceReader::open(file("c.h5")).info().decode_len, 2u);
}

TEST_F(TraceCommand, MistakesAreOneLineThatHelps) {
  run(std::string(kSynth) + " -o FILE:t.h5");
  expect_refused("synht", "did you mean 'synth'?");
  expect_refused("synth --layers 2", "needs -o FILE");
  expect_refused("synth --layers 0 -o FILE:x.h5", "--layers 0: expected at least 1");
  expect_refused("synth --layers -4 -o FILE:x.h5", "--layers");
  expect_refused("synth --dtype float8 -o FILE:x.h5", "it is float16, bfloat16 or float32");
  expect_refused("synth --queries last -o FILE:x.h5", "write all, or window:64");
  expect_refused("synth --query-heads 3 --kv-heads 2 -o FILE:x.h5", "a multiple of --kv-heads");
  expect_refused("synth --laeyrs 3 -o FILE:x.h5", "--layers");
  expect_refused("synth -o FILE:none/x.h5", "does not exist");
  expect_refused("info FILE:none.h5", "No such file");
  expect_refused("check", "needs a trace");
  expect_refused("cut FILE:t.h5 --layers 0", "needs -o FILE");
  expect_refused("cut FILE:t.h5 -o FILE:t.h5", "source and target at once");
  expect_refused("cut FILE:t.h5 --layers 1..0 -o FILE:x.h5", "runs backwards");
  expect_refused("cut FILE:t.h5 --steps 0 -o FILE:x.h5", "--steps 0");
  expect_refused("merge FILE:t.h5 -o FILE:x.h5", "at least two traces");
  expect_refused("convert FILE:t.h5 -o FILE:x.h5", "is neither an .npz nor a safetensors file");
  expect_refused("convert FILE:t.h5 -o FILE:x.h5 --set prompt", "expected KEY=VALUE");
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    files += entry.is_regular_file() ? 1 : 0;
  EXPECT_EQ(files, 1u) << "something half-written was left behind";
}

TEST_F(TraceCommand, StatsPrintsLayersAndWritesEveryHead) {
  ASSERT_EQ(run("synth --layers 2 --prompt 80 --decode 6 -o FILE:t.h5 -q"), kDone);
  ASSERT_EQ(run("stats FILE:t.h5 --lags 1,3 --top 8 --masses 4 -o FILE:s"), kDone);
  expect_printed("query_similarity 3");
  expect_printed("sink_mass 4");
  std::ifstream csv(file("s/stats.csv"));
  std::string header, line;
  std::getline(csv, header);
  EXPECT_EQ(header, "trace,layer,kv_head,query_head,statistic,parameter,mean,count");
  std::size_t lines = 0;
  while (std::getline(csv, line)) ++lines;
  EXPECT_EQ(lines, 2u * 4 * (5 * 2 + 1 + 2));  // layers, query heads; five figures per lag, the share, two masses
  const h5::File stats = h5::File::open(file("s/stats.h5"));
  EXPECT_EQ(stats.string_attribute("format"), "kvsim-stats");
  EXPECT_EQ(stats.dataset("rows/mean").elements(), lines);
  expect_refused("stats FILE:t.h5 --lags 3,1", "lags: found 3,1, expected ascending");
  expect_refused("stats FILE:t.h5 --top 1,2", "--top '1,2': expected one number");
  expect_refused("stats", "needs a trace");
}

TEST_F(TraceCommand, EverySubcommandTeaches) {
  for (const char* name : {"info", "check", "stats", "synth", "cut", "merge", "convert"}) {
    ASSERT_EQ(run(std::string(name) + " --help"), kDone);
    expect_printed("usage: kvsim trace " + std::string(name));
    expect_printed("example");
    expect_printed("--help");
  }
}

TEST(ParseIndexList, ReadsNumbersAndRanges) {
  EXPECT_EQ(parse_index_list("0,4,8..10", "--layers"), (std::vector<std::uint32_t>{0, 4, 8, 9, 10}));
  for (const char* text : {"", "a", "1,", "-1", "1..", "..3", "1.5", "99999999999"}) {
    EXPECT_THROW(parse_index_list(text, "--layers"), UserError) << text;
  }
}

}  // namespace
}  // namespace kvsim
