// Groups: finding, listing, creating.
#include <algorithm>

#include "kernels/error.h"
#include "traces/h5/file.h"

namespace kvsim::h5 {
namespace {

enum class Found { nothing, group, dataset, other };

Found kind_of(hid_t parent, const std::string& name) {
  H5O_info_t info{};
  if (H5Oget_info_by_name(parent, name.c_str(), &info, H5P_DEFAULT) < 0) return Found::nothing;
  if (info.type == H5O_TYPE_GROUP) return Found::group;
  return info.type == H5O_TYPE_DATASET ? Found::dataset : Found::other;
}

/// Walks the components of `name`; what stands at its end. Soft and external links are refused on the way.
Found locate(const Group& from, const std::string& name) {
  Found found = Found::group;
  for (std::size_t end = 0; end != std::string::npos;) {
    end = name.find('/', end + 1);
    const std::string part = name.substr(0, end);
    if (part.empty() || part == "/") continue;
    if (found != Found::group || H5Lexists(from.id(), part.c_str(), H5P_DEFAULT) <= 0) return Found::nothing;
    H5L_info_t link{};
    require(H5Lget_info(from.id(), part.c_str(), &link, H5P_DEFAULT), from.where(), "look up " + part);
    if (link.type != H5L_TYPE_HARD) {
      throw UserError("{}: '{}' is a {} link, which is not followed; store the data itself", from.where(),
                      part, link.type == H5L_TYPE_EXTERNAL ? "external" : "soft");
    }
    found = kind_of(from.id(), part);
    if (found == Found::nothing) fail(from.where(), "open " + part);
  }
  return found;
}

herr_t collect_name(hid_t, const char* name, const H5L_info_t*, void* into) noexcept {
  try {
    static_cast<std::vector<std::string>*>(into)->emplace_back(name);
    return 0;
  } catch (...) {
    return -1;
  }
}

/// Creation properties that make groups on the way and store no times, so that equal content is equal bytes.
Handle link_properties() {
  Handle properties(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  const bool done = properties && H5Pset_create_intermediate_group(properties.get(), 1) >= 0 &&
                    H5Pset_char_encoding(properties.get(), H5T_CSET_UTF8) >= 0;
  KVSIM_CHECK(done, "link properties: {}", last_reason());
  return properties;
}

/// Numbers are written once, so nothing is filled before; strings need defined (empty) elements.
Handle dataset_properties(bool strings) {
  Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const H5D_fill_time_t fill = strings ? H5D_FILL_TIME_IFSET : H5D_FILL_TIME_NEVER;
  const bool done = properties && H5Pset_obj_track_times(properties.get(), false) >= 0 &&
                    H5Pset_fill_time(properties.get(), fill) >= 0;
  KVSIM_CHECK(done, "dataset properties: {}", last_reason());
  return properties;
}

Handle make_space(const Shape& shape, const std::string& where) {
  const std::vector<hsize_t> extent(shape.begin(), shape.end());
  return Handle(require(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), where,
                        "describe a shape"),
                H5Sclose);
}

Handle create(hid_t parent, const std::string& name, hid_t type, const Shape& shape,
              const std::string& where) {
  const Handle space = make_space(shape, where), links = link_properties();
  const Handle properties = dataset_properties(H5Tget_class(type) == H5T_STRING);
  return Handle(
      require(H5Dcreate2(parent, name.c_str(), type, space.get(), links.get(), properties.get(), H5P_DEFAULT),
              where, "create"),
      H5Dclose);
}

}  // namespace

std::string Group::child_path(std::string_view name) const {
  if (!name.empty() && name.front() == '/') return std::string(name);
  return path() == "/" ? "/" + std::string(name) : path() + "/" + std::string(name);
}

bool Group::has(std::string_view name) const {
  const Session session;
  return locate(*this, std::string(name)) != Found::nothing;
}

bool Group::has_group(std::string_view name) const {
  const Session session;
  return locate(*this, std::string(name)) == Found::group;
}

bool Group::has_dataset(std::string_view name) const {
  const Session session;
  return locate(*this, std::string(name)) == Found::dataset;
}

std::vector<std::string> Group::children() const {
  const Session session;
  std::vector<std::string> names;
  require(H5Literate(id(), H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect_name, &names), where(), "list");
  std::sort(names.begin(), names.end());
  return names;
}

void Group::collect_datasets(std::size_t depth, std::vector<std::string>& into) const {
  for (const std::string& name : children()) {
    if (has_group(name)) {
      if (depth == kMaxDepth) throw UserError("{}: found groups nested deeper than {}", where(), kMaxDepth);
      group(name).collect_datasets(depth + 1, into);
    } else if (has_dataset(name)) {
      into.push_back(child_path(name));
    }
    if (into.size() > kMaxMembers) throw UserError("{}: found more than {} datasets", where(), kMaxMembers);
  }
}

std::vector<std::string> Group::all_datasets() const {
  const Session session;
  std::vector<std::string> paths;
  collect_datasets(0, paths);
  std::sort(paths.begin(), paths.end());
  return paths;
}

Group Group::group(std::string_view name) const {
  const Session session;
  const std::string key(name), full = child_path(name), what = file() + ": " + full;
  const Found found = locate(*this, key);
  if (found == Found::nothing) throw UserError("{}: found nothing, expected a group", what);
  if (found != Found::group) throw UserError("{}: found a dataset, expected a group", what);
  return Group(Handle(require(H5Gopen2(id(), key.c_str(), H5P_DEFAULT), what, "open"), H5Gclose), file(),
               full);
}

Group Group::create_group(std::string_view name) {
  const Session session;
  const std::string key(name), full = child_path(name), what = file() + ": " + full;
  const Handle links = link_properties();
  return Group(
      Handle(require(H5Gcreate2(id(), key.c_str(), links.get(), H5P_DEFAULT, H5P_DEFAULT), what, "create"),
             H5Gclose),
      file(), full);
}

Dataset Group::dataset(std::string_view name) const {
  const Session session;
  const std::string key(name), full = child_path(name), what = file() + ": " + full;
  const Found found = locate(*this, key);
  if (found == Found::nothing) throw UserError("{}: found nothing, expected a dataset", what);
  if (found != Found::dataset) throw UserError("{}: found a group, expected a dataset", what);
  return Dataset(Handle(require(H5Dopen2(id(), key.c_str(), H5P_DEFAULT), what, "open"), H5Dclose), file(),
                 full);
}

Dataset Group::create_dataset(std::string_view name, Element element, const Shape& shape) {
  const Session session;
  const std::string key(name), full = child_path(name), what = file() + ": " + full;
  const Handle type = make_type(element);
  return Dataset(create(id(), key, type.get(), shape, what), file(), full);
}

template <typename T>
void Group::write_array(std::string_view name, const Shape& shape, std::span<const T> values) {
  const Session session;
  KVSIM_CHECK(element_count(shape) == values.size(), "{}: {} values for the shape {}", child_path(name),
              values.size(), describe_shape(shape));
  Dataset dataset = create_dataset(name, element_for<T>(), shape);
  dataset.write_raw(Shape(shape.size(), 0), shape, std::as_bytes(values));
}

template <typename T>
void Group::write_column(std::string_view name, std::span<const T> values) {
  write_array(name, Shape{values.size()}, values);
}

void Group::write_column(std::string_view name, std::span<const std::string> values) {
  const Session session;
  const std::string what = file() + ": " + child_path(name);
  const Handle type = make_string_type();
  const Handle dataset = create(id(), std::string(name), type.get(), {values.size()}, what);
  if (values.empty()) return;
  std::vector<const char*> pointers;
  pointers.reserve(values.size());
  for (const std::string& text : values) pointers.push_back(text.c_str());
  require(H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()), what, "write");
}

