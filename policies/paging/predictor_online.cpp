// Predictors that learn from the past alone: POPU, history frequency; and a user's file.
#include <cmath>

#include "kernels/error.h"
#include "policies/paging/page_map.h"
#include "policies/paging/predictor.h"

namespace kvsim {
namespace {

class PopuRun final : public Prediction {
 public:
  double predict(const PageRequest& request) override {
    counts_.grow(request.page + 1);
    ++seen_;
    const double count = static_cast<double>(++counts_[request.page]);
    const double t = static_cast<double>(seen_);
    return t + t / count;
  }

 private:
  PageMap<std::uint64_t> counts_;
  std::uint64_t seen_ = 0;
};

struct Popu final : Predictor {
  static constexpr PredictorTraits kTraits{.name = "popu",
                                           .summary = "t + t / count of the page so far",
                                           .reference = "Antoniadis et al., 2020 (POPU)",
                                           .kind = PredictionKind::next_use};
  const PredictorTraits& traits() const override { return kTraits; }
  std::unique_ptr<Prediction> start(const CacheSetup&) const override { return std::make_unique<PopuRun>(); }
};

/// The request rate of a page as a moving average with a half-life; the next use is one mean gap away.
class HistoryRun final : public Prediction {
 public:
  explicit HistoryRun(double half_life) : decay_(std::exp2(-1.0 / half_life)) {}
  double predict(const PageRequest& request) override {
    state_.grow(request.page + 1);
    State& s = state_[request.page];
    const double gap = static_cast<double>(request.time - s.last);
    s.rate = s.rate * std::pow(decay_, s.seen ? gap : 0.0) + (1.0 - decay_);
    s.seen = true;
    s.last = request.time;
    return static_cast<double>(request.time) + 1.0 / s.rate;
  }

 private:
  struct State {
    double rate = 0;
    std::uint64_t last = 0;
    bool seen = false;
  };
  double decay_;
  PageMap<State> state_;
};

struct History final : Predictor {
  static constexpr PredictorTraits kTraits{.name = "history",
                                           .summary = "time + 1 / moving average of the page's request rate",
                                           .reference = "own; POPU with forgetting",
                                           .kind = PredictionKind::next_use};
  double half_life = 64;
  const PredictorTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.number("half_life", half_life, 1.0, 1e12, "of the moving average, in requests or steps");
  }
  std::unique_ptr<Prediction> start(const CacheSetup&) const override {
    return std::make_unique<HistoryRun>(half_life);
  }
};

class FileRun final : public Prediction {
 public:
  FileRun(std::span<const double> numbers, std::string path) : numbers_(numbers), path_(std::move(path)) {}
  double predict(const PageRequest&) override {
    if (at_ == numbers_.size()) {
      throw UserError("{}: {} predictions, but the stream has more requests; give one number per request",
                      path_, numbers_.size());
    }
    return numbers_[at_++];
  }

 private:
  std::span<const double> numbers_;
  std::string path_;
  std::size_t at_ = 0;
};

/// One class for both kinds: the file holds next uses or labels.
template <PredictionKind kKind>
struct FromFile final : Predictor {
  static constexpr bool kLabel = kKind == PredictionKind::label;
  static constexpr PredictorTraits kTraits{.name = kLabel ? "file_label" : "file",
                                           .summary = kLabel ? "a user's labels, one 0 or 1 per request"
                                                             : "a user's next uses, one number per request",
                                           .reference = "",
                                           .kind = kKind};
  std::string path;
  const PredictorTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.text("path", path, "text file with one number per request");
  }
  void prepare() override {
    if (path.empty())
      throw UserError("{}: path is missing, write {}(path=\"...\")", kTraits.name, kTraits.name);
  }
  std::unique_ptr<Prediction> start(const CacheSetup& setup) const override {
    if (!setup.numbers) throw UserError("{}: no files can be read here", kTraits.name);
    return std::make_unique<FileRun>(setup.numbers(path), path);
  }
};

/// Scores that residents have at every step: attention mass of the step, its moving average, or a lookahead's
/// mean.
class AttentionRun final : public Prediction {
 public:
  AttentionRun(const AttentionScores& scores, std::size_t source, double half_life) : scores_(scores) {
    if (source == 2) {
      const auto& rows = scores.lookahead;
      fixed_.assign(scores.mass.cols, 0.0);
      for (std::size_t r = 0; r < rows.rows; ++r) {
        for (std::size_t p = 0; p < rows.cols; ++p) fixed_[p] += static_cast<double>(rows(r, p));
      }
      return;
    }
    const double decay = source == 0 ? 0.0 : std::exp2(-1.0 / half_life);
    average_ = Matrix<float>(scores.mass.rows, scores.mass.cols);
    for (std::size_t p = 0; p < scores.mass.cols; ++p) {
      double value = 0;
      for (std::size_t s = 0; s < scores.mass.rows; ++s) {
        value = decay * value + (1.0 - decay) * static_cast<double>(scores.mass(s, p));
        average_(s, p) = static_cast<float>(value);
      }
    }
  }
  double predict(const PageRequest& request) override { return score(request.page, request.time); }
  double score(Page page, std::uint64_t time) const override {
    if (!fixed_.empty()) return fixed_[page];
    // At a step only the attention of earlier queries is known.
    const std::size_t row = scores_.first_step + static_cast<std::size_t>(time);
    return row == 0 ? 0.0 : static_cast<double>(average_(row - 1, page));
  }
  std::uint64_t score_epoch(std::uint64_t time) const override { return fixed_.empty() ? time : 0; }

 private:
  const AttentionScores& scores_;
  Matrix<float> average_;
  std::vector<double> fixed_;
};

struct Attention final : Predictor {
  static constexpr PredictorTraits kTraits{
      .name = "attention",
      .summary =
          "the page's attention mass: of the last step, its moving average, or of a lookahead's pseudo "
          "queries",
      .reference = "own (no perfect limit: robustness holds, 1-consistency does not)",
      .kind = PredictionKind::score,
      .attention = true};
  static constexpr std::string_view kSources[] = {"last", "average", "lookahead"};
  std::size_t source = 1;
  double half_life = 16;
  const PredictorTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.choice("source", source, kSources, "which attention");
    visitor.number("half_life", half_life, 0.1, 1e9, "of the moving average, in steps");
  }
  std::unique_ptr<Prediction> start(const CacheSetup& setup) const override {
    if (source == 2 && setup.attention->lookahead.empty()) {
      throw UserError("attention(source=lookahead): the recording has no lookahead");
    }
    return std::make_unique<AttentionRun>(*setup.attention, source, half_life);
  }
};

const RegisterPredictor<Popu> registered_popu;
const RegisterPredictor<History> registered_history;
const RegisterPredictor<FromFile<PredictionKind::next_use>> registered_file;
const RegisterPredictor<FromFile<PredictionKind::label>> registered_file_label;
const RegisterPredictor<Attention> registered_attention;

}  // namespace
}  // namespace kvsim
