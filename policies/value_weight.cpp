// What a score is multiplied by: the values behind the tokens.
#include "policies/value_weight.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "policies/products.h"
#include "policies/recipe.h"
#include "policies/removal_cost.h"

namespace kvsim {
namespace {

using Kind = ValuePart::Kind;
using Row = std::vector<double>;

/// Norms of the values in double, computed once for all variants: shared results are floats, so each fills
/// two of them.
Row value_norms(const HeadFeatures& head, ValueNorm norm) {
  using Halves = std::array<float, 2>;
  const std::span<const float> halves = head.shared(fmt::format("|v|:{}", static_cast<int>(norm)), [&] {
    std::vector<float> out;
    for (const double x : row_norms(head.values(), norm))
      for (const float half : std::bit_cast<Halves>(x)) out.push_back(half);
    return out;
  });
  Row out(halves.size() / 2);
  for (std::size_t t = 0; t < out.size(); ++t)
    out[t] = std::bit_cast<double>(Halves{halves[2 * t], halves[2 * t + 1]});
  return out;
}

void multiply(Row& row, const Row& factor, double epsilon) {
  for (std::size_t t = 0; t < row.size(); ++t) row[t] = (row[t] + epsilon) * factor[t];
}

/// The norms that a row is weighed with: its query head's, or the mean over the group where the heads are
/// joined.
Row projected_norms_of(const HeadFeatures& head, std::size_t row, std::size_t rows) {
  std::vector<Row> norms;
  for (std::size_t h = 0; h < head.geometry().group; ++h) {
    if (rows > 1 && h != row) continue;
    const std::span<const float> own = projected_norms(head, h);
    norms.emplace_back(own.begin(), own.end());
  }
  return join_group(norms, Group::mean);
}

/// Change of the output when one token alone is evicted and the others are renormalised (arXiv:2504.14051).
/// Scores are taken as they would be ranked, in float.
void weigh_by_change(Row& row, MatrixView<const float> values, std::span<const TokenIndex> guarded,
                     bool fast) {
  std::vector<bool> stays(row.size(), false);
  for (const TokenIndex t : guarded)
    if (t < row.size()) stays[t] = true;
  for (std::size_t t = 0; t < row.size(); ++t) {
    row[t] = static_cast<double>(static_cast<float>(row[t]));
    if (row[t] < 0 && !stays[t])
      throw UserError("value=caote needs scores that are shares of attention, token {} has {}", t, row[t]);
  }
  row = output_change(row, values, stays, fast);
}

}  // namespace

Need value_needs(const ValuePart& part) {
  if (part.kind == Kind::none) return Need::none;
  return part.kind == Kind::wo ? Need::values | Need::output_projection : Need::values;
}

void weigh_by_value(const ValuePart& part, const HeadFeatures& head, std::span<const TokenIndex> guarded,
                    std::vector<Row>& rows) {
  for (std::size_t r = 0; r < rows.size(); ++r) {
    switch (part.kind) {
      case Kind::none:
        break;
      case Kind::l1:
        multiply(rows[r], value_norms(head, ValueNorm::l1), 0.0);
        break;
      case Kind::l2:
        multiply(rows[r], value_norms(head, ValueNorm::l2), 0.0);
        break;
      case Kind::l2sq:
        multiply(rows[r], value_norms(head, ValueNorm::l2sq), 0.0);
        break;
      case Kind::wo:
        multiply(rows[r], projected_norms_of(head, r, rows.size()), part.epsilon);
        break;
      case Kind::caote:
      case Kind::fast_caote:
        weigh_by_change(rows[r], head.values(), guarded, part.kind == Kind::fast_caote);
        break;
    }
  }
}

std::vector<double> row_norms(MatrixView<const float> rows, ValueNorm norm) {
  // Several rows side by side: a sum along one row waits for its last addition.
  constexpr std::size_t kSideBySide = 8;
  std::vector<double> out(rows.rows);
  for (std::size_t begin = 0; begin < rows.rows; begin += kSideBySide) {
    const std::size_t count = std::min(kSideBySide, rows.rows - begin);
    std::array<double, kSideBySide> sum{};
    for (std::size_t c = 0; c < rows.cols; ++c) {
      for (std::size_t i = 0; i < count; ++i) {
        const double x = static_cast<double>(rows(begin + i, c));
        sum[i] += norm == ValueNorm::l1 ? std::abs(x) : x * x;
      }
    }
    for (std::size_t i = 0; i < count; ++i)
      out[begin + i] = norm == ValueNorm::l2 ? std::sqrt(sum[i]) : sum[i];
  }
  return out;
}

std::span<const float> projected_norms(const HeadFeatures& head, std::size_t query_head) {
  return head.shared(fmt::format("|v W_O|_1:{}", query_head), [&] {
    constexpr std::size_t kTokens = 4 * kRowTile;
    const MatrixView<const float> values = head.values(), projection = head.output_projection(query_head);
    std::vector<float> out;
    for (std::size_t begin = 0; begin < values.rows; begin += kTokens) {
      const std::size_t count = std::min(kTokens, values.rows - begin);
      Matrix<float> image(projection.cols, count, kRowPad);  // W_O' v of every token
      accumulate_product(transposed(values.rows_from(begin, count)).view(), projection, image.view());
      Row sum(count, 0.0);
      for (std::size_t m = 0; m < image.rows(); ++m)
        for (std::size_t t = 0; t < count; ++t) sum[t] += static_cast<double>(std::abs(image(m, t)));
      for (const double x : sum) out.push_back(static_cast<float>(x));
    }
    return out;
  });
}

}  // namespace kvsim
