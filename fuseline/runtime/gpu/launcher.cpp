// Launches a kernel of a GPU as a step of a piece: the native runner calls it like any other kernel.
//
// dim: the function's handle, grid x, y, z, threads of a block, bytes of shared memory, the number of
//      buffers, the number of integers, a mask of those that have 64 bits, what it does with the two
//      streams (see lanes.py), and whether it may begin before the kernel ahead of it has ended, for
//      which it waits itself; then the integers.
// buf: what the kernel takes first. Two null pointers follow the integers: Triton's own scratch. The
//      driver takes as many as the kernel has, so for one of CUDA C++ it does not look at them.
#include "fuseline_abi.h"

namespace {

typedef int (*launch_kernel)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                             unsigned by, unsigned bz, unsigned shared, void *stream, void **params,
                             void **extra);
typedef int (*launch_extended)(const struct Config *config, void *function, void **params,
                               void **extra);
typedef int (*push_context)(void *context);
typedef int (*pop_context)(void **context);
typedef int (*record_event)(void *event, void *stream);
typedef int (*wait_event)(void *stream, void *event, unsigned flags);

enum Turn { kFork = 1, kAside = 2, kJoin = 4, kClose = 8 };

// What is needed of CUlaunchAttribute and CUlaunchConfig (cuda.h).
struct Attribute {
  int id;
  char pad[4];
  union alignas(8) {
    int allowed;
    char room[64];
  };
};
struct Config {
  unsigned gx, gy, gz, bx, by, bz, shared;
  void *stream;
  Attribute *attributes;
  unsigned count;
};
constexpr int kEarly = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

// The other stream, and the events by which the two wait for one another; null where there is none.
struct Aside {
  void *stream, *forked, *joined;
};

constexpr int kHead = 11, kMost = 128;  // a mask has 64 bits, and kernels have fewer arguments
constexpr int kShared = 1;              // CUDA_ERROR_INVALID_VALUE: a launch cannot be cut into shares

launch_kernel launch = nullptr;
launch_extended extended = nullptr;  // null in a driver without it
push_context push = nullptr;
pop_context pop = nullptr;
record_event record = nullptr;
wait_event wait = nullptr;
thread_local void *stream = nullptr;
thread_local Aside aside = {nullptr, nullptr, nullptr};
thread_local bool behind_ours = false;  // the latest in `stream` is a kernel of ours, and no event
thread_local int status = 0;  // of the first call that the driver refused, since `fl_gpu_leave`
int cut = 0;  // whether a launch was cut into shares since `fl_gpu_leave`, whichever thread had one

// Have one stream wait for what the other has been given so far.
void follow(void *behind, void *ahead, void *event) {
  if (!status) status = record(event, ahead);
  if (!status) status = wait(behind, event, 0);
}

void start(const fl_call *call, void *to, bool early) {
  const int64_t *head = call->dim, *dim = call->dim + kHead;
  void *params[kMost];
  int32_t narrow[kMost];
  void *none = nullptr;
  int count = 0;
  for (int64_t i = 0; i < head[6]; ++i) params[count++] = const_cast<void **>(&call->buf[i]);
  for (int64_t i = 0; i < head[7]; ++i) {
    narrow[i] = static_cast<int32_t>(dim[i]);
    const bool wide = head[8] >> i & 1;
    params[count++] = wide ? static_cast<void *>(const_cast<int64_t *>(&dim[i])) : &narrow[i];
  }
  params[count++] = &none;
  params[count++] = &none;
  void *function = reinterpret_cast<void *>(head[0]);
  if (early) {
    Attribute attribute = {kEarly, {}, {1}};
    const Config config = {
        static_cast<unsigned>(head[1]), static_cast<unsigned>(head[2]),
        static_cast<unsigned>(head[3]), static_cast<unsigned>(head[4]), 1, 1,
        static_cast<unsigned>(head[5]), to, &attribute, 1};
    status = extended(&config, function, params, nullptr);
    return;
  }
  status = launch(function, head[1], head[2], head[3], head[4], 1, 1, head[5], to, params, nullptr);
}

}  // namespace

extern "C" {

// The driver's cuLaunchKernel, cuLaunchKernelEx (or null), cuCtxPushCurrent, cuCtxPopCurrent,
// cuEventRecord, cuStreamWaitEvent.
void fl_gpu_connect(void *launch_, void *extended_, void *push_, void *pop_, void *record_,
                    void *wait_) {
  launch = reinterpret_cast<launch_kernel>(launch_);
  extended = reinterpret_cast<launch_extended>(extended_);
  push = reinterpret_cast<push_context>(push_);
  pop = reinterpret_cast<pop_context>(pop_);
  record = reinterpret_cast<record_event>(record_);
  wait = reinterpret_cast<wait_event>(wait_);
}

// Where this thread's launches go, until it leaves; those of branches to the other stream, if any.
void fl_gpu_enter(void *context, void *to, void *other, void *forked, void *joined) {
  stream = to;
  aside = {other, forked, joined};
  behind_ours = false;
  status = push(context);
}

// What the driver said meanwhile, 0 for success.
int fl_gpu_leave() {
  const int shared = __atomic_exchange_n(&cut, 0, __ATOMIC_ACQ_REL);
  const int found = shared ? kShared : status;
  void *context;
  pop(&context);
  status = 0;
  return found;
}

void fl_gpu_launch(const fl_call *call) {
  const int64_t *head = call->dim;
  const int64_t turn = aside.stream ? head[9] : 0;
  if (call->nth != 1) {
    __atomic_store_n(&cut, 1, __ATOMIC_RELEASE);
    return;
  }
  if (turn & kFork) follow(aside.stream, stream, aside.forked);
  if (turn & kJoin) {
    follow(stream, aside.stream, aside.joined);
    behind_ours = false;
  }
  if (!status && head[1] && head[2] && head[3]) {  // a grid without blocks is an error
    // Behind an event it waits for more than the kernel ahead.
    start(call, turn & kAside ? aside.stream : stream, head[10] && extended && behind_ours && !turn);
    if (!(turn & kAside)) behind_ours = true;
  }
  if (turn & kClose) {
    follow(stream, aside.stream, aside.joined);
    behind_ours = false;
  }
}
}
