// Whether this machine can run the code of a bundle.
#pragma once

#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <sys/syscall.h>
#endif

#include "errors.h"
#include "manifest.h"

namespace tersor {

// Instruction sets that this process may use, by the names that /proc/cpuinfo shows.
inline std::set<std::string> available_features() {
  std::set<std::string> found;
#if defined(__aarch64__)
  struct Capability {
    const char* name;
    unsigned long vector;
    int bit;
  };
  static const Capability known[] = {
      {"fp", AT_HWCAP, 0},        {"asimd", AT_HWCAP, 1},    {"atomics", AT_HWCAP, 8}, {"fphp", AT_HWCAP, 9},
      {"asimdhp", AT_HWCAP, 10},  {"asimdrdm", AT_HWCAP, 12}, {"asimddp", AT_HWCAP, 20}, {"i8mm", AT_HWCAP2, 13},
  };
  for (const Capability& one : known) {
    if (getauxval(one.vector) >> one.bit & 1) found.insert(one.name);
  }
#else
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.compare(0, 5, "flags") != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) found.insert(word);
    break;
  }
#if defined(__x86_64__)
  const long request_permission = 0x1023, tile_data = 18;  // Linux gives the matrix unit's registers to who asks
  if (found.count("amx_tile") && syscall(SYS_arch_prctl, request_permission, tile_data) != 0) {
    for (const char* name : {"amx_tile", "amx_bf16", "amx_int8"}) found.erase(name);
  }
#endif
#endif
  return found;
}

// Throws unless this is the architecture that the bundle is for, with all instruction sets that its code uses.
inline void check_machine(const Manifest& manifest) {
  utsname system{};
  uname(&system);
  if (manifest.machine != system.machine) {
    fail("this bundle is for ", manifest.machine, " (", manifest.target, "), this machine is ", system.machine,
         "; compile the model for it: tersor compile MODEL --target TARGET --bundle DIR");
  }
  const std::set<std::string> available = available_features();
  std::string missing;
  for (const std::string& name : manifest.features) {
    if (!available.count(name)) missing += (missing.empty() ? "" : ", ") + name;
  }
  if (!missing.empty()) {
    fail("this bundle is for ", manifest.target, ", this processor lacks ", missing,
         "; compile the model for an older one: tersor compile MODEL --target TARGET --bundle DIR");
  }
}

}  // namespace tersor
