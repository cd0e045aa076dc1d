// The direction of includes between modules, and headers that stand alone, over the whole project.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path& source() {
  static const fs::path path = KVSIM_SOURCE_DIR;
  return path;
}

bool is_code(const fs::path& file) {
  const std::string e = file.extension().string();
  return e == ".h" || e == ".cpp" || e == ".cu" || e == ".cuh";
}

/// Sources of the modules, relative to the project.
std::vector<std::string> project_files() {
  std::vector<std::string> files;
  for (const char* module : {"kernels", "traces", "policies", "sim", "analysis"}) {
    if (!fs::exists(source() / module)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(source() / module)) {
      if (entry.is_regular_file() && is_code(entry.path()))
        files.push_back(fs::relative(entry.path(), source()).generic_string());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> includes_of(const std::string& file) {
  static const std::regex pattern(R"(^\s*#\s*include\s+[<"]([^>"]+)[>"])");
  std::ifstream in(source() / file);
  std::vector<std::string> found;
  for (std::string line; std::getline(in, line);) {
    std::smatch match;
    if (std::regex_search(line, match, pattern)) found.push_back(match[1]);
  }
  return found;
}

/// "sim/cli" is a module of its own, all others are their first folder.
std::string module_of(const std::string& file) {
  return file.starts_with("sim/cli/") ? "sim/cli" : file.substr(0, file.find('/'));
}

bool allowed(const std::string& from, const std::string& included) {
  const std::string to = module_of(included);
  static const std::set<std::string> modules{"kernels", "traces", "policies", "sim", "sim/cli", "analysis"};
  if (modules.count(to) == 0 || included.find('/') == std::string::npos || from == to || from == "sim/cli")
    return true;
  static const std::map<std::string, std::set<std::string>> arrows{
      {"kernels", {}},
      {"policies", {"kernels"}},
      {"traces", {"kernels"}},
      {"sim", {"kernels", "policies", "traces"}},
      {"analysis", {"sim", "traces", "kernels"}},
  };
  if (arrows.at(from).count(to) == 0) return false;
  // From traces, sim sees only the types in memory and the reader; analysis only the HDF5 layer.
  if (from == "sim" && to == "traces") return !included.starts_with("traces/h5/");
  if (from == "analysis" && to == "traces") return included.starts_with("traces/h5/");
  return true;
}

TEST(Arrows, NoIncludePointsAgainstTheArchitecture) {
  const auto files = project_files();
  ASSERT_GT(files.size(), 50u);
  for (const std::string& file : files) {
    for (const std::string& included : includes_of(file)) {
      EXPECT_TRUE(allowed(module_of(file), included)) << file << " includes " << included;
    }
  }
}

TEST(Arrows, TheRulesForbidWhatTheyShould) {
  EXPECT_FALSE(allowed("kernels", "policies/policy.h"));
  EXPECT_FALSE(allowed("policies", "traces/trace.h"));
  EXPECT_FALSE(allowed("sim", "traces/h5/file.h"));
  EXPECT_FALSE(allowed("sim", "analysis/csv.h"));
  EXPECT_FALSE(allowed("traces", "sim/results.h"));
  EXPECT_FALSE(allowed("analysis", "traces/trace_reader.h"));
  EXPECT_FALSE(allowed("sim", "sim/cli/options.h"));
  EXPECT_TRUE(allowed("sim/cli", "analysis/csv.h"));
  EXPECT_TRUE(allowed("analysis", "traces/h5/file.h"));
  EXPECT_TRUE(allowed("kernels", "vector"));
}

TEST(Arrows, Hdf5IsIncludedByItsLayerAlone) {
  for (const std::string& file : project_files()) {
    for (const std::string& included : includes_of(file)) {
      EXPECT_TRUE(included != "hdf5.h" || file.starts_with("traces/h5/")) << file;
    }
  }
}

TEST(Headers, BeginWithASentenceAndAreIncludedOnce) {
  for (const std::string& file : project_files()) {
    std::ifstream in(source() / file);
    std::string first, second;
    std::getline(in, first);
    std::getline(in, second);
    EXPECT_TRUE(first.starts_with("// ")) << file << " does not say in its first line what it is";
    if (file.ends_with(".h") && !file.ends_with("-inl.h")) {
      std::ifstream again(source() / file);
      const std::string text{std::istreambuf_iterator<char>(again), std::istreambuf_iterator<char>()};
      EXPECT_NE(text.find("#pragma once"), std::string::npos) << file;
    }
  }
}

/// A source file that includes its own header first proves with every build that the header stands alone.
TEST(Headers, ComeFirstInTheirOwnSourceFile) {
  for (const std::string& file : project_files()) {
    const std::string header = fs::path(file).replace_extension(".h").generic_string();
    if (!file.ends_with(".cpp") || !fs::exists(source() / header)) continue;
    const auto included = includes_of(file);
    ASSERT_FALSE(included.empty()) << file;
    EXPECT_EQ(included.front(), header) << file;
  }
}

/// The others are compiled, each by itself.
TEST(Headers, WithoutASourceFileCompileAlone) {
  if (std::system("c++ --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "no compiler named c++ is here";
  const std::string compile =
      "cd '" + source().string() +
      "' && c++ -std=c++20 -fsyntax-only -fopenmp -x c++ -I. -isystem /usr/include/hdf5/serial -include ";
  std::vector<std::future<std::string>> halves;
  std::vector<std::vector<std::string>> headers(2);  // two compilers at a time
  std::size_t count = 0;
  for (const std::string& file : project_files()) {
    const bool has_source = fs::exists(source() / fs::path(file).replace_extension(".cpp"));
    if (!file.ends_with(".h") || file.ends_with("-inl.h") || file.starts_with("kernels/cuda/") || has_source)
      continue;
    headers[count++ % headers.size()].push_back(file);
  }
  ASSERT_GT(count, 5u);
  for (const auto& half : headers) {
    halves.push_back(std::async(std::launch::async, [&compile, &half] {
      std::string failed;
      for (const std::string& header : half) {
        if (std::system((compile + header + " /dev/null").c_str()) != 0) failed += " " + header;
      }
      return failed;
    }));
  }
  for (auto& half : halves) EXPECT_EQ(half.get(), "") << "headers that do not compile alone";
}

}  // namespace
