// Reads the prompt into the caches of all cells.
#include "sim/stepwise/prefill.h"

#include <algorithm>
#include <map>
#include <memory>

#include "kernels/error.h"
#include "sim/tasks.h"

namespace kvsim {
namespace {

/// Prompt queries whose exact attention is held at once in a dense prefill.
constexpr std::size_t kPromptTile = 64;

bool reads_rows(const StepwisePolicy& policy) {
  return has(policy.needs(), StepNeed::attention) || has(policy.needs(), StepNeed::queries);
}

/// Exact attention of the prompt queries [first, first + count) of all KV heads.
class PromptTileRows {
 public:
  PromptTileRows(const CellLayer& layer, std::size_t first, std::size_t count, bool compute) : first_(first), count_(count) {
    const LayerGeometry& g = layer.layer.geometry;
    heads_.resize(g.kv_heads);
    if (!compute) return;
    for (std::size_t kv = 0; kv < g.kv_heads; ++kv) {
      const HeadBlock& block = layer.blocks[kv];
      const std::size_t recorded = block.query.rows() / g.group, rows = g.group * count;
      KVSIM_CHECK(recorded >= g.decode + g.prompt - first, "{} queries are too few for the prompt from {}", recorded, first);
      Head& head = heads_[kv];
      head.queries = Matrix<float>(rows, g.key_dim);
      std::vector<TokenIndex> position(rows);
      for (std::size_t h = 0; h < g.group; ++h)
        for (std::size_t r = 0; r < count; ++r) {
          const float* from = block.query.row(h * recorded + recorded - g.decode - g.prompt + first + r);
          std::copy_n(from, g.key_dim, head.queries.row(h * count + r));
          position[h * count + r] = static_cast<TokenIndex>(first + r);
        }
      head.weights = Matrix<float>(g.prompt, rows, kRowPad);
      const auto tiles = static_cast<std::int64_t>((rows + kRowTile - 1) / kRowTile);
#pragma omp parallel for schedule(dynamic)
      for (std::int64_t i = 0; i < tiles; ++i) {
        const std::size_t begin = static_cast<std::size_t>(i) * kRowTile;
        attention_weights(block.key.view().rows_from(0, g.prompt), head.queries.view(), position, layer.layer.rule, begin,
                          std::min(rows, begin + kRowTile), head.weights.view());
      }
    }
  }

  /// The queries from position `from` on, for every KV head.
  std::vector<EventRows> rows(std::size_t from) const {
    std::vector<EventRows> out;
    const std::size_t skipped = std::max(from, first_) - first_;
    for (const Head& head : heads_)
      out.push_back({head.weights.view(), head.queries.view(), skipped, count_, count_ - skipped, static_cast<TokenIndex>(first_ + skipped)});
    return out;
  }

 private:
  struct Head {
    Matrix<float> queries, weights;
  };
  std::size_t first_, count_;
  std::vector<Head> heads_;
};

class Prefill {
 public:
  Prefill(const CellLayer& layer, std::span<const BudgetPoint> budgets, std::vector<StepwiseVariant>& variants)
      : layer_(layer), prompt_(layer.layer.geometry.prompt), budgets_(budgets), variants_(variants), protos_(variants.size()) {}

  void run() {
    std::map<std::uint32_t, std::vector<std::size_t>> by_block;
    for (std::size_t v = 0; v < variants_.size(); ++v) by_block[variants_[v].policy->schedule().block].push_back(v);
    for (const auto& [block, list] : by_block) {
      if (block == 0) {
        read_at_once(list);
      } else {
        read_in_blocks(list, block);
      }
    }
  }

 private:
  template <typename Task>
  void for_variants(std::span<const std::size_t> list, const Task& task) {
    const auto errors = run_on_all_threads(list.size(), [&](std::size_t i) {
      if (!variants_[list[i]].failed) task(list[i]);
    });
    for (std::size_t i = 0; i < list.size(); ++i) note(errors[i], variants_[list[i]]);
  }
  template <typename Task>
  void for_cells(std::span<const std::size_t> list, const Task& task) {
    const auto errors = run_on_all_threads(list.size() * budgets_.size(), [&](std::size_t i) {
      StepwiseVariant& variant = variants_[list[i / budgets_.size()]];
      if (!variant.failed) task(variant.cells[i % budgets_.size()]);
    });
    for (std::size_t i = 0; i < errors.size(); ++i) note(errors[i], variants_[list[i / budgets_.size()]]);
  }
  static void note(const std::exception_ptr& error, StepwiseVariant& variant) {
    if (!error) return;
    try {
      std::rethrow_exception(error);
    } catch (const UserError& fault) {
      variant.failed = true;
      variant.failure = fault.what();
      variant.cells.clear();
    }
  }

