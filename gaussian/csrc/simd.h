// Sixteen-lane vectors from the compiler's vector extensions (GCC and Clang), so that one source serves every
// instruction set. A vector is one register where registers hold 16 floats, else a pair of halves, down to the width of
// a register: vectors wider than a register are legal too, but compilers keep them in memory (six times slower).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define SPLAT_INLINE static inline __attribute__((always_inline))

namespace splat {

constexpr int LANES = 16;

#if defined(__AVX512F__)
constexpr int WIDTH = 16;  // floats in a register
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float VF __attribute__((vector_size(4 * WIDTH)));
typedef int32_t VI __attribute__((vector_size(4 * WIDTH)));

// Twice as many lanes as T has; operators act on each.
template <class T>
struct Pair {
  T lo, hi;
};

template <class T>
SPLAT_INLINE Pair<T> pair(T lo, T hi) {
  return {lo, hi};
}

template <class T>
struct Lane;  // the type of one lane
template <>
struct Lane<VF> {
  typedef float Type;
};
template <>
struct Lane<VI> {
  typedef int32_t Type;
};
template <class T>
struct Lane<Pair<T>> : Lane<T> {};

#define SPLAT_OPERATOR(op)                                                       \
  template <class T>                                                             \
  SPLAT_INLINE auto operator op(Pair<T> a, Pair<T> b) {                          \
    return pair(a.lo op b.lo, a.hi op b.hi);                                     \
  }                                                                              \
  template <class T>                                                             \
  SPLAT_INLINE auto operator op(Pair<T> a, typename Lane<T>::Type b) {           \
    return pair(a.lo op b, a.hi op b);                                           \
  }                                                                              \
  template <class T>                                                             \
  SPLAT_INLINE auto operator op(typename Lane<T>::Type a, Pair<T> b) {           \
    return pair(a op b.lo, a op b.hi);                                           \
  }
#define SPLAT_ASSIGNMENT(op)                             \
  template <class T, class Other>                        \
  SPLAT_INLINE Pair<T>& operator op##=(Pair<T>& a, Other b) { \
    return a = a op b;                                   \
  }
SPLAT_OPERATOR(+)
SPLAT_OPERATOR(-)
SPLAT_OPERATOR(*)
SPLAT_OPERATOR(/)
SPLAT_OPERATOR(<)
SPLAT_OPERATOR(>)
SPLAT_OPERATOR(<=)
SPLAT_OPERATOR(>=)
SPLAT_OPERATOR(==)
SPLAT_OPERATOR(!=)
SPLAT_OPERATOR(&)
SPLAT_OPERATOR(|)
SPLAT_OPERATOR(<<)
SPLAT_OPERATOR(>>)
SPLAT_ASSIGNMENT(+)
SPLAT_ASSIGNMENT(-)
SPLAT_ASSIGNMENT(*)
SPLAT_ASSIGNMENT(&)
#undef SPLAT_OPERATOR
#undef SPLAT_ASSIGNMENT
template <class T>
SPLAT_INLINE Pair<T> operator-(Pair<T> a) {
  return {-a.lo, -a.hi};
}

template <class T, int PARTS>
struct Vector {
  typedef Pair<typename Vector<T, PARTS / 2>::Type> Type;
};
template <class T>
struct Vector<T, 1> {
  typedef T Type;
};
typedef Vector<VF, LANES / WIDTH>::Type F;
typedef Vector<VI, LANES / WIDTH>::Type I;  // comparisons give -1 or 0
static_assert(sizeof(F) == 4 * LANES && sizeof(I) == 4 * LANES, "the halves of a vector lie side by side");

SPLAT_INLINE F all(float x) { return x - F{}; }
SPLAT_INLINE I all(int32_t x) { return x - I{}; }

SPLAT_INLINE F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
SPLAT_INLINE I load(const int32_t* p) {
  I v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
SPLAT_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
SPLAT_INLINE void store(uint32_t* p, I v) { std::memcpy(p, &v, sizeof v); }

SPLAT_INLINE VI as_int(VF v) { return reinterpret_cast<VI>(v); }
SPLAT_INLINE VF as_float(VI v) { return reinterpret_cast<VF>(v); }
SPLAT_INLINE VF to_float(VI v) { return __builtin_convertvector(v, VF); }
SPLAT_INLINE VI to_int(VF v) { return __builtin_convertvector(v, VI); }
SPLAT_INLINE VF select(VI mask, VF a, VF b) { return mask ? a : b; }
template <class T>
SPLAT_INLINE auto as_int(Pair<T> v) {
  return pair(as_int(v.lo), as_int(v.hi));
}
template <class T>
SPLAT_INLINE auto as_float(Pair<T> v) {
  return pair(as_float(v.lo), as_float(v.hi));
}
template <class T>
SPLAT_INLINE auto to_float(Pair<T> v) {
  return pair(to_float(v.lo), to_float(v.hi));
}
template <class T>
SPLAT_INLINE auto to_int(Pair<T> v) {
  return pair(to_int(v.lo), to_int(v.hi));
}
template <class M, class T>
SPLAT_INLINE Pair<T> select(Pair<M> mask, Pair<T> a, Pair<T> b) {
  return {select(mask.lo, a.lo, b.lo), select(mask.hi, a.hi, b.hi)};
}

// A NaN in `a` yields `b`.
SPLAT_INLINE F min(F a, F b) { return select(a < b, a, b); }
SPLAT_INLINE F max(F a, F b) { return select(a > b, a, b); }
SPLAT_INLINE F abs(F a) { return as_float(as_int(a) & 0x7fffffff); }
SPLAT_INLINE I is_finite(F a) { return abs(a) < 3.4028235e38f; }

SPLAT_INLINE F sqrt(F a) {
  alignas(64) float t[LANES];
  store(t, a);
  for (int i = 0; i < LANES; ++i) t[i] = __builtin_sqrtf(t[i]);
  return load(t);
}

alignas(64) constexpr int32_t LANE_BITS[LANES] = {1,   2,   4,    8,    16,   32,   64,    128,
                                                  256, 512, 1024, 2048, 4096, 8192, 16384, 32768};

// Bit i of the result is set where lane i of a comparison is true.
SPLAT_INLINE uint32_t bits(VI mask) {
#if defined(__AVX512DQ__)
  return static_cast<uint32_t>(__builtin_ia32_cvtd2mask512(mask)) & 0xffffu;
#elif defined(__AVX512F__)
  typedef int8_t S16 __attribute__((vector_size(16)));
  typedef char C16 __attribute__((vector_size(16)));
  return static_cast<uint32_t>(__builtin_ia32_pmovmskb128(reinterpret_cast<C16>(__builtin_convertvector(mask, S16))));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(__builtin_ia32_movmskps256(as_float(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(__builtin_ia32_movmskps(as_float(mask)));
#else
  mask &= VI{1, 2, 4, 8};
  return static_cast<uint32_t>(mask[0] | mask[1] | mask[2] | mask[3]);
#endif
}
template <class T>
SPLAT_INLINE uint32_t bits(Pair<T> mask) {
  return bits(mask.lo) | bits(mask.hi) << (sizeof(T) / 4);
}

SPLAT_INLINE I lanes_of(uint32_t mask) { return (all(static_cast<int32_t>(mask)) & load(LANE_BITS)) != 0; }

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
  return p * t + to_float(offset);
}

}  // namespace splat
