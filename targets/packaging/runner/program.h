// A compiled program on TVM's runtime, through its C interface: the same calls as tersor/targets/runtime/virtual_machine.py makes.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "errors.h"
#include "manifest.h"

namespace tersor {

inline void check_call(int code) {
  if (code == 0) return;
  TVMFFIObjectHandle error = nullptr;
  TVMFFIErrorMoveFromRaised(&error);
  if (error == nullptr) fail("the runtime failed without a message");
  const TVMFFIByteArray message = TVMFFIErrorGetCellPtr(error)->message;
  const std::string text(message.data, message.size);
  TVMFFIObjectDecRef(error);
  fail(text.substr(0, text.find('\n')));
}

// A value of the runtime, owned.
class Value {
 public:
  Value() = default;
  explicit Value(TVMFFIAny any) : any_(any) {}
  Value(Value&& other) noexcept : any_(std::exchange(other.any_, TVMFFIAny{})) {}
  Value& operator=(Value&& other) noexcept {
    std::swap(any_, other.any_);
    return *this;
  }
  ~Value() {
    if (any_.type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(any_.v_obj);
  }

  static Value object(int32_t type, TVMFFIObjectHandle handle) {
    TVMFFIAny any{};
    any.type_index = type;
    any.v_obj = static_cast<TVMFFIObject*>(handle);
    return Value(any);
  }

  const TVMFFIAny& any() const { return any_; }
  bool is_object() const { return any_.type_index >= kTVMFFIStaticObjectBegin; }

  // Calls this value, which is a function.
  Value operator()(std::vector<TVMFFIAny> arguments) const {
    TVMFFIAny result{};
    check_call(TVMFFIFunctionCall(any_.v_obj, arguments.data(), static_cast<int32_t>(arguments.size()), &result));
    return Value(result);
  }

 private:
  TVMFFIAny any_{};
};

inline TVMFFIAny integer(int64_t number) {
  TVMFFIAny any{};
  any.type_index = kTVMFFIInt;
  any.v_int64 = number;
  return any;
}

inline TVMFFIAny text(const char* characters) {
  TVMFFIAny any{};
  any.type_index = kTVMFFIRawStr;
  any.v_c_str = characters;
  return any;
}

inline Value global_function(const std::string& name) {
  const TVMFFIByteArray bytes{name.data(), name.size()};
  TVMFFIObjectHandle handle = nullptr;
  check_call(TVMFFIFunctionGetGlobal(&bytes, &handle));
  if (handle == nullptr) fail("the runtime has no function ", name, "; use the libraries that the bundle came with");
  return Value::object(kTVMFFIFunction, handle);
}

inline Value member(const Value& module, const char* name) {
  Value function = global_function("ffi.ModuleGetFunction")({module.any(), text(name), integer(0)});
  if (!function.is_object()) fail("the code has no function ", name);
  return function;
}

// A flat tensor on memory that outlives it.
inline Value flat_tensor(const ElementType& type, void* data, int64_t elements) {
  struct Owner {
    DLManagedTensor tensor{};
    int64_t shape = 0;
  };
  auto* owner = new Owner;
  owner->shape = elements;
  DLTensor& view = owner->tensor.dl_tensor;
  view.data = data;
  view.device = DLDevice{kDLCPU, 0};
  view.ndim = 1;
  view.dtype = DLDataType{type.dlpack_code, type.bits, 1};
  view.shape = &owner->shape;
  owner->tensor.manager_ctx = owner;
  owner->tensor.deleter = [](DLManagedTensor* self) { delete static_cast<Owner*>(self->manager_ctx); };
  TVMFFIObjectHandle handle = nullptr;
  check_call(TVMFFITensorFromDLPack(&owner->tensor, 0, 1, &handle));
  return Value::object(kTVMFFITensor, handle);
}

// Memory aligned as kernels expect their buffers.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) {
    const int64_t most = checked_product(sysconf(_SC_PHYS_PAGES), sysconf(_SC_PAGESIZE));
    if (bytes < most) data_.reset(std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment));
    if (!data_) fail("out of memory: ", bytes, " bytes for an input");
  }
  void* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
};

