// What generated CUDA C++ takes from the device and not from the language: the conversions of 16-bit
// floats, to nearest even. NVRTC knows the rest by itself. (A test on a CPU has a file of this name
// with conversions, threads and shuffles for the host.)
#pragma once

#define FL_DEVICE __device__ __forceinline__

FL_DEVICE float fl_bf16_to_f32(unsigned short bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

FL_DEVICE float fl_f16_to_f32(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

FL_DEVICE unsigned short fl_f32_to_bf16(float value) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

FL_DEVICE unsigned short fl_f32_to_f16(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
