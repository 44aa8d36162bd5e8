/* From the rows with the nearest codes to the nearest rows by exact distance. */

struct vectors {
    const uint16_t *halves; /* float16, what is exact */
    const int8_t *bytes;    /* the same vectors scaled and rounded, or NULL */
    int64_t dim;
};

struct ranked {
    float distance;
    int bits;
    int64_t entry_id, row;
};

static int compare_ranked(const void *first, const void *second)
{
    const struct ranked *a = first, *b = second;
    if (a->distance != b->distance)
        return a->distance < b->distance ? -1 : 1;
    return (a->entry_id > b->entry_id) - (a->entry_id < b->entry_id);
}

/* Measure the candidates on int8, keep the exact_count nearest, measure those on float16 and sort them; without int8
 * vectors measure all on float16. The exact_count nearest are returned, *ranked_count rows in memory that free() ends;
 * NULL when out of memory. */
static struct ranked *rank_candidates(const struct vectors *vectors, const float *query, const int64_t *rows,
                                      const int32_t *bits, int64_t count, int64_t exact_count,
                                      const int64_t *entry_ids, int64_t *ranked_count)
{
    float *distances = malloc((count + 1) * sizeof *distances);
    struct measured *items = malloc((count + 1) * sizeof *items);
    int64_t *kept = malloc((count + 1) * sizeof *kept);
    float *unit = unit_query(query, vectors->dim);
    struct ranked *ranked = NULL;
    if (!distances || !items || !kept || !unit)
        goto done;
    for (int64_t i = 0; i < count; i++)
        items[i].place = i;
    if (vectors->bytes && count > exact_count) {
        chosen->kernels->byte_distances(vectors->bytes, vectors->dim, rows, count, unit, distances);
        for (int64_t i = 0; i < count; i++)
            items[i].distance = distances[i];
        select_nearest(items, count, exact_count);
        count = exact_count;
    }
    for (int64_t i = 0; i < count; i++)
        kept[i] = rows[items[i].place];
    chosen->kernels->half_distances(vectors->halves, vectors->dim, kept, count, unit, distances);
    ranked = malloc((count + 1) * sizeof *ranked);
    for (int64_t i = 0; ranked && i < count; i++)
        ranked[i] = (struct ranked){distances[i], bits[items[i].place], entry_ids[kept[i]], kept[i]};
    if (ranked)
        qsort(ranked, count, sizeof *ranked, compare_ranked);
    *ranked_count = count < exact_count ? count : exact_count;
done:
    free(distances);
    free(items);
    free(kept);
    free(unit);
    return ranked;
}
