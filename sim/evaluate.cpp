// Measures one variant on one KV head.
#include "sim/evaluate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels/error.h"
#include "sim/transformed.h"
#include "sim/unit_rows.h"

namespace kvsim {
namespace {

constexpr float kUndefined = std::numeric_limits<float>::quiet_NaN();

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

/// What adding up a head's results needs beside them; kept from budget to budget.
struct Adding {
  Adding(const HeadView& view, std::span<const UnitRows> row_ranges)
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
  std::span<const UnitRows> ranges;
  RowOrder order;
  std::vector<float> by_row, ordered;
  std::vector<std::uint32_t> decoded;  // tokens of the decode that a row reads
};

/// value_of(values, place of the budget, row in the range, row) of every row into `by_row`, then into budget
/// `to` of the measure in its order.
template <typename ValueOf>
void add_metric(Adding& adding, StepMetric metric, std::size_t budget, HeadMeasure& measure, std::size_t to,
                const ValueOf& value_of) {
  for (const UnitRows& range : adding.ranges) {
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
  for (const UnitRows& range : adding.ranges) {
    const std::uint32_t* const limits = range.values.limits.row(range.unit->place[budget]);
    for (std::size_t row = range.first; row < range.end; ++row) {
      const std::uint32_t readable = limits[row] + adding.decoded[row];
      sum += readable;
      most = std::max(most, readable);
    }
  }
  measure.add_readable(to, sum, most);
}

/// Replaces the errors of a range by those over the entries that the policy puts in place of the kept ones.
/// Adds the unit's share of the bytes at every budget to `share`.
void apply_transform(const HeadView& head, const EntryTransform& transform, std::size_t query_head,
                     UnitRows& range, std::vector<double>& share, HeadDelta* delta) {
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
  thread_local std::vector<UnitRows> kept_ranges;  // its matrices serve task after task
  std::vector<UnitRows>& ranges = kept_ranges;
  ranges.resize(count);
  std::vector<double> share(budgets, 0.0);
  for (std::size_t i = 0; i < count; ++i) {
    UnitRows& range = ranges[i];
    range.unit = &selection.of(head.block.kv_head, i, g.group);
    range.first = i * steps;
    range.end = count == 1 ? exact.rows() : (i + 1) * steps;
    range.begin = range.first / kRowPad * kRowPad;
    HeadDelta part;
    HeadDelta* target = delta;
    if (delta != nullptr && (count > 1 || !range.unit->in_order())) {
      part = *delta;
      target = &part;
    }
    std::optional<DeviceRows> found;
    if (device != nullptr)
      found = DeviceRows{device->results, step_order ? device->first : device->first + i};
    measure_rows(head, step_order, found ? &*found : nullptr, range, target);
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