Dataset Group::one_dimensional(std::string_view name) const {
  Dataset found = dataset(name);
  if (found.shape().size() != 1) {
    throw UserError("{}: found the shape {}, expected one dimension", found.where(),
                    describe_shape(found.shape()));
  }
  return found;
}

template <typename T>
std::vector<T> Group::read_column(std::string_view name) const {
  return one_dimensional(name).read<T>();
}

std::vector<std::string> Group::read_strings(std::string_view name) const {
  return one_dimensional(name).read_strings();
}

template void Group::write_array<std::int8_t>(std::string_view, const Shape&, std::span<const std::int8_t>);
template void Group::write_array<std::int32_t>(std::string_view, const Shape&, std::span<const std::int32_t>);
template void Group::write_array<std::int64_t>(std::string_view, const Shape&, std::span<const std::int64_t>);
template void Group::write_array<std::uint8_t>(std::string_view, const Shape&, std::span<const std::uint8_t>);
template void Group::write_array<std::uint32_t>(std::string_view, const Shape&,
                                                std::span<const std::uint32_t>);
template void Group::write_array<std::uint64_t>(std::string_view, const Shape&,
                                                std::span<const std::uint64_t>);
template void Group::write_array<float>(std::string_view, const Shape&, std::span<const float>);
template void Group::write_array<double>(std::string_view, const Shape&, std::span<const double>);
template void Group::write_column<std::int8_t>(std::string_view, std::span<const std::int8_t>);
template void Group::write_column<std::int32_t>(std::string_view, std::span<const std::int32_t>);
template void Group::write_column<std::int64_t>(std::string_view, std::span<const std::int64_t>);
template void Group::write_column<std::uint8_t>(std::string_view, std::span<const std::uint8_t>);
template void Group::write_column<std::uint32_t>(std::string_view, std::span<const std::uint32_t>);
template void Group::write_column<std::uint64_t>(std::string_view, std::span<const std::uint64_t>);
template void Group::write_column<float>(std::string_view, std::span<const float>);
template void Group::write_column<double>(std::string_view, std::span<const double>);
template std::vector<std::int8_t> Group::read_column<std::int8_t>(std::string_view) const;
template std::vector<std::int32_t> Group::read_column<std::int32_t>(std::string_view) const;
template std::vector<std::int64_t> Group::read_column<std::int64_t>(std::string_view) const;
template std::vector<std::uint8_t> Group::read_column<std::uint8_t>(std::string_view) const;
template std::vector<std::uint32_t> Group::read_column<std::uint32_t>(std::string_view) const;
template std::vector<std::uint64_t> Group::read_column<std::uint64_t>(std::string_view) const;
template std::vector<float> Group::read_column<float>(std::string_view) const;
template std::vector<double> Group::read_column<double>(std::string_view) const;

}  // namespace kvsim::h5
