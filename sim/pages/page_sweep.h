// All page policies at all capacities over the streams of an input: the rows of a result.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "policies/paging/page_registry.h"
#include "sim/pages/curves.h"
#include "sim/pages/page_server.h"
#include "sim/pages/page_stream.h"
#include "sim/pages/stream_files.h"

namespace kvsim {

struct PageVariant {
  std::string name;   // of the policy
  std::string label;  // canonical spec
  std::unique_ptr<PagePolicy> policy;
  bool automatic = false;  // the reference that every run gets
};
/// Expands and binds specs; doubles are UserErrors. With `reference` belady stands first where nobody named
/// it.
std::vector<PageVariant> make_page_variants(const std::vector<std::string>& specs, bool reference);

/// A capacity as written ("512", "5%", "1G") and where it applies.
struct CapacityRequest {
  std::string text;
  double percent = 0;  // of the unique pages (or of their bytes), when > 0
  std::uint64_t amount = 0;
};
/// "64..4096*2,5%,1G": numbers, ranges, percent, and K, M, G, T (1024) where bytes are counted. Zero is a
/// UserError.
std::vector<CapacityRequest> parse_capacities(const std::vector<std::string>& lists);
/// At least 1.
std::uint64_t capacity_for(const CapacityRequest& request, std::uint64_t all);

/// Where a stream comes from, and what its cache holds beside what the policy manages.
struct StreamInfo {
  std::uint32_t trace = 0;                // index into PageSweep::traces
  std::int32_t layer = -1, kv_head = -1;  // of recordings
  std::uint64_t pinned = 0;               // pages that are always resident and taken from the capacity
  std::uint64_t all_bytes = 0;            // sizes of all different objects, by byte
};

struct PageRow {
  std::uint32_t stream = 0, variant = 0;
  std::string capacity_request;
  std::uint64_t capacity = 0, slots = 0;  // as asked for, and without the pinned pages
  PageCounts counts;
  bool has_optimum = false;
  std::uint64_t optimum = 0;  // misses of Belady at the same capacity
  double bound = 0;           // 2 H_{k-1} + 2 for strict Guard on pages of one size, else NaN
  double sampled_error = 0;   // standard error of the miss ratio where it was sampled, else NaN
  double output_error = 0;    // of the same policy evicting for good; NaN where not asked for

  double cost_ratio() const;
};
struct PageFailure {
  std::uint32_t stream = 0, variant = 0;
  std::string message;
};

struct PageSweep {
  std::vector<std::string> traces;  // names
  std::vector<PageStream> streams;
  std::vector<StreamInfo> infos;  // of streams
  std::vector<PageVariant> variants;
  std::vector<CapacityRequest> capacities;
  ServeOptions options;

  std::vector<PageRow> rows;  // streams, variants, capacities ascending
  std::vector<PageFailure> failures;
};

/// Called for every cell that is asked for more than counts: fills what it can.
using CellHook = std::function<void(const PageStream&, const PagePolicy&, PageRow&)>;

/// Serves all cells of streams in memory, spread over threads; the result does not depend on their number.
void run_sweep(PageSweep& sweep, int threads, const CellHook& hook = {});
/// The same for a file that is read block by block; sweep.streams holds one empty stream. `rate` < 1 samples
/// objects in `groups` disjoint groups and states the standard error.
void run_streamed(PageSweep& sweep, const std::string& path, const RequestFileOptions& file, double rate,
                  std::uint32_t groups, int threads);

/// The theorem's factor for strict Guard with k pages of one size: 2 H_{k-1} + 2.
double guard_factor(std::uint64_t k);

}  // namespace kvsim
