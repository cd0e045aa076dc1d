// Copying parts of datasets from one file to another without holding more than a few mebibytes.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "traces/h5/file.h"
#include "traces/trace_writer.h"

namespace kvsim {

/// What to take along one axis: half-open ranges, in the order in which they are to stand; none means
/// everything.
struct Axis {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;

  static Axis all() { return {}; }
  static Axis first(std::uint64_t count) { return {{{0, count}}}; }
  /// Elements `indices`, each of them `width` wide.
  static Axis of(const std::vector<std::uint32_t>& indices, std::uint64_t width = 1);
};

/// Copies the selected part of `from` to `path` in `to`; axes that are not named are taken whole. Numbers
/// keep their type, strings become variable-length utf-8 ones. Throws UserError when a range lies outside the
/// dataset.
void copy_dataset(const h5::Dataset& from, h5::Group& to, const std::string& path,
                  const std::vector<Axis>& axes, const ByteProgress& progress = {});

/// The header of an open trace as one to write, without rotary frequencies (they are a dataset to copy).
TraceHeader header_of(const h5::File& file, const TraceInfo& info);

}  // namespace kvsim
