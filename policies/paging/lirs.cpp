// LIRS: pages with short gaps between uses (LIR) hold the cache, the others (HIR) pass through a small part
// of it.
#include <algorithm>

#include "policies/paging/page_lists.h"
#include "policies/paging/plain_policy.h"

namespace kvsim {
namespace {

/// Stack S holds LIR pages, resident HIR pages and ghosts by recency; queue Q the resident HIR pages.
class LirsCache final : public RequestLoop<LirsCache> {
 public:
  LirsCache(const CacheSetup& setup, double hir_share)
      : RequestLoop(setup),
        hir_capacity_(std::max<std::uint64_t>(
            1, static_cast<std::uint64_t>(static_cast<double>(capacity_) * hir_share))),
        lir_capacity_(capacity_ - std::min(capacity_, hir_capacity_)) {}
  bool contains(Page page) const override {
    const Kind kind = kind_.find(page);
    return kind == Kind::lir || kind == Kind::hir;
  }
  void grow(Page limit) {
    stack_.grow(limit);
    queue_.grow(limit);
    ghosts_.grow(limit);
    kind_.grow(limit);
  }

  bool access(const PageRequest& request) {
    const Page page = request.page;
    if (kind_[page] == Kind::lir) {
      stack_.move_front(0, page);
      prune();
      return true;
    }
    if (kind_[page] == Kind::hir) {
      if (in_stack(page)) {
        queue_.remove(page);
        promote(page);
      } else {
        stack_.push_front(0, page, 1);
        queue_.move_front(0, page);
        limit_stack();
      }
      return true;
    }
    miss(page);
    return false;
  }

 private:
  enum class Kind : std::uint8_t { none, lir, hir, ghost };
  bool in_stack(Page page) const { return stack_.list_of(page) != stack_.kNoList; }

  void miss(Page page) {
    if (lirs_ + queue_.count(0) == capacity_) evict();
    ++admitted_;
    ++admitted_bytes_;
    if (kind_[page] == Kind::ghost) {
      ghosts_.remove(page);
      promote(page);
    } else if (lirs_ < lir_capacity_) {
      kind_[page] = Kind::lir;
      ++lirs_;
      stack_.push_front(0, page, 1);
    } else {
      kind_[page] = Kind::hir;
      stack_.push_front(0, page, 1);
      queue_.push_front(0, page, 1);
      limit_stack();
    }
  }
  /// A page of the stack that was used again becomes LIR; the LIR page at the bottom makes room.
  void promote(Page page) {
    kind_[page] = Kind::lir;
    ++lirs_;
    stack_.move_front(0, page);
    prune();
    if (lirs_ <= lir_capacity_) return;
    const Page bottom = stack_.back(0);
    kind_[bottom] = Kind::hir;
    --lirs_;
    stack_.remove(bottom);
    queue_.push_front(0, bottom, 1);
    prune();
  }
  void evict() {
    const Page page = queue_.back(0);
    queue_.remove(page);
    kind_[page] = in_stack(page) ? Kind::ghost : Kind::none;
    if (kind_[page] == Kind::ghost) ghosts_.push_front(0, page, 1);
    evicted_page_ = page;
    ++evicted_;
  }
  /// The bottom of the stack is always a LIR page.
  void prune() {
    while (!stack_.empty(0) && kind_[stack_.back(0)] != Kind::lir) leave_stack(stack_.back(0));
  }
  void limit_stack() {
    while (stack_.count(0) > 2 * capacity_ && !ghosts_.empty(0)) leave_stack(ghosts_.back(0));
  }
  void leave_stack(Page page) {
    stack_.remove(page);
    if (kind_[page] != Kind::ghost) return;
    ghosts_.remove(page);
    kind_[page] = Kind::none;
  }

  std::uint64_t hir_capacity_, lir_capacity_;
  std::uint64_t lirs_ = 0;
  PageLists<1> stack_, queue_, ghosts_;
  PageMap<Kind> kind_{Kind::none};
};

struct Lirs final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = "lirs",
      .summary = "pages with short gaps between uses hold the cache; the others pass through 1% of it",
      .reference = "Jiang and Zhang, SIGMETRICS 2002; stack limited to twice the cache",
      .guard_refusal = kQueuesRefusal,
      .unit_only = true};
  double hir = 0.01;
  const PageTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.number("hir", hir, 0.0, 0.99, "share of resident HIR pages, at least one page");
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<LirsCache>(setup, hir);
  }
};

const RegisterPagePolicy<Lirs> registered;

}  // namespace
}  // namespace kvsim
