// Zeroed memory for matrices: large blocks come straight from the system, on huge pages where it has them.
#pragma once

#include <cstddef>

namespace kvsim {

/// Alignment of every matrix: one AVX-512 register, one cache line.
inline constexpr std::size_t kAlignment = 64;

/// `bytes` > 0 of zeroed memory, aligned to kAlignment; throws std::bad_alloc. Blocks of several MiB are mapped afresh: the
/// system hands them out zeroed, on huge pages where it can (rows read in a ranking's order then miss the address
/// translation cache far less), and takes them back whole on release.
void* allocate_zeroed(std::size_t bytes);
/// Gives memory of allocate_zeroed(bytes) back; nullptr is nothing.
void release_zeroed(void* memory, std::size_t bytes) noexcept;

/// The same for memory whose every element is written before it is read: blocks of several MiB that release_unset took
/// back, up to 64 MiB of them, are handed out again as they are, which spares the system zeroing and mapping them.
void* allocate_unset(std::size_t bytes);
void release_unset(void* memory, std::size_t bytes) noexcept;
/// Gives the system the blocks that wait to be handed out again.
void give_back_unset() noexcept;

/// For the start of a program: freed memory of up to 128 MiB per heap stays with the process for the next block. The
/// system's default gives it back and faults it in again page by page, which costs a third of a trace's reading time.
void keep_freed_memory();

}  // namespace kvsim
