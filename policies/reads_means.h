// Whether scores look at the attention of single queries or at means alone: what a unit has to hold in
// memory.
#pragma once

#include "policies/policy.h"

namespace kvsim {

/// Policies that can score by the means HeadFeatures::window_mean and decode_mean.
class ReadsMeans {
 public:
  virtual ~ReadsMeans() = default;
  /// Whether, with its parameters, it never asks for the attention or the outputs of single queries.
  virtual bool means_alone() const = 0;
};

/// Whether scoring may ask for single rows of a window, of pseudo queries or of the true decode queries. A
/// policy that says nothing of it, and is no wrapper around one that does, counts as asking.
bool reads_rows(const Policy& policy);

}  // namespace kvsim
