// A policy around another one that changes the entries which the other one keeps.
#pragma once

#include "policies/rotation.h"
#include "policies/wrapper.h"

namespace kvsim {

/// Keeps what the inner policy keeps. Transformations go one around the other: the inner one's result is changed further.
class Transformer : public ScoreWrapper {
 public:
  using ScoreWrapper::ScoreWrapper;
  Need needs() const override { return ScoreWrapper::needs() | Need::keys | Need::values; }

 protected:
  /// What the inner policy leaves of the kept entries.
  Transformed inner_entries(const HeadFeatures& head, std::size_t query_head, std::span<const TokenIndex> kept) const {
    if (score_->traits().transforms) return score_->transform(head, query_head, kept);
    return {gathered(head.keys(), kept), gathered(head.values(), kept), 1.0};
  }
};

}  // namespace kvsim
