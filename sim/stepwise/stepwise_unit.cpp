// Replays the decode-time policies of one unit.
#include "sim/stepwise/stepwise_unit.h"

#include <algorithm>
#include <chrono>

#include "kernels/error.h"
#include "sim/predicted_kl.h"
#include "sim/projection.h"
#include "sim/sampled_response.h"
#include "sim/stepwise/prefill.h"
#include "sim/stepwise/stepwise_rows.h"
#include "sim/tasks.h"

namespace kvsim {
namespace {

using Clock = std::chrono::steady_clock;

/// Exact attention of all heads over a range of steps, as events hand it out.
struct Chunk {
  StepRange steps;
  std::vector<std::unique_ptr<ExactHead>> heads;

  Chunk(const CellLayer& layer, StepRange range) : steps(range) {
    for (const HeadBlock& block : layer.blocks) heads.push_back(std::make_unique<ExactHead>(block, layer.layer, range));
  }
  std::vector<EventRows> rows(std::size_t prompt, std::size_t step) const {
    std::vector<EventRows> out;
    for (const auto& head : heads)
      out.push_back({head->steps().weights(), head->steps().queries(), step - steps.first, steps.count, 1, static_cast<TokenIndex>(prompt + step)});
    return out;
  }
};

class StepwiseReplay {
 public:
  StepwiseReplay(const LayerContext& layer, const UnitSettings& settings, const StepwiseInputs& inputs, BlockSource& source)
      : layer_(layer), g_(layer.geometry), settings_(settings), inputs_(inputs), source_(source), variants_(settings.variants.size()),
        measures_(settings.variants.size()) {}

  UnitResult run();

 private:
  void load();
  void run_chunk(const Chunk& chunk);
  /// Cells that share one pass: all capacities of a variant with nested sets, otherwise one.
  void run_cells(std::span<Cell> cells, std::size_t variant, std::size_t first_budget, const Chunk& chunk);
  void measure(std::span<Cell> cells, const StepwisePolicy& policy, StepRange tile, const Chunk& chunk);
  /// Squared norms [steps] of vectors [kv heads] of [value_dim, group * steps] after projections [kv heads] of [group * value_dim, any].
  std::vector<double> projected_squares(std::span<const MatrixView<const float>> vectors, std::span<const MatrixView<const float>> projections,
                                        std::size_t steps) const;
  std::vector<MatrixView<const float>> output_projections() const;
  void project(Cell& cell, const Chunk& chunk) const;
  void project_exact(const Chunk& chunk);
  void respond(Cell& cell, const Chunk& chunk) const;
  bool measures_layer() const { return hidden_ > 0 && !metrics_of_level(settings_.metrics, MetricInfo::Level::layer).empty(); }
  bool measures_relative() const { return needs_norms(settings_.metrics) && hidden_ > 0 && !layer_.residual_norm.empty(); }
  bool responds() const { return needs_responses(settings_.metrics) && !blocks_[0].sensitivity.empty(); }

