/* Codes in blocks, and the search for the nearest of them, apart from the instructions that count bits.
 *
 * A block is made by `append` in module.c, in the layout that kernels_template.h explains:
 *
 *   planes 0 .. bit_count - 1      the bits of 512 codes
 *   plane bit_count                zeros, which fills up lists of planes
 *   then                           vertical counts of the bits in the first 64, the first 128 and all planes
 */

#define BLOCK_ROWS 512
#define PLANE_WORDS 8
#define MAX_BITS 1024
#define MAX_STAGES 3
#define MAX_COUNTERS 11 /* counts up to 1,024 */
#define SAMPLE_STRIDE 16 /* of the blocks, one in so many */
#define SAMPLED_MIN_WANTED 32
#define SAMPLED_MIN_RATIO 64 /* rows to search for each wanted */

struct sums {
    int end;    /* they count the planes before this one */
    int offset; /* in words, in the block */
};

struct layout {
    int bit_count;
    int counter_count; /* planes of a vertical count */
    int sums_count;
    struct sums sums[MAX_STAGES];
    int64_t block_words;
};

struct span {
    int64_t start, stop; /* rows, half-open */
};

/* The blocks that a search visits, each once. */
struct visit {
    int64_t block;
    int64_t mask; /* which rows of it are searched: an index into masks, or -1 for all */
};

struct plan {
    struct visit *visits;
    uint64_t (*masks)[8];
    int64_t count;
};

struct filter {
    const int64_t *expire_times;
    int64_t now_ms;
    const uint64_t *scopes;  /* or NULL */
    const uint8_t *allowed;  /* or NULL */
};

struct stage {
    int sums;         /* which sums the stage compares */
    int start, count; /* in the query's list of planes */
    uint64_t constant[MAX_COUNTERS + 2]; /* popcount(q) - bound, a word of equal bits for each of its bits */
};

/* Collects the `wanted` nearest rows. Rows come in ascending order, so of equal distances the first stay. */
struct query {
    uint16_t offsets[MAX_BITS + 16 * MAX_STAGES]; /* of planes, in words, per stage a multiple of 16 of them */
    int stage_count;
    struct stage stages[MAX_STAGES];
    int weight; /* bits set in the query */
    uint64_t scope;
    int has_scope;
    int64_t wanted;
    int max_distance;
    int bound; /* the largest distance that can still get in; -1: none can */
    int top;   /* the largest distance counted in `held` */
    int64_t held;
    int64_t histogram[MAX_BITS + 1];
    int64_t *rows;
    int32_t *distances;
    int64_t size, capacity;
    int failed; /* out of memory */
};

static struct layout layout_of(int bit_count)
{
    static const int prefixes[] = {64, 128};
    struct layout layout = {.bit_count = bit_count};
    layout.counter_count = bit_count <= 256 ? 9 : bit_count <= 512 ? 10 : 11;
    int plane = bit_count + 1;
    for (int i = 0; i <= 2; i++) {
        const int end = i < 2 ? prefixes[i] : bit_count;
        if (i < 2 && end >= bit_count)
            continue;
        layout.sums[layout.sums_count++] = (struct sums){.end = end, .offset = plane * PLANE_WORDS};
        plane += layout.counter_count;
    }
    layout.block_words = (int64_t)plane * PLANE_WORDS;
    return layout;
}

/* Set the constants of a stage to a new bound. */
static void set_bound(struct stage *stage, int weight, int bound)
{
    const int constant = weight - bound;
    for (int j = 0; j < MAX_COUNTERS + 2; j++)
        stage->constant[j] = -(uint64_t)((constant >> j) & 1);
}

/* Drop what lies beyond `top`, and of the rows at `top` the last ones. */
static void trim(struct query *query)
{
    int64_t at_top = query->wanted - (query->held - query->histogram[query->top]);
    int64_t kept = 0;
    for (int64_t i = 0; i < query->size; i++) {
        if (query->distances[i] > query->top || (query->distances[i] == query->top && at_top-- <= 0))
            continue;
        query->rows[kept] = query->rows[i];
        query->distances[kept++] = query->distances[i];
    }
    query->size = kept;
}

static int make_room(struct query *query)
{
    if (query->held >= query->wanted) {
        trim(query);
        query->held = query->wanted;
        query->histogram[query->top] = 0;
        for (int64_t i = 0; i < query->size; i++)
            query->histogram[query->top] += query->distances[i] == query->top;
        if (query->size <= query->capacity / 2)
            return 1;
    }
    const int64_t capacity = 2 * query->capacity;
    int64_t *rows = realloc(query->rows, capacity * sizeof *rows);
    if (rows)
        query->rows = rows;
    int32_t *distances = realloc(query->distances, capacity * sizeof *distances);
    if (distances)
        query->distances = distances;
    if (!rows || !distances) {
        query->failed = 1;
        query->bound = -1;
        return 0;
    }
    query->capacity = capacity;
    return 1;
}

