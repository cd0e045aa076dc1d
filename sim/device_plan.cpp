// How the heads of a unit fit onto a device.
#include "sim/device_plan.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvsim {
namespace {

/// Bytes that a device hands back for one ranking, budget and row: error, recall, agreement, needed sets,
/// error vectors.
std::size_t cell_bytes(const LayerGeometry& g, bool deltas) {
  return (3 + kMassFractions.size() + (deltas ? g.value_dim : 0)) * sizeof(float);
}

}  // namespace

std::size_t rankings_per_call(const LayerGeometry& g, std::size_t steps, std::size_t counts, bool deltas) {
  constexpr std::size_t kResults = 256u << 20;
  const std::size_t one = counts * round_up(g.group * steps, kRowPad) * cell_bytes(g, deltas);
  return std::max<std::size_t>(1, kResults / std::max<std::size_t>(one, 1));
}

DevicePlan::DevicePlan(const Device& device, const LayerGeometry& geometry, const BlockRequest& request,
                       std::size_t rankings, std::size_t windows, std::size_t budgets, bool deltas)
    : device_(device),
      g_(geometry),
      budgets_(std::max<std::size_t>(budgets, 1)),
      rankings_(std::max<std::size_t>(rankings, 1)),
      deltas_(deltas) {
  if (g_.value_dim > device.limits().value_dim)
    throw UserError("values of {} numbers are more than a GPU takes ({}): use --device cpu", g_.value_dim,
                    device.limits().value_dim);
  attended_ = std::max(g_.group * request.prompt_queries, kPromptQueryRows);
  sums_ = std::max<std::size_t>(windows * g_.group, 1);
}

DeviceShape DevicePlan::shape(std::size_t steps) const {
  // The units of a variant are measured in one call, however many they are.
  const std::size_t in_call =
      std::min(rankings_, std::max(rankings_per_call(g_, steps, budgets_, deltas_), g_.group));
  return {g_.prompt, g_.decode, g_.group * steps, g_.key_dim, g_.value_dim,         attended_,
          in_call,   budgets_,  deltas_,          sums_,      g_.sliding_window > 0};
}

std::uint64_t DevicePlan::bytes(std::size_t heads, std::size_t steps) const {
  return heads * device_.head_bytes(shape(steps)) + device_.work_bytes(shape(steps));
}

std::uint64_t DevicePlan::host_bytes(std::size_t steps) const {
  const DeviceShape of = shape(steps);
  constexpr std::uint64_t kStaged = 2;  // heads: one is packed while another is copied
  const std::uint64_t head = (g_.prompt + g_.decode) * (g_.key_dim + g_.value_dim) + of.rows * g_.key_dim;
  return of.rankings * of.counts * round_up(of.rows, kRowPad) * cell_bytes(g_, deltas_) +
         kStaged * head * sizeof(float);
}

}  // namespace kvsim
