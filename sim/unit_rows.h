// What the kernels find for the rows that share a kept set, on the CPU or on a device.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "sim/evaluate.h"

namespace kvsim {

/// Results of the kernels for a range of rows, [budgets][rows] each. Reused from task to task: what was in it
/// stays until it is written.
struct RowValues {
  void resize(std::size_t budgets, std::size_t rows, std::size_t limit_stride) {
    fit(error, budgets, rows);
    fit(recall, budgets, rows);
    fit(agree, budgets, rows);
    for (auto& counts : found) fit(counts, budgets, rows);
    fit(limits, budgets, limit_stride);
  }
  Matrix<float> error, recall;
  Matrix<float> logit_error;                                       // of transformed entries, else empty
  Matrix<std::uint32_t> agree;                                     // kept tokens among the row's own best n
  std::array<Matrix<std::uint32_t>, kMassFractions.size()> found;  // kept tokens of the needed sets
  Matrix<std::uint32_t> limits;  // n of query_consistency, [budgets][row stride]

 private:
  template <typename T>
  static void fit(Matrix<T>& matrix, std::size_t rows, std::size_t cols) {
    if (matrix.rows() != rows || matrix.cols() != cols) matrix = Matrix<T>(rows, cols, kRowPad);
  }
};

/// Rows that share a kept set, with what the kernels found for them: rows [begin, end), of which those from
/// `first` on are the unit's own (tiles start at multiples of kRowPad).
struct UnitRows {
  const UnitSelection* unit = nullptr;
  std::size_t begin = 0, first = 0, end = 0;
  RowValues values;
};

/// Measures the rows at all budgets of their unit: by the CPU's kernels, or from what a device found for
/// ranking `device->first` (null on the CPU). With `step_order` every row keeps its own best. `delta` may be
/// null; its budgets are unit->ascending.
void measure_rows(const HeadView& head, bool step_order, const DeviceRows* device, UnitRows& rows,
                  HeadDelta* delta);

/// What a device is asked for: the units of a selection on a KV head. Their limits, in layers with a sliding
/// window, are added to `limits`, which must live as long as the rankings.
std::vector<Ranking> device_rankings(const HeadView& head, const LayerSelection& selection,
                                     std::vector<Matrix<std::uint32_t>>& limits);

}  // namespace kvsim
