// Options of kvsim pages.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/cli/options.h"
#include "sim/pages/attention_streams.h"
#include "sim/pages/page_server.h"
#include "traces/requests/request_reader.h"

namespace kvsim {

struct PagesOptions {
  std::vector<std::string> inputs, policies, capacities, layers;
  std::string out, warmup, format, command_line;
  RequestFileOptions file;
  AttentionStreamOptions attention;
  ServeOptions serve;
  std::uint64_t memory = 0;
  double sample = 0;
  std::uint32_t sample_groups = 4;
  int threads = 1;
  bool stream = false, curve = false, bounds = true, output_error = false;
};

po::options_description described_pages_options();
/// Throws UserError for anything that does not fit.
PagesOptions read_pages_options(const po::variables_map& values);

/// "1000" or "10%" of `requests`, which may be unknown. Throws UserError.
std::uint64_t warmup_of(const std::string& text, std::uint64_t requests, bool known);

}  // namespace kvsim
