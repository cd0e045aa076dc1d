// Classification and construction of HDF5 element types.
#include "traces/h5/type.h"

#include <array>
#include <utility>

#include "kernels/error.h"

namespace kvsim::h5 {
namespace {

struct FloatLayout {
  std::size_t size, sign, exponent_at, exponent_bits, mantissa_at, mantissa_bits, bias;
  friend bool operator==(const FloatLayout&, const FloatLayout&) = default;
};
constexpr FloatLayout kHalf{2, 15, 10, 5, 0, 10, 15};
constexpr FloatLayout kBfloat{2, 15, 7, 8, 0, 7, 127};
constexpr FloatLayout kSingle{4, 31, 23, 8, 0, 23, 127};
constexpr FloatLayout kDouble{8, 63, 52, 11, 0, 52, 1023};

constexpr std::array<std::string_view, 14> kNames{"int8",    "int16",   "int32",  "int64",   "uint8",
                                                  "uint16",  "uint32",  "uint64", "float16", "bfloat16",
                                                  "float32", "float64", "string", "other"};
constexpr std::array<std::size_t, 14> kSizes{1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 0, 0};

Element classify_float(hid_t type) {
  FloatLayout found{};
  found.size = H5Tget_size(type);
  if (H5Tget_fields(type, &found.sign, &found.exponent_at, &found.exponent_bits, &found.mantissa_at,
                    &found.mantissa_bits) < 0) {
    return Element::other;
  }
  found.bias = H5Tget_ebias(type);
  if (H5Tget_norm(type) != H5T_NORM_IMPLIED) return Element::other;
  if (found == kHalf) return Element::float16;
  if (found == kBfloat) return Element::bfloat16;
  if (found == kSingle) return Element::float32;
  if (found == kDouble) return Element::float64;
  return Element::other;
}

Element classify_integer(hid_t type) {
  const std::size_t size = H5Tget_size(type);
  if (H5Tget_precision(type) != 8 * size || H5Tget_offset(type) != 0) return Element::other;
  const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
  switch (size) {
    case 1:
      return is_signed ? Element::int8 : Element::uint8;
    case 2:
      return is_signed ? Element::int16 : Element::uint16;
    case 4:
      return is_signed ? Element::int32 : Element::uint32;
    case 8:
      return is_signed ? Element::int64 : Element::uint64;
    default:
      return Element::other;
  }
}

Handle make_short_float(const FloatLayout& layout) {
  Handle type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
  const bool done = type &&
                    H5Tset_fields(type.get(), layout.sign, layout.exponent_at, layout.exponent_bits,
                                  layout.mantissa_at, layout.mantissa_bits) >= 0 &&
                    H5Tset_size(type.get(), layout.size) >= 0 && H5Tset_ebias(type.get(), layout.bias) >= 0;
  KVSIM_CHECK(done, "making a 16-bit float type: {}", last_reason());
  return type;
}

hid_t standard_type(Element element) {
  switch (element) {
    case Element::int8:
      return H5T_STD_I8LE;
    case Element::int16:
      return H5T_STD_I16LE;
    case Element::int32:
      return H5T_STD_I32LE;
    case Element::int64:
      return H5T_STD_I64LE;
    case Element::uint8:
      return H5T_STD_U8LE;
    case Element::uint16:
      return H5T_STD_U16LE;
    case Element::uint32:
      return H5T_STD_U32LE;
    case Element::uint64:
      return H5T_STD_U64LE;
    case Element::float32:
      return H5T_IEEE_F32LE;
    case Element::float64:
      return H5T_IEEE_F64LE;
    default:
      return -1;
  }
}

}  // namespace

bool is_integer(Element element) { return element <= Element::uint64; }
bool is_float(Element element) { return element >= Element::float16 && element <= Element::float64; }
bool is_numeric(Element element) { return element <= Element::float64; }
std::size_t size_of(Element element) { return kSizes[static_cast<std::size_t>(element)]; }
std::string_view name_of(Element element) { return kNames[static_cast<std::size_t>(element)]; }

Element element_of(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Element>(i);
  }
  return Element::other;
}

Element classify(hid_t type) {
  const Session session;
  const H5T_class_t kind = H5Tget_class(type);
  if (kind == H5T_STRING) return Element::string;
  if (kind != H5T_INTEGER && kind != H5T_FLOAT) return Element::other;
  if (H5Tget_size(type) > 1 && H5Tget_order(type) != H5T_ORDER_LE) return Element::other;
  return kind == H5T_FLOAT ? classify_float(type) : classify_integer(type);
}

std::string describe_type(hid_t type) {
  const Session session;
  const Element element = classify(type);
  if (element != Element::other) return std::string(name_of(element));
  const std::size_t size = H5Tget_size(type);
  const bool swapped = H5Tget_order(type) == H5T_ORDER_BE;
  switch (H5Tget_class(type)) {
    case H5T_INTEGER:
      return fmt::format("{}integer of {} bytes", swapped ? "big-endian " : "", size);
    case H5T_FLOAT:
      return fmt::format("{}float of {} bytes", swapped ? "big-endian " : "unusual ", size);
    case H5T_COMPOUND:
      return fmt::format("compound of {} bytes", size);
    case H5T_ENUM:
      return "enumeration";
    case H5T_VLEN:
      return "variable-length list";
    case H5T_ARRAY:
      return "array type";
    case H5T_OPAQUE:
      return fmt::format("opaque of {} bytes", size);
    case H5T_REFERENCE:
      return "reference";
    case H5T_BITFIELD:
      return fmt::format("bit field of {} bytes", size);
    default:
      return "unknown type";
  }
}

Handle make_type(Element element) {
  const Session session;
  if (element == Element::float16) return make_short_float(kHalf);
  if (element == Element::bfloat16) return make_short_float(kBfloat);
  if (element == Element::string) return make_string_type();
  Handle type(H5Tcopy(standard_type(element)), H5Tclose);
  KVSIM_CHECK(bool(type), "copying the type {}: {}", name_of(element), last_reason());
  return type;
}

Handle make_string_type() {
  const Session session;
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  const bool done =
      type && H5Tset_size(type.get(), H5T_VARIABLE) >= 0 && H5Tset_cset(type.get(), H5T_CSET_UTF8) >= 0;
  KVSIM_CHECK(done, "making a string type: {}", last_reason());
  return type;
}

}  // namespace kvsim::h5
