// The loader and runner of fuseline.h. It does what fuseline/artifact and fuseline/runtime do in
// Python, part by part and in their words; each part names the module that it follows.
//
// Nothing in a file is trusted until it was looked at: names, sizes, offsets and counts are held
// against the file and each other, JSON is bounded, and code is loaded only if its digest is right.
#include "fuseline.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

// The interface of the runner and the kernels: fuseline/runtime/native/fuseline_abi.h says what
// each part is, and a test holds the two against each other.
struct fl_host {
  fuseline::Sgemm sgemm;
};
struct fl_call;
typedef void (*fl_kernel)(const fl_call *call);
struct fl_step {
  fl_kernel fn;
  int32_t buf, dim, width, independent;
};
struct fl_ref {
  int64_t offset;
  int32_t slot, unused;
};
struct fl_limits {
  int (*omp_max)();
  void (*omp_set)(int count);
  int (*mkl_local)(int count);
};
struct fl_piece;

namespace fuseline {
namespace {

constexpr int32_t kMostShares = 128;  // FL_MAX_SHARES
constexpr int32_t kMostThreads = 128;

using Bytes = std::pair<const uint8_t *, uint64_t>;

// -- errors (fuseline/errors.py) -----------------------------------------------------------------

struct Code {
  const char *code, *title, *hint;
};

constexpr Code LIBRARY_UNLOADABLE{"FL0705", "cannot load built code", ""};
constexpr Code ARGUMENT_COUNT{"FL0901", "wrong number of arguments", ""};
constexpr Code ARGUMENT_MISMATCH{"FL0902", "unexpected argument",
                                 "compile for these inputs, or with dynamic shapes"};
constexpr Code ARGUMENTS_OVERLAP{"FL0904", "arguments share memory", "pass a copy of one of them"};
constexpr Code INDEX_OUTSIDE{
    "FL0905", "index out of range",
    "check token ids against the vocabulary, and numbers of adapters against how many are in "
    "use; a cache that is full takes no more: reset it, or make it longer (max_cache_len, or for a "
    "file --decode static:LENGTH)"};
constexpr Code NO_ROOM{"FL1010", "no memory on the device for a call",
                       "call it with fewer tokens, or make room: graphs='none' frees what graphs "
                       "hold"};
constexpr Code ARTIFACT_UNREADABLE{"FL1101", "cannot read the artifact", ""};
constexpr Code ARTIFACT_DAMAGED{"FL1102", "no artifact, or a damaged one:",
                                "export the model again, or copy the file again"};
constexpr Code ARTIFACT_DIGEST{"FL1103", "a part of the artifact was changed:",
                               "copy the file again from where it was made"};
constexpr Code ARTIFACT_SCHEMA{
    "FL1104", "an artifact of another version:",
    "export the model again with this version, or install the one that wrote the file"};
constexpr Code NO_BINARY{"FL1105", "nothing in the artifact runs here:",
                         "export with a target for this machine: `fuseline doctor` names it"};

// What is said beside the title. A hint takes the place of the code's own.
struct Said {
  std::string found, expected, where, hint;
};

Error error(const Code &code, const std::string &subject, const Said &said) {
  std::string text = std::string(code.code) + " " + code.title;
  if (!subject.empty()) text += " " + subject;
  if (!said.where.empty()) text += " in " + said.where;
  if (!said.found.empty()) text += ": found " + said.found;
  if (!said.expected.empty())
    text += (said.found.empty() ? ": " : ", ") + ("expected " + said.expected);
  while (!text.empty() && text.back() == '.') text.pop_back();
  const std::string hint = said.hint.empty() ? code.hint : said.hint;
  return Error(code.code, text + "." + (hint.empty() ? "" : " Hint: " + hint + "."));
}

// What is wrong with a file; becomes FL1102 where the file's name is known.
struct Odd : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string joined(const std::vector<std::string> &parts, const char *between = ", ") {
  std::string text;
  for (const std::string &part : parts) text += (text.empty() ? "" : between) + part;
  return text;
}

std::string quoted(const std::string &text) { return "'" + text.substr(0, 80) + "'"; }

// Only what may be read as one character after the other; control characters of names are shown.
bool is_utf8(const std::string &text) {
  for (size_t i = 0; i < text.size();) {
    const uint8_t lead = static_cast<uint8_t>(text[i]);
    const int more = lead < 0x80 ? 0
                     : lead >> 5 == 6 ? 1
                     : lead >> 4 == 14 ? 2
                     : lead >> 3 == 30 ? 3 : -1;
    if (more < 0 || i + static_cast<size_t>(more) >= text.size()) return false;
    uint32_t value = more == 0 ? lead : lead & (0x3fu >> more);
    for (int k = 1; k <= more; ++k) {
      const uint8_t next = static_cast<uint8_t>(text[i + static_cast<size_t>(k)]);
      if (next >> 6 != 2) return false;
      value = value << 6 | (next & 0x3f);
    }
    const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (value < least[more] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
      return false;
    i += static_cast<size_t>(more) + 1;
  }
  return true;
}

// -- SHA-256 -------------------------------------------------------------------------------------

class Sha256 {
 public:
  static std::string of(Bytes data) {
    Sha256 sha;
    uint64_t left = data.second;
    const uint8_t *at = data.first;
    for (; left >= 64; at += 64, left -= 64) sha.block(at);
    uint8_t last[128] = {};
    if (left) memcpy(last, at, left);
    last[left] = 0x80;
    const uint64_t size = left < 56 ? 64 : 128, bits = data.second * 8;
    for (uint64_t i = 0; i < 8; ++i) last[size - 1 - i] = static_cast<uint8_t>(bits >> (8 * i));
    for (uint64_t i = 0; i < size; i += 64) sha.block(last + i);
    std::string text;
    for (uint32_t word : sha.state_)
      for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
    return text;
  }

 private:
  static uint32_t turned(uint32_t x, int by) { return x >> by | x << (32 - by); }

  void block(const uint8_t *data) {
    static constexpr uint32_t kRound[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; ++i)
      w[i] = uint32_t(data[4 * i]) << 24 | uint32_t(data[4 * i + 1]) << 16 |
             uint32_t(data[4 * i + 2]) << 8 | data[4 * i + 3];
    for (int i = 16; i < 64; ++i)
      w[i] = w[i - 16] + w[i - 7] +
          (turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3) +
             (turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10);
    std::array<uint32_t, 8> s = state_;
    for (int i = 0; i < 64; ++i) {
      const uint32_t one = s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) +
                           ((s[4] & s[5]) ^ (~s[4] & s[6])) + kRound[i] + w[i];
      const uint32_t two = (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) +
                           ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      s = {one + two, s[0], s[1], s[2], s[3] + one, s[4], s[5], s[6]};
    }
    for (size_t i = 0; i < 8; ++i) state_[i] += s[i];
  }

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
};

// -- JSON ----------------------------------------------------------------------------------------

constexpr int kMostDepth = 256;
constexpr uint64_t kMostValues = 4'000'000, kMostJson = 256u << 20;

struct Json {
  enum Kind : uint8_t { null, boolean, integer, real, text, list, object } kind = null;
  int64_t number = 0;  // of a boolean, too
  double value = 0;
  std::string words;
  std::vector<Json> items;                  // of a list; of an object, in the order of the keys
  std::vector<std::string> keys;            // of an object, sorted
};

class JsonReader {
 public:
  static Json read(Bytes data, const std::string &where) {
    if (data.second > kMostJson) throw Odd(where + " of " + std::to_string(data.second) + " bytes");
    JsonReader reader(data, where);
    Json found = reader.value(0);
    reader.skip();
    if (reader.at_ != reader.end_) reader.wrong("something behind the end");
    return found;
  }

 private:
  JsonReader(Bytes data, const std::string &where)
      : begin_(reinterpret_cast<const char *>(data.first)), at_(begin_), end_(begin_ + data.second),
        where_(where) {}

  [[noreturn]] void wrong(const char *what) const {
    throw Odd(where_ + ": " + what + " at byte " + std::to_string(at_ - begin_));
  }

  void skip() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  bool take(char c) {
    if (at_ >= end_ || *at_ != c) return false;
    ++at_;
    return true;
  }

  bool word(const char *text) {
    const size_t size = strlen(text);
    if (static_cast<size_t>(end_ - at_) < size || memcmp(at_, text, size) != 0) return false;
    at_ += size;
    return true;
  }

  Json value(int depth) {
    if (depth > kMostDepth) wrong("a value that is nested too deep");
    if (++values_ > kMostValues) wrong("too many values");
    skip();
    Json found;
    if (at_ >= end_) wrong("an end in the middle");
    if (*at_ == '{') {
      object(found, depth);
    } else if (*at_ == '[') {
      list(found, depth);
    } else if (*at_ == '"') {
      found.kind = Json::text;
      found.words = text();
    } else if (word("true") || word("false")) {
      found.kind = Json::boolean;
      found.number = at_[-2] == 'u';
    } else if (!word("null")) {
      number(found);
    }
    return found;
  }

  void list(Json &found, int depth) {
    found.kind = Json::list;
    take('[');
    skip();
    if (take(']')) return;
    do {
      found.items.push_back(value(depth + 1));
      skip();
    } while (take(','));
    if (!take(']')) wrong("a list without an end");
  }

  void object(Json &found, int depth) {
    found.kind = Json::object;
    std::map<std::string, Json> fields;
    take('{');
    skip();
    if (!take('}')) {
      do {
        skip();
        if (at_ >= end_ || *at_ != '"') wrong("no key");
        std::string key = text();
        skip();
        if (!take(':')) wrong("no colon");
        if (!fields.emplace(std::move(key), value(depth + 1)).second) wrong("a key that was there");
        skip();
      } while (take(','));
      if (!take('}')) wrong("an object without an end");
    }
    for (auto &field : fields) {
      found.keys.push_back(field.first);
      found.items.push_back(std::move(field.second));
    }
  }

  void number(Json &found) {
    for (auto [name, value] : {std::pair<const char *, double>{"NaN", __builtin_nan("")},
                               {"Infinity", __builtin_inf()}, {"-Infinity", -__builtin_inf()}}) {
      if (!word(name)) continue;
      found.kind = Json::real;
      found.value = value;
      return;
    }
    const char *from = at_;
    take('-');
    digits();
    bool whole = true;
    if (take('.')) digits(), whole = false;
    if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
      ++at_;
      if (!take('-')) take('+');
      digits(), whole = false;
    }
    const std::string text(from, at_);
    errno = 0;
    if (whole) {
      found.kind = Json::integer;
      found.number = strtoll(text.c_str(), nullptr, 10);
      if (errno || text.size() > 20) wrong("an integer of more than 64 bits");
    } else {
      found.kind = Json::real;
      if (text.size() > 64) wrong("a number of too many digits");
      found.value = strtod(text.c_str(), nullptr);
    }
  }

  void digits() {
    const char *from = at_;
    while (at_ < end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    if (at_ == from) wrong("no value");
  }

  std::string text() {
    std::string found;
    take('"');
    for (;;) {
      const char *from = at_;
      while (at_ < end_ && *at_ != '"' && *at_ != '\\' && static_cast<uint8_t>(*at_) >= 0x20) ++at_;
      found.append(from, at_);
      if (at_ >= end_ || static_cast<uint8_t>(*at_) < 0x20) wrong("a text without an end");
      if (take('"')) break;
      ++at_;
      escaped(found);
    }
    if (!is_utf8(found)) wrong("a text that is no UTF-8");
    return found;
  }

  void escaped(std::string &found) {
    static constexpr char kFrom[] = "\"\\/bfnrt", kTo[] = "\"\\/\b\f\n\r\t";
    if (at_ >= end_) wrong("a text without an end");
    const char c = *at_++;
    if (const char *place = c ? strchr(kFrom, c) : nullptr) {
      found += kTo[place - kFrom];
      return;
    }
    if (c != 'u') wrong("an unknown escape");
    uint32_t value = hex();
    if (value >= 0xd800 && value < 0xdc00) {
      if (!word("\\u")) wrong("half of a character");
      const uint32_t low = hex();
      if (low < 0xdc00 || low >= 0xe000) wrong("half of a character");
      value = 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
    }
    if (value < 0x80) {
      found += static_cast<char>(value);
      return;
    }
    const int more = value < 0x800 ? 1 : value < 0x10000 ? 2 : 3;
    found += static_cast<char>((0xff << (7 - more) & 0xff) | value >> (6 * more));
    for (int k = more - 1; k >= 0; --k)
      found += static_cast<char>(0x80 | (value >> (6 * k) & 0x3f));
  }

  uint32_t hex() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      if (at_ >= end_ || !isxdigit(static_cast<uint8_t>(*at_))) wrong("an unknown escape");
      const char c = *at_++;
      value = value << 4 | static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }

