// Heads of a world model, in float32 or 8-bit integers, for CPUs with AVX2: see native.py.
//
// A head runs on a few rows at a time, which stay in the first caches from its input to its
// output, so that norms and activations cost no memory traffic.
//
// In integers a row's numbers are q = 0..96 with x = low + step q, and weights -84..84 with a
// scale for each output. Four products of such numbers fit into 16 bits, so that two instructions
// of multiplication share a third. Weights err more than rows at equal levels: they get nearly
// as many for half the range.

#include <immintrin.h>

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr long kRows = 48;  // rows at a time; a multiple of kBlock
constexpr long kBlock = 6;  // rows whose sums are in registers
constexpr float kLevels = 96;  // largest number of a row

struct Layer {
    const void* weight;  // integers [outputs / 16, inputs / 8, 2, 16, 4]; floats [outputs / 16, inputs, 16]
    const float* scale;  // [outputs] of integer weights; null where weights are floats
    const float* sum;    // [outputs] of the scaled integer weights
    const float* bias;   // [batch, outputs] of the first layer, [outputs] of others
    const float* gain;   // [outputs] of LayerNorm; null where there is none
    const float* shift;  // [outputs]
    int64_t inputs;      // a multiple of 8
    int64_t outputs;     // a multiple of 16
};

struct Head {
    const Layer* layers;
    const float* bins;  // [outputs] of the last layer: give the mean of its softmax; else null
    int64_t count;      // of layers
    int64_t width;      // of what goes in
    int64_t out_width;  // of what comes out
};

struct Tile {
    explicit Tile(long wide)
        : numbers(new uint8_t[kRows * wide]()),
          in(new float[kRows * wide]()),
          out(new float[kRows * wide]()) {}
    std::unique_ptr<uint8_t[]> numbers;
    std::unique_ptr<float[]> in, out;
    float low[kRows] = {}, step[kRows] = {};
};

float sum_of(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

float max_of(__m256 x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// 2^(whole + f) with f in [-1/2, 1/2]; its Taylor polynomial errs by 3e-7 of the value.
__m256 exp_of(__m256 x) {
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.0f)), _mm256_set1_ps(88.0f));
    const __m256 t = _mm256_mul_ps(x, _mm256_set1_ps(1.44269504f));
    const __m256 whole = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // The logarithm of 2 in two parts, of which the first times a whole number is exact.
    __m256 f = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), x);
    f = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), f);
    __m256 p = _mm256_set1_ps(1.0f / 720);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
}

// With e = exp(x) and n = e (e + 2) it is x n / (n + 2); beyond 20 that is x.
__m256 mish_of(__m256 x) {
    const __m256 two = _mm256_set1_ps(2.0f);
    const __m256 e = exp_of(_mm256_min_ps(x, _mm256_set1_ps(20.0f)));
    const __m256 n = _mm256_mul_ps(e, _mm256_add_ps(e, two));
    return _mm256_div_ps(_mm256_mul_ps(x, n), _mm256_add_ps(n, two));
}

// Round a row to whole numbers; its padding becomes zeros, which have no weight.
void round_row(const float* x, long count, long padded, Tile& tile, long row) {
    const long whole = count / 8 * 8;
    float low = FLT_MAX, high = -FLT_MAX;
    if (whole) {
        __m256 most = _mm256_loadu_ps(x), least = most;
        for (long i = 8; i < whole; i += 8) {
            most = _mm256_max_ps(most, _mm256_loadu_ps(x + i));
            least = _mm256_min_ps(least, _mm256_loadu_ps(x + i));
        }
        high = max_of(most);
        low = -max_of(_mm256_sub_ps(_mm256_setzero_ps(), least));
    }
    for (long i = whole; i < count; ++i) low = std::min(low, x[i]), high = std::max(high, x[i]);
    const float step = (high - low) / kLevels, scale = step > 0 ? 1 / step : 0;
    uint8_t* numbers = tile.numbers.get() + row * padded;
    const __m256 lows = _mm256_set1_ps(low), scales = _mm256_set1_ps(scale);
    for (long i = 0; i < whole; i += 8) {
        const __m256 value = _mm256_sub_ps(_mm256_loadu_ps(x + i), lows);
        const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(value, scales));
        const __m128i words =
            _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
        _mm_storel_epi64((__m128i*)(numbers + i), _mm_packus_epi16(words, words));
    }
    for (long i = whole; i < padded; ++i)
        numbers[i] = i < count ? (uint8_t)((x[i] - low) * scale + 0.5f) : 0;
    tile.low[row] = low;
    tile.step[row] = step;
}

