// The HDF5 lock, error texts and the owner of identifiers.
#include "traces/h5/session.h"

#include <utility>

#include "kernels/error.h"

namespace kvsim::h5 {
namespace {

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// Every identifier has an owner that closes it. What a full disk kept HDF5 from writing it would try again in its exit
// handler, and 1.10 crashes there. Must come before any other call of the library, so before main.
[[maybe_unused]] const bool no_exit_handler = H5dont_atexit() >= 0;

/// The error stack is walked from the innermost entry outwards; the first text wins.
herr_t keep_first(unsigned, const H5E_error2_t* error, void* into) {
  auto& text = *static_cast<std::string*>(into);
  if (text.empty() && error->desc != nullptr) text = error->desc;
  return 0;
}

}  // namespace

Session::Session() : lock_(library_mutex()) {
  // The error stack belongs to the thread in thread-safe builds, so each thread must silence its own.
  thread_local const bool silenced = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  static_cast<void>(silenced);
}

std::string last_reason() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);
  // Messages of the file driver carry addresses and descriptors; only the system's own words matter to a
  // person.
  constexpr std::string_view kSystem = "error message = '";
  if (const auto begin = text.find(kSystem); begin != std::string::npos) {
    const auto first = begin + kSystem.size();
    const auto last = text.find('\'', first);
    if (last != std::string::npos) text = text.substr(first, last - first);
  }
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return text.empty() ? "HDF5 gives no reason" : text;
}

void fail(std::string_view where, std::string_view operation) {
  throw UserError("{}: cannot {}: {}", where, operation, last_reason());
}

Handle::Handle(Handle&& other) noexcept
    : id_(std::exchange(other.id_, -1)), release_(std::exchange(other.release_, nullptr)) {}

Handle& Handle::operator=(Handle&& other) noexcept {
  if (this != &other) {
    static_cast<void>(reset());
    id_ = std::exchange(other.id_, -1);
    release_ = std::exchange(other.release_, nullptr);
  }
  return *this;
}

bool Handle::reset() noexcept {
  if (id_ < 0) return true;
  const Session session;
  const hid_t id = std::exchange(id_, -1);
  return release_ == nullptr || release_(id) >= 0;
}

}  // namespace kvsim::h5
