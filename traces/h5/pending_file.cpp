// Temporary name, fsync, rename.
#include "traces/h5/pending_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "kernels/error.h"

namespace kvsim::h5 {
namespace {

/// Owner of a file descriptor.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : value_(::open(path.c_str(), flags | O_CLOEXEC)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  bool valid() const { return value_ >= 0; }
  bool sync() const { return ::fsync(value_) == 0; }

 private:
  int value_;
};

std::filesystem::path folder_of(const std::string& target) {
  const auto folder = std::filesystem::path(target).parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

}  // namespace

PendingFile::PendingFile(std::string target)
    : target_(std::move(target)), path_(fmt::format("{}.{}.tmp", target_, ::getpid())) {
  const auto folder = folder_of(target_);
  std::error_code error;
  if (target_.empty()) throw UserError("the name of the file to write is empty");
  if (!std::filesystem::is_directory(folder, error)) {
    throw UserError("{}: cannot create: the folder {} does not exist", target_, folder.string());
  }
  if (std::filesystem::is_directory(target_, error))
    throw UserError("{}: is a folder, expected a file name", target_);
  if (std::filesystem::exists(target_, error) && !std::filesystem::is_regular_file(target_, error))
    throw UserError("{}: is not a regular file and would be replaced, expected a file name", target_);
  if (::access(folder.c_str(), W_OK) != 0) {
    throw UserError("{}: cannot create: {}: {}", target_, folder.string(), std::strerror(errno));
  }
  std::filesystem::remove(path_, error);  // left by a process of the same number that was killed
}

PendingFile::PendingFile(PendingFile&& other) noexcept
    : target_(std::move(other.target_)), path_(std::exchange(other.path_, {})) {}

PendingFile::~PendingFile() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove(path_, ignored);
}

void PendingFile::commit() {
  KVSIM_CHECK(!path_.empty(), "{} was committed before", target_);
  {
    const Descriptor file(path_, O_RDONLY);
    if (!file.valid() || !file.sync()) throw UserError("{}: cannot store: {}", target_, std::strerror(errno));
  }
  if (std::rename(path_.c_str(), target_.c_str()) != 0) {
    throw UserError("{}: cannot rename {} to it: {}", target_, path_, std::strerror(errno));
  }
  path_.clear();
  const Descriptor folder(folder_of(target_).string(), O_RDONLY | O_DIRECTORY);
  if (folder.valid())
    static_cast<void>(folder.sync());  // some file systems refuse this; the rename stands anyway
}

}  // namespace kvsim::h5
