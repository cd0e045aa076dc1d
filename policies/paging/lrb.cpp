// LRB: learned relaxed Belady; boosted trees guess the time to the next request of sampled residents.
#include <cmath>
#include <deque>
#include <optional>

#include "policies/paging/boosted_trees.h"
#include "policies/paging/reuse_features.h"
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_list.h"
#include "policies/paging/slot_set.h"

namespace kvsim {
namespace {

struct LrbOptions {
  std::uint32_t window = 0, batch = 8192, samples = 64, seed = 0;
  bool by_size = false;
};

class LrbRule final : public VictimRule {
 public:
  LrbRule(const CacheSetup& setup, const LrbOptions& options)
      : options_(options),
        window_(options.window > 0 ? options.window : default_window(setup)),
        random_(setup.random(RandomPurpose::sampling, options.seed)) {}

  void resize(std::size_t slots) override {
    list_.resize(slots);
    visible_.resize(slots);
    page_.resize(slots, 0);
    size_.resize(slots, 1);
  }
  void load(Slot slot, const PageRequest& r) override {
    page_[slot] = r.page;
    size_[slot] = static_cast<double>(r.size);
    list_.push_front(slot);
    visible_.add(slot);
    observe(r);
  }
  void hit(Slot slot, const PageRequest& r) override {
    list_.move_front(slot);
    observe(r);
  }
  void unload(Slot slot) override {
    list_.remove(slot);
    visible_.remove(slot);
  }
  Slot victim(const PageRequest& incoming) override {
    const Slot tail = list_.oldest_visible();
    if (!model_ || incoming.time - features_.last(page_[tail]) >= window_) return tail;
    const std::uint32_t draws = std::min(options_.samples, visible_.size());
    Slot best = kNoSlot;
    double best_value = 0;
    for (std::uint32_t i = 0; i < draws; ++i) {
      const Slot s = draws == visible_.size() ? visible_[i] : visible_.draw(*random_);
      double value = model_->predict(features_.row(page_[s], incoming.time));
      if (options_.by_size) value += std::log(size_[s]);  // argmax of time * size
      if (best == kNoSlot || value > best_value || (value == best_value && s < best)) {
        best = s;
        best_value = value;
      }
    }
    return best;
  }
  void hide(Slot slot) override {
    list_.hide(slot);
    visible_.remove(slot);
  }
  void show(Slot slot) override {
    list_.show(slot);
    visible_.add(slot);
  }

 private:
  struct Sample {
    Page page;
    std::uint64_t time;
    ReuseFeatures::Row row;
    bool open;
  };

  static std::uint64_t default_window(const CacheSetup& setup) {
    // Where pages have one size, so many requests that nobody keeps a page longer for nothing; by byte, the
    // paper's own.
    constexpr std::uint64_t kPaper = 67'108'864;
    return setup.by_bytes ? kPaper : std::max<std::uint64_t>(1024, 8 * setup.capacity);
  }

  /// Answers the open samples of the page, notes the request, and opens one sample of a random resident.
  void observe(const PageRequest& r) {
    features_.grow(r.page + 1);
    open_.grow(r.page + 1);
    for (const std::uint64_t number : open_[r.page])
      close(number, static_cast<double>(r.time - sample(number).time));
    open_[r.page].clear();
    while (!samples_.empty() && (!samples_.front().open || r.time - samples_.front().time >= window_))
      expire();
    features_.request(r.page, r.time, r.size);
    if (!visible_.empty()) {
      const Page page = page_[visible_.draw(*random_)];
      open_[page].push_back(first_ + samples_.size());
      samples_.push_back({page, r.time, features_.row(page, r.time), true});
    }
    if (targets_.size() >= options_.batch) train();
  }
  Sample& sample(std::uint64_t number) { return samples_[static_cast<std::size_t>(number - first_)]; }
  void close(std::uint64_t number, double gap) {
    Sample& s = sample(number);
    s.open = false;
    rows_.insert(rows_.end(), s.row.begin(), s.row.end());
    targets_.push_back(static_cast<float>(std::log1p(gap)));
  }
  void expire() {
    Sample& s = samples_.front();
    if (s.open) {
      std::erase(open_[s.page], first_);
      close(first_, 2.0 * static_cast<double>(window_));
    }
    samples_.pop_front();
    ++first_;
  }
  void train() {
    const MatrixView<const float> view{rows_.data(), targets_.size(), ReuseFeatures::kCount,
                                       ReuseFeatures::kCount};
    model_ = BoostedTrees::fit(view, targets_, {}, *random_);
    rows_.clear();
    targets_.clear();
  }

  LrbOptions options_;
  std::uint64_t window_;
  std::unique_ptr<RandomSource> random_;
  SlotList list_;
  SlotSet visible_;
  std::vector<Page> page_;
  std::vector<double> size_;
  ReuseFeatures features_;
  PageMap<std::vector<std::uint64_t>> open_;  // numbers of a page's unanswered samples
  std::deque<Sample> samples_;
  std::uint64_t first_ = 0;  // number of samples_.front()
  std::vector<float> rows_, targets_;
  std::optional<BoostedTrees> model_;
};

struct Lrb final : RulePolicy<Lrb, LrbRule> {
  static constexpr PageTraits kTraits{
      .name = "lrb",
      .summary =
          "boosted trees guess the time to the next request; the farthest of a sample of residents leaves",
      .reference = "Song et al., NSDI 2020 (LRB), with trees of our own and 10 instead of 31 gaps",
      .guardable = true,
      .randomised = true};
  LrbOptions options;
  void fields(FieldVisitor& visitor) override {
    visitor.number("window", options.window, 0, 0xFFFFFFFFu,
                   "requests after which a page counts as gone; 0 = 8 * capacity");
    visitor.number("batch", options.batch, 64, 1u << 24, "labels per training");
    visitor.number("samples", options.samples, 1, 1u << 20, "residents looked at per eviction");
    visitor.flag("by_size", options.by_size, "weigh the time with the size (fewest object misses)");
    visitor.number("seed", options.seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  LrbRule make_rule(const CacheSetup& setup) const { return LrbRule(setup, options); }
};

const RegisterPagePolicy<Lrb> registered;

}  // namespace
}  // namespace kvsim
