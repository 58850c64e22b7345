// Numbers that stand in files: read whole, never negative, and multiplied without overflow. A file may claim anything.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <system_error>

#include "errors.h"

namespace tersor {

inline int64_t parse_number(const std::string& text) {
  int64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || number < 0) fail("'", text.substr(0, 40), "' is not a whole number");
  return number;
}

inline int64_t checked_product(int64_t left, int64_t right) {
  int64_t product = 0;
  if (__builtin_mul_overflow(left, right, &product)) fail("an array of ", left, " times ", right, " is too large");
  return product;
}

}  // namespace tersor