  static void end_prompt(Cell& cell, const StepwisePolicy& policy, std::span<const EventRows> none) {
    cell.begin_event(StepPhase::prompt_end, 0, none);
    if (policy.schedule().prompt_end) cell.evict(-1);
    cell.close_views();
  }
  void read_at_once(std::span<const std::size_t> list);
  void read_in_blocks(std::span<const std::size_t> list, std::size_t block);
  std::size_t first_row(const StepwisePolicy& policy) const {
    return prompt_ - std::min<std::size_t>(policy.prompt_rows(), prompt_);
  }

  const CellLayer& layer_;
  std::size_t prompt_;
  std::span<const BudgetPoint> budgets_;
  std::vector<StepwiseVariant>& variants_;
  std::vector<std::optional<Cell>> protos_;  // of dense prefills: what all capacities begin with
};

void Prefill::read_at_once(std::span<const std::size_t> list) {
  const LayerGeometry& g = layer_.layer.geometry;
  std::size_t first = prompt_;
  bool sums = false;
  for (const std::size_t v : list) {
    first = std::min(first, first_row(*variants_[v].policy));
    sums |= has(variants_[v].policy->needs(), StepNeed::prompt_sum);
  }
  for_variants(list, [&](std::size_t v) {
    protos_[v].emplace(layer_, *variants_[v].policy, 0);
    protos_[v]->enter_prompt(0, static_cast<TokenIndex>(prompt_));
  });
  for (std::size_t at = first; at < prompt_; at += kPromptTile) {
    const PromptTileRows tile(layer_, at, std::min(kPromptTile, prompt_ - at), true);
    for_variants(list, [&](std::size_t v) {
      const std::size_t from = first_row(*variants_[v].policy);
      if (from >= at + kPromptTile || from >= prompt_) return;
      protos_[v]->begin_event(StepPhase::prompt_rows, 0, tile.rows(from));
      protos_[v]->observe();
    });
  }
  std::vector<std::unique_ptr<BlockFeatures>> features;
  std::vector<std::vector<std::span<const float>>> prompt_sums;
  for (std::size_t kv = 0; sums && kv < g.kv_heads; ++kv) {
    features.push_back(std::make_unique<BlockFeatures>(layer_.blocks[kv], layer_.layer, std::vector<std::vector<float>>(), 0));
    prompt_sums.emplace_back();
    for (std::size_t h = 0; h < g.group; ++h) prompt_sums.back().push_back(features.back()->attention_sum(h));
  }
  const std::vector<EventRows> none(g.kv_heads);
  for_variants(list, [&](std::size_t v) {
    Cell& proto = *protos_[v];
    proto.leave_window(static_cast<TokenIndex>(prompt_ - 1), -1);
    for (HeldCache& cache : proto.caches()) cache.note_peak();
    const bool sees_sums = has(variants_[v].policy->needs(), StepNeed::prompt_sum);
    // The views keep this span until the event ends.
    const std::span<const std::vector<std::span<const float>>> seen_sums(prompt_sums.data(), sees_sums ? prompt_sums.size() : 0);
    proto.begin_event(StepPhase::prompt_end, 0, none, seen_sums);
    proto.observe();
    for (const BudgetPoint& budget : budgets_) {
      variants_[v].cells.push_back(proto.copy(budget.tokens));
      end_prompt(variants_[v].cells.back(), *variants_[v].policy, none);
    }
    protos_[v].reset();
  });
}

void Prefill::read_in_blocks(std::span<const std::size_t> list, std::size_t block) {
  const LayerGeometry& g = layer_.layer.geometry;
  bool reads = false;
  for (const std::size_t v : list) reads |= reads_rows(*variants_[v].policy);
  for_variants(list, [&](std::size_t v) {
    for (const BudgetPoint& budget : budgets_) variants_[v].cells.emplace_back(layer_, *variants_[v].policy, budget.tokens);
  });
  for (std::size_t at = 0; at < prompt_; at += block) {
    const std::size_t end = std::min(at + block, prompt_);
    const PromptTileRows tile(layer_, at, end - at, reads);
    const std::vector<EventRows> rows = tile.rows(at);
    for_cells(list, [&](Cell& cell) {
      cell.leave_window(static_cast<TokenIndex>(at), -1);
      cell.enter_prompt(static_cast<TokenIndex>(at), static_cast<TokenIndex>(end));
      for (HeldCache& cache : cell.caches()) cache.note_peak();
      cell.begin_event(StepPhase::block, 0, rows);
      cell.observe();
      cell.evict(-1);
      cell.close_views();
    });
  }
  const std::vector<EventRows> none(g.kv_heads);
  for (const std::size_t v : list)
    for_cells({&v, 1}, [&](Cell& cell) {
      cell.begin_event(StepPhase::prompt_end, 0, none);
      cell.observe();
      end_prompt(cell, *variants_[v].policy, none);
    });
}

}  // namespace

void run_prefill(const CellLayer& layer, std::span<const BudgetPoint> budgets, std::vector<StepwiseVariant>& variants) {
  Prefill(layer, budgets, variants).run();
}

}  // namespace kvsim
