// Runs one kernel on a CPU, block after block: a job from stdin, its memory to stdout.
//
// The threads of a block are fibers. One runs until it needs the others, in a shuffle or at
// a barrier, and goes on when all of them have come there; a kernel in which some never do is at
// fault, and ends the process with a message.
//
// Job, in 64-bit integers: grid x, y, z; threads; number of storages, the bytes of each; number of
// arguments, each as kind (0 pointer, 1 integer), storage or value, byte offset. Then the storages.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};
uint3 threadIdx, blockIdx;

extern "C" void fl_entry(void **arguments);
extern char __start_fl_shared[] __attribute__((weak)), __stop_fl_shared[] __attribute__((weak));

namespace {

constexpr size_t kStack = 256 << 10;

struct Fiber {
  ucontext_t context;
  bool ended = false;
};

struct Meeting {
  unsigned expected = 0, came = 0;
  uint64_t round = 0;
  uint32_t given[32], taken[32];
};

std::vector<Fiber> fibers;
std::vector<Meeting> warps;
Meeting block;
ucontext_t scheduler;
std::vector<void *> arguments;
unsigned running = 0;
uint64_t progress = 0;

[[noreturn]] void fail(const char *what) {
  fprintf(stderr, "thread %u of block %u: %s\n", running, blockIdx.x, what);
  _exit(3);
}

void run_thread() {
  fl_entry(arguments.data());
  fibers[running].ended = true;
  ++progress;
}

// Waits until as many have come as are expected; then what they gave is there to take.
void meet(Meeting &meeting) {
  const uint64_t round = meeting.round;
  if (++meeting.came == meeting.expected) {
    memcpy(meeting.taken, meeting.given, sizeof meeting.taken);
    meeting.came = 0;
    ++meeting.round;
    ++progress;
    return;
  }
  const unsigned self = running;
  while (meeting.round == round) swapcontext(&fibers[self].context, &scheduler);
}

void run_block(char *stacks, unsigned threads) {
  if (__start_fl_shared) memset(__start_fl_shared, 0xff, __stop_fl_shared - __start_fl_shared);
  warps.assign((threads + 31) / 32, Meeting());
  for (auto &warp : warps) warp.expected = 32;
  block = Meeting();
  block.expected = threads;
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i].ended = false;
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = stacks + i * kStack;
    fibers[i].context.uc_stack.ss_size = kStack;
    fibers[i].context.uc_link = &scheduler;
    makecontext(&fibers[i].context, run_thread, 0);
  }
  for (unsigned left = threads; left;) {
    const uint64_t before = progress;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].ended) continue;
      running = i;
      threadIdx = {i, 0, 0};
      swapcontext(&scheduler, &fibers[i].context);
      left -= fibers[i].ended;
    }
    if (left && progress == before) fail("waits for threads that ended, or wait elsewhere");
  }
}

std::vector<int64_t> numbers(size_t count) {
  std::vector<int64_t> found(count);
  if (count && fread(found.data(), 8, count, stdin) != count) fail("the job is cut off");
  return found;
}

}  // namespace

extern "C" uint32_t fl_shuffle(unsigned mask, uint32_t value, unsigned source) {
  if (mask != 0xffffffffu) fail("a shuffle of a part of the warp");
  if (source >= 32) fail("a shuffle from outside of the warp");
  Meeting &warp = warps[running / 32];
  const unsigned self = running;
  warp.given[self % 32] = value;
  meet(warp);
  threadIdx = {self, 0, 0};
  return warp.taken[source];
}

extern "C" void __syncthreads() {
  const unsigned self = running;
  meet(block);
  threadIdx = {self, 0, 0};
}

int main() {
  const auto head = numbers(5);
  const unsigned threads = head[3];
  const auto sizes = numbers(head[4]);
  const int64_t count = numbers(1)[0];
  const auto given = numbers(3 * count);
  std::vector<char *> storages;
  for (int64_t size : sizes) {
    void *memory;  // exactly so many bytes: the sanitizer knows where they end
    if (posix_memalign(&memory, 256, size)) fail("no memory");
    if (size && fread(memory, 1, size, stdin) != static_cast<size_t>(size)) fail("cut off");
    storages.push_back(static_cast<char *>(memory));
  }
  std::vector<int64_t> values(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t *one = &given[3 * i];
    values[i] = one[0] ? one[1] : reinterpret_cast<int64_t>(storages[one[1]] + one[2]);
    arguments.push_back(&values[i]);
  }
  char *stacks = static_cast<char *>(mmap(nullptr, threads * kStack, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  fibers.resize(threads);
  for (unsigned z = 0; z < head[2]; ++z)
    for (unsigned y = 0; y < head[1]; ++y)
      for (unsigned x = 0; x < head[0]; ++x) {
        blockIdx = {x, y, z};
        run_block(stacks, threads);
      }
  for (size_t i = 0; i < storages.size(); ++i) fwrite(storages[i], 1, sizes[i], stdout);
  return fflush(stdout);
}
