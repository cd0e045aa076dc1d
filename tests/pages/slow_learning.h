// Learning-augmented policies in their plainest form, all by scans of vectors: what the fast forms must
// equal.
#pragma once

#include "tests/pages/page_run.h"

namespace kvsim::test {

/// Misses when predictions are the sequence's numbers and chance is `random` (the n-th smallest slot of a
/// set).
std::uint64_t slow_mark_predict(const Sequence& sequence, std::size_t k, RandomSource& random);
std::uint64_t slow_trust_doubt(const Sequence& sequence, std::size_t k, RandomSource& random);
/// The optimum is that of the whole stream.
std::uint64_t slow_follower_robust(const Sequence& sequence, std::size_t k, RandomSource& random);
/// PLECO's predictions by its definition: a sum over all past requests of the page.
std::vector<double> slow_pleco(const Sequence& sequence);

}  // namespace kvsim::test
