// An intrusive doubly linked list over slots, newest at the front, with a scan from the back that skips
// hidden slots.
#pragma once

#include <vector>

#include "policies/paging/page_policy.h"

namespace kvsim {

/// The order of queue-like rules. Hidden slots keep their place. Everything behind `cursor_` is hidden until
/// a slot is shown again, so skipping costs O(1) amortised: a slot is passed once per time that it was hidden
/// or moved.
class SlotList {
 public:
  void resize(std::size_t slots) { links_.resize(slots, {kNoSlot, kNoSlot}); }
  bool empty() const { return front_ == kNoSlot; }
  Slot front() const { return front_; }
  Slot back() const { return back_; }
  /// Towards the front: the next newer slot.
  Slot newer(Slot s) const { return links_[s].newer; }
  Slot older(Slot s) const { return links_[s].older; }

  void push_front(Slot s) {
    links_[s] = {kNoSlot, front_};
    (front_ == kNoSlot ? back_ : links_[front_].newer) = s;
    front_ = s;
  }
  void push_back(Slot s) {
    cursor_ = kNoSlot;
    links_[s] = {back_, kNoSlot};
    (back_ == kNoSlot ? front_ : links_[back_].older) = s;
    back_ = s;
  }
  void remove(Slot s) {
    const Link link = links_[s];
    if (s == cursor_) cursor_ = link.newer;
    (link.newer == kNoSlot ? front_ : links_[link.newer].older) = link.older;
    (link.older == kNoSlot ? back_ : links_[link.older].newer) = link.newer;
  }
  void move_front(Slot s) {
    if (s == front_) return;
    remove(s);
    push_front(s);
  }

  void hide(Slot s) {
    if (hidden_.size() < links_.size()) hidden_.resize(links_.size(), 0);
    hidden_[s] = 1;
    ++hidden_count_;
    if (cursor_ == kNoSlot) cursor_ = back_;
  }
  void show(Slot s) {
    hidden_[s] = 0;
    --hidden_count_;
    cursor_ = kNoSlot;
  }
  bool is_hidden(Slot s) const { return hidden_count_ > 0 && s < hidden_.size() && hidden_[s] != 0; }
  /// The oldest visible slot; one must exist.
  Slot oldest_visible() {
    if (hidden_count_ == 0) return back_;
    if (cursor_ == kNoSlot) cursor_ = back_;
    while (is_hidden(cursor_)) cursor_ = links_[cursor_].newer;
    return cursor_;
  }
  void prefetch(Slot s) const { __builtin_prefetch(&links_[s]); }

 private:
  struct Link {
    Slot newer, older;
  };
  std::vector<Link> links_;
  std::vector<std::uint8_t> hidden_;
  std::size_t hidden_count_ = 0;
  Slot front_ = kNoSlot, back_ = kNoSlot, cursor_ = kNoSlot;
};

}  // namespace kvsim
