// Request files: every format, compression, streams against files in memory, and what is refused.
#include <gtest/gtest.h>

#include <boost/iostreams/copy.hpp>
#include <boost/iostreams/filter/gzip.hpp>
#include <boost/iostreams/filter/zstd.hpp>
#include <boost/iostreams/filtering_streambuf.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/error.h"
#include "sim/pages/curves.h"
#include "sim/pages/page_sweep.h"
#include "sim/pages/stream_files.h"
#include "tests/pages/page_run.h"

namespace kvsim::test {
namespace {

const std::string kCloudPhysics = KVSIM_SOURCE_DIR "/../shared/data/cloudphysics.oracleGeneral.bin";

std::string file_of(const std::string& name, const std::string& content) {
  const std::string path = ::testing::TempDir() + "/kvsim_pages_" + name;
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

template <typename Filter>
std::string compressed(const std::string& content) {
  namespace io = boost::iostreams;
  std::istringstream in(content);
  std::ostringstream out;
  io::filtering_streambuf<io::input> chain;
  chain.push(Filter());
  chain.push(in);
  io::copy(chain, out);
  return out.str();
}

std::string record(std::uint64_t object, std::uint32_t size, std::int64_t next) {
  std::string out(24, '\0');
  std::memcpy(out.data() + 4, &object, 8);
  std::memcpy(out.data() + 12, &size, 4);
  std::memcpy(out.data() + 16, &next, 8);
  return out;
}

std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const UserError& e) {
    return e.what();
  }
  return "";
}

TEST(RequestFiles, EveryFormatGivesItsRequests) {
  const std::vector<Page> abac{0, 1, 0, 2};
  const PageStream plain = load_requests(file_of("a.txt", "10\n20\n\n10\nname\n"), {});
  EXPECT_EQ(plain.pages, abac);
  EXPECT_TRUE(plain.sizes.empty());
  const PageStream csv =
      load_requests(file_of("a.csv", "time,obj_id,obj_size\n1,7,100\n2,8,200\n3,7,100\n4,9,50\n"), {});
  EXPECT_EQ(csv.pages, abac);
  EXPECT_EQ(csv.sizes, (std::vector<std::uint64_t>{100, 200, 100, 50}));
  EXPECT_EQ(load_requests(file_of("b.csv", "1,7,100\n2,8,200\n3,7,100\n4,9,50\n"), {}).sizes, csv.sizes);
  const std::string raw = record(5, 512, 3) + record(6, 4096, -1) + record(5, 512, -1) + record(7, 1, -1);
  const PageStream oracle = load_requests(file_of("a.oracleGeneral.bin", raw), {});
  EXPECT_EQ(oracle.pages, abac);
  EXPECT_EQ(oracle.sizes, (std::vector<std::uint64_t>{512, 4096, 512, 1}));
  const PageStream mooncake = load_requests(
      file_of("a.jsonl", "{\"hash_ids\": [4, 9]}\n{\"timestamp\": 3, \"hash_ids\": [4, 1]}\n"), {});
  EXPECT_EQ(mooncake.pages, abac);
  EXPECT_EQ(mooncake.starts, (std::vector<std::uint32_t>{0, 2}));
  EXPECT_EQ(mooncake.grouping, Grouping::prefix);
}

TEST(RequestFiles, CompressionIsTransparentForLargeFilesToo) {
  std::string text;
  Philox philox(1, 1);
  for (int i = 0; i < 300000; ++i) text += fmt::format("{}\n", philox.next_below(5000));
  const PageStream plain = load_requests(file_of("large.txt", text), {});
  EXPECT_EQ(plain.requests(), 300000u);
  namespace io = boost::iostreams;
  EXPECT_EQ(load_requests(file_of("large.txt.gz", compressed<io::gzip_compressor>(text)), {}).pages,
            plain.pages);
  EXPECT_EQ(load_requests(file_of("large.txt.zst", compressed<io::zstd_compressor>(text)), {}).pages,
            plain.pages);
}

TEST(RequestFiles, MalformedOnesNameLineOrRecord) {
  const auto load = [](const std::string& path, RequestFileOptions options = {}) {
    return message_of([&] { load_requests(path, options); });
  };
  EXPECT_NE(
      load(file_of("bad.jsonl", "{\"hash_ids\": [1]}\n{\"hash_ids\": [1,}\n")).find(":2: malformed JSON"),
      std::string::npos);
  EXPECT_NE(load(file_of("bad2.jsonl", "{\"hash_ids\": [-1]}\n")).find(":1: hash_ids holds -1"),
            std::string::npos);
  EXPECT_NE(load(file_of("bad3.jsonl", "{\"hash_ids\": 7}\n")).find(":1: no list hash_ids"),
            std::string::npos);
  EXPECT_NE(load(file_of("cut.oracleGeneral.bin", record(1, 1, -1) + "abc"))
                .find("record 1 is cut off after 3 of 24"),
            std::string::npos);
  EXPECT_NE(load(file_of("back.oracleGeneral.bin", record(1, 1, -1) + record(1, 1, 1))).find("record 1"),
            std::string::npos);
  EXPECT_NE(load(file_of("neg.csv", "id,size\n1,5\n2,-5\n")).find(":3: size '-5'"), std::string::npos);
  EXPECT_NE(load(file_of("short.csv", "id,size\n1,5\n2\n")).find(":3: no size in column 2"),
            std::string::npos);
  EXPECT_NE(load(file_of("nohead.csv", "when,what\n1,5\n")).find("no column named id"), std::string::npos);
  RequestFileOptions as_plain;
  as_plain.format = RequestFormat::plain;
  EXPECT_NE(load(file_of("two.txt", "1\n2 3\n"), as_plain).find(":2: expected one object id"),
            std::string::npos);
  EXPECT_NE(load("/nowhere/x.csv").find("cannot be opened"), std::string::npos);
  EXPECT_NE(load(::testing::TempDir()).find("is a folder"), std::string::npos);
  const std::string whole = compressed<boost::iostreams::gzip_compressor>(std::string(100000, '1') + "\n2\n");
  EXPECT_NE(load(file_of("cut.txt.gz", whole.substr(0, whole.size() / 2))).find("gzip"), std::string::npos);
  EXPECT_EQ(load(file_of("empty.txt", "")), "");
}

TEST(RequestFiles, CapacitiesAreListsRangesAndShares) {
  const auto list = parse_capacities({"64..256*2,5%", "1K"});
  ASSERT_EQ(list.size(), 5u);
  EXPECT_EQ(capacity_for(list[2], 1000), 256u);
  EXPECT_EQ(capacity_for(list[3], 1000), 50u);
  EXPECT_EQ(capacity_for(list[3], 3), 1u);
  EXPECT_EQ(capacity_for(list[4], 1000), 1024u);
  for (const char* bad : {"0", "-3", "x", "", "5,,6", "1.5", "10Q", "0%"})
    EXPECT_THROW(parse_capacities({bad}), UserError) << bad;
}

std::vector<PageRow> rows_of(bool streamed, const std::string& path, int threads) {
  PageSweep sweep;
  sweep.variants = make_page_variants({"lru", "sieve", "s3_fifo", "guard(base=lru)", "random"}, false);
  sweep.capacities = parse_capacities({"10", "500"});
  sweep.infos.emplace_back();
  sweep.traces = {"x"};
  if (streamed) {
    sweep.streams.emplace_back();
    run_streamed(sweep, path, {}, 1.0, 1, threads);
  } else {
    sweep.streams.push_back(load_requests(path, {}));
    sweep.streams[0].key = 0;  // a stream does not know its content before it has been read
    run_sweep(sweep, threads);
  }
  return std::move(sweep.rows);
}

TEST(PageSweep, StreamsAndThreadsGiveWhatMemoryGives) {
  std::string text;
  Philox philox(2, 1);
  for (int i = 0; i < 200000; ++i)
    text += fmt::format("{}\n", philox.next_below(1 + philox.next_below(3000)));
  const std::string path = file_of("stream.txt", text);
  const std::vector<PageRow> held = rows_of(false, path, 1);
  ASSERT_EQ(held.size(), 10u);
  for (const auto& [streamed, threads] : {std::pair{false, 3}, {true, 1}, {true, 3}}) {
    const std::vector<PageRow> other = rows_of(streamed, path, threads);
    ASSERT_EQ(other.size(), held.size());
    for (std::size_t i = 0; i < held.size(); ++i) {
      EXPECT_EQ(other[i].counts.tally.misses, held[i].counts.tally.misses) << i;
      EXPECT_EQ(other[i].counts.first_touches, held[i].counts.first_touches);
    }
  }
}

TEST(PageSweep, WarmupIsServedAndNotCounted) {
  PageStream stream;
  for (const Page p : {0u, 1u, 2u, 0u, 1u, 2u, 3u}) stream.pages.push_back(p);
  stream.unique = 4;
  ServeOptions options;
  options.warmup = 3;
  const PageCounts counts = simulate_pages(stream, *policy_of("lru"), 3, options);
  EXPECT_EQ(counts.tally.requests, 4u);
  EXPECT_EQ(counts.tally.misses, 1u);
  EXPECT_EQ(counts.first_touches, 1u);
  EXPECT_EQ(counts.recalls(), 0u);
}

PageStream random_stream(std::uint64_t seed, std::size_t requests, std::uint32_t universe) {
  PageStream s;
  Philox philox(seed, 9);
  std::vector<Page> number(universe, kNoPage);
  for (std::size_t i = 0; i < requests; ++i) {
    const Page raw = philox.next_below(1 + philox.next_below(universe));
    if (number[raw] == kNoPage) number[raw] = s.unique++;
    s.pages.push_back(number[raw]);
  }
  s.find_next();
  return s;
}

TEST(StackCurve, EqualsSimulationAtEveryCapacity) {
  const PageStream s = random_stream(5, 3000, 120);
  for (const char* policy : {"lru", "plfu", "belady"}) {
    for (const std::uint64_t warmup : {0u, 500u}) {
      const StackCurve curve = stack_curve(policy, s, warmup);
      ServeOptions options;
      options.warmup = warmup;
      for (std::uint64_t c = 1; c <= s.unique; c += 3) {
        ASSERT_EQ(curve.at(c), simulate_pages(s, *policy_of(policy), c, options).tally.misses)
            << policy << " " << c;
      }
    }
  }
  EXPECT_THROW(stack_curve("sieve", s, 0), UserError);
}

TEST(SampledCurve, LiesWithinItsStatedErrorOfTheTruth) {
  const PageStream s = random_stream(6, 400000, 40000);
  const StackCurve exact = stack_curve("lru", s, 0);
  const std::vector<std::uint64_t> capacities{500, 2000, 8000, 20000};
  const auto points = sampled_curve(*policy_of("lru"), s, capacities, 0.05, 8, {});
  for (std::size_t i = 0; i < capacities.size(); ++i) {
    const double truth = static_cast<double>(exact.at(capacities[i])) / static_cast<double>(s.requests());
    EXPECT_GT(points[i].error, 0.0);
    EXPECT_LT(points[i].error, 0.03);
    EXPECT_NEAR(points[i].miss_ratio, truth, 5 * points[i].error + 0.002) << capacities[i];
  }
  EXPECT_THROW(sampled_curve(*policy_of("lru"), s, capacities, 0.3, 4, {}), UserError);
}

TEST(OracleGeneral, FutureOfTheFileIsTheFutureOfTheStream) {
  if (!std::filesystem::exists(kCloudPhysics)) GTEST_SKIP() << "not here: " << kCloudPhysics;
  PageSweep sweep;
  sweep.variants = make_page_variants({"belady", "lru"}, false);
  sweep.capacities = parse_capacities({"5000"});
  sweep.infos.emplace_back();
  sweep.traces = {"x"};
  sweep.streams.emplace_back();
  run_streamed(sweep, kCloudPhysics, {}, 1.0, 1, 2);
  PageStream held = load_requests(kCloudPhysics, {});
  EXPECT_EQ(held.requests(), 113872u);
  held.find_next();
  ASSERT_EQ(sweep.rows.size(), 2u);
  EXPECT_EQ(sweep.rows[0].counts.tally.misses,
            simulate_pages(held, *policy_of("belady"), 5000, {}).tally.misses);
  EXPECT_EQ(sweep.rows[1].counts.tally.misses,
            simulate_pages(held, *policy_of("lru"), 5000, {}).tally.misses);
}

}  // namespace
}  // namespace kvsim::test
