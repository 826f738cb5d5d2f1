// The way from Python into the runner: reads tensors by torch's DLPack exchange table, with no torch
// header and no call into Python. `fuseline.runtime.native.fallback` does the same in Python.
#include "fuseline_abi.h"

#define PY_SSIZE_T_CLEAN
#define NDEBUG  // the assertions of its headers name the folder that they lie in
#include <Python.h>

namespace {

// -- what is needed of DLPack 1.x (dlpack.h) ------------------------------------------------------

struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DLPackExchangeAPI {
  struct {
    uint32_t major, minor;
    void *previous;
  } header;
  void *allocate, *from_py_object, *to_py_object;
  int (*dltensor_from_py_object_no_sync)(void *object, DLTensor *out);
  void *current_work_stream;
};
constexpr int32_t kCpu = 1, kCuda = 2, kCudaHost = 3;
constexpr uintptr_t kCudaAlignment = 16;  // of a tensor's first byte: kernels read as much at once

const DLPackExchangeAPI *exchange = nullptr;
PyTypeObject *tensor_type = nullptr;

struct Runner {
  void (*set)(fl_piece *, int32_t, void *);
  int32_t (*uses)(const fl_piece *, int32_t);
  int32_t (*begin)(fl_piece *);
  void (*go)(fl_piece *);
  int32_t (*fault)(fl_piece *);
  void (*end)(fl_piece *);
} runner;

// Fills `out`; false, with no exception set, for what is no tensor in memory that has an address.
bool read_tensor(PyObject *object, DLTensor *out) {
  if (!PyObject_TypeCheck(object, tensor_type)) return false;
  if (exchange->dltensor_from_py_object_no_sync(object, out) != 0) {
    PyErr_Clear();
    return false;
  }
  if (out->device.type == kCudaHost) out->device = {kCpu, 0};
  return out->device.type == kCpu || out->device.type == kCuda;
}

// Whether an object is a list or a tuple; if not, TypeError is set.
bool is_list_or_tuple(PyObject *object) {
  if (PyList_Check(object) || PyTuple_Check(object)) return true;
  PyErr_Format(PyExc_TypeError, "expected a list or a tuple, not %s", Py_TYPE(object)->tp_name);
  return false;
}

// -- run(piece, tensors) --------------------------------------------------------------------------

// args: the address of the piece, the tensor or None of each of its slots. True; False if busy; or
// the number of the step at fault, from 1 on.
PyObject *run(PyObject *, PyObject *const *args, Py_ssize_t n_args) {
  if (n_args != 2) {
    PyErr_SetString(PyExc_TypeError, "run takes a piece and its tensors");
    return nullptr;
  }
  fl_piece *piece = static_cast<fl_piece *>(PyLong_AsVoidPtr(args[0]));
  if (!piece) return nullptr;
  if (!is_list_or_tuple(args[1])) return nullptr;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(args[1]);
  PyObject *const *items = PySequence_Fast_ITEMS(args[1]);
  if (runner.begin(piece)) Py_RETURN_FALSE;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (items[i] == Py_None || !runner.uses(piece, static_cast<int32_t>(i))) continue;
    DLTensor tensor;
    if (!read_tensor(items[i], &tensor)) {
      runner.end(piece);
      PyErr_Format(PyExc_TypeError, "slot %zd: expected a tensor on the CPU or a GPU, not %R", i,
                   reinterpret_cast<PyObject *>(Py_TYPE(items[i])));
      return nullptr;
    }
    runner.set(piece, static_cast<int32_t>(i), static_cast<char *>(tensor.data) + tensor.byte_offset);
  }
  Py_BEGIN_ALLOW_THREADS;
  runner.go(piece);
  Py_END_ALLOW_THREADS;
  const int32_t fault = runner.fault(piece);
  runner.end(piece);
  if (fault) return PyLong_FromLong(fault);
  Py_RETURN_TRUE;
}

// -- addresses(arguments, numbers) ----------------------------------------------------------------

