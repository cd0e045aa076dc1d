// The metrics that results may hold, in column order, with their formulas.
#include <array>

#include "sim/results.h"

namespace kvsim {

std::string_view level_name(MetricInfo::Level level) {
  constexpr std::array<std::string_view, 3> kNames{"row", "layer", "trace"};
  return kNames.at(static_cast<std::size_t>(level));
}

const std::vector<MetricInfo>& all_metrics() {
  using Level = MetricInfo::Level;
  static const std::vector<MetricInfo> metrics{
      {"output_error", "relative", "relative L2 error of the attention output",
       "|o' - o| / |o|, o' = softmax attention over the kept and the decoded tokens alone, o = over all visible ones; per query head and step",
       false, Level::row},
      {"attention_recall", "probability", "attention mass still reachable",
       "sum of the exact attention over the tokens that are held; per query head and step", true, Level::row},
      {"query_consistency", "fraction", "agreement with each step's own ideal set",
       "|K n Top_n| / n over prompt positions, n = |K|, Top_n = the n prompt positions that this decode query weighs most; per query head and step",
       true, Level::row},
      {"set_consistency", "fraction", "agreement with the best static set",
       "|K n K*| / n over prompt positions, K* = the n = |K| positions with the largest mean attention of the true decode queries (over steps and the group's query heads), nothing protected in K*",
       true, Level::row},
      {"set_jaccard", "fraction", "Jaccard index with the best static set", "|K n K*| / |K u K*|, K* as in set_consistency",
       true, Level::row},
      {"set_mass_ratio", "ratio", "decode attention of the kept set over that of the best static set",
       "sum over K of the mean decode attention / the same sum over K*", true, Level::row},
      {"free_consistency", "fraction", "agreement with the best static set on the positions the policy was free to choose",
       "as set_consistency with the policy's protected positions taken out of K, K* and n; undefined when nothing is free",
       true, Level::row},
      {"free_consistency_corrected", "fraction", "free_consistency corrected for chance",
       "(x - e) / (1 - e), x = free_consistency, e = n / candidates, the expected overlap of a random choice; 0 = random, 1 = oracle; undefined when everything free is kept",
       true, Level::row},
      {"window_consistency", "fraction", "agreement with the same policy given the true decode queries as its window",
       "the overlap of K with what this policy would keep if its observation window held all true decode queries, free positions only; undefined for policies without a window",
       true, Level::row},
      {"miss_rate", "fraction", "needed tokens that are missing, c = 0.9",
       "|N(c) \\ K| / |N(c)|, N(c) = the smallest set of visible tokens that holds the fraction c of the step's attention; per query head and step",
       false, Level::row},
      {"miss_rate_50", "fraction", "needed tokens that are missing, c = 0.5", "miss_rate with c = 0.5", false, Level::row},
      {"miss_rate_99", "fraction", "needed tokens that are missing, c = 0.99", "miss_rate with c = 0.99", false, Level::row},
      {"evidence_recall", "fraction", "share of the evidence tokens that are kept",
       "kept tokens of the segments of kind 'evidence' / their tokens; undefined without such segments", true, Level::row},
      {"score_truth", "correlation", "what the policy's score is worth: does it rank tokens by what the outputs lose without them?",
       "Spearman's rank correlation (ties averaged), over the prompt tokens that the policy does not protect, of its score with the exact change of the outputs when that one token is removed: c_i = sqrt(sum over the true decode steps and the unit's query heads of (a/(1-a) |v_i - o|)^2), a the step's exact attention to token i, o its exact output; the same at every budget; mean over the query heads with unit=query; undefined where the score has no two different values, and for policies whose order changes with the step",
       true, Level::row},
      {"logit_error", "relative", "what a transformation of keys changes in the attention logits",
       "|l' - l| / |l| over the kept tokens that the query sees, l = the recorded keys' logits, l' = those of the keys that the policy holds in their place; per query head and step; undefined for policies that change no entries",
       false, Level::row},
      {"stop_signal", "relative", "what the policy's own stopping test read where it stopped",
       "dbudgetkv: relative drop of the norm of the last prompt query's attention, (S(0) - S(p)) / S(0), with p tokens cut; the same for all heads of a layer; undefined for policies that do not choose their size",
       false, Level::row},
      {"resident_bytes", "bytes", "size of the cache after the policy acted",
       "resident tokens x (head_dim + value_dim) x bytes per element, less what a policy drops of the entries that it keeps; with unit=query every query head's own copy", false, Level::row},
      {"resident_union_bytes", "bytes", "size of the distinct entries of the cache",
       "as resident_bytes with entries that several query heads of a group keep counted once", false, Level::row},
      {"projected_error", "relative", "relative error after the output projection, all heads of the layer together",
       "|sum_h W_h (o'_h - o_h)| / |sum_h W_h o_h| per step; where the trace holds output_proj", false, Level::layer},
      {"predicted_kl", "nats", "predicted divergence of the model's next-token distribution",
       "4.6 sum over the layers l with (l + 1) / L > 0.4 of (|sum_h W_h delta_h| / |residual stream after l|)^2, delta = o' - o, L = the model's layers; an empirical form (analysis/studies/fidelity.md); norms are estimated from 64 random projections; over the recorded layers, where all of them hold output_proj and residual_norm and some are that deep",
       false, Level::trace},
      {"predicted_kl_layers", "nats", "second-order divergence, layers taken one by one",
       "sum over layers of 1/2 mean over samples r of (sum over heads of g_r.delta)^2, delta = o' - o, g_r = d log p(y_r) / d o of tokens y_r drawn from the full model's distribution; where the layers hold sensitivity",
       false, Level::trace},
      {"predicted_kl_quadratic", "nats", "second-order divergence", "1/2 mean over samples r of (sum over layers and heads of g_r.delta)^2", false, Level::trace},
      {"predicted_kl_saturated", "nats", "second-order divergence, large values compressed", "log(1 + predicted_kl_quadratic)", false, Level::trace},
      {"predicted_kl_linear", "nats", "first-order change of the log-likelihood, either way", "mean over samples r of |sum over layers and heads of g_r.delta|", false, Level::trace},
      {"projected_sum", "norm", "projected errors, absolute, added up over the layers", "sum over layers of |sum_h W_h delta_h|, estimated from 64 random projections (9 % per layer and step); where they hold output_proj and residual_norm", false,
       Level::trace},
      {"residual_error", "relative", "projected errors against the residual stream, added up over the layers",
       "sum over layers of |sum_h W_h delta_h| / |residual stream after the layer|, norms estimated from 64 random projections; where they hold output_proj and residual_norm", false, Level::trace},
  };
  return metrics;
}

}  // namespace kvsim
