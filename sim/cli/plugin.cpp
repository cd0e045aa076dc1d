// Policies from shared objects.
#include "sim/cli/plugin.h"

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "kernels/error.h"
#include "policies/plugin/abi.h"

namespace kvsim {
namespace {

std::vector<std::string>& plugins() {
  static std::vector<std::string> paths;
  return paths;
}

/// The mark inside the file, or empty. Read from the bytes, since loading would already run the plugin's code.
std::string mark_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError("--plugin {}: cannot read it", path);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::size_t at = bytes.find(kPolicyAbiMark);
  return at == std::string::npos ? std::string() : std::string(bytes.c_str() + at);
}

}  // namespace

void load_plugin(const std::string& path) {
  std::error_code error;
  const std::filesystem::path found = std::filesystem::canonical(path, error);
  if (error) throw UserError("--plugin {}: {}", path, error.message());
  const std::string full = found.string();
  if (std::find(plugins().begin(), plugins().end(), full) != plugins().end()) return;
  const std::string mark = mark_of(full);
  if (mark.empty()) throw UserError("--plugin {}: is no kvsim plugin; build it with kvsim_add_plugin of CMakeLists.txt", path);
  if (mark != kPolicyAbi)
    throw UserError("--plugin {}: was made for {}, this program has {}; build it again", path, mark, kPolicyAbi);
  // Kept open until the program ends: the registry holds what it registered.
  if (dlopen(full.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr) throw UserError("--plugin {}: {}", path, dlerror());
  plugins().push_back(full);
}

const std::vector<std::string>& loaded_plugins() { return plugins(); }

Arguments load_plugins(const Arguments& arguments) {
  Arguments rest;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word.rfind("--plugin=", 0) == 0) {
      load_plugin(word.substr(9));
    } else if (word == "--plugin") {
      if (i + 1 == arguments.size()) throw UserError("--plugin needs a file");
      load_plugin(arguments[++i]);
    } else {
      rest.push_back(word);
    }
  }
  return rest;
}

}  // namespace kvsim
