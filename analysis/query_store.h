// The file that `kvsim trace queries` writes.
#pragma once

#include <string>
#include <vector>

#include "sim/query_library.h"

namespace kvsim {

/// Writes /filters, /query_mean, /query_covariance and the names of the traces; the file appears complete or not at all.
void write_queries(const QueryLibrary& library, const std::string& path, const std::vector<std::string>& traces);

}  // namespace kvsim
