// A small made-up run whose numbers depend only on where they stand, and a folder that removes itself.
#pragma once

#include <cstdint>
#include <string>

#include "analysis/run_record.h"
#include "sim/results.h"

namespace kvsim::test {

/// An empty folder below the system's temporary one; removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder();
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Two traces ("essay" with layers 0, 3; "news, \"late\"" with layer 1), two KV heads, variants full, h2o and
/// snapkv(...), three budgets, metrics output_error, set_consistency, miss_rate and projected_error.
RunRecord sample_record();

/// The unit's results. Values are irrational-looking doubles, one of them NaN.
UnitResult sample_unit(const RunRecord& record, const UnitId& unit);

/// Writes the record and all parts.
void write_sample_run(const std::string& folder, const RunRecord& record, const std::string& batch = "b0");

std::string slurp(const std::string& path);

}  // namespace kvsim::test