// The bytes of a file, mapped into memory and read when they are first used.
inline char* map_file(const std::string& path, int64_t bytes) {
  if (bytes == 0) return nullptr;
  const int file = open(path.c_str(), O_RDONLY);
  struct stat status {};
  if (file < 0 || fstat(file, &status) != 0 || status.st_size < bytes) fail(path, ": not readable");
  void* data = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (data == MAP_FAILED) fail(path, ": cannot be mapped into memory");
  return static_cast<char*>(data);
}

class Program {
 public:
  // `folder` holds what the manifest names; `threads` compute each call.
  Program(const std::string& folder, const Manifest& manifest, int threads) : manifest_(manifest) {
    // Read when the first kernel runs. Without the second, workers are pinned to cores, but not this thread.
    setenv("TVM_NUM_THREADS", std::to_string(threads).c_str(), 1);
    setenv("TVM_BIND_THREADS", "0", 0);
    int64_t constant_bytes = 0;
    for (const auto& [name, bytes] : manifest.files) {
      struct stat status {};
      const std::string path = folder + "/" + name;
      if (stat(path.c_str(), &status) != 0) fail(path, ": missing; copy the whole folder of the bundle");
      if (status.st_size != bytes) fail(path, ": ", status.st_size, " bytes instead of ", bytes, "; copy it again");
      if (name == "constants.bin") constant_bytes = bytes;
    }
    library_ = global_function("ffi.ModuleLoadFromFile")({text((folder + "/model.so").c_str())});
    machine_ = member(library_, "vm_load_executable")({});
    const int64_t pooled_memory = 2;
    member(machine_, "vm_initialization")({integer(kDLCPU), integer(0), integer(pooled_memory)});
    const int64_t all_cores_alike = 1;
    global_function("runtime.config_threadpool")({integer(all_cores_alike), integer(threads)});
    main_ = member(machine_, "main");
    load_constants(map_file(folder + "/constants.bin", constant_bytes));
  }

  // Computes the outputs of one call: a sequence of flat tensors.
  Value operator()(const std::vector<Buffer>& inputs) const {
    std::vector<Value> tensors;
    std::vector<TVMFFIAny> arguments;
    for (size_t index = 0; index < inputs.size(); ++index) {
      const Port& port = manifest_.inputs[index];
      tensors.push_back(flat_tensor(*port.type, inputs[index].data(), port.elements()));
      arguments.push_back(tensors.back().any());
    }
    arguments.push_back(constants_.any());
    return main_(std::move(arguments));
  }

  // The memory of one of the outputs, alive as long as they are; of the size that the manifest says.
  const void* output(const Value& outputs, int64_t index) const {
    const Value item = global_function("ffi.ArrayGetItem")({outputs.any(), integer(index)});
    if (item.any().type_index != kTVMFFITensor) fail("output ", index, " of the code is no array");
    const DLTensor* tensor = TVMFFITensorGetDLTensorPtr(item.any().v_obj);
    const Port& port = manifest_.outputs[index];
    if (tensor->ndim != 1 || tensor->shape[0] != port.elements() || tensor->dtype.bits != port.type->bits) {
      fail("manifest.txt: output ", port.name, " has another size in the code; copy the bundle again");
    }
    return static_cast<const char*>(tensor->data) + tensor->byte_offset;
  }

 private:
  void load_constants(char* data) {
    std::vector<Value> tensors;
    std::vector<TVMFFIAny> views;
    alignas(kAlignment) static char nothing[kAlignment];
    for (const Constant& constant : manifest_.constants) {
      char* first = constant.elements ? data + constant.offset : nothing;
      tensors.push_back(flat_tensor(*constant.type, first, constant.elements));
      views.push_back(tensors.back().any());
    }
    constants_ = global_function("ffi.Array")(std::move(views));
  }

  const Manifest& manifest_;
  Value library_, machine_, main_, constants_;
};

}  // namespace tersor