// Where the tensors with these numbers (int32, as bytes) lie: as bytes, to be compared.
PyObject *addresses(PyObject *, PyObject *const *args, Py_ssize_t n_args) {
  if (n_args != 2 || !PyBytes_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "addresses takes arguments and numbers as bytes");
    return nullptr;
  }
  if (!is_list_or_tuple(args[0])) return nullptr;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(args[0]);
  PyObject *const *items = PySequence_Fast_ITEMS(args[0]);
  const Py_ssize_t wanted = PyBytes_GET_SIZE(args[1]) / static_cast<Py_ssize_t>(sizeof(int32_t));
  const char *numbers = PyBytes_AS_STRING(args[1]);
  PyObject *found = PyBytes_FromStringAndSize(nullptr, wanted * sizeof(uintptr_t));
  if (!found) return nullptr;
  char *out = PyBytes_AS_STRING(found);
  for (Py_ssize_t i = 0; i < wanted; ++i) {
    int32_t number;
    memcpy(&number, numbers + i * sizeof(number), sizeof(number));
    DLTensor tensor;
    if (number < 0 || number >= count || !read_tensor(items[number], &tensor)) {
      Py_DECREF(found);
      PyErr_Format(PyExc_TypeError, "argument %d: expected a tensor on the CPU or a GPU", number);
      return nullptr;
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
    memcpy(out + i * sizeof(address), &address, sizeof(address));
  }
  return found;
}

// -- match(signature, arguments) ------------------------------------------------------------------

// What is expected of one argument; `dims` and `strides` are runs of int64 in the signature.
struct Expected {
  int32_t kind;    // 0 a tensor, 1 an integer
  int32_t dtype;   // DLPack code * 256 + bits
  int32_t ndim;
  int32_t layout;  // 0 any strides, 1 contiguous, 2 the strides given
  int32_t memory;  // 0 not looked at, 1 read, 2 written; and kAskew
};
constexpr int32_t kAskew = 4;  // may begin anywhere

// From the first element of a tensor to the last one, by address.
struct Span {
  uintptr_t first, last;
  int32_t memory;
};

// A word stands for a dim, a stride or an integer: a value, or one of these.
constexpr int64_t kAny = INT64_MIN, kFirstSymbol = INT64_MIN + 1, kUnknown = INT64_MIN;

struct Signature {
  PyObject_HEAD
  int32_t n_args, n_symbols;
  DLDevice device;  // where all tensors must be
  Expected *expected;
  int64_t *words;   // of each argument in order: dims, then strides; of an integer its value
  int64_t *ranges;  // of each symbol: least, greatest
  int64_t *values;  // of each symbol, in the call at hand
  Span *spans;      // of the tensors that are looked at, in the call at hand
  int32_t n_spans;
  PyObject *last;   // the tuple of the values of the last call
};

// Notes a tensor's memory; false if it shares some with an earlier one, and either is written.
bool apart(Signature *s, const Expected &e, const DLTensor &t) {
  Span span{reinterpret_cast<uintptr_t>(t.data) + t.byte_offset, 0,
            e.memory & ~kAskew};
  int64_t reach = 0;
  for (int32_t d = 0; d < t.ndim; ++d) {
    if (t.shape[d] == 0) return true;
    reach += (t.shape[d] - 1) * t.strides[d];
  }
  span.last = span.first + reach * (t.dtype.bits / 8);
  for (int32_t i = 0; i < s->n_spans; ++i) {
    const Span &other = s->spans[i];
    if ((span.memory == 2 || other.memory == 2) && other.first <= span.last &&
        span.first <= other.last)
      return false;
  }
  s->spans[s->n_spans++] = span;
  return true;
}

bool agree(Signature *s, int64_t word, int64_t value) {
  if (word == kAny) return true;
  int64_t symbol = word - kFirstSymbol;
  if (word >= 0 || symbol >= s->n_symbols) return word == value;
  int64_t &known = s->values[symbol];
  if (known != kUnknown) return known == value;
  known = value;
  return s->ranges[2 * symbol] <= value && value <= s->ranges[2 * symbol + 1];
}

bool contiguous(const DLTensor &t) {
  int64_t expected = 1;
  bool dense = true;
  for (int32_t d = t.ndim - 1; d >= 0; --d) {
    if (t.shape[d] == 0) return true;
    if (t.shape[d] != 1 && t.strides[d] != expected) dense = false;
    expected *= t.shape[d];
  }
  return dense;
}

