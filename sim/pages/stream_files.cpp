// Request files as page streams.
#include "sim/pages/stream_files.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "sim/pages/curves.h"
#include "sim/pages/interner.h"

namespace kvsim {
namespace {

/// Large enough that many caches, which serve a batch one after the other, seldom drive each other out of the
/// processor's caches; about 8 MiB.
constexpr std::size_t kReadAtOnce = 1u << 18;

}  // namespace

PageStream load_requests(const std::string& path, const RequestFileOptions& options, std::uint64_t most) {
  const std::unique_ptr<RequestReader> reader = open_requests(path, options);
  PageStream stream;
  stream.name = "file";
  stream.grouping = reader->has_groups() ? Grouping::prefix : Grouping::none;
  Interner interner;
  RequestBatch batch;
  std::uint64_t key = 0;
  while (reader->read(batch, kReadAtOnce)) {
    if (stream.pages.size() + batch.object.size() > most) {
      throw TooManyRequests("{}: more than {} requests do not fit into --memory; read it with --stream", path,
                            most);
    }
    for (const std::uint32_t start : batch.starts)
      stream.starts.push_back(static_cast<std::uint32_t>(stream.pages.size()) + start);
    for (const std::uint64_t object : batch.object) {
      stream.pages.push_back(interner.page_of(object));
      key = stream_of(key, object);
    }
    stream.sizes.insert(stream.sizes.end(), batch.size.begin(), batch.size.end());
  }
  stream.key = key;
  stream.unique = interner.count();
  return stream;
}

namespace {

/// The requests of one block that one group of objects takes, and what stays from block to block.
struct Group {
  Interner interner;
  std::vector<Page> pages;
  std::vector<std::uint64_t> sizes, next;
  std::uint64_t served = 0, first_touches = 0;

  void take(const RequestBatch& batch, std::size_t i, bool by_bytes, std::uint64_t warmup) {
    const Page before = interner.count();
    pages.push_back(interner.page_of(batch.object[i]));
    if (interner.count() != before && served + pages.size() > warmup) ++first_touches;
    if (by_bytes && !batch.size.empty()) sizes.push_back(batch.size[i]);
    if (!batch.next.empty()) next.push_back(batch.next[i]);
  }
  /// A sampled stream leaves requests out, so the file's own indices of next requests order it as its own
  /// would.
  RequestBlock block() const {
    RequestBlock out;
    out.first_time = served;
    out.pages = pages;
    out.sizes = sizes;
    out.next_use = next;
    out.page_limit = interner.count();
    return out;
  }
  void clear() {
    served += pages.size();
    pages.clear();
    sizes.clear();
    next.clear();
  }
};

}  // namespace

StreamFacts stream_requests(const std::string& path, const RequestFileOptions& file,
                            const ServeOptions& options, double rate, std::uint32_t group_count,
                            std::vector<StreamCell>& cells) {
  if (!(rate > 0) || rate * group_count > 1.0) {
    throw UserError("--sample {} does not fit: {} disjoint samples need a rate in (0, {}]", rate, group_count,
                    1.0 / group_count);
  }
  const std::unique_ptr<RequestReader> reader = open_requests(path, file);
  StreamFacts facts;
  facts.grouped = reader->has_groups();
  if (rate < 1.0 && facts.grouped)
    throw UserError("{}: requests of several blocks cannot be sampled by block", path);
  if (options.by_bytes && !reader->has_sizes())
    throw UserError("{}: --bytes needs sizes, and this {} file has none", path, to_text(reader->format()));
  const auto warmup = static_cast<std::uint64_t>(static_cast<double>(options.warmup) * rate);
  std::vector<std::unique_ptr<PageServer>> servers(cells.size());
  for (std::size_t i = 0; i < cells.size(); ++i) {
    CacheSetup setup;
    setup.capacity = std::max<std::uint64_t>(
        1, static_cast<std::uint64_t>(std::llround(rate * static_cast<double>(cells[i].capacity))));
    setup.by_bytes = options.by_bytes;
    setup.seed = options.seed;
    setup.knows_future = reader->has_next();
    setup.requests =
        1ull << 52;  // unknown: only "later than every next use" is read from it, exactly in a double
    setup.detail = options.detail;
    setup.numbers = options.numbers;
    try {
      servers[i] = std::make_unique<PageServer>(*cells[i].policy, setup,
                                                facts.grouped ? Grouping::prefix : Grouping::none, warmup);
    } catch (const UserError& e) {
      cells[i].failure = e.what();
    }
  }
  std::vector<Group> groups(group_count);
  RequestBatch batch;
  while (reader->read(batch, kReadAtOnce)) {
    for (std::size_t i = 0; i < batch.object.size(); ++i) {
      const std::uint32_t g = rate < 1.0 ? sample_group(batch.object[i], rate, group_count, options.seed) : 0;
      if (g < group_count) groups[g].take(batch, i, options.by_bytes, warmup);
    }
#pragma omp parallel for schedule(dynamic)
    for (std::size_t i = 0; i < cells.size(); ++i) {
      if (servers[i] == nullptr) continue;
      try {
        servers[i]->serve(groups[cells[i].group].block(), batch.starts);
      } catch (const std::exception& e) {
        cells[i].failure = e.what();
        servers[i] = nullptr;
      }
    }
    for (Group& group : groups) group.clear();
  }
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (servers[i] == nullptr) continue;
    cells[i].counts = servers[i]->finish();
    cells[i].counts.first_touches = groups[cells[i].group].first_touches;
  }
  for (const Group& group : groups) {
    facts.requests += group.served;
    facts.unique += group.interner.count();
  }
  return facts;
}

}  // namespace kvsim
