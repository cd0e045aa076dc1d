// Sums over query rows that optimal-brain-damage scores are made of (arXiv:2510.07651).
#include "policies/obd_sums.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "policies/products.h"
#include "policies/query_part.h"

namespace kvsim {
namespace {

/// Sums run in so many lanes side by side, then lane after lane: one order, and vector code.
constexpr std::size_t kLanes = 8;

struct Lanes {
  std::array<float, kLanes> sum{};
  double total() const {
    double out = 0;
    for (const float x : sum) out += static_cast<double>(x);
    return out;
  }
};

/// Values without their mean, channel-major. Differences of values and outputs, which are means of values,
/// stay what they are, but are no longer small differences of large numbers.
struct CentredValues {
  Matrix<float> channels;            // [dv, T]
  std::vector<float> mean;           // [dv]
  std::vector<float> square, along;  // [T]: |v'|^2 and mean . v'

  explicit CentredValues(MatrixView<const float> values)
      : channels(transposed(values)), square(values.rows, 0.0f), along(values.rows, 0.0f) {
    for (std::size_t c = 0; c < channels.rows(); ++c) {
      double sum = 0;
      for (std::size_t t = 0; t < values.rows; ++t) sum += static_cast<double>(channels(c, t));
      mean.push_back(static_cast<float>(sum / static_cast<double>(values.rows)));
      for (std::size_t t = 0; t < values.rows; ++t) channels(c, t) -= mean[c];
      add(channels.row(c), c, square, along);
    }
  }
  /// Adds channel c to squares and to products with the mean.
  void add(const float* row, std::size_t c, std::vector<float>& squares, std::vector<float>& products) const {
    for (std::size_t i = 0; i < squares.size(); ++i) {
      squares[i] += row[i] * row[i];
      products[i] += row[i] * mean[c];
    }
  }
};

/// Centred outputs of a tile of rows, channel-major, and what they have in common with the values.
struct TileOutputs {
  Matrix<float> channels;            // [dv, n]
  std::vector<float> square, along;  // [n]

  TileOutputs(MatrixView<const float> outputs, std::size_t n, const CentredValues& values)
      : channels(outputs.rows, n, kRowPad), square(n, 0.0f), along(n, 0.0f) {
    for (std::size_t c = 0; c < outputs.rows; ++c) {
      for (std::size_t i = 0; i < n; ++i) channels(c, i) = outputs(c, i) - values.mean[c];
      values.add(channels.row(c), c, square, along);
    }
  }
};

/// Adds up tiles of rows.
class Summing {
 public:
  Summing(const HeadFeatures& head, bool outputs)
      : outputs_(outputs),
        scale_(static_cast<float>(head.geometry().softmax_scale)),
        sums_(head.geometry().prompt * 4) {
    if (!outputs) return;
    keys_ = transposed(head.keys());
    values_.emplace(head.values());
  }

  /// `weights` [seen, n]; `queries` [n, d] and `outputs` [dv, >= n] (channel-major) are read only with
  /// outputs.
  void add(MatrixView<const float> weights, MatrixView<const float> queries,
           MatrixView<const float> outputs) {
    const std::size_t seen = weights.rows, n = weights.cols;
    for (std::size_t t = 0; t < seen; ++t) add_weights(t, weights.row(t), n);
    if (!outputs_) return;
    const TileOutputs of(outputs, n, *values_);
    const Matrix<float> channels = transposed(queries);
    Matrix<float> logits(seen, n, kRowPad), products(seen, n, kRowPad);
    accumulate_product(channels.view(), {keys_.data(), keys_.rows(), seen, keys_.stride()}, logits.view());
    const Matrix<float>& values = values_->channels;
    accumulate_product(of.channels.view(), {values.data(), values.rows(), seen, values.stride()},
                       products.view());
    for (std::size_t t = 0; t < seen; ++t) add_outputs(t, weights.row(t), logits.row(t), products.row(t), of);
  }

  std::vector<float> result() const {
    std::vector<float> out(outputs_ ? sums_.size() : sums_.size() / 2);
    std::transform(sums_.begin(), sums_.begin() + static_cast<std::ptrdiff_t>(out.size()), out.begin(),
                   [](double x) { return static_cast<float>(x); });
    return out;
  }

 private:
  double& sum(std::size_t kind, std::size_t t) { return sums_[kind * (sums_.size() / 4) + t]; }

