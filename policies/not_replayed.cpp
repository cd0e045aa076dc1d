// Published methods that kvsim does not replay as prompt-time policies, each with its reason.
#include "policies/not_replayed.h"

#include <array>

namespace kvsim {

std::span<const NotReplayed> not_replayed() {
  static constexpr std::array kAll{
      NotReplayed{"composed", "kvpress ComposedPress",
                  "a second policy would have to see the model run on what the first one left; wrappers "
                  "cover the pairs in use"},
      NotReplayed{"entropy_gated_chunkkv", "kvpress EntropyGatedChunkKVPress",
                  "its formula is known from a discussion only; chunkkv is what it starts from"},
      NotReplayed{"gear", "arXiv:2403.05527",
                  "quantises and repairs entries, drops none: kept sets say nothing about it"},
      NotReplayed{"headkv", "arXiv:2410.19258; KVCache-Factory",
                  "head budgets come from retrieval scores of a separate benchmark run, in a file format of "
                  "its own; ada moves "
                  "budget between heads by the trace"},
      NotReplayed{"kivi", "arXiv:2402.02750",
                  "quantises all entries, drops none: kept sets say nothing about it"},
      NotReplayed{"kvgrad", "kvpress KVgradPress", "needs gradients of the model, which no recording holds"},
      NotReplayed{"kvquant", "arXiv:2401.18079",
                  "quantises all entries, drops none: kept sets say nothing about it"},
      NotReplayed{"less", "arXiv:2402.09398",
                  "learned low-rank states take the place of what is evicted: needs its trained kernels"},
      NotReplayed{"look_m", "arXiv:2406.18139; merges of KVCache-Factory",
                  "changes keys of kept tokens by those of dropped ones, in the model's own cache: later "
                  "keys would differ too"},
      NotReplayed{"minference", "arXiv:2407.02490",
                  "makes the prefill sparse and keeps the whole cache: nothing is evicted"},
      NotReplayed{"minicache", "arXiv:2405.14366",
                  "merges entries of adjacent layers: no token leaves a layer"},
      NotReplayed{"quest", "arXiv:2406.10774",
                  "fetches pages for every step and evicts nothing: see 'kvsim pages'"},
      NotReplayed{
          "restorekv", "arXiv:2608.01247",
          "appends entries that an adapted model computes from trained embeddings: the model must run"},
      NotReplayed{"skipkv_steering", "arXiv:2512.07993",
                  "steers the hidden states while decoding, so that another text is written: a recording has "
                  "one text"},
      NotReplayed{"zigzagkv", "kvpress discussion of layer budgets by attention entropy",
                  "closed there without published experiments; PyramidKV's layer budgets are what it was "
                  "compared with"},
  };
  return kAll;
}

}  // namespace kvsim
