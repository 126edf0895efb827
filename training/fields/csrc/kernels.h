// What networks of small layers are made of: products of small matrices in row order, and the sine.
//
// Rows are padded to whole vectors. An element of a product is one sum in one order, whatever rows and columns are
// computed beside it.
#pragma once

#include <cstdint>
#include <cstring>

namespace fields {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8, VECTORS = 3;  // of a register, and of a block of results kept in registers
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 4, VECTORS = 2;
#else
constexpr int LANES = 4, ROWS = 4, VECTORS = 2;
#endif

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

inline int padded(int count) { return (count + LANES - 1) / LANES * LANES; }

inline Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// A matrix whose element (i, j) lies at data[i * row + j * column].
struct Strided {
  const float* data;
  std::int64_t row, column;
};

// c += a b for a block of COUNT rows and WIDE vectors of columns; b and c have consecutive columns.
template <int COUNT, int WIDE>
inline void multiply_block(Strided a, int depth, const float* b, int b_row, float* c, int c_row) {
  Vec sums[COUNT][WIDE];
  for (int i = 0; i < COUNT; ++i)
    for (int j = 0; j < WIDE; ++j) sums[i][j] = load(c + i * c_row + j * LANES);
  for (int k = 0; k < depth; ++k) {
    Vec columns[WIDE];
    for (int j = 0; j < WIDE; ++j) columns[j] = load(b + static_cast<std::int64_t>(k) * b_row + j * LANES);
    for (int i = 0; i < COUNT; ++i) {
      const float factor = a.data[i * a.row + k * a.column];
      for (int j = 0; j < WIDE; ++j) sums[i][j] += factor * columns[j];
    }
  }
  for (int i = 0; i < COUNT; ++i)
    for (int j = 0; j < WIDE; ++j) store(c + i * c_row + j * LANES, sums[i][j]);
}

template <int COUNT>
inline void multiply_rows(Strided a, int depth, const float* b, int b_row, float* c, int c_row, int columns) {
  int j = 0;
  for (; j + VECTORS * LANES <= columns; j += VECTORS * LANES)
    multiply_block<COUNT, VECTORS>(a, depth, b + j, b_row, c + j, c_row);
  if (VECTORS > 2 && j + 2 * LANES <= columns) {
    multiply_block<COUNT, 2>(a, depth, b + j, b_row, c + j, c_row);
    j += 2 * LANES;
  }
  for (; j < columns; j += LANES) multiply_block<COUNT, 1>(a, depth, b + j, b_row, c + j, c_row);
}

// c [rows, columns] += a [rows, depth] b [depth, columns]; columns are whole vectors.
inline void multiply_add(Strided a, int rows, int depth, const float* b, int b_row, float* c, int c_row, int columns) {
  int i = 0;
  const auto rest = [&](int first) { return Strided{a.data + first * a.row, a.row, a.column}; };
  for (; i + ROWS <= rows; i += ROWS) multiply_rows<ROWS>(rest(i), depth, b, b_row, c + i * c_row, c_row, columns);
  for (; i < rows; ++i) multiply_rows<1>(rest(i), depth, b, b_row, c + i * c_row, c_row, columns);
}

// x - q pi, where q, a whole number or a half, is nearest to it. Pi is in four parts, the first with ten bits each, so
// that their products with q are exact for numbers up to tens of thousands.
inline Vec reduce(Vec x, Vec q) {
  x -= q * 3.140625f;
  x -= q * 0.0009670257568359375f;
  x -= q * 6.2771141529083252e-07f;
  return x - q * 1.2154201256553420e-10f;
}

// (-1)^turns sin(r) for r in -pi/2..pi/2: an odd polynomial whose largest error is 5e-9 (fitted with Lawson weights).
// Numbers so large that r is nowhere near there give something in -1..1.
inline Vec odd_sine(Vec r, Ints turns) {
  constexpr float LIMIT = 1.5709f;
  r = r > LIMIT ? r - r + LIMIT : r;
  r = r < -LIMIT ? r - r - LIMIT : r;
  const Vec z = r * r;
  Vec p = 2.5999031549872598e-06f * z - 1.9806546333711594e-04f;
  p = p * z + 8.3330161869525909e-03f;
  p = p * z - 1.6666656732559204e-01f;
  const Vec value = r + r * z * p;
  Ints bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits ^= turns << 31;
  Vec result;
  std::memcpy(&result, &bits, sizeof bits);
  return result;
}

constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to a whole number, its last bits
constexpr float PER_PI = 0.31830988618379067f;

inline Vec rounded(Vec x, Ints& bits) {
  const Vec moved = x + ROUND;
  std::memcpy(&bits, &moved, sizeof bits);
  return moved - ROUND;
}

inline Vec sine(Vec x) {  // NaN for what is not finite
  Ints turns;
  const Vec q = rounded(x * PER_PI, turns);
  return odd_sine(reduce(x, q), turns);
}

inline Vec cosine(Vec x) {  // sin(x + pi/2)
  Ints turns;
  const Vec q = rounded(x * PER_PI + 0.5f, turns);
  return odd_sine(reduce(x, q - 0.5f), turns);
}

}  // namespace fields
