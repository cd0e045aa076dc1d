// Results of page sweeps: results.csv and results.h5, summary.csv over heads, phases.csv in detail,
// curves.csv.
#pragma once

#include <string>
#include <vector>

#include "sim/pages/page_sweep.h"
#include "sim/results.h"

namespace kvsim {

/// One point of a whole miss-ratio curve.
struct CurvePoint {
  std::uint32_t stream = 0, variant = 0;
  std::uint64_t capacity = 0;
  double miss_ratio = 0;
  double error = 0;    // standard error; 0 where exact
  std::string method;  // "stack" (one pass, exact) or "sampled"
};

/// Writes all files of a page run into `folder` (made when needed); they appear complete or not at all.
/// Throws UserError on a full disk or a folder that cannot be written.
void write_page_results(const std::string& folder, const PageSweep& sweep,
                        const std::vector<CurvePoint>& curves, const Provenance& provenance);

}  // namespace kvsim