  const char *begin_, *at_, *end_;
  const std::string &where_;
  uint64_t values_ = 0;
};

// A value in a file, with the way to it. Asking for another type than is there is an `Odd`. Fields
// that nobody asks for are passed over, so that a file may say more than this code reads.
class Node {
 public:
  Node(const Json &json, std::string where) : json_(&json), where_(std::move(where)) {}

  const std::string &where() const { return where_; }
  bool is_null() const { return json_->kind == Json::null; }

  bool is(const char *name) const {
    const Json *found = find("is");
    return found && found->kind == Json::text && found->words == name;
  }
  const Node &must_be(const char *name) const {
    if (!is(name)) wrong(std::string("a ") + name);
    return *this;
  }

  Node operator[](const std::string &key) const {
    const Json *found = find(key);
    if (!found) throw Odd(where_ + " lacks " + key);
    return Node(*found, where_ + "." + key);
  }

  const std::string &text() const {
    if (json_->kind != Json::text) wrong("a text");
    return json_->words;
  }
  int64_t integer() const {
    if (json_->kind != Json::integer) wrong("an integer");
    return json_->number;
  }
  int64_t integer_or(int64_t other) const { return is_null() ? other : integer(); }
  bool boolean() const {
    if (json_->kind != Json::boolean) wrong("true or false");
    return json_->number != 0;
  }
  bool is_integer() const { return json_->kind == Json::integer; }

  size_t size() const {
    if (json_->kind != Json::list) wrong("a list");
    return json_->items.size();
  }
  Node at(size_t i) const {
    if (i >= size()) wrong("a longer list");
    return Node(json_->items[i], where_ + "[" + std::to_string(i) + "]");
  }
  template <class F>
  void each(F function) const {
    for (size_t i = 0; i < size(); ++i) function(at(i));
  }
  template <class F>
  void each_field(F function) const {  // by name
    if (json_->kind != Json::object) wrong("an object");
    for (size_t i = 0; i < json_->keys.size(); ++i)
      function(json_->keys[i], Node(json_->items[i], where_ + "['" + json_->keys[i] + "']"));
  }

  std::vector<std::string> texts() const {
    std::vector<std::string> found;
    each([&](const Node &item) { found.push_back(item.text()); });
    return found;
  }
  std::vector<int64_t> integers() const {
    std::vector<int64_t> found;
    for (size_t i = 0; i < size(); ++i) {
      if (json_->items[i].kind != Json::integer) wrong("a list of integers");
      found.push_back(json_->items[i].number);
    }
    return found;
  }
  std::map<std::string, std::string> text_by_name() const {
    std::map<std::string, std::string> found;
    each_field([&](const std::string &key, const Node &item) { found[key] = item.text(); });
    return found;
  }

  // An index of something that there are `count` of.
  int32_t number(size_t count, const char *what, int64_t least = 0) const {
    const int64_t found = integer();
    if (found < least || found >= static_cast<int64_t>(count))
      throw Odd(where_ + ": " + what + " " + std::to_string(found) + " of " +
                std::to_string(count));
    return static_cast<int32_t>(found);
  }

  // A value that is no container, as text.
  std::string shown() const {
    char digits[40];
    switch (json_->kind) {
      case Json::null: return "None";
      case Json::boolean: return json_->number ? "True" : "False";
      case Json::integer: return std::to_string(json_->number);
      case Json::real: snprintf(digits, sizeof digits, "%.17g", json_->value); return digits;
      case Json::text: return json_->words;
      default: wrong("a plain value");
    }
  }

  [[noreturn]] void wrong(const std::string &expected) const {
    static constexpr const char *kNames[] = {"null", "a boolean", "an integer", "a number",
                                             "a text", "a list", "an object"};
    throw Odd(where_ + " is " + kNames[json_->kind] + ", not " + expected);
  }

 private:
  const Json *find(const std::string &key) const {
    if (json_->kind != Json::object) wrong("an object");
    const auto at = std::lower_bound(json_->keys.begin(), json_->keys.end(), key);
    return at != json_->keys.end() && *at == key
               ? &json_->items[static_cast<size_t>(at - json_->keys.begin())] : nullptr;
  }

  const Json *json_;
  std::string where_;
};

// -- the file (fuseline/artifact/archive.py) -----------------------------------------------------

constexpr uint64_t kMostMembers = 100'000, kMostDirectory = 64u << 20, kMostManifest = 256u << 20;

// A file in memory. What is written there is this process's alone.
class Mapped {
 public:
  explicit Mapped(const std::string &path) {
    // A pipe would be waited for without O_NONBLOCK.
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) unreadable(path, strerror(errno));
    struct stat about = {};
    if (fstat(file, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0) {
      size_ = static_cast<uint64_t>(about.st_size);
      data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
    }
    const int failed = errno;
    ::close(file);
    if (!S_ISREG(about.st_mode)) unreadable(path, "it is no file");
    if (size_ && data_ == MAP_FAILED) unreadable(path, strerror(failed));
  }
  ~Mapped() {
    if (size_ && data_ != MAP_FAILED) munmap(data_, size_);
  }
  Mapped(const Mapped &) = delete;
  Mapped &operator=(const Mapped &) = delete;

  Bytes bytes() const { return {static_cast<const uint8_t *>(data_), size_}; }

  // Gives pages that hold some memory what the file has there.
  static void restore(void *memory, uint64_t size) {
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = reinterpret_cast<uintptr_t>(memory) / page * page;
    const uintptr_t last = reinterpret_cast<uintptr_t>(memory) + size;
    madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED);
  }

 private:
  [[noreturn]] static void unreadable(const std::string &path, const std::string &found) {
    throw error(ARTIFACT_UNREADABLE, path, {found, "", "", ""});
  }

  void *data_ = MAP_FAILED;
  uint64_t size_ = 0;
};

uint64_t little(Bytes data, uint64_t at, int bytes) {
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; --i)
    value = value << 8 | data.first[at + static_cast<uint64_t>(i)];
  return value;
}

// A zip without compression, and the place of each member.
class Archive {
 public:
  explicit Archive(const std::string &path) : path_(path), mapped_(path), data_(mapped_.bytes()) {
    if (!data_.second) throw Odd("an empty file");
    find_members();
  }

  const std::string &path() const { return path_; }

  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto &place : places_) found.push_back(place.first);
    return found;
  }

  Bytes data(const std::string &name) const {
    const auto place = places_.find(name);
    if (place == places_.end()) throw Odd("no member " + quoted(name));
    return {data_.first + place->second.first, place->second.second};
  }

 private:
  void find_members() {
    uint64_t count, start, size;
    const uint64_t end = directory(&count, &start, &size);
    if (count > kMostMembers || size > kMostDirectory)
      throw Odd("a directory of " + std::to_string(count) + " members in " + std::to_string(size) +
                " bytes");
    std::vector<std::pair<uint64_t, uint64_t>> spans = {{start, data_.second}};
    uint64_t at = start;
    for (uint64_t i = 0; i < count; ++i) at = member(at, end, start, &spans);
    std::sort(spans.begin(), spans.end());
    bool apart = at == end;
    for (size_t i = 0; i + 1 < spans.size(); ++i)
      apart = apart && spans[i].second <= spans[i + 1].first;
    if (!apart) throw Odd("members that overlap");
  }

  // How many members there are, where their directory begins and its bytes; where it ends.
  uint64_t directory(uint64_t *count, uint64_t *start, uint64_t *size) const {
    if (data_.second < 22 || !is(data_.second - 22, "PK\5\6")) throw Odd("no end of a zip file");
    uint64_t end = data_.second - 22;
    const uint64_t here = number(end + 8, 2);
    *count = number(end + 10, 2), *size = number(end + 12, 4), *start = number(end + 16, 4);
    if (number(end + 4, 2) || number(end + 6, 2) || number(end + 20, 2) || here != *count)
      throw Odd("a zip file in several parts, or with a comment");
    if (*count == 0xffff || *size == 0xffffffff || *start == 0xffffffff) {
      if (end < 20 || !is(end - 20, "PK\6\7")) throw Odd("no end of a large zip file");
      const uint64_t place = number(end - 12, 8);
      if (place > end - 20 || end - 20 - place < 56 || !is(place, "PK\6\6"))
        throw Odd("no end of a large zip file");
      *count = number(place + 32, 8), *size = number(place + 40, 8), *start = number(place + 48, 8);
      end = place;
    }
    if (*start > end || end - *start != *size)
      throw Odd("a directory that is not where its end says");
    return end;
  }

  // Reads one entry; where the next one begins.
  uint64_t member(uint64_t at, uint64_t end, uint64_t start,
                  std::vector<std::pair<uint64_t, uint64_t>> *spans) {
    if (end - at < 46) throw Odd("a directory that ends in the middle");
    const uint64_t length = number(at + 28, 2), extra = number(at + 30, 2),
        comment = number(at + 32, 2);
    if (!is(at, "PK\1\2") || (number(at + 8, 2) & ~0x800u) || number(at + 10, 2) || comment ||
        number(at + 34, 2))
      throw Odd("a member that is compressed, encrypted, or in another file");
    std::array<uint64_t, 3> sizes = {number(at + 20, 4), number(at + 24, 4), number(at + 42, 4)};
    at += 46;
    if (length + extra > end - at) throw Odd("a directory that ends in the middle");
    const std::string name = checked_name(at, length);
    enlarge(&sizes, at + length, extra);
    const auto [packed, whole, place] = sizes;
    if (places_.count(name)) throw Odd("two members " + quoted(name));
    if (packed != whole) throw Odd(quoted(name) + " of two sizes");
    const uint64_t first = data_of(name, place);
    if (first > start || start - first < whole)
      throw Odd(quoted(name) + " that reaches beyond the file");
    places_[name] = {first, whole};
    spans->push_back({place, first + whole});
    return at + length + extra;
  }

  // Sizes and place that do not fit into 32 bits, from the extra field.
  void enlarge(std::array<uint64_t, 3> *sizes, uint64_t at, uint64_t left) const {
    std::vector<uint64_t *> wanted;
    for (uint64_t &size : *sizes)
      if (size == 0xffffffff) wanted.push_back(&size);
    while (left && !wanted.empty()) {
      if (left < 4) throw Odd("an extra field that ends in the middle");
      const uint64_t kind = number(at, 2), size = number(at + 2, 2),
          held = std::min(size, left - 4);
      if (kind == 1) {
        if (held < 8 * wanted.size()) throw Odd("an extra field that ends in the middle");
        for (size_t i = 0; i < wanted.size(); ++i) *wanted[i] = number(at + 4 + 8 * i, 8);
        wanted.clear();
      }
      at += 4 + held, left -= 4 + held;
    }
    if (!wanted.empty()) throw Odd("a member of unknown size");
  }

  uint64_t data_of(const std::string &name, uint64_t place) const {
    if (place > data_.second || data_.second - place < 30)
      throw Odd(quoted(name) + " that begins beyond the file");
    const uint64_t length = number(place + 26, 2), extra = number(place + 28, 2);
    const bool same = is(place, "PK\3\4") && !number(place + 8, 2) && length == name.size() &&
                      data_.second - place - 30 >= length &&
                      memcmp(data_.first + place + 30, name.data(), length) == 0;
    if (!same) throw Odd(quoted(name) + " with another header than its entry");
    return place + 30 + length + extra;
  }

  // Relative, by forward slashes, and only one way to write it.
  std::string checked_name(uint64_t at, uint64_t length) const {
    const std::string name(reinterpret_cast<const char *>(data_.first + at), length);
    bool plain = !name.empty() && is_utf8(name) && name.find('\\') == name.npos &&
                 name.find('\0') == name.npos;
    for (size_t from = 0; plain;) {
      const size_t to = std::min(name.find('/', from), name.size());
      const std::string part = name.substr(from, to - from);
      plain = !part.empty() && part != "." && part != "..";
      if (to == name.size()) break;
      from = to + 1;
    }
    if (!plain) throw Odd("a name " + quoted(is_utf8(name) ? name : "of other characters"));
    return name;
  }

  bool is(uint64_t at, const char *sign) const { return memcmp(data_.first + at, sign, 4) == 0; }
  uint64_t number(uint64_t at, int bytes) const { return little(data_, at, bytes); }

  std::string path_;
  Mapped mapped_;
  Bytes data_;
  std::map<std::string, std::pair<uint64_t, uint64_t>> places_;
};

