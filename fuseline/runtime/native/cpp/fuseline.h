// Loads a .fuse file that `fuseline export` wrote, and runs its programs on the CPU: no Python, no
// torch, no compiler. Needs C++17, Linux, libdl and pthreads.
//
//   fuseline::Artifact model = fuseline::Artifact::open("model.fuse");
//   std::vector<float> x(2 * 64, 1.0f);
//   fuseline::Tensor rows{x.data(), fuseline::DType::float32, {2, 64}, {}};
//   std::vector<fuseline::Output> results = model.main().run({rows});
//
// A file holds native code, which runs in this process: open what you trust. Digests tell a file
// that was damaged from one that was not; they do not tell who made it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace fuseline {

// What Python raises as `FuselineError`: `code` is stable, such as FL0902, and docs/errors.md
// tells what it means; `what` is the whole message.
class Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string &message)
      : std::runtime_error(message), code_(std::move(code)) {}
  const std::string &code() const { return code_; }

 private:
  std::string code_;
};

enum class DType {
  float32, float64, float16, bfloat16, boolean, int8, int16, int32, int64, uint8,
  complex64, complex128,
};

// As torch writes it without its prefix: "float32", "bool".
const char *name_of(DType dtype);
std::size_t size_of(DType dtype);  // in bytes

// Memory of whoever made it, seen as a tensor. Strides are in elements; none: row by row.
struct Tensor {
  void *data = nullptr;
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
};

// What a call takes: tensors, and integers where the model took integers.
using Argument = std::variant<Tensor, std::int64_t>;

// A size: a number ("64"), a name ("s27"), which has one value in a call, or an expression of both.
// `least` and `most` are the range of a number or a name; INT64_MAX where there is no end.
struct Size {
  std::string text;
  std::int64_t least = 0;
  std::int64_t most = INT64_MAX;
};

// What a program takes or gives in one place. An input of type integer has one size, its value; as
// an output it is an int64 tensor without dims. What is `written` is changed in place.
struct Port {
  std::string name;
  bool integer = false;
  DType dtype = DType::int64;
  std::vector<Size> shape;
  std::vector<Size> strides;
  bool written = false;
};

// A result. `memory` keeps it alive; it is null for a result that is an argument, or a view of one.
// A result that is state of the program (see `Program::state`) changes when the program runs again.
struct Output {
  Tensor tensor;
  std::shared_ptr<void> memory;
};

// Tensors that programs write and keep from call to call, such as a cache.
struct State {
  std::string name;
  Tensor tensor;
};

// The Fortran sgemm of a BLAS. Large products in float32 go to it where it is given, and to loops
// of their own else.
using Sgemm = void (*)(const char *, const char *, const int *, const int *, const int *,
                       const float *, const float *, const int *, const float *, const int *,
                       const float *, float *, const int *);

struct Options {
  // "auto" takes the best for this processor; or a target of the file: "cpu", "cpu:x86-64-v3".
  std::string target = "auto";
  int threads = 0;  // that share the work; 0: one for each core that this process may run on
  Sgemm sgemm = nullptr;
  // Where `sgemm` would start threads of its own: omp_get_max_threads, omp_set_num_threads and
  // MKL_Set_Num_Threads_Local, by which it is kept from that. They hold for the whole process.
  int (*omp_get_max_threads)() = nullptr;
  void (*omp_set_num_threads)(int) = nullptr;
  int (*mkl_set_num_threads_local)(int) = nullptr;
};

namespace detail {
struct Loaded;
struct Program;
}  // namespace detail

// A program of an artifact. Copies are the same program. Calls from several threads run one after
// the other, all programs of an artifact together: they share state.
class Program {
 public:
  const std::string &name() const;
  const std::vector<Port> &inputs() const;
  const std::vector<Port> &outputs() const;
  // Results that are the same in every call, with their values; they are not among the outputs.
  const std::vector<std::pair<std::string, std::string>> &constants() const;
  std::vector<State> state() const;

  // Runs on arguments in the order of `inputs`.
  //
  // Throws FL0901, FL0902 or FL0904, before anything ran, for arguments that the program was not
  // made for; FL0905 for an index outside of what it is an index into; FL1010 without memory.
  std::vector<Output> run(const std::vector<Argument> &inputs) const;

  // The same into memory of the caller, in the order of `outputs`, of the shapes that `shapes`
  // tells; strides may be any that give each element a place of its own. It may not overlap
  // arguments, unless the result is that argument.
  void run(const std::vector<Argument> &inputs, const std::vector<Tensor> &outputs) const;

  // What `run` would give for arguments of these shapes: without data, and nothing runs.
  std::vector<Tensor> shapes(const std::vector<Argument> &inputs) const;

 private:
  friend class Artifact;
  std::shared_ptr<detail::Loaded> loaded_;
  detail::Program *program_ = nullptr;
};

// An open file. Copies are the same; programs keep what they need of it.
class Artifact {
 public:
  // Maps a file, checks it and loads its code.
  //
  // Throws FL1101 to FL1105 if it cannot be read, is damaged, or has nothing that runs here: what
  // only torch can run (ops without a kernel, library calls, complex arguments) is refused, with
  // the op's name. FL0705 if the system does not load its code.
  static Artifact open(const std::string &path, const Options &options = {});

  std::string model() const;    // the class of the model
  std::string licence() const;  // as its owner gave it
  std::string version() const;  // of fuseline, which wrote the file
  std::string target() const;   // what runs, such as "cpu:x86-64-v3"
  int threads() const;          // that share the work
  const std::vector<std::string> &programs() const;

  // Throws std::out_of_range without such a program.
  Program program(const std::string &name) const;
  Program main() const;  // the program "main", or the first one

  void reset() const;  // gives all state the values that it has in the file

 private:
  std::shared_ptr<detail::Loaded> loaded_;
};

}  // namespace fuseline
