// The tables and attributes that say which run a file belongs to; the same in results, records and kept sets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "sim/results.h"
#include "traces/h5/file.h"

namespace kvsim {

inline constexpr std::string_view kFormatVersion = "1.0";

/// Root attributes `format` and `version`.
void write_format(h5::Group& root, std::string_view format);
/// Throws UserError when the file is of another format or of a newer major version.
void check_format(const h5::Group& root, std::string_view format);

void write_provenance(h5::Group& root, const Provenance& provenance);
Provenance read_provenance(const h5::Group& root);

/// /traces and /variants. Budgets are not part of it.
void write_traces(h5::Group& root, const std::vector<TraceEntry>& traces);
std::vector<TraceEntry> read_traces(const h5::Group& root);
void write_variants(h5::Group& root, const std::vector<VariantEntry>& variants);
std::vector<VariantEntry> read_variants(const h5::Group& root);

}  // namespace kvsim
