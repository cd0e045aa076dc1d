// Measures the variants of a unit on its heads, held or streamed.
#include <algorithm>
#include <array>

#include "sim/device_plan.h"
#include "sim/unit_replay.h"
#include "sim/unit_rows.h"

namespace kvsim {

void UnitReplay::measure_variant(std::size_t v, std::size_t kv, const ExactSteps& exact) {
  for (const LayerSelection& part : states_[v].selection.parts) measure_part(v, kv, exact, part, nullptr);
}

void UnitReplay::measure_part(std::size_t v, std::size_t kv, const ExactSteps& exact,
                              const LayerSelection& part, const DeviceRows* device) {
  VariantState& state = states_[v];
  const HeadView view{heads_[kv].block, layer_, exact};
  const Policy& policy = *settings_.variants[v]->policy;
  std::optional<EntryTransform> transform;
  if (policy.traits().transforms) transform.emplace(EntryTransform{policy, *heads_[kv].features});
  HeadDelta delta;
  measure_steps(view, part, policy.traits().step_order, state.measures[kv], reads_deltas() ? &delta : nullptr,
                transform ? &*transform : nullptr, device);
  if (responds()) {
    for (std::size_t b = 0; b < part.budgets.size(); ++b)
      state.response.add(part.budgets[b], delta.of(b, g_.value_dim), view.block.sensitivity.view(), g_.group,
                         exact.steps());
  }
  if (measures_layer())
    state.projected.add(delta, part.budgets, heads_[kv].block.output_proj.view(), g_.group, g_.value_dim,
                        exact.steps());
  if (measures_relative())
    state.sketched.add(delta, part.budgets, heads_[kv].sketch.view(), g_.group, g_.value_dim, exact.steps());
}

/// Parts of variants that one call of the device measures, in the variants' order.
struct UnitReplay::DeviceBatch {
  struct Part {
    std::size_t variant, first;  // the part's first ranking
    const LayerSelection* selection;
  };
  std::vector<Part> parts;
  std::vector<Ranking> rankings;
  std::vector<Matrix<std::uint32_t>> limits;
};

void UnitReplay::take_batch(DeviceBatch& batch, std::size_t kv, const ExactSteps& exact,
                            const CurveResults& results) {
  // A variant's parts add to the same sums, so a variant is one task.
  std::vector<std::size_t> begin;
  for (std::size_t i = 0; i < batch.parts.size(); ++i)
    if (i == 0 || batch.parts[i].variant != batch.parts[i - 1].variant) begin.push_back(i);
  begin.push_back(batch.parts.size());
  const std::vector<std::exception_ptr> errors = run_on_all_threads(begin.size() - 1, [&](std::size_t task) {
    for (std::size_t i = begin[task]; i < begin[task + 1]; ++i) {
      const DeviceRows rows{&results, batch.parts[i].first};
      measure_part(batch.parts[i].variant, kv, exact, *batch.parts[i].selection, &rows);
    }
  });
  for (std::size_t task = 0; task < errors.size(); ++task)
    if (errors[task]) fail(batch.parts[begin[task]].variant, errors[task]);
  batch = DeviceBatch();
}

void UnitReplay::measure_on_device(std::size_t first, std::size_t last, std::size_t kv,
                                   const ExactSteps& exact) {
  const HeadView view{heads_[kv].block, layer_, exact};
  DeviceBatch batch;
  const auto flush = [&] {
    if (!batch.parts.empty())
      take_batch(batch, kv, exact, exact.on_device()->curves(batch.rankings, reads_deltas()));
  };
  for (std::size_t v = first; v < last; ++v) {
    if (states_[v].failed) continue;
    const bool step_order = settings_.variants[v]->policy->traits().step_order;
    // A variant may fail while its first parts are added up, which takes the others away.
    for (std::size_t p = 0; !states_[v].failed && p < states_[v].selection.parts.size(); ++p) {
      const LayerSelection& part = states_[v].selection.parts[p];
      const std::size_t counts = part.budgets.size(), units = part.unit == Unit::query ? g_.group : 1;
      if (step_order) {
        flush();
        batch.parts.push_back({v, 0, &part});
        const UnitSelection& unit = part.of(kv, 0, g_.group);
        take_batch(batch, kv, exact, exact.on_device()->own_order(unit.ascending, reads_deltas()));
        continue;
      }
      if (!batch.parts.empty() && (batch.rankings.front().counts.size() != counts ||
                                   batch.rankings.size() + units >
                                       rankings_per_call(g_, exact.steps().count, counts, reads_deltas())))
        flush();
      if (states_[v].failed) break;
      batch.parts.push_back({v, batch.rankings.size(), &part});
      for (const Ranking& ranking : device_rankings(view, part, batch.limits))
        batch.rankings.push_back(ranking);
    }
  }
  flush();
}

void UnitReplay::add_exact_projection(std::size_t kv, const ExactSteps& exact) {
  if (exact_projection_.empty()) exact_projection_ = Matrix<float>(hidden(), g_.decode, kRowPad);
  const MatrixView<const float> output = exact.outputs();
  HeadDelta as_delta;
  as_delta.stride = output.stride;
  as_delta.budget_stride = output.stride * g_.value_dim;
  as_delta.data.assign(output.data, output.data + as_delta.budget_stride);
  ProjectedError one(1, hidden(), g_.decode);
  constexpr std::array<std::size_t, 1> kOnly{0};
  one.add(as_delta, kOnly, heads_[kv].block.output_proj.view(), g_.group, g_.value_dim, exact.steps());
  one.add_to(exact_projection_);
}

void UnitReplay::measure_held(std::size_t first, std::size_t last) {
  if (measures_layer())
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) add_exact_projection(kv, *heads_[kv].exact);
  if (settings_.device != nullptr) {
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
      measure_on_device(first, last, kv, *heads_[kv].exact);
      release(kv);
    }
    return;
  }
  if (reads_deltas()) {  // what is read off them joins the heads of a variant, so a variant is one task
    for_variants(first, last, [&](std::size_t v) {
      for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) measure_variant(v, kv, *heads_[kv].exact);
    });
    return;
  }
  // Head after head: what all variants read of one stays in the cache that the threads share.
  const std::size_t variants = last - first;
  const std::vector<std::exception_ptr> errors =
      run_on_all_threads(variants * g_.kv_heads, [&](std::size_t i) {
        const std::size_t v = first + i % variants;
        const std::size_t kv = i / variants;
        if (!states_[v].failed) measure_variant(v, kv, *heads_[kv].exact);
      });
  for (std::size_t i = 0; i < errors.size(); ++i)
    if (errors[i]) fail(first + i % variants, errors[i]);
}

void UnitReplay::measure_streamed(std::size_t first, std::size_t last) {
  for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
    load(kv);
    if (transforms(first, last)) make_features(kv);
    for (const StepRange& range : chunks()) {
      const ExactSteps exact(heads_[kv].block, layer_, range, true, settings_.device);
      if (measures_layer() && first == 0) add_exact_projection(kv, exact);
      if (settings_.device != nullptr) {
        measure_on_device(first, last, kv, exact);
      } else {
        for_variants(first, last, [&](std::size_t v) { measure_variant(v, kv, exact); });
      }
    }
    release(kv);
  }
}

}  // namespace kvsim
