/* The kernels, written once and compiled for each instruction set that instruction_sets.h includes this file with:
 *
 *   NAME(x)         the name of x in this instruction set
 *   VECTOR_BYTES    of one register
 *   CSA             carry-save adder: (high, low) = a + b + c, bit by bit
 *   CSA_OF_NOT      carry-save adder of a + ~b + c
 *   CARRY           the high half of CSA alone
 *   ANY(v)          whether a bit of v is set
 *   HALVES_AT(p)    16 float16 values as 16 floats
 *   BYTES_AT(p)     16 int8 values as 16 floats
 *
 * A block holds 512 codes as bit planes: plane i is bit i of all 512 codes, 64 bytes. Counts are kept vertically too:
 * bit j of 512 counts is one vector. So one instruction works on up to 512 rows, and the distance of a code c to a
 * query q, popcount(c) + popcount(q) - 2 popcount(c & q), needs only the planes where the query has a 1. Where a
 * register is narrower than a plane, a block is searched in parts.
 * Sources: Li & Patel 2013, BitWeaving; Mula, Kurz & Lemire 2018, Faster population counts (Harley-Seal adders).
 */

typedef uint64_t NAME(vector) __attribute__((vector_size(VECTOR_BYTES), may_alias));
#define vector NAME(vector)
#define PART_WORDS (VECTOR_BYTES / 8)

/* Add the 16 planes at offsets[0..16) to the counters; what leaves the fourth counter is returned. */
static INLINE vector NAME(add16)(const uint64_t *block, const uint16_t *offsets, vector *counters)
{
    /* Four offsets by one load: the planes themselves need all the loads that a core can do. */
    uint64_t packed[4];
    memcpy(packed, offsets, sizeof packed);
#define PLANE(i) (*(const vector *)(block + (uint16_t)(packed[i / 4] >> 16 * (i % 4))))
    vector a, b, c, d, e, carry, twos[8], fours[4], eights[2];
    CSA(twos[0], a, PLANE(0), PLANE(1), PLANE(2));
    CSA(twos[1], b, PLANE(3), PLANE(4), PLANE(5));
    CSA(twos[2], c, PLANE(6), PLANE(7), PLANE(8));
    CSA(twos[3], a, a, b, c);
    CSA(fours[0], b, twos[0], twos[1], twos[2]);
    CSA(twos[4], d, PLANE(9), PLANE(10), PLANE(11));
    CSA(twos[5], e, PLANE(12), PLANE(13), PLANE(14));
    CSA(twos[6], a, a, d, e);
    CSA(fours[1], c, twos[3], twos[4], twos[5]);
    CSA(twos[7], counters[0], counters[0], a, PLANE(15));
    CSA(fours[2], b, b, c, twos[6]);
    CSA(fours[3], counters[1], counters[1], b, twos[7]);
    CSA(eights[0], a, fours[0], fours[1], fours[2]);
    CSA(eights[1], counters[2], counters[2], a, fours[3]);
    CSA(carry, counters[3], counters[3], eights[0], eights[1]);
    return carry;
#undef PLANE
}

/* Count, per row, the bits set in the planes at `offsets`; `count` is a multiple of 16. */
static INLINE void NAME(add_planes)(const uint64_t *block, const uint16_t *offsets, int count, vector *counters,
                                    const int counter_count)
{
    int i = 0;
    for (; i + 32 <= count; i += 32) {
        vector first = NAME(add16)(block, offsets + i, counters);
        vector second = NAME(add16)(block, offsets + i + 16, counters);
        vector carry;
        CSA(carry, counters[4], counters[4], first, second);
        _Pragma("GCC unroll 16")
        for (int j = 5; j < counter_count; j++) {
            vector next = counters[j] & carry;
            counters[j] ^= carry;
            carry = next;
        }
    }
    if (i < count) {
        vector carry = NAME(add16)(block, offsets + i, counters);
        _Pragma("GCC unroll 16")
        for (int j = 4; j < counter_count; j++) {
            vector next = counters[j] & carry;
            counters[j] ^= carry;
            carry = next;
        }
    }
}