  const LayerContext& layer_;
  const LayerGeometry& g_;
  const UnitSettings& settings_;
  const StepwiseInputs& inputs_;
  BlockSource& source_;
  std::vector<HeadBlock> blocks_;
  std::vector<Matrix<float>> sketches_;  // [kv heads] of the output projections, see sketch_of
  std::size_t hidden_ = 0;
  std::vector<StepwiseVariant> variants_;
  std::vector<std::vector<HeadMeasure>> measures_;  // [variants][kv heads]
  std::vector<double> exact_squares_;               // [steps], of the projected exact outputs
};

void StepwiseReplay::load() {
  for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
    blocks_.push_back(source_.next());
    KVSIM_CHECK(blocks_.back().kv_head == kv, "head {} came as {}", kv, blocks_.back().kv_head);
    if (!blocks_.back().output_proj.empty()) hidden_ = blocks_.back().output_proj.cols();
    if (measures_relative()) sketches_.push_back(sketch_of(blocks_.back().output_proj.view()));
  }
}

void StepwiseReplay::measure(std::span<Cell> cells, const StepwisePolicy& policy, StepRange tile, const Chunk& chunk) {
  std::vector<const HeldCache*> nested(cells.size());
  std::vector<CellRows*> out(cells.size());
  for (std::size_t i = 0; i < cells[0].caches().size(); ++i) {
    const CacheReaders& readers = cells[0].readers(i);
    for (std::size_t c = 0; c < cells.size(); ++c) {
      nested[c] = &cells[c].caches()[i];
      out[c] = &cells[c].rows[readers.kv_head];
    }
    measure_tile({layer_, blocks_[readers.kv_head], *chunk.heads[readers.kv_head], readers, tile, policy.shifts_positions()}, nested, out);
  }
  for (Cell& cell : cells) cell.count_tile(tile.count);
}

std::vector<double> StepwiseReplay::projected_squares(std::span<const MatrixView<const float>> vectors,
                                                      std::span<const MatrixView<const float>> projections, std::size_t steps) const {
  const std::size_t size = projections[0].cols;
  Matrix<float> sum(size, steps, kRowPad), of_head(g_.value_dim, steps, kRowPad);
  for (std::size_t kv = 0; kv < g_.kv_heads; ++kv)
    for (std::size_t h = 0; h < g_.group; ++h) {
      for (std::size_t c = 0; c < g_.value_dim; ++c) std::copy_n(vectors[kv].row(c) + h * steps, steps, of_head.row(c));
      accumulate_product(of_head.view(), projections[kv].rows_from(h * g_.value_dim, g_.value_dim), sum.view());
    }
  std::vector<double> squares(steps, 0.0);
  for (std::size_t m = 0; m < size; ++m)
    for (std::size_t t = 0; t < steps; ++t) squares[t] += static_cast<double>(sum(m, t)) * static_cast<double>(sum(m, t));
  return squares;
}

std::vector<MatrixView<const float>> StepwiseReplay::output_projections() const {
  std::vector<MatrixView<const float>> views;
  for (const HeadBlock& block : blocks_) views.push_back(block.output_proj.view());
  return views;
}

void StepwiseReplay::project(Cell& cell, const Chunk& chunk) const {
  std::vector<MatrixView<const float>> vectors;
  for (const CellRows& rows : cell.rows) vectors.push_back(rows.delta.view());
  const auto append = [&](std::span<const MatrixView<const float>> projections, std::vector<double>& to) {
    const std::vector<double> squares = projected_squares(vectors, projections, chunk.steps.count);
    to.insert(to.end(), squares.begin(), squares.end());
  };
  if (measures_layer()) append(output_projections(), cell.projected_squares);
  if (!measures_relative()) return;
  std::vector<MatrixView<const float>> sketches;
  for (const Matrix<float>& sketch : sketches_) sketches.push_back(sketch.view());
  append(sketches, cell.sketched_squares);
}

void StepwiseReplay::respond(Cell& cell, const Chunk& chunk) const {
  const std::size_t samples = blocks_[0].sensitivity.rows() / g_.value_dim;
  cell.response.resize(samples * g_.decode, 0.0);
  for (std::size_t kv = 0; kv < g_.kv_heads; ++kv)
    add_sampled_response(blocks_[kv].sensitivity.view(), cell.rows[kv].delta.view(), g_.group, g_.decode, chunk.steps, g_.decode,
                         std::span(cell.response).subspan(chunk.steps.first));
}

void StepwiseReplay::project_exact(const Chunk& chunk) {
  std::vector<MatrixView<const float>> vectors;
  for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) vectors.push_back(chunk.heads[kv]->outputs(blocks_[kv]));
  const std::vector<double> squares = projected_squares(vectors, output_projections(), chunk.steps.count);
  exact_squares_.insert(exact_squares_.end(), squares.begin(), squares.end());
}