// -- tensors (fuseline/artifact/weights.py) ------------------------------------------------------

struct Kind {
  const char *name, *stored;
  size_t size;
};

constexpr Kind kKinds[] = {{"float32", "F32", 4}, {"float64", "F64", 8}, {"float16", "F16", 2},
                           {"bfloat16", "BF16", 2}, {"bool", "BOOL", 1}, {"int8", "I8", 1},
                           {"int16", "I16", 2}, {"int32", "I32", 4}, {"int64", "I64", 8},
                           {"uint8", "U8", 1}, {"complex64", "C64", 8}, {"complex128", "C128", 16}};

DType dtype_of(const Node &node) {
  for (size_t i = 0; i < std::size(kKinds); ++i)
    if (node.text() == kKinds[i].name) return static_cast<DType>(i);
  node.wrong("an element type");
}

using Sizes = std::vector<int64_t>;

bool is_empty(const Sizes &shape) {
  return std::find(shape.begin(), shape.end(), 0) != shape.end();
}

// Strides of a tensor that lies row by row; those of torch for one without elements, too.
Sizes row_by_row(const Sizes &shape) {
  Sizes strides(shape.size());
  int64_t step = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = step;
    if (__builtin_mul_overflow(step, std::max<int64_t>(shape[d], 1), &step)) step = INT64_MAX;
  }
  return strides;
}

// Elements from the first of a tensor to behind the last one; an `Odd` where that is no number, or
// not what a tensor may have.
int64_t reach(const Sizes &shape, const Sizes &strides) {
  int64_t last = 0;
  if (shape.size() != strides.size()) throw Odd("a tensor with other dims than strides");
  for (size_t d = 0; d < shape.size(); ++d)
    if (shape[d] < 0 || (strides[d] < 0 && shape[d] > 1))
      throw Odd("a tensor with a negative size");
  if (is_empty(shape)) return 0;
  for (size_t d = 0; d < shape.size(); ++d) {
    int64_t step = 0;
    if ((shape[d] > 1 && __builtin_mul_overflow(shape[d] - 1, strides[d], &step)) ||
        __builtin_add_overflow(last, step, &last))
      throw Odd("a tensor that is too large");
  }
  if (last > INT64_MAX / 32) throw Odd("a tensor that is too large");
  return last + 1;
}

int64_t nbytes(const Tensor &t) {
  return reach(t.shape, t.strides) * static_cast<int64_t>(size_of(t.dtype));
}

bool same_strides(const Sizes &shape, const Sizes &one, const Sizes &other) {
  if (is_empty(shape)) return true;
  for (size_t d = 0; d < shape.size(); ++d)
    if (shape[d] > 1 && one[d] != other[d]) return false;
  return true;
}

bool is_contiguous(const Tensor &t) {
  return same_strides(t.shape, t.strides, row_by_row(t.shape));
}

