// Element types in HDF5 files: what a stored type is, and the types we write.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "traces/h5/session.h"

namespace kvsim::h5 {

/// Stored element types we tell apart. Multi-byte types are little-endian unless they are `other`.
enum class Element : std::uint8_t {
  int8,
  int16,
  int32,
  int64,
  uint8,
  uint16,
  uint32,
  uint64,
  float16,
  bfloat16,
  float32,
  float64,
  string,
  other
};

bool is_integer(Element element);
bool is_float(Element element);
/// Integer or floating point.
bool is_numeric(Element element);
/// Bytes of one numeric element; 0 for strings and others.
std::size_t size_of(Element element);
/// "float16", "int32", "string", ...
std::string_view name_of(Element element);
/// The element called `name`; `other` when there is none.
Element element_of(std::string_view name);

/// Classifies a stored type.
Element classify(hid_t type);
/// A type's description for messages, e.g. "float16", "compound of 24 bytes", "big-endian float32".
std::string describe_type(hid_t type);

/// A new file type. bfloat16 is a float of 1+8+7 bits and float16 one of 1+5+10, so that h5py and h5dump read
/// numbers.
Handle make_type(Element element);
/// A variable-length utf-8 string.
Handle make_string_type();

/// The element type of a C++ type.
template <typename T>
constexpr Element element_for();
template <>
constexpr Element element_for<std::int8_t>() {
  return Element::int8;
}
template <>
constexpr Element element_for<std::int32_t>() {
  return Element::int32;
}
template <>
constexpr Element element_for<std::int64_t>() {
  return Element::int64;
}
template <>
constexpr Element element_for<std::uint8_t>() {
  return Element::uint8;
}
template <>
constexpr Element element_for<std::uint32_t>() {
  return Element::uint32;
}
template <>
constexpr Element element_for<std::uint64_t>() {
  return Element::uint64;
}
template <>
constexpr Element element_for<float>() {
  return Element::float32;
}
template <>
constexpr Element element_for<double>() {
  return Element::float64;
}

}  // namespace kvsim::h5
