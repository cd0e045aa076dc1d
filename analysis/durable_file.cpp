// Text files that appear complete or not at all.
#include "analysis/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "kernels/error.h"

namespace kvsim {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 20;

[[noreturn]] void fail_system(const std::string& path, std::string_view operation) {
  throw UserError("{}: cannot {} it: {}", path, operation, std::strerror(errno));
}

}  // namespace

void make_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error || !std::filesystem::is_directory(folder)) {
    throw UserError("{}: cannot make this folder: {}", folder,
                    error ? error.message() : "a file of that name exists");
  }
}

DurableFile::DurableFile(const std::string& path) : pending_(path) {
  descriptor_ = ::open(pending_.path().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_system(path, "create");
}

DurableFile::DurableFile(DurableFile&& other) noexcept
    : pending_(std::move(other.pending_)),
      buffer_(std::move(other.buffer_)),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

DurableFile::~DurableFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void DurableFile::write(std::string_view text) {
  buffer_ += text;
  if (buffer_.size() < kBuffer) return;
  drain(buffer_);
  buffer_.clear();
}

void DurableFile::drain(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor_, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_system(pending_.target(), "write");
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

void DurableFile::finish() {
  if (descriptor_ < 0) return;
  drain(buffer_);
  buffer_.clear();
  if (::close(std::exchange(descriptor_, -1)) != 0) fail_system(pending_.target(), "write");
}

void DurableFile::commit() {
  finish();
  pending_.commit();
}

void write_text_file(const std::string& path, std::string_view text) {
  DurableFile file(path);
  file.write(text);
  file.commit();
}

std::string read_text_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError("{}: cannot read it: {}", path, std::strerror(errno));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace kvsim
