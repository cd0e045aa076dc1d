// Inputs of kvsim pages: request files and recordings as streams in memory, and a user's predictions.
#pragma once

#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "sim/cli/pages_options.h"
#include "sim/pages/attention_streams.h"
#include "sim/pages/page_sweep.h"

namespace kvsim {

/// Loads everything that fits into sweep.streams, infos and traces; true when the only input is to be read as
/// a stream instead. `kept` gets one entry per stream: of recordings what output errors need.
bool load_page_inputs(const PagesOptions& options, PageSweep& sweep, std::vector<AttentionStream>& kept);

/// A user's predictions, read once per file.
class NumberFiles {
 public:
  /// Throws UserError with the line.
  std::span<const double> read(const std::string& path);

 private:
  std::mutex mutex_;
  std::map<std::string, std::vector<double>> files_;
};

}  // namespace kvsim
