// Importance under the last queries, less redundancy of the keys.
#include "policies/stepwise/r_kv_score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "policies/recipe.h"
#include "policies/redundancy.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/held_entries.h"

namespace kvsim {
namespace {

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

/// Softmax in place.
void normalise(std::span<double> row) {
  const double largest = *std::max_element(row.begin(), row.end());
  double total = 0;
  for (double& x : row) total += x = std::exp(x - largest);
  for (double& x : row) x /= total;
}

}  // namespace

void RkvSettings::fields(FieldVisitor& f) {
  f.number("window", window, 1, 4096, "last queries that score, and newest tokens that always stay");
  f.number("kernel", kernel, 1, 4095, "tokens that importance is max-pooled over, odd");
  f.number("mix", mix, 0.0, 1.0, "lambda: share of importance, the rest is redundancy");
  f.number("threshold", threshold, -1.0, 1.0, "keys of a larger cosine repeat each other");
}

void RkvSettings::check(std::string_view policy) const { check_kernel(policy, kernel); }

void QueryRing::add(const CacheView& cache, std::uint32_t window) {
  queries_.resize(cache.query_heads());
  for (std::size_t h = 0; h < queries_.size(); ++h) {
    for (std::size_t r = 0; r < cache.rows(); ++r) {
      const std::span<const float> q = cache.query(h, r);
      if (queries_[h].size() == window * q.size())
        queries_[h].erase(queries_[h].begin(), queries_[h].begin() + static_cast<std::ptrdiff_t>(q.size()));
      queries_[h].insert(queries_[h].end(), q.begin(), q.end());
    }
  }
}

std::vector<double> r_kv_score(const RkvSettings& settings, const CacheView& cache, const QueryRing& ring,
                               const LayerGeometry& layer, double softcap) {
  const std::size_t older = cache.slots() - std::min<std::size_t>(settings.window, cache.slots());
  std::vector<double> score(older, 0.0);
  if (older == 0 || ring.of_query_head().empty()) return score;
  const std::size_t d = layer.key_dim, rows = ring.of_query_head()[0].size() / d;
  std::vector<double> row(older);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t s = 0; s < older; ++s) {
      double largest = -std::numeric_limits<double>::infinity();
      for (const std::vector<float>& queries : ring.of_query_head()) {
        double logit = layer.softmax_scale * dot(std::span(queries).subspan(r * d, d), cache.key(s));
        if (softcap > 0) logit = softcap * std::tanh(logit / softcap);
        largest = std::max(largest, logit);
      }
      row[s] = largest;
    }
    normalise(row);
    for (std::size_t s = 0; s < older; ++s) score[s] += row[s] / static_cast<double>(rows);
  }
  score = pooled(score, settings.kernel, false);
  const std::vector<double> redundancy = key_redundancy(held_keys(cache, d).view(), settings.threshold);
  for (std::size_t s = 0; s < older; ++s) score[s] = settings.mix * score[s] - (1 - settings.mix) * redundancy[s];
  return score;
}

void keep_by_r_kv(const RkvSettings& settings, const CacheView& cache, const std::vector<double>& z, Eviction& out) {
  std::vector<float> score(z.begin(), z.end());
  score.resize(cache.slots(), 0.0f);
  keep_best(cache.positions(), score, cache.capacity(), {0, settings.window}, out);
}

}  // namespace kvsim
