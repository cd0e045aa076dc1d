// One variant at one capacity in one layer.
#include "sim/stepwise/cell.h"

#include <algorithm>
#include <bit>

#include "kernels/error.h"

namespace kvsim {
namespace {

/// Only what the policy declared.
StepInputs declared_inputs(const StepwiseInputs& all, StepNeed needs) {
  StepInputs in;
  if (has(needs, StepNeed::token_text)) {
    in.token_text = all.token_text;
    in.token_id = all.token_id;
  }
  if (has(needs, StepNeed::final_hidden)) in.final_hidden = all.final_hidden.view();
  if (has(needs, StepNeed::hidden)) in.hidden = all.hidden.view();
  if (has(needs, StepNeed::retention))
    for (const Matrix<float>& layer : all.retention) in.retention.push_back(layer.view());
  return in;
}

}  // namespace

Cell::Cell(const CellLayer& layer, const StepwisePolicy& policy, std::uint32_t capacity)
    : rows(layer.blocks.size()), evidence(layer.blocks.size(), 0), distinct(layer.blocks.size(), 0), layer_(layer),
      policy_(&policy), capacity_(capacity) {
  const LayerGeometry& g = layer.layer.geometry;
  const bool per_query = policy.unit() == Unit::query;
  for (std::uint32_t kv = 0; kv < g.kv_heads; ++kv)
    for (std::size_t h = 0; h < (per_query ? g.group : 1); ++h) readers_.push_back({kv, h, per_query ? 1 : g.group});
  for (std::size_t i = 0; i < readers_.size(); ++i) caches_.emplace_back(g.prompt + g.decode, policy.removal() == Removal::drop);
  watched_.assign(readers_.size(), 0);
  StepContext context{g, declared_inputs(layer.inputs, policy.needs()), {}, layer.layer.rule.softcap};
  context.rope.layout = static_cast<Rope::Layout>(layer.layer.rope_layout);
  context.rope.inverse_frequency = layer.layer.inverse_frequency;
  context.rope.attention_scaling = layer.layer.attention_scaling;
  if (policy.joint()) context.caches = caches_.size();
  for (std::size_t i = 0; i < (policy.joint() ? 1 : caches_.size()); ++i) {
    context.cache = i;
    context.cache_kv_head = readers_[i].kv_head;
    context.cache_query_head = static_cast<std::uint32_t>(readers_[i].kv_head * g.group + readers_[i].first_head);
    states_.push_back(policy.start(context));
  }
}

Cell Cell::copy(std::uint32_t capacity) const {
  Cell other(layer_, *policy_, capacity);
  other.watched_ = watched_;
  for (std::size_t i = 0; i < caches_.size(); ++i) other.caches_[i] = caches_[i].copy();
  for (std::size_t i = 0; i < states_.size(); ++i) other.states_[i] = states_[i]->clone();
  return other;
}

void Cell::open_views() {
  if (!views_.empty()) return;
  view_pointers_.clear();
  views_.reserve(caches_.size());
  for (std::size_t i = 0; i < caches_.size(); ++i)
    views_.emplace_back(layer_.layer, layer_.blocks[readers_[i].kv_head], caches_[i], readers_[i], policy_->needs(), capacity_);
  for (const EventView& view : views_) view_pointers_.push_back(&view);
}

void Cell::enter_prompt(TokenIndex first, TokenIndex last) {
  for (HeldCache& cache : caches_) cache.enter_prompt(first, last);
}

void Cell::leave_window(TokenIndex position, std::int64_t step) {
  const std::uint32_t window = layer_.layer.rule.window;
  if (window == 0 || position + 1 <= window) return;
  const TokenIndex first_visible = position + 1 - window;
  std::vector<std::uint32_t> slots;
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    const std::span<const TokenIndex> held = caches_[i].positions();
    slots.resize(static_cast<std::size_t>(std::lower_bound(held.begin(), held.end(), first_visible) - held.begin()));
    for (std::size_t s = 0; s < slots.size(); ++s) slots[s] = static_cast<std::uint32_t>(s);
    if (slots.empty()) continue;
    caches_[i].remove(slots, step, false);
    slots.resize(std::min(slots.size(), watched_[i]));  // what leaves before its first event was never heard of
    watched_[i] -= slots.size();
    if (slots.empty()) continue;
    if (policy_->joint()) {
      states_[0]->removed(i, slots);
    } else {
      states_[i]->removed(0, slots);
    }
  }
}

