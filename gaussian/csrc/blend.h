// Front-to-back compositing of one tile. Lanes are the 16 pixels of a 4x4 block.
#pragma once

#include "bin.h"

namespace splat {

// The first floats of a Record.
enum CullField { CULL_U, CULL_V, CULL_EX, CULL_EY, CULL_SLOPE, CULL_SLOPE_X, CULL_LOG2_OPACITY, CULL_FIELDS };
constexpr float CULL_SLACK = 0.02f;   // log2 units; the blend tests each pixel exactly
constexpr int AHEAD = 4 * LANES;      // splats of a tile whose records are fetched before they are needed
constexpr int CULL_BATCH = 4;         // vectors of splats culled before their survivors are blended

struct BlockPixels {
  int x, y;      // of the corner, pixels
  F px, py;      // centres, from the image's centre
  F inside;      // 1 in the image, 0 outside

  BlockPixels(const Problem& p, int tile, int block) {
    alignas(64) static constexpr float COLUMN[LANES] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    alignas(64) static constexpr float ROW[LANES] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const F lane_x = load(COLUMN), lane_y = load(ROW);
    x = tile % tiles_x(p) * TILE + block % 4 * BLOCK;
    y = tile / tiles_x(p) * TILE + block / 4 * BLOCK;
    px = lane_x + (x + 0.5f - 0.5f * p.width);
    py = lane_y + (y + 0.5f - 0.5f * p.height);
    inside = select((lane_x + float(x) < float(p.width)) & (lane_y + float(y) < float(p.height)), all(1.0f), F{});
  }
  bool outside(const Problem& p) const { return x >= p.width || y >= p.height; }
};

SPLAT_INLINE F log2_alpha(const Record& s, F dx, F dy) {
  F ridge = dy - s.slope * dx;
  return s.log2_opacity - (s.ex * dx) * dx - (s.ey * ridge) * ridge;
}

// Copies a block of a plane from or to memory, leaving out what lies outside the image.
SPLAT_INLINE void store_block(const Problem& p, float* plane, const BlockPixels& b, F value) {
  alignas(64) float t[LANES];
  store(t, value);
  int columns = p.width - b.x < BLOCK ? p.width - b.x : BLOCK, rows = p.height - b.y < BLOCK ? p.height - b.y : BLOCK;
  for (int y = 0; y < rows; ++y)
    for (int x = 0; x < columns; ++x) plane[static_cast<size_t>(b.y + y) * p.width + b.x + x] = t[y * BLOCK + x];
}
SPLAT_INLINE F load_block(const Problem& p, const float* plane, const BlockPixels& b) {
  alignas(64) float t[LANES] = {};
  int columns = p.width - b.x < BLOCK ? p.width - b.x : BLOCK, rows = p.height - b.y < BLOCK ? p.height - b.y : BLOCK;
  for (int y = 0; y < rows; ++y)
    for (int x = 0; x < columns; ++x) t[y * BLOCK + x] = plane[static_cast<size_t>(b.y + y) * p.width + b.x + x];
  return load(t);
}

// The tile's splats in structure-of-arrays form, made as far as some block looks.
struct CullList {
  const Record* records;
  const uint32_t* splats;
  int size, ready = 0;  // splats, splats gathered
  float* data;

  void gather(int group) {  // of 16
    F rows[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
      int position = std::min(group * LANES + lane, size - 1);
      __builtin_prefetch(&records[splats[std::min(position + AHEAD, size - 1)]]);
      std::memcpy(&rows[lane], &records[splats[position]], sizeof(F));
    }
    transpose(rows);
    float* out = data + static_cast<size_t>(group) * CULL_FIELDS * LANES;
    for (int f = 0; f < CULL_FIELDS; ++f) store(out + f * LANES, rows[f]);
    for (int lane = size - group * LANES; lane < LANES; ++lane) out[CULL_LOG2_OPACITY * LANES + lane] = -100.0f;
    ready = (group + 1) * LANES;
  }

