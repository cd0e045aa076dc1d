// Errors of caches whose tokens take the positions of their slots.
#include "sim/stepwise/shifted_positions.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/exponential.h"

namespace kvsim {
namespace {

constexpr std::size_t kLanes = 16;

/// Turns `x` as if it stood `places` positions later.
void rotate(std::span<double> x, const LayerContext& layer, double places) {
  if (layer.rope_layout == RopeLayout::none) return;
  const std::size_t half = layer.inverse_frequency.size();
  for (std::size_t i = 0; i < half; ++i) {
    const std::size_t a = layer.rope_layout == RopeLayout::half ? i : 2 * i;
    const std::size_t b = layer.rope_layout == RopeLayout::half ? i + half : 2 * i + 1;
    const double angle = places * static_cast<double>(layer.inverse_frequency[i]);
    const double cosine = std::cos(angle), sine = std::sin(angle);
    const double first = x[a] * cosine - x[b] * sine;
    x[b] = x[b] * cosine + x[a] * sine;
    x[a] = first;
  }
}

double logit_of(std::span<const double> q, const float* k, const LogitRule& rule) {
  double dot = 0;
  for (std::size_t c = 0; c < q.size(); ++c) dot = std::fma(q[c], static_cast<double>(k[c]), dot);
  dot *= rule.scale;
  return rule.softcap > 0 ? rule.softcap * tanh_plain(dot / rule.softcap) : dot;
}

}  // namespace

void shifted_errors(const TileInput& in, const HeldCache& cache, MatrixView<const float> exact, float* error, float* delta) {
  const StepRange& chunk = in.exact.steps().steps();
  const std::size_t dv = in.block.value.cols();
  const MatrixView<const float> values = cache.values(in.block.value.view());
  std::vector<TokenIndex> held;
  std::vector<double> logits, output(dv), turned;
  for (std::size_t lane = 0; lane < in.tile.count; ++lane) {
    held.clear();
    for (const TokenIndex p : cache.touched())
      if ((cache.all_lanes(p) >> lane & 1) != 0) held.push_back(p);
    std::sort(held.begin(), held.end());
    for (std::size_t h = 0; h < in.readers.heads; ++h) {
      const std::size_t row = (in.readers.first_head + h) * chunk.count + (in.tile.first - chunk.first) + lane;
      const std::span<const float> query = in.exact.steps().queries().row_span(row);
      logits.resize(held.size());
      double largest = -INFINITY;
      std::int64_t places = 0;
      turned.assign(query.begin(), query.end());
      for (std::size_t s = 0; s < held.size(); ++s) {
        // Distance of slots minus distance of positions: the same for every run of neighbours.
        const std::int64_t now = static_cast<std::int64_t>(held.size() - 1 - s) - static_cast<std::int64_t>(held.back() - held[s]);
        if (now != places) {
          turned.assign(query.begin(), query.end());
          rotate(turned, in.layer, static_cast<double>(now));
          places = now;
        }
        logits[s] = logit_of(turned, in.block.key.row(held[s]), in.layer.rule);
        largest = std::max(largest, logits[s]);
      }
      double sum = 0;
      std::fill(output.begin(), output.end(), 0.0);
      for (std::size_t s = 0; s < held.size(); ++s) {
        const double w = exp_plain(logits[s] - largest);
        sum += w;
        for (std::size_t c = 0; c < dv; ++c) output[c] = std::fma(w, static_cast<double>(values(held[s], c)), output[c]);
      }
      const std::size_t at = h * kLanes + lane;
      double squares = 0, norm = 0;
      for (std::size_t c = 0; c < dv; ++c) {
        const double o = static_cast<double>(exact(c, at)), difference = output[c] / sum - o;
        squares += difference * difference;
        norm += o * o;
        if (delta != nullptr) delta[c * exact.stride + at] = static_cast<float>(difference);
      }
      error[at] = static_cast<float>(norm > 0 ? std::sqrt(squares / norm) : std::sqrt(squares));
    }
  }
}

}  // namespace kvsim
