// How the runner gives up: one line for the user, exit code 2.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tersor {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws an Error whose message is all parts joined; files may have put anything in it, so it is cut.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str().substr(0, 500));
}

}  // namespace tersor
