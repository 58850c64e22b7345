// Reads pairs of a manifest and an array as the runner of bundles does; says for each whether it was read or refused.
#include <cstdio>

#include "manifest.h"
#include "npy.h"

int main(int count, char** arguments) {
  for (int index = 1; index + 1 < count; index += 2) {
    try {
      const tersor::Manifest manifest = tersor::read_manifest(arguments[index]);
      for (const tersor::Port& port : manifest.inputs) {
        if (port.bytes() > 1 << 20) tersor::fail("out of memory");
        std::vector<char> data(port.bytes());
        tersor::read_npy(arguments[index + 1], port, data.data());
      }
      std::puts("read\nend");
    } catch (const tersor::Error& error) {
      std::printf("refused: %s\nend\n", error.what());
    }
  }
}
