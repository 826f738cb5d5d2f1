// CUDA C++ kernels on a CPU: in the place of the file of this name for the device. Threads are those
// of runner.cpp, so that shuffles and barriers exchange what the threads really have at that point.
#pragma once

#define FL_DEVICE inline
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("fl_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern uint3 threadIdx, blockIdx;  // of the thread that runs

extern "C" unsigned fl_shuffle(unsigned mask, unsigned value, unsigned source);
extern "C" void __syncthreads();

template <class To, class From>
inline To fl_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, unsigned source) {
  return fl_bits<T>(fl_shuffle(mask, fl_bits<unsigned>(value), source % 32));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, unsigned apart) {
  return fl_bits<T>(fl_shuffle(mask, fl_bits<unsigned>(value), threadIdx.x % 32 ^ apart));
}

inline float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }

inline float __uint_as_float(unsigned bits) { return fl_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return fl_bits<unsigned>(value); }

inline unsigned fl_one_bf16(float value) {
  const unsigned bits = fl_bits<unsigned>(value);
  if (value != value) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline unsigned fl_one_f16(float value) {
  return fl_bits<unsigned short>(static_cast<_Float16>(value));
}
inline float fl_bf16_to_f32(unsigned short bits) {
  return fl_bits<float>(static_cast<unsigned>(bits) << 16);
}
inline float fl_f16_to_f32(unsigned short bits) { return fl_bits<_Float16>(bits); }
inline unsigned fl_f32_to_bf16(float low, float high) {
  return fl_one_bf16(low) | fl_one_bf16(high) << 16;
}
inline unsigned fl_f32_to_f16(float low, float high) {
  return fl_one_f16(low) | fl_one_f16(high) << 16;
}

inline void fl_store16(void *to, unsigned a, unsigned b, unsigned c, unsigned d) {
  *static_cast<uint4 *>(to) = uint4{a, b, c, d};
}

inline void fl_wait() {}
inline void fl_start_next() {}
