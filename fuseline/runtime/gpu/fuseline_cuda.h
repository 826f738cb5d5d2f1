// What the generated CUDA C++ kernels share: element types, wide accesses, and sums over lanes.
#pragma once
#include "fuseline_device.h"

typedef long long i64;

struct bf16 {
  unsigned short bits;
};
struct f16 {
  unsigned short bits;
};

FL_DEVICE float wide(float x) { return x; }
FL_DEVICE float wide(bf16 x) { return fl_bf16_to_f32(x.bits); }
FL_DEVICE float wide(f16 x) { return fl_f16_to_f32(x.bits); }

FL_DEVICE void narrow(float x, float &to) { to = x; }
FL_DEVICE void narrow(float x, bf16 &to) { to.bits = fl_f32_to_bf16(x); }
FL_DEVICE void narrow(float x, f16 &to) { to.bits = fl_f32_to_f16(x); }

// A float as near as T has one.
template <class T>
FL_DEVICE float rounded(float x) {
  T to;
  narrow(x, to);
  return wide(to);
}

template <int BYTES>
struct Word;
template <>
struct Word<2> {
  typedef unsigned short type;
};
template <>
struct Word<4> {
  typedef unsigned type;
};
template <>
struct Word<8> {
  typedef uint2 type;
};
template <>
struct Word<16> {
  typedef uint4 type;
};

// N elements side by side in memory, in registers as they are there; A of them an access.
template <class T, int N, int A>
struct Pack {
  static_assert(N % A == 0, "an access is a part");
  typedef typename Word<A * sizeof(T)>::type word;
  union {
    word words[N / A];
    T elements[N];
  };

  FL_DEVICE void read(const T *from) {
#pragma unroll
    for (int i = 0; i < N / A; ++i) words[i] = reinterpret_cast<const word *>(from)[i];
  }

  FL_DEVICE void write(T *to) const {
#pragma unroll
    for (int i = 0; i < N / A; ++i) reinterpret_cast<word *>(to)[i] = words[i];
  }

  FL_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < N / A; ++i) words[i] = word();
  }

  FL_DEVICE void read_if(bool there, const T *from) {
    if (there)
      read(from);
    else
      clear();
  }

  FL_DEVICE float operator[](int i) const { return wide(elements[i]); }
  FL_DEVICE void set(int i, float x) { narrow(x, elements[i]); }
};

// The sum over groups of LANES lanes of a warp that lie side by side, group by group from the first
// lane on; the same bits in all lanes of a group. Every lane of the warp takes part.
template <int LANES>
FL_DEVICE float sum_lanes(float value) {
  if constexpr ((LANES & (LANES - 1)) == 0) {
#pragma unroll
    for (int apart = LANES / 2; apart; apart /= 2)
      value += __shfl_xor_sync(0xffffffffu, value, apart);
    return value;
  } else {
    const int lane = threadIdx.x % 32, first = lane - lane % LANES;
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < LANES; ++i)
      total += __shfl_sync(0xffffffffu, value, (first + i) % 32);  // lanes behind the last group
    return total;
  }
}

// The sum over a block of WARPS warps, the same bits in all threads. Calls that follow one another
// have memory of their own: USE numbers them.
template <int WARPS, int USE>
FL_DEVICE float sum_block(float value) {
  __shared__ float parts[WARPS];
  value = sum_lanes<32>(value);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; ++i) total += parts[i];
  return total;
}

// Where the two elements of a pair lie: halves apart, side by side, or in one place for both.
enum Layout { APART, SIDE, ONE };

// K pairs of elements, in registers as they are in memory; A elements an access. `apart` is the way
// from the first of a pair to the second where these do not lie side by side.
template <class T, int K, int A, Layout L>
struct Pairs;

template <class T, int K, int A>
struct Pairs<T, K, A, SIDE> {
  Pack<T, 2 * K, A> both;

  FL_DEVICE void read_if(bool there, const T *from, int unit, int) {
    both.read_if(there, from + 2 * K * unit);
  }
  FL_DEVICE void write(T *to, int unit, int) const { both.write(to + 2 * K * unit); }
  FL_DEVICE float first(int i) const { return both[2 * i]; }
  FL_DEVICE float second(int i) const { return both[2 * i + 1]; }
  FL_DEVICE void set(int i, float a, float b) {
    both.set(2 * i, a);
    both.set(2 * i + 1, b);
  }
};

template <class T, int K, int A>
struct Pairs<T, K, A, APART> {
  Pack<T, K, A> one, two;

  FL_DEVICE void read_if(bool there, const T *from, int unit, int apart) {
    one.read_if(there, from + K * unit);
    two.read_if(there, from + apart + K * unit);
  }
  FL_DEVICE void write(T *to, int unit, int apart) const {
    one.write(to + K * unit);
    two.write(to + apart + K * unit);
  }
  FL_DEVICE float first(int i) const { return one[i]; }
  FL_DEVICE float second(int i) const { return two[i]; }
  FL_DEVICE void set(int i, float a, float b) {
    one.set(i, a);
    two.set(i, b);
  }
};

template <class T, int K, int A>
struct Pairs<T, K, A, ONE> {
  Pack<T, K, A> one;

  FL_DEVICE void read_if(bool there, const T *from, int unit, int) {
    one.read_if(there, from + K * unit);
  }
  FL_DEVICE float first(int i) const { return one[i]; }
  FL_DEVICE float second(int i) const { return one[i]; }
};
