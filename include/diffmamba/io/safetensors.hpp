// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::sort
#include <array>        // std::array
#include <bit>          // std::endian
#include <cstdint>      // std::uint64_t
#include <cstring>      // std::memcpy
#include <filesystem>   // std::filesystem::path
#include <fstream>      // std::ifstream
#include <functional>   // std::function
#include <limits>       // std::numeric_limits
#include <map>          // std::map
#include <memory>       // std::shared_ptr
#include <optional>     // std::optional
#include <span>         // std::span
#include <string>       // std::string
#include <string_view>  // std::string_view
#include <vector>       // std::vector

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/io/atomic_file.hpp"
#include "diffmamba/io/json.hpp"
#include "diffmamba/tensor/copy.hpp"

/// The safetensors format: 8 bytes of header length, a JSON header that gives every tensor's dtype, shape and place,
/// and the elements, little-endian and row-major. Files are taken from strangers: the header is checked completely
/// (sizes that overflow, ranges that overlap, leave gaps or end elsewhere than the file, keys that stand twice) before
/// anything is allocated for a tensor, and every error names the file and the tensor.
namespace diffmamba {

static_assert(std::endian::native == std::endian::little,
              "safetensors files are read and written on little-endian machines");

/// What the header says of one tensor.
struct TensorInfo {
  Dtype dtype;
  std::vector<Index> shape;
  std::uint64_t begin, end;  // bytes after the header

  Index size() const {
    Index product = 1;
    for (Index extent : shape) product *= extent;
    return product;
  }
};

struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

namespace detail {

inline constexpr std::array<std::pair<std::string_view, Dtype>, 8> safetensors_dtypes{{{"F64", Dtype::float64},
                                                                                       {"F32", Dtype::float32},
                                                                                       {"BF16", Dtype::bfloat16},
                                                                                       {"F16", Dtype::float16},
                                                                                       {"I64", Dtype::int64},
                                                                                       {"I32", Dtype::int32},
                                                                                       {"U8", Dtype::uint8},
                                                                                       {"BOOL", Dtype::boolean}}};

inline std::string_view safetensors_name(Dtype dtype) {
  for (const auto& [name, value] : safetensors_dtypes)
    if (value == dtype) return name;
  return "?";
}

inline std::string print_shape(const std::vector<Index>& shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) text += (axis > 0 ? ", " : "") + std::to_string(shape[axis]);
  return text + ")";
}

/// Sizes of files of strangers: product as an element count, or nothing if it leaves 63 bits.
inline std::optional<std::uint64_t> checked_bytes(const std::vector<Index>& shape, std::size_t element) {
  constexpr auto limit = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
  std::uint64_t bytes = element;
  for (Index extent : shape) {
    if (extent == 0) return 0;
    if (bytes > limit / static_cast<std::uint64_t>(extent)) return std::nullopt;
    bytes *= static_cast<std::uint64_t>(extent);
  }
  return bytes;
}

}  // namespace detail

/// The longest header that is read: 100 MB, as in the reference implementation.
inline constexpr std::uint64_t max_safetensors_header = 100'000'000;

