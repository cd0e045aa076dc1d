// What r_kv and skipkv share: importance under the last queries, less redundancy of the keys.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policies/stepwise/stepwise_policy.h"

namespace kvsim {

/// Parameters of R-KV (arXiv:2505.24133).
struct RkvSettings {
  std::uint32_t window = 8;
  std::uint32_t kernel = 7;
  double mix = 0.1;  // lambda
  double threshold = 0.5;

  void fields(FieldVisitor& visitor);
  /// Throws UserError, naming `policy`, where the kernel is even.
  void check(std::string_view policy) const;
};

/// The last queries of a cache, oldest first, per query head [rows * d].
class QueryRing {
 public:
  void add(const CacheView& cache, std::uint32_t window);
  std::span<const std::vector<float>> of_query_head() const { return queries_; }

 private:
  std::vector<std::vector<float>> queries_;
};

/// Z = mix * I - (1 - mix) * R of the slots older than the window, [slots - window]. I: logits of the last queries, the
/// largest of the group, softmax over the older slots, mean over the queries, max-pooled over `kernel` slots. R: see
/// key_redundancy, over all slots.
std::vector<double> r_kv_score(const RkvSettings& settings, const CacheView& cache, const QueryRing& ring,
                               const LayerGeometry& layer, double softcap);

/// Keeps the best of Z and the newest `window` slots.
void keep_by_r_kv(const RkvSettings& settings, const CacheView& cache, const std::vector<double>& z, Eviction& out);

}  // namespace kvsim
