/* What measuring vectors needs beside the instructions that multiply. */

#define AHEAD 8 /* rows prefetched before they are read: candidates lie anywhere in memory */

typedef float lanes __attribute__((vector_size(64), may_alias));
typedef float unaligned_lanes __attribute__((vector_size(64), may_alias, aligned(4)));

static INLINE void prefetch_row(const char *row, int64_t size_bytes)
{
    for (int64_t i = 0; i < size_bytes; i += 64)
        __builtin_prefetch(row + i);
}

static INLINE float sum_lanes(lanes v)
{
    float s[16];
    memcpy(s, &v, sizeof s);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++)
            s[i] += s[i + width];
    return s[0];
}

static INLINE float cosine_distance(float dot, float squared_norm)
{
    const float distance = squared_norm > 0 ? 1.0f - dot / sqrtf(squared_norm) : 1.0f;
    return distance < 0 ? 0 : distance > 2 ? 2 : distance;
}

static INLINE float half_to_float(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    union {
        uint32_t bits;
        float value;
    } magnitude = {.bits = (uint32_t)(half & 0x7fff) << 13};
    magnitude.value *= 0x1p112f; /* moves the exponent's bias from 15 to 127, subnormal numbers included */
    magnitude.bits |= sign;
    return magnitude.value;
}

static float scale_of(const float *query, int64_t dim)
{
    double squared_norm = 0;
    for (int64_t i = 0; i < dim; i++)
        squared_norm += (double)query[i] * query[i];
    return squared_norm > 0 ? (float)(1 / sqrt(squared_norm)) : 1.0f;
}

struct measured {
    float distance;
    int64_t place;
};

static int nearer(struct measured a, struct measured b)
{
    return a.distance < b.distance || (a.distance == b.distance && a.place < b.place);
}

/* Move the `wanted` nearest to the front, in no order: quickselect. */
static void select_nearest(struct measured *items, int64_t count, int64_t wanted)
{
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
        if (wanted <= j)
            high = j;
        else if (wanted >= i)
            low = i;
        else
            return;
    }
}
