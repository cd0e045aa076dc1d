// What a score is multiplied by: the values behind the tokens.
#include "policies/value_weight.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/error.h"

namespace kvsim {
namespace {

using Kind = ValuePart::Kind;
using Row = std::vector<double>;

/// Norms of the values, computed once for all variants.
std::span<const float> value_norms(const HeadFeatures& head, ValueNorm norm) {
  return head.shared(fmt::format("|v|:{}", static_cast<int>(norm)), [&] {
    const Row norms = row_norms(head.values(), norm);
    std::vector<float> out(norms.size());
    std::transform(norms.begin(), norms.end(), out.begin(), [](double x) { return static_cast<float>(x); });
    return out;
  });
}

void multiply(Row& row, std::span<const float> factor, double epsilon) {
  for (std::size_t t = 0; t < row.size(); ++t) row[t] = (row[t] + epsilon) * static_cast<double>(factor[t]);
}

/// The norms that a row is weighed with: its query head's, or the mean over the group where the heads are joined.
std::vector<float> projected_norms_of(const HeadFeatures& head, std::size_t row, std::size_t rows) {
  const std::size_t group = head.geometry().group;
  const std::span<const float> own = projected_norms(head, rows == 1 ? 0 : row);
  std::vector<double> sum(own.begin(), own.end());
  for (std::size_t h = 1; rows == 1 && h < group; ++h) {
    const std::span<const float> next = projected_norms(head, h);
    for (std::size_t t = 0; t < sum.size(); ++t) sum[t] += static_cast<double>(next[t]);
  }
  std::vector<float> out(sum.size());
  const double heads = rows == 1 ? static_cast<double>(group) : 1.0;
  std::transform(sum.begin(), sum.end(), out.begin(), [heads](double x) { return static_cast<float>(x / heads); });
  return out;
}

/// Change of the output when one token alone is evicted and the others are renormalised (arXiv:2504.14051).
void output_change(Row& row, MatrixView<const float> values, bool fast) {
  const double total = std::accumulate(row.begin(), row.end(), 0.0);
  if (total > 0)
    for (double& a : row) a /= total;
  Row mean(values.cols, 0.0);
  for (std::size_t t = 0; t < row.size(); ++t) {
    const double a = fast ? 1.0 / static_cast<double>(row.size()) : row[t];
    for (std::size_t c = 0; c < values.cols; ++c) mean[c] += a * static_cast<double>(values(t, c));
  }
  for (std::size_t t = 0; t < row.size(); ++t) {
    double square = 0;
    for (std::size_t c = 0; c < values.cols; ++c) {
      const double off = static_cast<double>(values(t, c)) - mean[c];
      square += off * off;
    }
    const double rest = std::max(1.0 - row[t], std::numeric_limits<double>::epsilon());
    row[t] = row[t] / rest * std::sqrt(square);
  }
}

}  // namespace

Need value_needs(const ValuePart& part) {
  if (part.kind == Kind::none) return Need::none;
  return part.kind == Kind::wo ? Need::values | Need::output_projection : Need::values;
}

void weigh_by_value(const ValuePart& part, const HeadFeatures& head, std::vector<Row>& rows) {
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
        output_change(rows[r], head.values(), part.kind == Kind::fast_caote);
        break;
    }
  }
}

std::vector<double> row_norms(MatrixView<const float> rows, ValueNorm norm) {
  std::vector<double> out(rows.rows);
  for (std::size_t t = 0; t < rows.rows; ++t) {
    double sum = 0;
    for (std::size_t c = 0; c < rows.cols; ++c) {
      const double x = static_cast<double>(rows(t, c));
      sum += norm == ValueNorm::l1 ? std::abs(x) : x * x;
    }
    out[t] = norm == ValueNorm::l2 ? std::sqrt(sum) : sum;
  }
  return out;
}

std::span<const float> projected_norms(const HeadFeatures& head, std::size_t query_head) {
  return head.shared(fmt::format("|v W_O|_1:{}", query_head), [&] {
    const MatrixView<const float> values = head.values(), projection = head.output_projection(query_head);
    std::vector<float> out(values.rows);
    std::vector<double> image(projection.cols);
    for (std::size_t t = 0; t < values.rows; ++t) {
      std::fill(image.begin(), image.end(), 0.0);
      for (std::size_t c = 0; c < values.cols; ++c) {
        const double v = static_cast<double>(values(t, c));
        const float* row = projection.row(c);
        for (std::size_t m = 0; m < image.size(); ++m) image[m] += v * static_cast<double>(row[m]);
      }
      double sum = 0;
      for (const double x : image) sum += std::abs(x);
      out[t] = static_cast<float>(sum);
    }
    return out;
  });
}

}  // namespace kvsim