/* The rows with distance <= bound: the sign of S + ~(2 T) + (popcount(q) - bound) = distance - bound - 1, in two's
 * complement, where T are the counters. Only carries are kept; distances are read off when a row is taken. */
static INLINE vector NAME(within)(const uint64_t *sums, const vector *counters, const int counter_count,
                                  const uint64_t *constant)
{
    const vector zero = {0};
    vector saved = zero, carry = zero, low = zero;
    _Pragma("GCC unroll 16")
    for (int j = 0; j < counter_count + 2; j++) {
        const vector sum = j < counter_count ? *(const vector *)(sums + PLANE_WORDS * j) : zero;
        const vector twice = j >= 1 && j <= counter_count ? counters[j - 1] : zero;
        vector high;
        CSA_OF_NOT(high, low, sum, twice, zero + constant[j]);
        if (j == counter_count + 1)
            break;
        CARRY(carry, low, saved, carry);
        saved = high;
    }
    return low ^ saved ^ carry;
}

static INLINE void NAME(search_block)(const struct layout *layout, const uint64_t *block, int64_t block_number,
                                      const uint64_t *mask, const struct filter *filter, struct query *query,
                                      const int counter_count)
{
    for (int part = 0; part < PLANE_WORDS; part += PART_WORDS) {
        const uint64_t *words = block + part;
        vector counters[MAX_COUNTERS], within = {0};
        _Pragma("GCC unroll 16")
        for (int j = 0; j < counter_count; j++)
            counters[j] = (vector){0};
        for (int s = 0; s < query->stage_count; s++) {
            const struct stage *stage = &query->stages[s];
            const struct sums *sums = &layout->sums[stage->sums];
            NAME(add_planes)(words, query->offsets + stage->start, stage->count, counters, counter_count);
            vector near = NAME(within)(words + sums->offset, counters, counter_count, stage->constant);
            if (s)
                near &= within;
            within = near;
            if (!ANY(within))
                break;
        }
        if (mask)
            within &= *(const vector *)(mask + part);
        if (!ANY(within))
            continue;
        collect(query, filter, block_number * BLOCK_ROWS + 64 * part, (const uint64_t *)&within, PART_WORDS,
                words + layout->sums[layout->sums_count - 1].offset, (const uint64_t *)counters, counter_count);
    }
}

static void NAME(search)(const struct layout *layout, const uint64_t *blocks, const struct plan *plan, int64_t stride,
                         const struct filter *filter, struct query *queries, int64_t query_count)
{
    for (int64_t p = 0; p < plan->count; p += stride) {
        const struct visit *visit = &plan->visits[p];
        const uint64_t *block = blocks + visit->block * layout->block_words;
        const uint64_t *mask = visit->mask < 0 ? NULL : plan->masks[visit->mask];
        const uint64_t *ahead = NULL;
        if (p + 2 * stride < plan->count)
            ahead = blocks + plan->visits[p + 2 * stride].block * layout->block_words;
        for (int64_t i = 0; i < query_count; i++) {
            struct query *query = &queries[i];
            if (query->bound < 0)
                continue;
            if (ahead)
                prefetch_share(layout, ahead, query, i, query_count);
            if (layout->counter_count == 9)
                NAME(search_block)(layout, block, visit->block, mask, filter, query, 9);
            else if (layout->counter_count == 10)
                NAME(search_block)(layout, block, visit->block, mask, filter, query, 10);
            else
                NAME(search_block)(layout, block, visit->block, mask, filter, query, 11);
        }
    }
}

/* 16 values of a row of int8 or float16 from the i-th on; `width` of them where the row ends before. */
static INLINE lanes NAME(values)(const char *row, int64_t i, int64_t width, const int value_bytes)
{
    char rest[32] = {0};
    const char *from = row + i * value_bytes;
    if (width < 16) {
        memcpy(rest, from, width * value_bytes);
        from = rest;
    }
    if (value_bytes == 1)
        return BYTES_AT((const int8_t *)from);
    return HALVES_AT((const uint16_t *)from);
}

