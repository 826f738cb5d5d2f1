// Launches a kernel of a GPU as a step of a piece: the native runner calls it like any other kernel.
//
// dim: the function's handle, grid x, y, z, threads of a block, bytes of shared memory, the number of
//      buffers, the number of integers, a mask of those that have 64 bits; then the integers.
// buf: what the kernel takes first. Two null pointers follow the integers: Triton's own scratch. The
//      driver takes as many as the kernel has, so for one of CUDA C++ it does not look at them.
#include "fuseline_abi.h"

namespace {

typedef int (*launch_kernel)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                             unsigned by, unsigned bz, unsigned shared, void *stream, void **params,
                             void **extra);
typedef int (*push_context)(void *context);
typedef int (*pop_context)(void **context);

constexpr int kHead = 9, kMost = 128;  // a mask has 64 bits, and kernels have fewer arguments
constexpr int kShared = 1;             // CUDA_ERROR_INVALID_VALUE: a launch cannot be cut into shares

launch_kernel launch = nullptr;
push_context push = nullptr;
pop_context pop = nullptr;
thread_local void *stream = nullptr;
thread_local int status = 0;  // of the first call that the driver refused, since `fl_gpu_leave`

}  // namespace

extern "C" {

// The driver's cuLaunchKernel, cuCtxPushCurrent and cuCtxPopCurrent.
void fl_gpu_connect(void *launch_, void *push_, void *pop_) {
  launch = reinterpret_cast<launch_kernel>(launch_);
  push = reinterpret_cast<push_context>(push_);
  pop = reinterpret_cast<pop_context>(pop_);
}

// Where this thread's launches go, until it leaves.
void fl_gpu_enter(void *context, void *to) {
  stream = to;
  status = push(context);
}

// What the driver said meanwhile, 0 for success.
int fl_gpu_leave() {
  const int found = status;
  void *context;
  pop(&context);
  status = 0;
  return found;
}

void fl_gpu_launch(const fl_call *call) {
  const int64_t *head = call->dim, *dim = call->dim + kHead;
  if (call->nth != 1) status = kShared;
  if (status || !head[1] || !head[2] || !head[3]) return;  // a grid without blocks is an error
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
  status = launch(reinterpret_cast<void *>(head[0]), head[1], head[2], head[3], head[4], 1, 1,
                  head[5], stream, params, nullptr);
}
}
