/* One search: from the queries to their nearest rows. */

/* Forget what was collected, and collect rows within `bound` from now on. */
static void restart(struct query *query, const struct layout *layout, int64_t wanted, int bound)
{
    query->wanted = wanted;
    query->bound = query->top = bound;
    query->held = query->size = 0;
    memset(query->histogram, 0, (layout->bit_count + 1) * sizeof *query->histogram);
    set_bound(&query->stages[query->stage_count - 1], query->weight, bound);
}

/* Search all spans. Where many rows are wanted of many, what comes first would be collected in vain, so a sample of
 * the blocks shows up to which distance to collect; a query for which that was too little searches again. */
static void search(const struct layout *layout, const uint64_t *blocks, const struct plan *plan, int is_one_span,
                   const struct filter *filter, struct query *queries, int64_t query_count)
{
    const int64_t wanted = query_count ? queries[0].wanted : 0;
    const int is_sampled = is_one_span && wanted >= SAMPLED_MIN_WANTED && plan->count >= 4 * SAMPLE_STRIDE &&
                           plan->count * BLOCK_ROWS >= SAMPLED_MIN_RATIO * wanted;
    if (is_sampled) {
        for (int64_t i = 0; i < query_count; i++)
            queries[i].wanted = wanted / SAMPLE_STRIDE * 3 / 2 + 16;
        chosen->kernels->search(layout, blocks, plan, SAMPLE_STRIDE, filter, queries, query_count);
        for (int64_t i = 0; i < query_count; i++)
            if (!queries[i].failed)
                restart(&queries[i], layout, wanted, queries[i].top);
    }
    chosen->kernels->search(layout, blocks, plan, 1, filter, queries, query_count);
    for (int64_t i = 0; is_sampled && i < query_count; i++)
        if (queries[i].held < wanted && queries[i].top < queries[i].max_distance && !queries[i].failed) {
            restart(&queries[i], layout, wanted, queries[i].max_distance);
            chosen->kernels->search(layout, blocks, plan, 1, filter, &queries[i], 1);
        }
}

/* List the planes of the query's ones, stage by stage; `limits` NULL: one stage. */
static int prepare(const struct layout *layout, struct query *query, const uint64_t *code, int64_t wanted,
                   int max_distance, const int32_t *limits)
{
    max_distance = max_distance < -1 ? -1 : max_distance;
    const int zero_plane = layout->bit_count * PLANE_WORDS;
    int size = 0, start_bit = 0;
    query->weight = 0;
    query->stage_count = 0;
    for (int s = limits ? 0 : layout->sums_count - 1; s < layout->sums_count; s++) {
        const int end = layout->sums[s].end, is_last = s == layout->sums_count - 1;
        if (!is_last && limits[s] >= end)
            continue; /* every prefix is that near: a stage that drops nothing */
        struct stage *stage = &query->stages[query->stage_count++];
        stage->sums = s;
        stage->start = size;
        for (int bit = start_bit; bit < end; bit++)
            if ((code[bit / 64] >> (bit % 64)) & 1) {
                query->offsets[size++] = bit * PLANE_WORDS;
                query->weight++;
            }
        while (size % 16)
            query->offsets[size++] = zero_plane;
        stage->count = size - stage->start;
        start_bit = end;
        set_bound(stage, query->weight, is_last ? max_distance : limits[s] < -1 ? -1 : limits[s]);
    }
    query->failed = 0;
    query->max_distance = max_distance;
    restart(query, layout, wanted, max_distance);
    query->capacity = wanted + 1024;
    query->rows = malloc(query->capacity * sizeof *query->rows);
    query->distances = malloc(query->capacity * sizeof *query->distances);
    return query->rows && query->distances;
}

static void end_queries(struct query *queries, int64_t query_count)
{
    for (int64_t i = 0; i < query_count; i++) {
        free(queries[i].rows);
        free(queries[i].distances);
    }
    free(queries);
}

/* Write the rows in ascending order of distance, then of row: a counting sort of what was collected in order. */
static int64_t finish(struct query *query, const struct layout *layout, int64_t *rows, int32_t *distances)
{
    int64_t next[MAX_BITS + 2];
    if (query->held >= query->wanted)
        trim(query);
    memset(query->histogram, 0, (layout->bit_count + 1) * sizeof *query->histogram);
    for (int64_t i = 0; i < query->size; i++)
        query->histogram[query->distances[i]]++;
    next[0] = 0;
    for (int d = 0; d <= layout->bit_count; d++)
        next[d + 1] = next[d] + query->histogram[d];
    for (int64_t i = 0; i < query->size; i++) {
        const int64_t place = next[query->distances[i]]++;
        rows[place] = query->rows[i];
        distances[place] = query->distances[i];
    }
    return query->size;
}