/* The cosine distance of a row to a query of norm 1 (or 0). Products are added in 16 lanes, in an order that depends
 * on the dimension alone. */
static INLINE float NAME(distance)(const char *row, const float *query, int64_t dim, const int value_bytes)
{
    int64_t i = 0;
    lanes dot = {0}, norm = {0}, odd_dot = {0}, odd_norm = {0}; /* two chains: one waits for its last result */
    for (; i + 32 <= dim; i += 32) {
        const lanes x = NAME(values)(row, i, 16, value_bytes), y = NAME(values)(row, i + 16, 16, value_bytes);
        dot += x * *(const unaligned_lanes *)(query + i);
        odd_dot += y * *(const unaligned_lanes *)(query + i + 16);
        norm += x * x;
        odd_norm += y * y;
    }
    dot += odd_dot;
    norm += odd_norm;
    for (; i < dim; i += 16) {
        const int64_t width = dim - i < 16 ? dim - i : 16;
        const lanes x = NAME(values)(row, i, width, value_bytes);
        lanes q = {0};
        memcpy(&q, query + i, sizeof(float) * width);
        dot += x * q;
        norm += x * x;
    }
    return cosine_distance(sum_lanes(dot), sum_lanes(norm));
}

/* Distances of the rows at offsets; offsets NULL: of rows 0..count. */
static INLINE void NAME(distances)(const char *vectors, int64_t dim, const int64_t *offsets, int64_t count,
                                   const float *query, float *out, const int value_bytes)
{
    const int64_t row_bytes = dim * value_bytes;
    for (int64_t i = 0; i < count; i++) {
        if (offsets && i + AHEAD < count)
            prefetch_row(vectors + offsets[i + AHEAD] * row_bytes, row_bytes);
        out[i] = NAME(distance)(vectors + (offsets ? offsets[i] : i) * row_bytes, query, dim, value_bytes);
    }
}

static void NAME(half_distances)(const uint16_t *vectors, int64_t dim, const int64_t *offsets, int64_t count,
                                 const float *query, float *out)
{
    NAME(distances)((const char *)vectors, dim, offsets, count, query, out, 2);
}

static void NAME(byte_distances)(const int8_t *vectors, int64_t dim, const int64_t *offsets, int64_t count,
                                 const float *query, float *out)
{
    NAME(distances)((const char *)vectors, dim, offsets, count, query, out, 1);
}

/* Scale each row so that its largest component is 127, and round; a row of zeros stays so. */
static void NAME(quantise)(const uint16_t *vectors, int64_t row_count, int64_t dim, int8_t *out)
{
    for (int64_t row = 0; row < row_count; row++) {
        const uint16_t *from = vectors + row * dim;
        int8_t *to = out + row * dim;
        float values[16], largest = 0;
        for (int64_t i = 0; i < dim; i++) {
            const uint16_t magnitude = from[i] & 0x7fff; /* float16 without sign sorts like an integer */
            float value = half_to_float(magnitude);
            if (value > largest)
                largest = value;
        }
        const float scale = largest > 0 ? 127.0f / largest : 0;
        for (int64_t i = 0; i < dim; i += 16) {
            const int64_t width = dim - i < 16 ? dim - i : 16;
            uint16_t part[16] = {0};
            memcpy(part, from + i, sizeof(uint16_t) * width);
            *(unaligned_lanes *)values = HALVES_AT(part) * scale;
            for (int j = 0; j < width; j++)
                to[i + j] = to_byte(values[j]);
        }
    }
}

static const struct kernels NAME(kernels) = {
    NAME(search),
    NAME(half_distances),
    NAME(byte_distances),
    NAME(quantise),
};

#undef vector
#undef PART_WORDS
#undef NAME
#undef VECTOR_BYTES
#undef ANY
#undef CSA
#undef CSA_OF_NOT
#undef CARRY
#undef HALVES_AT
#undef BYTES_AT
