// The parts of compose as text: which words and calls stand for which part, read and written back in full.
#pragma once

#include <optional>
#include <vector>

#include "policies/allotment.h"
#include "policies/recipe.h"
#include "policies/spec.h"

namespace kvsim {

/// `window(w)`, `all` or `none`. All readers throw UserError naming the part and what it may be.
struct QueryPart {
  QuerySource source = QuerySource::none;
  std::uint32_t window = 0;
};
QueryPart read_query(const SpecValue& value);
SpecValue write_query(const QueryPart& part);

/// `[mean, avg(5), group(mean)]`: mean | sum | visible over the queries, avg(k) | max(k) over positions,
/// group(rule).
std::vector<Reducer> read_reducers(const SpecValue& value);
SpecValue write_reducers(const std::vector<Reducer>& reducers);

/// `uniform` (nothing) or `ada(alpha=0.2)`.
std::optional<HeadShare> read_heads(const SpecValue& value);
SpecValue write_heads(const std::optional<HeadShare>& part);

/// `uniform` (nothing) or `pyramid(beta=20)`.
std::optional<LayerSlope> read_layers(const SpecValue& value);
SpecValue write_layers(const std::optional<LayerSlope>& part);

}  // namespace kvsim
