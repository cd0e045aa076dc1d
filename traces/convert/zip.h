// Members of a zip archive, stored or deflated, as .npz files have them.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "traces/convert/array_source.h"
#include "traces/convert/file_bytes.h"

namespace kvsim::convert {

struct ZipMember {
  std::uint64_t data = 0;    // where its bytes begin in the file
  std::uint64_t packed = 0;  // bytes in the file
  std::uint64_t size = 0;    // bytes unpacked
  std::uint32_t crc = 0;
  bool deflated = false;
};

/// Reads the directory of an archive (zip64 too). Throws UserError when it is damaged, encrypted, or packed
/// by another method than deflate.
std::map<std::string, ZipMember> read_zip_directory(const FileBytes& file);

/// Unpacks a member from its begin on; its checksum is compared when its last byte was handed out. `file`
/// must outlive the reader.
ByteReader open_member(const FileBytes& file, const std::string& name, const ZipMember& member);

}  // namespace kvsim::convert
