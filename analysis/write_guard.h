// Lets an HDF5 file that could not be written be closed all the same.
#pragma once

#include "traces/h5/file.h"

namespace kvsim {

/// HDF5 keeps what it could not write and tries again when the file is closed and when the program ends; on a
/// full disk both fail, and the library (1.10) then crashes at exit. Unless `done` was called, the guard
/// points the file's descriptor at memory when it ends, so that closing succeeds and what was written is
/// given back to the disk. It must end before the file and its datasets do, and is for files that are thrown
/// away on failure.
class WriteGuard {
 public:
  explicit WriteGuard(h5::File& file) : file_(&file) {}
  WriteGuard(const WriteGuard&) = delete;
  WriteGuard& operator=(const WriteGuard&) = delete;
  ~WriteGuard();
  void done() { file_ = nullptr; }

 private:
  h5::File* file_;
};

/// Closes the file for good. Reserves its space on disk first, so that a full disk is met here, as a
/// UserError, and not in the middle of HDF5's own flush.
void close_guarded(h5::File& file, WriteGuard& guard);

}  // namespace kvsim
