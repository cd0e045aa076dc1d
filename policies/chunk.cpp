// Chunk: every chunk of the prompt is scored by itself and gives up the same share of its tokens.
//
// kvpress ChunkPress (after FINCH, doi 10.1162/tacl_a_00716): the inner policy sees one chunk as if it were
// the whole prompt and keeps max(1, floor(length * budget / T)) of it; what the inner policy protects is
// protected in every chunk. Tokens are ranked by the smallest budget that keeps them, which gives just these
// sets at every budget. Deviation: only policies that read keys and values can look at one chunk alone;
// kvpress also feeds window queries of the whole prompt to each chunk.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/error.h"
#include "policies/key_value_features.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "chunk",
    .summary = "scores every chunk of the prompt by itself, the same share of each",
    .reference = "kvpress ChunkPress, after doi 10.1162/tacl_a_00716",
    .accounting =
        "max(1, floor(length * budget / T)) tokens of every chunk: up to one token per chunk below the "
        "budget, and never less than one token per chunk"};

struct Chunk final : ScoreWrapper {
  std::uint32_t length_ = 1024;

  Chunk() : ScoreWrapper(kTraits, "keydiff") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.number("length", length_, 1, std::numeric_limits<std::uint32_t>::max(), "tokens of a chunk");
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    if (!scores_keys_and_values(*score_)) {
      throw UserError(
          "chunk(score={}): only policies that score by keys, values or positions of a KV head can score a "
          "chunk by itself",
          score_->traits().name);
    }
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t tokens = head.geometry().prompt;
    out[0].score.assign(tokens, 0.0f);
    for (std::size_t begin = 0; begin < tokens; begin += length_) {
      const std::size_t length = std::min<std::size_t>(length_, tokens - begin);
      const KeyValueFeatures chunk(head, begin, length, score_->needs());
      LayerScores scores{Unit::kv, std::vector<UnitScores>(1)};
      score_->score(chunk, scores.units);
      const LayerRanking ranking = rank_layer(*score_, chunk.geometry(), std::move(scores));
      for (std::size_t rank = 0; rank < length; ++rank) {
        out[0].score[begin + ranking.order[0][rank]] = -static_cast<float>(entry(rank, length, tokens));
      }
    }
  }
  void join(const LayerGeometry&, LayerScores&) const override {}

  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    for (std::size_t u = 0; u < kept.size(); ++u) {
      const auto& order = ranking.order[u];
      const auto& score = ranking.scores.units[u].score;
      const auto limit = -static_cast<float>(std::min<std::size_t>(budget, layer.prompt));
      const auto end =
          std::partition_point(order.begin(), order.end(), [&](TokenIndex t) { return score[t] >= limit; });
      kept[u] = static_cast<std::uint32_t>(end - order.begin());
    }
  }

 private:
  /// The smallest budget that keeps the token of this rank in a chunk of this length. Exact in float below
  /// 2^24 tokens.
  static std::size_t entry(std::size_t rank, std::size_t length, std::size_t tokens) {
    return rank == 0 ? 0 : ((rank + 1) * tokens + length - 1) / length;
  }
};

const RegisterPolicy<Chunk> registered{kTraits};

}  // namespace
}  // namespace kvsim