void copy_dims(char *to, const char *from, const Tensor &target, const Tensor &source, size_t d) {
  const int64_t item = static_cast<int64_t>(size_of(target.dtype));
  if (d == target.shape.size()) {
    memcpy(to, from, static_cast<size_t>(item));
    return;
  }
  const int64_t count = target.shape[d], step = target.strides[d] * item,
      other = source.strides[d] * item;
  if (d + 1 == target.shape.size() && step == item && other == item) {
    memcpy(to, from, static_cast<size_t>(count * item));
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    copy_dims(to + i * step, from + i * other, target, source, d + 1);
}

// Between tensors of one shape and type that share no memory.
void copy(const Tensor &target, const Tensor &source) {
  if (!is_empty(target.shape))
    copy_dims(static_cast<char *>(target.data), static_cast<const char *>(source.data), target,
              source, 0);
}

// Tensors in a safetensors file that lies in memory, on that memory.
std::map<std::string, Tensor> read_tensors(Bytes data) {
  constexpr uint64_t kMostHead = 64u << 20;
  if (data.second < 8) throw Odd("a safetensors file of less than 8 bytes");
  const uint64_t size = little(data, 0, 8);
  if (size > kMostHead || size > data.second - 8)
    throw Odd("a safetensors file of " + std::to_string(data.second) + " bytes with a head of " +
              std::to_string(size));
  const std::string where = "the head of a safetensors file";
  const Json head = JsonReader::read({data.first + 8, size}, where);
  const Bytes body = {data.first + 8 + size, data.second - 8 - size};
  std::map<std::string, Tensor> found;
  Node(head, where).each_field([&](const std::string &name, const Node &entry) {
    if (name == "__metadata__" || name.compare(0, 8, ".padding") == 0) return;
    Tensor t;
    size_t number = 0;
    while (number < std::size(kKinds) && entry["dtype"].text() != kKinds[number].stored) ++number;
    if (number == std::size(kKinds)) entry.wrong("a tensor of a known type");
    t.dtype = static_cast<DType>(number);
    t.shape = entry["shape"].integers();
    t.strides = row_by_row(t.shape);
    const Sizes ends = entry["data_offsets"].integers();
    if (ends.size() != 2 || ends[0] < 0 || ends[1] < ends[0] ||
        static_cast<uint64_t>(ends[1]) > body.second || nbytes(t) != ends[1] - ends[0])
      throw Odd("the tensor " + quoted(name) + " of a safetensors file, which has other bytes");
    const uint8_t *at = body.first + ends[0];
    if (reinterpret_cast<uintptr_t>(at) % std::min<size_t>(size_of(t.dtype), 8))
      throw Odd("the tensor " + quoted(name) + " of a safetensors file, which lies askew");
    t.data = const_cast<uint8_t *>(at);  // the mapping is this process's own
    found[name] = t;
  });
  return found;
}

Tensor placed(const std::map<std::string, Tensor> &memory, const Node &at) {
  const std::string &name = at["memory"].text();
  const auto base = memory.find(name);
  if (base == memory.end()) throw Odd("no memory " + quoted(name) + " is stored");
  Tensor t = base->second;
  const int64_t offset = at["offset"].integer(), held = reach(t.shape, t.strides);
  t.shape = at["shape"].integers(), t.strides = at["strides"].integers();
  if (offset < 0 || offset > held || reach(t.shape, t.strides) > held - offset)
    throw Odd("a tensor that reaches beyond " + quoted(name));
  t.data = static_cast<char *>(t.data) + offset * static_cast<int64_t>(size_of(t.dtype));
  return t;
}

// Zeros in pages of their own, which `Mapped::restore` makes zeros again; none is there before it is
// read or written.
Tensor zeros(const Node &at, std::vector<std::shared_ptr<void>> *owners) {
  Tensor t{nullptr, dtype_of(at["dtype"]), at["shape"].integers(), {}};
  t.strides = row_by_row(t.shape);
  const int64_t bytes = nbytes(t);
  if (!bytes) return t;
  const size_t size = static_cast<size_t>(bytes);
  t.data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
  if (t.data == MAP_FAILED)
    throw error(NO_ROOM, "", {"none for " + std::to_string(bytes) + " bytes of state", "", "", ""});
  owners->emplace_back(t.data, [size](void *memory) { munmap(memory, size); });
  return t;
}

std::string listed(const Sizes &sizes) {
  std::vector<std::string> parts;
  for (int64_t size : sizes) parts.push_back(std::to_string(size));
  return "[" + joined(parts) + "]";
}

std::string described(const Argument &given) {
  if (const int64_t *number = std::get_if<int64_t>(&given)) return "int " + std::to_string(*number);
  const Tensor &t = std::get<Tensor>(given);
  std::string text = std::string("torch.") + name_of(t.dtype) + listed(t.shape);
  if (t.strides.size() == t.shape.size() && !is_contiguous(t))
    text += " with strides " + listed(t.strides);
  if (!t.data && !is_empty(t.shape)) text += " at a null pointer";
  else if (reinterpret_cast<uintptr_t>(t.data) % std::min<size_t>(size_of(t.dtype), 8))
    text += " that lies askew";
  return text + " on cpu";
}

// -- processors (fuseline/artifact/machine.py) ---------------------------------------------------

std::string lower(std::string text) {
  for (char &c : text) c = static_cast<char>(tolower(static_cast<uint8_t>(c)));
  return text;
}

std::string machine() {
  utsname about;
  if (uname(&about) != 0) return "unknown";
  return lower(std::string(about.machine) + " " + about.sysname);
}

struct Processor {
  std::set<std::string> features;  // in the words of /proc/cpuinfo
  int cores = 1;                   // that this process may run on; two threads of one count once
};

Processor read_processor() {
  Processor found;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
    found.cores = std::max(1, CPU_COUNT(&allowed));
  FILE *file = fopen("/proc/cpuinfo", "re");
  if (!file) return found;
  std::set<std::pair<std::string, std::string>> cores;
  std::string package;
  bool counts = false;
  char *line = nullptr;
  size_t room = 0;
  while (getline(&line, &room, file) > 0) {
    const std::string text = line;
    const size_t colon = text.find(':');
    if (colon == text.npos) continue;
    const std::string key = text.substr(0, text.find_last_not_of(" \t", colon - 1) + 1);
    const std::string value = text.substr(colon + 1);
    if (key == "processor") {
      const int number = atoi(value.c_str());
      counts = number >= 0 && number < CPU_SETSIZE && CPU_ISSET(number, &allowed);
    } else if (key == "physical id") {
      package = value;
    } else if (key == "core id" && counts) {
      cores.insert({package, value});
    } else if ((key == "flags" || key == "Features") && found.features.empty()) {
      for (size_t at = 0; (at = value.find_first_not_of(" \t\n", at)) != value.npos;) {
        const size_t end = std::min(value.find_first_of(" \t\n", at), value.size());
        found.features.insert(value.substr(at, end - at));
        at = end;
      }
    }
  }
  free(line);
  fclose(file);
  if (!cores.empty()) found.cores = static_cast<int>(cores.size());
  return found;
}

const Processor &processor() {
  static const Processor found = read_processor();
  return found;
}

// -- sizes that follow from others (fuseline/runtime/plan.py) ------------------------------------

// Names of sizes in a program, each with a number.
struct Symbols {
  std::map<std::string, int32_t> numbers;
  int32_t of(const std::string &name) {
    return numbers.emplace(name, static_cast<int32_t>(numbers.size())).first->second;
  }
};

// Integer arithmetic over names, as Python means it: `//` and `%` round down.
class Expr {
 public:
  Expr() = default;

  static Expr of(const Node &node, const Symbols &symbols) {
    Expr found;
    if (node.is_integer()) {
      found.literal_ = node.integer();
      return found;
    }
    found.text_ = node.text();
    try {
      Parser parser{found.text_, symbols, &found.code_};
      parser.sum();
      parser.skip();
      if (parser.at != found.text_.size() || found.text_.size() > kMostCharacters) throw Odd("");
    } catch (const Odd &) {
      throw Odd(node.where() + ": " + quoted(found.text_) + " is no size");
    }
    return found;
  }

  bool is_literal() const { return code_.empty(); }
  std::string text() const { return is_literal() ? std::to_string(literal_) : text_; }

  // The number of the name that this is; -1 for a number or an expression.
  int32_t symbol() const {
    return code_.size() == 1 && code_[0].op == 'n' ? static_cast<int32_t>(code_[0].value) : -1;
  }

  int64_t value(const Sizes &symbols) const {
    if (is_literal()) return literal_;
    __int128 stack[kMostDepth];
    size_t top = 0;
    for (const Op &op : code_) {
      if (op.op == 'n' || op.op == '0') {
        stack[top++] = op.op == '0' ? op.value : symbols[static_cast<size_t>(op.value)];
        continue;
      }
      if (op.op == '_') {
        stack[top - 1] = -stack[top - 1];
        continue;
      }
      const __int128 right = stack[--top];
      stack[top - 1] = apply(op.op, stack[top - 1], right);
    }
    if (stack[0] > INT64_MAX || stack[0] < INT64_MIN) too_large();
    return static_cast<int64_t>(stack[0]);
  }

 private:
  static constexpr size_t kMostCharacters = 10'000, kMostDepth = 200;
  static constexpr int64_t kMostPower = 8;

  struct Op {
    char op;  // 0 a number, n a name, _ the negative; + - * / % ^, M and m of the two behind it
    int64_t value;
  };

  __int128 apply(char op, __int128 a, __int128 b) const {
    __int128 found = 0;
    switch (op) {
      case '+': if (__builtin_add_overflow(a, b, &found)) too_large(); return found;
      case '-': if (__builtin_sub_overflow(a, b, &found)) too_large(); return found;
      case '*': if (__builtin_mul_overflow(a, b, &found)) too_large(); return found;
      case 'M': return std::max(a, b);
      case 'm': return std::min(a, b);
      case '^':
        for (found = 1; b > 0; --b)
          if (__builtin_mul_overflow(found, a, &found)) too_large();
        return found;
      default: break;
    }
    if (b == 0)
      throw error(ARGUMENT_MISMATCH, "sizes", {"a division by zero in " + text_, "", "", ""});
    const __int128 down = a / b - (a % b != 0 && (a % b < 0) != (b < 0));
    return op == '/' ? down : a - down * b;
  }

  [[noreturn]] void too_large() const {
    throw error(ARGUMENT_MISMATCH, "sizes", {text_ + " of more than 64 bits", "", "", ""});
  }

  // By descent; throws an `Odd` without words.
  struct Parser {
    const std::string &text;
    const Symbols &symbols;
    std::vector<Op> *code;
    size_t at = 0, depth = 0, nesting = 0;

    void skip() {
      while (at < text.size() && text[at] == ' ') ++at;
    }
    bool take(const char *word) {
      skip();
      if (text.compare(at, strlen(word), word) != 0) return false;
      at += strlen(word);
      return true;
    }
    void need(bool there) {
      if (!there) throw Odd("");
    }
    void add(char op, int64_t value = 0) {
      depth += op == '0' || op == 'n';
      depth -= !(op == '0' || op == 'n' || op == '_');
      need(depth < kMostDepth);
      code->push_back({op, value});
    }

    void sum() {
      need(++nesting < kMostDepth);
      product();
      for (;;) {
        if (take("+")) product(), add('+');
        else if (take("-")) product(), add('-');
        else break;
      }
      --nesting;
    }
    void product() {
      factor();
      for (;;) {
        if (take("//")) factor(), add('/');
        else if (take("*")) factor(), add('*');
        else if (take("%")) factor(), add('%');
        else break;
      }
    }
    void factor() {
      need(++nesting < kMostDepth);
      if (take("-")) factor(), add('_');
      else power();
      --nesting;
    }
    void power() {
      atom();
      if (!take("**")) return;
      skip();
      const int64_t exponent = number();
      need(exponent <= kMostPower && !take("**"));
      add('0', exponent);
      add('^');
    }
    void atom() {
      if (take("(")) {
        sum();
        need(take(")"));
        return;
      }
      skip();
      need(at < text.size());
      if (isdigit(static_cast<uint8_t>(text[at]))) return add('0', number());
      const std::string name = word();
      if (take("(")) {
        need(name == "Max" || name == "Min");
        sum();
        while (take(",")) sum(), add(name == "Max" ? 'M' : 'm');
        need(take(")"));
        return;
      }
      const auto found = symbols.numbers.find(name);
      need(found != symbols.numbers.end());
      add('n', found->second);
    }
    std::string word() {
      const size_t from = at;
      while (at < text.size() && (isalnum(static_cast<uint8_t>(text[at])) || text[at] == '_')) ++at;
      need(at > from);
      return text.substr(from, at - from);
    }
    int64_t number() {
      const std::string digits = word();
      need(digits.size() < 19 && digits.find_first_not_of("0123456789") == digits.npos);
      return strtoll(digits.c_str(), nullptr, 10);
    }
  };

  int64_t literal_ = 0;
  std::string text_;
  std::vector<Op> code_;
};

using Exprs = std::vector<Expr>;

Exprs exprs_of(const Node &node, const Symbols &symbols) {
  Exprs found;
  node.each([&](const Node &item) { found.push_back(Expr::of(item, symbols)); });
  return found;
}

Sizes values_of(const Exprs &exprs, const Sizes &symbols) {
  Sizes found;
  for (const Expr &expr : exprs) found.push_back(expr.value(symbols));
  return found;
}

Size size_of_expr(const Expr &expr, const std::vector<std::pair<int64_t, int64_t>> &ranges) {
  if (expr.is_literal()) return {expr.text(), expr.value({}), expr.value({})};
  const int32_t symbol = expr.symbol();
  if (symbol < 0 || static_cast<size_t>(symbol) >= ranges.size()) return {expr.text()};
  return {expr.text(), ranges[static_cast<size_t>(symbol)].first,
          ranges[static_cast<size_t>(symbol)].second};
}

// -- native code (fuseline/artifact/natives.py) --------------------------------------------------

struct Member {
  std::string sha256;
  int64_t size;
};

Member member_of(const Node &node) {
  node.must_be("Member");
  return {node["sha256"].text(), node["size"].integer()};
}

// The bytes of a member that the manifest knows.
Bytes checked(const Archive &archive, const std::map<std::string, Member> &members,
              const std::string &name) {
  const auto known = members.find(name);
  if (known == members.end()) throw Odd("no member " + quoted(name));
  const Bytes data = archive.data(name);
  const std::string found = Sha256::of(data);
  if (found != known->second.sha256 || data.second != static_cast<uint64_t>(known->second.size))
    throw error(ARTIFACT_DIGEST, archive.path() + ", " + name,
                {std::to_string(data.second) + " bytes of digest " + found.substr(0, 16),
                 std::to_string(known->second.size) + " bytes of digest " +
                     known->second.sha256.substr(0, 16),
                 "", ""});
  return data;
}

// A shared object that was loaded from memory: a read-only root has no place for files.
class Library {
 public:
  Library(const std::string &name, Bytes code) : name_(name) {
    file_ = memfd_create("fuseline", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file_ < 0) failed(strerror(errno));
    for (uint64_t at = 0; at < code.second;) {
      const ssize_t wrote = write(file_, code.first + at, code.second - at);
      if (wrote < 0 && errno != EINTR) failed(strerror(errno));
      if (wrote > 0) at += static_cast<uint64_t>(wrote);
    }
    fcntl(file_, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK);
    handle_ = dlopen(("/proc/self/fd/" + std::to_string(file_)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle_) failed(dlerror());
  }
  ~Library() {
    if (handle_) dlclose(handle_);
    ::close(file_);  // not before: the system knows what is loaded by the name that it had
  }
  Library(const Library &) = delete;
  Library &operator=(const Library &) = delete;

  template <class F>
  F function(const std::string &symbol) const {
    void *found = dlsym(handle_, symbol.c_str());
    if (!found) throw error(LIBRARY_UNLOADABLE, name_, {"no symbol " + symbol, "", "", ""});
    return reinterpret_cast<F>(found);
  }

 private:
  [[noreturn]] void failed(const std::string &found) {
    if (file_ >= 0) ::close(file_);
    throw error(LIBRARY_UNLOADABLE, name_, {found, "", "", ""});
  }

  std::string name_;
  int file_ = -1;
  void *handle_ = nullptr;
};

// The functions of the runner that works through pieces.
struct Runner {
  const Library *loaded;
  void (*use_limits)(const fl_limits *);
  fl_piece *(*piece_new)(const fl_step *, int32_t, const fl_ref *, int32_t, const int64_t *,
                         int32_t, int32_t, const fl_host *, int32_t);
  void (*piece_free)(fl_piece *);
  void (*piece_set)(fl_piece *, int32_t, void *);
  void (*piece_go)(fl_piece *);
  int32_t (*piece_fault)(fl_piece *);

  explicit Runner(const Library &library)
      : loaded(&library),
        use_limits(library.function<decltype(use_limits)>("fl_use_limits")),
        piece_new(library.function<decltype(piece_new)>("fl_piece_new")),
        piece_free(library.function<decltype(piece_free)>("fl_piece_free")),
        piece_set(library.function<decltype(piece_set)>("fl_piece_set")),
        piece_go(library.function<decltype(piece_go)>("fl_piece_go")),
        piece_fault(library.function<decltype(piece_fault)>("fl_piece_fault")) {}

  // One for each digest, and for ever: its helper threads do not end.
  static const Runner &of(const std::string &name, const std::string &sha256, Bytes code) {
    static std::mutex mutex;
    static auto &known = *new std::map<std::string, const Runner *>;
    const std::lock_guard<std::mutex> lock(mutex);
    const Runner *&runner = known[sha256];
    if (!runner) runner = new Runner(*new Library(name, code));
    return *runner;
  }
};

// -- what a program's file says (fuseline/artifact/program.py, fuseline/runtime/plan.py) ---------

enum class BufferKind { arg, temp, scratch, output };

struct Buffer {
  BufferKind kind;
  Expr nbytes;
  int32_t arg;
};

struct View {
  int32_t buffer;
  Expr offset;
  DType dtype;
  Exprs shape, strides;
};

struct When {
  Expr value;
  int64_t low, high;
};

struct Step {
  fl_kernel kernel = nullptr;
  std::string symbol, label, where;
  std::vector<std::pair<int32_t, Expr>> buffers;
  Exprs dims;
  Expr work, scratch;
  std::optional<When> when;

  bool applies(const Sizes &symbols) const {
    if (!when) return true;
    const int64_t value = when->value.value(symbols);
    return when->low <= value && value <= when->high;
  }
};

struct Arg {
  std::string name, input;  // in the plan, and in the program
  bool integer = false, written = false, fixed = false;
  DType dtype = DType::int64;
  Exprs shape, strides;
  Expr value;
  int32_t leaf = -1;                // of a call; -1 for what is held or counted
  int32_t counted = -1;             // the integer argument whose value this tensor has
  std::optional<Size> number;       // the limits of an integer that the program reads from memory
  Argument held;                    // what is held
};

struct Owed {
  enum Kind { given, passed, counted } kind;
  int32_t number = 0;  // of the plan's results, or of the argument
  Exprs shape, strides;
  Expr value;  // what is counted; where a passed one begins
};

struct Source {  // of a symbol: the argument, and the dim, or -1 for the argument itself
  int32_t symbol, arg;
  int64_t dim;
};

struct Plan {
  Symbols symbols;  // those of the plan, num_workers, then what only results need
  int32_t n_own = 0;
  std::vector<std::pair<int64_t, int64_t>> ranges;  // of the plan's own
  std::vector<Source> others;
  std::vector<Arg> args;
  std::vector<Buffer> buffers;
  std::vector<Step> steps;
  std::vector<View> returns;
  std::vector<std::vector<int32_t>> packed;
  std::vector<Owed> owed;
};

void name_leaves(const Node &tree, const std::string &path, std::vector<std::string> *names) {
  tree.must_be("Tree");
  if (tree["kind"].text() == "leaf") {
    names->push_back(path.empty() ? "result" : path);
    return;
  }
  if (tree["kind"].text() == "constant") return;  // the same in every call, and in the program
  const std::vector<std::string> keys = tree["keys"].texts();
  const Node children = tree["children"];
  if (!keys.empty() && keys.size() != children.size())
    throw Odd(tree.where() + " has other keys than children");
  for (size_t i = 0; i < children.size(); ++i) {
    const std::string key = keys.empty() ? std::to_string(i) : keys[i];
    name_leaves(children.at(i), path.empty() ? key : path + "." + key, names);
  }
}

// Reads a program; refuses what only torch can run.
class PlanReader {
 public:
  PlanReader(const std::string &path, const std::string &name, const Node &file)
      : path_(path), name_(name), file_(file.must_be("ProgramFile")), plan_(file["plan"]) {
    plan_.must_be("PlanFile");
  }

  Plan read() {
    read_symbols();
    read_args();
    read_buffers();
    plan_["steps"].each([&](const Node &step) { read_step(step); });
    plan_["returns"].each([&](const Node &view) {
      view.must_be("View");
      found_.returns.push_back({view["buffer"].number(found_.buffers.size(), "buffer"),
                                expr(view["offset"]), dtype_of(view["dtype"]), exprs(view["shape"]),
                                exprs(view["strides"])});
    });
    plan_["packed"].each([&](const Node &group) {
      found_.packed.emplace_back();
      group.each([&](const Node &item) { found_.packed.back().push_back(arg_number(item)); });
    });
    return std::move(found_);
  }

  // The owed ones go to the plan, constants to `constants`; the names are those of outputs.
  std::vector<std::string> read_returns(
      Plan *plan, std::vector<std::pair<std::string, std::string>> *constants) {
    std::vector<std::string> names, all;
    name_leaves(file_["gives"], "", &all);
    const Node returns = file_["returns"];
    if (returns.size() != all.size())
      throw Odd(returns.where() + ": not as many as leaves of a result");
    for (size_t i = 0; i < all.size(); ++i) {
      const Node item = returns.at(i);
      if (item.is("Constant")) {
        constants->emplace_back(all[i], item["value"].shown());
        continue;
      }
      names.push_back(all[i]);
      plan->owed.push_back(owed(item, *plan));
    }
    return names;
  }

 private:
  int32_t arg_number(const Node &node) const { return node.number(found_.args.size(), "argument"); }
  Expr expr(const Node &node) const { return Expr::of(node, found_.symbols); }
  Exprs exprs(const Node &node) const { return exprs_of(node, found_.symbols); }

  [[noreturn]] void refuse(const std::string &what) const {
    throw error(NO_BINARY, path_,
                {"program " + quoted(name_) + " with " + what + ", which torch runs",
                 "kernels alone", "",
                 "load it in Python; fuseline.explain tells why an op has no kernel"});
  }

  // The ops that have no kernel, each with its place in the user's program.
  std::string without_kernels(const std::string &label) const {
    constexpr size_t kMost = 8;
    std::vector<std::string> found;
    file_["kernels"].each([&](const Node &record) {
      if (record["status"].text() == "native") return;
      const std::string &symbol = record["symbol"].text(), &origin = record["origin"].text();
      const std::string text = (symbol.empty() ? record["op"].text() : symbol) +
          (origin.empty() ? "" : " in " + origin);
      if (found.size() < kMost && std::find(found.begin(), found.end(), text) == found.end())
        found.push_back(text);
    });
    return found.empty() ? label : joined(found);
  }

  void read_symbols() {
    const size_t n_args = plan_["args"].size();
    const Node own = plan_["symbols"], ranges = plan_["ranges"];
    std::map<std::string, std::pair<int64_t, int64_t>> limits;
    ranges.each_field([&](const std::string &key, const Node &range) {
      if (range.size() != 2) range.wrong("2 items");
      limits[key] = {range.at(0).integer(), range.at(1).integer_or(INT64_MAX)};
    });
    const auto place = [&](const std::string &name, const Node &source) {
      const bool plain = !name.empty() && !isdigit(static_cast<uint8_t>(name[0])) &&
                         std::all_of(name.begin(), name.end(), [](char c) {
                           return isalnum(static_cast<uint8_t>(c)) || c == '_';
                         });
      if (!plain || source.size() != 2)
        throw Odd(file_.where() + ": " + quoted(name) + " is no name of a size");
      return Source{found_.symbols.of(name), source.at(0).number(n_args, "argument"),
                    source.at(1).integer()};
    };
    own.each_field([&](const std::string &name, const Node &source) {
      place(name, source);
      const auto range = limits.find(name);
      const std::pair<int64_t, int64_t> any(0, INT64_MAX);
      found_.ranges.push_back(range == limits.end() ? any : range->second);
    });
    found_.n_own = static_cast<int32_t>(found_.ranges.size());
    if (found_.symbols.of("num_workers") != found_.n_own)
      throw Odd(own.where() + " has num_workers");
    file_["symbols"].each_field([&](const std::string &name, const Node &source) {
      const Source found = place(name, source);
      if (found.symbol > found_.n_own) found_.others.push_back(found);
    });
  }

  void read_args() {
    const Node args = plan_["args"], inputs = file_["inputs"];
    if (args.size() != inputs.size()) throw Odd(inputs.where() + ": not as many as arguments");
    int32_t leaf = 0;
    for (size_t i = 0; i < args.size(); ++i) {
      const Node spec = args.at(i).must_be("ArgSpec"), input = inputs.at(i).must_be("Input");
      Arg arg;
      arg.name = spec["name"].text(), arg.input = input["name"].text();
      arg.integer = spec["kind"].text() == "int";
      arg.dtype = dtype_of(spec["dtype"]);
      arg.shape = exprs(spec["shape"]), arg.strides = exprs(spec["strides"]);
      arg.value = expr(spec["value"]);
      arg.written = spec["written"].boolean(), arg.fixed = spec["fixed"].boolean();
      if (arg.shape.size() != arg.strides.size())
        throw Odd(spec.where() + " has other dims than strides");
      const std::string &kind = input["kind"].text();
      if (kind == "user" || kind == "symbol") arg.leaf = leaf++;
      else if (kind == "count") arg.counted = counted(input, args.size());
      else if (kind != "weight" && kind != "constant") input.wrong("an input of a known kind");
      if (arg.leaf < 0 && arg.integer) throw Odd(spec.where() + ": an integer that is a weight");
      found_.args.push_back(arg);
    }
    for (const Arg &arg : found_.args)
      if (arg.counted >= 0 && found_.args[static_cast<size_t>(arg.counted)].leaf < 0)
        throw Odd(inputs.where() + ": a count of what is no integer of a call");
    file_["complex"].each([&](const Node &item) {
      refuse("the complex argument " +
             quoted(found_.args[static_cast<size_t>(arg_number(item))].input));
    });
    file_["numbers"].each([&](const Node &item) {
      item.must_be("Number");
      Arg &arg = found_.args[static_cast<size_t>(arg_number(item["input"]))];
      if (arg.integer || arg.leaf < 0) item.wrong("a number of a call");
      arg.number = Size{"", item["low"].integer(), item["high"].integer_or(INT64_MAX)};
    });
    for (const Source &source : found_.others) check_source(source);
    std::vector<std::string> leaves;
    name_leaves(file_["takes"], "", &leaves);
    if (leaves.size() != static_cast<size_t>(leaf))
      throw Odd(inputs.where() + ": not as many as leaves of a call");
  }

  // The number of the argument whose tensor an input is: its name.
  static int32_t counted(const Node &input, size_t n_args) {
    const std::string &name = input["name"].text();
    const bool plain = !name.empty() && name.size() < 10 &&
                       std::all_of(name.begin(), name.end(), [](char c) {
                         return c >= '0' && c <= '9';
                       });
    if (!plain || std::stoull(name) >= n_args) input.wrong("a count of an input");
    return std::stoi(name);
  }

  void check_source(const Source &source) const {
    const Arg &arg = found_.args[static_cast<size_t>(source.arg)];
    const bool integer = arg.integer || arg.number;
    const int64_t dims = static_cast<int64_t>(arg.shape.size());
    if (integer ? source.dim >= 0 : source.dim < 0 || source.dim >= dims)
      throw Odd(file_.where() + ": a size of a dim that argument " + std::to_string(source.arg) +
                " lacks");
  }

  void read_buffers() {
    plan_["buffers"].each([&](const Node &node) {
      node.must_be("Buffer");
      const std::string &kind = node["kind"].text();
      Buffer buffer{BufferKind::arg, expr(node["nbytes"]), -1};
      if (kind == "arg") {
        buffer.arg = arg_number(node["arg"]);
        if (found_.args[static_cast<size_t>(buffer.arg)].integer) node.wrong("memory of a tensor");
      } else if (kind == "temp") {
        buffer.kind = BufferKind::temp;
      } else if (kind == "scratch") {
        buffer.kind = BufferKind::scratch;
      } else if (kind == "output" || kind == "host") {  // the step that makes a host one is refused
        buffer.kind = BufferKind::output;
      } else {
        node.wrong("a buffer of a known kind");
      }
      found_.buffers.push_back(buffer);
    });
  }

  void read_step(const Node &node) {
    if (node.is("HostOp")) refuse(without_kernels(node["label"].text()));
    if (node.is("LibraryStep"))
      refuse(node["label"].text() + " (a call of the library " + node["name"].text() + ")");
    node.must_be("NativeStep");
    Step step;
    step.symbol = node["symbol"].text(), step.label = node["label"].text(),
        step.where = node["where"].text();
    node["buffers"].each([&](const Node &pair) {
      if (pair.size() != 2) pair.wrong("2 items");
      step.buffers.emplace_back(pair.at(0).number(found_.buffers.size(), "buffer", -1),
                                expr(pair.at(1)));
    });
    step.dims = exprs(node["dims"]);
    step.work = expr(node["work"]), step.scratch = expr(node["scratch"]);
    const Node when = node["when"];
    if (!when.is_null()) {
      if (when.size() != 3) when.wrong("3 items");
      step.when = When{expr(when.at(0)), when.at(1).integer(),
                       when.at(2).integer_or(INT64_MAX)};
    }
    found_.steps.push_back(step);
  }

  Owed owed(const Node &item, const Plan &plan) const {
    const auto exprs = [&](const char *key) { return exprs_of(item[key], plan.symbols); };
    if (item.is("Given"))
      return {Owed::given, item["result"].number(plan.returns.size(), "result"), {}, {}, {}};
    if (item.is("Counted"))
      return {Owed::counted, 0, {}, {}, Expr::of(item["value"], plan.symbols)};
    item.must_be("Passed");
    Owed found{Owed::passed, item["input"].number(plan.args.size(), "argument"), exprs("shape"),
               exprs("strides"), Expr::of(item["offset"], plan.symbols)};
    const Arg &arg = plan.args[static_cast<size_t>(found.number)];
    if (arg.integer || arg.number || found.shape.size() != found.strides.size())
      item.wrong("a view of a tensor");
    return found;
  }

  std::string path_, name_;
  Node file_, plan_;
  Plan found_;
};

// -- running (fuseline/runtime/executor.py, fuseline/runtime/native/signature.py) ----------------

constexpr int64_t kAlignment = 64, kSerialWork = 400'000;
constexpr size_t kMostBindings = 64;

std::shared_ptr<void> memory_of(int64_t bytes) {
  const uint64_t least = static_cast<uint64_t>(std::max<int64_t>(bytes, 1));
  const uint64_t rounded = (least + kAlignment - 1) / kAlignment * kAlignment;
  void *found = bytes > INT64_MAX - kAlignment ? nullptr : aligned_alloc(kAlignment, rounded);
  if (!found)
    throw error(NO_ROOM, "", {"none for " + std::to_string(bytes) + " bytes", "", "", ""});
  return std::shared_ptr<void>(found, free);
}

struct BoundView {
  int32_t buffer;
  int64_t offset;
  Tensor form;  // without data
};

// A plan, all numbers known.
struct Bound {
  Sizes key, symbols;
  int64_t arena = 0;
  std::vector<int64_t> places;  // in the arena; -1 for a buffer that is elsewhere
  std::vector<int64_t> nbytes;
  std::vector<BoundView> returns;
  std::vector<const Step *> steps;
  std::unique_ptr<fl_piece, void (*)(fl_piece *)> piece{nullptr, nullptr};
};

// From the first byte of a tensor to the last one.
struct Span {
  uintptr_t first, last;
  static std::optional<Span> of(const Tensor &t) {
    if (is_empty(t.shape)) return std::nullopt;
    const uintptr_t first = reinterpret_cast<uintptr_t>(t.data);
    return Span{first, first + static_cast<uintptr_t>(nbytes(t)) - 1};
  }
  bool meets(const Span &other) const { return first <= other.last && other.first <= last; }
};

// The arguments of a call, one for each of the plan, and the values of its symbols.
struct Call {
  std::vector<const Argument *> args;
  std::vector<Argument> own;     // those that are not held by the plan
  std::vector<int64_t> numbers;  // in memory
  Sizes symbols;

  const Tensor &tensor(int32_t number) const {
    return std::get<Tensor>(*args[static_cast<size_t>(number)]);
  }
};

// Holds the arguments of a call to what the plan expects, and finds the symbols' values.
class Signature {
 public:
  Signature(const Plan &plan, Call *call)
      : plan_(plan), call_(*call), known_(plan.symbols.numbers.size()) {
    call_.symbols.assign(known_.size(), 0);
  }

  void match() {
    for (size_t i = 0; i < plan_.args.size(); ++i) {
      before_ = known_;
      if (!agrees(plan_.args[i], *call_.args[i])) {
        known_ = before_;
        throw error(ARGUMENT_MISMATCH, plan_.args[i].name,
                    {described(*call_.args[i]), expectation(plan_.args[i]), "", ""});
      }
    }
    check_overlap();
    for (size_t s = 0; s < plan_.ranges.size(); ++s)  // a stride of an extent of 1 tells nothing
      if (!known_[s]) call_.symbols[s] = plan_.ranges[s].first;
  }

  // Sizes that follow from others: tracing had guards for these.
  void check_composites() const {
    for (size_t i = 0; i < plan_.args.size(); ++i) {
      const Arg &arg = plan_.args[i];
      if (arg.integer) continue;
      const Tensor &t = call_.tensor(static_cast<int32_t>(i));
      for (size_t d = 0; d < arg.shape.size(); ++d)
        composite(arg, arg.shape[d], t.shape[d], "", t.shape, d);
      for (size_t d = 0; d < arg.strides.size() && !is_empty(t.shape); ++d)
        if (t.shape[d] > 1)
          composite(arg, arg.strides[d], t.strides[d], "the stride of ", t.strides, d);
    }
  }

 private:
  bool agrees(const Arg &arg, const Argument &given) {
    const int64_t *number = std::get_if<int64_t>(&given);
    if (arg.integer) return number && size(arg.value, *number);
    if (number) return false;
    const Tensor &t = std::get<Tensor>(given);
    const uintptr_t address = reinterpret_cast<uintptr_t>(t.data);
    if (t.dtype != arg.dtype || t.shape.size() != arg.shape.size()) return false;
    for (size_t d = 0; d < t.shape.size(); ++d)
      if (!size(arg.shape[d], t.shape[d])) return false;
    if (is_empty(t.shape)) return true;
    if (!address || address % std::min<size_t>(size_of(t.dtype), 8)) return false;
    for (size_t d = 0; d < t.shape.size(); ++d)
      if (t.shape[d] > 1 && !size(arg.strides[d], t.strides[d])) return false;
    return true;
  }

  bool size(const Expr &expected, int64_t actual) {
    if (expected.is_literal()) return expected.value({}) == actual;
    const int32_t symbol = expected.symbol();
    if (symbol < 0 || symbol >= plan_.n_own) return true;  // see `check_composites`
    const size_t s = static_cast<size_t>(symbol);
    if (known_[s]) return call_.symbols[s] == actual;
    known_[s] = true;
    call_.symbols[s] = actual;
    return plan_.ranges[s].first <= actual && actual <= plan_.ranges[s].second;
  }

  std::string expectation(const Arg &arg) const {
    if (arg.integer) return "int " + bound(arg.value);
    std::vector<std::string> shape, strides;
    for (const Expr &expr : arg.shape) shape.push_back(bound(expr));
    for (const Expr &expr : arg.strides) strides.push_back(bound(expr));
    return std::string("torch.") + name_of(arg.dtype) + "[" + joined(shape) + "] with strides [" +
           joined(strides) + "] on cpu";
  }

  std::string bound(const Expr &expr) const {
    if (expr.is_literal()) return expr.text();
    const int32_t symbol = expr.symbol();
    if (symbol < 0 || symbol >= plan_.n_own) return "any";
    const size_t s = static_cast<size_t>(symbol);
    if (known_[s]) return expr.text() + "=" + std::to_string(call_.symbols[s]);
    const auto [least, most] = plan_.ranges[s];
    return expr.text() + " in " + std::to_string(least) + ".." +
        (most == INT64_MAX ? "" : std::to_string(most));
  }

  void check_overlap() const {
    std::vector<std::pair<Span, const Arg *>> seen;
    for (size_t i = 0; i < plan_.args.size(); ++i) {
      const Arg &arg = plan_.args[i];
      if (arg.fixed || arg.integer) continue;
      const std::optional<Span> span = Span::of(call_.tensor(static_cast<int32_t>(i)));
      if (!span) continue;
      for (const auto &[other, earlier] : seen)
        if ((arg.written || earlier->written) && span->meets(other))
          throw error(ARGUMENTS_OVERLAP, arg.name, {"memory of " + earlier->name, "", "", ""});
      seen.emplace_back(*span, &arg);
    }
  }

  void composite(const Arg &arg, const Expr &expr, int64_t actual, const char *what,
                 const Sizes &all,
                 size_t dim) const {
    if (expr.is_literal() || (expr.symbol() >= 0 && expr.symbol() < plan_.n_own)) return;
    const int64_t value = expr.value(call_.symbols);
    if (value != actual)
      throw error(ARGUMENT_MISMATCH, arg.input,
                  {(*what ? "strides " : "") + listed(all),
                   std::to_string(value) + " in " + what + "dim " + std::to_string(dim) +
                       ", which is " + expr.text(),
                   "", ""});
  }

  const Plan &plan_;
  Call &call_;
  std::vector<bool> known_, before_;
};

}  // namespace

namespace detail {

// A program, its kernels loaded.
struct Program {
  std::string name;
  Plan plan;
  std::vector<Port> inputs, outputs;
  std::vector<std::pair<std::string, std::string>> constants;
  std::unique_ptr<Library> kernels;
  std::list<Bound> bound;  // those of the latest calls come first; gone before the kernels
};

struct Loaded {
  explicit Loaded(const std::string &path) : archive(path) {}

  Archive archive;
  std::unique_ptr<Mapped> beside;  // the weights, where they lie in a file of their own
  std::string model, licence, version, target;
  std::vector<std::string> names;
  std::map<std::string, std::unique_ptr<Program>> programs;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, Tensor> state;
  std::vector<std::shared_ptr<void>> copies;
  const Runner *runner = nullptr;
  fl_host host{nullptr};
  int threads = 1;
  std::mutex mutex;  // of all that calls change
  std::shared_ptr<void> arena;
  int64_t arena_bytes = 0;
};

}  // namespace detail

namespace {

using detail::Loaded;

// One call of a program; whoever makes it holds the lock.
class Execution {
 public:
  Execution(const std::shared_ptr<Loaded> &loaded, detail::Program &program,
            const std::vector<Argument> &inputs)
      : owner_(loaded), loaded_(*loaded), program_(program), plan_(program.plan) {
    take(inputs);
    Signature signature(plan_, &call_);
    signature.match();
    call_.symbols[static_cast<size_t>(plan_.n_own)] = std::min(loaded_.threads, kMostShares);
    for (const Source &source : plan_.others) {
      const Argument &arg = *call_.args[static_cast<size_t>(source.arg)];
      const Arg &spec = plan_.args[static_cast<size_t>(source.arg)];
      call_.symbols[static_cast<size_t>(source.symbol)] =
          spec.number ? *static_cast<const int64_t *>(call_.tensor(source.arg).data)
          : spec.integer ? std::get<int64_t>(arg)
                         : std::get<Tensor>(arg).shape[static_cast<size_t>(source.dim)];
    }
    signature.check_composites();
    bound_ = &bind();
  }

  // The form of each output, without data.
  std::vector<Tensor> forms() const {
    std::vector<Tensor> found;
    for (const Owed &owed : plan_.owed) {
      if (owed.kind == Owed::given) {
        found.push_back(bound_->returns[static_cast<size_t>(owed.number)].form);
      } else if (owed.kind == Owed::counted) {
        found.push_back({nullptr, DType::int64, {}, {}});
      } else {
        found.push_back({nullptr, plan_.args[static_cast<size_t>(owed.number)].dtype,
                         values_of(owed.shape, call_.symbols),
                             values_of(owed.strides, call_.symbols)});
      }
    }
    return found;
  }

  std::vector<Output> run(const std::vector<Tensor> *given) {
    const std::vector<Tensor> forms = this->forms();
    std::vector<Tensor> targets;
    if (given) targets = checked_targets(forms, *given);
    make_room(forms, targets);
    go();
    std::vector<Output> results;
    for (size_t i = 0; i < forms.size(); ++i) results.push_back(result(plan_.owed[i], forms[i]));
    for (size_t i = 0; i < targets.size(); ++i)
      if (targets[i].data != results[i].tensor.data) copy(targets[i], results[i].tensor);
    return results;
  }

 private:
  static Tensor with_strides(Tensor t) {
    if (t.strides.empty()) t.strides = row_by_row(t.shape);
    return t;
  }

  void take(const std::vector<Argument> &inputs) {
    if (inputs.size() != program_.inputs.size())
      throw error(ARGUMENT_COUNT, "",
                  {std::to_string(inputs.size()), std::to_string(program_.inputs.size()), "", ""});
    call_.numbers.resize(plan_.args.size());  // both keep their places from here on
    call_.own.reserve(plan_.args.size());
    for (size_t i = 0; i < plan_.args.size(); ++i) {
      const Arg &arg = plan_.args[i];
      if (arg.counted >= 0) {
        take_count(i, plan_.args[static_cast<size_t>(arg.counted)], inputs);
        continue;
      }
      if (arg.leaf < 0) {
        call_.args.push_back(&arg.held);
        continue;
      }
      Argument given = inputs[static_cast<size_t>(arg.leaf)];
      if (arg.number) {
        const int64_t *value = std::get_if<int64_t>(&given);
        if (!value || *value < arg.number->least || *value > arg.number->most) mismatch(arg, given);
        call_.numbers[i] = *value;
        given = Tensor{&call_.numbers[i], DType::int64, {}, {}};
      }
      if (Tensor *t = std::get_if<Tensor>(&given)) *t = checked_form(arg, with_strides(*t));
      call_.own.push_back(std::move(given));
      call_.args.push_back(&call_.own.back());
    }
  }

  // The tensor of an integer of the call, which the program reads from memory.
  void take_count(size_t number, const Arg &of, const std::vector<Argument> &inputs) {
    const Argument &given = inputs[static_cast<size_t>(of.leaf)];
    const int64_t *value = std::get_if<int64_t>(&given);
    if (!value || *value < 0)
      throw error(ARGUMENT_MISMATCH, of.input,
                  {value ? std::to_string(*value) : described(given), "an integer, 0 or more", "",
                   ""});
    call_.numbers[number] = *value;
    call_.own.push_back(Tensor{&call_.numbers[number], DType::int64, {}, {}});
    call_.args.push_back(&call_.own.back());
  }

  static Tensor checked_form(const Arg &arg, Tensor t) {
    try {
      reach(t.shape, t.strides);
    } catch (const Odd &odd) {
      throw error(ARGUMENT_MISMATCH, arg.name,
                  {std::string(odd.what()) + ": " + listed(t.shape) + " with strides " +
                   listed(t.strides),
                   "", "", ""});
    }
    return t;
  }

  [[noreturn]] static void mismatch(const Arg &arg, const Argument &given) {
    const int64_t *value = std::get_if<int64_t>(&given);
    const std::string low = std::to_string(arg.number->least);
    const std::string high = std::to_string(arg.number->most);
    const std::string limits = low + (arg.number->most == INT64_MAX ? " or more" : " to " + high);
    throw error(ARGUMENT_MISMATCH, arg.input,
                {value ? std::to_string(*value) : described(given),
                 "an integer, " + limits, "", ""});
  }

  // -- binding --

  Bound &bind() {
    std::list<Bound> &known = program_.bound;
    const Sizes key(call_.symbols.begin(), call_.symbols.begin() + plan_.n_own);
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&](const Bound &b) { return b.key == key; });
    if (found != known.end()) {
      known.splice(known.begin(), known, found);
      return known.front();
    }
    Bound fresh;
    fresh.key = key;
    fresh.symbols = call_.symbols;
    lay_out(&fresh);
    for (const View &view : plan_.returns) fresh.returns.push_back(bound_view(view, fresh));
    make_piece(&fresh);
    known.push_front(std::move(fresh));
    if (known.size() > kMostBindings) known.pop_back();
    return known.front();
  }

  static int64_t rounded(int64_t bytes) {
    int64_t found = 0;
    if (bytes < 0 || __builtin_add_overflow(bytes, kAlignment - 1, &found))
      throw error(NO_ROOM, "", {"a temporary of " + std::to_string(bytes) + " bytes", "", "", ""});
    return found / kAlignment * kAlignment;
  }

  void lay_out(Bound *bound) const {
    int64_t scratch = 0;
    for (const Step &step : plan_.steps) {
      if (!step.applies(bound->symbols)) continue;
      bound->steps.push_back(&step);
      scratch = std::max(scratch, step.scratch.value(bound->symbols));
    }
    for (const Buffer &buffer : plan_.buffers) {
      const bool inside = buffer.kind == BufferKind::temp || buffer.kind == BufferKind::scratch;
      const int64_t size = buffer.kind == BufferKind::scratch ? scratch
          : buffer.nbytes.value(bound->symbols);
      bound->nbytes.push_back(size);
      bound->places.push_back(inside ? bound->arena : -1);
      if (inside && __builtin_add_overflow(bound->arena, rounded(size), &bound->arena))
        rounded(INT64_MAX);
      rounded(size);
    }
  }

  BoundView bound_view(const View &view, const Bound &bound) const {
    BoundView found{view.buffer, view.offset.value(bound.symbols),
                    {nullptr, view.dtype, values_of(view.shape, bound.symbols),
                     values_of(view.strides, bound.symbols)}};
    const size_t number = static_cast<size_t>(view.buffer);
    if (plan_.buffers[number].kind != BufferKind::arg)
      check_inside(found.form, found.offset, bound.nbytes[number]);
    return found;
  }

  // That a view of memory of so many bytes does not reach beyond it.
  void check_inside(const Tensor &form, int64_t offset, int64_t bytes) const {
    int64_t size = -1;
    try {
      size = nbytes(form);
    } catch (const Odd &) {  // told below
    }
    if (size < 0 || offset < 0 || offset > bytes || (size && size > bytes - offset))
      throw error(ARTIFACT_DAMAGED, loaded_.archive.path(),
                  {"a result of " + program_.name + " that reaches beyond its memory", "", "", ""});
  }

  void make_piece(Bound *bound) const {
    if (bound->steps.empty()) return;
    std::vector<fl_step> steps;
    std::vector<fl_ref> refs;
    Sizes dims;
    const int32_t arena = static_cast<int32_t>(plan_.buffers.size());
    for (const Step *step : bound->steps) {
      const int64_t shares = step->work.value(bound->symbols) / kSerialWork;
      const int64_t width = std::max<int64_t>(1, std::min<int64_t>(loaded_.threads, shares));
      steps.push_back({step->kernel, static_cast<int32_t>(refs.size()),
                       static_cast<int32_t>(dims.size()),
                       static_cast<int32_t>(width), 0});
      for (const auto &[buffer, offset] : step->buffers) {
        const int64_t place = buffer < 0 ? -1 : bound->places[static_cast<size_t>(buffer)];
        const int64_t start = offset.value(bound->symbols) + std::max<int64_t>(place, 0);
        refs.push_back({start, place < 0 ? buffer : arena, 0});
      }
      for (const Expr &dim : step->dims) dims.push_back(dim.value(bound->symbols));
    }
    fl_piece *piece = loaded_.runner->piece_new(
        steps.data(), static_cast<int32_t>(steps.size()), refs.data(),
            static_cast<int32_t>(refs.size()),
        dims.data(), static_cast<int32_t>(dims.size()), arena + 1, &loaded_.host, loaded_.threads);
    if (!piece) throw std::bad_alloc();
    bound->piece = {piece, loaded_.runner->piece_free};
  }

  // -- memory --

  // Memory of the caller for results, held to their forms: nothing may be read there that a result
  // was copied over.
  std::vector<Tensor> checked_targets(const std::vector<Tensor> &forms,
                                      const std::vector<Tensor> &given) const {
    if (given.size() != forms.size())
      throw error(ARGUMENT_COUNT, "for the results",
                  {std::to_string(given.size()), std::to_string(forms.size()), "", ""});
    std::vector<Tensor> targets;
    std::vector<std::optional<Span>> spans;
    for (size_t i = 0; i < forms.size(); ++i) {
      const std::string &name = program_.outputs[i].name;
      const Tensor target = with_strides(given[i]);
      const bool empty = is_empty(target.shape);
      const uintptr_t address = reinterpret_cast<uintptr_t>(target.data);
      bool fits = target.dtype == forms[i].dtype && target.shape == forms[i].shape;
      fits = fits && target.strides.size() == target.shape.size() && apart(target);
      const bool askew = address % std::min<size_t>(size_of(target.dtype), 8) != 0;
      fits = fits && (empty || (address && !askew));
      if (!fits)
        throw error(ARGUMENT_MISMATCH, "for the result " + name,
                    {described(Argument(target)),
                     std::string("torch.") + name_of(forms[i].dtype) + listed(forms[i].shape) +
                         ", each element in a place of its own, on cpu", "", ""});
      const std::optional<Span> span = Span::of(target);
      for (size_t k = 0; span && k < spans.size(); ++k)
        if (spans[k] && span->meets(*spans[k]))
          throw error(ARGUMENTS_OVERLAP, name,
                      {"memory of " + program_.outputs[k].name, "", "", ""});
      for (size_t k = 0; span && k < plan_.args.size(); ++k) {
        if (plan_.args[k].integer) continue;
        const std::optional<Span> other = Span::of(call_.tensor(static_cast<int32_t>(k)));
        if (other && span->meets(*other) && !is_itself(i, target, forms[i]))
          throw error(ARGUMENTS_OVERLAP, name, {"memory of " + plan_.args[k].name, "", "", ""});
      }
      targets.push_back(target);
      spans.push_back(span);
    }
    return targets;
  }

  // Whether a target is the argument that the result is.
  bool is_itself(size_t i, const Tensor &target, const Tensor &form) const {
    const Owed &owed = plan_.owed[i];
    if (owed.kind != Owed::passed || !same_strides(form.shape, form.strides, target.strides))
      return false;
    return passed(owed, form).data == target.data;
  }

  // That no two elements share a place: each stride steps over all that smaller ones reach.
  static bool apart(const Tensor &t) {
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (size_t d = 0; d < t.shape.size(); ++d)
      if (t.shape[d] > 1) dims.emplace_back(t.strides[d], t.shape[d]);
    std::sort(dims.begin(), dims.end());
    int64_t held = 1;
    for (const auto &[stride, extent] : dims) {
      if (!is_empty(t.shape) && stride < held) return false;
      if (__builtin_mul_overflow(stride, extent, &held)) return false;
    }
    try {
      return reach(t.shape, t.strides) >= 0;
    } catch (const Odd &) {
      return false;
    }
  }

  // The memory of each buffer. One that is a result goes to the caller's memory at once.
  void make_room(const std::vector<Tensor> &forms, const std::vector<Tensor> &targets) {
    if (loaded_.arena_bytes < bound_->arena) {
      loaded_.arena.reset(), loaded_.arena_bytes = 0;
      loaded_.arena = memory_of(bound_->arena);
      loaded_.arena_bytes = bound_->arena;
    }
    slots_.assign(plan_.buffers.size(), nullptr);
    owners_.assign(plan_.buffers.size(), nullptr);
    for (size_t i = 0; i < targets.size(); ++i) {
      const Owed &owed = plan_.owed[i];
      if (owed.kind != Owed::given || is_empty(forms[i].shape)) continue;
      const BoundView &view = bound_->returns[static_cast<size_t>(owed.number)];
      const size_t number = static_cast<size_t>(view.buffer);
      const bool whole = plan_.buffers[number].kind == BufferKind::output && !view.offset &&
                         nbytes(view.form) == bound_->nbytes[number];
      if (whole && !slots_[number] &&
          same_strides(forms[i].shape, forms[i].strides, targets[i].strides))
        slots_[number] = targets[i].data;
    }
    for (size_t number = 0; number < slots_.size(); ++number) {
      const Buffer &buffer = plan_.buffers[number];
      if (buffer.kind == BufferKind::arg) {
        slots_[number] = call_.tensor(buffer.arg).data;
      } else if (buffer.kind == BufferKind::output && !slots_[number]) {
        owners_[number] = memory_of(bound_->nbytes[number]);
        slots_[number] = owners_[number].get();
      } else if (bound_->places[number] >= 0) {
        slots_[number] = static_cast<char *>(loaded_.arena.get()) + bound_->places[number];
      }
    }
  }

  void go() const {
    fl_piece *piece = bound_->piece.get();
    if (!piece) return;
    for (size_t number = 0; number < slots_.size(); ++number)
      if (bound_->places[number] < 0)
        loaded_.runner->piece_set(piece, static_cast<int32_t>(number), slots_[number]);
    loaded_.runner->piece_set(piece, static_cast<int32_t>(slots_.size()), loaded_.arena.get());
    loaded_.runner->piece_go(piece);
    const int32_t fault = loaded_.runner->piece_fault(piece);
    if (!fault) return;
    const Step &step = *bound_->steps[static_cast<size_t>(fault - 1)];
    const std::string label = step.label.substr(0, step.label.find(' '));
    throw error(INDEX_OUTSIDE, "",
                {"one given to " + label + " that is negative or too large", "", step.where, ""});
  }

  // -- results --

  Output result(const Owed &owed, const Tensor &form) const {
    if (owed.kind == Owed::passed) return {passed(owed, form), held_by(owed.number)};
    Output found;
    found.tensor = form;
    if (owed.kind == Owed::counted) {
      found.memory = memory_of(sizeof(int64_t));
      found.tensor.data = found.memory.get();
      *static_cast<int64_t *>(found.tensor.data) = owed.value.value(call_.symbols);
      return found;
    }
    const BoundView &view = bound_->returns[static_cast<size_t>(owed.number)];
    const size_t number = static_cast<size_t>(view.buffer);
    const Buffer &buffer = plan_.buffers[number];
    if (buffer.kind == BufferKind::arg)
      check_inside(form, view.offset, nbytes(call_.tensor(buffer.arg)));
    found.tensor.data = static_cast<char *>(slots_[number]) + view.offset;
    found.memory = buffer.kind == BufferKind::arg ? held_by(buffer.arg) : owners_[number];
    if (bound_->places[number] >= 0) {  // the next call writes there
      const Tensor inside = found.tensor;
      found.memory = memory_of(nbytes(form));
      found.tensor.data = found.memory.get();
      copy(found.tensor, inside);
    }
    return found;
  }

  Tensor passed(const Owed &owed, const Tensor &form) const {
    const Tensor &base = call_.tensor(owed.number);
    const int64_t item = static_cast<int64_t>(size_of(base.dtype));
    const int64_t offset = owed.value.value(call_.symbols);
    check_inside(form, offset > INT64_MAX / item ? -1 : offset * item, nbytes(base));
    Tensor found = form;
    found.data = static_cast<char *>(base.data) + offset * item;
    return found;
  }

  // What keeps an argument alive: the artifact for what it holds, the caller for what is his.
  std::shared_ptr<void> held_by(int32_t arg) const {
    return plan_.args[static_cast<size_t>(arg)].leaf < 0 ? owner_ : nullptr;
  }

  std::shared_ptr<Loaded> owner_;
  Loaded &loaded_;
  detail::Program &program_;
  const Plan &plan_;
  Call call_;
  Bound *bound_ = nullptr;
  std::vector<void *> slots_;
  std::vector<std::shared_ptr<void>> owners_;
};

