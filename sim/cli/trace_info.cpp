// kvsim trace info: what a trace holds, what it lacks, and what that means for policies.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "kernels/error.h"
#include "policies/registry.h"
#include "policies/stepwise/stepwise_registry.h"
#include "sim/cli/options.h"
#include "sim/cli/trace_commands.h"
#include "sim/stepwise/stepwise_unit.h"
#include "sim/unit.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim trace info TRACE...\n\n"
    "Shows the header of a trace: model, geometry, lengths, digest, the layers with their sizes, segments, "
    "lookaheads and\n"
    "branches, what is recorded and what is missing, and the policies that cannot run on it (with their "
    "defaults) and why.\n\n"
    "example:\n"
    "  kvsim trace info t.h5\n\n";

constexpr const char* kRopeNames[] = {"none", "half", "interleaved"};

void line(const char* name, const std::string& value) {
  if (!value.empty()) fmt::print("  {:<14} {}\n", name, value);
}

void print_header(const TraceInfo& t) {
  line("model", t.model);
  line("weights", t.weights);
  line("source", t.source);
  line("recorded", t.created.empty() ? t.recorder : t.recorder + ", " + t.created);
  line("geometry", fmt::format("{} of {} layers; {} query heads on {} KV heads; head size {}, value size {}",
                               t.layers.size(), t.num_layers, t.num_query_heads, t.num_kv_heads, t.head_dim,
                               t.value_dim));
  line("lengths", fmt::format("{} prompt + {} decode = {} tokens", t.prompt_len, t.decode_len, t.tokens()));
  line("elements", std::string(name_of(t.dtype)));
  line("rotary", kRopeNames[static_cast<std::size_t>(t.rope_layout)]);
  line("digest", t.digest.empty() ? "none" : t.digest);
  line("file size", human_bytes(t.file_bytes));
}

std::string queries_text(const TraceInfo& trace, const LayerInfo& layer) {
  const std::size_t prompt = layer.prompt_queries(trace.prompt_len);
  return prompt >= trace.prompt_len ? "all" : fmt::format("last {}", prompt);
}

void print_layers(const TraceInfo& t) {
  fmt::print("\n  {:>5}  {:>10}  {:>8}  {:>10}  {:>9}  {:>7}  {}\n", "layer", "size", "window", "scale",
             "soft cap", "queries", "also holds");
  for (const LayerInfo& layer : t.layers) {
    std::vector<std::string> extras;
    const auto note = [&extras](bool has, const char* name) {
      if (has) extras.emplace_back(name);
    };
    note(layer.has_attention, "attention");
    note(layer.has_output_proj, "output_proj");
    note(layer.has_hidden, "hidden");
    note(layer.has_retention, "retention");
    note(layer.has_query_stats, "query_stats");
    if (layer.sensitivity_samples > 0) extras.push_back(fmt::format("sensitivity({} samples)", layer.sensitivity_samples));
    note(!layer.residual_norm.empty(), "residual_norm");
    if (!layer.attention_stats.empty()) {
      extras.push_back(fmt::format("attention_stats({})", fmt::join(layer.attention_stats, ",")));
    }
    if (!layer.second_pass.empty())
      extras.push_back(fmt::format("second_pass({})", fmt::join(layer.second_pass, ",")));
    fmt::print("  {:>5}  {:>10}  {:>8}  {:>10.6g}  {:>9}  {:>7}  {}\n", layer.index, human_bytes(layer.bytes),
               layer.sliding_window == 0 ? "full" : std::to_string(layer.sliding_window), layer.softmax_scale,
               layer.logit_softcap == 0.0 ? "none" : fmt::format("{:g}", layer.logit_softcap),
               queries_text(t, layer), fmt::join(extras, " "));
  }
}

void print_tables(const TraceInfo& t) {
  std::map<std::string, std::pair<std::size_t, std::uint64_t>> kinds;
  for (const Segment& segment : t.segments) {
    ++kinds[segment.kind].first;
    kinds[segment.kind].second += segment.end - segment.begin;
  }
  fmt::print("\n");
  if (t.final_hidden_size > 0) line("final_hidden", fmt::format("{} numbers per token", t.final_hidden_size));
  for (const auto& [kind, counts] : kinds) {
    line("segments", fmt::format("{} x {}, {} tokens", counts.first, kind, counts.second));
  }
  for (const LookaheadInfo& one : t.lookaheads) {
    line("lookahead", fmt::format("{}: {} with capacity {} and window {}, {} pseudo tokens{}{}", one.name,
                                  one.method, one.capacity, one.window, one.tokens,
                                  one.stopped_at_eos ? ", stopped at the end of text" : "",
                                  one.cache_bytes > 0 ? ", cache of " + human_bytes(one.cache_bytes) : ""));
  }
  if (!t.second_pass_run.method.empty()) {
    line("second pass", fmt::format("{}: {} tokens in {} pieces", t.second_pass_run.method,
                                    t.second_pass_run.tokens, t.second_pass_run.pieces));
  }
  for (const BranchInfo& one : t.branches) {
    line("branch", fmt::format("{}: continues {} at token {}, {} + {} tokens", one.name,
                               one.parent.empty() ? "the main sequence" : one.parent, one.fork_position,
                               one.prompt_len, one.decode_len));
  }
}

