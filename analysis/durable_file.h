// Text files that appear complete or not at all, and reading one whole.
#pragma once

#include <string>
#include <string_view>

#include "traces/h5/pending_file.h"

namespace kvsim {

/// Makes the folder and its parents. Throws UserError when that fails.
void make_folder(const std::string& folder);

/// A new file under a temporary name; it takes its own name at commit, else it disappears with this object.
/// Move-only.
class DurableFile {
 public:
  explicit DurableFile(const std::string& path);
  DurableFile(DurableFile&& other) noexcept;
  DurableFile& operator=(DurableFile&&) = delete;
  ~DurableFile();

  /// Appends, buffered. Throws UserError with the system's reason (e.g. no space left on device).
  void write(std::string_view text);
  /// Writes what is buffered and closes the file; commit() then only renames it.
  void finish();
  void commit();

 private:
  void drain(std::string_view text);

  h5::PendingFile pending_;
  std::string buffer_;
  int descriptor_ = -1;
};

void write_text_file(const std::string& path, std::string_view text);

/// The whole file, or UserError.
std::string read_text_file(const std::string& path);

}  // namespace kvsim
