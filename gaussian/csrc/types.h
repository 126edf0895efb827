// What the stages of the rasteriser hand to each other.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "permute.h"

namespace splat {

constexpr int TILE_BITS = 4;
constexpr int TILE = 1 << TILE_BITS;  // pixels; splats are binned to tiles
constexpr int BLOCK = 4;        // pixels; a block is one vector of pixels, and culls its tile's splats
constexpr int BLOCKS = 16;      // blocks per tile
constexpr int CHUNK = 512;      // splats per item of parallel loops
constexpr float NEAR_Z = 0.2f;  // world units
constexpr float LIMIT = 0.3f;                 // share of the half image by which x/z may leave the image inside J
constexpr float MAX_ALPHA = 0.99f;
constexpr float LOG2_MIN_ALPHA = -7.99435344f;  // log2(1/255)
constexpr float MIN_TRANSMITTANCE = 1e-4f;
constexpr float LN2 = 0.693147181f;
constexpr float SH_DC = 0.282094792f;  // Y00

enum ColorMode : int32_t { SH_SHARED = 0, COLORS_SHARED = 1, COLORS_PER_VIEW = 2 };

// The layouts of Problem and Gradients are known to backend_cpu.py.
struct Problem {
  int32_t scenes, views, splats, channels, height, width;
  int32_t color_mode, threads, keep;  // keep: what the backward needs
  float scale_modifier;
  float low_pass;  // px^2, added to both variances
  const float *means, *log_scales, *quats, *logits;  // [B, rows, 3], [B, rows, 3], [B, rows, 4], [B, rows]
  const float* colors;                               // [B, color rows, C], or [B, V, color rows, C]
  const float* background;                           // [B, V, C]
  const float *cam2world, *intrinsics;               // [B, V, 4, 4], [B, V, 3, 3] normalised by the image size
  // Of the rows that a scene has, splat i is row index[i], or i where there is no index: a part of a larger scene.
  int64_t rows, color_rows;
  const int64_t *index, *color_index;
};

struct Gradients {
  const float *rgb, *alpha, *depth;            // upstream
  float *means, *log_scales, *quats, *logits;  // of the splats only: [B, N, 3] and so on
  float *colors, *background;                  // [B, N, C] or [B, V, N, C], and [B, V, C]
};

// Grows without keeping its content; memory stays for the next use.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* ensure(size_t n) {
    if (n > capacity_) grow(n, 0);
    return data_;
  }
  T* ensure_keeping(size_t n, size_t used) {
    if (n > capacity_) grow(n + n / 2, used);
    return data_;
  }
  T* data() const { return data_; }
  T& operator[](size_t i) const { return data_[i]; }
  size_t bytes() const { return capacity_ * sizeof(T); }

 private:
  void grow(size_t n, size_t used) {
    size_t bytes = (n * sizeof(T) + 127) / 64 * 64;  // at least one spare vector
    T* fresh = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!fresh) throw std::bad_alloc();
    if (used) std::memcpy(static_cast<void*>(fresh), data_, used * sizeof(T));
    std::free(data_);
    data_ = fresh;
    capacity_ = n;
  }

  T* data_ = nullptr;
  size_t capacity_ = 0;
};

// The tiles that a splat may reach, bounds inclusive. Projection packs them: low and high 16 bits.
struct TileRange {
  uint16_t x0, x1, y0, y1;
  TileRange(uint32_t x, uint32_t y)
      : x0(static_cast<uint16_t>(x)), x1(static_cast<uint16_t>(x >> 16)),
        y0(static_cast<uint16_t>(y)), y1(static_cast<uint16_t>(y >> 16)) {}
  uint32_t pairs() const { return (x1 - x0 + 1u) * (y1 - y0 + 1u); }
};

