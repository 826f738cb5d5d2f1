// Times kernel calls and the machine's ceilings, with as many threads as asked for.
#include <stdint.h>
#include <time.h>

struct fl_call;
typedef void (*Kernel)(const void *call);
typedef float v8 __attribute__((vector_size(32)));

// One thread is timed by its own clock, which stands while other processes have the core.
static double now(int64_t nth) {
  timespec t;
  clock_gettime(nth == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Seconds of each of `count` calls; the arguments of worker w of call c are calls[c * nth + w].
extern "C" void time_calls(Kernel kernel, const void *const *calls, int64_t count, int64_t nth,
                           double *seconds) {
  for (int64_t c = 0; c < count; ++c) {
    double start = now(nth);
    if (nth == 1) {
      kernel(calls[c]);
    } else {
#pragma omp parallel for num_threads(nth) schedule(static, 1)
      for (int64_t w = 0; w < nth; ++w) kernel(calls[c * nth + w]);
    }
    seconds[c] = now(nth) - start;
  }
}

// Seconds to read n floats in `streams` streams a thread.
extern "C" double time_read(const float *data, int64_t n, int64_t streams, int64_t nth, float *sink) {
  double start = now(nth);
#pragma omp parallel for num_threads(nth) schedule(static, 1)
  for (int64_t w = 0; w < nth; ++w) {
    const int64_t length = n / nth / streams / 16 * 16;
    const float *p = data + w * (n / nth);
    v8 sum[8][2] = {};
    for (int64_t i = 0; i < length; i += 16)
      for (int64_t s = 0; s < streams; ++s)
        for (int64_t h = 0; h < 2; ++h) {
          v8 v;
          __builtin_memcpy(&v, p + s * length + i + 8 * h, sizeof v);
          sum[s][h] += v;
        }
    float total = 0;
    for (auto &pair : sum)
      for (v8 &v : pair) total += v[0];
    sink[w] = total;
  }
  return now(nth) - start;
}

// Seconds of 80 * rounds multiply-adds of floats a thread, ten chains of eight lanes.
extern "C" double time_fma(int64_t rounds, int64_t nth, float *sink) {
  double start = now(nth);
#pragma omp parallel for num_threads(nth) schedule(static, 1)
  for (int64_t w = 0; w < nth; ++w) {
    v8 a = v8{} + 1e-3f, b = v8{} + 0.999f;
    // Different chains, lest the compiler find that they are one.
    v8 c0 = a, c1 = a + 1, c2 = a + 2, c3 = a + 3, c4 = a + 4;
    v8 c5 = a + 5, c6 = a + 6, c7 = a + 7, c8 = a + 8, c9 = a + 9;
    for (int64_t i = 0; i < rounds; ++i) {
      c0 = c0 * b + a, c1 = c1 * b + a, c2 = c2 * b + a, c3 = c3 * b + a, c4 = c4 * b + a;
      c5 = c5 * b + a, c6 = c6 * b + a, c7 = c7 * b + a, c8 = c8 * b + a, c9 = c9 * b + a;
    }
    v8 total = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9;
    sink[w] = total[0];
  }
  return now(nth) - start;
}
