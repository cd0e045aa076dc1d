// SkipKV: R-KV, and whole sentences that a later one repeats go first.
//
// arXiv:2512.07993. Sentences end at a token out of a fixed set of delimiters. A sentence is the mean of its tokens' final hidden
// states, normalised; when a later sentence is more similar to it than the threshold, the earlier one is marked with that
// similarity (the latest mark stays), which is subtracted from the R-KV score of its surviving tokens wherever two or more of
// them survive. similarity=tokens, for recordings without final hidden states, takes the overlap of the token ids instead
// (2 x shared tokens / tokens of both, with multiplicity); it is a stand-in of our own. Not replayed: the steering towards
// shorter texts, and what padding does in a batch.
#include <algorithm>
#include <cmath>
#include <map>

#include "policies/stepwise/r_kv_score.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "skipkv",
                             .summary = "r_kv, and sentences that a later one repeats go first",
                             .reference = "arXiv:2512.07993; the authors' code",
                             .accounting = "capacity tokens per KV head, the window included"};
constexpr std::string_view kSimilarityChoices[] = {"hidden", "tokens"};
constexpr std::string_view kDelimiters[] = {"\n", "\n\n", ".", ".\n", ".\n\n", ")\n\n", "?\n\n"};

/// Complete sentences so far, and which of them a later one repeats.
class Sentences {
 public:
  /// Takes in the tokens up to `seen`.
  void read(const StepInputs& inputs, std::size_t seen, double threshold, bool by_hidden) {
    for (; next_ < seen; ++next_) {
      if (std::find(std::begin(kDelimiters), std::end(kDelimiters), inputs.token_text[next_]) == std::end(kDelimiters)) continue;
      add(inputs, static_cast<TokenIndex>(next_ + 1), threshold, by_hidden);
    }
  }
  struct Marked {
    TokenIndex begin, end;
    double similarity;
  };
  std::vector<Marked> marked() const {
    std::vector<Marked> out;
    for (const Sentence& s : sentences_)
      if (s.mark > 0) out.push_back({s.begin, s.end, s.mark});
    return out;
  }

 private:
  struct Sentence {
    TokenIndex begin = 0, end = 0;
    double mark = 0;
    std::vector<double> direction;           // of the mean final hidden state
    std::map<std::int32_t, std::uint32_t> tokens;  // id -> how often
  };

  void add(const StepInputs& inputs, TokenIndex end, double threshold, bool by_hidden) {
    Sentence now;
    now.begin = begin_;
    now.end = end;
    begin_ = end;
    if (by_hidden) {
      now.direction = direction(inputs.final_hidden, now.begin, now.end);
    } else {
      for (TokenIndex t = now.begin; t < now.end; ++t) ++now.tokens[inputs.token_id[t]];
    }
    for (Sentence& earlier : sentences_) {
      const double similar = by_hidden ? dot(earlier.direction, now.direction) : overlap(earlier, now);
      if (similar > threshold) earlier.mark = similar;
    }
    sentences_.push_back(std::move(now));
  }
  static std::vector<double> direction(MatrixView<const float> hidden, TokenIndex begin, TokenIndex end) {
    std::vector<double> sum(hidden.cols, 0.0);
    for (TokenIndex t = begin; t < end; ++t)
      for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += static_cast<double>(hidden(t, c));
    const double norm = std::sqrt(dot(sum, sum));
    if (norm > 0) {
      for (double& x : sum) x /= norm;
    }
    return sum;
  }
  static double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
    return sum;
  }
  static double overlap(const Sentence& a, const Sentence& b) {
    std::uint32_t shared = 0;
    for (const auto& [id, count] : a.tokens) {
      const auto found = b.tokens.find(id);
      if (found != b.tokens.end()) shared += std::min(count, found->second);
    }
    return 2.0 * shared / static_cast<double>((a.end - a.begin) + (b.end - b.begin));
  }

  std::vector<Sentence> sentences_;
  std::size_t next_ = 0;
  TokenIndex begin_ = 0;
};

struct Settings {
  RkvSettings r_kv;
  double repeats = 0.95;
  bool by_hidden = true;
};

/// One state for the caches of a layer: sentences are the same for all of them.
struct State final : Cloned<State> {
  State(const Settings& settings, const StepContext& context)
      : settings_(settings), layer_(context.geometry), inputs_(context.inputs), softcap_(context.logit_softcap), rings_(context.caches) {}

  void observe(std::span<const CacheView* const> caches) override {
    for (std::size_t i = 0; i < caches.size(); ++i) rings_[i].add(*caches[i], settings_.r_kv.window);
  }
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    sentences_.read(inputs_, caches[0]->positions().back() + std::size_t{1}, settings_.repeats, settings_.by_hidden);
    const std::vector<Sentences::Marked> marked = sentences_.marked();
    for (std::size_t i = 0; i < caches.size(); ++i) {
      std::vector<double> z = r_kv_score(settings_.r_kv, *caches[i], rings_[i], layer_, softcap_);
      const std::span<const TokenIndex> older = caches[i]->positions().first(z.size());
      for (const Sentences::Marked& sentence : marked) {
        const auto first = std::lower_bound(older.begin(), older.end(), sentence.begin);
        const auto last = std::lower_bound(first, older.end(), sentence.end);
        if (last - first < 2) continue;
        for (auto at = first; at != last; ++at) z[static_cast<std::size_t>(at - older.begin())] -= sentence.similarity;
      }
      keep_by_r_kv(settings_.r_kv, *caches[i], z, out[i]);
    }
  }
  void removed(std::size_t, std::span<const std::uint32_t>) override {}

 private:
  Settings settings_;
  LayerGeometry layer_;
  StepInputs inputs_;
  double softcap_;
  std::vector<QueryRing> rings_;  // [caches]
  Sentences sentences_;
};

struct SkipKv final : StepwisePolicy {
  Settings settings_;
  std::size_t similarity_ = 0;

  SkipKv() { schedule_.every = 128; }
  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    settings_.r_kv.fields(f);
    f.number("repeats", settings_.repeats, 0.0, 1.0, "a sentence repeats another above this similarity");
    f.choice("similarity", similarity_, kSimilarityChoices, "of sentences: by recorded final hidden states, or by the overlap of token ids");
    schedule_.fields(f);
    settings_.by_hidden = similarity_ == 0;
  }
  void prepare(Resources&) override { settings_.r_kv.check("decode:skipkv"); }
  StepNeed needs() const override {
    const StepNeed always = StepNeed::keys | StepNeed::queries | StepNeed::token_text;
    return similarity_ == 0 ? always | StepNeed::final_hidden : always;
  }
  std::uint32_t prompt_rows() const override { return settings_.r_kv.window; }
  bool joint() const override { return true; }
  bool due(const LayerGeometry& layer, std::size_t step) const override { return (layer.prompt + step) % schedule_.every == 0; }
  std::unique_ptr<StepState> start(const StepContext& context) const override {
    return std::make_unique<State>(settings_, context);
  }
};

const RegisterStepwisePolicy<SkipKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
