// Named policies and their compose(...) lines give the same figures, byte for byte, on the shipped recording.
#include <gtest/gtest.h>

#include <set>

#include "policies/presets.h"
#include "policies/registry.h"
#include "tests/cli/program.h"

namespace kvsim::test {
namespace {

/// Policies as the recording allows them: 64 window queries, one first pass, output projections of layers 12 and 24.
const std::vector<std::string> kSpecs{
    "ada(score=snapkv(window=32))",
    "ada(score=laq_pp(window=4),form=interp,alpha=0.4)",
    "ada(score=h2o,total=repo,form=interp)",
    "ada(score=tova)",
    "caote",
    "caote(score=snapkv(window=32),join=none)",
    "critical(score=snapkv(window=32))",
    "critical(score=ada(score=snapkv(window=16,pool=max,kernel=7)),safe=0.2,first=0.3)",
    "critical(score=tova)",
    "fast_caote",
    "h2o",
    "h2o(recent=20,group=max)",
    "h2o(unit=query)",
    "keydiff",
    "knorm",
    "laq",
    "laq(lookahead=snapkv-128,length=3,pool=avg,kernel=5,unit=query)",
    "laq(mask=repo)",
    "laq_pp",
    "laq_pp(mask=repo,unit=query,length=5)",
    "laq_pp(length=0,window=16)",
    "obcache",
    "obcache(form=key,base=snapkv,recent=24,unit=kv,group=max)",
    "obcache(form=value,base=snapkv,pool=avg,kernel=5,sinks=4)",
    "obcache(form=no_cross,base=tova)",
    "observed_attention",
    "observed_attention(group=sum,unit=query)",
    "cake(window=8)",
    "cake(window=16,gamma=20,tau1=1.6,tau2=0.4,kernel=7,cascade=true)",
    "pyramidkv(window=8,beta=4)",
    "pyramidkv(window=8,form=authors,total=repo,unit=query)",
    "scissorhands(window=64)",
    "scissorhands(window=64,form=count,unit=kv,sinks=3)",
    "snapkv",
    "snapkv(window=32,kernel=7,pool=max,unit=query)",
    "snapkv(window=16,group=first)",
    "streaming_llm",
    "streaming_llm(sinks=1)",
    "tova",
    "vatp",
    "vatp(base=scissorhands,window=32,recent=10,recent_share=0,unit=kv,norm=l2)"};

std::unique_ptr<Policy> bound(const std::string& spec) { return bind_policy(parse_specs(spec).front()); }

/// Rows of a results table without the columns that name the variant.
std::vector<std::string> figures(const std::string& path) {
  std::istringstream table(read(path));
  std::vector<std::string> out;
  for (std::string line; std::getline(table, line);) {
    // trace,policy,"variant, with commas",layer,...
    const std::size_t trace = line.find(','), policy = line.find(',', trace + 1);
    std::size_t end = line.find(',', policy + 1);
    if (line[policy + 1] == '"')
      for (end = line.find('"', policy + 2); line[end + 1] == '"'; end = line.find('"', end + 2)) {
      }
    out.push_back(line.substr(0, trace) + line.substr(line.find(',', end)));
  }
  return out;
}

TEST(Presets, CoverEveryPolicyThatDecomposes) {
  std::set<std::string> named;
  for (const std::string& spec : kSpecs) named.insert(spec.substr(0, spec.find('(')));
  for (const std::string& name : preset_names()) EXPECT_TRUE(named.contains(name)) << name;
  for (const char* name : {"snapkv", "tova", "h2o", "observed_attention", "knorm", "keydiff", "streaming_llm", "laq", "laq_pp",
                           "vatp", "cake", "pyramidkv", "ada", "obcache", "critical", "caote"})
    EXPECT_TRUE(preset_line(*make_policy(name)).has_value()) << name;
}

TEST(Presets, OfPartsGiveTheNamedPoliciesFiguresByteForByte) {
  const Folder folder;
  const std::string trace = folder / "two-layers.h5";
  ASSERT_EQ(shell(fmt::format("kvsim trace cut '{}/tests/data/smollm2-harbour.h5' --layers 12,24 -o '{}'", KVSIM_SOURCE_DIR, trace)).code, 0);
  std::string names, lines;
  for (const std::string& spec : kSpecs) {
    const std::optional<std::string> line = preset_line(*bound(spec));
    ASSERT_TRUE(line.has_value()) << spec;
    names += fmt::format(" --policy '{}'", spec);
    lines += fmt::format(" --policy '{}'", *line);
  }
  const std::string rest = fmt::format(" --budget 24,100,20% --no-bounds --quiet '{}' --out ", trace);
  const Outcome first = shell(fmt::format("kvsim run{}{}'{}'", names, rest, folder / "names"));
  const Outcome second = shell(fmt::format("kvsim run{}{}'{}'", lines, rest, folder / "parts"));
  ASSERT_EQ(first.code, 0) << first.text;
  ASSERT_EQ(second.code, 0) << second.text;
  const std::vector<std::string> expected = figures(folder / "names/results.csv"), got = figures(folder / "parts/results.csv");
  const std::size_t cells = kSpecs.size() * 3;  // per layer and KV head
  ASSERT_EQ(expected.size(), 1 + 2 * 3 * cells);
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 1; i < expected.size(); ++i) {
    const std::string& spec = kSpecs[(i - 1) % cells / 3];
    ASSERT_EQ(got[i], expected[i]) << spec << " and " << *preset_line(*bound(spec));
  }
}

TEST(Lookahead, ResultsSayWhichFirstPassABudgetTook) {
  const Folder folder;
  const Outcome run = shell(fmt::format("kvsim run --policy laq --policy knorm --budget 32,300 --quiet --out '{}' "
                                        "'{}/tests/data/smollm2-harbour.h5' && kvsim report '{}'",
                                        folder / "run", KVSIM_SOURCE_DIR, folder / "run"));
  ASSERT_EQ(run.code, 0) << run.text;
  EXPECT_NE(run.text.find("took the first pass snapkv-128 at 32, 300 tokens"), std::string::npos) << run.text;
  const Outcome refused = shell(fmt::format("kvsim run --policy 'laq(lookahead=snapkv-64)' --budget 32 --quiet --out '{}' "
                                            "'{}/tests/data/smollm2-harbour.h5'", folder / "none", KVSIM_SOURCE_DIR));
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.text.find("it has snapkv-128"), std::string::npos) << refused.text;
}

TEST(Presets, StandInTheHelpOfTheirPolicy) {
  EXPECT_NE(shell("kvsim help snapkv").text.find("compose(query=window(64),base=attention,reduce=[mean,avg(5),group(mean)],recent=64"),
            std::string::npos);
  EXPECT_NE(shell("kvsim help 'snapkv(window=32,pool=max)'").text.find("query=window(32),base=attention,reduce=[mean,max(5)"),
            std::string::npos);
  EXPECT_EQ(shell("kvsim help random").text.find("in parts"), std::string::npos);
  EXPECT_NE(shell("kvsim help compose").text.find("redundancy=cosine(lambda=0.1)"), std::string::npos);
}

}  // namespace
}  // namespace kvsim::test
