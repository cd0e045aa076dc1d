// What the kernels find for the rows that share a kept set, on the CPU or on a device.
#include "sim/unit_rows.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace kvsim {
namespace {

MatrixView<const std::uint32_t> one_row(std::span<const std::uint32_t> values) {
  return {values.data(), 1, values.size(), values.size()};
}

/// n = kept tokens that a row may see: the count itself, or fewer under a sliding window. With an order of
/// its own (step_order) a row keeps visible tokens only.
void visible_counts(const ExactSteps& exact, const UnitSelection& unit, bool sliding, bool step_order,
                    Matrix<std::uint32_t>& limits) {
  std::vector<std::uint32_t> kept_from;  // kept_from[p]: kept tokens at positions >= p
  for (std::size_t b = 0; b < unit.ascending.size(); ++b) {
    std::fill_n(limits.row(b), limits.stride(), unit.ascending[b]);
    if (!sliding) continue;
    if (step_order) {
      for (std::size_t row = 0; row < exact.rows(); ++row) {
        const std::size_t visible =
            unit.order.size() - std::min<std::size_t>(exact.first_visible(row), unit.order.size());
        limits(b, row) = std::min(unit.ascending[b], static_cast<std::uint32_t>(visible));
      }
      continue;
    }
    kept_from.assign(unit.order.size() + 1, 0);
    for (std::uint32_t i = 0; i < unit.ascending[b]; ++i) kept_from[unit.order[i]] = 1;
    for (std::size_t p = unit.order.size(); p-- > 0;) kept_from[p] += kept_from[p + 1];
    for (std::size_t row = 0; row < exact.rows(); ++row)
      limits(b, row) = kept_from[std::min<std::size_t>(exact.first_visible(row), unit.order.size())];
  }
}

/// Rows whose kept mass underflowed in the shared softmax: exact recomputation with their own maximum.
void recompute_underflow(const HeadView& head, const UnitSelection& unit, std::size_t row_begin,
                         std::size_t row, std::size_t budget, RowValues& values, HeadDelta* delta) {
  const ExactSteps& exact = head.exact;
  const LayerGeometry& g = head.layer.geometry;
  std::vector<TokenIndex> held;
  for (std::uint32_t i = 0; i < unit.ascending[budget]; ++i)
    if (unit.order[i] >= exact.first_visible(row)) held.push_back(unit.order[i]);
  for (TokenIndex p = static_cast<TokenIndex>(g.prompt); p <= exact.position()[row]; ++p)
    if (p >= exact.first_visible(row)) held.push_back(p);
  std::sort(held.begin(), held.end());
  std::vector<double> output(g.value_dim);
  subset_output(head.block.key.view(), head.block.value.view(), exact.queries().row_span(row),
                head.layer.rule, held, output);
  const MatrixView<const float> truth = exact.outputs();
  double error = 0, norm = 0;
  for (std::size_t c = 0; c < g.value_dim; ++c) {
    const double o = truth(c, row);
    error += (output[c] - o) * (output[c] - o);
    norm += o * o;
    if (delta != nullptr)
      delta->data[budget * delta->budget_stride + c * delta->stride + row] =
          static_cast<float>(output[c] - o);
  }
  values.error(budget, row - row_begin) =
      static_cast<float>(norm > 0 ? std::sqrt(error / norm) : std::sqrt(error));
}

/// The kept set of a row is its own best n: it agrees by definition, and what it lacks of a needed set is
/// arithmetic.
void count_own_order(const ExactSteps& exact, const UnitSelection& unit, std::size_t row_begin,
                     std::size_t row_end, RowValues& values) {
  for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
    const std::span<const std::uint32_t> needed = exact.needed_prompt(c);
    for (std::size_t b = 0; b < unit.ascending.size(); ++b)
      for (std::size_t row = row_begin; row < row_end; ++row)
        values.found[c](b, row - row_begin) = std::min(unit.ascending[b], needed[row]);
  }
  for (std::size_t b = 0; b < unit.ascending.size(); ++b)
    for (std::size_t row = row_begin; row < row_end; ++row)
      values.agree(b, row - row_begin) = values.limits(b, row);
}

