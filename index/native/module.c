/* index._kernels: exact Hamming search over bit-sliced codes, and cosine distances on stored vectors.
 *
 * Called by index/kernels.py, which checks types and shapes; here only sizes are checked. The interpreter lock is
 * released while a kernel runs.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

#include "scan.h"
#include "measure.h"
#include "instruction_sets.h"
#include "search.h"

/* Buffers of one call, released together. */
#define MAX_BUFFERS 16
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

static PyObject *nearest(PyObject *self, PyObject *args)
{
    PyObject *o_blocks, *o_spans, *o_codes, *o_max, *o_limits, *o_expire, *o_scopes, *o_query_scopes, *o_allowed;
    PyObject *o_rows, *o_distances, *o_counts;
    int bit_count;
    long long span_count, query_count, wanted, row_count, now_ms;
    struct buffers buffers = {.count = 0};
    struct query *queries = NULL;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OiLOLOLLOOOLOOOOOO", &o_blocks, &bit_count, &row_count, &o_spans, &span_count,
                          &o_codes, &query_count, &wanted, &o_max, &o_limits, &o_expire, &now_ms, &o_scopes,
                          &o_query_scopes, &o_allowed, &o_rows, &o_distances, &o_counts))
        return NULL;
    if (bit_count < 1 || bit_count > MAX_BITS || wanted < 1 || query_count < 0 || row_count < 0 || span_count < 0)
        return PyErr_Format(PyExc_ValueError, "bit_count, wanted or a count is out of range");
    const struct layout layout = layout_of(bit_count);
    const int words = (bit_count + 63) / 64;
    const int64_t block_count = (row_count + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const uint64_t *blocks = READ(o_blocks, block_count * layout.block_words * 8, "blocks");
    const uint64_t *codes = blocks ? READ(o_codes, query_count * words * 8, "codes") : NULL;
    const int64_t *expire_times = codes ? READ(o_expire, row_count * 8, "expire_times") : NULL;
    int64_t *rows = expire_times ? WRITE(o_rows, query_count * wanted * 8, "rows") : NULL;
    int32_t *distances = rows ? WRITE(o_distances, query_count * wanted * 4, "distances") : NULL;
    int64_t *counts = distances ? WRITE(o_counts, query_count * 8, "counts") : NULL;
    if (!counts)
        goto done;
    const struct span all_rows = {0, row_count}, *spans = &all_rows;
    if (o_spans != Py_None && !(spans = READ(o_spans, span_count * sizeof(struct span), "spans")))
        goto done;
    if (o_spans == Py_None)
        span_count = 1;
    const int32_t *limits = NULL, *max_distances = NULL;
    if (o_max != Py_None && !(max_distances = READ(o_max, query_count * 4, "max_distances")))
        goto done;
    const uint64_t *scopes = NULL, *query_scopes = NULL;
    const uint8_t *allowed = NULL;
    if (o_limits != Py_None && !(limits = READ(o_limits, query_count * (layout.sums_count - 1) * 4, "limits")))
        goto done;
    if (o_query_scopes != Py_None) {
        if (!(scopes = READ(o_scopes, row_count * 8, "scopes")))
            goto done;
        if (!(query_scopes = READ(o_query_scopes, query_count * 8, "query_scopes")))
            goto done;
    }
    if (o_allowed != Py_None && !(allowed = READ(o_allowed, row_count, "allowed")))
        goto done;
    if (block_count && (uintptr_t)blocks % 64) {
        PyErr_SetString(PyExc_ValueError, "blocks: must begin at a cache line");
        goto done;
    }
    for (int64_t s = 0; s < span_count; s++)
        if (spans[s].start < (s ? spans[s - 1].stop : 0) || spans[s].stop < spans[s].start ||
            spans[s].stop > row_count) {
            PyErr_SetString(PyExc_ValueError, "spans must ascend, apart from each other, within the rows");
            goto done;
        }
    for (int64_t i = 0; max_distances && i < query_count; i++)
        if (max_distances[i] > bit_count) {
            PyErr_SetString(PyExc_ValueError, "max_distances: beyond bit_count");
            goto done;
        }
    const struct filter filter = {expire_times, now_ms, scopes, allowed};
    struct plan plan = {0};
    int is_out_of_memory = 0;
    Py_BEGIN_ALLOW_THREADS
    void *aligned = NULL;
    if (query_count && posix_memalign(&aligned, 64, query_count * sizeof *queries))
        is_out_of_memory = 1;
    queries = aligned;
    int64_t prepared = 0;
    for (; !is_out_of_memory && prepared < query_count; prepared++) {
        const int64_t i = prepared;
        const int most = max_distances ? max_distances[i] : bit_count;
        is_out_of_memory = !prepare(&layout, &queries[i], codes + i * words, wanted, most,
                                    limits ? limits + i * (layout.sums_count - 1) : NULL);
        queries[i].has_scope = query_scopes != NULL;
        queries[i].scope = query_scopes ? query_scopes[i] : 0;
    }
    if (!is_out_of_memory && make_plan(&plan, spans, span_count))
        search(&layout, blocks, &plan, span_count == 1, &filter, queries, query_count);
    else
        is_out_of_memory = 1;
    free(plan.visits);
    free(plan.masks);
    for (int64_t i = 0; i < prepared; i++) {
        is_out_of_memory |= queries[i].failed;
        if (!is_out_of_memory)
            counts[i] = finish(&queries[i], &layout, rows + i * wanted, distances + i * wanted);
        free(queries[i].rows);
        free(queries[i].distances);
    }
    free(queries);
    Py_END_ALLOW_THREADS
    result = is_out_of_memory ? PyErr_NoMemory() : Py_NewRef(Py_None);
done:
    release(&buffers);
    return result;
}