// `overlaps` is set for a tensor that shares memory with an earlier one.
bool agrees(Signature *s, const Expected &e, const int64_t *words, PyObject *object,
            bool *overlaps) {
  if (e.kind == 1) {
    if (!PyLong_Check(object)) return false;
    int64_t value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    return agree(s, words[0], value);
  }
  DLTensor t;
  if (!read_tensor(object, &t) || t.ndim != e.ndim) return false;
  if (t.device.type != s->device.type || t.device.id != s->device.id) return false;
  const uintptr_t address = reinterpret_cast<uintptr_t>(t.data) + t.byte_offset;
  if (t.device.type == kCuda && !(e.memory & kAskew) && address % kCudaAlignment) return false;
  if (t.dtype.lanes != 1 || t.dtype.code * 256 + t.dtype.bits != e.dtype) return false;
  for (int32_t d = 0; d < t.ndim; ++d)
    if (!agree(s, words[d], t.shape[d])) return false;
  if ((e.memory & ~kAskew) && !apart(s, e, t)) *overlaps = true;
  if (e.layout == 1) return contiguous(t);
  if (e.layout == 2)
    for (int32_t d = 0; d < t.ndim; ++d)
      if (t.shape[d] > 1 && !agree(s, words[t.ndim + d], t.strides[d])) return false;
  return true;
}

// The tuple of the values of the symbols; the same object as the last time if they are the same.
PyObject *values_of(Signature *s) {
  bool same = s->last != nullptr;
  for (int32_t i = 0; same && i < s->n_symbols; ++i)
    same = PyLong_AsLongLong(PyTuple_GET_ITEM(s->last, i)) == s->values[i];
  if (same) return Py_NewRef(s->last);
  PyObject *fresh = PyTuple_New(s->n_symbols);
  if (!fresh) return nullptr;
  for (int32_t i = 0; i < s->n_symbols; ++i) {
    PyObject *value = PyLong_FromLongLong(s->values[i]);
    if (!value) {
      Py_DECREF(fresh);
      return nullptr;
    }
    PyTuple_SET_ITEM(fresh, i, value);
  }
  Py_XSETREF(s->last, Py_NewRef(fresh));
  return fresh;
}

// The symbols' values as a tuple, or the number of the first argument that does not agree; if all
// do, -1 less the number of the first one that shares memory with an earlier one.
PyObject *match(PyObject *self, PyObject *arguments) {
  Signature *s = reinterpret_cast<Signature *>(self);
  if (!is_list_or_tuple(arguments)) return nullptr;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(arguments);
  PyObject *const *items = PySequence_Fast_ITEMS(arguments);
  for (int32_t i = 0; i < s->n_symbols; ++i) s->values[i] = kUnknown;
  s->n_spans = 0;
  int32_t overlapping = -1;
  const int64_t *words = s->words;
  for (int32_t i = 0; i < s->n_args; ++i) {
    const Expected &e = s->expected[i];
    bool overlaps = false;
    if (i >= count || !agrees(s, e, words, items[i], &overlaps)) return PyLong_FromLong(i);
    if (overlaps && overlapping < 0) overlapping = i;
    words += e.kind == 1 ? 1 : 2 * e.ndim;
  }
  if (count > s->n_args) return PyLong_FromLong(s->n_args);
  if (overlapping >= 0) return PyLong_FromLong(-1 - overlapping);
  for (int32_t i = 0; i < s->n_symbols; ++i)  // a stride of an extent of 1 tells nothing
    if (s->values[i] == kUnknown) s->values[i] = s->ranges[2 * i];
  return values_of(s);
}

void signature_dealloc(PyObject *self) {
  Signature *s = reinterpret_cast<Signature *>(self);
  PyTypeObject *type = Py_TYPE(self);
  PyMem_Free(s->expected);
  PyMem_Free(s->words);
  PyMem_Free(s->ranges);
  PyMem_Free(s->values);
  PyMem_Free(s->spans);
  Py_XDECREF(s->last);
  type->tp_free(self);
  Py_DECREF(type);
}

template <class T>
bool copy(T *&to, const Py_buffer &from) {
  to = static_cast<T *>(PyMem_Malloc(from.len ? from.len : 1));
  if (!to) {
    PyErr_NoMemory();
    return false;
  }
  memcpy(to, from.buf, from.len);
  return true;
}

