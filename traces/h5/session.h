// The ground that every HDF5 call stands on: one thread at a time, HDF5's own messages silenced, failures
// made exceptions.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <string_view>

namespace kvsim::h5 {

/// Held around HDF5 calls. Takes a process-wide recursive lock (so that builds of HDF5 without its own lock
/// work as well) and switches the automatic error printing off for the calling thread.
class Session {
 public:
  Session();

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

/// What HDF5 itself says about the last failed call of this thread: its innermost message, on one line.
std::string last_reason();

/// Throws UserError "<where>: cannot <operation>: <reason>" from the last failed call.
[[noreturn]] void fail(std::string_view where, std::string_view operation);

/// Returns what an HDF5 call returned, or throws UserError when it is negative.
template <typename Status>
Status require(Status status, std::string_view where, std::string_view operation) {
  if (status < 0) fail(where, operation);
  return status;
}

/// Move-only owner of an HDF5 identifier and the one function that releases it.
class Handle {
 public:
  using Release = herr_t (*)(hid_t);

  Handle() = default;
  Handle(hid_t id, Release release) : id_(id), release_(release) {}
  Handle(Handle&& other) noexcept;
  Handle& operator=(Handle&& other) noexcept;
  ~Handle() { static_cast<void>(reset()); }

  hid_t get() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }
  /// Releases now; false when HDF5 reports a failure (e.g. the disk is full).
  bool reset() noexcept;

 private:
  hid_t id_ = -1;
  Release release_ = nullptr;
};

}  // namespace kvsim::h5