template <typename Has>
std::size_t layers_with(const TraceInfo& t, const Has& has) {
  return static_cast<std::size_t>(std::count_if(t.layers.begin(), t.layers.end(), has));
}

/// One line per thing that some part of the program asks for.
void print_lacks(const TraceInfo& t) {
  const auto say = [&](std::size_t count, const char* what, const char* meaning) {
    if (count == t.layers.size()) return;
    line(count == 0 ? "lacks" : "partly lacks",
         fmt::format("{}{}: {}", what,
                     count == 0 ? "" : fmt::format(" ({} of {} layers hold it)", count, t.layers.size()),
                     meaning));
  };
  fmt::print("\n");
  say(layers_with(t, [&](const LayerInfo& l) { return l.prompt_queries(t.prompt_len) >= t.prompt_len; }),
      "queries of the whole prompt", "windows are limited to what is recorded (--queries all)");
  say(layers_with(t, [](const LayerInfo& l) { return !l.attention_stats.empty(); }), "attention_stats",
      "accumulated-attention policies need them or all queries (--stats)");
  say(layers_with(t, [](const LayerInfo& l) { return l.has_query_stats; }), "query_stats",
      "expected-attention policies need them or all queries (--stats)");
  say(layers_with(t, [](const LayerInfo& l) { return l.has_output_proj; }), "output_proj",
      "projected_error is undefined there (--output-proj)");
  say(layers_with(t, [](const LayerInfo& l) { return !l.residual_norm.empty(); }), "residual_norm",
      "predicted_kl is undefined (--output-proj)");
  say(layers_with(t, [](const LayerInfo& l) { return l.sensitivity_samples > 0; }), "sensitivity",
      "the predictions by sensitivities are undefined (--sensitivity 8)");
  say(layers_with(t, [](const LayerInfo& l) { return l.has_hidden; }), "hidden",
      "gates can be computed only while recording (--hidden)");
  say(layers_with(t, [](const LayerInfo& l) { return l.has_retention; }), "retention",
      "policies with trained gates need it (--retention-gates FILE)");
  say(layers_with(t, [](const LayerInfo& l) { return l.has_attention; }), "attention",
      "trace check cannot compare recorded with recomputed attention (--attention)");
  say(layers_with(t, [](const LayerInfo& l) { return !l.second_pass.empty(); }), "second_pass",
      "policies that reconstruct the prompt need it (--second-pass repeat)");
  if (t.lookaheads.empty())
    line("lacks", "lookahead: policies with pseudo queries need a first pass (--lookahead 8)");
  if (t.final_hidden_size == 0) {
    line("lacks", "final_hidden: policies that compare sentences need it (--final-hidden)");
  }
  if (t.token_text.empty()) line("lacks", "token texts: policies that work on sentences need them");
  if (std::none_of(t.segments.begin(), t.segments.end(),
                   [](const Segment& s) { return s.kind == "evidence"; })) {
    line("lacks", "segments of kind evidence: evidence_recall is undefined (--evidence TEXT)");
  }
}

/// The first reason why a policy cannot run on some layer; empty when it can run on all.
template <typename Missing>
std::string first_missing(const TraceInfo& t, const Missing& missing) {
  for (const LayerInfo& layer : t.layers) {
    std::string text = missing(layer);
    if (!text.empty()) return text;
  }
  return {};
}

void print_refused(const TraceInfo& t) {
  bool any = false;
  const auto say = [&any](const std::string& name, const std::string& missing) {
    if (missing.empty()) return;
    line("cannot run", fmt::format("{}: {}", name, missing));
    any = true;
  };
  for (const PolicyTraits* traits : all_policies()) {
    const std::unique_ptr<Policy> policy = make_policy(traits->name);
    say(std::string(traits->name),
        first_missing(t, [&](const LayerInfo& layer) { return missing_need(*policy, t, layer); }));
  }
  for (const StepTraits* traits : all_stepwise_policies()) {
    const std::unique_ptr<StepwisePolicy> policy = make_stepwise_policy(traits->name);
    say(fmt::format("{}{}", kDecodePrefix, traits->name),
        first_missing(t, [&](const LayerInfo& layer) { return missing_step_need(*policy, t, layer); }));
  }
  if (!any) line("policies", "every policy can run with its defaults");
}

}  // namespace

int trace_info_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("trace", po::value<std::vector<std::string>>(),
                                                    "traces to describe");
  po::positional_options_description positional;
  positional.add("trace", -1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("trace") == 0) throw UserError("kvsim trace info needs a trace to describe");
  for (const std::string& path : values["trace"].as<std::vector<std::string>>()) {
    const TraceReader reader = TraceReader::open(path);
    fmt::print("{}\n", path);
    print_header(reader.info());
    print_layers(reader.info());
    print_tables(reader.info());
    print_lacks(reader.info());
    print_refused(reader.info());
  }
  return kDone;
}

}  // namespace kvsim
