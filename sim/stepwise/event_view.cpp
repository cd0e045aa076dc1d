// What a decode-time policy sees of one cache.
#include "sim/stepwise/event_view.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/exponential.h"
#include "kernels/error.h"

namespace kvsim {
namespace {

/// In double, in four interleaved parts: one chain of additions would wait for itself.
double sum_of(std::span<const float> values) {
  double part[4] = {0, 0, 0, 0};
  std::size_t i = 0;
  for (; i + 4 <= values.size(); i += 4)
    for (std::size_t k = 0; k < 4; ++k) part[k] += static_cast<double>(values[i + k]);
  for (; i < values.size(); ++i) part[0] += static_cast<double>(values[i]);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

}  // namespace

void EventView::begin(StepPhase phase, std::size_t step, const EventRows& rows, std::span<const std::span<const float>> prompt_sums) {
  phase_ = phase;
  step_ = step;
  rows_ = rows;
  prompt_sums_ = prompt_sums;
  for (auto& a : attention_) a.clear();
  for (auto& a : sums_) a.clear();
  for (auto& a : logits_) a.clear();
}

void EventView::compute_logits(std::size_t h, std::size_t row, std::span<float> out) const {
  const LogitRule& rule = layer_->rule;
  const TokenIndex at = row_position(row);
  const float* q = rows_.queries.row(rows_.offset + (readers_.first_head + h) * rows_.head_stride + row);
  const std::span<const TokenIndex> positions = cache_->positions();
  for (std::size_t s = 0; s < positions.size(); ++s) {
    const TokenIndex p = positions[s];
    if (p > at || (rule.window != 0 && p + rule.window <= at) || !cache_->visible(s)) {
      out[s] = -std::numeric_limits<float>::infinity();
      continue;
    }
    const float* k = block_->key.row(p);
    double dot = 0;
    for (std::size_t c = 0; c < rows_.queries.cols; ++c) dot = std::fma(static_cast<double>(q[c]), static_cast<double>(k[c]), dot);
    dot *= rule.scale;
    if (rule.softcap > 0) dot = rule.softcap * tanh_plain(dot / rule.softcap);
    out[s] = static_cast<float>(dot);
  }
}

void EventView::compute_attention(std::size_t h) const {
  const std::span<const TokenIndex> positions = cache_->positions();
  const std::size_t slots = positions.size();
  std::vector<float>& out = attention_[h];
  out.resize(slots * rows_.rows);
  const bool all_visible = cache_->visible_count() == slots;
  for (std::size_t r = 0; r < rows_.rows; ++r) {
    // The softmax over a part is the exact softmax divided by the part's mass.
    const float* column = rows_.weights.data + rows_.offset + (readers_.first_head + h) * rows_.head_stride + r;
    const std::size_t stride = rows_.weights.stride;
    float* to = out.data() + r * slots;
    for (std::size_t s = 0; s < slots; ++s) to[s] = column[positions[s] * stride];
    if (!all_visible) {
      for (std::size_t s = 0; s < slots; ++s) to[s] = cache_->visible(s) ? to[s] : 0.0f;
    }
    double mass = sum_of({to, slots});
    if (mass >= static_cast<double>(kRecallFloor)) {
      const auto factor = static_cast<float>(1.0 / mass);
      for (std::size_t s = 0; s < slots; ++s) to[s] *= factor;
      continue;
    }
    // Too few bits are left in the shared softmax: with its own maximum.
    compute_logits(h, r, {to, slots});
    float largest = -std::numeric_limits<float>::infinity();
    for (std::size_t s = 0; s < slots; ++s) largest = std::max(largest, to[s]);
    mass = 0;
    for (std::size_t s = 0; s < slots; ++s) mass += exp_plain(static_cast<double>(to[s]) - static_cast<double>(largest));
    for (std::size_t s = 0; s < slots; ++s)
      to[s] = static_cast<float>(exp_plain(static_cast<double>(to[s]) - static_cast<double>(largest)) / mass);
  }
}

MatrixView<const float> EventView::attention(std::size_t h) const {
  KVSIM_CHECK(has(needs_, StepNeed::attention), "attention was read without being declared (head {})", h);
  if (attention_[h].empty() && rows_.rows > 0) {
    KVSIM_CHECK(!rows_.weights.empty(), "no attention at phase {}", static_cast<int>(phase_));
    compute_attention(h);
  }
  return {attention_[h].data(), rows_.rows, slots(), slots()};
}

std::span<const float> EventView::attention_sum(std::size_t h) const {
  std::vector<float>& sum = sums_[h];
  if (!sum.empty()) return sum;
  if (phase_ == StepPhase::prompt_end && !prompt_sums_.empty()) {
    KVSIM_CHECK(has(needs_, StepNeed::prompt_sum), "prompt sums were read without being declared (head {})", h);
    sum.resize(slots());
    for (std::size_t s = 0; s < sum.size(); ++s) sum[s] = prompt_sums_[readers_.first_head + h][positions()[s]];
    return sum;
  }
  if (phase_ == StepPhase::prompt_end || phase_ == StepPhase::prompt_rows) {
    sum.assign(slots(), 0.0f);
    return sum;
  }
  const MatrixView<const float> rows = attention(h);
  if (rows.rows == 1) return rows.row_span(0);
  std::vector<double> total(slots(), 0.0);
  for (std::size_t r = 0; r < rows.rows; ++r)
    for (std::size_t s = 0; s < total.size(); ++s) total[s] += static_cast<double>(rows(r, s));
  sum.resize(slots());
  for (std::size_t s = 0; s < sum.size(); ++s) sum[s] = static_cast<float>(total[s]);
  return sum;
}

std::span<const float> EventView::query(std::size_t h, std::size_t row) const {
  KVSIM_CHECK(has(needs_, StepNeed::queries), "queries were read without being declared (head {})", h);
  return rows_.queries.row_span(rows_.offset + (readers_.first_head + h) * rows_.head_stride + row);
}

std::span<const float> EventView::logits(std::size_t h, std::size_t row) const {
  KVSIM_CHECK(has(needs_, StepNeed::queries), "logits were read without being declared (head {})", h);
  logits_.resize(std::max(logits_.size(), readers_.heads * rows_.rows));
  std::vector<float>& out = logits_[h * rows_.rows + row];
  if (out.empty()) {
    out.resize(slots());
    compute_logits(h, row, out);
  }
  return out;
}

std::span<const float> EventView::key(std::size_t slot) const {
  KVSIM_CHECK(has(needs_, StepNeed::keys), "keys were read without being declared (slot {})", slot);
  return block_->key.view().row_span(positions()[slot]);
}

std::span<const float> EventView::value(std::size_t slot) const {
  KVSIM_CHECK(has(needs_, StepNeed::values), "values were read without being declared (slot {})", slot);
  return cache_->values(block_->value.view()).row_span(positions()[slot]);
}

}  // namespace kvsim
