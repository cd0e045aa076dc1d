// A file that appears under its name only when it is complete.
#pragma once

#include <string>

namespace kvsim::h5 {

/// Reserves a temporary name beside `target`. `commit` forces the file to disk and renames it; without
/// commit, the temporary file is removed at the end. Move-only.
class PendingFile {
 public:
  /// Throws UserError when the folder does not exist or cannot be written.
  explicit PendingFile(std::string target);
  PendingFile(PendingFile&& other) noexcept;
  PendingFile& operator=(PendingFile&&) = delete;
  ~PendingFile();

  const std::string& target() const { return target_; }
  /// Where to write until `commit`; in the same folder as the target.
  const std::string& path() const { return path_; }
  /// The file must be closed. Throws UserError when it cannot be stored or renamed.
  void commit();

 private:
  std::string target_;
  std::string path_;
};

}  // namespace kvsim::h5
