// Tells what a .fuse file holds, or runs one of its programs on arrays of numpy.
//
//   run model.fuse                                        programs, inputs, outputs
//   run model.fuse input_ids=ids.npy --save results       runs "main", writes results/<output>.npy
//   run model.fuse x=x.npy scale=3 --program encode --target cpu:baseline --threads 2 --repeat 10
//
// An input is given by name: a file, or an integer where the program takes one. numpy has no
// bfloat16: such inputs are read from float32, and such outputs are written as float32.
#include "fuseline.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <sys/stat.h>

namespace {

using fuseline::DType;
using fuseline::Tensor;

[[noreturn]] void stop(const std::string &what) { throw std::runtime_error(what); }

struct Array {
  std::vector<char> bytes;
  DType dtype = DType::float32;
  std::vector<int64_t> shape;
};

const std::map<std::string, DType> kTypes = {
    {"<f4", DType::float32}, {"<f8", DType::float64}, {"<f2", DType::float16},
        {"|b1", DType::boolean},
    {"|i1", DType::int8}, {"<i2", DType::int16}, {"<i4", DType::int32}, {"<i8", DType::int64},
    {"|u1", DType::uint8}, {"<c8", DType::complex64}, {"<c16", DType::complex128}};

size_t count_of(const std::vector<int64_t> &shape) {
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

// -- .npy files ----------------------------------------------------------------------------------

// What stands behind a key of the head.
std::string behind(const std::string &head, const std::string &key, const char *open,
                   const char *close) {
  size_t from = head.find("'" + key + "':");
  from = from == head.npos ? from : head.find(open, from + key.size() + 3);
  const size_t to = from == head.npos ? from : head.find(close, from + 1);
  if (to == head.npos) stop("a .npy file without " + key);
  return head.substr(from + 1, to - from - 1);
}

Array read_array(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  char start[12] = {};
  if (!file.read(start, 10) || memcmp(start, "\x93NUMPY", 6) != 0) stop(path + " is no .npy file");
  const auto byte = [&](int i) { return static_cast<size_t>(static_cast<unsigned char>(start[i]));
                                };
  size_t size = byte(8) | byte(9) << 8;
  if (start[6] > 1) {
    if (!file.read(start + 10, 2)) stop(path + " ends in its head");
    size |= byte(10) << 16 | byte(11) << 24;
  }
  if (size > 1u << 20) stop(path + " has a head that is too long");
  std::string head(size, ' ');
  if (!file.read(&head[0], static_cast<std::streamsize>(size))) stop(path + " ends in its head");
  if (head.find("'fortran_order': False") == head.npos) stop(path + " does not lie row by row");
  Array found;
  const auto type = kTypes.find(behind(head, "descr", "'", "'"));
  if (type == kTypes.end()) stop(path + " has elements of another type");
  found.dtype = type->second;
  std::string dims = behind(head, "shape", "(", ")");
  for (const char *at = dims.c_str(); *at;) {
    char *end = nullptr;
    const int64_t value = strtoll(at, &end, 10);
    if (end != at) found.shape.push_back(value);
    at = end != at ? end : at + 1;
  }
  found.bytes.resize(count_of(found.shape) * fuseline::size_of(found.dtype));
  if (!file.read(found.bytes.data(), static_cast<std::streamsize>(found.bytes.size())))
    stop(path + " is too short");
  return found;
}

void write_array(const std::string &path, const Array &array) {
  std::string type;
  for (const auto &entry : kTypes)
    if (entry.second == array.dtype) type = entry.first;
  std::string head = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (";
  for (int64_t size : array.shape) head += std::to_string(size) + ", ";
  head += "), }";
  head.resize((head.size() + 11 + 63) / 64 * 64 - 11, ' ');
  head += '\n';
  const char start[10] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0,
                          static_cast<char>(head.size() & 255),
                          static_cast<char>(head.size() >> 8)};
  std::ofstream file(path, std::ios::binary);
  file.write(start, sizeof start).write(head.data(), static_cast<std::streamsize>(head.size()));
  file.write(array.bytes.data(), static_cast<std::streamsize>(array.bytes.size()));
  if (!file.flush()) stop("cannot write " + path);
}

// -- bfloat16 ------------------------------------------------------------------------------------

Array narrowed(const Array &from) {
  Array to;
  to.dtype = DType::bfloat16, to.shape = from.shape, to.bytes.resize(from.bytes.size() / 2);
  for (size_t i = 0; i < count_of(from.shape); ++i) {
    uint32_t bits;
    memcpy(&bits, &from.bytes[4 * i], 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;  // to nearest even; a NaN stays one
    const uint32_t high = nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const uint16_t half = static_cast<uint16_t>(high);
    memcpy(&to.bytes[2 * i], &half, 2);
  }
  return to;
}

Array widened(const Array &from) {
  Array to;
  to.dtype = DType::float32, to.shape = from.shape, to.bytes.resize(from.bytes.size() * 2);
  for (size_t i = 0; i < count_of(from.shape); ++i)
    memcpy(&to.bytes[4 * i + 2], &from.bytes[2 * i], 2);
  return to;
}

// -- the command ---------------------------------------------------------------------------------

std::string shown(const fuseline::Port &port) {
  std::string text = port.name + ": " +
      (port.integer ? "an integer" : fuseline::name_of(port.dtype)) + "[";
  for (size_t i = 0; i < port.shape.size(); ++i) {
    const fuseline::Size &size = port.shape[i];
    text += (i ? ", " : "") + size.text;
    if (size.least == size.most || (size.least == 0 && size.most == INT64_MAX)) continue;
    text += " in " + std::to_string(size.least) + ".." +
        (size.most == INT64_MAX ? "" : std::to_string(size.most));
  }
  return text + "]" + (port.written ? ", changed in place" : "");
}

void describe(const fuseline::Artifact &model) {
  std::cout << model.model() << ", by fuseline " << model.version();
  std::cout << ", for " << model.target() << "\n";
  for (const std::string &name : model.programs()) {
    const fuseline::Program program = model.program(name);
    std::cout << name << "\n";
    for (const fuseline::Port &port : program.inputs())
      std::cout << "  takes " << shown(port) << "\n";
    for (const fuseline::Port &port : program.outputs())
      std::cout << "  gives " << shown(port) << "\n";
    for (const auto &[path, value] : program.constants())
      std::cout << "  gives " << path << " = " << value << "\n";
    for (const fuseline::State &state : program.state())
      std::cout << "  keeps " << state.name << "\n";
  }
}

Array packed(const Tensor &t) {  // row by row
  Array found;
  found.dtype = t.dtype, found.shape = t.shape;
  const size_t item = fuseline::size_of(t.dtype), count = count_of(t.shape);
  found.bytes.resize(count * item);
  for (size_t i = 0; i < count; ++i) {
    int64_t place = 0;
    size_t rest = i;
    for (size_t d = t.shape.size(); d-- > 0; rest /= static_cast<size_t>(t.shape[d]))
      place += static_cast<int64_t>(rest % static_cast<size_t>(t.shape[d])) * t.strides[d];
    memcpy(&found.bytes[i * item], static_cast<const char *>(t.data) +
           place * static_cast<int64_t>(item), item);
  }
  return found;
}

void run(const fuseline::Program &program, const std::map<std::string, std::string> &given,
         int repeat,
         const std::string &folder) {
  std::vector<Array> arrays;
  arrays.reserve(program.inputs().size());
  std::vector<fuseline::Argument> inputs;
  size_t used = 0;
  for (const fuseline::Port &port : program.inputs()) {
    const auto found = given.find(port.name);
    if (found == given.end()) stop("no input " + port.name);
    ++used;
    if (port.integer) {
      inputs.emplace_back(int64_t(std::stoll(found->second)));
      continue;
    }
    Array array = read_array(found->second);
    if (port.dtype == DType::bfloat16 && array.dtype == DType::float32) array = narrowed(array);
    arrays.push_back(std::move(array));
    inputs.emplace_back(Tensor{arrays.back().bytes.data(), arrays.back().dtype, arrays.back().shape,
                               {}});
  }
  if (used != given.size()) stop("an input that the program does not take");
  std::vector<fuseline::Output> results;
  for (int i = 0; i < repeat; ++i) results = program.run(inputs);
  for (size_t i = 0; i < results.size(); ++i) {
    const std::string &name = program.outputs()[i].name;
    Array array = packed(results[i].tensor);
    std::cout << name << ": " << fuseline::name_of(array.dtype) << "[";
    for (size_t d = 0; d < array.shape.size(); ++d) std::cout << (d ? ", " : "") << array.shape[d];
    std::cout << "]\n";
    if (folder.empty()) continue;
    if (array.dtype == DType::bfloat16) array = widened(array);
    write_array(folder + "/" + name + ".npy", array);
  }
}

int usage() {
  std::cerr << "run MODEL.fuse [NAME=FILE.npy|NAME=INTEGER ...] [--program NAME] [--target NAME]\n"
               "    [--threads N] [--repeat N] [--save FOLDER]\n";
  return 2;
}

}  // namespace

int main(int argc, char **argv) {
  std::map<std::string, std::string> options, given;
  std::string path;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    if (word.rfind("--", 0) == 0) {
      static const char *const kKnown[] =
          {"--program", "--target", "--threads", "--repeat", "--save"};
      bool known = false;
      for (const char *name : kKnown) known = known || word == name;
      if (!known || i + 1 == argc) return usage();
      options[word] = argv[++i];
    } else if (path.empty()) {
      path = word;
    } else if (equals != word.npos) {
      given[word.substr(0, equals)] = word.substr(equals + 1);
    } else {
      return usage();
    }
  }
  if (path.empty()) return usage();
  try {
    fuseline::Options how;
    if (options.count("--target")) how.target = options["--target"];
    if (options.count("--threads")) how.threads = std::stoi(options["--threads"]);
    const fuseline::Artifact model = fuseline::Artifact::open(path, how);
    const bool named = options.count("--program") > 0;
    const fuseline::Program program = named ? model.program(options["--program"]) : model.main();
    if (given.empty() && !program.inputs().empty()) {
      describe(model);
      return 0;
    }
    if (options.count("--save")) mkdir(options["--save"].c_str(), 0777);
    run(program, given, options.count("--repeat") ? std::stoi(options["--repeat"]) : 1,
        options["--save"]);
    return 0;
  } catch (const std::exception &error) {  // of fuseline, or of what was typed
    std::cerr << error.what() << "\n";
    return 1;
  }
}