/// Parses and checks the JSON header of a file with `data_bytes` bytes after the header. `source` is the file's name
/// for messages.
inline SafetensorsHeader parse_safetensors_header(const std::string& text, std::uint64_t data_bytes,
                                                  const std::string& source) {
  require(!text.empty() && text.front() == '{', source,
          ": not a safetensors file (its header does not begin with '{')");
  const Json json = parse_json(text, source, 4);
  SafetensorsHeader header;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& item : json.items()) {  // no structured binding: clang cannot capture one where OpenMP is on
    const std::string& name = item.key();
    const Json& entry = item.value();
    require(entry.is_object(), source, ": the entry \"", name, "\" is not an object");
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.items()) {
        require(value.is_string(), source, ": the metadata entry \"", key, "\" is not a string");
        header.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    const auto bad = [&](const auto&... parts) { fail(source, ": tensor ", name, ": ", parts...); };
    for (const auto& [key, value] : entry.items())
      if (key != "dtype" && key != "shape" && key != "data_offsets") bad("unknown key \"", key, "\"");
    if (!entry.contains("dtype") || !entry["dtype"].is_string()) bad("no dtype");
    if (!entry.contains("shape") || !entry["shape"].is_array()) bad("no shape");
    if (!entry.contains("data_offsets") || !entry["data_offsets"].is_array() || entry["data_offsets"].size() != 2)
      bad("no pair of data_offsets");
    TensorInfo info{};
    const auto& dtype = entry["dtype"].get_ref<const std::string&>();
    bool known = false;
    for (const auto& [key, value] : detail::safetensors_dtypes)
      if (key == dtype) info.dtype = value, known = true;
    if (!known) bad("the dtype \"", dtype, "\" is not supported");
    for (const auto& extent : entry["shape"]) {
      if (!extent.is_number_unsigned() ||
          extent.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
        bad("a size is not a number from 0 to 2^63 - 1");
      info.shape.push_back(static_cast<Index>(extent.get<std::uint64_t>()));
    }
    for (const auto& offset : entry["data_offsets"])
      if (!offset.is_number_unsigned()) bad("a data offset is not a number from 0 to 2^64 - 1");
    info.begin = entry["data_offsets"][0].get<std::uint64_t>();
    info.end = entry["data_offsets"][1].get<std::uint64_t>();
    if (info.begin > info.end || info.end > data_bytes)
      bad("its bytes [", info.begin, ", ", info.end, ") lie outside the ", data_bytes,
          " bytes of data: the file is truncated or damaged");
    const auto bytes = detail::checked_bytes(info.shape, size_of(info.dtype));
    if (!bytes) bad("the sizes ", detail::print_shape(info.shape), " overflow");
    if (*bytes != info.end - info.begin)
      bad("shape ", detail::print_shape(info.shape), " of ", name_of(info.dtype), " takes ", *bytes,
          " bytes, the offsets give ", info.end - info.begin);
    ranges.emplace_back(info.begin, info.end);
    header.tensors.emplace(name, std::move(info));
  }
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t covered = 0;
  for (const auto& [begin, end] : ranges) {
    require(begin >= covered, source, ": two tensors share the bytes from ", begin, " on");
    require(begin == covered, source, ": the bytes [", covered, ", ", begin, ") belong to no tensor");
    covered = end;
  }
  require(covered == data_bytes, source, ": ", data_bytes - covered, " bytes at the end belong to no tensor");
  return header;
}

