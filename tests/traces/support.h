// Folders, small traces and damage for the tests of traces.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "kernels/error.h"
#include "traces/h5/file.h"
#include "traces/synth.h"

namespace kvsim::testing {

/// A folder of its own that goes with its owner.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    static std::atomic<int> number{0};
    path_ = std::filesystem::temp_directory_path() / fmt::format("kvsim-traces-{}-{}", ::getpid(), number++);
    std::filesystem::create_directories(path_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// The text of the UserError that `action` throws; fails the test when it throws none, or one of several
/// lines.
inline std::string user_error(const std::function<void()>& action) {
  try {
    action();
  } catch (const UserError& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return text;
  }
  ADD_FAILURE() << "expected a UserError";
  return {};
}

inline void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

/// Two layers, four query heads on two KV heads, d = 16, 48 + 8 tokens, everything recorded that synth can
/// make.
inline SynthOptions small_options() {
  SynthOptions o;
  o.layers = 2;
  o.query_heads = 4;
  o.kv_heads = 2;
  o.head_dim = 16;
  o.value_dim = 8;
  o.prompt = 48;
  o.decode = 8;
  o.seed = 3;
  o.stats = true;
  o.output_proj = true;
  o.sliding_window = 20;
  return o;
}

}  // namespace kvsim::testing
