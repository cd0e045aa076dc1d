// Reading and writing scalar attributes.
#include "traces/h5/attribute.h"

#include <algorithm>
#include <vector>

#include "kernels/error.h"
#include "traces/h5/type.h"

namespace kvsim::h5 {
namespace {

/// A string attribute larger than this is taken for damage.
constexpr std::size_t kMaxAttributeBytes = std::size_t{1} << 24;

std::string read_string(hid_t attribute, hid_t type, const std::string& where) {
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    require(H5Aread(attribute, type, &text), where, "read the attribute");
    std::string result = text == nullptr ? std::string() : std::string(text);
    static_cast<void>(H5free_memory(text));
    return result;
  }
  const std::size_t size = H5Tget_size(type);
  if (size > kMaxAttributeBytes)
    throw UserError("{}: a string of {} bytes is no attribute of ours", where, size);
  std::vector<char> buffer(size + 1, '\0');
  require(H5Aread(attribute, type, buffer.data()), where, "read the attribute");
  std::string result(buffer.data());  // padded with zero bytes, or with spaces
  if (H5Tget_strpad(type) == H5T_STR_SPACEPAD) result.erase(result.find_last_not_of(' ') + 1);
  return result;
}

herr_t collect_name(hid_t, const char* name, const H5A_info_t*, void* into) noexcept {
  try {
    static_cast<std::vector<std::string>*>(into)->emplace_back(name);
    return 0;
  } catch (...) {
    return -1;
  }
}

}  // namespace

std::vector<std::string> Object::attribute_names() const {
  const Session session;
  std::vector<std::string> names;
  require(H5Aiterate2(id(), H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect_name, &names), where(),
          "list the attributes");
  std::sort(names.begin(), names.end());
  return names;
}

void Object::add_attributes(const Object& from) {
  const Session session;
  for (const std::string& name : from.attribute_names()) {
    if (has_attribute(name)) continue;
    const Handle attribute(
        require(H5Aopen(from.id(), name.c_str(), H5P_DEFAULT), from.where(), "open an attribute"), H5Aclose);
    const Handle space(H5Aget_space(attribute.get()), H5Sclose), type(H5Aget_type(attribute.get()), H5Tclose);
    if (H5Sget_simple_extent_npoints(space.get()) != 1) continue;
    const Element element = classify(type.get());
    if (element == Element::string) {
      set_attribute(name, from.string_attribute(name));
    } else if (is_integer(element)) {
      set_attribute(name, from.int_attribute(name));
    } else if (is_float(element)) {
      set_attribute(name, from.float_attribute(name));
    } else if (H5Tget_class(type.get()) == H5T_ENUM) {
      set_attribute(name, std::int64_t{from.bool_attribute(name)});
    }
  }
}

bool Object::has_attribute(std::string_view name) const {
  const Session session;
  return H5Aexists(id(), std::string(name).c_str()) > 0;
}

Handle Object::open_scalar(const std::string& name) const {
  if (!has_attribute(name)) throw UserError("{}: the attribute '{}' is missing", where(), name);
  Handle attribute(
      require(H5Aopen(id(), name.c_str(), H5P_DEFAULT), where() + "@" + name, "open the attribute"),
      H5Aclose);
  const Handle space(require(H5Aget_space(attribute.get()), where(), "read the attribute's shape"), H5Sclose);
  if (H5Sget_simple_extent_npoints(space.get()) != 1) {
    throw UserError("{}@{}: found an attribute of {} values, expected one", where(), name,
                    H5Sget_simple_extent_npoints(space.get()));
  }
  return attribute;
}

std::string Object::string_attribute(std::string_view name) const {
  const Session session;
  const std::string key(name);
  const Handle attribute = open_scalar(key);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (classify(type.get()) != Element::string) {
    throw UserError("{}@{}: found {}, expected a string", where(), key, describe_type(type.get()));
  }
  return read_string(attribute.get(), type.get(), where() + "@" + key);
}

std::int64_t Object::int_attribute(std::string_view name) const {
  const Session session;
  const std::string key(name);
  const Handle attribute = open_scalar(key);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (!is_integer(classify(type.get()))) {
    throw UserError("{}@{}: found {}, expected an integer", where(), key, describe_type(type.get()));
  }
  std::int64_t value = 0;
  require(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value), where() + "@" + key, "read the attribute");
  return value;
}

double Object::float_attribute(std::string_view name) const {
  const Session session;
  const std::string key(name);
  const Handle attribute = open_scalar(key);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (!is_numeric(classify(type.get()))) {
    throw UserError("{}@{}: found {}, expected a number", where(), key, describe_type(type.get()));
  }
  double value = 0.0;
  require(H5Aread(attribute.get(), H5T_NATIVE_DOUBLE, &value), where() + "@" + key, "read the attribute");
  return value;
}

bool Object::bool_attribute(std::string_view name) const {
  const Session session;
  const std::string key(name);
  const Handle attribute = open_scalar(key);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (H5Tget_class(type.get()) != H5T_ENUM) return int_attribute(name) != 0;
  std::int64_t bits = 0;
  if (H5Tget_size(type.get()) > sizeof bits) {
    throw UserError("{}@{}: found {}, expected 0 or 1", where(), key, describe_type(type.get()));
  }
  require(H5Aread(attribute.get(), type.get(), &bits), where() + "@" + key, "read the attribute");
  return bits != 0;
}

void Object::write_scalar(const std::string& name, hid_t file_type, hid_t memory_type, const void* value) {
  const std::string what = where() + "@" + name;
  if (H5Aexists(id(), name.c_str()) > 0)
    require(H5Adelete(id(), name.c_str()), what, "replace the attribute");
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(
      require(H5Acreate2(id(), name.c_str(), file_type, space.get(), H5P_DEFAULT, H5P_DEFAULT), what,
              "create the attribute"),
      H5Aclose);
  require(H5Awrite(attribute.get(), memory_type, value), what, "write the attribute");
}

void Object::set_attribute(std::string_view name, std::string_view value) {
  const Session session;
  const Handle type = make_string_type();
  const std::string text(value);
  const char* pointer = text.c_str();
  write_scalar(std::string(name), type.get(), type.get(), &pointer);
}

void Object::set_attribute(std::string_view name, std::int64_t value) {
  const Session session;
  write_scalar(std::string(name), H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void Object::set_attribute(std::string_view name, double value) {
  const Session session;
  write_scalar(std::string(name), H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

}  // namespace kvsim::h5