template <typename Rank>
void run_kernels(const HeadView& head, MatrixView<const Rank> ranks, const UnitSelection& unit,
                 bool step_order, std::size_t row_begin, std::size_t row_end, RowValues& values,
                 HeadDelta* delta) {
  const ExactSteps& exact = head.exact;
  CurveInput in = exact.curve_input(head.block);
  in.order = unit.order;
  in.counts = unit.ascending;
  CurveOutput out{values.error.view(), values.recall.view(), nullptr, 0};
  if (delta != nullptr) {
    out.delta = delta->data.data();
    out.delta_stride = delta->budget_stride;
  }
  visible_counts(exact, unit, head.layer.rule.window != 0, step_order, values.limits);
  if (step_order) {
    own_order_curve(in, ranks, row_begin, row_end, out);
    count_own_order(exact, unit, row_begin, row_end, values);
    return;
  }
  curve_pass(in, row_begin, row_end, out);
  std::vector<OverlapQuery> queries{{values.limits.view(), values.agree.view()}};
  for (std::size_t c = 0; c < kMassFractions.size(); ++c)
    queries.push_back({one_row(exact.needed_prompt(c)), values.found[c].view()});
  overlap_counts(ranks, unit.order, unit.ascending, queries, row_begin, row_end);
}

/// Takes the values of a range from what a device found for ranking `ranking`.
void take_device_rows(const HeadView& head, const CurveResults& found, std::size_t ranking, bool step_order,
                      UnitRows& range, HeadDelta* delta) {
  const ExactSteps& exact = head.exact;
  RowValues& values = range.values;
  const std::size_t rows = range.end - range.first, skipped = range.first - range.begin;
  const auto take = [&](auto& matrix, const auto* from, std::size_t b, std::size_t at) {
    std::copy_n(from + at + range.first, rows, matrix.row(b) + skipped);
  };
  visible_counts(exact, *range.unit, head.layer.rule.window != 0, step_order, values.limits);
  for (std::size_t b = 0; b < range.unit->ascending.size(); ++b) {
    take(values.error, found.error, b, found.at(ranking, b));
    take(values.recall, found.recall, b, found.at(ranking, b));
    if (!step_order) {
      take(values.agree, found.agree, b, found.at(ranking, b));
      for (std::size_t c = 0; c < kMassFractions.size(); ++c)
        take(values.found[c], found.found, b, found.found_at(c, ranking, b));
    }
    for (std::size_t c = 0; delta != nullptr && c < found.value_dim; ++c)
      std::copy_n(
          found.delta + ((ranking * found.counts + b) * found.value_dim + c) * found.stride + range.first,
          rows, delta->data.data() + b * delta->budget_stride + c * delta->stride + range.first);
  }
  if (step_order) count_own_order(exact, *range.unit, range.begin, range.end, values);
}

}  // namespace

void measure_rows(const HeadView& head, bool step_order, const DeviceRows* device, UnitRows& rows,
                  HeadDelta* delta) {
  rows.values.resize(rows.unit->counts.size(), rows.end - rows.begin, head.exact.row_stride());
  if (device != nullptr) {
    take_device_rows(head, *device->results, device->first, step_order, rows, delta);
  } else if (head.exact.wide_ranks()) {
    run_kernels(head, head.exact.ranks32(), *rows.unit, step_order, rows.begin, rows.end, rows.values, delta);
  } else {
    run_kernels(head, head.exact.ranks16(), *rows.unit, step_order, rows.begin, rows.end, rows.values, delta);
  }
  for (std::size_t b = 0; b < rows.unit->counts.size(); ++b)
    for (std::size_t row = rows.first; row < rows.end; ++row)
      if (std::isnan(rows.values.error(b, row - rows.begin)))
        recompute_underflow(head, *rows.unit, rows.begin, row, b, rows.values, delta);
}

std::vector<Ranking> device_rankings(const HeadView& head, const LayerSelection& selection,
                                     std::vector<Matrix<std::uint32_t>>& limits) {
  const ExactSteps& exact = head.exact;
  const LayerGeometry& g = head.layer.geometry;
  const std::size_t count = selection.unit == Unit::query ? g.group : 1, steps = exact.steps().count;
  std::vector<Ranking> rankings;
  for (std::size_t i = 0; i < count; ++i) {
    const UnitSelection& unit = selection.of(head.block.kv_head, i, g.group);
    Ranking ranking{unit.order, unit.ascending, {}, i * steps, count == 1 ? exact.rows() : (i + 1) * steps};
    if (head.layer.rule.window != 0) {
      Matrix<std::uint32_t>& of_unit = limits.emplace_back(unit.ascending.size(), exact.rows(), kRowPad);
      visible_counts(exact, unit, true, false, of_unit);
      ranking.limits = of_unit.view();
    }
    rankings.push_back(ranking);
  }
  return rankings;
}

}  // namespace kvsim
