/* Which rows a query searches of a segment whose rows are grouped by their nearest centroid. */

struct lists {
    const uint16_t *centroids; /* float16 [list_count, dim] */
    const int64_t *bounds;     /* rows bounds[i] .. bounds[i + 1] are list i */
    int64_t list_count, dim;
};

/* The distance up to which lists are searched: the nearest one's and the margin, or that of the `least`-th. */
static float list_limit(struct measured *items, int64_t count, float margin, int64_t least)
{
    select_nearest(items, count, least);
    float nearest = items[0].distance, farthest = items[0].distance;
    for (int64_t i = 1; i < least; i++) {
        nearest = items[i].distance < nearest ? items[i].distance : nearest;
        farthest = items[i].distance > farthest ? items[i].distance : farthest;
    }
    return nearest + margin > farthest ? nearest + margin : farthest;
}

/* The blocks of the lists near a query of norm 1, 1 <= least <= list_count, as ascending spans of rows, apart from each
 * other; spans has room for one a list. Whole blocks: a row of another list costs nothing there. Returns how many, -1
 * when out of memory. */
static int64_t choose_spans(const struct lists *lists, const float *query, float margin, int64_t least,
                            struct span *spans)
{
    float *to_lists = malloc((lists->list_count + 1) * sizeof *to_lists);
    struct measured *items = malloc((lists->list_count + 1) * sizeof *items);
    int64_t span_count = -1;
    if (!to_lists || !items)
        goto done;
    chosen->kernels->half_distances(lists->centroids, lists->dim, NULL, lists->list_count, query, to_lists);
    for (int64_t i = 0; i < lists->list_count; i++)
        items[i] = (struct measured){to_lists[i], i};
    const float limit = list_limit(items, lists->list_count, margin, least);
    const int64_t row_count = lists->bounds[lists->list_count];
    span_count = 0;
    for (int64_t i = 0; i < lists->list_count; i++) {
        if (to_lists[i] > limit || lists->bounds[i] == lists->bounds[i + 1])
            continue;
        const int64_t start = lists->bounds[i] / BLOCK_ROWS * BLOCK_ROWS;
        const int64_t last = (lists->bounds[i + 1] + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS;
        const int64_t stop = last < row_count ? last : row_count;
        if (span_count && spans[span_count - 1].stop >= start)
            spans[span_count - 1].stop = stop;
        else
            spans[span_count++] = (struct span){start, stop};
    }
done:
    free(to_lists);
    free(items);
    return span_count;
}
