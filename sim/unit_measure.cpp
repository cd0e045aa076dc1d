// Measures the variants of a unit on its heads, held or streamed.
#include <algorithm>
#include <array>

#include "sim/unit_replay.h"

namespace kvsim {

void UnitReplay::measure_variant(std::size_t v, std::size_t kv, const ExactSteps& exact) {
  VariantState& state = states_[v];
  const HeadView view{heads_[kv].block, layer_, exact};
  const Policy& policy = *settings_.variants[v]->policy;
  std::optional<EntryTransform> transform;
  if (policy.traits().transforms) transform.emplace(EntryTransform{policy, *heads_[kv].features});
  for (const LayerSelection& part : state.selection.parts) {
    HeadDelta delta;
    measure_steps(view, part, policy.traits().step_order, state.measures[kv], reads_deltas() ? &delta : nullptr,
                  transform ? &*transform : nullptr);
    if (responds()) {
      for (std::size_t b = 0; b < part.budgets.size(); ++b)
        state.response.add(part.budgets[b], delta.of(b, g_.value_dim), view.block.sensitivity.view(), g_.group, exact.steps());
    }
    if (measures_layer())
      state.projected.add(delta, part.budgets, heads_[kv].block.output_proj.view(), g_.group, g_.value_dim, exact.steps());
    if (measures_relative()) state.sketched.add(delta, part.budgets, heads_[kv].sketch.view(), g_.group, g_.value_dim, exact.steps());
  }
}

void UnitReplay::add_exact_projection(std::size_t kv, const ExactSteps& exact) {
  if (exact_projection_.empty()) exact_projection_ = Matrix<float>(hidden(), g_.decode, kRowPad);
  const MatrixView<const float> output = exact.curve_input(heads_[kv].block).exact;
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
  if (reads_deltas()) {  // what is read off them joins the heads of a variant, so a variant is one task
    for_variants(first, last, [&](std::size_t v) {
      for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) measure_variant(v, kv, *heads_[kv].exact);
    });
    return;
  }
  const std::vector<std::exception_ptr> errors = run_on_all_threads((last - first) * g_.kv_heads, [&](std::size_t i) {
    const std::size_t v = first + i / g_.kv_heads;
    const std::size_t kv = i % g_.kv_heads;
    if (!states_[v].failed) measure_variant(v, kv, *heads_[kv].exact);
  });
  for (std::size_t i = 0; i < errors.size(); ++i)
    if (errors[i]) fail(first + i / g_.kv_heads, errors[i]);
}

void UnitReplay::measure_streamed(std::size_t first, std::size_t last) {
  for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
    load(kv);
    if (transforms(first, last)) make_features(kv);
    for (const StepRange& range : chunks()) {
      const ExactSteps exact(heads_[kv].block, layer_, range, true);
      if (measures_layer() && first == 0) add_exact_projection(kv, exact);
      for_variants(first, last, [&](std::size_t v) { measure_variant(v, kv, exact); });
    }
    release(kv);
  }
}

}  // namespace kvsim
