// W-TinyLFU: a small LRU window, and a main cache that admits only pages requested more often than its own
// victim.
#include <algorithm>
#include <array>
#include <bit>

#include "policies/paging/page_lists.h"
#include "policies/paging/plain_policy.h"

namespace kvsim {
namespace {

/// Approximate counts of recent requests: four rows of 8-bit counters with conservative update, halved from
/// time to time.
class FrequencySketch {
 public:
  explicit FrequencySketch(std::uint64_t pages)
      : width_(std::bit_ceil(std::max<std::uint64_t>(64, std::min<std::uint64_t>(pages, 1u << 26) * 4))),
        counters_(kRows * width_, 0) {}
  std::uint32_t estimate(Page page) const {
    std::uint8_t least = 255;
    for (std::size_t r = 0; r < kRows; ++r) least = std::min(least, counters_[place(page, r)]);
    return least;
  }
  void add(Page page) {
    const std::uint32_t count = estimate(page);
    if (count == 255) return;
    for (std::size_t r = 0; r < kRows; ++r) {
      std::uint8_t& c = counters_[place(page, r)];
      if (c == count) ++c;
    }
  }
  void halve() {
    for (std::uint8_t& c : counters_) c /= 2;
  }

 private:
  static constexpr std::size_t kRows = 4;
  std::size_t place(Page page, std::size_t row) const {
    return row * width_ + (stream_of(page, row) & (width_ - 1));
  }
  std::uint64_t width_;
  std::vector<std::uint8_t> counters_;
};

class TinyLfuCache final : public RequestLoop<TinyLfuCache> {
 public:
  TinyLfuCache(const CacheSetup& setup, double window_share)
      : RequestLoop(setup),
        window_capacity_(share_of(setup.capacity, window_share)),
        main_capacity_(setup.capacity - std::min(setup.capacity, window_capacity_)),
        protected_capacity_(main_capacity_ - main_capacity_ / 5),
        sketch_(setup.by_bytes ? kSketchPages : setup.capacity),
        main_pages_(setup.by_bytes ? kSketchPages : std::max<std::uint64_t>(1, main_capacity_)) {}
  bool contains(Page page) const override { return lists_.list_of(page) != lists_.kNoList; }
  void grow(Page limit) { lists_.grow(limit); }

  bool access(const PageRequest& request) {
    const std::size_t list = lists_.list_of(request.page);
    if (list == lists_.kNoList) {
      sketch_.add(request.page);
      if (request.size > window_capacity_ && request.size > main_capacity_) return false;
      lists_.push_front(kWindow, request.page, request.size);
      ++admitted_;
      admitted_bytes_ += request.size;
      while (lists_.size(kWindow) > window_capacity_) leave_window();
      return false;
    }
    if (list == kWindow) {
      lists_.move_front(kWindow, request.page);
    } else {
      hit_main(request.page);
    }
    return true;
  }

 private:
  enum : std::size_t { kWindow, kProbation, kProtected, kCount };
  static constexpr std::uint64_t kSketchPages = 1u << 20;  // by byte, the number of pages is not known before
  static constexpr std::uint64_t kHalveAfter = 32;         // times the main size, in main hits

  static std::uint64_t share_of(std::uint64_t capacity, double share) {
    return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(capacity) * share));
  }
  std::uint64_t main_used() const { return lists_.size(kProbation) + lists_.size(kProtected); }

  void hit_main(Page page) {
    sketch_.add(page);
    if (++main_hits_ == kHalveAfter * main_pages_) {
      sketch_.halve();
      main_hits_ = 0;
    }
    lists_.move_front(kProtected, page);
    while (lists_.size(kProtected) > protected_capacity_)
      lists_.move_front(kProbation, lists_.back(kProtected));
  }
  /// The window's oldest page enters the main cache if there is room or if it is wanted more than what must
  /// leave.
  void leave_window() {
    const Page page = lists_.back(kWindow);
    const std::uint64_t size = lists_.size_of(page);
    sketch_.add(page);
    if (size > main_capacity_) {
      drop(page);
      return;
    }
    while (main_used() + size > main_capacity_) {
      const Page victim = lists_.back(lists_.empty(kProbation) ? kProtected : kProbation);
      if (sketch_.estimate(page) <= sketch_.estimate(victim)) {
        drop(page);
        return;
      }
      drop(victim);
    }
    lists_.move_front(kProbation, page);
  }
  void drop(Page page) {
    lists_.remove(page);
    evicted_page_ = page;
    ++evicted_;
  }

  std::uint64_t window_capacity_, main_capacity_, protected_capacity_;
  PageLists<kCount> lists_;
  FrequencySketch sketch_;
  std::uint64_t main_pages_;
  std::uint64_t main_hits_ = 0;
};

struct TinyLfu final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = "tiny_lfu",
      .summary = "LRU window of 1% (at least a page); a segmented LRU that admits by approximate frequency",
      .reference =
          "Einziger et al., 2017 (W-TinyLFU); libCacheSim's moments of counting, a count-min sketch of our "
          "own",
      .guard_refusal = kQueuesRefusal};
  double window = 0.01;
  const PageTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.number("window", window, 0.0, 0.99, "share of the window, at least one page");
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<TinyLfuCache>(setup, window);
  }
};

const RegisterPagePolicy<TinyLfu> registered;

}  // namespace
}  // namespace kvsim
