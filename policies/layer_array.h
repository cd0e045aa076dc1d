// A user's array whose first dimension counts layers: scores, filters, statistics made elsewhere.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "policies/policy.h"

namespace kvsim {

/// [layers, ...]: `layers` is either the number of the model's layers (indexed by the layer's own number) or
/// of the recorded ones (in their order).
class LayerArray {
 public:
  /// Reads it. Throws UserError where file or dataset cannot be read, or a value is not a number.
  void load(Resources& resources, const std::string& file, const std::string& dataset);
  bool loaded() const { return array_ != nullptr; }
  /// Throws UserError where the shape is not [layers, rest...]; `meaning` names all its dimensions.
  void check(const LayerGeometry& layer, std::initializer_list<std::size_t> rest,
             std::string_view meaning) const;
  /// The part of a layer at `index` of the second dimension.
  std::span<const float> at(const LayerGeometry& layer, std::size_t index) const;

 private:
  std::string file_, dataset_;
  const ExternalArray* array_ = nullptr;  // owned by the program's Resources, which outlive the policy
};

}  // namespace kvsim