void Cell::begin_event(StepPhase phase, std::size_t step, std::span<const EventRows> rows_of_head,
                       std::span<const std::vector<std::span<const float>>> prompt_sums) {
  open_views();
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    const std::uint32_t kv = readers_[i].kv_head;
    views_[i].begin(phase, step, rows_of_head[kv], prompt_sums.empty() ? std::span<const std::span<const float>>() : prompt_sums[kv]);
  }
}

void Cell::observe() {
  for (std::size_t i = 0; i < caches_.size(); ++i) watched_[i] = caches_[i].positions().size();
  const std::span<const CacheView* const> all(view_pointers_);
  if (policy_->joint()) {
    states_[0]->observe(all);
  } else {
    for (std::size_t i = 0; i < states_.size(); ++i) states_[i]->observe(all.subspan(i, 1));
  }
}

bool Cell::is_due(std::size_t cache) const {
  if (!policy_->bounded()) return true;
  const std::size_t held = caches_[cache].positions().size();  // with masks: all that ever entered, since any may be shown again
  return held > capacity_ && held >= std::uint64_t{capacity_} + policy_->schedule().buffer;
}

void Cell::apply(std::size_t cache, StepState& state, std::size_t place, Eviction& out, std::int64_t step) {
  HeldCache& held = caches_[cache];
  held.clamped |= out.clamped;
  held.near_ties += out.near_ties;
  KVSIM_CHECK(std::is_sorted(out.slots.begin(), out.slots.end(), std::less_equal<>()) &&
                  (out.slots.empty() || out.slots.back() < held.positions().size()),
              "{} evicts slots that do not ascend or exist ({} of {})", policy_->traits().name, out.slots.size(), held.positions().size());
  for (const Eviction::Change& change : out.changes)
    held.change_value(change.slot, change.value, layer_.blocks[readers_[cache].kv_head].value.view(), step);
  if (held.drops()) {
    held.remove(out.slots, step, true);
    watched_[cache] -= out.slots.size();
    if (!out.slots.empty()) state.removed(place, out.slots);
  } else {
    held.hide(out.slots, step);
  }
  KVSIM_CHECK(!policy_->bounded() || held.visible_count() <= capacity_, "{} holds {} tokens after an eviction to {}",
              policy_->traits().name, held.visible_count(), capacity_);
}

void Cell::evict(std::int64_t step) {
  const std::span<const CacheView* const> all(view_pointers_);
  if (policy_->joint()) {
    bool due = false;
    for (std::size_t i = 0; i < caches_.size(); ++i) due |= is_due(i);
    if (!due) return;
    std::vector<Eviction> out(caches_.size());
    states_[0]->evict(all, out);
    for (std::size_t i = 0; i < caches_.size(); ++i) apply(i, *states_[0], i, out[i], step);
    return;
  }
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    if (!is_due(i)) continue;
    Eviction out;
    states_[i]->evict(all.subspan(i, 1), {&out, 1});
    apply(i, *states_[i], 0, out, step);
  }
}

void Cell::run_step(std::size_t step, std::span<const EventRows> rows_of_head) {
  const LayerGeometry& g = layer_.layer.geometry;
  const auto position = static_cast<TokenIndex>(g.prompt + step);
  leave_window(position, static_cast<std::int64_t>(step) - 1);
  for (HeldCache& cache : caches_) {
    cache.enter_step(position, step);
    cache.note_peak();
  }
  begin_event(StepPhase::step, step, rows_of_head);
  observe();
  if (policy_->due(g, step)) evict(static_cast<std::int64_t>(step));
}

void Cell::count_tile(std::size_t steps) {
  const auto valid = static_cast<StepLanes>((1u << steps) - 1);
  const auto bits = [valid](StepLanes lanes) { return static_cast<std::uint64_t>(std::popcount(static_cast<StepLanes>(lanes & valid))); };
  const std::size_t per_head = caches_per_head();
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    const std::size_t kv = readers_[i].kv_head;
    for (const auto& [begin, end] : layer_.layer.evidence)
      for (TokenIndex p = begin; p < end; ++p) evidence[kv] += bits(caches_[i].all_lanes(p));
    for (const TokenIndex p : caches_[i].touched()) {
      StepLanes earlier = 0;  // steps that read the token from another cache of the same KV head
      for (std::size_t j = kv * per_head; j < i; ++j) earlier = static_cast<StepLanes>(earlier | caches_[j].all_lanes(p));
      distinct[kv] += bits(static_cast<StepLanes>(caches_[i].all_lanes(p) & ~earlier));
    }
  }
}

}  // namespace kvsim