/* Add codes behind the first `row_count` rows. Readers may search those meanwhile: no bit of theirs changes. */
static PyObject *append(PyObject *self, PyObject *args)
{
    PyObject *o_blocks, *o_codes;
    int bit_count;
    long long row_count, added;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OiLOL", &o_blocks, &bit_count, &row_count, &o_codes, &added))
        return NULL;
    if (bit_count < 1 || bit_count > MAX_BITS || row_count < 0 || added < 0)
        return PyErr_Format(PyExc_ValueError, "bit_count or a count is out of range");
    const struct layout layout = layout_of(bit_count);
    const int words = (bit_count + 63) / 64;
    const int64_t block_count = (row_count + added + BLOCK_ROWS - 1) / BLOCK_ROWS;
    uint64_t *blocks = WRITE(o_blocks, block_count * layout.block_words * 8, "blocks");
    const uint64_t *codes = blocks ? READ(o_codes, added * words * 8, "codes") : NULL;
    if (!codes)
        goto done;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < added; i++) {
        const int64_t row = row_count + i;
        const uint64_t *code = codes + i * words;
        uint64_t *planes = blocks + row / BLOCK_ROWS * layout.block_words + row % BLOCK_ROWS / 64;
        const uint64_t bit = UINT64_C(1) << (row % 64);
        int weight = 0, s = 0;
        for (int word = 0; word < words; word++) {
            const int used = bit_count - 64 * word;
            const uint64_t bits = used < 64 ? code[word] & ((UINT64_C(1) << used) - 1) : code[word];
            for (uint64_t left = bits; left; left &= left - 1)
                planes[(64 * word + __builtin_ctzll(left)) * PLANE_WORDS] |= bit;
            weight += __builtin_popcountll(bits);
            if (64 * (word + 1) >= layout.sums[s].end) {
                uint64_t *sum = planes + layout.sums[s].offset;
                for (int j = 0; j < layout.counter_count; j++)
                    if ((weight >> j) & 1)
                        sum[PLANE_WORDS * j] |= bit;
                s++;
            }
        }
    }
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&buffers);
    return result;
}

static PyObject *distances(PyObject *args, int value_bytes)
{
    PyObject *o_vectors, *o_offsets, *o_query, *o_out;
    long long dim, row_count, count;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OLLOLOO", &o_vectors, &row_count, &dim, &o_offsets, &count, &o_query, &o_out))
        return NULL;
    if (row_count < 0 || dim < 0 || count < 0 || (o_offsets == Py_None && count > row_count))
        return PyErr_Format(PyExc_ValueError, "a count is out of range");
    const void *vectors = READ(o_vectors, row_count * dim * value_bytes, "vectors");
    const float *query = vectors ? READ(o_query, dim * 4, "query") : NULL;
    float *out = query ? WRITE(o_out, count * 4, "out") : NULL;
    if (!out)
        goto done;
    const int64_t *offsets = NULL;
    if (o_offsets != Py_None) {
        if (!(offsets = READ(o_offsets, count * 8, "offsets")))
            goto done;
        for (int64_t i = 0; i < count; i++)
            if (offsets[i] < 0 || offsets[i] >= row_count) {
                PyErr_Format(PyExc_IndexError, "offset %lld of %lld rows", (long long)offsets[i], row_count);
                goto done;
            }
    }
    float *unit;
    Py_BEGIN_ALLOW_THREADS
    unit = unit_query(query, dim);
    if (unit && value_bytes == 2)
        chosen->kernels->half_distances(vectors, dim, offsets, count, unit, out);
    else if (unit)
        chosen->kernels->byte_distances(vectors, dim, offsets, count, unit, out);
    free(unit);
    Py_END_ALLOW_THREADS
    result = unit ? Py_NewRef(Py_None) : PyErr_NoMemory();
done:
    release(&buffers);
    return result;
}

