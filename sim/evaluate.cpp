// Measures one variant on one KV head.
#include "sim/evaluate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "sim/transformed.h"

namespace kvsim {
namespace {

constexpr float kUndefined = std::numeric_limits<float>::quiet_NaN();

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

/// The order of StepMetric's miss rates against kMassFractions {.5, .9, .99}.
constexpr std::array<std::pair<StepMetric, std::size_t>, 3> kMissMetrics{
    {{StepMetric::miss_rate, 1}, {StepMetric::miss_rate_50, 0}, {StepMetric::miss_rate_99, 2}}};

/// The rows of a chunk in the order in which they are summed: step block, query head, step.
struct RowOrder {
  std::vector<std::uint32_t> row, step;  // step counts from the beginning of the decode

  RowOrder(const StepRange& steps, std::size_t group) {
    for (std::size_t block = 0; block < steps.count; block += kStepBlock)
      for (std::size_t h = 0; h < group; ++h)
        for (std::size_t t = block; t < std::min(steps.count, block + kStepBlock); ++t) {
          row.push_back(static_cast<std::uint32_t>(h * steps.count + t));
          step.push_back(static_cast<std::uint32_t>(steps.first + t));
        }
  }
};

/// Rows that share a kept set, with what the kernels found for them: rows [begin, end), of which those from
/// `first` on are the unit's own (tiles start at multiples of kRowPad).
struct Range {
  const UnitSelection* unit = nullptr;
  std::size_t begin = 0, first = 0, end = 0;
  RowValues values;
};

/// What adding up a head's results needs beside them; kept from budget to budget.
struct Adding {
  Adding(const HeadView& view, std::span<const Range> row_ranges)
      : head(view),
        ranges(row_ranges),
        order(view.exact.steps(), view.layer.geometry.group),
        by_row(view.exact.rows()),
        ordered(view.exact.rows()),
        decoded(view.exact.rows()) {
    for (std::size_t row = 0; row < decoded.size(); ++row)
      decoded[row] =
          view.exact.position()[row] + 1 -
          std::max(view.exact.first_visible(row), static_cast<TokenIndex>(view.layer.geometry.prompt));
  }
  const HeadView& head;
  std::span<const Range> ranges;
  RowOrder order;
  std::vector<float> by_row, ordered;
  std::vector<std::uint32_t> decoded;  // tokens of the decode that a row reads
};

/// value_of(values, place of the budget, row in the range, row) of every row into `by_row`, then into budget
/// `to` of the measure in its order.
template <typename ValueOf>
void add_metric(Adding& adding, StepMetric metric, std::size_t budget, HeadMeasure& measure, std::size_t to,
                const ValueOf& value_of) {
  for (const Range& range : adding.ranges) {
    const std::size_t place = range.unit->place[budget];
    for (std::size_t row = range.first; row < range.end; ++row)
      adding.by_row[row] = value_of(range.values, place, row - range.begin, row);
  }
  for (std::size_t i = 0; i < adding.ordered.size(); ++i)
    adding.ordered[i] = adding.by_row[adding.order.row[i]];
  measure.add(metric, to, adding.ordered, adding.order.step);
}

/// Counts are below 2^31: as signed numbers they become floats in one instruction.
float as_float(std::uint32_t count) { return static_cast<float>(static_cast<std::int32_t>(count)); }

/// Adds one budget of a chunk to the measure, where it is budget `to`.
void add_budget(Adding& adding, std::size_t budget, HeadMeasure& measure, std::size_t to) {
  const ExactSteps& exact = adding.head.exact;
  using Values = const RowValues&;
  add_metric(adding, StepMetric::output_error, budget, measure, to,
             [](Values v, std::size_t b, std::size_t at, std::size_t) { return v.error(b, at); });
  add_metric(adding, StepMetric::attention_recall, budget, measure, to,
             [](Values v, std::size_t b, std::size_t at, std::size_t) { return v.recall(b, at); });
  add_metric(adding, StepMetric::query_consistency, budget, measure, to,
             [](Values v, std::size_t b, std::size_t at, std::size_t row) {
               const std::uint32_t n = v.limits(b, row);
               return n == 0 ? kUndefined : as_float(v.agree(b, at)) / as_float(n);
             });
  for (const auto& [metric, c] : kMissMetrics) {
    const std::uint32_t* const prompt = exact.needed_prompt(c).data();
    const std::uint32_t* const total = exact.needed_total(c).data();
    add_metric(adding, metric, budget, measure, to,
               [=, fraction = c](Values v, std::size_t b, std::size_t at, std::size_t row) {
                 return as_float(prompt[row] - v.found[fraction](b, at)) / as_float(total[row]);
               });
  }
  if (!adding.ranges.front().values.logit_error.empty())
    add_metric(adding, StepMetric::logit_error, budget, measure, to,
               [](Values v, std::size_t b, std::size_t at, std::size_t) { return v.logit_error(b, at); });
  std::uint64_t sum = 0;
  std::uint32_t most = 0;
  for (const Range& range : adding.ranges) {
    const std::uint32_t* const limits = range.values.limits.row(range.unit->place[budget]);
    for (std::size_t row = range.first; row < range.end; ++row) {
      const std::uint32_t readable = limits[row] + adding.decoded[row];
      sum += readable;
      most = std::max(most, readable);
    }
  }
  measure.add_readable(to, sum, most);
}

/// Takes the values of a range from what a device found for ranking `ranking`.
void take_device_rows(const HeadView& head, const CurveResults& found, std::size_t ranking, bool step_order,
                      Range& range, HeadDelta* delta) {
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

/// Replaces the errors of a range by those over the entries that the policy puts in place of the kept ones.
/// Adds the unit's share of the bytes at every budget to `share`.
void apply_transform(const HeadView& head, const EntryTransform& transform, std::size_t query_head,
                     Range& range, std::vector<double>& share, HeadDelta* delta) {
  const UnitSelection& unit = *range.unit;
  range.values.logit_error = Matrix<float>(unit.counts.size(), range.end - range.begin, kRowPad);
  for (std::size_t b = 0; b < unit.counts.size(); ++b) {
    const std::size_t place = unit.place[b], rows = range.end - range.first,
                      skipped = range.first - range.begin;
    std::vector<TokenIndex> kept(unit.order.begin(), unit.order.begin() + unit.counts[b]);
    std::sort(kept.begin(), kept.end());
    const Transformed entries = transform.policy.transform(transform.features, query_head, kept);
    share[b] += entries.resident_share;
    measure_transformed(head, entries, kept, range.first, range.end,
                        {range.values.error.row(place) + skipped, rows},
                        {range.values.logit_error.row(place) + skipped, rows},
                        delta == nullptr ? nullptr : delta->data.data() + place * delta->budget_stride,
                        delta == nullptr ? 0 : delta->stride);
  }
}

}  // namespace

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

void measure_steps(const HeadView& head, const LayerSelection& selection, bool step_order,
                   HeadMeasure& measure, HeadDelta* delta, const EntryTransform* transform,
                   const DeviceRows* device) {
  const ExactSteps& exact = head.exact;
  const LayerGeometry& g = head.layer.geometry;
  const std::size_t steps = exact.steps().count;
  const std::size_t budgets = selection.units.front().counts.size();
  if (delta != nullptr) {
    delta->stride = exact.row_stride();
    delta->budget_stride = delta->stride * g.value_dim;
    delta->data.assign(budgets * delta->budget_stride, 0.0f);
  }
  // One range of rows per unit: all query heads together, or each with its own order.
  const std::size_t count = selection.unit == Unit::query ? g.group : 1;
  thread_local std::vector<Range> kept_ranges;  // its matrices serve task after task
  std::vector<Range>& ranges = kept_ranges;
  ranges.resize(count);
  std::vector<double> share(budgets, 0.0);
  for (std::size_t i = 0; i < count; ++i) {
    Range& range = ranges[i];
    range.unit = &selection.of(head.block.kv_head, i, g.group);
    range.first = i * steps;
    range.end = count == 1 ? exact.rows() : (i + 1) * steps;
    range.begin = range.first / kRowPad * kRowPad;
    range.values.resize(budgets, range.end - range.begin, exact.row_stride());
    HeadDelta part;
    HeadDelta* target = delta;
    if (delta != nullptr && (count > 1 || !range.unit->in_order())) {
      part = *delta;
      target = &part;
    }
    if (device != nullptr) {
      take_device_rows(head, *device->results, step_order ? device->first : device->first + i, step_order,
                       range, target);
    } else if (exact.wide_ranks()) {
      run_kernels(head, exact.ranks32(), *range.unit, step_order, range.begin, range.end, range.values,
                  target);
    } else {
      run_kernels(head, exact.ranks16(), *range.unit, step_order, range.begin, range.end, range.values,
                  target);
    }
    for (std::size_t b = 0; b < budgets; ++b)
      for (std::size_t row = range.first; row < range.end; ++row)
        if (std::isnan(range.values.error(b, row - range.begin)))
          recompute_underflow(head, *range.unit, range.begin, row, b, range.values, target);
    range.values.logit_error = Matrix<float>();
    if (transform != nullptr) apply_transform(head, *transform, i, range, share, target);
    if (target == delta) continue;
    for (std::size_t b = 0; b < budgets; ++b)
      for (std::size_t c = 0; c < g.value_dim; ++c) {
        const std::size_t from =
            range.unit->place[b] * delta->budget_stride + c * delta->stride + range.first;
        const std::size_t to = b * delta->budget_stride + c * delta->stride + range.first;
        std::copy_n(part.data.data() + from, range.end - range.first, delta->data.data() + to);
      }
  }
  if (transform != nullptr)
    for (std::size_t b = 0; b < budgets; ++b)
      measure.set_resident_share(selection.budgets[b], share[b] / static_cast<double>(count));
  Adding adding(head, ranges);
  for (std::size_t b = 0; b < budgets; ++b) add_budget(adding, b, measure, selection.budgets[b]);
}

namespace {

SetMetrics sets_of_part(const LayerContext& layer, std::size_t kv_head, const LayerSelection& selection,
                        std::span<const OracleOrder> oracle_of_query_head,
                        const OracleOrder& oracle_of_kv_head) {
  const std::size_t units = selection.unit == Unit::query ? layer.geometry.group : 1;
  SetMetrics total(0);
  for (std::size_t h = 0; h < units; ++h) {
    const std::size_t index = selection.unit_index(kv_head, h, layer.geometry.group);
    const std::span<const TokenIndex> hindsight =
        selection.hindsight.empty() ? std::span<const TokenIndex>()
                                    : std::span<const TokenIndex>(selection.hindsight[index]);
    SetMetrics one =
        set_metrics(selection.units[index], units == 1 ? oracle_of_kv_head : oracle_of_query_head[h],
                    hindsight, layer.evidence);
    if (h == 0) {
      total = std::move(one);
    } else {
      total.add(one);
    }
  }
  if (units > 1) total.divide(static_cast<double>(units));
  return total;
}

}  // namespace

SetMetrics measure_sets(const LayerContext& layer, std::size_t kv_head, const Selection& selection,
                        std::size_t budgets, std::span<const OracleOrder> oracle_of_query_head,
                        const OracleOrder& oracle_of_kv_head) {
  SetMetrics all(budgets);
  for (const LayerSelection& part : selection.parts)
    all.place(sets_of_part(layer, kv_head, part, oracle_of_query_head, oracle_of_kv_head), part.budgets);
  return all;
}

}  // namespace kvsim
