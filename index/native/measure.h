/* What measuring vectors needs beside the instructions that multiply. */

#define AHEAD 8 /* rows prefetched before they are read: candidates lie anywhere in memory */

typedef float lanes __attribute__((vector_size(64), may_alias));
typedef float unaligned_lanes __attribute__((vector_size(64), may_alias, aligned(4)));

static INLINE void prefetch_row(const char *row, int64_t size_bytes)
{
    for (int64_t i = 0; i < size_bytes; i += 64)
        __builtin_prefetch(row + i);
}

#if defined(__clang__)
#define SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
typedef int32_t places __attribute__((vector_size(64)));
#define SHUFFLE(v, ...) __builtin_shuffle(v, (places){__VA_ARGS__})
#endif

/* Always in this order, so that equal lanes give equal sums. */
static INLINE float sum_lanes(lanes v)
{
    v += SHUFFLE(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return v[0] + v[1];
}

static INLINE float cosine_distance(float dot, float squared_norm)
{
    const float distance = squared_norm == 0 ? 1.0f : 1.0f - dot / sqrtf(squared_norm);
    return distance <= 2 ? (distance > 0 ? distance : 0) : 2; /* 2, too, for what is not a number */
}

static INLINE float half_to_float(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    union {
        uint32_t bits;
        float value;
    } magnitude = {.bits = (uint32_t)(half & 0x7fff) << 13};
    magnitude.value *= 0x1p112f; /* moves the exponent's bias from 15 to 127, subnormal numbers included */
    if ((half & 0x7c00) == 0x7c00)
        magnitude.bits |= 0x7f800000; /* infinite, or not a number */
    magnitude.bits |= sign;
    return magnitude.value;
}

/* A copy of a query with norm 1, which free() ends; zeros stay. In double, so that no finite query is too small or too
 * large. NULL when out of memory. */
static float *unit_query(const float *query, int64_t dim)
{
    float *unit = malloc((dim + 1) * sizeof *unit);
    double squared_norm = 0;
    for (int64_t i = 0; i < dim; i++)
        squared_norm += (double)query[i] * query[i];
    const double scale = squared_norm > 0 ? 1 / sqrt(squared_norm) : 0;
    for (int64_t i = 0; unit && i < dim; i++)
        unit[i] = (float)(query[i] * scale);
    return unit;
}

struct measured {
    float distance;
    int64_t place;
};

static int nearer(struct measured a, struct measured b)
{
    return a.distance < b.distance || (a.distance == b.distance && a.place < b.place);
}

/* Move the `wanted` nearest, at least one, to the front, in no order: quickselect. */
static void select_nearest(struct measured *items, int64_t count, int64_t wanted)
{
    const int64_t last = wanted - 1;
    int64_t low = 0, high = count - 1;
    while (low < high) {
        const struct measured pivot = items[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (nearer(items[i], pivot))
                i++;
            while (nearer(pivot, items[j]))
                j--;
            if (i <= j) {
                const struct measured swapped = items[i];
                items[i++] = items[j];
                items[j--] = swapped;
            }
        }
        if (last <= j)
            high = j;
        else if (last >= i)
            low = i;
        else
            return;
    }
}