/* Per query: measure its candidates on int8, keep the nearest, and measure those on float16. */
static PyObject *rerank(PyObject *self, PyObject *args)
{
    PyObject *o_vectors, *o_bytes, *o_queries, *o_offsets, *o_found, *o_places, *o_distances, *o_counts;
    long long row_count, dim, query_count, width, kept;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OOLLOLOLOLOOO", &o_vectors, &o_bytes, &row_count, &dim, &o_queries, &query_count,
                          &o_offsets, &width, &o_found, &kept, &o_places, &o_distances, &o_counts))
        return NULL;
    if (row_count < 0 || dim < 0 || query_count < 0 || width < 0 || kept < 1)
        return PyErr_Format(PyExc_ValueError, "a count is out of range");
    const uint16_t *vectors = READ(o_vectors, row_count * dim * 2, "vectors");
    const float *queries = vectors ? READ(o_queries, query_count * dim * 4, "queries") : NULL;
    const int64_t *offsets = queries ? READ(o_offsets, query_count * width * 8, "offsets") : NULL;
    const int64_t *found = offsets ? READ(o_found, query_count * 8, "found") : NULL;
    int64_t *places = found ? WRITE(o_places, query_count * kept * 8, "places") : NULL;
    float *out = places ? WRITE(o_distances, query_count * kept * 4, "distances") : NULL;
    int64_t *counts = out ? WRITE(o_counts, query_count * 8, "counts") : NULL;
    const int8_t *bytes = NULL;
    if (!counts || (o_bytes != Py_None && !(bytes = READ(o_bytes, row_count * dim, "quantised"))))
        goto done;
    for (int64_t i = 0; i < query_count; i++) {
        int is_wrong = found[i] < 0 || found[i] > width || (!bytes && found[i] > kept);
        for (int64_t j = 0; !is_wrong && j < found[i]; j++)
            is_wrong = offsets[i * width + j] < 0 || offsets[i * width + j] >= row_count;
        if (is_wrong) {
            PyErr_Format(PyExc_IndexError, "candidates are not of %lld rows, or too many", row_count);
            goto done;
        }
    }
    int is_out_of_memory;
    Py_BEGIN_ALLOW_THREADS
    float *rough = malloc((width + 1) * sizeof *rough);
    struct measured *items = malloc((width + 1) * sizeof *items);
    int64_t *rows = malloc((width + 1) * sizeof *rows);
    is_out_of_memory = !rough || !items || !rows;
    for (int64_t i = 0; !is_out_of_memory && i < query_count; i++) {
        const int64_t *candidates = offsets + i * width;
        float *query = unit_query(queries + i * dim, dim);
        int64_t count = found[i];
        if (!query) {
            is_out_of_memory = 1;
            break;
        }
        for (int64_t j = 0; j < count; j++)
            items[j].place = j;
        if (bytes && count > kept) {
            chosen->kernels->byte_distances(bytes, dim, candidates, count, query, rough);
            for (int64_t j = 0; j < count; j++)
                items[j].distance = rough[j];
            select_nearest(items, count, kept);
            count = kept;
        }
        for (int64_t j = 0; j < count; j++) {
            places[i * kept + j] = items[j].place;
            rows[j] = candidates[items[j].place];
        }
        chosen->kernels->half_distances(vectors, dim, rows, count, query, out + i * kept);
        free(query);
        counts[i] = count;
    }
    free(rough);
    free(items);
    free(rows);
    Py_END_ALLOW_THREADS
    result = is_out_of_memory ? PyErr_NoMemory() : Py_NewRef(Py_None);
done:
    release(&buffers);
    return result;
}

/* The rows of the lists whose centroids are within the margin of the nearest one, and of the `least` nearest lists, as
 * ascending spans; returns how many. */
