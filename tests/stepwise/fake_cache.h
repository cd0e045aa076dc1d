// A cache whose attention rows are written down by hand, to test what a decode-time policy makes of them.
#pragma once

#include <cmath>
#include <vector>

#include "policies/stepwise/stepwise_registry.h"

namespace kvsim::test {

class FakeCache final : public CacheView {
 public:
  explicit FakeCache(std::size_t heads = 1) : heads_(heads), rows_(heads), sums_(heads) {}

  /// Tokens first .. last - 1 enter; `rows[h]` [new rows][slots after entering], the newest tokens' queries.
  void event(StepPhase phase, TokenIndex last, std::vector<std::vector<std::vector<float>>> rows, std::size_t step = 0) {
    phase_ = phase;
    step_ = step;
    for (TokenIndex p = held.empty() ? 0 : newest + 1; p < last; ++p) held.push_back(p);
    newest = last - 1;
    shown.resize(held.size(), true);
    for (std::size_t h = 0; h < heads_; ++h) {
      flat_.resize(heads_);
      flat_[h].clear();
      rows_[h] = rows[h].size();
      sums_[h].assign(held.size(), 0.0f);
      for (const auto& row : rows[h])
        for (std::size_t s = 0; s < held.size(); ++s) {
          flat_[h].push_back(s < row.size() ? row[s] : 0.0f);
          sums_[h][s] += flat_[h].back();
        }
    }
  }
  void remove(std::span<const std::uint32_t> slots) {
    for (std::size_t i = slots.size(); i-- > 0;) held.erase(held.begin() + slots[i]);
    shown.assign(held.size(), true);
  }

  StepPhase phase() const override { return phase_; }
  std::size_t step() const override { return step_; }
  std::uint32_t capacity() const override { return capacity_of_cache; }
  std::uint32_t kv_head() const override { return 0; }
  std::uint32_t query_head() const override { return 0; }
  std::size_t query_heads() const override { return heads_; }
  std::span<const TokenIndex> positions() const override { return held; }
  bool visible(std::size_t slot) const override { return shown[slot]; }
  std::size_t rows() const override { return rows_[0]; }
  TokenIndex row_position(std::size_t row) const override { return newest + 1 - static_cast<TokenIndex>(rows_[0] - row); }
  MatrixView<const float> attention(std::size_t h) const override { return {flat_[h].data(), rows_[h], held.size(), held.size()}; }
  std::span<const float> attention_sum(std::size_t h) const override { return sums_[h]; }
  std::span<const float> query(std::size_t, std::size_t) const override { return {}; }
  std::span<const float> logits(std::size_t, std::size_t) const override { return {}; }
  std::span<const float> key(std::size_t) const override { return {}; }
  std::span<const float> value(std::size_t slot) const override { return values[held[slot]]; }

  std::uint32_t capacity_of_cache = 0;
  std::vector<std::vector<float>> values;  // by position
  TokenIndex newest = 0;
  std::vector<bool> shown;
  std::vector<TokenIndex> held;

 private:
  std::size_t heads_;
  StepPhase phase_ = StepPhase::prompt_end;
  std::size_t step_ = 0;
  std::vector<std::size_t> rows_;
  std::vector<std::vector<float>> flat_, sums_;
};

}  // namespace kvsim::test
