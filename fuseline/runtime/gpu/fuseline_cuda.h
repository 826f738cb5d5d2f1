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

// The bits of elements as floats, and of two floats as elements, the first in the lower half.
template <class T>
struct Element;
template <>
struct Element<bf16> {
  static FL_DEVICE float wide(unsigned bits) { return fl_bf16_to_f32(bits); }
  static FL_DEVICE unsigned narrow(float low, float high) { return fl_f32_to_bf16(low, high); }
};
template <>
struct Element<f16> {
  static FL_DEVICE float wide(unsigned bits) { return fl_f16_to_f32(bits); }
  static FL_DEVICE unsigned narrow(float low, float high) { return fl_f32_to_f16(low, high); }
};

// A float as near as T has one.
template <class T>
FL_DEVICE float rounded(float x) {
  return Element<T>::wide(Element<T>::narrow(x, 0.0f) & 0xffffu);
}

// N elements side by side in memory, in registers of 32 bits as they are there; A of them an access.
// (A union with the elements would be less text, but its stores come out element by element.)
template <class T, int N, int A>
struct Pack {
  static_assert(N % A == 0, "an access is a part");
  static constexpr int SIZE = sizeof(T), BYTES = A * SIZE, WORDS = (N * SIZE + 3) / 4;
  unsigned words[WORDS];

  FL_DEVICE void read(const T *from) {
#pragma unroll
    for (int i = 0; i < N / A; ++i) {
      if constexpr (BYTES == 16) {
        const uint4 all = reinterpret_cast<const uint4 *>(from)[i];
        words[4 * i] = all.x, words[4 * i + 1] = all.y;
        words[4 * i + 2] = all.z, words[4 * i + 3] = all.w;
      } else if constexpr (BYTES == 8) {
        const uint2 both = reinterpret_cast<const uint2 *>(from)[i];
        words[2 * i] = both.x, words[2 * i + 1] = both.y;
      } else if constexpr (BYTES == 4) {
        words[i] = reinterpret_cast<const unsigned *>(from)[i];
      } else {
        const unsigned one = reinterpret_cast<const unsigned short *>(from)[i];
        words[i / 2] = i % 2 ? words[i / 2] | one << 16 : one;
      }
    }
  }

  FL_DEVICE void write(T *to) const {
#pragma unroll
    for (int i = 0; i < N / A; ++i) {
      if constexpr (BYTES == 16)
        fl_store16(to + i * A, words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
      else if constexpr (BYTES == 8)
        reinterpret_cast<uint2 *>(to)[i] = uint2{words[2 * i], words[2 * i + 1]};
      else if constexpr (BYTES == 4)
        reinterpret_cast<unsigned *>(to)[i] = words[i];
      else
        reinterpret_cast<unsigned short *>(to)[i] =
            static_cast<unsigned short>(words[i / 2] >> i % 2 * 16);
    }
  }

  FL_DEVICE void read_if(bool there, const T *from) {
    if (there) {
      read(from);
      return;
    }
#pragma unroll
    for (int i = 0; i < WORDS; ++i) words[i] = 0;
  }

  // The same elements.
  template <int B>
  FL_DEVICE void copy(const Pack<T, N, B> &other) {
#pragma unroll
    for (int i = 0; i < WORDS; ++i) words[i] = other.words[i];
  }

  // Floats, rounded to nearest even.
  FL_DEVICE void fill(const float (&from)[N]) {
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
      if constexpr (SIZE == 4)
        words[i] = __float_as_uint(from[i]);
      else if constexpr (N == 1)
        words[i] = Element<T>::narrow(from[i], 0.0f);
      else
        words[i] = Element<T>::narrow(from[2 * i], from[2 * i + 1]);
    }
  }

  FL_DEVICE float operator[](int i) const {
    if constexpr (SIZE == 4)
      return __uint_as_float(words[i]);
    else
      return Element<T>::wide(i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu);
  }
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
  FL_DEVICE void fill(const float (&a)[K], const float (&b)[K]) {
    float mixed[2 * K];
#pragma unroll
    for (int i = 0; i < K; ++i) mixed[2 * i] = a[i], mixed[2 * i + 1] = b[i];
    both.fill(mixed);
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
  FL_DEVICE void fill(const float (&a)[K], const float (&b)[K]) {
    one.fill(a);
    two.fill(b);
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
