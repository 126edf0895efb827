// Depth order and tile lists of one image.
#pragma once

#include <algorithm>
#include <vector>

#include "../../torch_utils/csrc/pool.h"
#include "project.h"

namespace splat {

// Working memory of one image; a thread keeps one.
struct Scratch {
  Buffer<uint64_t> keys, keys_other;
  std::vector<int> chunk_count;
  Buffer<uint32_t> cursor;
  Buffer<int32_t> marks;   // [tiles down + 1][tiles across + 1]
  // blending
  Buffer<float> cull;      // [groups of 16][CULL_FIELDS][16]
  Buffer<uint32_t> hit_position;
  Buffer<uint16_t> hit_mask;
  // backward
  Buffer<float> rows;      // [reached positions, tile after tile][row vectors][16]
  Buffer<uint32_t> row_begin;  // [tiles]
  Buffer<float> splat_rows;    // [N][row vectors][16], set where the splat is seen
  Buffer<float> background;  // [tiles][channels]
  Buffer<F> trail;         // [hits of a block][4]
};

// Sorts by the upper 32 bits, stable: equal depths stay in the order of the splats.
inline uint64_t* radix_sort(uint64_t* keys, uint64_t* other, int n, uint32_t span) {
  constexpr int DIGIT = 11, SIZE = 1 << DIGIT;
  uint32_t count[SIZE];
  for (int shift = 0; shift < 32 && (span >> shift) != 0; shift += DIGIT) {
    std::fill(count, count + SIZE, 0u);
    for (int i = 0; i < n; ++i) ++count[(keys[i] >> (32 + shift)) & (SIZE - 1)];
    uint32_t sum = 0;
    for (uint32_t& c : count) {
      uint32_t here = c;
      c = sum;
      sum += here;
    }
    for (int i = 0; i < n; ++i) other[count[(keys[i] >> (32 + shift)) & (SIZE - 1)]++] = keys[i];
    std::swap(keys, other);
  }
  return keys;
}

// Projects the scene's splats and sorts the visible ones by depth.
inline void project_and_sort(const Problem& p, const View& view, const SceneState& scene, const float* colors,
                             const Team& team, Scratch& scratch, ImageState& image) {
  const int chunks = div_up(p.splats, CHUNK), padded = padded_splats(p), stride = color_stride(p);
  image.records.ensure(padded);
  image.ranges.ensure(padded), image.seen.ensure(padded);
  float* wide_colors = image.colors.ensure(static_cast<size_t>(p.splats) * stride);
  uint64_t* keys = scratch.keys.ensure(p.splats);
  scratch.chunk_count.assign(chunks, 0);
  team.loop(chunks, [&](int k) {
    const int first = k * CHUNK, end = std::min(first + CHUNK, p.splats);
    scratch.chunk_count[k] = project(p, view, scene, colors, first, end, image, keys + first);
    if (!stride) return;
    for (int i = first; i < end; ++i) {
      const float* raw = colors + row_of(p.color_index, i) * p.channels;
      for (int c = 0; c < stride; ++c) wide_colors[static_cast<size_t>(i) * stride + c] = c < p.channels ? raw[c] : 0.0f;
    }
  });
  int n = 0;
  uint32_t low = 0xffffffffu, high = 0;
  for (int k = 0; k < chunks; ++k)
    for (int i = k * CHUNK; i < k * CHUNK + scratch.chunk_count[k]; ++i) {
      const uint32_t z = static_cast<uint32_t>(keys[i] >> 32);
      low = std::min(low, z), high = std::max(high, z);
      keys[n++] = keys[i];
    }
  for (int i = 0; i < n; ++i) keys[i] -= static_cast<uint64_t>(low) << 32;
  keys = radix_sort(keys, scratch.keys_other.ensure(p.splats), n, n ? high - low : 0);
  image.visible = n;
  uint32_t* order = image.order.ensure(n);
  for (int rank = 0; rank < n; ++rank) order[rank] = static_cast<uint32_t>(keys[rank]);
}

// Calls visit(tile, is_one) for the tiles of a splat, row by row. Most splats reach one to four tiles in a square of
// two, in no predictable way: all four are visited, and is_one is 0 for those that are not the splat's.
template <class Visit>
SPLAT_INLINE void for_tiles(const TileRange& r, int across, const Visit& visit) {
  const uint32_t wide = r.x1 - r.x0, high = r.y1 - r.y0;
  if ((wide | high) <= 1) {
    const int first = r.y0 * across + r.x0, second = r.y1 * across + r.x0;
    visit(first, 1u);
    visit(first + static_cast<int>(wide), wide);
    visit(second, high);
    visit(second + static_cast<int>(wide), wide & high);
    return;
  }
  for (int y = r.y0; y <= r.y1; ++y)
    for (int x = r.x0; x <= r.x1; ++x) visit(y * across + x, 1u);
}

constexpr int AHEAD_RANKS = 24;  // splats in depth order whose ranges are fetched before they are needed

// Counts the splats of each tile into count [tiles]. Corners of the ranges are marked in a table with one row and one
// column more than the tiles, and sums over rows and columns make counts of the marks: large splats cost no more than
// small ones, and the scene's order, in which memory is read, is as good as any.
inline void count_pairs(const Problem& p, const ImageState& image, Buffer<int32_t>& marks, uint32_t* count) {
  const int across = tiles_x(p), down = tiles_y(p), stride = across + 1;
  int32_t* mark = marks.ensure(static_cast<size_t>(stride) * (down + 1));
  std::fill(mark, mark + static_cast<size_t>(stride) * (down + 1), 0);
  for (int i = 0; i < p.splats; ++i) {
    if (!image.seen[i]) continue;
    const TileRange r = image.ranges[i];
    int32_t *first = mark + r.y0 * stride, *behind = mark + (r.y1 + 1) * stride;
    ++first[r.x0], --first[r.x1 + 1], --behind[r.x0], ++behind[r.x1 + 1];
  }
  for (int y = 0; y < down; ++y) {
    int32_t sum = 0;
    for (int x = 0; x < across; ++x) {
      sum += mark[y * stride + x];
      count[y * across + x] = static_cast<uint32_t>(sum) + (y ? count[(y - 1) * across + x] : 0u);
    }
  }
}

// Fills tile_begin and tile_splats, and for a backward first_pair and position_of.
inline void bin(const Problem& p, Scratch& scratch, ImageState& image) {
  const int across = tiles_x(p), count = tiles(p);
  uint32_t* begin = image.tile_begin.ensure(count + 1);
  uint32_t* cursor = scratch.cursor.ensure(count);
  const uint32_t* order = image.order.data();
  const TileRange* ranges = image.ranges.data();
  count_pairs(p, image, scratch.marks, cursor);
  uint32_t sum = 0;
  for (int t = 0; t < count; ++t) {
    begin[t] = sum;
    sum += cursor[t] + 1;  // the free entry takes what is written for a tile that is none of the splat's
    cursor[t] = begin[t];
  }
  begin[count] = sum;
  uint32_t* splats = image.tile_splats.ensure(sum);
  auto fetch_ahead = [&](int rank) {
    __builtin_prefetch(&ranges[order[std::min(rank + AHEAD_RANKS, image.visible - 1)]]);
  };
  if (!p.keep) {
    for (int rank = 0; rank < image.visible; ++rank) {
      fetch_ahead(rank);
      const uint32_t splat = order[rank];
      for_tiles(ranges[splat], across, [&](int tile, uint32_t is_one) {
        splats[cursor[tile]] = splat;
        cursor[tile] += is_one;
      });
    }
    return;
  }
  uint32_t* first_pair = image.first_pair.ensure(image.visible);
  uint32_t* position_of = image.position_of.ensure(sum);
  uint32_t pairs = 0;
  for (int rank = 0; rank < image.visible; ++rank) {
    fetch_ahead(rank);
    const uint32_t splat = order[rank];
    first_pair[rank] = pairs;
    for_tiles(ranges[splat], across, [&](int tile, uint32_t is_one) {
      splats[cursor[tile]] = splat;
      position_of[pairs] = cursor[tile] - begin[tile];
      cursor[tile] += is_one, pairs += is_one;
    });
  }
}

}  // namespace splat
