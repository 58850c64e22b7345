// Arrays in NumPy's .npy files: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "errors.h"
#include "manifest.h"

namespace tersor {

// What follows 'KEY': in the header's dictionary, up to one of the characters of `end`.
inline std::string header_value(const std::string& path, const std::string& header, const std::string& key,
                                const char* end) {
  const size_t at = header.find("'" + key + "':");
  const size_t begin = at == std::string::npos ? at : header.find_first_not_of(' ', at + key.size() + 3);
  const size_t stop = begin == std::string::npos ? begin : header.find_first_of(end, begin + 1);
  if (stop == std::string::npos) fail(path, ": no ", key, " in the header; write it with numpy.save");
  return header.substr(begin, stop - begin);
}

// Reads the array that `port` wants into `data`, of port.bytes() bytes. What the header claims is only compared.
inline void read_npy(const std::string& path, const Port& port, void* data) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path, ": not readable");
  char magic[8] = {};
  file.read(magic, sizeof magic);
  if (std::memcmp(magic, "\x93NUMPY", 6) != 0) fail(path, ": not a .npy file; write it with numpy.save");
  unsigned char length[4] = {};
  file.read(reinterpret_cast<char*>(length), magic[6] == 1 ? 2 : 4);
  if (length[2] || length[3]) fail(path, ": a header of 64 KiB or more; write it with numpy.save");
  std::string header(length[0] | length[1] << 8, '\0');
  file.read(header.data(), header.size());
  if (!file) fail(path, ": truncated; write it again");

  const std::string wanted = "input " + port.name + " must be " + describe(port.type->name, port.shape);
  const std::string descr = header_value(path, header, "descr", ",").substr(1, 3);  // between quotes
  if (descr[0] == '>' || descr.find(port.type->numpy) != 1) {
    fail(path, ": ", wanted, ", this is of type ", descr);
  }
  std::vector<int64_t> shape;
  std::string extents = header_value(path, header, "shape", ")").substr(1);
  for (char& c : extents) c = c == ',' ? ' ' : c;
  std::istringstream numbers(extents);
  for (int64_t extent; numbers >> extent;) shape.push_back(extent);
  if (shape != port.shape) fail(path, ": ", wanted, ", this is ", describe(descr, shape));
  if (header_value(path, header, "fortran_order", ",") != "False") {
    fail(path, ": in Fortran's order; save numpy.ascontiguousarray of it");
  }
  file.read(static_cast<char*>(data), port.bytes());
  if (file.gcount() != port.bytes()) fail(path, ": truncated; write it again");
}

// Writes `data`, of port.bytes() bytes.
inline void write_npy(const std::string& path, const Port& port, const void* data) {
  std::string header = std::string("{'descr': '") + (port.type->bits == 8 ? "|" : "<") + port.type->numpy +
                       "', 'fortran_order': False, 'shape': (";
  for (int64_t extent : port.shape) header += std::to_string(extent) + ",";
  header += "), }";
  const size_t prefix = 10, alignment = 64;
  header.append(alignment - 1 - (prefix + header.size()) % alignment, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  const char length[2] = {static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  file.write(length, sizeof length);
  file << header;
  file.write(static_cast<const char*>(data), port.bytes());
  file.flush();
  if (!file) fail(path, ": cannot be written; choose another output path");
}

}  // namespace tersor
