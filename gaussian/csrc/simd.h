// Sixteen-lane vectors from the compiler's vector extensions (GCC and Clang), so that one source serves every
// instruction set: one register on AVX-512, two on AVX2, four on SSE and NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace splat {

constexpr int LANES = 16;

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef int8_t B16 __attribute__((vector_size(16)));

#define SPLAT_INLINE static inline __attribute__((always_inline))

SPLAT_INLINE F all(float x) { return x - F{}; }
SPLAT_INLINE I all(int32_t x) { return x - I{}; }

SPLAT_INLINE F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
SPLAT_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
SPLAT_INLINE I as_int(F v) {
  I r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}
SPLAT_INLINE F as_float(I v) {
  F r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}

// A NaN in `a` yields `b`.
SPLAT_INLINE F min(F a, F b) { return a < b ? a : b; }
SPLAT_INLINE F max(F a, F b) { return a > b ? a : b; }
SPLAT_INLINE F select(I mask, F a, F b) { return mask ? a : b; }
SPLAT_INLINE F abs(F a) { return as_float(as_int(a) & 0x7fffffff); }
SPLAT_INLINE I is_finite(F a) { return abs(a) < 3.4028235e38f; }

SPLAT_INLINE F sqrt(F a) {
  alignas(64) float t[LANES];
  store(t, a);
  for (int i = 0; i < LANES; ++i) t[i] = __builtin_sqrtf(t[i]);
  return load(t);
}

// Bit i of the result is set where lane i of a comparison is true.
SPLAT_INLINE uint32_t bits(I mask) {
  B16 bytes = __builtin_convertvector(mask, B16);
#ifdef __SSE2__
  typedef char C16 __attribute__((vector_size(16)));
  return static_cast<uint32_t>(__builtin_ia32_pmovmskb128(reinterpret_cast<C16>(bytes)));
#else
  uint64_t half[2];
  std::memcpy(half, &bytes, sizeof half);
  uint32_t low = ((half[0] & 0x8040201008040201ull) * 0x0101010101010101ull) >> 56;
  uint32_t high = ((half[1] & 0x8040201008040201ull) * 0x0101010101010101ull) >> 56;
  return low | high << 8;
#endif
}

SPLAT_INLINE I lanes_of(uint32_t mask) {
  const I bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return (all(static_cast<int32_t>(mask)) & bit) != 0;
}

SPLAT_INLINE float sum(F v) {
  alignas(64) float t[LANES];
  store(t, v);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) t[i] += t[i + width];
  return t[0];
}

// 2^x for x in [-8, 0], relative error 2.5e-6; any value outside. (poly(x))^8 needs no range reduction.
SPLAT_INLINE F exp2_unit(F x) {
  F r = all(2.8649547e-8f);
  r = r * x + 2.2433135e-6f;
  r = r * x + 1.0796821e-4f;
  r = r * x + 3.7526905e-3f;
  r = r * x + 0.08664278f;
  r = r * x + 0.99999994f;
  r = r * r;
  r = r * r;
  return r * r;
}

// e^x for x in [-87, 88]; values outside are moved to the nearer end. NaN gives e^-87.
SPLAT_INLINE F exp(F x) {
  x = min(max(x, all(-87.0f)), all(88.0f));
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
  F shifted = x * 1.44269504f + magic;
  F n = shifted - magic;
  F r = x - n * 0.693359375f;  // ln 2 in two parts, the first exact in 9 bits
  r = r + n * 2.12194440e-4f;
  F p = all(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return as_float(as_int(p) + (as_int(shifted) << 23));
}

// log2 of positive normal x: exponent plus the series of atanh((m - 1) / (m + 1)), m in [0.707, 1.414).
SPLAT_INLINE F log2(F x) {
  I offset = (as_int(x) - 0x3f3504f3) >> 23;
  F m = as_float(as_int(x) - (offset << 23));
  F t = (m - 1.0f) / (m + 1.0f);
  F s = t * t;
  F p = all(2.88539008f / 9);
  p = p * s + 2.88539008f / 7;
  p = p * s + 2.88539008f / 5;
  p = p * s + 2.88539008f / 3;
  p = p * s + 2.88539008f;
  return p * t + __builtin_convertvector(offset, F);
}

// r[i][j] <-> r[j][i] of 16 vectors: pairs and quadruples inside 128-bit lanes, then the lanes themselves.
// Not inlined: it is long, used in many places, and its operands are in memory there anyway.
static __attribute__((noinline)) void transpose(F* r) {
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define LOW1(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH1(a, b) SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW2(a, b) SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH2(a, b) SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN4(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD4(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
  F t[LANES];
  for (int i = 0; i < LANES; i += 2) {
    t[i] = LOW1(r[i], r[i + 1]);
    t[i + 1] = HIGH1(r[i], r[i + 1]);
  }
  for (int i = 0; i < LANES; i += 4) {
    r[i] = LOW2(t[i], t[i + 2]);
    r[i + 1] = HIGH2(t[i], t[i + 2]);
    r[i + 2] = LOW2(t[i + 1], t[i + 3]);
    r[i + 3] = HIGH2(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    F even_low = EVEN4(r[j], r[4 + j]), odd_low = ODD4(r[j], r[4 + j]);
    F even_high = EVEN4(r[8 + j], r[12 + j]), odd_high = ODD4(r[8 + j], r[12 + j]);
    t[j] = EVEN4(even_low, even_high);
    t[4 + j] = EVEN4(odd_low, odd_high);
    t[8 + j] = ODD4(even_low, even_high);
    t[12 + j] = ODD4(odd_low, odd_high);
  }
  for (int i = 0; i < LANES; ++i) r[i] = t[i];
#undef SHUFFLE
#undef LOW1
#undef HIGH1
#undef LOW2
#undef HIGH2
#undef EVEN4
#undef ODD4
}

// The positions of the set bits of every byte, in order.
struct BitTable {
  uint8_t position[256][8];
  constexpr BitTable() : position{} {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0, n = 0; bit < 8; ++bit)
        if (byte >> bit & 1) position[byte][n++] = static_cast<uint8_t>(bit);
  }
};
inline constexpr BitTable BIT_TABLE;

// Writes first + i for every set bit i of mask (16 bits), in order, and returns how many; may write 16 entries. A loop
// over the bits would mispredict its end at almost every mask.
SPLAT_INLINE int compress(uint32_t mask, int32_t first, int32_t* out) {
  typedef uint8_t U8 __attribute__((vector_size(8)));
  typedef int32_t I8 __attribute__((vector_size(32)));
  int n = 0;
  for (int half = 0; half < 2; ++half) {
    uint32_t byte = mask >> (8 * half) & 255;
    U8 narrow;
    std::memcpy(&narrow, BIT_TABLE.position[byte], sizeof narrow);
    I8 wide = __builtin_convertvector(narrow, I8) + (first + 8 * half);
    std::memcpy(out + n, &wide, sizeof wide);
    n += __builtin_popcount(byte);
  }
  return n;
}

}  // namespace splat
