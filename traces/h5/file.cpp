// Opening, creating and closing HDF5 files.
#include "traces/h5/file.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/error.h"

namespace kvsim::h5 {
namespace {

/// The signature stands at byte 0, 512, 1024, 2048, ... (format specification, section II.A).
bool has_signature(const std::string& path) {
  constexpr std::array<char, 8> kSignature{'\x89', 'H', 'D', 'F', '\r', '\n', '\x1a', '\n'};
  std::ifstream in(path, std::ios::binary);
  for (std::streamoff at = 0; in; at = at == 0 ? 512 : 2 * at) {
    std::array<char, 8> head{};
    in.seekg(at);
    if (!in.read(head.data(), head.size())) return false;
    if (head == kSignature) return true;
  }
  return false;
}

void check_readable(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw UserError("{}: cannot open: {}", path, error ? error.message() : "no such file");
  }
  if (std::filesystem::is_directory(status)) throw UserError("{}: is a folder, expected an HDF5 file", path);
  if (!std::filesystem::is_regular_file(status))
    throw UserError("{}: is no regular file, expected an HDF5 file", path);
  errno = 0;
  if (!std::ifstream(path, std::ios::binary))
    throw UserError("{}: cannot open: {}", path, std::strerror(errno));
  if (!has_signature(path)) throw UserError("{}: is no HDF5 file (its signature is missing)", path);
}

[[noreturn]] void fail_open(const std::string& path) {
  const std::string reason = last_reason();
  if (reason.find("lock") != std::string::npos ||
      reason.find("Resource temporarily unavailable") != std::string::npos) {
    throw UserError(
        "{}: is locked: another program has it open for writing; try again when that has finished", path);
  }
  if (reason.find("truncated") != std::string::npos) {
    throw UserError("{}: is truncated ({}); copy or record it again", path, reason);
  }
  throw UserError("{}: cannot open, the file is damaged or was not closed by its writer: {}", path, reason);
}

Handle open_root(const Handle& file, const std::string& path) {
  return Handle(require(H5Gopen2(file.get(), "/", H5P_DEFAULT), path, "open the root group"), H5Gclose);
}

Handle open_file(const std::string& path, unsigned mode) {
  const Session session;
  check_readable(path);
  Handle file(H5Fopen(path.c_str(), mode, H5P_DEFAULT), H5Fclose);
  if (!file) fail_open(path);
  return file;
}

}  // namespace

File::File(Handle file, Handle root, const std::string& path)
    : Group(std::move(root), path, "/"), file_handle_(std::move(file)) {}

File File::open(const std::string& path) {
  Handle file = open_file(path, H5F_ACC_RDONLY);
  Handle root = open_root(file, path);
  return File(std::move(file), std::move(root), path);
}

File File::open_for_writing(const std::string& path) {
  Handle file = open_file(path, H5F_ACC_RDWR);
  Handle root = open_root(file, path);
  return File(std::move(file), std::move(root), path);
}

File File::create(const std::string& path, Create mode) {
  const Session session;
  if (mode == Create::must_be_new && std::filesystem::exists(path)) {
    throw UserError("{}: exists already", path);
  }
  const unsigned flags = mode == Create::must_be_new ? H5F_ACC_EXCL : H5F_ACC_TRUNC;
  const Handle properties(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  static_cast<void>(H5Pset_obj_track_times(properties.get(), false));
  Handle file(require(H5Fcreate(path.c_str(), flags, properties.get(), H5P_DEFAULT), path, "create"),
              H5Fclose);
  Handle root = open_root(file, path);
  return File(std::move(file), std::move(root), path);
}

void File::flush() {
  const Session session;
  require(H5Fflush(file_handle_.get(), H5F_SCOPE_GLOBAL), file(), "write");
}

void File::close() {
  const Session session;
  flush();
  const bool root_closed = release();
  if (!file_handle_.reset() || !root_closed) fail(file(), "close");
}

}  // namespace kvsim::h5