// A projected splat, one cache line. log2(alpha) at (dx, dy) from its centre is
//   log2_opacity - ex dx^2 - ey (dy - slope dx)^2,
// the LDL' form of the conic: two terms of one sign, so nothing cancels and power > 0 cannot happen.
struct alignas(64) Record {
  float u, v;         // centre, pixels from the image's centre
  float ex, ey;       // 1/px^2
  float slope;        // dy of the ridge at given dx
  float slope_x;      // dx of the best point at given dy
  float log2_opacity;
  float z;
  float color[3];     // when there are at most three channels
  float unused[5];
};
static_assert(sizeof(Record) == sizeof(float) * LANES, "a record is a row of a transposition");

// Which splats changed which pixels of a tile, block after block, front to back.
struct TileHits {
  Buffer<uint32_t> position;  // in the tile's list
  Buffer<uint16_t> mask;      // pixels of the block
  uint32_t end[BLOCKS];       // of each block's part
  uint32_t reached;           // positions from here on hit nothing
};

struct SceneState {
  enum Field { MEAN = 0, AXES = 3, LOG2_OPACITY = 12, FIELDS = 13 };
  Buffer<float> fields;  // [FIELDS][padded]: mean, scaled axes L = R diag(s) row-major, log2(opacity)
  bool finite;
  float* field(int f, int padded) const { return fields.data() + static_cast<size_t>(f) * padded; }
};

struct ImageState {
  int visible;
  Buffer<Record> records;      // [N], in the scene's order: neighbours in a hierarchy are neighbours in memory
  Buffer<float> colors;        // [N][padded channels], when there are more than three
  Buffer<TileRange> ranges;     // [N], undefined where the splat is not seen
  Buffer<uint8_t> seen;         // [N], whether the splat is visible; what it has above is undefined where it is not
  Buffer<uint32_t> order;       // [visible], splats front to back
  Buffer<uint32_t> tile_begin;  // [tiles + 1]; a tile's list is followed by one free entry
  Buffer<uint32_t> tile_splats;  // for every tile the splats that may reach it, front to back
  // For a backward: the (tile, splat) pairs, numbered front to back and row by row of a splat's tiles.
  Buffer<uint32_t> first_pair;   // [visible]
  Buffer<uint32_t> position_of;  // [pairs]: where the pair stands in its tile's list
  TileHits* hits = nullptr;
  int hits_size = 0;
  ~ImageState() { delete[] hits; }
  uint32_t tile_size(int tile) const { return tile_begin[tile + 1] - tile_begin[tile] - 1; }
  size_t bytes() const {
    size_t total = hits_size * sizeof(TileHits) + records.bytes() + colors.bytes() + ranges.bytes() + seen.bytes() +
                   order.bytes() + tile_begin.bytes() + tile_splats.bytes() + first_pair.bytes() +
                   position_of.bytes();
    for (int tile = 0; tile < hits_size; ++tile) total += hits[tile].position.bytes() + hits[tile].mask.bytes();
    return total;
  }
};

inline size_t row_of(const int64_t* index, size_t splat) { return index ? static_cast<size_t>(index[splat]) : splat; }
// Floats per splat in ImageState::colors; 0 where the record holds the colour.
inline int color_stride(const Problem& p) { return p.channels <= 3 ? 0 : p.channels <= 9 ? 9 : 16; }
inline int div_up(int a, int b) { return (a + b - 1) / b; }
inline int padded_splats(const Problem& p) { return div_up(p.splats, LANES) * LANES; }
inline int tiles_x(const Problem& p) { return div_up(p.width, TILE); }
inline int tiles_y(const Problem& p) { return div_up(p.height, TILE); }
inline int tiles(const Problem& p) { return tiles_x(p) * tiles_y(p); }

// A gradient row per (tile, splat) pair: moments of g = dL/dln(alpha) over the pixels, in the coordinates of Record's
// exponent: dx and the height t = dy - slope dx over the ridge (products of dx and dy cancel for needles). Then the
// gradients of depth and colours.
enum RowSlot { M0 = 0, MX, MT, MXX, MXT, MTT, DEPTH, COLOR };
constexpr int row_vectors(int channels) { return (COLOR + channels + LANES - 1) / LANES; }

}  // namespace splat
