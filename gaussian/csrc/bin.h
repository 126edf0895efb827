// Depth order and tile lists of one image.
#pragma once

#include <algorithm>
#include <vector>

#include "../../torch_utils/csrc/pool.h"
#include "project.h"

namespace splat {

// Working memory of one image; a thread keeps one.
struct Scratch {
  Buffer<Record> unsorted;
  Buffer<uint64_t> keys, keys_other;
  std::vector<int> chunk_count;
  Buffer<uint32_t> cursor;
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

// Projects the scene's splats into `image.records`, front to back, numbers their pairs and fills `seen`.
inline void project_and_sort(const Problem& p, const View& view, const SceneState& scene, const float* colors,
                             const Team& team, Scratch& scratch, ImageState& image) {
  const int chunks = div_up(p.splats, CHUNK);
  Record* unsorted = scratch.unsorted.ensure(p.splats);
  scratch.chunk_count.assign(chunks, 0);
  team.loop(chunks, [&](int k) {
    int first = k * CHUNK, end = std::min(first + CHUNK, p.splats);
    scratch.chunk_count[k] = project(p, view, scene, first, end, unsorted + first);
    std::fill(image.seen.data() + first, image.seen.data() + end, uint8_t(0));
  });
  uint64_t* keys = scratch.keys.ensure(p.splats);
  int n = 0;
  uint32_t low = 0xffffffffu, high = 0;
  for (int k = 0; k < chunks; ++k)
    for (int i = k * CHUNK; i < k * CHUNK + scratch.chunk_count[k]; ++i) {
      uint32_t z;  // positive floats order like their bits
      std::memcpy(&z, &unsorted[i].z, sizeof z);
      low = std::min(low, z), high = std::max(high, z);
      keys[n++] = static_cast<uint64_t>(z) << 32 | static_cast<uint32_t>(i);
    }
  for (int i = 0; i < n; ++i) keys[i] -= static_cast<uint64_t>(low) << 32;
  keys = radix_sort(keys, scratch.keys_other.ensure(p.splats), n, n ? high - low : 0);

  image.visible = n;
  Record* records = image.records.ensure(n);
  const int channels = p.channels;
  const int color_stride = channels <= 3 ? 0 : channels <= 9 ? 9 : 16;
  float* sorted_colors = image.colors.ensure(static_cast<size_t>(n) * color_stride);
  team.loop(div_up(n, CHUNK), [&](int k) {
    for (int rank = k * CHUNK; rank < std::min((k + 1) * CHUNK, n); ++rank) {
      Record record = unsorted[static_cast<uint32_t>(keys[rank])];
      const float* raw = colors + row_of(p.color_index, record.splat) * channels;
      float* color = color_stride ? sorted_colors + static_cast<size_t>(rank) * color_stride : record.color;
      for (int c = 0; c < std::max(color_stride, 3); ++c) {
        float value = c < channels ? raw[c] : 0.0f;
        color[c] = p.color_mode == SH_SHARED ? std::max(SH_DC * value + 0.5f, 0.0f) : value;
      }
      records[rank] = record;
      image.seen[record.splat] = 1;
    }
  });
  uint32_t pairs = 0;
  for (int rank = 0; rank < n; ++rank) {
    TileRange& range = records[rank].range;
    range.first_pair = pairs;
    pairs += range.pairs();
  }
  image.pairs = pairs;
}

// Fills tile_begin and tile_ranks (for every tile the ranks that may reach it, front to back) and position_of.
inline void bin(const Problem& p, Scratch& scratch, ImageState& image) {
  const int across = tiles_x(p), count = tiles(p);
  uint32_t* begin = image.tile_begin.ensure(count + 1);
  uint32_t* cursor = scratch.cursor.ensure(count);
  std::fill(cursor, cursor + count, 0u);
  for (int rank = 0; rank < image.visible; ++rank) {
    const TileRange& r = image.records[rank].range;
    for (int y = r.y0; y <= r.y1; ++y)
      for (int x = r.x0; x <= r.x1; ++x) ++cursor[y * across + x];
  }
  uint32_t sum = 0;
  for (int t = 0; t < count; ++t) {
    begin[t] = sum;
    sum += cursor[t];
    cursor[t] = begin[t];
  }
  begin[count] = sum;
  uint32_t* ranks = image.tile_ranks.ensure(sum);
  uint32_t* position_of = image.position_of.ensure(sum);
  for (int rank = 0; rank < image.visible; ++rank) {
    const TileRange& r = image.records[rank].range;
    for (int y = r.y0; y <= r.y1; ++y)
      for (int x = r.x0; x <= r.x1; ++x) {
        const int tile = y * across + x;
        const uint32_t slot = cursor[tile]++;
        ranks[slot] = static_cast<uint32_t>(rank);
        *position_of++ = slot - begin[tile];
      }
  }
}

}  // namespace splat
