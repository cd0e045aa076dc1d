// Published methods that kvsim does not replay as prompt-time policies, each with its reason.
#pragma once

#include <span>
#include <string_view>

namespace kvsim {

struct NotReplayed {
  std::string_view name;       // as its authors or the library call it
  std::string_view reference;  // paper or code
  std::string_view reason;     // what a recording cannot answer, and what comes nearest
};

/// Sorted by name.
std::span<const NotReplayed> not_replayed();

}  // namespace kvsim
