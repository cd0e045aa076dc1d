// How the heads of a unit fit onto a device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "policies/policy.h"
#include "traces/trace_reader.h"

namespace kvsim {

/// Rankings of `counts` budgets that one call of a device measures, bounded by the memory for their results;
/// at least one.
std::size_t rankings_per_call(const LayerGeometry& geometry, std::size_t steps, std::size_t counts,
                              bool deltas);

/// Query rows that a device attends with at a time where they may be many.
inline constexpr std::size_t kPromptQueryRows = 512;

/// What a unit takes of a device: all steps of some heads at a time, or a range of steps.
class DevicePlan {
 public:
  /// `rankings`: of all variants on one KV head. `windows`: different observation windows among them.
  /// `deltas`: error vectors are asked for too. Throws UserError where the device does not take heads of this
  /// size.
  DevicePlan(const Device& device, const LayerGeometry& geometry, const BlockRequest& request,
             std::size_t rankings, std::size_t windows, std::size_t budgets, bool deltas);
  /// Whether a head of so many steps is a piece that the device takes, and so many of them lie in its memory.
  bool fits(std::size_t heads, std::size_t steps) const {
    return g_.group * steps <= device_.limits().rows && bytes(heads, steps) <= memory();
  }
  /// While `heads` heads are held and one of them is measured.
  std::uint64_t bytes(std::size_t heads, std::size_t steps) const;
  std::uint64_t memory() const { return device_.memory(); }
  /// Results of a call and what is packed for the device, on the host.
  std::uint64_t host_bytes(std::size_t steps) const;

 private:
  DeviceShape shape(std::size_t steps) const;

  const Device& device_;
  const LayerGeometry& g_;
  std::size_t budgets_, rankings_, attended_ = 0, sums_ = 1;
  bool deltas_;
};

}  // namespace kvsim