// Multiply whole numbers of kBlock rows with the weights of 16 outputs.
void sums_of(const uint8_t* x, const int8_t* weight, long inputs, __m256i sums[kBlock][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i own[kBlock][2];
    for (auto& row : own) row[0] = row[1] = _mm256_setzero_si256();
    for (long k = 0; k < inputs; k += 8, weight += 128) {
        const __m256i* w = (const __m256i*)weight;
#pragma GCC unroll 6
        for (long r = 0; r < kBlock; ++r) {
            int32_t four[2];
            memcpy(four, x + r * inputs + k, 8);
            const __m256i first = _mm256_set1_epi32(four[0]);
            const __m256i second = _mm256_set1_epi32(four[1]);
#pragma GCC unroll 2
            for (long c = 0; c < 2; ++c) {
                const __m256i pairs = _mm256_add_epi16(
                    _mm256_maddubs_epi16(first, _mm256_loadu_si256(w + c)),
                    _mm256_maddubs_epi16(second, _mm256_loadu_si256(w + 2 + c)));
                own[r][c] = _mm256_add_epi32(own[r][c], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    memcpy(sums, own, sizeof own);
}

// The same in floats, with the bias.
void sums_of(const float* x, const float* weight, long inputs, __m256 sums[kBlock][2]) {
    __m256 own[kBlock][2];
    memcpy(own, sums, sizeof own);
    for (long k = 0; k < inputs; ++k, weight += 16) {
        const __m256 w[2] = {_mm256_loadu_ps(weight), _mm256_loadu_ps(weight + 8)};
#pragma GCC unroll 6
        for (long r = 0; r < kBlock; ++r) {
            const __m256 value = _mm256_set1_ps(x[r * inputs + k]);
            own[r][0] = _mm256_fmadd_ps(value, w[0], own[r][0]);
            own[r][1] = _mm256_fmadd_ps(value, w[1], own[r][1]);
        }
    }
    memcpy(sums, own, sizeof own);
}

// Fill the tile's `out` with the layer's product; row r has the bias r % batch.
void multiply(const Layer& layer, Tile& tile, long rows, long first, long batch) {
    for (long n = 0; n < layer.outputs; n += 16) {
        for (long r = 0; r < rows; r += kBlock) {
            __m256 y[kBlock][2];
            for (long i = 0; i < kBlock; ++i) {
                const float* bias = layer.bias + (first + r + i) % batch * layer.outputs + n;
                y[i][0] = _mm256_loadu_ps(bias);
                y[i][1] = _mm256_loadu_ps(bias + 8);
            }
            if (layer.scale) {
                __m256i sums[kBlock][2];
                sums_of(tile.numbers.get() + r * layer.inputs,
                        (const int8_t*)layer.weight + n * layer.inputs, layer.inputs, sums);
                for (long i = 0; i < kBlock; ++i) {
                    const __m256 step = _mm256_set1_ps(tile.step[r + i]);
                    const __m256 low = _mm256_set1_ps(tile.low[r + i]);
                    for (long c = 0; c < 2; ++c) {
                        const __m256 scale = _mm256_loadu_ps(layer.scale + n + 8 * c);
                        const __m256 sum = _mm256_loadu_ps(layer.sum + n + 8 * c);
                        const __m256 number = _mm256_cvtepi32_ps(sums[i][c]);
                        y[i][c] = _mm256_fmadd_ps(low, sum, y[i][c]);
                        y[i][c] = _mm256_fmadd_ps(_mm256_mul_ps(step, scale), number, y[i][c]);
                    }
                }
            } else {
                sums_of(tile.in.get() + r * layer.inputs,
                        (const float*)layer.weight + n * layer.inputs, layer.inputs, y);
            }
            for (long i = 0; i < kBlock; ++i)
                for (long c = 0; c < 2; ++c)
                    _mm256_storeu_ps(&tile.out[(r + i) * layer.outputs + n + 8 * c], y[i][c]);
        }
    }
}

// LayerNorm over a row, then Mish or nothing.
void normalise(const Layer& layer, float* x, bool mish) {
    __m256 parts[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (long i = 0; i < layer.outputs; i += 16)
        for (long c = 0; c < 2; ++c)
            parts[c] = _mm256_add_ps(parts[c], _mm256_loadu_ps(x + i + 8 * c));
    const __m256 mean = _mm256_set1_ps(sum_of(_mm256_add_ps(parts[0], parts[1])) / layer.outputs);
    parts[0] = parts[1] = _mm256_setzero_ps();
    for (long i = 0; i < layer.outputs; i += 16)
        for (long c = 0; c < 2; ++c) {
            const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * c), mean);
            parts[c] = _mm256_fmadd_ps(d, d, parts[c]);
        }
    const float squares = sum_of(_mm256_add_ps(parts[0], parts[1]));
    const __m256 variance = _mm256_set1_ps(squares / layer.outputs + 1e-5f);  // as torch
    const __m256 by = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_sqrt_ps(variance));
    for (long i = 0; i < layer.outputs; i += 8) {
        const __m256 d = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean), by);
        const __m256 gain = _mm256_loadu_ps(layer.gain + i);
        const __m256 y = _mm256_fmadd_ps(d, gain, _mm256_loadu_ps(layer.shift + i));
        _mm256_storeu_ps(x + i, mish ? mish_of(y) : y);
    }
}

// Softmax in groups of 8, whose inputs LayerNorm bounds.
void simnorm(const float* x, long count, float* out) {
    for (long i = 0; i < count; i += 8) {
        const __m256 e = exp_of(_mm256_loadu_ps(x + i));
        _mm256_storeu_ps(out + i, _mm256_div_ps(e, _mm256_set1_ps(sum_of(e))));
    }
}

// The mean of the bins under a softmax; padding has a bias that leaves no share.
float mean_bin(const float* x, const float* bins, long count) {
    __m256 most = _mm256_loadu_ps(x);
    for (long i = 8; i < count; i += 8) most = _mm256_max_ps(most, _mm256_loadu_ps(x + i));
    most = _mm256_set1_ps(max_of(most));
    __m256 total = _mm256_setzero_ps(), mean = total;
    for (long i = 0; i < count; i += 8) {
        const __m256 e = exp_of(_mm256_sub_ps(_mm256_loadu_ps(x + i), most));
        total = _mm256_add_ps(total, e);
        mean = _mm256_fmadd_ps(e, _mm256_loadu_ps(bins + i), mean);
    }
    return sum_of(mean) / sum_of(total);
}

// Make a row what the layer reads.
void enter(const Layer& layer, const float* x, long count, Tile& tile, long row) {
    if (layer.scale) {
        round_row(x, count, layer.inputs, tile, row);
    } else {
        float* to = &tile.in[row * layer.inputs];
        memcpy(to, x, count * sizeof(float));
        std::fill(to + count, to + layer.inputs, 0.0f);
    }
}

void leave(const Head& head, const float* x, float* out) {
    const Layer& last = head.layers[head.count - 1];
    if (head.bins)
        *out = mean_bin(x, head.bins, last.outputs);
    else if (last.gain)
        simnorm(x, last.outputs, out);
    else
        memcpy(out, x, head.out_width * sizeof(float));
}

void run_tile(const Head& head, const float* x, long start, long rows, long batch, float* out,
              Tile& tile) {
    for (long l = 0; l < head.count; ++l) {
        const Layer& layer = head.layers[l];
        for (long r = 0; r < rows && l == 0; ++r)
            enter(layer, x + (start + r) * head.width, head.width, tile, r);
        const long whole = (rows + kBlock - 1) / kBlock * kBlock;
        multiply(layer, tile, whole, start, l == 0 ? batch : 1);
        const bool last = l + 1 == head.count;
        for (long r = 0; r < rows; ++r) {
            float* row = &tile.out[r * layer.outputs];
            if (layer.gain) normalise(layer, row, !last);
            if (last)
                leave(head, row, out + (start + r) * head.out_width);
            else
                enter(head.layers[l + 1], row, layer.outputs, tile, r);
        }
    }
}

}  // namespace

// Map x [rows, width] to out [rows, out_width]; row r has the first layer's bias r % batch.
extern "C" void run_head(const Head* head, const float* x, int64_t rows, int64_t batch, float* out,
                         int64_t threads) {
    long wide = 0;
    for (long l = 0; l < head->count; ++l)
        wide = std::max<long>({wide, head->layers[l].inputs, head->layers[l].outputs});
    const auto work = [=](long first) {
        Tile tile(wide);
        for (long start = first * kRows; start < rows; start += threads * kRows)
            run_tile(*head, x, start, std::min<long>(kRows, rows - start), batch, out, tile);
    };
    std::vector<std::thread> others;
    for (long i = 1; i < threads; ++i) others.emplace_back(work, i);
    work(0);
    for (auto& other : others) other.join();
}