  // Bit i: splat 16 group + i has alpha >= 1/255 somewhere in [x0, x1] x [y0, y1]. The exponent is concave, so its
  // maximum over the rectangle lies at the centre or on a side that faces it.
  uint32_t reach(int group, float x0, float x1, float y0, float y1) {
    if (group * LANES >= ready) gather(group);
    const float* in = data + static_cast<size_t>(group) * CULL_FIELDS * LANES;
    F u = load(in + CULL_U * LANES), v = load(in + CULL_V * LANES);
    F ex = load(in + CULL_EX * LANES), ey = load(in + CULL_EY * LANES), slope = load(in + CULL_SLOPE * LANES);
    F left = x0 - u, right = x1 - u, top = y0 - v, bottom = y1 - v;
    F dx = max(min(F{}, right), left), dy = max(min(F{}, bottom), top);
    F side_dy = max(min(slope * dx, bottom), top);
    F side_dx = max(min(load(in + CULL_SLOPE_X * LANES) * dy, right), left);
    F ridge_a = side_dy - slope * dx, ridge_b = dy - slope * side_dx;
    F cost_a = ex * dx * dx + ey * ridge_a * ridge_a, cost_b = ex * side_dx * side_dx + ey * ridge_b * ridge_b;
    return bits(load(in + CULL_LOG2_OPACITY * LANES) - min(cost_a, cost_b) >= LOG2_MIN_ALPHA - CULL_SLACK);
  }
};

// Composites one block; returns the number of hits appended to scratch, none unless KEEP.
template <int CHANNELS, bool KEEP>
inline size_t blend_block(const Problem& p, const ImageState& image, CullList& list, const BlockPixels& pixels, size_t hits,
                          Scratch& scratch, F* color, F& depth, F& transmittance) {
  // `open` is the transmittance of pixels that still take splats and 0 in the others: it is the only value that one
  // splat waits for from the one before.
  F open = pixels.inside, t = all(1.0f), sum_depth = F{};
  F sum_color[CHANNELS] = {};
  const float x0 = pixels.x + 0.5f - 0.5f * p.width, y0 = pixels.y + 0.5f - 0.5f * p.height;
  int32_t survivors[(CULL_BATCH + 1) * LANES];
  const int groups = div_up(list.size, LANES);
  for (int group = 0; group < groups;) {
    int n = 0;
    for (int stop = std::min(group + CULL_BATCH, groups); group < stop; ++group)
      n += compress(list.reach(group, x0, x0 + 3, y0, y0 + 3), group * LANES, survivors + n);
    uint32_t* hit_position = KEEP ? scratch.hit_position.ensure_keeping(hits + n, hits) : nullptr;
    uint16_t* hit_mask = KEEP ? scratch.hit_mask.ensure_keeping(hits + n, hits) : nullptr;
    for (int k = 0; k < n; ++k) {
      const uint32_t splat = list.splats[survivors[k]];
      const Record& s = list.records[splat];
      F log2_a = log2_alpha(s, s.u - pixels.px, s.v - pixels.py);
      F alpha = select(log2_a >= LOG2_MIN_ALPHA, min(exp2_unit(log2_a), all(MAX_ALPHA)), F{});
      F after = open * (1.0f - alpha);
      I takes = after >= MIN_TRANSMITTANCE;
      F weight = select(takes, alpha * open, F{});
      t = select(takes, after, t);
      open = select(takes, after, F{});
      const float* c = CHANNELS <= 3 ? s.color : image.colors.data() + static_cast<size_t>(splat) * CHANNELS;
      for (int j = 0; j < CHANNELS; ++j) sum_color[j] += weight * c[j];
      sum_depth += weight * s.z;
      if (!KEEP) continue;
      uint32_t mask = bits(weight > 0.0f);
      hit_position[hits] = static_cast<uint32_t>(survivors[k]), hit_mask[hits] = static_cast<uint16_t>(mask);
      hits += mask != 0;
    }
    if (!bits(open > 0.0f)) break;
  }
  for (int j = 0; j < CHANNELS; ++j) color[j] = sum_color[j];
  depth = sum_depth, transmittance = t;
  return hits;
}

struct Planes {
  float *rgb, *alpha, *depth;  // of one image
};

template <int CHANNELS, bool KEEP>
inline void blend_tile(const Problem& p, const float* background, int tile, const ImageState& image, Scratch& scratch,
                       const Planes& out) {
  CullList list;
  list.records = image.records.data(), list.splats = image.tile_splats.data() + image.tile_begin[tile];
  list.size = static_cast<int>(image.tile_size(tile));
  list.data = scratch.cull.ensure(static_cast<size_t>(div_up(list.size, LANES)) * LANES * CULL_FIELDS);
  const size_t plane = static_cast<size_t>(p.height) * p.width;
  uint32_t end[BLOCKS], reached = 0;
  size_t hits = 0;
  for (int block = 0; block < BLOCKS; ++block) {
    BlockPixels pixels(p, tile, block);
    if (!pixels.outside(p)) {
      F color[CHANNELS], depth, t;
      hits = blend_block<CHANNELS, KEEP>(p, image, list, pixels, hits, scratch, color, depth, t);
      for (int c = 0; c < p.channels; ++c) store_block(p, out.rgb + c * plane, pixels, color[c] + t * background[c]);
      store_block(p, out.alpha, pixels, 1.0f - t);
      store_block(p, out.depth, pixels, depth);
    }
    if (!KEEP) continue;
    if (hits > (block ? end[block - 1] : 0)) reached = std::max(reached, scratch.hit_position[hits - 1] + 1);
    end[block] = static_cast<uint32_t>(hits);
  }
  if (!KEEP) return;
  TileHits& kept = image.hits[tile];
  std::memcpy(kept.end, end, sizeof end);
  kept.reached = reached;
  std::memcpy(kept.position.ensure(hits), scratch.hit_position.data(), hits * sizeof(uint32_t));
  std::memcpy(kept.mask.ensure(hits), scratch.hit_mask.data(), hits * sizeof(uint16_t));
}

}  // namespace splat
