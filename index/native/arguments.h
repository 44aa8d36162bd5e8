/* What Python hands over, read into the structures of the kernels. */

/* Buffers of one call, released together. */
#define MAX_BUFFERS 20
struct buffers {
    Py_buffer views[MAX_BUFFERS];
    int count;
};

static void release(struct buffers *buffers)
{
    while (buffers->count)
        PyBuffer_Release(&buffers->views[--buffers->count]);
}

/* The memory of an array of at least size_bytes; NULL with an exception set. */
static void *memory(struct buffers *buffers, PyObject *object, int64_t size_bytes, const char *name, int flags)
{
    Py_buffer *view = &buffers->views[buffers->count];
    if (PyObject_GetBuffer(object, view, flags) < 0)
        return NULL;
    buffers->count++;
    if (view->len < size_bytes) {
        PyErr_Format(PyExc_ValueError, "%s: %zd bytes, needs %lld", name, view->len, (long long)size_bytes);
        return NULL;
    }
    return view->buf;
}

#define READ(object, size_bytes, name) memory(&buffers, object, size_bytes, name, PyBUF_SIMPLE)
#define WRITE(object, size_bytes, name) memory(&buffers, object, size_bytes, name, PyBUF_WRITABLE)

/* What a search of codes reads and what it is asked for. */
struct call {
    struct layout layout;
    const uint64_t *blocks, *codes;
    const struct span *spans;
    struct span all_rows;
    const int32_t *max_distances, *limits; /* or NULL */
    const uint64_t *query_scopes;          /* or NULL */
    struct filter filter;
    struct vectors vectors;   /* members may be NULL */
    const int64_t *entry_ids; /* or NULL */
    int64_t row_count, span_count, query_count, wanted;
};

/* Read what index/ says of the rows (`table`) and of the queries; 0 with an exception set. */
static int read_call(struct call *call, struct buffers *buffers_of_call, PyObject *table, PyObject *search)
{
    PyObject *o_blocks, *o_spans, *o_codes, *o_max, *o_limits, *o_expire, *o_scopes, *o_query_scopes, *o_allowed;
    PyObject *o_vectors, *o_bytes, *o_ids;
    int bit_count;
    long long row_count, dim, span_count, query_count, wanted, now_ms;
    if (!PyArg_ParseTuple(table, "OiLOOOOOL", &o_blocks, &bit_count, &row_count, &o_expire, &o_scopes, &o_vectors,
                          &o_bytes, &o_ids, &dim) ||
        !PyArg_ParseTuple(search, "OLLLOOOLOO", &o_codes, &query_count, &wanted, &now_ms, &o_query_scopes, &o_allowed,
                          &o_spans, &span_count, &o_max, &o_limits))
        return 0;
    if (bit_count < 1 || bit_count > MAX_BITS || wanted < 1 || query_count < 0 || row_count < 0 || span_count < 0 ||
        dim < 0) {
        PyErr_SetString(PyExc_ValueError, "bit_count, wanted or a count is out of range");
        return 0;
    }
    *call = (struct call){
        .layout = layout_of(bit_count),
        .all_rows = {0, row_count},
        .filter = {.now_ms = now_ms},
        .vectors = {.dim = dim},
        .row_count = row_count,
        .span_count = o_spans == Py_None ? 1 : span_count,
        .query_count = query_count,
        .wanted = wanted,
    };
    const int words = (bit_count + 63) / 64;
    const int limit_count = call->layout.sums_count - 1;
    const int64_t block_count = (row_count + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int has_scope = o_query_scopes != Py_None;
    call->spans = &call->all_rows;
#define TAKE(field, object, size_bytes, name) \
    (((field) = memory(buffers_of_call, object, size_bytes, name, PyBUF_SIMPLE)) != NULL)
#define TAKE_IF_ANY(field, object, size_bytes, name) ((object) == Py_None || TAKE(field, object, size_bytes, name))
    const int is_read = TAKE(call->blocks, o_blocks, block_count * call->layout.block_words * 8, "blocks") &&
                        TAKE(call->codes, o_codes, query_count * words * 8, "codes") &&
                        TAKE(call->filter.expire_times, o_expire, row_count * 8, "expire_times") &&
                        TAKE_IF_ANY(call->spans, o_spans, span_count * (int64_t)sizeof(struct span), "spans") &&
                        TAKE_IF_ANY(call->max_distances, o_max, query_count * 4, "max_distances") &&
                        TAKE_IF_ANY(call->limits, o_limits, query_count * limit_count * 4, "limits") &&
                        (!has_scope || (TAKE(call->filter.scopes, o_scopes, row_count * 8, "scopes") &&
                                        TAKE(call->query_scopes, o_query_scopes, query_count * 8, "query_scopes"))) &&
                        TAKE_IF_ANY(call->filter.allowed, o_allowed, row_count, "allowed") &&
                        TAKE_IF_ANY(call->vectors.halves, o_vectors, row_count * dim * 2, "vectors") &&
                        TAKE_IF_ANY(call->vectors.bytes, o_bytes, row_count * dim, "quantised") &&
                        TAKE_IF_ANY(call->entry_ids, o_ids, row_count * 8, "entry_ids");
    if (!is_read)
        return 0;
    const char *error = NULL;
    if (block_count && (uintptr_t)call->blocks % 64)
        error = "blocks: must begin at a cache line";
    for (int64_t s = 0; s < call->span_count; s++) {
        const struct span *span = &call->spans[s];
        if (span->start < (s ? span[-1].stop : 0) || span->stop < span->start || span->stop > row_count)
            error = "spans must ascend, apart from each other, within the rows";
    }
    for (int64_t i = 0; call->max_distances && i < query_count; i++)
        if (call->max_distances[i] > bit_count)
            error = "max_distances: beyond bit_count";
    if (error)
        PyErr_SetString(PyExc_ValueError, error);
    return !error;
}

/* Lists and what a query asks of them. */
struct choice {
    struct lists lists;
    double margin;
    int64_t least;
};

static int read_choice(struct choice *choice, struct buffers *buffers_of_call, PyObject *args)
{
    PyObject *o_centroids, *o_bounds;
    long long list_count, dim, least;
    if (!PyArg_ParseTuple(args, "OOLLdL", &o_centroids, &o_bounds, &list_count, &dim, &choice->margin, &least))
        return 0;
    if (dim < 0 || least < 1 || least > list_count) {
        PyErr_SetString(PyExc_ValueError, "a count of lists is out of range");
        return 0;
    }
    struct lists *lists = &choice->lists;
    *lists = (struct lists){.list_count = list_count, .dim = dim};
    choice->least = least;
    if (!TAKE(lists->centroids, o_centroids, list_count * dim * 2, "centroids") ||
        !TAKE(lists->bounds, o_bounds, (list_count + 1) * 8, "bounds"))
        return 0;
    int is_right = lists->bounds[0] == 0 && choice->margin >= 0; /* a margin that is not a number is none */
    for (long long i = 0; i < list_count; i++)
        is_right &= lists->bounds[i] <= lists->bounds[i + 1];
    if (!is_right)
        PyErr_SetString(PyExc_ValueError, "bounds must ascend from 0, and a margin be at least 0");
    return is_right;
}
