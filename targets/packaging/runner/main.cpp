// Runs a bundle that Tersor made: a compiled model on a machine without Python.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "errors.h"
#include "machine.h"
#include "manifest.h"
#include "npy.h"
#include "program.h"

namespace tersor {
namespace {

constexpr char kUsage[] =
    "usage: run [--input FILE.npy]... [--output FILE.npy]... [--bench N] [--threads N] [--bundle DIR]\n"
    "\n"
    "  --input FILE.npy    an input, in the model's order; random numbers if there are none\n"
    "  --output FILE.npy   where to write an output, in the model's order\n"
    "  --bench N           time N calls\n"
    "  --threads N         threads of one call; all processors if omitted\n"
    "  --bundle DIR        the bundle to run; the one that this program lies in if omitted\n";

struct Options {
  std::vector<std::string> inputs, outputs;
  std::string bundle;
  int bench = 0;
  int threads = 0;
  bool help = false;
};

int usable_processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

int positive_number(const std::string& option, const std::string& text, int most) {
  char* end = nullptr;
  const long number = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || number < 1 || number > most) {
    fail(option, " must be a whole number between 1 and ", most, ", not ", text);
  }
  return static_cast<int>(number);
}

std::string own_folder() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length < 0) fail("cannot find out where this program lies; give --bundle DIR");
  const std::string program(path, length);
  return program.substr(0, program.rfind('/'));
}

Options parse_options(int count, char** arguments) {
  Options options;
  options.threads = usable_processors();
  for (int index = 1; index < count; ++index) {
    const std::string option = arguments[index];
    if (option == "--help" || option == "-h") {
      options.help = true;
      return options;
    }
    const auto known = {"--input", "--output", "--bench", "--threads", "--bundle"};
    if (std::find(known.begin(), known.end(), option) == known.end()) fail("unknown option ", option, "; see --help");
    if (++index == count) fail(option, " needs a value; see --help");
    const std::string value = arguments[index];
    if (option == "--input") options.inputs.push_back(value);
    if (option == "--output") options.outputs.push_back(value);
    if (option == "--bench") options.bench = positive_number(option, value, 1000000);
    if (option == "--threads") options.threads = positive_number(option, value, 1024);
    if (option == "--bundle") options.bundle = value;
  }
  if (options.bundle.empty()) options.bundle = own_folder();
  return options;
}

// Row numbers outside of their table would read past its end.
void check_rows(const Port& port, const void* data) {
  const int unused = 64 - port.type->bits;
  const char* element = static_cast<const char*>(data);
  for (int64_t index = port.elements(); index > 0; --index, element += port.type->bytes()) {
    uint64_t bits = 0;
    std::memcpy(&bits, element, port.type->bytes());
    const bool is_signed = port.type->numpy[0] == 'i';
    const int64_t row = is_signed ? static_cast<int64_t>(bits << unused) >> unused : static_cast<int64_t>(bits);
    if (row < 0 || row >= port.rows) {
      fail("input ", port.name, " must hold row numbers from 0 to ", port.rows - 1, ", not ", row);
    }
  }
}

// Random numbers in -1 ... 1 for floats, zero for row numbers, one for booleans and other integers.
void fill(const Port& port, void* data) {
  uint32_t state = 1;
  const int64_t elements = port.elements();
  for (int64_t index = 0; index < elements; ++index) {
    state = state * 1664525 + 1013904223;  // Numerical Recipes' linear congruential generator
    const float number = static_cast<float>(state >> 8) / (1 << 23) - 1;
    char* element = static_cast<char*>(data) + index * port.type->bytes();
    std::memset(element, 0, port.type->bytes());
    const std::string type = port.type->name;
    if (type == "float32") std::memcpy(element, &number, sizeof number);
    if (type == "bfloat16") std::memcpy(element, reinterpret_cast<const char*>(&number) + 2, 2);
    if (port.type->numpy[0] != 'f' && type != "bfloat16" && port.rows == 0) *element = 1;
  }
}

std::vector<Buffer> make_inputs(const Manifest& manifest, const std::vector<std::string>& paths) {
  if (!paths.empty() && paths.size() != manifest.inputs.size()) {
    std::string wanted;
    for (const Port& port : manifest.inputs) wanted += " " + port.name + ":" + describe(port.type->name, port.shape);
    fail(manifest.model, " takes ", manifest.inputs.size(), " inputs (", wanted.substr(1), "), got ", paths.size());
  }
  std::vector<Buffer> inputs;
  for (size_t index = 0; index < manifest.inputs.size(); ++index) {
    const Port& port = manifest.inputs[index];
    inputs.emplace_back(port.bytes());
    void* data = inputs.back().data();
    if (paths.empty()) {
      fill(port, data);
      continue;
    }
    read_npy(paths[index], port, data);
    if (port.rows) check_rows(port, data);
  }
  return inputs;
}

void bench(const Program& program, const std::vector<Buffer>& inputs, int runs, int threads) {
  const int warm_up = std::min(runs, 3);
  std::vector<double> times;
  for (int run = -warm_up; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    program(inputs);
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
    if (run >= 0) times.push_back(elapsed.count());
  }
  std::sort(times.begin(), times.end());
  const auto quantile = [&](double part) { return times[static_cast<size_t>(part * (times.size() - 1) + 0.5)]; };
  std::printf("%.3f ms median (min %.3f, p10 %.3f, p90 %.3f; %d runs, %d threads)\n", quantile(0.5), times.front(),
              quantile(0.1), quantile(0.9), runs, threads);
}

int run(const Options& options) {
  const Manifest manifest = read_manifest(options.bundle + "/manifest.txt");
  check_machine(manifest);
  if (options.outputs.size() > manifest.outputs.size()) {
    fail(manifest.model, " has ", manifest.outputs.size(), " outputs, not ", options.outputs.size());
  }
  const std::vector<Buffer> inputs = make_inputs(manifest, options.inputs);
  const Program program(options.bundle, manifest, options.threads);
  const Value outputs = program(inputs);
  for (size_t index = 0; index < manifest.outputs.size(); ++index) {
    const Port& port = manifest.outputs[index];
    if (index < options.outputs.size()) write_npy(options.outputs[index], port, program.output(outputs, index));
    std::printf("%s: %s%s%s\n", port.name.c_str(), describe(port.type->name, port.shape).c_str(),
                index < options.outputs.size() ? " written to " : "",
                index < options.outputs.size() ? options.outputs[index].c_str() : "");
  }
  if (options.bench) bench(program, inputs, options.bench, options.threads);
  return 0;
}

}  // namespace
}  // namespace tersor

int main(int count, char** arguments) {
  try {
    const tersor::Options options = tersor::parse_options(count, arguments);
    if (options.help) {
      std::fputs(tersor::kUsage, stdout);
      return 0;
    }
    return tersor::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run: %s\n", error.what());
    return 2;
  }
}
