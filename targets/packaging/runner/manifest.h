// What a bundle contains: manifest.txt, one entry a line, words separated by single spaces.
//
//   tersor-bundle 1                          format, first line
//   model NAME
//   target arm:cortex-a72
//   machine aarch64                          what `uname -m` says
//   feature asimddp                          an instruction set that the code uses
//   file constants.bin 18739200              a file and its size in bytes
//   input float32 1x3x224x224 0 NAME         element type, shape, rows of the table that it indexes or 0, name
//   output float32 1x1000 0 NAME
//   constant float32 0 9408                  element type, offset in constants.bin, elements
#pragma once

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "errors.h"
#include "numbers.h"

namespace tersor {

constexpr int64_t kAlignment = 64;  // bytes, of every buffer that kernels read

// An element type: its name, NumPy's name without byte order, and what the compiled code takes it as.
struct ElementType {
  const char* name;
  const char* numpy;
  uint8_t dlpack_code;
  uint8_t bits;

  int64_t bytes() const { return bits / 8; }
  bool counts() const { return numpy[0] == 'i' || (numpy[0] == 'u' && name[0] == 'u'); }  // so not bfloat16, bool
};

inline const ElementType& element_type(const std::string& name) {
  enum : uint8_t { kInt = 0, kUInt = 1, kFloat = 2 };  // DLPack's codes
  static const ElementType types[] = {
      {"float32", "f4", kFloat, 32}, {"float64", "f8", kFloat, 64}, {"float16", "f2", kFloat, 16},
      {"bfloat16", "u2", kUInt, 16},  // NumPy has no bfloat16: files hold its 16 bits
      {"int64", "i8", kInt, 64},     {"int32", "i4", kInt, 32},     {"int16", "i2", kInt, 16},
      {"int8", "i1", kInt, 8},       {"uint8", "u1", kUInt, 8},     {"uint16", "u2", kUInt, 16},
      {"uint32", "u4", kUInt, 32},   {"bool", "b1", kUInt, 8},
  };
  for (const ElementType& type : types) {
    if (name == type.name) return type;
  }
  fail("unknown element type ", name, ", or a runner of another version of Tersor");
}

// A multidimensional array's type.
struct Port {
  std::string name;
  const ElementType* type = nullptr;
  std::vector<int64_t> shape;
  int64_t rows = 0;  // of the table that the numbers are row numbers of; 0: any numbers

  int64_t elements() const {
    int64_t count = 1;
    for (int64_t extent : shape) count = checked_product(count, extent);
    return count;
  }
  int64_t bytes() const { return checked_product(elements(), type->bytes()); }
};

struct Constant {
  const ElementType* type;
  int64_t offset;  // bytes
  int64_t elements;
};

struct Manifest {
  std::string model, target, machine;
  std::vector<std::string> features;
  std::vector<std::pair<std::string, int64_t>> files;
  std::vector<Port> inputs, outputs;
  std::vector<Constant> constants;
};

// "1x3x224x224" or "scalar".
inline std::vector<int64_t> parse_shape(const std::string& text) {
  std::vector<int64_t> shape;
  if (text == "scalar") return shape;
  std::istringstream extents(text);
  for (std::string extent; std::getline(extents, extent, 'x');) shape.push_back(parse_number(extent));
  return shape;
}

inline std::string describe(const std::string& type, const std::vector<int64_t>& shape) {
  std::string text = type + "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) text += (axis ? "," : "") + std::to_string(shape[axis]);
  return text + "]";
}

inline Port parse_port(std::istringstream& words) {
  Port port;
  std::string type, shape, rows;
  words >> type >> shape >> rows >> std::ws;
  std::getline(words, port.name);
  port.type = &element_type(type);
  port.shape = parse_shape(shape);
  port.rows = parse_number(rows);
  if (port.rows && !port.type->counts()) fail("row numbers of type ", type);
  port.bytes();  // fails if there are too many
  return port;
}

// Every constant must start where kernels may read vectors, and end within the file.
inline void check_constants(const Manifest& manifest) {
  int64_t available = 0;
  for (const auto& [name, bytes] : manifest.files) {
    if (name == "constants.bin") available = bytes;
  }
  for (const Constant& constant : manifest.constants) {
    if (constant.offset % kAlignment || constant.offset > available ||
        constant.elements > (available - constant.offset) / constant.type->bytes()) {
      fail("a constant is not within constants.bin");
    }
  }
}

inline void parse_entry(const std::string& line, Manifest& manifest) {
  std::istringstream words(line);
  std::string key, text, first, second;
  words >> key >> std::ws;
  if (key == "model") {
    std::getline(words, manifest.model);
  } else if (key == "target") {
    words >> manifest.target;
  } else if (key == "machine") {
    words >> manifest.machine;
  } else if (key == "feature") {
    words >> text;
    manifest.features.push_back(text);
  } else if (key == "file") {
    words >> text >> first;
    manifest.files.emplace_back(text, parse_number(first));
  } else if (key == "input" || key == "output") {
    (key == "input" ? manifest.inputs : manifest.outputs).push_back(parse_port(words));
  } else if (key == "constant") {
    words >> text >> first >> second;
    manifest.constants.push_back({&element_type(text), parse_number(first), parse_number(second)});
  } else {
    fail("unknown entry ", key, ", or a runner of another version of Tersor");
  }
  if (words.fail()) fail("incomplete line: ", line);
}

inline Manifest read_manifest(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail(path, ": not readable; copy the whole folder of the bundle, or name it with --bundle");
  std::string line;
  std::getline(file, line);
  if (line != "tersor-bundle 1") fail(path, ": not the manifest of a bundle that this runner knows");
  Manifest manifest;
  try {
    while (std::getline(file, line)) parse_entry(line, manifest);
    check_constants(manifest);
  } catch (const Error& error) {
    fail(path, ": ", error.what(), "; copy the bundle again");
  }
  return manifest;
}

}  // namespace tersor