void StepwiseReplay::run_cells(std::span<Cell> cells, std::size_t variant, std::size_t first_budget, const Chunk& chunk) {
  for (Cell& cell : cells)
    for (CellRows& rows : cell.rows) rows.reset(g_.group * chunk.steps.count, g_.value_dim, measures_layer() || measures_relative() || responds());
  const std::size_t end = chunk.steps.first + chunk.steps.count;
  for (std::size_t at = chunk.steps.first; at < end; at += kStepBlock) {
    const StepRange tile{at, std::min(kStepBlock, end - at)};
    for (Cell& cell : cells)
      for (HeldCache& cache : cell.caches()) cache.begin_tile(at);
    for (std::size_t step = at; step < at + tile.count; ++step) {
      const std::vector<EventRows> rows = chunk.rows(g_.prompt, step);
      for (Cell& cell : cells) cell.run_step(step, rows);
    }
    measure(cells, *variants_[variant].policy, tile, chunk);
  }
  for (std::size_t c = 0; c < cells.size(); ++c) {
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv)
      add_rows(cells[c].rows[kv], chunk.steps, g_.group, first_budget + c, measures_[variant][kv]);
    if (measures_layer() || measures_relative()) project(cells[c], chunk);
    if (responds()) respond(cells[c], chunk);
    cells[c].close_views();
    for (CellRows& rows : cells[c].rows) rows = CellRows();
  }
}

void StepwiseReplay::run_chunk(const Chunk& chunk) {
  if (measures_layer()) project_exact(chunk);
  struct Task {
    std::size_t variant, first, count;
  };
  std::vector<Task> tasks;
  const std::size_t budgets = settings_.budgets.size();
  for (std::size_t v = 0; v < variants_.size(); ++v) {
    if (variants_[v].failed) continue;
    const std::size_t at_once = variants_[v].policy->traits().stack ? budgets : 1;
    for (std::size_t b = 0; b < budgets; b += at_once) tasks.push_back({v, b, at_once});
  }
  const auto errors = run_on_all_threads(tasks.size(), [&](std::size_t i) {
    const Task& task = tasks[i];
    run_cells(std::span(variants_[task.variant].cells).subspan(task.first, task.count), task.variant, task.first, chunk);
  });
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (!errors[i]) continue;
    try {
      std::rethrow_exception(errors[i]);
    } catch (const UserError& error) {
      variants_[tasks[i].variant].failed = true;
      variants_[tasks[i].variant].failure = error.what();
    }
  }
}

UnitResult StepwiseReplay::run() {
  const auto seconds = [](Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); };
  const Clock::time_point start = Clock::now();
  load();
  const CellLayer layer{layer_, blocks_, inputs_};
  for (std::size_t v = 0; v < variants_.size(); ++v) {
    variants_[v].policy = settings_.variants[v]->stepwise.get();
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv)
      measures_[v].emplace_back(settings_.budgets.size(), g_.group, g_.decode, settings_.detail);
  }
  run_prefill(layer, settings_.budgets, variants_);
  const double prefill = seconds(start);
  const std::size_t step_chunk = settings_.memory.step_chunk == 0 ? g_.decode : settings_.memory.step_chunk;
  double exact = 0;
  for (std::size_t first = 0; first < g_.decode; first += step_chunk) {
    const Clock::time_point begin = Clock::now();
    const Chunk chunk(layer, {first, std::min(step_chunk, g_.decode - first)});
    exact += seconds(begin);
    run_chunk(chunk);
  }
  UnitResult result;
  result.layer = g_.layer;
  for (std::size_t v = 0; v < variants_.size(); ++v) {
    if (variants_[v].failed) {
      if (settings_.fail_fast) throw UserError("{}: {}", settings_.variants[v]->entry.spec, variants_[v].failure);
      result.failures.push_back({static_cast<std::uint32_t>(v), variants_[v].failure});
      continue;
    }
    emit_variant({layer_, settings_, exact_squares_, measures_relative()}, v, variants_[v], measures_[v], result);
  }
  std::stable_sort(result.rows.begin(), result.rows.end(), [](const ResultRow& a, const ResultRow& b) { return a.kv_head < b.kv_head; });
  result.perf = {{"prefill_s", prefill}, {"exact_s", exact}, {"stepwise_s", seconds(start) - prefill - exact}};
  return result;
}

}  // namespace

UnitResult replay_stepwise_unit(const LayerContext& layer, const UnitSettings& settings, const StepwiseInputs& inputs, BlockSource& source) {
  return StepwiseReplay(layer, settings, inputs, source).run();
}

}  // namespace kvsim
