// Measures one variant on one KV head.
#include "sim/evaluate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/error.h"

namespace kvsim {
namespace {

constexpr float kUndefined = std::numeric_limits<float>::quiet_NaN();

/// Results of the kernels for a range of rows, [budgets][rows] each.
struct RowValues {
  RowValues(std::size_t budgets, std::size_t rows)
      : error(budgets, rows, kRowPad), recall(budgets, rows, kRowPad), agree(budgets, rows, kRowPad), limits() {
    for (auto& counts : found) counts = Matrix<std::uint32_t>(budgets, rows, kRowPad);
  }
  Matrix<float> error, recall;
  Matrix<std::uint32_t> agree;                                         // kept tokens among the row's own best n
  std::array<Matrix<std::uint32_t>, kMassFractions.size()> found;      // kept tokens of the needed sets
  Matrix<std::uint32_t> limits;                                        // n of query_consistency, [budgets][row stride]
};

MatrixView<const std::uint32_t> one_row(std::span<const std::uint32_t> values) {
  return {values.data(), 1, values.size(), values.size()};
}

/// n = kept tokens that a row may see: the count itself, or fewer under a sliding window. With an order of its own
/// (step_order) a row keeps visible tokens only.
Matrix<std::uint32_t> visible_counts(const ExactSteps& exact, const UnitSelection& unit, bool sliding, bool step_order) {
  const std::size_t stride = exact.weights().stride;
  Matrix<std::uint32_t> limits(unit.ascending.size(), stride);
  std::vector<std::uint32_t> kept_from;  // kept_from[p]: kept tokens at positions >= p
  for (std::size_t b = 0; b < unit.ascending.size(); ++b) {
    std::fill_n(limits.row(b), stride, unit.ascending[b]);
    if (!sliding) continue;
    if (step_order) {
      for (std::size_t row = 0; row < exact.rows(); ++row) {
        const std::size_t visible = unit.order.size() - std::min<std::size_t>(exact.first_visible(row), unit.order.size());
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
  return limits;
}

/// Rows whose kept mass underflowed in the shared softmax: exact recomputation with their own maximum.
void recompute_underflow(const HeadView& head, const UnitSelection& unit, std::size_t row_begin, std::size_t row,
                         std::size_t budget, RowValues& values, HeadDelta* delta) {
  const ExactSteps& exact = head.exact;
  const LayerGeometry& g = head.layer.geometry;
  std::vector<TokenIndex> held;
  for (std::uint32_t i = 0; i < unit.ascending[budget]; ++i)
    if (unit.order[i] >= exact.first_visible(row)) held.push_back(unit.order[i]);
  for (TokenIndex p = static_cast<TokenIndex>(g.prompt); p <= exact.position()[row]; ++p)
    if (p >= exact.first_visible(row)) held.push_back(p);
  std::sort(held.begin(), held.end());
  std::vector<double> output(g.value_dim);
  subset_output(head.block.key.view(), head.block.value.view(), exact.queries().row_span(row), head.layer.rule, held, output);
  const MatrixView<const float> truth = exact.curve_input(head.block).exact;
  double error = 0, norm = 0;
  for (std::size_t c = 0; c < g.value_dim; ++c) {
    const double o = truth(c, row);
    error += (output[c] - o) * (output[c] - o);
    norm += o * o;
    if (delta != nullptr)
      delta->data[budget * delta->budget_stride + c * delta->stride + row] = static_cast<float>(output[c] - o);
  }
  values.error(budget, row - row_begin) = static_cast<float>(norm > 0 ? std::sqrt(error / norm) : std::sqrt(error));
}

template <typename Rank>
void run_kernels(const HeadView& head, MatrixView<const Rank> ranks, const UnitSelection& unit, bool step_order,
                 std::size_t row_begin, std::size_t row_end, RowValues& values, HeadDelta* delta) {
  const ExactSteps& exact = head.exact;
  CurveInput in = exact.curve_input(head.block);
  in.order = unit.order;
  in.counts = unit.ascending;
  CurveOutput out{values.error.view(), values.recall.view(), nullptr, 0};
  if (delta != nullptr) {
    out.delta = delta->data.data();
    out.delta_stride = delta->budget_stride;
  }
  values.limits = visible_counts(exact, unit, head.layer.rule.window != 0, step_order);
  if (step_order) {
    // The kept set of a row is its own best n: it agrees by definition, and what it lacks of a needed set is arithmetic.
    own_order_curve(in, ranks, row_begin, row_end, out);
    for (std::size_t b = 0; b < unit.ascending.size(); ++b) {
      for (std::size_t row = row_begin; row < row_end; ++row) {
        values.agree(b, row - row_begin) = values.limits(b, row);
        for (std::size_t c = 0; c < kMassFractions.size(); ++c)
          values.found[c](b, row - row_begin) = std::min(unit.ascending[b], exact.needed_prompt(c)[row]);
      }
    }
    return;
  }
  curve_pass(in, row_begin, row_end, out);
  overlap_counts(ranks, unit.order, unit.ascending, values.limits.view(), row_begin, row_end, values.agree.view());
  for (std::size_t c = 0; c < kMassFractions.size(); ++c)
    overlap_counts(ranks, unit.order, unit.ascending, one_row(exact.needed_prompt(c)), row_begin, row_end, values.found[c].view());
}

/// The order of StepMetric's miss rates against kMassFractions {.5, .9, .99}.
constexpr std::array<std::pair<StepMetric, std::size_t>, 3> kMissMetrics{
    {{StepMetric::miss_rate, 1}, {StepMetric::miss_rate_50, 0}, {StepMetric::miss_rate_99, 2}}};

/// The rows of a chunk in the order in which they are summed: step block, query head, step.
struct RowOrder {
  std::vector<std::uint32_t> row, head, step;  // step counts from the beginning of the decode

  RowOrder(const StepRange& steps, std::size_t group) {
    for (std::size_t block = 0; block < steps.count; block += kStepBlock)
      for (std::size_t h = 0; h < group; ++h)
        for (std::size_t t = block; t < std::min(steps.count, block + kStepBlock); ++t) {
          row.push_back(static_cast<std::uint32_t>(h * steps.count + t));
          head.push_back(static_cast<std::uint32_t>(h));
          step.push_back(static_cast<std::uint32_t>(steps.first + t));
        }
  }
};

/// Rows that share a kept set, with what the kernels found for them.
struct Range {
  const UnitSelection* unit;
  std::size_t begin, end;
  RowValues values;
};

/// Adds one budget of a chunk to the measure. `range_of(head)` is the range that holds a query head's rows.
template <typename RangeOf>
void add_budget(const HeadView& head, const RowOrder& order, const RangeOf& range_of, std::size_t budget, HeadMeasure& measure) {
  const ExactSteps& exact = head.exact;
  std::vector<float> values(order.row.size());
  const auto add = [&](StepMetric metric, const auto& value_of) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const Range& range = range_of(order.head[i]);
      values[i] = value_of(range.values, range.unit->place[budget], order.row[i] - range.begin, order.row[i]);
    }
    measure.add(metric, budget, values, order.step);
  };
  using Values = const RowValues&;
  add(StepMetric::output_error, [](Values v, std::size_t b, std::size_t at, std::size_t) { return v.error(b, at); });
  add(StepMetric::attention_recall, [](Values v, std::size_t b, std::size_t at, std::size_t) { return v.recall(b, at); });
  add(StepMetric::query_consistency, [](Values v, std::size_t b, std::size_t at, std::size_t row) {
    const std::uint32_t n = v.limits(b, row);
    return n == 0 ? kUndefined : static_cast<float>(v.agree(b, at)) / static_cast<float>(n);
  });
  for (const auto& [metric, c] : kMissMetrics) {
    add(metric, [&exact, fraction = c](Values v, std::size_t b, std::size_t at, std::size_t row) {
      const std::uint32_t missing = exact.needed_prompt(fraction)[row] - v.found[fraction](b, at);
      return static_cast<float>(missing) / static_cast<float>(exact.needed_total(fraction)[row]);
    });
  }
  for (std::size_t i = 0; i < order.row.size(); ++i) {
    const std::size_t row = order.row[i];
    const Range& range = range_of(order.head[i]);
    const TokenIndex first_decode = std::max(exact.first_visible(row), static_cast<TokenIndex>(head.layer.geometry.prompt));
    measure.add_readable(budget, static_cast<double>(range.values.limits(range.unit->place[budget], row)) +
                                     static_cast<double>(exact.position()[row] + 1 - first_decode));
  }
}

}  // namespace

HeadMeasure::HeadMeasure(std::size_t budgets, std::size_t group, std::size_t steps, bool keep_steps)
    : group_(group), steps_(steps), distributions_(budgets * kStepMetrics), readable_sum_(budgets, 0.0),
      readable_most_(budgets, 0.0) {
  if (keep_steps) step_sums_.assign(budgets * kStepMetrics * steps, 0.0f);
}

void HeadMeasure::add(StepMetric metric, std::size_t budget, std::span<const float> values, std::span<const std::uint32_t> steps) {
  Distribution& distribution = distributions_[place(metric, budget)];
  // Same result as Distribution::add one by one: the bins of normal floats are counted in a dense table first, whose index
  // is the float's exponent and first seven bits of mantissa, the very bits that make a bin.
  constexpr unsigned kDropped = 16;
  thread_local std::vector<std::uint32_t> dense(1u << (31 - kDropped), 0);
  thread_local std::vector<std::uint32_t> touched;
  touched.clear();
  for (const float value : values) {
    if (!(value >= std::numeric_limits<float>::min())) {  // zero, NaN and denormals
      distribution.add(value);
      continue;
    }
    const double wide = value;
    distribution.min = distribution.count == 0 ? wide : std::min(distribution.min, wide);
    distribution.max = distribution.count == 0 ? wide : std::max(distribution.max, wide);
    distribution.sum += wide;
    ++distribution.count;
    const std::uint32_t key = std::bit_cast<std::uint32_t>(value) >> kDropped;
    if (dense[key]++ == 0) touched.push_back(key);
  }
  for (const std::uint32_t key : touched) {
    distribution.bins.emplace_back(Distribution::bin_of(std::bit_cast<float>(key << kDropped)), dense[key]);
    dense[key] = 0;
  }
  if (step_sums_.empty()) return;
  float* sums = step_sums_.data() + place(metric, budget) * steps_;
  for (std::size_t i = 0; i < values.size(); ++i) sums[steps[i]] += values[i];
}

void HeadMeasure::add_readable(std::size_t budget, double tokens) {
  readable_sum_[budget] += tokens;
  readable_most_[budget] = std::max(readable_most_[budget], tokens);
}

void HeadMeasure::finish() {
  for (Distribution& distribution : distributions_) distribution.finish();
  for (float& sum : step_sums_) sum /= static_cast<float>(group_);
}

double HeadMeasure::mean(StepMetric metric, std::size_t budget) const {
  const Distribution& d = distribution(metric, budget);
  return d.count == 0 ? std::numeric_limits<double>::quiet_NaN() : d.sum / static_cast<double>(d.count);
}

std::span<const float> HeadMeasure::steps(StepMetric metric, std::size_t budget) const {
  return std::span(step_sums_).subspan(place(metric, budget) * steps_, steps_);
}

void measure_steps(const HeadView& head, const LayerSelection& selection, bool step_order, HeadMeasure& measure,
                   HeadDelta* delta) {
  const ExactSteps& exact = head.exact;
  const LayerGeometry& g = head.layer.geometry;
  const std::size_t steps = exact.steps().count;
  const std::size_t budgets = selection.units.front().counts.size();
  if (delta != nullptr) {
    delta->stride = exact.weights().stride;
    delta->budget_stride = delta->stride * g.value_dim;
    delta->data.assign(budgets * delta->budget_stride, 0.0f);
  }
  // One range of rows per unit: all query heads together, or each with its own order.
  std::vector<Range> ranges;
  const std::size_t count = selection.unit == Unit::query ? g.group : 1;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t end = count == 1 ? exact.rows() : (i + 1) * steps;
    const std::size_t begin = i * steps / kRowPad * kRowPad;  // tiles start at multiples of kRowPad; extra rows are unused
    ranges.push_back({&selection.of(head.block.kv_head, i, g.group), begin, end, RowValues(budgets, end - begin)});
    Range& range = ranges.back();
    HeadDelta part;
    HeadDelta* target = delta;
    if (delta != nullptr && (count > 1 || !range.unit->in_order())) {
      part = *delta;
      target = &part;
    }
    if (exact.wide_ranks()) {
      run_kernels(head, exact.ranks32(), *range.unit, step_order, begin, end, range.values, target);
    } else {
      run_kernels(head, exact.ranks16(), *range.unit, step_order, begin, end, range.values, target);
    }
    for (std::size_t b = 0; b < budgets; ++b)
      for (std::size_t row = i * steps; row < end; ++row)
        if (std::isnan(range.values.error(b, row - begin)))
          recompute_underflow(head, *range.unit, begin, row, b, range.values, target);
    if (target == delta) continue;
    for (std::size_t b = 0; b < budgets; ++b)
      for (std::size_t c = 0; c < g.value_dim; ++c) {
        const std::size_t from = range.unit->place[b] * delta->budget_stride + c * delta->stride + i * steps;
        const std::size_t to = b * delta->budget_stride + c * delta->stride + i * steps;
        std::copy_n(part.data.data() + from, end - i * steps, delta->data.data() + to);
      }
  }
  const RowOrder order(exact.steps(), g.group);
  const auto range_of = [&](std::uint32_t h) -> const Range& { return ranges[count == 1 ? 0 : h]; };
  for (std::size_t b = 0; b < budgets; ++b) add_budget(head, order, range_of, b, measure);
}

SetMetrics measure_sets(const LayerContext& layer, std::size_t kv_head, const LayerSelection& selection,
                        std::span<const OracleOrder> oracle_of_query_head, const OracleOrder& oracle_of_kv_head) {
  const std::size_t units = selection.unit == Unit::query ? layer.geometry.group : 1;
  SetMetrics total(0);
  for (std::size_t h = 0; h < units; ++h) {
    const std::size_t index = selection.unit_index(kv_head, h, layer.geometry.group);
    const std::span<const TokenIndex> hindsight =
        selection.hindsight.empty() ? std::span<const TokenIndex>() : std::span<const TokenIndex>(selection.hindsight[index]);
    SetMetrics one = set_metrics(selection.units[index], units == 1 ? oracle_of_kv_head : oracle_of_query_head[h], hindsight,
                                 layer.evidence);
    if (h == 0) {
      total = std::move(one);
    } else {
      total.add(one);
    }
  }
  if (units > 1) total.divide(static_cast<double>(units));
  return total;
}

}  // namespace kvsim
