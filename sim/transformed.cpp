// Exact attention of the recorded decode queries over entries that a policy changed.
#include "sim/transformed.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/error.h"

namespace kvsim {
namespace {

using Lanes = std::vector<double>;

/// A tile of rows of one head: queries channel by channel, and what is added up for every row.
class Tile {
 public:
  Tile(const HeadView& head, std::size_t first, std::size_t rows)
      : head_(head), first_(first), rows_(rows), queries_(head.exact.queries().cols * rows) {
    const MatrixView<const float> queries = head.exact.queries();
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < queries.cols; ++c) queries_[c * rows + r] = static_cast<double>(queries.row(first + r)[c]);
  }

  /// Logits of one key for all rows; -infinity where the row does not see position `at`.
  void logits(const float* key, TokenIndex at, double* out) const {
    const LogitRule& rule = head_.layer.rule;
    std::fill_n(out, rows_, 0.0);
    for (std::size_t c = 0; c * rows_ < queries_.size(); ++c) {
      const auto k = static_cast<double>(key[c]);
      const double* const q = queries_.data() + c * rows_;
      for (std::size_t r = 0; r < rows_; ++r) out[r] += k * q[r];
    }
    for (std::size_t r = 0; r < rows_; ++r) {
      const std::size_t row = first_ + r;
      out[r] *= rule.scale;
      if (rule.softcap > 0) out[r] = rule.softcap * std::tanh(out[r] / rule.softcap);
      if (at < head_.exact.first_visible(row) || at > head_.exact.position()[row]) out[r] = -std::numeric_limits<double>::infinity();
    }
  }
  std::size_t rows() const { return rows_; }

 private:
  const HeadView& head_;
  std::size_t first_, rows_;
  Lanes queries_;
};

/// Softmax of every row over the tokens, in place: logits[token * rows + row].
void softmax(Lanes& logits, std::size_t rows) {
  Lanes most(rows, -std::numeric_limits<double>::infinity()), sum(rows, 0.0);
  const std::size_t tokens = logits.size() / rows;
  for (std::size_t j = 0; j < tokens; ++j)
    for (std::size_t r = 0; r < rows; ++r) most[r] = std::max(most[r], logits[j * rows + r]);
  for (std::size_t j = 0; j < tokens; ++j)
    for (std::size_t r = 0; r < rows; ++r) sum[r] += logits[j * rows + r] = std::exp(logits[j * rows + r] - most[r]);
  for (std::size_t j = 0; j < tokens; ++j)
    for (std::size_t r = 0; r < rows; ++r) logits[j * rows + r] /= sum[r];
}

}  // namespace

void measure_transformed(const HeadView& head, const Transformed& entries, std::span<const TokenIndex> kept, std::size_t first,
                         std::size_t end, std::span<float> error, std::span<float> logit_error, float* delta, std::size_t stride) {
  const LayerGeometry& g = head.layer.geometry;
  KVSIM_CHECK(entries.keys.rows() == kept.size() && entries.values.rows() == kept.size(), "{} keys and {} values of {} kept tokens",
              entries.keys.rows(), entries.values.rows(), kept.size());
  const MatrixView<const float> truth = head.exact.outputs();
  const std::size_t decoded = head.exact.steps().first + head.exact.steps().count;
  for (std::size_t begin = first; begin < end; begin += kTransformedTile) {
    const Tile tile(head, begin, std::min(kTransformedTile, end - begin));
    const std::size_t rows = tile.rows();
    Lanes weights((kept.size() + decoded) * rows), recorded(rows), lost(rows, 0.0), whole(rows, 0.0);
    for (std::size_t j = 0; j < kept.size() + decoded; ++j) {
      double* const own = weights.data() + j * rows;
      const bool changed = j < kept.size();
      const TokenIndex at = changed ? kept[j] : static_cast<TokenIndex>(g.prompt + j - kept.size());
      tile.logits(changed ? entries.keys.row(j) : head.block.key.row(at), at, own);
      if (!changed) continue;
      tile.logits(head.block.key.row(at), at, recorded.data());
      for (std::size_t r = 0; r < rows; ++r) {
        if (std::isinf(recorded[r])) continue;
        lost[r] += (own[r] - recorded[r]) * (own[r] - recorded[r]);
        whole[r] += recorded[r] * recorded[r];
      }
    }
    softmax(weights, rows);
    Lanes squares(rows, 0.0), norm(rows, 0.0), output(rows);
    for (std::size_t c = 0; c < g.value_dim; ++c) {
      std::fill(output.begin(), output.end(), 0.0);
      for (std::size_t j = 0; j < kept.size() + decoded; ++j) {
        const auto value = static_cast<double>(j < kept.size() ? entries.values(j, c) : head.block.value(g.prompt + j - kept.size(), c));
        const double* const weight = weights.data() + j * rows;
        for (std::size_t r = 0; r < rows; ++r) output[r] += weight[r] * value;
      }
      for (std::size_t r = 0; r < rows; ++r) {
        const auto o = static_cast<double>(truth(c, begin + r));
        const double difference = output[r] - o;
        squares[r] += difference * difference;
        norm[r] += o * o;
        if (delta != nullptr) delta[c * stride + begin + r] = static_cast<float>(difference);
      }
    }
    for (std::size_t r = 0; r < rows; ++r) {
      error[begin - first + r] = static_cast<float>(norm[r] > 0 ? std::sqrt(squares[r] / norm[r]) : std::sqrt(squares[r]));
      logit_error[begin - first + r] = static_cast<float>(lost[r] > 0 ? std::sqrt(lost[r] / whole[r]) : 0.0);
    }
  }
}

}  // namespace kvsim
