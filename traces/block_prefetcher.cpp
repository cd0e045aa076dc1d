// Reading head blocks ahead on one thread.
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "kernels/error.h"
#include "traces/trace_reader.h"

namespace kvsim {

struct BlockPrefetcher::State {
  State(const TraceReader& source, std::vector<Item> items, BlockRequest what, std::size_t limit)
      : reader(source), order(std::move(items)), request(what), depth(limit) {}

  void read_all(const std::stop_token& stop) {
    try {
      for (const Item& item : order) {
        {
          std::unique_lock lock(mutex);
          if (!changed.wait(lock, stop, [this] { return waiting.size() < depth; })) return;
        }
        HeadBlock block = reader.read_head(item.layer_ordinal, item.kv_head, request);
        const std::scoped_lock lock(mutex);
        waiting.push_back(std::move(block));
        changed.notify_all();
      }
    } catch (...) {
      const std::scoped_lock lock(mutex);
      failure = std::current_exception();
      changed.notify_all();
    }
  }

  const TraceReader& reader;
  const std::vector<Item> order;
  const BlockRequest request;
  const std::size_t depth;
  std::size_t taken = 0;
  std::mutex mutex;
  std::condition_variable_any changed;
  std::deque<HeadBlock> waiting;
  std::exception_ptr failure;
  std::jthread thread;  // last: it stops before anything that it uses goes
};

BlockPrefetcher::BlockPrefetcher(const TraceReader& reader, std::vector<Item> order, BlockRequest request,
                                 std::size_t depth)
    : state_(std::make_unique<State>(reader, std::move(order), request, depth)) {
  KVSIM_CHECK(depth > 0, "a prefetcher of depth 0 would never read");
  state_->thread =
      std::jthread([state = state_.get()](const std::stop_token& stop) { state->read_all(stop); });
}

BlockPrefetcher::~BlockPrefetcher() = default;

HeadBlock BlockPrefetcher::next() {
  State& state = *state_;
  KVSIM_CHECK(state.taken < state.order.size(), "{} blocks were ordered, all are taken", state.order.size());
  std::unique_lock lock(state.mutex);
  state.changed.wait(lock, [&state] { return !state.waiting.empty() || state.failure; });
  if (state.waiting.empty()) std::rethrow_exception(state.failure);
  HeadBlock block = std::move(state.waiting.front());
  state.waiting.pop_front();
  ++state.taken;
  state.changed.notify_all();
  return block;
}

}  // namespace kvsim
