// Runs the built program as a user would, in a folder of its own.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace kvsim::test {

struct Outcome {
  int code = -1;
  std::string text;  // stdout and stderr together
};

/// Runs a shell command line; `kvsim` in it is the built program.
inline Outcome shell(const std::string& line) {
  const std::string command = fmt::format("kvsim() {{ '{}/kvsim' \"$@\"; }}; {{ {} ; }} 2>&1", KVSIM_BINARY_DIR, line);
  Outcome outcome;
  FILE* pipe = popen(fmt::format("bash -c '{}'", [&command] {
                       std::string quoted;
                       for (const char c : command) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
                       return quoted;
                     }())
                         .c_str(),
                     "r");
  if (pipe == nullptr) return outcome;
  std::array<char, 4096> buffer{};
  while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) outcome.text.append(buffer.data(), n);
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

/// A folder that is removed with the test.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "kvsim-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// A small synthetic trace: 3 layers, 4 query heads on 2 KV heads.
inline std::string small_trace(const Folder& folder, const std::string& name = "small.h5", int seed = 1) {
  const std::string path = folder / name;
  const Outcome made = shell(fmt::format(
      "kvsim trace synth --layers 3 --query-heads 4 --kv-heads 2 --head-dim 16 --prompt 300 --decode 24 --dtype bfloat16 --seed {} -o {}", seed, path));
  EXPECT_EQ(made.code, 0) << made.text;
  return path;
}

inline std::size_t lines(const std::string& text) { return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')); }

}  // namespace kvsim::test
