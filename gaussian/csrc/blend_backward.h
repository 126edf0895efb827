// Gradients of one tile's compositing with respect to its records.
#pragma once

#include "blend.h"

namespace splat {

constexpr uint32_t PREFETCH = 8;     // records ahead
constexpr float CAPPED = 0.989999f;  // exactly MAX_ALPHA is stored where the cap acted

// Moments of 16 gradient vectors, transposed: g[pixel] holds that pixel of 16 splats. ex, ey: centres of the splats from
// the block's first pixel, which is the origin of x and y here.
SPLAT_INLINE void block_moments(const F* g, F ex, F ey, F slope, F* row) {
  F m0 = F{}, mx = F{}, my = F{}, mxx = F{}, mxy = F{}, myy = F{};
  for (int y = 0; y < BLOCK; ++y) {
    const F* r = g + y * BLOCK;
    F sum = (r[0] + r[1]) + (r[2] + r[3]);
    F sum_x = r[1] + 2.0f * r[2] + 3.0f * r[3];
    F sum_xx = r[1] + 4.0f * r[2] + 9.0f * r[3];
    float fy = static_cast<float>(y);
    m0 += sum, mx += sum_x, mxx += sum_xx;
    my += fy * sum, mxy += fy * sum_x, myy += (fy * fy) * sum;
  }
  // dx = ex - x and t = et - s with s = y - slope x: both small differences inside the block, so nothing cancels.
  F et = ey - slope * ex;
  F ms = my - slope * mx, mxs = mxy - slope * mxx, mss = myy - slope * (mxy + mxs);
  row[M0] = m0;
  row[MX] = ex * m0 - mx;
  row[MT] = et * m0 - ms;
  row[MXX] = ex * (ex * m0 - 2.0f * mx) + mxx;
  row[MXT] = ex * row[MT] - et * mx + mxs;
  row[MTT] = et * (et * m0 - 2.0f * ms) + mss;
}

struct TrailEntry {
  F alpha, weight, value;  // value: what the splat shows, times the upstream gradient
};

template <int CHANNELS>
inline void block_backward(const Problem& p, const ImageState& image, int tile, const BlockPixels& pixels, uint32_t first,
                           uint32_t end, const F* drgb, F dalpha, F ddepth, F rest, float* rows, Scratch& scratch,
                           F& transmittance) {
  constexpr int VECTORS = row_vectors(CHANNELS);
  const TileHits& hits = image.hits[tile];
  const int n = static_cast<int>(end - first), padded = div_up(n, LANES) * LANES;
  TrailEntry* trail = reinterpret_cast<TrailEntry*>(scratch.trail.ensure(static_cast<size_t>(padded) * 3));
  const Record* records = image.records.data();
  const uint32_t* splats = image.tile_splats.data() + image.tile_begin[tile];
  F t = all(1.0f);
  for (int k = 0; k < n; ++k) {
    const uint32_t splat = splats[hits.position[first + k]];
    const Record& s = records[splat];
    __builtin_prefetch(&records[splats[hits.position[std::min(first + k + PREFETCH, end - 1)]]]);
    F alpha = min(exp2_unit(log2_alpha(s, s.u - pixels.px, s.v - pixels.py)), all(MAX_ALPHA));
    alpha = select(lanes_of(hits.mask[first + k]), alpha, F{});
    F weight = alpha * t;
    t *= 1.0f - alpha;
    const float* c = CHANNELS <= 3 ? s.color : image.colors.data() + static_cast<size_t>(splat) * CHANNELS;
    F value = dalpha + s.z * ddepth;
    for (int j = 0; j < CHANNELS; ++j) value += c[j] * drgb[j];
    trail[k] = {alpha, weight, value};
  }
  for (int k = n; k < padded; ++k) trail[k] = {F{}, F{}, F{}};
  transmittance = t;

  alignas(64) float pixel_gradient[CHANNELS + 1][LANES];
  for (int j = 0; j < CHANNELS; ++j) store(pixel_gradient[j], drgb[j]);
  store(pixel_gradient[CHANNELS], ddepth);
  const float x0 = pixels.x + 0.5f - 0.5f * p.width, y0 = pixels.y + 0.5f - 0.5f * p.height;
  for (int group = padded - LANES; group >= 0; group -= LANES) {
    F g[LANES], w[LANES];
    for (int j = LANES - 1; j >= 0; --j) {
      const TrailEntry& e = trail[group + j];
      F gain = e.value - rest;  // over what lies behind
      rest += e.alpha * gain;
      w[j] = e.weight;
      g[j] = select(e.alpha < CAPPED, e.weight * gain, F{});
    }
    transpose(g);
    transpose(w);
    const int m = std::min(n - group, LANES);
    alignas(64) float u[LANES] = {}, v[LANES] = {}, slope[LANES] = {};
    float* target[LANES];
    for (int j = 0; j < m; ++j) {
      const uint32_t position = hits.position[first + group + j];
      const Record& s = records[splats[position]];
      u[j] = s.u, v[j] = s.v, slope[j] = s.slope;
      target[j] = rows + static_cast<size_t>(position) * (VECTORS * LANES);
    }
    F row[VECTORS * LANES] = {};
    block_moments(g, load(u) - x0, load(v) - y0, load(slope), row);
    for (int i = 0; i < LANES; ++i) {
      row[DEPTH] += w[i] * pixel_gradient[CHANNELS][i];
      for (int c = 0; c < CHANNELS; ++c) row[COLOR + c] += w[i] * pixel_gradient[c][i];
    }
    for (int k = 0; k < VECTORS; ++k) {
      transpose(row + k * LANES);
      for (int j = 0; j < m; ++j) store(target[j] + k * LANES, load(target[j] + k * LANES) + row[k * LANES + j]);
    }
  }
}

struct UpstreamPlanes {
  const float *rgb, *alpha, *depth;  // of one image
};

// Fills the tile's rows [reached][row vectors][16] and its row of dbackground [tiles][channels].
template <int CHANNELS>
inline void tile_backward(const Problem& p, const float* background, int tile, const ImageState& image, Scratch& scratch,
                          float* rows, float* dbackground, const UpstreamPlanes& in) {
  constexpr int VECTORS = row_vectors(CHANNELS);
  const size_t plane = static_cast<size_t>(p.height) * p.width;
  std::memset(rows, 0, image.hits[tile].reached * (VECTORS * LANES * sizeof(float)));
  F dback[CHANNELS] = {};
  for (int block = 0; block < BLOCKS; ++block) {
    BlockPixels pixels(p, tile, block);
    if (pixels.outside(p)) continue;
    F drgb[CHANNELS] = {}, rest = F{}, t;
    for (int c = 0; c < p.channels; ++c) {
      drgb[c] = load_block(p, in.rgb + c * plane, pixels);
      rest += drgb[c] * background[c];
    }
    F dalpha = load_block(p, in.alpha, pixels), ddepth = load_block(p, in.depth, pixels);
    uint32_t first = block ? image.hits[tile].end[block - 1] : 0;
    block_backward<CHANNELS>(p, image, tile, pixels, first, image.hits[tile].end[block], drgb, dalpha, ddepth, rest, rows,
                             scratch, t);
    for (int c = 0; c < CHANNELS; ++c) dback[c] += t * drgb[c];
  }
  for (int c = 0; c < p.channels; ++c) dbackground[c] = sum(dback[c]);
}

}  // namespace splat