// -- loading (fuseline/artifact/load.py, manifest.py, choose.py) ---------------------------------

class Loader {
 public:
  Loader(Loaded &loaded, const Options &options) : loaded_(loaded), options_(options) {}

  void load() {
    const Json manifest = read_manifest();
    const Node root = Node(manifest, "manifest.json").must_be("Manifest");
    read_about(root);
    const Node target = chosen(root);
    read_weights(root["weights"].must_be("Weights"));
    load_runner(root);
    for (const std::string &name : loaded_.names) load_program(name, target);
    hold_tensors();
  }

 private:
  const std::string &path() const { return loaded_.archive.path(); }

  Json read_manifest() const {
    const Bytes data = loaded_.archive.data("manifest.json");
    if (data.second > kMostManifest)
      throw Odd("a manifest of " + std::to_string(data.second) + " bytes");
    Json found = JsonReader::read(data, "manifest.json");
    const Node schema = Node(found, "manifest.json")["schema"];
    if (schema.integer() != kSchema)
      throw error(ARTIFACT_SCHEMA, path(),
                  {"schema " + std::to_string(schema.integer()),
                   "schema " + std::to_string(kSchema), "", ""});
    return found;
  }

  void read_about(const Node &root) {
    loaded_.model = root["model"].text(), loaded_.licence = root["licence"].text();
    loaded_.version = root["fuseline"].text();
    loaded_.names = root["programs"].texts();
    if (loaded_.names.empty()) throw Odd("no programs");
    root["members"].each_field([&](const std::string &name, const Node &node) {
      members_[name] = member_of(node);
    });
    std::set<std::string> odd = {"manifest.json"};
    for (const auto &member : members_) odd.insert(member.first);
    for (const std::string &name : loaded_.archive.names())
      if (!odd.erase(name)) odd.insert(name);
    if (!odd.empty()) throw Odd("a member that only one list has: " + quoted(*odd.begin()));
  }