static PyObject *choose_spans(PyObject *self, PyObject *args)
{
    PyObject *o_centroids, *o_bounds, *o_query, *o_spans;
    long long list_count, dim, least;
    double margin;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OLLOOdLO", &o_centroids, &list_count, &dim, &o_bounds, &o_query, &margin, &least,
                          &o_spans))
        return NULL;
    if (list_count < 1 || dim < 0 || least < 1 || least > list_count)
        return PyErr_Format(PyExc_ValueError, "a count is out of range");
    const uint16_t *centroids = READ(o_centroids, list_count * dim * 2, "centroids");
    const int64_t *bounds = centroids ? READ(o_bounds, (list_count + 1) * 8, "bounds") : NULL;
    const float *query = bounds ? READ(o_query, dim * 4, "query") : NULL;
    struct span *spans = query ? WRITE(o_spans, list_count * sizeof(struct span), "spans") : NULL;
    if (!spans)
        goto done;
    int64_t span_count = 0;
    int is_out_of_memory;
    Py_BEGIN_ALLOW_THREADS
    float *to_lists = malloc(list_count * sizeof *to_lists);
    struct measured *items = malloc(list_count * sizeof *items);
    float *unit = unit_query(query, dim);
    is_out_of_memory = !to_lists || !items || !unit;
    if (!is_out_of_memory) {
        chosen->kernels->half_distances(centroids, dim, NULL, list_count, unit, to_lists);
        for (int64_t i = 0; i < list_count; i++)
            items[i] = (struct measured){to_lists[i], i};
        select_nearest(items, list_count, least);
        float nearest_list = items[0].distance, limit = items[0].distance;
        for (int64_t i = 1; i < least; i++) {
            nearest_list = items[i].distance < nearest_list ? items[i].distance : nearest_list;
            limit = items[i].distance > limit ? items[i].distance : limit;
        }
        if (nearest_list + (float)margin > limit)
            limit = nearest_list + (float)margin;
        for (int64_t i = 0; i < list_count; i++) {
            if (to_lists[i] > limit || bounds[i] == bounds[i + 1])
                continue;
            if (span_count && spans[span_count - 1].stop == bounds[i])
                spans[span_count - 1].stop = bounds[i + 1];
            else
                spans[span_count++] = (struct span){bounds[i], bounds[i + 1]};
        }
    }
    free(to_lists);
    free(items);
    free(unit);
    Py_END_ALLOW_THREADS
    result = is_out_of_memory ? PyErr_NoMemory() : PyLong_FromLongLong(span_count);
done:
    release(&buffers);
    return result;
}

static PyObject *half_distances(PyObject *self, PyObject *args)
{
    return distances(args, 2);
}

static PyObject *byte_distances(PyObject *self, PyObject *args)
{
    return distances(args, 1);
}

static PyObject *quantise(PyObject *self, PyObject *args)
{
    PyObject *o_vectors, *o_out;
    long long row_count, dim;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OLLO", &o_vectors, &row_count, &dim, &o_out))
        return NULL;
    const uint16_t *vectors = READ(o_vectors, row_count * dim * 2, "vectors");
    int8_t *out = vectors ? WRITE(o_out, row_count * dim, "out") : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        chosen->kernels->quantise(vectors, row_count, dim, out);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

/* Sum, per code, the table's entries for its bytes, in the order of the bytes. */
static PyObject *table_scores(PyObject *self, PyObject *args)
{
    PyObject *o_codes, *o_table, *o_out;
    long long row_count, width;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OLLOO", &o_codes, &row_count, &width, &o_table, &o_out))
        return NULL;
    const uint8_t *codes = READ(o_codes, row_count * width, "codes");
    const float *table = codes ? READ(o_table, width * 256 * 4, "table") : NULL;
    float *out = table ? WRITE(o_out, row_count * 4, "out") : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t row = 0; row < row_count; row++) {
            float score = 0;
            for (int64_t i = 0; i < width; i++)
                score += table[256 * i + codes[row * width + i]];
            out[row] = score;
        }
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

static PyObject *block_words(PyObject *self, PyObject *args)
{
    int bit_count;
    if (!PyArg_ParseTuple(args, "i", &bit_count))
        return NULL;
    if (bit_count < 1 || bit_count > MAX_BITS)
        return PyErr_Format(PyExc_ValueError, "bit_count is out of range");
    return PyLong_FromLongLong(layout_of(bit_count).block_words);
}

static PyObject *instruction_sets(PyObject *self, PyObject *args)
{
    PyObject *names = PyTuple_New(supported_count);
    for (int i = 0; names && i < supported_count; i++) {
        PyObject *name = PyUnicode_FromString(supported[i].name);
        if (!name || PyTuple_SetItem(names, i, name) < 0) {
            Py_DECREF(names);
            return NULL;
        }
    }
    return names;
}

static PyObject *choose(PyObject *self, PyObject *args)
{
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name))
        return NULL;
    for (int i = 0; i < supported_count; i++)
        if (!strcmp(supported[i].name, name)) {
            chosen = &supported[i];
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "%s is not an instruction set of this machine", name);
}

static PyMethodDef methods[] = {
    {"nearest", nearest, METH_VARARGS, NULL},
    {"append", append, METH_VARARGS, NULL},
    {"rerank", rerank, METH_VARARGS, NULL},
    {"choose_spans", choose_spans, METH_VARARGS, NULL},
    {"half_distances", half_distances, METH_VARARGS, NULL},
    {"byte_distances", byte_distances, METH_VARARGS, NULL},
    {"quantise", quantise, METH_VARARGS, NULL},
    {"table_scores", table_scores, METH_VARARGS, NULL},
    {"block_words", block_words, METH_VARARGS, NULL},
    {"instruction_sets", instruction_sets, METH_NOARGS, NULL},
    {"choose", choose, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "index._kernels", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    detect();
    return PyModule_Create(&module);
}
