// Per-page values as an array that grows with the pages seen so far.
#pragma once

#include <algorithm>
#include <vector>

#include "policies/paging/page_policy.h"

namespace kvsim {

template <typename T>
class PageMap {
 public:
  explicit PageMap(T initial = T{}) : initial_(initial) {}
  /// Must precede any access to pages below `limit`.
  void grow(Page limit) {
    if (limit > values_.size()) {
      if (limit > values_.capacity()) values_.reserve(std::max<std::size_t>(limit, values_.size() * 3 / 2));
      values_.resize(limit, initial_);
    }
  }
  T& operator[](Page p) { return values_[p]; }
  const T& operator[](Page p) const { return values_[p]; }
  /// The value of a page that may not have been seen yet.
  T find(Page p) const { return p < values_.size() ? values_[p] : initial_; }
  void prefetch(Page p) const { __builtin_prefetch(&values_[p]); }
  std::size_t size() const { return values_.size(); }

 private:
  std::vector<T> values_;
  T initial_;
};

}  // namespace kvsim
