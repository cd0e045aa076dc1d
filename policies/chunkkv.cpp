// ChunkKV: keeps or drops whole chunks of consecutive tokens, the same ones in every head of a layer.
//
// Liu et al., arXiv:2502.00299, as in kvpress (ChunkKVPress): a chunk's score is the mean over its tokens of
// the sum over the KV heads; a shorter last chunk is averaged over its own length and counts as a chunk.
// Tokens that the inner policy protects carry the score M + 1, M the layer's largest, into that mean and are
// protected in no other way. A prompt shorter than one chunk is ranked by the inner policy itself.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/error.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "chunkkv",
    .summary = "keeps whole chunks of tokens, ranked by any score",
    .reference = "arXiv:2502.00299; kvpress ChunkKVPress",
    .accounting =
        "max(1, floor(chunks * budget / T)) whole chunks: resident tokens differ from the budget by up to a "
        "chunk, and never less than one chunk is kept"};

struct ChunkKv final : ScoreWrapper {
  std::uint32_t length_ = 20;

  ChunkKv() : ScoreWrapper(kTraits, "snapkv") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.number("length", length_, 1, std::numeric_limits<std::uint32_t>::max(), "tokens of a chunk");
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    if (score_->traits().order_by_budget) {
      throw UserError("chunkkv(score={}): whole chunks need one order for all budgets, e.g. of a first pass that is named",
                      score_->traits().name);
    }
    if (score_->unit() == Unit::query) {
      throw UserError("chunkkv adds the scores of KV heads: give its score policy unit=kv");
    }
  }
  Unit unit() const override { return Unit::kv; }

  void join(const LayerGeometry& layer, LayerScores& scores) const override {
    score_->join(layer, scores);
    if (layer.prompt < length_) return;
    for (std::size_t begin = 0; begin < layer.prompt; begin += length_) {
      const std::size_t end = std::min<std::size_t>(layer.prompt, begin + length_);
      double sum = 0;
      for (std::size_t t = begin; t < end; ++t) {
        for (const UnitScores& unit : scores.units) sum += static_cast<double>(unit.score[t]);
      }
      const auto mean = static_cast<float>(sum / static_cast<double>(end - begin));
      for (UnitScores& unit : scores.units) {
        std::fill(unit.score.begin() + static_cast<std::ptrdiff_t>(begin),
                  unit.score.begin() + static_cast<std::ptrdiff_t>(end), mean);
      }
    }
    for (UnitScores& unit : scores.units) unit.protected_tokens.clear();
  }

  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    score_->allocate(layer, ranking, budget, kept);
    if (layer.prompt < length_) return;
    const std::uint64_t chunks = (layer.prompt + length_ - 1) / length_;
    for (std::size_t u = 0; u < kept.size(); ++u) {
      std::uint64_t left = std::max<std::uint64_t>(1, chunks * kept[u] / layer.prompt);
      std::size_t tokens = 0;
      for (; left > 0; --left) {  // ranked token by token, a chunk's tokens stand together
        const std::size_t begin = ranking.order[u][tokens] / length_ * length_;
        tokens += std::min<std::size_t>(length_, layer.prompt - begin);
      }
      kept[u] = static_cast<std::uint32_t>(tokens);
    }
  }
};

const RegisterPolicy<ChunkKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