  // -- which of the targets runs here --

  static std::string title_of(const Node &target) {
    const std::string &isa = target["isa"].text();
    return target["name"].text() + (isa.empty() ? "" : ":" + isa);
  }

  Node chosen(const Node &root) {
    const std::string &wanted = options_.target;
    std::vector<std::string> has, refusals;
    std::optional<Node> best;
    size_t most = 0;
    bool named = false;
    root["targets"].each([&](const Node &target) {
      target.must_be("Target");
      const std::string &name = target["name"].text(), title = title_of(target);
      has.push_back(title);
      if (wanted != "auto" && wanted != name && wanted != title) return;
      named = true;
      if (name != "cpu") return;
      const size_t features = target["features"].size();
      const std::string reason = lacking(target, title);
      if (!reason.empty()) {
        if (std::find(refusals.begin(), refusals.end(), reason) == refusals.end())
          refusals.push_back(reason);
      } else if (!best || features > most) {
        best.emplace(target), most = features;
      }
    });
    if (!best) {
      std::string found = "binaries for " + joined(has);
      if (wanted != "auto" && !named) found += ", none for " + wanted;
      if (!refusals.empty()) found += " (" + joined(refusals, "; ") + ")";
      throw error(NO_BINARY, path(), {found, "one for " + here(), "", ""});
    }
    loaded_.target = title_of(*best);
    return *best;
  }

