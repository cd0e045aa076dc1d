// Zeroed memory for matrices, large blocks mapped on huge pages.
#include "kernels/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace kvsim {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kMappedFrom = std::numeric_limits<std::size_t>::max();  // the sanitizer watches the heap only
#else
constexpr std::size_t kMappedFrom = 2 * kHugePage;
#endif

/// A mapping that starts on a huge page: one page more is asked for, and what lies outside goes back.
void* map_aligned(std::size_t bytes) {
  const std::size_t asked = bytes + kHugePage;
  void* const raw = ::mmap(nullptr, asked, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  const auto first = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t begin = (first + kHugePage - 1) / kHugePage * kHugePage;
  constexpr std::size_t kPage = 4096;
  const std::uintptr_t end = (begin + bytes + kPage - 1) / kPage * kPage;
  if (begin > first) ::munmap(raw, begin - first);
  if (first + asked > end) ::munmap(reinterpret_cast<void*>(end), first + asked - end);
  auto* const memory = reinterpret_cast<void*>(begin);
#ifdef MADV_HUGEPAGE
  ::madvise(memory, end - begin, MADV_HUGEPAGE);  // advice: where the system has none to give, small pages do
#endif
  return memory;
}

/// Released blocks that wait for the next request of their size.
class KeptBlocks {
 public:
  /// nullptr where none fits.
  void* take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (auto& block : blocks_) {
      if (block.second != bytes) continue;
      void* const memory = block.first;
      kept_ -= bytes;
      block = blocks_.back();
      blocks_.pop_back();
      return memory;
    }
    return nullptr;
  }
  bool keep(void* memory, std::size_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    if (bytes > kMost - kept_ || blocks_.size() == blocks_.capacity()) return false;
    blocks_.emplace_back(memory, bytes);
    kept_ += bytes;
    return true;
  }
  void give_back() noexcept {
    const std::lock_guard lock(mutex_);
    for (const auto& [memory, bytes] : blocks_) ::munmap(memory, bytes);
    blocks_.clear();
    kept_ = 0;
  }

 private:
  static constexpr std::size_t kMost = std::size_t{64} << 20;
  static std::vector<std::pair<void*, std::size_t>> room() {
    std::vector<std::pair<void*, std::size_t>> blocks;
    blocks.reserve(kMost / kMappedFrom + 1);
    return blocks;
  }
  std::mutex mutex_;
  std::vector<std::pair<void*, std::size_t>> blocks_ = room();  // never grows: keeping must not throw
  std::size_t kept_ = 0;
};

KeptBlocks& kept_blocks() {
  static auto* const kept = new KeptBlocks();  // outlives every matrix
  return *kept;
}

}  // namespace

void* allocate_unset(std::size_t bytes) {
  if (bytes < kMappedFrom) return ::operator new(bytes, std::align_val_t(kAlignment));
  if (void* const memory = kept_blocks().take(bytes)) return memory;
  give_back_unset();  // sizes have changed
  return map_aligned(bytes);
}

void release_unset(void* memory, std::size_t bytes) noexcept {
  if (memory != nullptr && bytes >= kMappedFrom && kept_blocks().keep(memory, bytes)) return;
  release_zeroed(memory, bytes);
}

void give_back_unset() noexcept { kept_blocks().give_back(); }

void* allocate_zeroed(std::size_t bytes) {
  if (bytes >= kMappedFrom) return map_aligned(bytes);
  void* const memory = ::operator new(bytes, std::align_val_t(kAlignment));
  std::memset(memory, 0, bytes);
  return memory;
}

void release_zeroed(void* memory, std::size_t bytes) noexcept {
  if (memory == nullptr) return;
  if (bytes >= kMappedFrom) {
    ::munmap(memory, bytes);
  } else {
    ::operator delete(memory, std::align_val_t(kAlignment));
  }
}

void keep_freed_memory() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_THRESHOLD, static_cast<int>(2 * kHugePage));
  ::mallopt(M_TRIM_THRESHOLD, static_cast<int>(64 * kHugePage));
#endif
}

}  // namespace kvsim
