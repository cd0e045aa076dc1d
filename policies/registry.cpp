// The table of policies that register themselves, and the search for near names.
#include "policies/registry.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "kernels/error.h"

namespace kvsim {
namespace {

struct Entry {
  PolicyTraits traits;
  PolicyFactory factory;
};

/// Sorted by name, so that the order of static initialisation never shows.
std::map<std::string, Entry, std::less<>>& table() {
  static std::map<std::string, Entry, std::less<>> entries;
  return entries;
}

/// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  std::iota(last.begin(), last.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0u : 1u)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        now[j] = std::min(now[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

}  // namespace

void register_policy(const PolicyTraits& traits, PolicyFactory factory) {
  const bool added = table().emplace(std::string(traits.name), Entry{traits, std::move(factory)}).second;
  KVSIM_CHECK(added, "two policies are named {}", traits.name);
}

std::vector<const PolicyTraits*> all_policies() {
  std::vector<const PolicyTraits*> out;
  for (const auto& [name, entry] : table()) out.push_back(&entry.traits);
  return out;
}

const PolicyTraits* find_policy(std::string_view name) {
  const auto found = table().find(name);
  return found == table().end() ? nullptr : &found->second.traits;
}

std::unique_ptr<Policy> make_policy(std::string_view name) {
  const auto found = table().find(name);
  if (found != table().end()) return found->second.factory();
  std::vector<std::string> names;
  for (const auto& [known, entry] : table()) names.push_back(known);
  const std::string near = nearest_name(name, names);
  throw UserError("unknown policy '{}'{}; 'kvsim list policies' shows them all", name,
                  near.empty() ? "" : fmt::format(", did you mean '{}'?", near));
}

std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates) {
  constexpr std::size_t kShortestPrefix = 3;
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    std::size_t distance = edit_distance(word, candidate);
    if (word.size() >= kShortestPrefix && candidate.starts_with(word))
      distance = std::min<std::size_t>(distance, 1);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace kvsim
