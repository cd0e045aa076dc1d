// Linked into every plugin: the mark by which the program knows, before it runs any of its code, whether it fits.
#include <array>
#include <cstddef>
#include <utility>

#include "policies/plugin/abi.h"

namespace kvsim {
namespace {

template <std::size_t... I>
constexpr std::array<char, sizeof...(I) + 1> terminated(std::index_sequence<I...>) {
  return {kPolicyAbi[I]..., '\0'};
}

}  // namespace

extern "C" __attribute__((used, visibility("default"))) const std::array<char, kPolicyAbi.size() + 1> kvsim_policy_abi =
    terminated(std::make_index_sequence<kPolicyAbi.size()>());

}  // namespace kvsim
