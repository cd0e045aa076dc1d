// What a decode-time policy sees of one cache: attention of the event's queries, recomputed over what is held.
#pragma once

#include <vector>

#include "policies/stepwise/stepwise_policy.h"
#include "sim/exact_steps.h"
#include "sim/stepwise/held_cache.h"

namespace kvsim {

/// Exact attention of an event's queries, shared by all variants. Column and query row of (query head h of the group, row r)
/// are offset + h * head_stride + r.
struct EventRows {
  MatrixView<const float> weights;  // [tokens, columns], token-major; empty where nobody reads attention
  MatrixView<const float> queries;  // [rows, d]
  std::size_t offset = 0, head_stride = 0, rows = 0;
  TokenIndex first_position = 0;    // of row 0; rows stand one after the other
};

/// A cache and the query heads that read it.
struct CacheReaders {
  std::uint32_t kv_head = 0;
  std::size_t first_head = 0, heads = 1;  // inside the group
};

class EventView final : public CacheView {
 public:
  EventView(const LayerContext& layer, const HeadBlock& block, HeldCache& cache, CacheReaders readers, StepNeed needs,
            std::uint32_t capacity)
      : layer_(&layer), block_(&block), cache_(&cache), readers_(readers), needs_(needs), capacity_(capacity),
        attention_(readers.heads), sums_(readers.heads) {}

  /// A new event; spans of the last one end. `prompt_sums` [group][T] may be empty.
  void begin(StepPhase phase, std::size_t step, const EventRows& rows, std::span<const std::span<const float>> prompt_sums = {});

  StepPhase phase() const override { return phase_; }
  std::size_t step() const override { return step_; }
  std::uint32_t capacity() const override { return capacity_; }
  std::uint32_t kv_head() const override { return readers_.kv_head; }
  std::uint32_t query_head() const override {
    return static_cast<std::uint32_t>(readers_.kv_head * layer_->geometry.group + readers_.first_head);
  }
  std::size_t query_heads() const override { return readers_.heads; }
  std::span<const TokenIndex> positions() const override { return cache_->positions(); }
  bool visible(std::size_t slot) const override { return cache_->visible(slot); }
  std::size_t rows() const override { return rows_.rows; }
  TokenIndex row_position(std::size_t row) const override { return rows_.first_position + static_cast<TokenIndex>(row); }
  MatrixView<const float> attention(std::size_t h) const override;
  std::span<const float> attention_sum(std::size_t h) const override;
  std::span<const float> query(std::size_t h, std::size_t row) const override;
  std::span<const float> logits(std::size_t h, std::size_t row) const override;
  std::span<const float> key(std::size_t slot) const override;
  std::span<const float> value(std::size_t slot) const override;

 private:
  void compute_attention(std::size_t h) const;
  void compute_logits(std::size_t h, std::size_t row, std::span<float> out) const;

  const LayerContext* layer_;
  const HeadBlock* block_;
  HeldCache* cache_;
  CacheReaders readers_;
  StepNeed needs_;
  std::uint32_t capacity_;
  StepPhase phase_ = StepPhase::prompt_end;
  std::size_t step_ = 0;
  EventRows rows_;
  std::span<const std::span<const float>> prompt_sums_;
  mutable std::vector<std::vector<float>> attention_, sums_;  // [heads]; empty until asked for
  mutable std::vector<std::vector<float>> logits_;            // [heads * rows]
};

}  // namespace kvsim
