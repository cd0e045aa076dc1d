// What travels to a device: packed on the host into page-locked memory, in the type it was stored in.
#pragma once

#include <cstddef>

#include "kernels/cuda/pool.h"
#include "kernels/dtype.h"
#include "kernels/view.h"

namespace kvsim::cuda {

/// One matrix on its way: page-locked memory, and its copy as it travelled.
struct Parcel {
  explicit Parcel(Pool& pool) : raw(pool) {}
  Pinned<unsigned char> packed;
  Buffer<unsigned char> raw;
  DType type = DType::float32;
};

/// Packs `from` tightly in the wanted type where every number is one of it, else as floats; by all threads of
/// the caller. Says which type it became.
DType pack(MatrixView<const float> from, DType wanted, Pinned<unsigned char>& to);

/// The parcels of one head. There are two of them, so that one is packed while the other travels.
struct Shipment {
  explicit Shipment(Pool& pool) : keys(pool), values(pool), queries(pool) {}
  Parcel keys, values, queries;
  Pinned<TokenIndex> position;
  Event copied, unpacked;
};

}  // namespace kvsim::cuda