/// A safetensors file that is open for reading. Only the header is in memory; tensors are read when asked for, straight
/// into their place. Not thread-safe.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
    std::error_code error;
    require(std::filesystem::exists(path_, error), path_.string(), ": no such file");
    require(std::filesystem::is_regular_file(path_, error), path_.string(), ": not a file");
    file_.open(path_, std::ios::binary);
    require(file_.is_open(), path_.string(), ": the file cannot be opened");
    const std::uint64_t bytes = std::filesystem::file_size(path_);
    std::uint64_t length = 0;
    require(bytes >= 8, path_.string(), ": not a safetensors file (", bytes, " bytes)");
    read_bytes(0, &length, 8);
    require(length <= bytes - 8, path_.string(), ": the header of ", length, " bytes is longer than the file of ",
            bytes, " bytes: it is truncated, damaged, or no safetensors file");
    require(length <= max_safetensors_header, path_.string(), ": the header of ", length, " bytes is longer than ",
            max_safetensors_header);
    std::string text(static_cast<std::size_t>(length), '\0');
    read_bytes(8, text.data(), text.size());
    data_begin_ = 8 + length;
    header_ = parse_safetensors_header(text, bytes - data_begin_, path_.string());
  }

  const std::filesystem::path& path() const { return path_; }
  const std::map<std::string, TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  bool contains(const std::string& name) const { return header_.tensors.contains(name); }
  const TensorInfo& info(const std::string& name) const {
    const auto found = header_.tensors.find(name);
    require(found != header_.tensors.end(), path_.string(), ": there is no tensor ", name);
    return found->second;
  }

  /// The elements in row-major order. Floating-point dtypes convert into each other (rounding once) and integers into
  /// each other; anything else throws.
  template <class T>
  std::vector<T> values(const std::string& name) {
    const TensorInfo& tensor = info(name);
    std::vector<T> result(static_cast<std::size_t>(tensor.size()));
    convert_rows<T>(name, tensor, [&](Index first, Index count) {
      return std::span<T>(result.data() + first, static_cast<std::size_t>(count));
    });
    return result;
  }

  template <class T, int Rank>
  Tensor<T, Rank> tensor(const std::string& name) {
    const TensorInfo& stored = info(name);
    require(stored.shape.size() == static_cast<std::size_t>(Rank), path_.string(), ": tensor ", name, " has the shape ",
            detail::print_shape(stored.shape), ", expected ", Rank, " axes");
    Extents<Rank> extents;
    for (int axis = 0; axis < Rank; ++axis) extents[axis] = stored.shape[static_cast<std::size_t>(axis)];
    auto result = Tensor<T, Rank>::uninitialized(extents);
    read(name, result.view());
    return result;
  }

  /// Reads into memory of the caller, strided or not; the shapes must be equal.
  template <class T, int Rank>
  void read(const std::string& name, const View<T, Rank, cpu>& to) {
    const TensorInfo& stored = info(name);
    bool same = stored.shape.size() == static_cast<std::size_t>(Rank);
    for (int axis = 0; same && axis < Rank; ++axis)
      same = stored.shape[static_cast<std::size_t>(axis)] == to.extent(axis);
    require(same, path_.string(), ": tensor ", name, " has the shape ", detail::print_shape(stored.shape),
            ", expected ", to.extents());
    if (to.contiguous()) {
      convert_rows<T>(name, stored, [&](Index first, Index count) {
        return std::span<T>(to.data() + first, static_cast<std::size_t>(count));
      });
    } else {
      auto dense = Tensor<T, Rank>::uninitialized(to.extents());
      convert_rows<T>(name, stored, [&](Index first, Index count) {
        return std::span<T>(dense.data() + first, static_cast<std::size_t>(count));
      });
      copy(dense, to);
    }
  }

 private:
  void read_bytes(std::uint64_t offset, void* to, std::size_t bytes) {
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(offset));
    file_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    require(static_cast<std::size_t>(file_.gcount()) == bytes, path_.string(), ": the bytes [", offset, ", ",
            offset + bytes, ") cannot be read");
  }

  template <class T, class Target>
  void convert_rows(const std::string& name, const TensorInfo& tensor, Target&& target) {
    switch (tensor.dtype) {
      case Dtype::float64:
        return convert<double, T>(name, tensor, target);
      case Dtype::float32:
        return convert<float, T>(name, tensor, target);
      case Dtype::bfloat16:
        return convert<bfloat16, T>(name, tensor, target);
      case Dtype::float16:
        return convert<half, T>(name, tensor, target);
      case Dtype::int64:
        return convert<std::int64_t, T>(name, tensor, target);
      case Dtype::int32:
        return convert<std::int32_t, T>(name, tensor, target);
      case Dtype::uint8:
      case Dtype::boolean:
        return convert<std::uint8_t, T>(name, tensor, target);
    }
  }

  template <class From, class To, class Target>
  void convert(const std::string& name, const TensorInfo& tensor, Target& target) {
    const Index size = tensor.size();
    if constexpr (std::is_same_v<From, To>) {
      const std::span<To> all = target(0, size);
      read_bytes(data_begin_ + tensor.begin, all.data(), all.size_bytes());
    } else if constexpr (std::is_integral_v<From> != std::is_integral_v<To>) {
      fail(path_.string(), ": tensor ", name, " is ", name_of(tensor.dtype), " and cannot be read as ",
           name_of(dtype_of<To>));
    } else {
      constexpr Index block = 1 << 16;
      std::vector<From> buffer(static_cast<std::size_t>(std::min(size, block)));
      for (Index first = 0; first < size; first += block) {
        const std::span<To> part = target(first, std::min(block, size - first));
        read_bytes(data_begin_ + tensor.begin + static_cast<std::uint64_t>(first) * sizeof(From), buffer.data(),
                   part.size() * sizeof(From));
        for (std::size_t i = 0; i < part.size(); ++i) {
          if constexpr (std::is_integral_v<From>) {
            if constexpr (sizeof(From) > sizeof(To) || std::is_same_v<To, bool>)
              require(static_cast<From>(static_cast<To>(buffer[i])) == buffer[i], path_.string(), ": tensor ", name,
                      ": the value ", buffer[i], " does not fit into ", name_of(dtype_of<To>));
            part[i] = static_cast<To>(buffer[i]);
          } else if constexpr (std::is_same_v<To, bfloat16> || std::is_same_v<To, half>) {
            part[i] = To(static_cast<float>(buffer[i]));
          } else {
            part[i] = static_cast<To>(
                static_cast<std::conditional_t<std::is_same_v<From, double>, double, float>>(buffer[i]));
          }
        }
      }
    }
  }

  std::filesystem::path path_;
  std::ifstream file_;
  std::uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
};

/// A tensor under the name that it gets in the file: a view of somebody else's memory (strided ones are written
/// densely), or a function that makes the elements when their turn comes, so that only one such tensor is in memory at
/// a time.
struct NamedTensor {
  std::string name;
  Dtype dtype;
  std::vector<Index> shape, strides;  // strides in elements
  const void* data = nullptr;
  std::function<std::shared_ptr<const void>()> make = {};  // row-major elements, if data is null