static void accept(struct query *query, int64_t row, int distance)
{
    if (query->size == query->capacity && !make_room(query))
        return;
    query->rows[query->size] = row;
    query->distances[query->size++] = distance;
    query->histogram[distance]++;
    query->held++;
    if (query->held < query->wanted)
        return;
    while (query->held - query->histogram[query->top] >= query->wanted)
        query->held -= query->histogram[query->top--];
    query->bound = query->top - 1;
}

/* Take the rows whose bit is set and which are live. Only here is a row's expire time read: a dead row costs no
 * place among the nearest, and the others cost nothing. */
static __attribute__((noinline)) void collect(struct query *query, const struct filter *filter, int64_t first_row,
                                              const uint64_t *rows, int words, const uint64_t *sums,
                                              const uint64_t *counters, int counter_count)
{
    const int bound = query->bound;
    for (int word = 0; word < words; word++) {
        for (uint64_t left = rows[word]; left; left &= left - 1) {
            const int bit = __builtin_ctzll(left);
            const int64_t row = first_row + 64 * word + bit;
            int distance = query->weight;
            for (int j = 0; j < counter_count; j++) {
                const int sum = (sums[PLANE_WORDS * j + word] >> bit) & 1;
                const int common = (counters[words * j + word] >> bit) & 1;
                distance += (sum - 2 * common) * (1 << j);
            }
            if (distance > query->bound || filter->now_ms >= filter->expire_times[row])
                continue;
            if (query->has_scope && filter->scopes[row] != query->scope)
                continue;
            if (filter->allowed && !filter->allowed[row])
                continue;
            accept(query, row, distance);
        }
    }
    if (query->bound != bound)
        set_bound(&query->stages[query->stage_count - 1], query->weight, query->bound);
}

/* Set the bits of the rows of a block that lie in the span. */
static void add_span(const struct span *span, int64_t block, uint64_t *mask)
{
    for (int word = 0; word < 8; word++) {
        const int64_t start = block * BLOCK_ROWS + 64 * word;
        const int64_t low = span->start > start ? span->start - start : 0;
        const int64_t high = span->stop < start + 64 ? span->stop - start : 64;
        if (low < high)
            mask[word] |= (high - low == 64 ? ~UINT64_C(0) : (UINT64_C(1) << (high - low)) - 1) << low;
    }
}

/* List the blocks of ascending spans; 0 when out of memory. */
static int make_plan(struct plan *plan, const struct span *spans, int64_t span_count)
{
    int64_t most_visits = 0;
    for (int64_t s = 0; s < span_count; s++)
        most_visits += (spans[s].stop - spans[s].start) / BLOCK_ROWS + 2;
    plan->count = 0;
    plan->visits = malloc((most_visits + 1) * sizeof *plan->visits);
    const size_t mask_bytes = (2 * span_count + 1) * sizeof *plan->masks; /* only a span's ends are not whole blocks */
    void *masks = NULL;
    if (!plan->visits || posix_memalign(&masks, 64, mask_bytes))
        return 0;
    plan->masks = masks;
    memset(plan->masks, 0, mask_bytes);
    int64_t mask_count = 0;
    for (int64_t s = 0; s < span_count; s++) {
        if (spans[s].start == spans[s].stop)
            continue;
        for (int64_t b = spans[s].start / BLOCK_ROWS; b <= (spans[s].stop - 1) / BLOCK_ROWS; b++) {
            const int is_new = !plan->count || plan->visits[plan->count - 1].block != b;
            const int is_whole = spans[s].start <= b * BLOCK_ROWS && (b + 1) * BLOCK_ROWS <= spans[s].stop;
            if (is_new)
                plan->visits[plan->count++] = (struct visit){b, is_whole ? -1 : mask_count++};
            if (!is_whole)
                add_span(&spans[s], b, plan->masks[plan->visits[plan->count - 1].mask]);
        }
    }
    return 1;
}

/* Prefetch the share of one of several queries in what they read first of a block: all planes of their first stage. To
 * fetch only those in a query's list would halve the bytes, but memory gives scattered lines at half the speed. */
static INLINE void prefetch_share(const struct layout *layout, const uint64_t *block, const struct query *query,
                                  int64_t query_number, int64_t query_count)
{
    const struct sums *sums = &layout->sums[query->stages[0].sums];
    const int64_t share = (sums->end + query_count - 1) / query_count;
    const int64_t stop = (query_number + 1) * share < sums->end ? (query_number + 1) * share : sums->end;
    for (int64_t plane = query_number * share; plane < stop; plane++)
        __builtin_prefetch(block + PLANE_WORDS * plane);
    if (query_number == 0)
        for (int i = 0; i < layout->counter_count; i++)
            __builtin_prefetch(block + sums->offset + PLANE_WORDS * i);
}
