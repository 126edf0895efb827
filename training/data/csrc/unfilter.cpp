// Undoes the filters of PNG's rows (PNG specification, section 9) and sorts the channels into planes.
//
// Within a row each pixel waits for the one to its left, so that a pixel's channels are the lanes that run side by side.
#include <cstdint>
#include <cstring>

namespace {

typedef int16_t Lanes __attribute__((vector_size(8)));  // one pixel's channels, and room for sums
typedef uint8_t Bytes __attribute__((vector_size(4)));

constexpr int64_t PAD = 8;  // bytes before and after a row, so that whole vectors can be read and written

inline Lanes load(const uint8_t* at) {
  Bytes bytes;
  std::memcpy(&bytes, at, sizeof bytes);
  return __builtin_convertvector(bytes, Lanes);
}

// Writes four bytes: what lies beyond the pixel is overwritten by the next one, or is padding.
inline void store(uint8_t* at, Lanes value) {
  const Bytes bytes = __builtin_convertvector(value, Bytes);
  std::memcpy(at, &bytes, sizeof bytes);
}

inline Lanes magnitude(Lanes x) { return x > -x ? x : -x; }

// left is a, above b, above-left c of the specification.
inline Lanes paeth(Lanes a, Lanes b, Lanes c) {
  const Lanes to_a = magnitude(b - c), to_b = magnitude(a - c), to_c = magnitude((a - c) + (b - c));
  const Lanes b_or_c = to_b <= to_c ? b : c;
  const Lanes least = to_b <= to_c ? to_b : to_c;
  return to_a <= least ? a : b_or_c;
}

enum Filter { NONE, SUB, UP, AVERAGE, PAETH };

// One row of width pixels: `coded` to `row`; `above` is the row before, zeros for the first one.
template <int CHANNELS>
void restore(int filter, const uint8_t* coded, const uint8_t* above, uint8_t* row, int64_t width) {
  const int64_t size = width * CHANNELS;
  Lanes left = {}, corner = {};
  switch (filter) {
    case NONE:
      std::memcpy(row, coded, size);
      break;
    case SUB:
      for (int64_t i = 0; i < size; i += CHANNELS) {
        left = (load(coded + i) + left) & 255;
        store(row + i, left);
      }
      break;
    case UP:
      for (int64_t i = 0; i < size; i++) row[i] = coded[i] + above[i];
      break;
    case AVERAGE:
      for (int64_t i = 0; i < size; i += CHANNELS) {
        left = (load(coded + i) + ((left + load(above + i)) >> 1)) & 255;
        store(row + i, left);
      }
      break;
    case PAETH:
      for (int64_t i = 0; i < size; i += CHANNELS) {
        const Lanes over = load(above + i);
        left = (load(coded + i) + paeth(left, over, corner)) & 255;
        store(row + i, left);
        corner = over;
      }
      break;
  }
}

template <int CHANNELS>
int unfilter(const uint8_t* data, uint8_t* planes, int64_t height, int64_t width, uint8_t* rows) {
  const int64_t size = width * CHANNELS, pitch = size + PAD;
  uint8_t *above = rows, *row = rows + pitch, *coded = rows + 2 * pitch;
  std::memset(above, 0, pitch);
  std::memset(coded, 0, pitch);
  for (int64_t y = 0; y < height; y++) {
    const int filter = *data;
    if (filter > PAETH) return 1;
    std::memcpy(coded, data + 1, size);  // with padding after it
    restore<CHANNELS>(filter, coded, above, row, width);
    for (int c = 0; c < CHANNELS; c++) {
      uint8_t* plane = planes + (c * height + y) * width;
      for (int64_t x = 0; x < width; x++) plane[x] = row[CHANNELS * x + c];
    }
    uint8_t* const swapped = above;
    above = row;
    row = swapped;
    data += 1 + size;
  }
  return 0;
}

}  // namespace

// data: height rows of 1 + width * channels bytes, each beginning with its filter. planes: [channels, height, width].
// rows: room for 3 * (width * channels + 8) bytes. Returns 0, or 1 for an unknown filter or number of channels.
extern "C" int png_unfilter(const uint8_t* data, uint8_t* planes, int64_t height, int64_t width, int channels,
                            uint8_t* rows) {
  switch (channels) {
    case 1: return unfilter<1>(data, planes, height, width, rows);
    case 2: return unfilter<2>(data, planes, height, width, rows);
    case 3: return unfilter<3>(data, planes, height, width, rows);
    case 4: return unfilter<4>(data, planes, height, width, rows);
    default: return 1;
  }
}
