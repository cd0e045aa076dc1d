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

constexpr std::size_t kReadAtOnce = 1u << 16;

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
      throw UserError("{}: more than {} requests do not fit into --memory; read it with --stream", path, most);
    }
    for (const std::uint32_t start : batch.starts) stream.starts.push_back(static_cast<std::uint32_t>(stream.pages.size()) + start);
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

StreamFacts stream_requests(const std::string& path, const RequestFileOptions& file, const ServeOptions& options,
                            double rate, std::vector<StreamCell>& cells) {
  const std::unique_ptr<RequestReader> reader = open_requests(path, file);
  StreamFacts facts;
  facts.grouped = reader->has_groups();
  if (rate < 1.0 && facts.grouped) throw UserError("{}: requests of several blocks cannot be sampled by block", path);
  // A sampled stream leaves requests out, so the file's indices of next requests order it as well as its own would.
  std::vector<std::unique_ptr<PageServer>> servers(cells.size());
  for (std::size_t i = 0; i < cells.size(); ++i) {
    CacheSetup setup;
    setup.capacity = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(std::llround(rate * static_cast<double>(cells[i].capacity))));
    setup.by_bytes = options.by_bytes;
    setup.seed = options.seed;
    setup.knows_future = reader->has_next();
    setup.requests = 1ull << 62;  // unknown: only "later than all next uses" is read from it
    setup.detail = options.detail;
    setup.numbers = options.numbers;
    try {
      servers[i] = std::make_unique<PageServer>(*cells[i].policy, setup, facts.grouped ? Grouping::prefix : Grouping::none,
                                                static_cast<std::uint64_t>(static_cast<double>(options.warmup) * rate));
    } catch (const UserError& e) {
      cells[i].failure = e.what();
    }
  }
  Interner interner;
  RequestBatch batch;
  std::vector<Page> pages;
  std::vector<std::uint64_t> sizes, next;
  std::uint64_t first_touches = 0, served = 0;
  const auto warmup = static_cast<std::uint64_t>(static_cast<double>(options.warmup) * rate);
  while (reader->read(batch, kReadAtOnce)) {
    pages.clear();
    sizes.clear();
    next.clear();
    for (std::size_t i = 0; i < batch.object.size(); ++i) {
      if (rate < 1.0 && sample_group(batch.object[i], rate, 1, options.seed) != 0) continue;
      const Page before = interner.count();
      pages.push_back(interner.page_of(batch.object[i]));
      if (interner.count() != before && served + pages.size() > warmup) ++first_touches;
      if (!batch.size.empty()) {
        facts.bytes += batch.size[i];
        if (options.by_bytes) sizes.push_back(batch.size[i]);
      }
      if (!batch.next.empty()) next.push_back(batch.next[i]);
    }
    RequestBlock block;
    block.first_time = served;
    block.pages = pages;
    block.sizes = sizes;
    block.next_use = next;
    block.page_limit = interner.count();
    served += pages.size();
#pragma omp parallel for schedule(dynamic)
    for (std::size_t i = 0; i < cells.size(); ++i) {
      if (servers[i] == nullptr) continue;
      try {
        servers[i]->serve(block, batch.starts);
      } catch (const std::exception& e) {
        cells[i].failure = e.what();
        servers[i] = nullptr;
      }
    }
  }
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (servers[i] == nullptr) continue;
    cells[i].counts = servers[i]->finish();
    cells[i].counts.first_touches = first_touches;
  }
  facts.requests = served;
  facts.unique = interner.count();
  return facts;
}

}  // namespace kvsim
