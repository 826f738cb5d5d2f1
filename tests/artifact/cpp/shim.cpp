// The C++ runner for ctypes: tensors are plain structures, errors are text.
#include "fuseline.h"

#include <cstring>

namespace {

struct Item {
  void *data;
  int64_t number, shape[8], strides[8];
  int32_t dtype, dims, kind, unused;  // kind: 0 a tensor, 1 one without strides, 2 an integer
};

struct Handle {
  fuseline::Artifact artifact;
  std::vector<fuseline::Output> results;  // of the latest call
};

fuseline::Tensor tensor_of(const Item &item) {
  fuseline::Tensor t{item.data, static_cast<fuseline::DType>(item.dtype),
                     {item.shape, item.shape + item.dims}, {}};
  if (item.kind == 0) t.strides.assign(item.strides, item.strides + item.dims);
  return t;
}

Item item_of(const fuseline::Tensor &t) {
  Item item = {};
  item.data = t.data, item.dtype = static_cast<int32_t>(t.dtype),
      item.dims = static_cast<int32_t>(t.shape.size());
  for (size_t d = 0; d < t.shape.size(); ++d) item.shape[d] = t.shape[d],
      item.strides[d] = t.strides[d];
  return item;
}

template <class F>
int guarded(char *error, size_t room, F function) {
  try {
    return function();
  } catch (const std::exception &caught) {
    strncpy(error, caught.what(), room - 1);
    return -1;
  }
}

}  // namespace

extern "C" {

void *cpp_open(const char *path, const char *target, int threads, void *sgemm, char *error,
               size_t room) {
  Handle *handle = nullptr;
  guarded(error, room, [&] {
    fuseline::Options options;
    options.target = target, options.threads = threads;
    options.sgemm = reinterpret_cast<fuseline::Sgemm>(sgemm);
    handle = new Handle{fuseline::Artifact::open(path, options), {}};
    return 0;
  });
  return handle;
}

void cpp_close(void *handle) { delete static_cast<Handle *>(handle); }
void cpp_reset(void *handle) { static_cast<Handle *>(handle)->artifact.reset(); }

// Into the memory of `out` if `n_out` is not negative; else `out`, with room for 16, tells them.
int cpp_run(void *handle, const char *name, const Item *in, int n_in, Item *out, int n_out,
            int only_shapes,
            char *error, size_t room) {
  return guarded(error, room, [&] {
    Handle &own = *static_cast<Handle *>(handle);
    const fuseline::Program program = own.artifact.program(name);
    std::vector<fuseline::Argument> inputs;
    for (int i = 0; i < n_in; ++i)
      inputs.push_back(in[i].kind == 2 ? fuseline::Argument(in[i].number)
                       : fuseline::Argument(tensor_of(in[i])));
    if (n_out >= 0) {
      std::vector<fuseline::Tensor> outputs;
      for (int i = 0; i < n_out; ++i) outputs.push_back(tensor_of(out[i]));
      program.run(inputs, outputs);
      return n_out;
    }
    if (only_shapes) {
      int count = 0;
      for (const fuseline::Tensor &t : program.shapes(inputs)) out[count++] = item_of(t);
      return count;
    }
    own.results = program.run(inputs);
    for (size_t i = 0; i < own.results.size() && i < 16; ++i) out[i] =
        item_of(own.results[i].tensor);
    return static_cast<int>(own.results.size());
  });
}

}  // extern "C"