  template <class T, int Rank>
  NamedTensor(std::string tensor_name, const View<T, Rank, cpu>& view)
      : NamedTensor(std::move(tensor_name), dtype_of<T>, view.extents(), view.strides()) {
    data = view.data();
  }
  /// On a GPU: copied to the host when it is written.
  template <class T, int Rank>
  NamedTensor(std::string tensor_name, const View<T, Rank, cuda>& view)
      : NamedTensor(std::move(tensor_name), dtype_of<T>, view.extents(), [view]() -> std::shared_ptr<const void> {
          auto here = std::make_shared<Tensor<std::remove_const_t<T>, Rank>>(to<cpu>(view));
          return {here, here->data()};
        }) {}
  template <class T, int Rank>
  NamedTensor(std::string tensor_name, const Tensor<T, Rank>& tensor)
      : NamedTensor(std::move(tensor_name), tensor.view()) {}
  template <int Rank>
  NamedTensor(std::string tensor_name, Dtype type, const Extents<Rank>& extents,
              std::function<std::shared_ptr<const void>()> maker)
      : NamedTensor(std::move(tensor_name), type, extents, row_major(extents)) {
    make = std::move(maker);
  }

 private:
  template <int Rank>
  NamedTensor(std::string tensor_name, Dtype type, const Extents<Rank>& extents, const Strides<Rank>& steps)
      : name(std::move(tensor_name)), dtype(type) {
    for (int axis = 0; axis < Rank; ++axis) {
      shape.push_back(extents[axis]);
      strides.push_back(steps[axis]);
    }
  }
};

/// Writes the file atomically: a full disk or a killed process leaves the old file as it was.
inline void save_safetensors(const std::filesystem::path& path, std::vector<NamedTensor> tensors,
                             const std::map<std::string, std::string>& metadata = {}) {
  // Wide elements first: then every tensor is aligned to its element.
  std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) {
    return size_of(a.dtype) != size_of(b.dtype) ? size_of(a.dtype) > size_of(b.dtype) : a.name < b.name;
  });
  Json json = Json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const auto& tensor : tensors) {
    require(tensor.name != "__metadata__" && !json.contains(tensor.name), path.string(), ": two tensors have the name ",
            tensor.name);
    const auto bytes = detail::checked_bytes(tensor.shape, size_of(tensor.dtype));
    require(bytes.has_value(), path.string(), ": tensor ", tensor.name, " is too large");
    json[tensor.name] = {{"dtype", detail::safetensors_name(tensor.dtype)},
                         {"shape", tensor.shape},
                         {"data_offsets", {offset, offset + *bytes}}};
    offset += *bytes;
  }
  std::string header = json.dump();
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = header.size();

  AtomicFile file(path);
  file.write(&length, 8);
  file.write(header);
  std::vector<char> buffer;
  const auto flush = [&] {
    file.write(buffer.data(), buffer.size());
    buffer.clear();
  };
  for (const auto& tensor : tensors) {
    const std::size_t element = size_of(tensor.dtype), rank = tensor.shape.size();
    std::size_t axis = rank;  // the axes from here on are dense
    Index run = 1;
    while (axis > 0 && (tensor.shape[axis - 1] == 1 || tensor.strides[axis - 1] == run)) run *= tensor.shape[--axis];
    Index rows = 1;
    for (std::size_t outer = 0; outer < axis; ++outer) rows *= tensor.shape[outer];
    if (run == 0 || rows == 0) continue;
    const std::shared_ptr<const void> made = tensor.data == nullptr ? tensor.make() : nullptr;
    const char* first = static_cast<const char*>(made ? made.get() : tensor.data);
    for (Index row = 0; row < rows; ++row) {
      Index rest = row, from = 0;
      for (std::size_t outer = axis; outer-- > 0;) {
        from += rest % tensor.shape[outer] * tensor.strides[outer];
        rest /= tensor.shape[outer];
      }
      const char* data = first + from * static_cast<Index>(element);
      const std::size_t bytes = static_cast<std::size_t>(run) * element;
      if (bytes >= (1u << 20)) {
        flush();
        file.write(data, bytes);
      } else {
        buffer.insert(buffer.end(), data, data + bytes);
        if (buffer.size() >= (1u << 20)) flush();
      }
    }
  }
  flush();
  file.commit();
}

}  // namespace diffmamba