  // Why code does not run here; empty where it does.
  static std::string lacking(const Node &target, const std::string &title) {
    if (target["machine"].text() != machine()) return title + " is for " + target["machine"].text();
    std::set<std::string> missing;
    for (const std::string &feature : target["features"].texts())
      if (!processor().features.count(feature)) missing.insert(feature);
    return missing.empty() ? "" : title + " needs " + joined({missing.begin(), missing.end()});
  }

  static std::string here() {
    std::vector<std::string> shown;
    for (const char *feature : {"amx_bf16", "avx2", "avx512_bf16", "avx512f", "fma"})
      if (processor().features.count(feature)) shown.push_back(feature);
    return machine() + " with " + (shown.empty() ? "nothing" : joined(shown, " "));
  }

  // -- weights --

  void read_weights(const Node &weights) {
    const Node member = weights["member"];
    const Bytes data = member.is_null() ? beside(weights["file"])
        : loaded_.archive.data(member.text());
    const std::map<std::string, Tensor> memory = read_tensors(data);
    weights["tensors"].each_field([&](const std::string &name, const Node &at) {
      loaded_.tensors[name] =
          at.is("Zeros") ? zeros(at, &loaded_.copies) : placed(memory, at.must_be("Placed"));
    });
  }

  Bytes beside(const Node &file) {
    if (file.size() != 2) file.wrong("2 items");
    const std::string &name = file.at(0).text();
    const Member known = member_of(file.at(1));
    if (name.empty() || name.find('/') != name.npos || name == "." || name == ".." ||
        name.find('\0') != name.npos)
      throw Odd("weights in " + quoted(name));
    const size_t slash = path().rfind('/');
    const std::string place = (slash == path().npos ? "" : path().substr(0, slash + 1)) + name;
    loaded_.beside = std::make_unique<Mapped>(place);
    const Bytes data = loaded_.beside->bytes();
    if (data.second != static_cast<uint64_t>(known.size))
      throw error(ARTIFACT_DAMAGED, place,
                  {std::to_string(data.second) + " bytes in the place of " +
                   std::to_string(known.size), "", "", ""});
    return data;
  }