  void add_weights(std::size_t t, const float* a, std::size_t n) {
    Lanes weight, square;
    for (std::size_t i = 0; i < n; i += kLanes) {
      for (std::size_t l = 0; l < std::min(kLanes, n - i); ++l) {
        weight.sum[l] += a[i + l];
        square.sum[l] += a[i + l] * a[i + l];
      }
    }
    sum(0, t) += weight.total();
    sum(1, t) += square.total();
  }

  void add_outputs(std::size_t t, const float* a, const float* logit, const float* vo,
                   const TileOutputs& of) {
    const float vv = values_->square[t], vm = values_->along[t];
    distances(t, vo, of);
    Lanes key, cross;
    for (std::size_t i = 0; i < of.square.size(); i += kLanes) {
      for (std::size_t l = 0; l < std::min(kLanes, of.square.size() - i); ++l) {
        const float s = logit[i + l] * scale_, as = a[i + l] * s;
        key.sum[l] += as * as * distance_[i + l];
        // v.(v - o) in centred terms
        cross.sum[l] += 2.0f * a[i + l] * as * (vv - vo[i + l] + (vm - of.along[i + l]));
      }
    }
    sum(2, t) += key.total();
    sum(3, t) += cross.total();
  }

  /// |v - o|^2 of a token and all rows; where both nearly agree, which is where one token has nearly all the
  /// weight, from the differences themselves.
  void distances(std::size_t t, const float* vo, const TileOutputs& of) {
    constexpr float kNear = 0.05f;
    const float vv = values_->square[t];
    distance_.resize(of.square.size());
    int near = 0;
    for (std::size_t i = 0; i < distance_.size(); ++i) {
      distance_[i] = vv - 2.0f * vo[i] + of.square[i];
      near |= static_cast<int>(distance_[i] < kNear * (vv + of.square[i]));
    }
    if (near == 0) return;
    for (std::size_t i = 0; i < distance_.size(); ++i) {
      if (distance_[i] >= kNear * (vv + of.square[i])) continue;
      double square = 0;
      for (std::size_t c = 0; c < of.channels.rows(); ++c) {
        const double difference =
            static_cast<double>(values_->channels(c, t)) - static_cast<double>(of.channels(c, i));
        square += difference * difference;
      }
      distance_[i] = static_cast<float>(square);
    }
  }

  bool outputs_;
  float scale_;
  Matrix<float> keys_;  // [d, T]
  std::optional<CentredValues> values_;
  std::vector<float> distance_;
  std::vector<double> sums_;  // [4][T]
};

ObdSums parts(std::span<const float> all, bool outputs) {
  const std::size_t tokens = all.size() / (outputs ? 4 : 2);
  ObdSums out{all.first(tokens), all.subspan(tokens, tokens), {}, {}};
  if (outputs) {
    out.key = all.subspan(2 * tokens, tokens);
    out.cross = all.subspan(3 * tokens, tokens);
  }
  return out;
}

}  // namespace

ObdSums obd_sums(const HeadFeatures& head, const QueryRows& rows, std::size_t query_head, bool outputs) {
  const std::string key = fmt::format("obd sums {} {} {}", rows_key(rows), query_head, outputs);
  return parts(head.shared(key,
                           [&] {
                             Summing summing(head, outputs);
                             const MatrixView<const float> weights = head.attention(rows, query_head);
                             Matrix<float> channels;
                             if (outputs) channels = transposed(head.outputs(rows, query_head));
                             summing.add(weights,
                                         outputs ? head.queries(rows, query_head) : MatrixView<const float>{},
                                         channels.view());
                             return summing.result();
                           }),
               outputs);
}

ObdSums obd_sums(const HeadFeatures& head, std::size_t query_head, bool outputs) {
  const std::string key = fmt::format("obd sums all {} {}", query_head, outputs);
  return parts(head.shared(key,
                           [&] {
                             Summing summing(head, outputs);
                             head.each_prompt_tile(query_head, [&](const PromptTile& tile) {
                               Matrix<float> channels;
                               if (outputs) {
                                 // The kernel wants padded rows; a tile of another maker may have none.
                                 Matrix<float> weights(tile.weights.rows, tile.count, kRowPad);
                                 for (std::size_t t = 0; t < weights.rows(); ++t)
                                   std::copy_n(tile.weights.row(t), tile.count, weights.row(t));
                                 channels = Matrix<float>(head.geometry().value_dim, tile.count, kRowPad);
                                 attention_outputs(weights.view(), head.values(), 0, weights.rows(), 0,
                                                   tile.count, channels.view(), {});
                               }
                               summing.add(tile.weights, tile.queries, channels.view());
                             });
                             return summing.result();
                           }),
               outputs);
}

}  // namespace kvsim
