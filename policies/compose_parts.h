// The parts of compose as text: which words and calls stand for which part, read and written back in full.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "policies/allotment.h"
#include "policies/layer_preference.h"
#include "policies/recipe.h"
#include "policies/spec.h"

namespace kvsim {

/// What a token is scored by; obd is a base of its own, see ObdBase.
Base read_base(const SpecValue& value);
SpecValue write_base(const Base& part);

/// One source, or an ordered list of them; `none` is no source. All readers throw UserError naming the part
/// and what it may be.
QueryParts read_query(const SpecValue& value);
SpecValue write_query(const QueryParts& parts);

/// `[mean, avg(5), group(mean)]`, in order.
std::vector<Reducer> read_reducers(const SpecValue& value);
SpecValue write_reducers(const std::vector<Reducer>& reducers);

/// `none`, a norm, or the change of the output.
ValuePart read_value(const SpecValue& value);
SpecValue write_value(const ValuePart& part);

/// `none` or `cosine(lambda,threshold)`.
std::optional<RedundancyPart> read_redundancy(const SpecValue& value);
SpecValue write_redundancy(const std::optional<RedundancyPart>& part);

/// `uniform` (nothing) or `ada(alpha=0.2,...)`.
std::optional<HeadShare> read_heads(const SpecValue& value);
SpecValue write_heads(const std::optional<HeadShare>& part);

/// Budgets of the layers: over the depth, or by what a window looks at; at most one of both.
struct LayersPart {
  /// CAKE's: the window whose attention is looked at, and what follows from it.
  struct Spread {
    std::uint32_t window = 32;
    LayerPreference preference;
  };
  std::optional<LayerSlope> slope;
  std::optional<Spread> spread;
  bool shared() const { return slope.has_value() || spread.has_value(); }
};
/// `uniform` (nothing), `pyramid(beta=20,...)` or `cake(window=32,...)`.
LayersPart read_layers(const SpecValue& value);
SpecValue write_layers(const LayersPart& part);

/// `top` (nothing) or `two_stage(first,safe)`: CriticalKV's selector.
struct StagesPart {
  double first = 0.5;  // share of a unit's tokens that the score alone decides
  double safe = 0;     // share of the budget that it decides in any case
};
std::optional<StagesPart> read_select(const SpecValue& value);
SpecValue write_select(const std::optional<StagesPart>& part);

/// Positions `[0,17]` that are always kept.
std::vector<TokenIndex> read_positions(const SpecValue& value);
SpecValue write_positions(const std::vector<TokenIndex>& positions);

/// All words with their meaning and an example line each, for help.
std::string explain_parts();

}  // namespace kvsim
