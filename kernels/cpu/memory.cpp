// Zeroed memory for matrices, large blocks mapped on huge pages.
#include "kernels/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>

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

}  // namespace

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
  ::mallopt(M_TRIM_THRESHOLD, static_cast<int>(16 * kHugePage));
#endif
}

}  // namespace kvsim
