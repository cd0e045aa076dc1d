// Request files as page streams: held in memory, or block by block.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "sim/pages/page_server.h"
#include "sim/pages/page_stream.h"
#include "traces/requests/request_reader.h"

namespace kvsim {

/// The input is longer than what may be held.
class TooManyRequests : public UserError {
 public:
  using UserError::UserError;
};

/// The whole file. `most` bounds the requests held; for a longer file TooManyRequests is thrown.
PageStream load_requests(const std::string& path, const RequestFileOptions& options,
                         std::uint64_t most = 0xFFFFFFF0ull);

/// One (policy, capacity) of a streamed run.
struct StreamCell {
  const PagePolicy* policy = nullptr;
  std::uint64_t capacity = 0;
  std::uint32_t group = 0;  // of sampled objects, that it serves
  PageCounts counts;
  std::string failure;  // empty, or why it was refused or failed
};
struct StreamFacts {
  std::uint64_t requests = 0, unique = 0;
  bool grouped = false;
};
/// All cells in one pass over the file, read in blocks: memory does not grow with the length, only with the
/// number of different objects served. With `rate` < 1 `groups` disjoint sets of objects are chosen by a
/// hash, a cell serves the one of its group, and capacities are scaled by the rate. The cells of a block are
/// spread over threads. Next uses are known only where the file carries them.
StreamFacts stream_requests(const std::string& path, const RequestFileOptions& file,
                            const ServeOptions& options, double rate, std::uint32_t groups,
                            std::vector<StreamCell>& cells);

}  // namespace kvsim
