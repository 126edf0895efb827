// Moving lanes: transposition of 16 vectors, and indices out of a bit mask.
#pragma once

#include "simd.h"

namespace splat {

// Lane k of a shuffle of two registers a and b (its lanes count on from a's). The first four interleave within 128 bits:
// singles (1) or couples (2) of the low or high half. The others collect the even or odd 128-bit parts, a's first.
struct Low1 {
  static constexpr int lane(int k) { return k / 4 * 4 + k % 4 / 2 + k % 2 * WIDTH; }
};
struct High1 {
  static constexpr int lane(int k) { return Low1::lane(k) + 2; }
};
struct Low2 {
  static constexpr int lane(int k) { return k / 4 * 4 + k % 2 + k % 4 / 2 * WIDTH; }
};
struct High2 {
  static constexpr int lane(int k) { return Low2::lane(k) + 2; }
};
struct Even4 {
  static constexpr int lane(int k) { return k / (WIDTH / 2) * WIDTH + k % (WIDTH / 2) / 4 * 8 + k % 4; }
};
struct Odd4 {
  static constexpr int lane(int k) { return Even4::lane(k) + 4; }
};

template <class Order, int... K>
SPLAT_INLINE VF shuffled(VF a, VF b, std::integer_sequence<int, K...>) {
  return __builtin_shufflevector(a, b, Order::lane(K)...);
}
template <class Order>
SPLAT_INLINE VF shuffle(VF a, VF b) {
  return shuffled<Order>(a, b, std::make_integer_sequence<int, WIDTH>());
}

// out[i][j] = in[j][i] of WIDTH registers each; consecutive ones lie `in_step` and `out_step` apart.
SPLAT_INLINE void transpose_registers(const VF* in, int in_step, VF* out, int out_step) {
  VF t[WIDTH], r[WIDTH];
  for (int i = 0; i < WIDTH; i += 2) {
    t[i] = shuffle<Low1>(in[i * in_step], in[(i + 1) * in_step]);
    t[i + 1] = shuffle<High1>(in[i * in_step], in[(i + 1) * in_step]);
  }
  for (int i = 0; i < WIDTH; i += 4) {
    r[i] = shuffle<Low2>(t[i], t[i + 2]);
    r[i + 1] = shuffle<High2>(t[i], t[i + 2]);
    r[i + 2] = shuffle<Low2>(t[i + 1], t[i + 3]);
    r[i + 3] = shuffle<High2>(t[i + 1], t[i + 3]);
  }
  // r[4 i + j] now holds, in its 128-bit part q, the element 4 q + j of the four vectors from 4 i on.
  for (int j = 0; j < 4; ++j) {
#if defined(__AVX512F__)
    VF even_low = shuffle<Even4>(r[j], r[4 + j]), odd_low = shuffle<Odd4>(r[j], r[4 + j]);
    VF even_high = shuffle<Even4>(r[8 + j], r[12 + j]), odd_high = shuffle<Odd4>(r[8 + j], r[12 + j]);
    out[j * out_step] = shuffle<Even4>(even_low, even_high);
    out[(4 + j) * out_step] = shuffle<Even4>(odd_low, odd_high);
    out[(8 + j) * out_step] = shuffle<Odd4>(even_low, even_high);
    out[(12 + j) * out_step] = shuffle<Odd4>(odd_low, odd_high);
#elif defined(__AVX2__)
    out[j * out_step] = shuffle<Even4>(r[j], r[4 + j]);
    out[(4 + j) * out_step] = shuffle<Odd4>(r[j], r[4 + j]);
#else
    out[j * out_step] = r[j];
#endif
  }
}

// r[i][j] <-> r[j][i] of 16 vectors. Not inlined: it is long, used in many places, and its operands are in memory there.
static __attribute__((noinline)) void transpose(F* r) {
  constexpr int PARTS = LANES / WIDTH;
  F t[LANES];
  VF* in = reinterpret_cast<VF*>(r);
  VF* out = reinterpret_cast<VF*>(t);
  for (int i = 0; i < PARTS; ++i)
    for (int j = 0; j < PARTS; ++j)
      transpose_registers(in + i * WIDTH * PARTS + j, PARTS, out + j * WIDTH * PARTS + i, PARTS);
  std::memcpy(static_cast<void*>(r), t, sizeof t);
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

alignas(64) constexpr int32_t LANE_NUMBERS[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Writes first + i for every set bit i of mask (16 bits), in order, and returns how many; may write 16 entries. A loop
// over the bits would mispredict its end at almost every mask.
SPLAT_INLINE int compress(uint32_t mask, int32_t first, int32_t* out) {
#if defined(__AVX512F__)
  const VI numbers = load(LANE_NUMBERS) + first;
  const VI chosen = __builtin_ia32_compresssi512_mask(numbers, numbers, static_cast<uint16_t>(mask));
  std::memcpy(out, &chosen, sizeof chosen);
  return __builtin_popcount(mask);
#else
  int n = 0;
  for (int half = 0; half < 2; ++half) {
    uint32_t byte = mask >> (8 * half) & 255;
    for (int i = 0; i < 8; ++i) out[n + i] = BIT_TABLE.position[byte][i] + (first + 8 * half);
    n += __builtin_popcount(byte);
  }
  return n;
#endif
}

}  // namespace splat
