// A dataset of any HDF5 file as floats.
#include <algorithm>

#include "kernels/error.h"
#include "traces/h5/file.h"
#include "traces/tensor.h"
#include "traces/trace_reader.h"

namespace kvsim {

FloatArray read_float_array(const std::string& file, const std::string& dataset) {
  const h5::File source = h5::File::open(file);
  const std::string name = dataset.substr(std::min(dataset.find_first_not_of('/'), dataset.size()));
  if (name.empty()) throw UserError("{}: the name of the dataset is empty", file);
  const h5::Dataset found = source.dataset(name);
  if (!h5::is_numeric(found.element())) {
    throw UserError("{}: found {}, expected numbers", found.where(), found.describe_type());
  }
  found.check_backed();
  FloatArray result;
  result.shape.assign(found.shape().begin(), found.shape().end());
  const bool is_short = found.element() == h5::Element::float16 || found.element() == h5::Element::bfloat16;
  if (!is_short) {
    result.data = found.read<float>();
    return result;
  }
  std::vector<std::byte> raw(found.bytes());
  found.read_raw(h5::Shape(found.shape().size(), 0), found.shape(), raw);
  result.data.resize(found.elements());
  widen(found.element() == h5::Element::float16 ? DType::float16 : DType::bfloat16, raw, result.data);
  return result;
}

}  // namespace kvsim
