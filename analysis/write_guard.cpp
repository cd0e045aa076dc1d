// Lets an HDF5 file that could not be written be closed all the same.
#include "analysis/write_guard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/error.h"

namespace kvsim {
namespace {

// What a flush may still add to the file's end: free-space and cache tables.
constexpr hsize_t kSlack = hsize_t{64} << 10;

/// The descriptor behind the file (the default driver's handle is one), or -1. `size` becomes its length when
/// closed.
int descriptor_of(const h5::File& file, hsize_t& size) {
  const h5::Session session;
  const h5::Handle id(H5Iget_file_id(file.id()), H5Fclose);
  void* driver = nullptr;
  if (!id || H5Fget_filesize(id.get(), &size) < 0 || H5Fget_vfd_handle(id.get(), H5P_DEFAULT, &driver) < 0)
    return -1;
  return driver == nullptr ? -1 : *static_cast<int*>(driver);
}

}  // namespace

WriteGuard::~WriteGuard() {
  if (file_ == nullptr || file_->id() < 0) return;
  hsize_t size = 0;
  const int descriptor = descriptor_of(*file_, size);
  const int memory = descriptor < 0 ? -1 : ::memfd_create("kvsim-abandoned", MFD_CLOEXEC);
  if (memory < 0) return;
  ::dup2(memory, descriptor);
  ::close(memory);
}

void close_guarded(h5::File& file, WriteGuard& guard) {
  hsize_t size = 0;
  if (const int descriptor = descriptor_of(file, size); descriptor >= 0) {
    const int code = ::posix_fallocate(descriptor, 0, static_cast<off_t>(size + kSlack));
    if (code == ENOSPC || code == EFBIG || code == EDQUOT)
      throw UserError("{}: cannot write it: {}", file.file(), std::strerror(code));
  }
  file.flush();
  file.close();
  guard.done();
}

}  // namespace kvsim