  // -- code --

  void load_runner(const Node &root) {
    std::vector<std::string> has;
    std::string runner;
    root["native"].each([&](const Node &native) {
      has.push_back(native.must_be("Native")["machine"].text());
      if (has.back() == machine() && runner.empty()) runner = native["runner"].text();
    });
    if (runner.empty())
      throw error(NO_BINARY, path(), {"code for " + joined(has), machine(), "", ""});
    const Bytes code = checked(loaded_.archive, members_, runner);
    loaded_.runner = &Runner::of(runner, members_[runner].sha256, code);
    loaded_.threads = std::min(options_.threads > 0 ? options_.threads : processor().cores,
                               kMostThreads);
    loaded_.host.sgemm = options_.sgemm;
    if (options_.omp_get_max_threads || options_.omp_set_num_threads ||
        options_.mkl_set_num_threads_local) {
      const bool both = options_.omp_get_max_threads && options_.omp_set_num_threads;
      const fl_limits limits = {both ? options_.omp_get_max_threads : nullptr,
                                both ? options_.omp_set_num_threads : nullptr,
                                options_.mkl_set_num_threads_local};
      loaded_.runner->use_limits(&limits);
    }
  }

  void load_program(const std::string &name, const Node &target) {
    const std::map<std::string, std::string> files = target["programs"].text_by_name();
    const auto file = files.find(name);
    if (file == files.end()) throw Odd("no program " + quoted(name) + " for " + loaded_.target);
    const std::string &where = file->second;
    const Json json = JsonReader::read(checked(loaded_.archive, members_, where), where);
    auto program = std::make_unique<detail::Program>();
    program->name = name;
    PlanReader reader(path(), name, Node(json, where));
    program->plan = reader.read();
    const std::vector<std::string> outputs =
        reader.read_returns(&program->plan, &program->constants);
    describe(program.get(), outputs);
    load_kernels(program.get(), target["libraries"].text_by_name());
    loaded_.programs[name] = std::move(program);
  }

  void load_kernels(detail::Program *program, const std::map<std::string, std::string> &libraries) {
    if (program->plan.steps.empty()) return;
    const auto member = libraries.find(program->name);
    if (member == libraries.end()) throw Odd("no kernels of program " + quoted(program->name));
    const Bytes code = checked(loaded_.archive, members_, member->second);
    program->kernels = std::make_unique<Library>(member->second, code);
    for (Step &step : program->plan.steps)
      step.kernel = program->kernels->function<fl_kernel>(step.symbol);
  }

  static std::vector<Size> sizes(const Exprs &exprs, const Plan &plan) {
    std::vector<Size> found;
    for (const Expr &expr : exprs) found.push_back(size_of_expr(expr, plan.ranges));
    return found;
  }

  static void describe(detail::Program *program, const std::vector<std::string> &outputs) {
    const Plan &plan = program->plan;
    for (const Arg &arg : plan.args) {
      if (arg.leaf < 0) continue;
      Port port{arg.input, arg.integer || arg.number.has_value(), arg.dtype, sizes(arg.shape, plan),
                sizes(arg.strides, plan), arg.written};
      if (arg.integer) port.shape = {size_of_expr(arg.value, plan.ranges)};
      if (arg.number) port.shape = {*arg.number};
      program->inputs.push_back(port);
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      const Owed &owed = plan.owed[i];
      Port port{outputs[i], owed.kind == Owed::counted, DType::int64, {}, {}, false};
      if (owed.kind == Owed::given) {
        const View &view = plan.returns[static_cast<size_t>(owed.number)];
        port.dtype = view.dtype, port.shape = sizes(view.shape, plan),
            port.strides = sizes(view.strides, plan);
      } else if (owed.kind == Owed::passed) {
        port.dtype = plan.args[static_cast<size_t>(owed.number)].dtype;
        port.shape = sizes(owed.shape, plan), port.strides = sizes(owed.strides, plan);
      } else {
        port.shape = {size_of_expr(owed.value, plan.ranges)};
      }
      program->outputs.push_back(port);
    }
  }

  // Gives programs their weights. State is where its weights are: what is written there is this
  // process's alone, and one memory for all programs.
  void hold_tensors() {
    for (auto &entry : loaded_.programs) {
      Plan &plan = entry.second->plan;
      for (Arg &arg : plan.args) {
        if (arg.leaf >= 0 || arg.counted >= 0) continue;
        const auto found = loaded_.tensors.find(arg.input);
        if (found == loaded_.tensors.end()) throw Odd("no weight " + quoted(arg.input));
        arg.held = found->second;
        if (arg.written) loaded_.state[arg.input] = found->second;
      }
      for (const std::vector<int32_t> &group : plan.packed) lay_side_by_side(&plan, group);
    }
  }

  // Tensors that one product reads as one: as they are where they lie one behind the other, else a
  // copy, which all programs share.
  void lay_side_by_side(Plan *plan, const std::vector<int32_t> &group) {
    std::vector<Tensor *> members;
    std::vector<std::string> names;
    int64_t bytes = 0;
    bool apart = false;
    for (int32_t number : group) {
      Arg &arg = plan->args[static_cast<size_t>(number)];
      if (arg.leaf >= 0 || arg.counted >= 0 || arg.written)
        throw Odd("weights of one product that are not held, or written");
      Tensor *t = std::get_if<Tensor>(&arg.held);
      if (!members.empty()) {
        const Tensor &before = *members.back();
        apart = apart || static_cast<char *>(before.data) + nbytes(before) != t->data;
      }
      members.push_back(t);
      names.push_back(arg.input);
      if (__builtin_add_overflow(bytes, elements(*t) * static_cast<int64_t>(size_of(t->dtype)),
                                 &bytes))
        throw Odd("weights of one product that are too large");
    }
    if (!apart) return;
    std::vector<Tensor> &copies = packed_[names];
    if (copies.empty()) {
      loaded_.copies.push_back(memory_of(bytes));
      char *at = static_cast<char *>(loaded_.copies.back().get());
      for (const Tensor *t : members) {
        copies.push_back({at, t->dtype, t->shape, row_by_row(t->shape)});
        copy(copies.back(), *t);
        at += nbytes(copies.back());
      }
    }
    for (size_t i = 0; i < members.size(); ++i) *members[i] = copies[i];
  }

  static int64_t elements(const Tensor &t) { return reach(t.shape, row_by_row(t.shape)); }

  static constexpr int64_t kSchema = 2;

  Loaded &loaded_;
  const Options &options_;
  std::map<std::string, Member> members_;
  std::map<std::vector<std::string>, std::vector<Tensor>> packed_;  // copies, by their names
};

}  // namespace

// -- the interface -------------------------------------------------------------------------------

const char *name_of(DType dtype) { return kKinds[static_cast<size_t>(dtype)].name; }
std::size_t size_of(DType dtype) { return kKinds[static_cast<size_t>(dtype)].size; }

const std::string &Program::name() const { return program_->name; }
const std::vector<Port> &Program::inputs() const { return program_->inputs; }
const std::vector<Port> &Program::outputs() const { return program_->outputs; }
const std::vector<std::pair<std::string, std::string>> &Program::constants() const {
  return program_->constants;
}

std::vector<State> Program::state() const {
  std::vector<State> found;
  for (const Arg &arg : program_->plan.args)
    if (arg.leaf < 0 && arg.written) found.push_back({arg.input, std::get<Tensor>(arg.held)});
  return found;
}

std::vector<Output> Program::run(const std::vector<Argument> &inputs) const {
  const std::lock_guard<std::mutex> lock(loaded_->mutex);
  return Execution(loaded_, *program_, inputs).run(nullptr);
}

void Program::run(const std::vector<Argument> &inputs, const std::vector<Tensor> &outputs) const {
  const std::lock_guard<std::mutex> lock(loaded_->mutex);
  Execution(loaded_, *program_, inputs).run(&outputs);
}

std::vector<Tensor> Program::shapes(const std::vector<Argument> &inputs) const {
  const std::lock_guard<std::mutex> lock(loaded_->mutex);
  return Execution(loaded_, *program_, inputs).forms();
}

Artifact Artifact::open(const std::string &path, const Options &options) {
  Artifact found;
  try {
    found.loaded_ = std::make_shared<Loaded>(path);
    Loader(*found.loaded_, options).load();
  } catch (const Odd &odd) {
    throw error(ARTIFACT_DAMAGED, path, {odd.what(), "", "", ""});
  }
  return found;
}

std::string Artifact::model() const { return loaded_->model; }
std::string Artifact::licence() const { return loaded_->licence; }
std::string Artifact::version() const { return loaded_->version; }
std::string Artifact::target() const { return loaded_->target; }
int Artifact::threads() const { return loaded_->threads; }
const std::vector<std::string> &Artifact::programs() const { return loaded_->names; }

Program Artifact::program(const std::string &name) const {
  const auto known = loaded_->programs.find(name);
  if (known == loaded_->programs.end())
    throw std::out_of_range("no program " + quoted(name) + ", but " + joined(loaded_->names));
  Program found;
  found.loaded_ = loaded_;
  found.program_ = known->second.get();
  return found;
}

Program Artifact::main() const {
  return program(loaded_->programs.count("main") ? "main" : loaded_->names.front());
}

void Artifact::reset() const {
  const std::lock_guard<std::mutex> lock(loaded_->mutex);
  for (const auto &state : loaded_->state)
    if (!is_empty(state.second.shape))
      Mapped::restore(state.second.data, static_cast<uint64_t>(nbytes(state.second)));
}

}  // namespace fuseline
