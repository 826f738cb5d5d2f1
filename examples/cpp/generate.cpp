// Greedy tokens from a language model that was exported with its cache:
//
//   fuseline export smollm2 --decode static:2048 -o smollm2.fuse
//   generate smollm2.fuse --prompt 504,5462,314 --new 64 --stop 2
//
// The program "prefill" takes ids [batch, tokens] and gives the logits behind the last one,
// "decode" does the same for one token; both write one cache, which the artifact keeps.
#include "fuseline.h"

#include <cstring>
#include <iostream>
#include <map>

namespace {

using fuseline::DType;

// A logit as a float, from float32 or one of the 16-bit types.
float number(const fuseline::Tensor &logits, int64_t place) {
  if (logits.dtype == DType::float32) return static_cast<const float *>(logits.data)[place];
  const uint32_t half = static_cast<const uint16_t *>(logits.data)[place];
  uint32_t bits = half << 16;
  if (logits.dtype == DType::float16) {  // by a product, which brings denormals to their place, too
    bits = (half & 0x8000u) << 16 | (half & 0x7fffu) << 13;
    float value;
    memcpy(&value, &bits, 4);
    return value * 0x1p112f;
  }
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

int64_t greatest(const fuseline::Tensor &logits) {
  const DType type = logits.dtype;
  if (type != DType::float32 && type != DType::float16 && type != DType::bfloat16)
    throw std::runtime_error(std::string("logits of the type ") + fuseline::name_of(type));
  const int64_t step = logits.strides.back();
  int64_t best = 0;
  for (int64_t i = 1; i < logits.shape.back(); ++i)
    if (number(logits, i * step) > number(logits, best * step)) best = i;
  return best;
}

std::vector<int64_t> listed(const std::string &text) {
  std::vector<int64_t> found;
  for (size_t at = 0; at < text.size();) {
    size_t used = 0;
    found.push_back(std::stoll(text.substr(at), &used));
    at += used + 1;
  }
  return found;
}

void generate(const fuseline::Artifact &model, std::vector<int64_t> ids, int64_t most,
              int64_t stop) {
  const fuseline::Program prefill = model.program("prefill"), decode = model.program("decode");
  for (int64_t made = 0; made < most; ++made) {
    const fuseline::Program &program = made == 0 ? prefill : decode;
    const int64_t count = static_cast<int64_t>(ids.size());
    const auto results = program.run({fuseline::Tensor{ids.data(), DType::int64, {1, count}, {}}});
    ids = {greatest(results.at(0).tensor)};
    if (ids[0] == stop) break;
    std::cout << (made ? " " : "") << ids[0] << std::flush;
  }
  std::cout << "\n";
}

}  // namespace

int main(int argc, char **argv) {
  std::map<std::string, std::string> options =
      {{"--prompt", ""}, {"--new", "64"}, {"--stop", "-1"}, {"--threads", "0"}};
  bool right = argc >= 2 && argc % 2 == 0;
  for (int i = 2; right && i + 1 < argc; i += 2) {
    right = options.count(argv[i]) > 0;
    options[argv[i]] = argv[i + 1];
  }
  if (!right || options["--prompt"].empty()) {
    std::cerr << "generate MODEL.fuse --prompt ID,ID,... [--new N] [--stop ID] [--threads N]\n";
    return 2;
  }
  try {
    fuseline::Options how;
    how.threads = std::stoi(options["--threads"]);
    const fuseline::Artifact model = fuseline::Artifact::open(argv[1], how);
    generate(model, listed(options["--prompt"]), std::stoll(options["--new"]),
             std::stoll(options["--stop"]));
    return 0;
  } catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