// Signature(expected, words, ranges, device, number): the arrays that the structures above describe,
// as bytes, and the device by DLPack's numbers.
PyObject *signature_new(PyTypeObject *type, PyObject *args, PyObject *) {
  Py_buffer expected, words, ranges;
  int device, number;
  if (!PyArg_ParseTuple(args, "y*y*y*ii", &expected, &words, &ranges, &device, &number))
    return nullptr;
  Signature *s = reinterpret_cast<Signature *>(type->tp_alloc(type, 0));
  if (s) {
    s->device = {device, number};
    s->n_args = static_cast<int32_t>(expected.len / sizeof(Expected));
    s->n_symbols = static_cast<int32_t>(ranges.len / (2 * sizeof(int64_t)));
    s->values = static_cast<int64_t *>(PyMem_Malloc((s->n_symbols + 1) * sizeof(int64_t)));
    s->spans = static_cast<Span *>(PyMem_Malloc((s->n_args + 1) * sizeof(Span)));
    if (!s->values || !s->spans) PyErr_NoMemory();
    if (!s->values || !s->spans || !copy(s->expected, expected) || !copy(s->words, words) ||
        !copy(s->ranges, ranges)) {
      Py_DECREF(s);
      s = nullptr;
    }
  }
  PyBuffer_Release(&expected);
  PyBuffer_Release(&words);
  PyBuffer_Release(&ranges);
  return reinterpret_cast<PyObject *>(s);
}

PyMethodDef signature_methods[] = {
    {"match", match, METH_O, "The values of the symbols, or the number of a wrong argument."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot signature_slots[] = {{Py_tp_new, reinterpret_cast<void *>(signature_new)},
                                 {Py_tp_dealloc, reinterpret_cast<void *>(signature_dealloc)},
                                 {Py_tp_methods, signature_methods},
                                 {0, nullptr}};

PyType_Spec signature_spec = {"fuseline_binding.Signature", sizeof(Signature), 0, Py_TPFLAGS_DEFAULT,
                              signature_slots};

// -- the module -----------------------------------------------------------------------------------

// connect(tensor type, exchange capsule, addresses of fl_piece_{set,uses,begin,go,fault,end}).
// False if the table is one that this code does not know.
PyObject *connect(PyObject *, PyObject *args) {
  PyObject *type, *capsule;
  Py_ssize_t set, uses, begin, go, fault, end;
  if (!PyArg_ParseTuple(args, "O!Onnnnnn", &PyType_Type, &type, &capsule, &set, &uses, &begin, &go,
                        &fault, &end))
    return nullptr;
  void *table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (!table) return nullptr;
  const DLPackExchangeAPI *api = static_cast<const DLPackExchangeAPI *>(table);
  while (api && api->header.major != 1)
    api = static_cast<const DLPackExchangeAPI *>(api->header.previous);
  if (!api || !api->dltensor_from_py_object_no_sync) Py_RETURN_FALSE;
  exchange = api;
  Py_INCREF(type);
  tensor_type = reinterpret_cast<PyTypeObject *>(type);
  runner.set = reinterpret_cast<decltype(runner.set)>(set);
  runner.uses = reinterpret_cast<decltype(runner.uses)>(uses);
  runner.begin = reinterpret_cast<decltype(runner.begin)>(begin);
  runner.go = reinterpret_cast<decltype(runner.go)>(go);
  runner.fault = reinterpret_cast<decltype(runner.fault)>(fault);
  runner.end = reinterpret_cast<decltype(runner.end)>(end);
  Py_RETURN_TRUE;
}

PyMethodDef functions[] = {
    {"connect", connect, METH_VARARGS, "Say where torch's tensors and the runner are."},
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run)), METH_FASTCALL,
     "Run a piece on the tensors of its slots."},
    {"addresses", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(addresses)),
     METH_FASTCALL, "Where some of the arguments lie."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "fuseline_binding", "Reads tensors, runs pieces.", -1,
                      functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_fuseline_binding() {
  PyObject *made = PyModule_Create(&module);
  if (!made) return nullptr;
  PyObject *type = PyType_FromSpec(&signature_spec);
  if (!type || PyModule_AddObject(made, "Signature", type) < 0) {
    Py_XDECREF(type);
    Py_DECREF(made);
    return nullptr;
  }
  return made;
}
