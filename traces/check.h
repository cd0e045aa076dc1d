// Reading a whole trace and looking for what is wrong in it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace kvsim {

struct CheckOptions {
  bool attention = true;  // recompute recorded attention (costs as much as replaying every recorded query)
};

/// What a check met. Findings come in the order of the file, one line each, with the first offending index.
struct CheckReport {
  std::vector<std::string> findings;
  std::vector<std::string> notes;  // what was looked at and found good, with the largest deviations reached
  bool good() const { return findings.empty(); }
};

/// Upper bound of what `progress` will hear, for a file of `bytes` bytes.
std::uint64_t check_work(std::uint64_t bytes);

/// Checks the digest; every tensor for NaN and infinity; recorded statistics for what must hold of them;
/// recorded attention: every row sums to 1, gives nothing to keys that its query cannot see, and equals the
/// attention recomputed from queries and keys of the KV head that the query head maps to, within what its
/// element type allows. Throws UserError when the file is no valid trace or cannot be read.
CheckReport check_trace(const std::string& path, const CheckOptions& options,
                        const std::function<void(std::uint64_t)>& progress = {});

}  // namespace kvsim
