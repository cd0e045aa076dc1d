// Whether scores look at the attention of single queries or at means alone.
#include "policies/reads_means.h"

#include "policies/wrapper.h"

namespace kvsim {

bool reads_rows(const Policy& policy) {
  if (!has(policy.needs(), Need::window_queries | Need::lookahead | Need::decode_queries)) return false;
  if (const auto* reader = dynamic_cast<const ReadsMeans*>(&policy)) return !reader->means_alone();
  if (const auto* wrapper = dynamic_cast<const ScoreWrapper*>(&policy);
      wrapper != nullptr && wrapper->inner() != nullptr)
    return reads_rows(*wrapper->inner());
  return true;
}

}  // namespace kvsim
